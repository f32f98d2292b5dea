"""Write a checkpoint of random weights: a small model to train from there, or a large LLaMA to measure speed with.

    python run.py random-checkpoint model=small_gpt2 tokenizers=$DUAL_LORA_DATA/tokenizers out=starts/small_gpt2
    python run.py model=small_gpt2 model.path=starts/small_gpt2 task=e2e method=full

    python run.py random-checkpoint model=llama out=/dev/shm/llama
    python run.py random-checkpoint model=llama3_70b model.dimensions.num_layers=40 out=/dev/shm/part_of_70b
    python run.py model=llama model.path=/dev/shm/llama task=commonsense data.source=sample method=dual_lora

A model whose YAML says `source: random` is meant to be trained: float32 weights as transformers initialises them, on
the CPU from a fixed seed (a language model's with the standard deviation 1/√hidden_size, docs/known_answers.md), and
the family's real tokenizer (a tiny model has the small one, and needs no tokenizers=).

Any other LLaMA has that model's speed and memory without its licence. Weights are bfloat16, normal with the standard
deviation of LLaMA's initialisation (0.02), norms are 1; each tensor is drawn from a seed of its own name, so the files
do not depend on the number of workers (they do on CPU or GPU). The tokenizer is the small one of the tiny models: its
ids fit into any vocabulary.

The folder gets a file random_weights.txt. Without it, a run with weights that know no language stops before training.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dual_lora.commands.parser import Parser
from dual_lora.config.compose import compose_one


def options(parser: Parser) -> None:
    parser.take_settings()
    parser.add_argument("--out", type=Path, required=True, help="a new folder; one in memory is fastest")
    parser.add_argument(
        "--tokenizers", type=Path, help="for a model that is random by its YAML: vocabulary files as docs/data.md says"
    )
    parser.add_argument("--workers", type=int, default=8, help="for a large LLaMA: processes that draw and write")


def run(options: argparse.Namespace) -> int:
    """Return 0. Raises `ConfigError`, or `OSError` for a folder that exists or a full disk."""
    model = compose_one(["task=glue/sst2", "method=none", "data.source=sample", *options.settings]).model
    from dual_lora.models import random_checkpoint

    if model.source == "random":
        size = random_checkpoint.write_small(model, options.out, options.tokenizers)
    else:
        size = random_checkpoint.write_llama(model, options.out, options.workers)
    print(f"{options.out}: {size / 1e9:.3g} GB")
    return 0
