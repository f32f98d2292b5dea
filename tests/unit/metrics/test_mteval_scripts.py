"""BLEU and NIST equal the same definition rebuilt in Perl, and the official script itself where it is at hand.

`mteval_rebuilt.pl` is always run, on random sets and on outputs made from E2E's references; the official script
(mteval-v13a-sig.pl of the E2E scorer) where DUAL_LORA_MTEVAL names it.
"""

import csv
import gzip
import os
import shutil
from pathlib import Path

import pytest

from dual_lora.metrics.mteval import bleu_and_nist, tokenize
from tests.unit.metrics import mteval_oracles as oracles

needs_perl = pytest.mark.skipif(shutil.which("perl") is None, reason="needs Perl, which is in every Debian image")
needs_data = pytest.mark.skipif("DUAL_LORA_DATA" not in os.environ, reason="needs DUAL_LORA_DATA")


@needs_perl
def test_scores_of_random_sets_equal_the_rebuilt_script():
    sets = list(oracles.random_sets(400, seed=21))
    for (predictions, groups), scores in zip(sets, oracles.rebuilt(sets), strict=True):
        assert bleu_and_nist(predictions, groups) == pytest.approx(scores, abs=1e-9), (predictions, groups)


def test_the_random_sets_have_every_shape():
    sets = list(oracles.random_sets(400, seed=21))
    sizes = [[len(group) for group in groups] for _, groups in sets]
    references = [reference for _, groups in sets for group in groups for reference in group]
    shares = {
        "unequal groups": sum(min(numbers) < max(numbers) for numbers in sizes) / len(sets),
        "many references": sum(max(numbers) > 4 for numbers in sizes) / len(sets),
        "single references": sum(max(numbers) == 1 for numbers in sizes) / len(sets),
        "all outputs empty": sum(not any(predictions) for predictions, _ in sets) / len(sets),
        "some outputs empty": sum(not all(predictions) and any(predictions) for predictions, _ in sets) / len(sets),
        "outputs shorter than any reference": sum(map(shorter, sets)) / len(sets),
        "outputs longer than any reference": sum(map(longer, sets)) / len(sets),
        "repeated references": sum(any(len(set(g)) < len(g) for g in groups) for _, groups in sets) / len(sets),
        "empty references": references.count("") / len(references),
        "penalties that the number of files would change": sum(map(penalised_unequally, sets)) / len(sets),
    }
    assert {shape: share for shape, share in shares.items() if share < 0.05} == {}


def words(text):
    return len(tokenize(text))


def shorter(one):
    return any(p and words(p) < min(map(words, filter(None, g))) for p, g in zip(*one, strict=True))


def longer(one):
    return any(words(p) > max(map(words, g)) for p, g in zip(*one, strict=True))


def penalised_unequally(one):
    predictions, groups = one
    made, total = sum(map(words, predictions)), sum(words(text) for group in groups for text in group)
    full = sum(bool(words(text)) for group in groups for text in group) / len(groups)
    return 0 < made < total / full and full < max(map(len, groups))


@pytest.mark.parametrize("form", ["official", "lora"])
@needs_perl
@needs_data
def test_outputs_made_from_references_of_e2e_equal_the_rebuilt_script(form):
    sets = list(made_of_e2e(form, every=10).values())
    for (predictions, groups), scores in zip(sets, oracles.rebuilt(sets), strict=True):
        assert bleu_and_nist(predictions, groups) == pytest.approx(scores, abs=1e-9)


def made_of_e2e(form, every):
    """Return sets of outputs, made from the test references, with groups of 1 to 45 of them."""
    folder = Path(os.environ["DUAL_LORA_DATA"]) / "e2e"
    if form == "official":
        with gzip.open(folder / "official" / "testset_w_refs.csv.gz", "rt", encoding="utf-8", newline="") as file:
            pairs = [(row["mr"], row["ref"]) for row in csv.DictReader(file)]
    else:
        with gzip.open(folder / "lora_format" / "test.txt.gz", "rt", encoding="utf-8") as file:
            pairs = [tuple(line.split("||")) for line in file]
    grouped: dict[str, list[str]] = {}
    for meaning, reference in pairs:
        grouped.setdefault(meaning, []).append(reference)
    groups = [[" ".join(text.split()) for text in group] for group in list(grouped.values())[::every]]
    several = [group for group in groups if len(group) > 1]
    first = [group[0] for group in groups]
    half = [" ".join(text.split()[: len(text.split()) // 2]) for text in first]
    return {
        "another item's": (first[1:] + first[:1], groups),
        "half": (half, groups),
        "one left out": ([group[0] for group in several], [group[1:] for group in several]),
        "shortest": ([min(group, key=len) for group in groups], groups),
        "twice": ([f"{text} {text}" for text in first], groups),
        "a third empty": (["" if number % 3 == 0 else text for number, text in enumerate(first)], groups),
    }


@pytest.mark.slow
@pytest.mark.skipif("DUAL_LORA_MTEVAL" not in os.environ, reason="DUAL_LORA_MTEVAL names no mteval-v13a-sig.pl")
def test_scores_equal_the_official_script_itself(tmp_path):
    script = Path(os.environ["DUAL_LORA_MTEVAL"]).resolve()
    sets = list(oracles.random_sets(300, seed=22))
    if "DUAL_LORA_DATA" in os.environ:
        sets += [made for form in ("official", "lora") for made in made_of_e2e(form, every=10).values()]
    largest = 0.0
    for number, (predictions, groups) in enumerate(sets):
        folder = tmp_path / str(number)
        folder.mkdir()
        expected = oracles.official(script, predictions, groups, folder)
        differences = [abs(a - b) for a, b in zip(bleu_and_nist(predictions, groups), expected, strict=True)]
        assert max(differences) < 1e-9, (predictions, groups)
        largest = max(largest, *differences)
    print(f"{len(sets)} sets, largest difference {largest:.2g}")
