import sys  # `python run.py bench generation`, by its first name

sys.path[0] = sys.path[0].removesuffix("scripts")
if __name__ == "__main__":
    sys.exit(__import__("dual_lora.commands", fromlist=["main"]).main(["bench", "generation", *sys.argv[1:]]))
