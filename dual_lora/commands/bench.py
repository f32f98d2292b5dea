"""Measure speed and memory; each NAME writes a file of results/benchmarks.

python run.py bench NAME            # python run.py bench NAME --help: what is measured, and how
python run.py bench NAME --smoke    # a tiny model on a CPU: shows that it runs; its times mean nothing
"""

from __future__ import annotations

import ast
import os
from importlib import import_module
from pathlib import Path

from dual_lora import shipped
from dual_lora.commands.parser import Parser, one_of
from dual_lora.config import ConfigError, legal_values

NAMES = {
    "kernels": "one Dual LoRA layer against copies, LoRA and three GEMMs",
    "tiles": "tile sizes of the Triton kernels",
    "training": "training steps against LoRA, DoRA and three GEMMs",
    "graphs": "training steps as CUDA graphs, and without",
    "whole-run": "the steps of a run as it is, and how long its GPU computes",
    "runs": "whole runs of a sweep per minute of a GPU, by how many at a time",
    "start": "a run from the command to its first training step",
    "passes": "an evaluation's forward passes as CUDA graphs, and without",
    "loss-positions": "steps that compute logits only at positions with a loss",
    "export-lora": "what LoRA adapters of a given rank keep of trained Dual LoRA adapters",
    "generation": "tokens of the base, of an adapter, merged and not",
    "evaluation": "our evaluation against the published loop",
    "zero": "one process under DeepSpeed against one without it",
    "fsdp": "steps on several GPUs that share the weights (launch=fsdp), against one GPU and DDP",
    "scaling": "runs on several GPUs: speed, memory, equal curves, a killed process",
    "gpu-hours": "plan every run of experiments/ for one card: what empty cells of tables would take",
    "report": "write what was measured into README.md, docs and the figure",
}
_TEXT = f"{__doc__}\n" + "\n".join(f"  {name:<16} {meaning}" for name, meaning in NAMES.items())


def main(words: list[str]) -> int:
    """Run the named benchmark. Raises `ConfigError` for arguments that cannot be used."""
    if not words or words[0] in ("-h", "--help"):
        print(shipped.named(_TEXT))
        return 0
    options = parser_of(name := words[0]).parse(words[1:])
    if name in ("kernels", "tiles") and options.smoke:
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when a kernel is defined
    import_module(f"dual_lora.benchmarks.{name.replace('-', '_')}").run(options)
    return 0


def parser_of(name: str) -> Parser:
    """Return the parser of a benchmark's options. Raises `ConfigError` for a name that is none."""
    if name not in NAMES:
        raise ConfigError(f"unknown benchmark {name!r}{legal_values(name, NAMES)}")
    # Read, not imported: help would load torch.
    module = ast.parse((shipped.PACKAGE / "benchmarks" / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8"))
    parser = Parser(f"bench {name}", ast.get_docstring(module))
    if name == "report":
        parser.add_argument("--check", action="store_true", help="compare instead of writing; not the figure")
    elif name != "gpu-hours":
        parser.add_argument("--smoke", action="store_true", help="a tiny model on a CPU: does it run?")
    if name not in ("report", "evaluation"):
        folder = shipped.checkout() / "results" / "benchmarks"
        parser.add_argument("--output", type=Path, default=folder, help="folder of the result file")
    for option in ("methods", "parts"):
        if legal := _constant(module, option.upper()):
            text = f"default: all of {', '.join(legal)}"
            parser.add_argument(f"--{option}", nargs="+", type=one_of(*legal), help=text)
    _OPTIONS.get(name, lambda parser: None)(parser)
    return parser


def _constant(module: ast.Module, name: str) -> tuple[str, ...]:
    """Return the words that a module gives a name, or none."""
    assigned = (node for node in module.body if isinstance(node, ast.Assign))
    values = (node.value for node in assigned if ast.unparse(node.targets[0]) == name)
    return next(map(ast.literal_eval, values), ())


def _kernels(parser: Parser) -> None:
    parser.add_argument("--device", type=one_of("cuda", "cpu"), default="cuda", help="cuda or cpu")


def _evaluation(parser: Parser) -> None:
    parser.take_settings()
    parser.add_argument("--items", type=int, default=200, help="how many, spread over the test set, each loop takes")
    parser.add_argument("--greedy", type=int, default=0, help="how many items our greedy loop takes alone")
    parser.add_argument("--adapter", type=Path, help="a saved adapter; its update is merged for all loops")
    parser.add_argument("--weights", type=one_of("random"), help="random: the model's dimensions without its weights")
    parser.add_argument("--vocabulary", type=Path, help="with weights=random: the folder of its tokenizer.model")
    parser.add_argument("--out", type=Path, help="the numbers' file; default: the screen alone")


def _export_lora(parser: Parser) -> None:
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folders of finished runs of Dual LoRA")


def _runs(parser: Parser) -> None:
    parser.take_settings()
    parser.add_argument("--parallel", nargs="+", type=int, help="how many at a time; default: 1 4 8 16")
    parser.add_argument("--graphs", nargs="+", type=one_of("auto", "off"), help="default: auto off")


def _whole_run(parser: Parser) -> None:
    parser.take_settings()
    parser.add_argument(
        "--steps", nargs=2, type=int, metavar=("FIRST", "LAST"), help="which are timed; default: 51 250"
    )


def _start(parser: Parser) -> None:
    parser.take_settings()
    parser.add_argument("--against", type=Path, help="another checkout, measured in turn with this one")
    parser.add_argument("--repeat", type=int, default=5, help="how often; medians are kept; default 5")


def _passes(parser: Parser) -> None:
    parser.take_settings()
    parser.add_argument("--items", type=int, help="to rank, spread over the test sets; default: all")
    parser.add_argument("--adapter", type=Path, help="whose weights write the replies; default: the model's own")


def _gpus(parser: Parser) -> None:
    parser.add_argument("--gpus", type=int, default=2)


def _scaling(parser: Parser) -> None:
    _gpus(parser)
    parser.add_argument(
        "--only", nargs="+", metavar="GROUP", help="patterns: lora-fsdp, 'dora-*', dual_lora-bfloat16-ddp"
    )
    parser.add_argument("--layers", type=int, help="of LLaMA-3-70B's 80; default 32 a GPU")
    parser.add_argument("--weights", type=Path, help="of random weights, 142 GB for `large`; best in memory")
    parser.add_argument("--scratch", type=Path, help="where runs are made; default: results/local/scaling")


def _gpu_hours(parser: Parser) -> None:
    from dual_lora.runs.cards import CARDS

    parser.add_argument("--all", action="store_true", help="plan all experiments again, not only those that changed")
    parser.add_argument("--card", type=one_of(*CARDS), default="h200", help=f"{', '.join(CARDS)}; default h200")


_OPTIONS = {
    "gpu-hours": _gpu_hours,
    "kernels": _kernels,
    "whole-run": _whole_run,
    "runs": _runs,
    "start": _start,
    "passes": _passes,
    "evaluation": _evaluation,
    "export-lora": _export_lora,
    "fsdp": _gpus,
    "scaling": _scaling,
}
