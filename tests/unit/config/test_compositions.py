"""Every shipped composition gives the settings it gave when its digest was committed.

Settings are the identity of a run: one changed line in `configs/` gives runs another name, and records of the same
work no longer meet. So a change is made on purpose: look at it with `python -m tests.compositions --dump FILE`, before
and after, and rewrite the digests with `--write`.
"""

from __future__ import annotations

import pytest

from dual_lora.config import recipes
from tests import compositions

NAMES = compositions.names()
# tests/known_answers/test_first_step.py composes the recipes of models; all together take a minute.
OWN = {compositions.of_recipe(name) for name in recipes.names() if not name.startswith(recipes.DEFAULT)}
OTHERS = [name for name in NAMES if name not in OWN]
EXPERIMENTS = [name for name in OTHERS if "experiment=" in name]
# A cell takes a twentieth of a second, and table_glue has 192: longer than all the rest.
QUICK = [name for name in OTHERS if name not in EXPERIMENTS][::4]
QUICK += [name for name in EXPERIMENTS if name != "-m experiment=table_glue"][::8]


def changed(names: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("DUAL_LORA_DATA", compositions.DATA)
    held = compositions.committed()
    return [name for name in names if held.get(name) != compositions.digest(compositions.composed(name))]


def test_every_composition_has_a_digest() -> None:
    held = compositions.committed()
    assert len(NAMES) == len(set(NAMES)) > 400
    assert set(NAMES) == set(held), "new or removed compositions: python -m tests.compositions --write"


def test_a_quarter_of_the_others_and_an_eighth_of_the_experiments_give_the_settings_of_their_digest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert changed(QUICK, monkeypatch) == []


@pytest.mark.slow
def test_all_compositions_give_the_settings_of_their_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    assert changed(NAMES, monkeypatch) == []
