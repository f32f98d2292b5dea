"""Write a saved Dual LoRA adapter as a LoRA adapter of a given rank, for servers that take LoRA only.

    python run.py export-lora ADAPTER out=FOLDER rank=32 calibrate=texts.txt

`calibrate` is a file with one text a line, such as the model will see (prompt and answer). The lines 1, 3, 5 … show
what each layer's inputs are, and the rank is spent on those; on the lines 2, 4, 6 … the loss is measured, of the base,
of the adapter and of what was written, and noted in README.md. A merged checkpoint (`merge`) loses nothing:
docs/serving.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dual_lora.commands.merge import load_adapted, new_folder
from dual_lora.commands.parser import Parser
from dual_lora.config import ConfigError
from dual_lora.report.grid import grid

_LONGEST = 1024  # tokens of a text that are read


def options(parser: Parser) -> None:
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="a folder with adapter_config.json")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--rank", type=int, default=32, help="of the LoRA adapter; default 32")
    parser.add_argument("--calibrate", type=Path, metavar="TEXTS", help="a file with one text a line, at least two")
    parser.add_argument("--base", help="folder or hub name of the base model; default: what the adapter names")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")


def run(options: argparse.Namespace) -> int:
    """Raises `ConfigError`: no adapter, base or texts; `ValueError`: what LoRA cannot hold; `FileExistsError`."""
    from peft import PeftModel

    from dual_lora.tuner.approximation import layer_inputs, write_as_lora

    texts = _texts(options.calibrate) if options.calibrate else []
    with new_folder(options.out) as part:
        model, tokenizer = load_adapted(options.adapter, options.base, options.device)
        if "c_attn.q_proj" in str(model):
            raise ConfigError(
                f"{options.adapter} adapts q, k and v of a GPT-2 apart, and servers have them fused: merge it"
            )
        batches = [_tokens(tokenizer, text, options.device) for text in texts]
        inputs = layer_inputs(model, batches[::2]) if batches else None
        write_as_lora(model, part, options.rank, inputs)
        losses = {}
        if batches and model.peft_config["default"].task_type == "CAUSAL_LM":
            losses["Dual LoRA"] = mean_loss(model, batches[1::2])
            base = model.unload()
            losses["base"] = mean_loss(base, batches[1::2])
            losses["LoRA"] = mean_loss(PeftModel.from_pretrained(base, str(part)).eval(), batches[1::2])
        (part / "README.md").write_text(_card(options, len(texts), losses), encoding="utf-8")
    print("\n".join([*(f"{name}: loss {value:.4f}" for name, value in losses.items()), str(options.out)]))
    return 0


def mean_loss(model: Any, batches: list[dict[str, Any]]) -> float:
    """Return the mean cross-entropy of the tokens, in nats."""
    import torch

    total, tokens = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            predicted = batch["input_ids"].shape[1] - 1
            total += model(**batch, labels=batch["input_ids"]).loss.item() * predicted
            tokens += predicted
    return total / tokens


def _texts(path: Path) -> list[str]:
    texts = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    if len(texts) < 2:
        raise ConfigError(f"calibrate={path} has {len(texts)} texts: one a line, at least two")
    return texts


def _tokens(tokenizer: Any, text: str, device: str) -> dict[str, Any]:
    if tokenizer is None:
        raise ConfigError("calibrate needs the base's tokenizer, which is in neither folder: give base=FOLDER with one")
    return dict(tokenizer(text, return_tensors="pt", truncation=True, max_length=_LONGEST).to(device))


def _card(options: argparse.Namespace, texts: int, losses: dict[str, float]) -> str:
    how = f"for the layers' inputs on {(texts + 1) // 2} texts" if texts else "without texts (truncated SVD)"
    parts = [
        f"# LoRA of rank {options.rank}, projected from the Dual LoRA adapter {options.adapter.name}",
        f"Projected {how}.",
    ]
    if losses:
        gained, kept = losses["base"] - losses["Dual LoRA"], losses["base"] - losses["LoRA"]
        parts += [
            f"Mean loss a token on {texts // 2} other texts, in nats:",
            grid("lr", ["model", "loss"], [(name, f"{losses[name]:.4f}") for name in ("base", "Dual LoRA", "LoRA")]),
            f"It keeps {kept / gained:.1%} of the gain." if gained > 0 else "The adapter gains nothing on these texts.",
        ]
    return "\n\n".join(parts) + "\n"
