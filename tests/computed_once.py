"""What libraries compute anew for every small training, and a process of tests once: a tenth of a run.

PEFT writes a card with each adapter that it saves, and compiles its template each time: 7 ms. accelerate asks several
times in a training whether DeepSpeed is there, and reads its metadata.
"""

from __future__ import annotations

import functools
import importlib.metadata

import jinja2
from huggingface_hub import ModelCard, ModelCardData

jinja2.Environment.compile = functools.cache(jinja2.Environment.compile)  # type: ignore[method-assign]
importlib.metadata.metadata = functools.cache(importlib.metadata.metadata)
ModelCard.from_template(ModelCardData())  # here, so that forks of this process have it too
