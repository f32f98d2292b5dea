"""The prompts. `alpaca_indented` is the published one, byte for byte; `alpaca` is the same with a clean boundary.

The published training text and evaluation prompt differ in three places: two blanks against one after the first
sentence, a line of sixteen blanks against an empty line before the response header, and the evaluation prompt ends in
the sixteen blanks that precede the answer in training, where a tokenizer may join them to the answer's first word.
Source: NVlabs/DoRA commonsense_reasoning/finetune.py and commonsense_evaluate.py `generate_prompt` (no-input branch).
"""

from __future__ import annotations

from dual_lora.config import ConfigError, legal_values

INDENT = " " * 16
_REQUEST = "Below is an instruction that describes a task. Write a response that appropriately completes the request."


def _published_training(instruction: str) -> str:
    return f"{_REQUEST}  \n\n{INDENT}### Instruction:\n{INDENT}{instruction}\n{INDENT}\n{INDENT}### Response:\n{INDENT}"


def _published_evaluation(instruction: str) -> str:
    return f"{_REQUEST} \n\n{INDENT}### Instruction:\n{INDENT}{instruction}\n\n{INDENT}### Response:\n{INDENT}"


def _clean(instruction: str) -> str:
    """Return the prompt of both. It ends in a newline, after which every tokenizer here starts a new token."""
    return f"{_REQUEST}\n\n### Instruction:\n{instruction}\n\n### Response:\n"


# name -> (training, evaluation)
PROMPTS = {
    "alpaca_indented": (_published_training, _published_evaluation),
    "alpaca": (_clean, _clean),
}


def prompt(name: str, instruction: str, *, training: bool) -> str:
    """Return the text before the answer."""
    if name not in PROMPTS:
        raise ConfigError(f"protocol.prompt={name!r} is not a commonsense prompt{legal_values(name, PROMPTS)}")
    return PROMPTS[name][0 if training else 1](instruction)
