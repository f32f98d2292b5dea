"""The answer that the page begins with counts what is decided, and shows it first."""

from __future__ import annotations

import pytest

from dual_lora.page import overview


def verdict(answer: str, pairs: int = 0, *, name: str = "dual_lora", why: str = "") -> dict:
    return {
        "name": name,
        "answer": answer,
        "why": why,
        "reference": "LoRA",
        "diff": [1.0, 0.5, 1.5, pairs, 3] * (pairs > 0),
    }


@pytest.mark.parametrize(
    ("answers", "short"),
    [
        ([], "Not shown so far"),
        (["not decidable", "not run"], "Not shown so far"),
        (["supported", "not run"], "Better in 1 of 1 comparison, worse in 0"),
        (["supported", "not supported", "not decidable"], "Better in 1 of 3 comparisons, worse in 1"),
        (["equal within the margin", "not decidable"], "Better in 0 of 2 comparisons, worse in 0"),
    ],
)
def test_the_answer_in_a_few_words_counts_only_the_method_of_the_question(answers, short):
    others = [verdict("supported", name="full"), verdict("not supported", name="dora")]
    found = overview.headline([*(verdict(answer) for answer in answers), *others])
    assert found["short"] == short
    assert found["text"].startswith(f"Of {len(answers)} comparisons with ")
    assert found["show"] == []


def test_what_is_decided_is_shown_first_then_runs_made_for_it_then_the_most_pairs():
    older = overview.ANSWERS["exploratory"][1]
    entries = [verdict("not decidable", 90, why=older), verdict("not decidable", 8), verdict("supported", 6)]
    entries += [verdict("not run"), verdict("not decidable", 7)]
    assert overview.headline([verdict("supported", 99, name="full"), *entries])["show"] == [3, 2, 5]
    many = [verdict("supported", 9)] * 4 + [verdict("not decidable", 8), verdict("not supported", 7)]
    assert overview.headline(many)["show"] == [0, 1, 2, 3, 5, 4], "none is left out for what it says"
    found = overview.headline(entries[:1])
    assert (found["show"], found["short"]) == ([0], "Not shown so far")
    found = overview.headline(entries)
    assert found["short"] == "Better in 1 of 3 comparisons, worse in 0", "what cannot decide is none of them"
    assert "3 do not decide (1 because their runs are older than the endpoint), and 1 are not run." in found["text"]
