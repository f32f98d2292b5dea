"""The input of every scorer of generated text: predictions, and a group of references for each."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Everything that a reader on the way (Python's codecs, Java) takes for the end of a line. The official scorers read one
# text per line, so none of these can be inside a text they score.
_LINE_ENDS = re.compile("[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


class ScoreInputError(ValueError):
    """Predictions and references that cannot be scored; the message names the item."""


def check(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Return predictions and reference groups as one-line texts, without blanks at their ends.

    An empty prediction stays: it is scored. Raises `ScoreInputError` for different lengths, no items at all, a group
    without a reference, a group given as one string, and anything that is not text.
    """
    if isinstance(predictions, str) or isinstance(references, str):
        raise ScoreInputError("predictions is a list of texts, references a list of lists of texts; found one string")
    if len(predictions) != len(references):
        raise ScoreInputError(
            f"{len(predictions)} predictions, but {len(references)} groups of references; there must be one group "
            "for each prediction (an empty prediction is an empty string)"
        )
    if not predictions:
        raise ScoreInputError("nothing to score: the list of predictions is empty")
    groups = []
    for number, group in enumerate(references, start=1):
        if isinstance(group, str):
            raise ScoreInputError(
                f"references of item {number}: a list of texts is needed, found the text {group!r:.60}"
            )
        texts = [_line(text, f"a reference of item {number}") for text in group]
        if not any(texts):
            raise ScoreInputError(f"references of item {number}: the group is empty; each item needs at least one")
        groups.append(texts)
    return [_line(text, f"prediction {number}") for number, text in enumerate(predictions, start=1)], groups


def _line(text: str, what: str) -> str:
    if not isinstance(text, str):
        raise ScoreInputError(f"{what}: expected text, found {type(text).__name__} ({text!r:.60})")
    return _LINE_ENDS.sub(" ", text).strip()
