"""One multiple-choice item: its options, the published reading of a reply, the reading of an answer's text.

read(task, reply) -> str | None       the published reading; task is the data folder's name, e.g. "ARC-Easy"
parse(instruction) -> Item            question, options with their labels, in the data's order
read_text(reply, item) -> str | None  the label of the option whose text the reply gives
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from dual_lora.config import DataError, legal_values

# The published alternatives (LLM-Adapters commonsense_evaluate.py). The leftmost match counts, case-sensitive, with no
# word boundary: "untrue" reads as true, "answer12" as answer1.
_CHOICES = "answer1|answer2|answer3|answer4|answer5"
PATTERNS: Mapping[str, str] = {
    "boolq": "true|false",
    "piqa": "solution1|solution2",
    "social_i_qa": _CHOICES,
    "hellaswag": "ending1|ending2|ending3|ending4",
    "winogrande": "option1|option2",
    "ARC-Easy": _CHOICES,
    "ARC-Challenge": _CHOICES,
    "openbookqa": _CHOICES,
}
SUBSETS = tuple(PATTERNS)

_FORMAT = "Answer format: "


@dataclass(frozen=True)
class Item:
    """A parsed instruction: `question`, then the options, then the format line."""

    question: str
    options: Mapping[str, str]  # label -> text, in order: {"solution1": "Pour it onto a plate", ...}


class Answer(str):
    """A label that was read in a reply or chosen by ranking, with further facts about that reply."""

    exact: bool  # the reply is exactly what training teaches, nothing before or after
    normalised: str | None  # cloze: the label chosen after dividing by the texts' lengths

    def __new__(cls, label: str, *, exact: bool, normalised: str | None = None) -> Answer:
        self = super().__new__(cls, label)
        self.exact, self.normalised = exact, normalised
        return self


def sentence(label: str) -> str:
    """Return the published answer sentence."""
    return f"the correct answer is {label}"


def read(task: str, reply: str) -> str | None:
    """Return the answer that the published evaluation reads in a reply, or None if it finds none.

    Raises `ValueError` for a task that is not one of the eight.
    """
    if task not in PATTERNS:
        raise ValueError(f"unknown task {task!r}{legal_values(task, PATTERNS)}")
    found = re.search(PATTERNS[task], reply)
    return found[0] if found else None


@lru_cache(maxsize=4096)
def parse(instruction: str) -> Item:
    """Parse an instruction. Raises `DataError` if it does not have the form of LLM-Adapters.

    That form is "{question}\\n\\nAnswer1: {text} Answer2: {text}\\n\\nAnswer format: answer1/answer2"; BoolQ has no
    options; PIQA and WinoGrande have other blanks between the parts.
    """
    body, separator, form = instruction.rpartition(_FORMAT)
    labels = form.strip().split("/")
    if not separator or not all(labels):
        raise DataError(f"the instruction does not end in 'Answer format: a/b': {instruction[-60:]!r}")
    if labels == ["true", "false"]:
        return Item(body.strip(), {label: label for label in labels})
    # The options are in order, so each is searched for after the one before: a text may itself contain "Answer2:".
    starts: list[tuple[int, int]] = []
    position = 0
    for label in labels:
        heading = f"{label.capitalize()}:"
        at = body.find(heading, position)
        if at < 0:
            raise DataError(f"the instruction has no {heading!r}, which its format line names: {instruction[:80]!r}")
        position = at + len(heading)
        starts.append((at, position))
    ends = [at for at, _ in starts[1:]] + [len(body)]
    texts = [body[start:end].strip() for (_, start), end in zip(starts, ends, strict=True)]
    return Item(body[: starts[0][0]].strip(), dict(zip(labels, texts, strict=True)))


def read_text(reply: str, item: Item) -> str | None:
    """Return the label of the option that a reply gives in words, or None.

    That is the option which equals the reply (without case, outer blanks and a final full stop), else the only option
    that the reply contains as whole words. None if no option or several different ones fit.
    """
    wanted = _plain(reply)
    same = [label for label, text in item.options.items() if _plain(text) == wanted]
    if same:
        return same[0]
    inside = [label for label, text in item.options.items() if _contains(wanted, _plain(text))]
    # "a cat" also fits wherever "a cat on a mat" does: the longest replaces those it contains.
    longest = max(inside, key=lambda label: len(item.options[label]), default=None)
    if longest is None:
        return None
    rest = [label for label in inside if not _contains(_plain(item.options[longest]), _plain(item.options[label]))]
    return None if rest else longest


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()


def _contains(text: str, part: str) -> bool:
    return bool(part) and re.search(rf"(?<!\w){re.escape(part)}(?!\w)", text) is not None
