"""PEFT writes a card with every adapter, and compiles its template each time: 20 ms, a fifth of a small training."""

from __future__ import annotations

import functools

import jinja2
from huggingface_hub import ModelCard, ModelCardData

jinja2.Environment.compile = functools.cache(jinja2.Environment.compile)  # type: ignore[method-assign]
ModelCard.from_template(ModelCardData())  # here, so that forks of this process have it too
