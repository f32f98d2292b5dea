"""BLEU and NIST as the E2E scorer gives them: by its `mteval-v13a-sig.pl` (the default), and by its Python option.

    bleu_and_nist(predictions, references, variant="mteval" | "python") -> (BLEU 0-1, NIST)

Implemented here, because no library gives these numbers: sacrebleu's tokenizer "13a" lower-cases all letters where the
script lower-cases ASCII only, its BLEU is 0 when nothing matches and drops the smoothing of an order without n-grams;
nltk's NIST takes the length of the *closest* reference, the script the average over the references. Details that are
easily taken for mistakes, each of which changes a score:

- References are in files, one per position in the group; a group with fewer references than the largest has empty
  lines. The E2E scorer's edition of the script divides the references' total length by the mean number of *non-empty*
  references of a segment (7.4 on the E2E test set), and compares the outputs' total length with that. The plain
  mteval-v13a.pl divides by the number of files (45 there), so that NIST's length penalty hardly ever acts. That is not
  what the E2E scorer gives. Its comment on "variable number of references" is about another difference: the Python
  option takes the mean length within each group and sums these, so that a group with many references has no more weight
  than another.
- An output that is as long as the references or longer has no penalty, in NIST and in BLEU.
- BLEU of an order without a match counts 1/2^k matches (k: its ordinal among such orders); an order without n-grams
  counts as precision 1.
- A context that reads "0" is false in Perl: the information of "0 x" is taken against all words.
- An empty reference counts for BLEU's closest length if it is the first of its group, for NIST never. The script stops
  with a division by zero if no reference of a segment has a token; this code raises an error with a message.
- The Python option tokenizes an empty text to one empty token, and lets counts of n-grams go below zero.

Checked against the whole script, run with Perl on files in the scorer's layout: docs/protocols_nlg.md.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

Variant = Literal["mteval", "python"]
Ngram = tuple[str, ...]

_BLEU_ORDER = 4
_NIST_ORDER = 5
_NIST_BETA = -math.log(0.5) / math.log(1.5) ** 2
# Perl's \s on Unicode text; Python's \s also takes the separators \x1c-\x1f.
_BLANKS = re.compile("[ \t\n\x0b\x0c\r\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
_SEGMENT_END = re.compile(r"</seg\s*>", re.IGNORECASE)
_ASCII_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
_ENTITIES = (("<skipped>", ""), ("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_SPLITS = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),  # punctuation other than ' , - .
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),  # period and comma unless a digit precedes
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),  # period and comma unless a digit follows
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),  # dash after a digit
)


def tokenize(text: str, variant: Variant = "mteval") -> list[str]:
    """Return the tokens of `mteval-v13a.pl` without `--international-tokenization`, lower-cased."""
    if variant == "mteval":
        # The script reads SGML, where the text ends at its tag and runs of blanks are one before anything else.
        text = _BLANKS.sub(" ", _SEGMENT_END.split(text, maxsplit=1)[0])
    for written, meant in _ENTITIES:
        text = text.replace(written, meant)
    text = f" {text} ".translate(_ASCII_LOWER) if variant == "mteval" else f" {text} "
    for pattern, replacement in _SPLITS:
        text = pattern.sub(replacement, text)
    if variant == "python":
        return re.sub(r"\s+", " ", text).strip().lower().split(" ")
    return [token for token in _BLANKS.split(text) if token]


def bleu_and_nist(
    predictions: Sequence[str], references: Sequence[Sequence[str]], variant: Variant = "mteval"
) -> tuple[float, float]:
    """Return corpus BLEU (0-1) and NIST (unbounded) over at least one item.

    Raises `ValueError` for another variant, and with "mteval" for a group in which no reference has a token.
    """
    if variant not in ("mteval", "python"):
        raise ValueError(f"variant={variant!r}: legal are 'mteval' and 'python'")
    segments = [
        (tokenize(prediction, variant), [tokenize(reference, variant) for reference in group])
        for prediction, group in zip(predictions, references, strict=True)
    ]
    orders = range(1, _NIST_ORDER + 1)
    matches = [_matched(prediction, group) for prediction, group in segments]
    matched_by_order = Counter[int]()
    for matched in matches:
        for ngram, count in matched.items():
            matched_by_order[len(ngram)] += count
    made = {n: sum(_count(prediction, n, variant) for prediction, _ in segments) for n in orders}
    closest = sum(_closest_length(prediction, group, variant) for prediction, group in segments)
    bleu = (_bleu_mteval if variant == "mteval" else _bleu_python)(matched_by_order, made, closest)
    return bleu, _nist(matches, made, [group for _, group in segments], variant)


def bleu_counts(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[tuple[int, ...]]:
    """Return what BLEU ("mteval") is made of, per item, so that it can be computed again for other draws of items.

    Six integers: matched n-grams of order 1 to 4, tokens of the prediction, tokens of the closest reference.
    """
    rows = []
    for prediction, group in zip(predictions, references, strict=True):
        tokens, tokenized = tokenize(prediction), [tokenize(reference) for reference in group]
        matched = Counter[int]()
        for ngram, count in _matched(tokens, tokenized).items():
            matched[len(ngram)] += count
        closest = _closest_length(tokens, tokenized, "mteval")
        rows.append((*(matched[n] for n in range(1, _BLEU_ORDER + 1)), len(tokens), closest))
    return rows


def _matched(prediction: Sequence[str], group: Sequence[Sequence[str]]) -> Counter[Ngram]:
    """Return the prediction's n-grams that a reference has, each as often as the reference that has it most."""
    best = Counter[Ngram]()
    for reference in group:
        best |= _ngrams(reference)
    return _ngrams(prediction) & best


