"""What libraries compute anew for every small training, and a process of tests once: a tenth of a run.

PEFT writes a card with each adapter that it saves, and compiles its template each time: 7 ms. accelerate asks several
times in a training whether DeepSpeed is there, and reads its metadata.
"""

from __future__ import annotations

import functools
import importlib.metadata

import jinja2
import pytest
from huggingface_hub import ModelCard, ModelCardData


@functools.cache
def keep() -> None:
    """Keep both for the life of this process and of its forks."""
    for owner, name in ((jinja2.Environment, "compile"), (importlib.metadata, "metadata")):
        pytest.MonkeyPatch().setattr(owner, name, functools.cache(getattr(owner, name)))
    ModelCard.from_template(ModelCardData())  # compiled here, so that forks have it
