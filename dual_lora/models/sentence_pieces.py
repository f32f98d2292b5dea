"""LLaMA's tokens as SentencePiece makes them, where a folder has `tokenizer.model` and no `tokenizer.json`.

transformers 5 then orders the merges by the pieces' ids. SentencePiece merges by their scores, and those of runs of
blanks are the lowest of all: of sixteen blanks before "###" it leaves one to "▁###". The order of ids takes all sixteen
first, so every published commonsense prompt would be read in tokens that no published run saw.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def merge_by_score(tokenizer: Any, folder: Path) -> None:
    """Give a BPE tokenizer that was made from `folder/tokenizer.model` the order of its scores, in place.

    Does nothing if there is a `tokenizer.json`, which has the right order, or if the model has no merges.
    """
    file = folder / "tokenizer.model"
    if not file.is_file() or (folder / "tokenizer.json").is_file():
        return
    from tokenizers.models import BPE

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.model, BPE):
        return
    old = backend.model
    backend.model = BPE(
        vocab=backend.get_vocab(with_added_tokens=False),
        merges=_merges(file),
        unk_token=old.unk_token,
        fuse_unk=old.fuse_unk,
        byte_fallback=old.byte_fallback,
    )


def _merges(file: Path) -> list[tuple[str, str]]:
    """Return the merges, highest score first; of equal scores the lower number, then the longer first part."""
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(file))
    numbers = {pieces.id_to_piece(number): number for number in range(len(pieces))}
    found = []
    for piece, number in numbers.items():
        for at in range(1, len(piece)):
            first, second = piece[:at], piece[at:]
            if first in numbers and second in numbers:
                found.append((-pieces.get_score(number), number, -at, first, second))
    return [(first, second) for *_, first, second in sorted(found)]
