"""The part of an adapter's README.md that says how to load it: no library finds Dual LoRA by itself."""

from __future__ import annotations

from pathlib import Path

_BEGIN, _END = "<!-- dual-lora: use -->", "<!-- /dual-lora -->"
_USE = """## Use this Dual LoRA adapter

    pip install dual-lora

```python
import dual_lora  # makes the method known to PEFT; without this line: KeyError: 'DUAL_LORA'
from peft import {loader}

model = {loader}.from_pretrained("{name}")
```

Programs that load adapters by themselves are started through it: `dual-lora exec lm_eval --model hf
--model_args pretrained=BASE,peft={name} ...`. Servers take merged weights (`dual-lora merge`) or an approximation by
LoRA (`dual-lora export-lora`).
"""
_LOADERS = {
    "CAUSAL_LM": "AutoPeftModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoPeftModelForSeq2SeqLM",
    "SEQ_CLS": "AutoPeftModelForSequenceClassification",
    "TOKEN_CLS": "AutoPeftModelForTokenClassification",
    "QUESTION_ANS": "AutoPeftModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoPeftModelForFeatureExtraction",
}  # each refuses the others' task types, and AutoPeftModel any


def say_how_to_load(folder: Path, task_type: str | None) -> None:
    """Write the part into the folder's README.md, after its front matter; what else is there stays.

    task_type: that of the adapter's config, on which depends what class loads it.
    """
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    if _BEGIN in text and _END in text:
        before, _, rest = text.partition(_BEGIN)
        after = rest.partition(_END)[2]
    else:
        end = text.find("\n---", 3) + 4 if text.startswith("---") else 0
        before, after = text[:end] + "\n\n" if end else "", text[end:]
    loader = _LOADERS.get(task_type or "", "AutoPeftModel")
    use = _USE.format(name=folder.name, loader=loader)
    rest = f"\n{after.lstrip()}" if after.strip() else ""
    card.write_text(f"{before}{_BEGIN}\n{use}{_END}\n{rest}", encoding="utf-8")