def _ngrams(tokens: Sequence[str]) -> Counter[Ngram]:
    return Counter(
        tuple(tokens[start : start + n]) for n in range(1, _NIST_ORDER + 1) for start in range(len(tokens) - n + 1)
    )


def _count(tokens: Sequence[str], n: int, variant: Variant) -> int:
    count = len(tokens) - n + 1
    return count if variant == "python" else max(count, 0)


def _closest_length(prediction: Sequence[str], group: Sequence[Sequence[str]], variant: Variant) -> int:
    """Return the reference length nearest to the prediction's; of two equally near, the shorter."""
    lengths = [len(reference) for reference in group]
    if variant == "mteval":  # an empty reference counts only where it is the first
        lengths = lengths[:1] + [length for length in lengths[1:] if length]
    return min(lengths, key=lambda length: (abs(length - len(prediction)), length))


def _bleu_mteval(matched: Counter[int], made: dict[int, int], closest: int) -> float:
    if made[1] == 0:
        return 0.0
    total, smoothing = 0.0, 1
    for n in range(1, _BLEU_ORDER + 1):
        if made[n] == 0:
            continue
        if matched[n]:
            total += math.log(matched[n] / made[n])
        else:
            smoothing *= 2
            total += math.log(1 / (smoothing * made[n]))
    return math.exp(total / _BLEU_ORDER) * math.exp(min(0.0, 1 - closest / made[1]))


def _bleu_python(matched: Counter[int], made: dict[int, int], closest: int) -> float:
    penalty = math.exp(1 - closest / (made[1] or 1e-5)) if made[1] <= closest else 1.0
    precisions = (max(matched[n], 1e-15) / max(made[n], 1e-9) for n in range(1, _BLEU_ORDER + 1))
    return penalty * math.exp(sum(map(math.log, precisions)) / _BLEU_ORDER)


def _nist(
    matches: Iterable[Counter[Ngram]], made: dict[int, int], groups: Sequence[Sequence[Sequence[str]]], variant: Variant
) -> float:
    seen = Counter[Ngram]()
    for group in groups:
        for reference in group:
            seen.update(_ngrams(reference))
    words = sum(len(reference) for group in groups for reference in group)

    def information(ngram: Ngram) -> float:
        context = ngram[:-1]
        known = words if not context or (variant == "mteval" and context == ("0",)) else seen[context]
        return math.log2(known / seen[ngram])

    gained = Counter[int]()
    for matched in matches:
        for ngram, count in matched.items():
            gained[len(ngram)] += information(ngram) * count  # type: ignore[assignment]
    score = sum(gained[n] / _denominator(made[n], variant) for n in range(1, _NIST_ORDER + 1))
    length = _mean_length_mteval(groups) if variant == "mteval" else _mean_length_python(groups)
    return score * _length_penalty(made[1] / length)


def _mean_length_mteval(groups: Sequence[Sequence[Sequence[str]]]) -> float:
    """Return the length of the references (tokens) by their mean number per group; empty ones are not counted."""
    numbers = [sum(map(bool, group)) for group in groups]
    if 0 in numbers:
        raise ValueError(f"item {numbers.index(0) + 1}: no reference has a token: NIST is undefined; give one that has")
    return sum(len(reference) for group in groups for reference in group) / (sum(numbers) / len(groups))


def _mean_length_python(groups: Sequence[Sequence[Sequence[str]]]) -> float:
    """Return the sum over groups of the mean length (tokens) of a reference."""
    return sum(sum(map(len, group)) / len(group) for group in groups)


def _denominator(made: int, variant: Variant) -> int:
    return made or 1 if variant == "python" else max(made, 1)


def _length_penalty(ratio: float) -> float:
    if ratio >= 1:
        return 1.0
    return math.exp(-_NIST_BETA * math.log(ratio) ** 2) if ratio > 0 else 0.0
