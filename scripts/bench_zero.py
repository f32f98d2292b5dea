import sys  # `python run.py bench zero`, by its first name

sys.path[0] = sys.path[0].removesuffix("scripts")
if __name__ == "__main__":
    sys.exit(__import__("dual_lora.commands", fromlist=["main"]).main(["bench", "zero", *sys.argv[1:]]))
