"""Thirty steps of a run are thirty steps of a plain loop: same losses, same weights, same choice of a checkpoint.

The run is what `run.py` does, under the paper's protocols and recipes, on a model of the family with two layers. The
loop is in `twin.py`; its recipes, data and models are in the files next to it. Both compute in float32.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dual_lora.config.compose import compose
from dual_lora.launch import launch
from tests.known_answers.twin import Trace, Weights, best, difference
from tests.known_answers.twin_cells import CELLS, METHODS, STEPS, command, own_words
from tests.known_answers.twin_model import Material

TOLERANCE = 1e-5
# A key's bias moves all scores of a query alike, which softmax does not see: its gradient is rounding and nothing else.
NO_GRADIENT = {"gpt2": "k_proj.bias", "roberta": "key.bias"}


@dataclass(frozen=True)
class Pair:
    """A run and its twin."""

    record: dict[str, Any]
    folder: Path
    lines: list[dict[str, Any]]  # of the curves
    twin: Trace

    @property
    def losses(self) -> list[float]:
        return [loss for line in self.lines for loss in line.get("losses", ())]


@dataclass(frozen=True)
class Family:
    material: Material
    pairs: dict[str, Pair]


_known: dict[str, Family] = {}


@pytest.fixture(params=CELLS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """The cell of a family: a run and a twin for each method, made once."""
    return prepared(request.param, tmp_path_factory)


def prepared(name: str, tmp_path_factory: pytest.TempPathFactory) -> Family:
    if name not in _known:
        folder = tmp_path_factory.mktemp(name)
        material = Material.of(CELLS[name], folder)
        words = command(material.cell, material.base, material.data, folder / "results")
        assert launch([compose([*words, *own_words(material.cell, method)])[0] for method in METHODS]) == 0
        records = [json.loads(path.read_text()) for path in (folder / "results" / "records").glob("*.json")]
        by_method = {record["identity"]["method"]["name"]: record for record in records}
        pairs = {}
        for method in METHODS:
            place = folder / "results" / "runs" / by_method[method]["identity"]["run_id"]
            lines = [json.loads(line) for line in (place / "curves.jsonl").read_text().splitlines()]
            pairs[method] = Pair(by_method[method], place, lines, material.train(method))
        _known[name] = Family(material, pairs)
    return _known[name]


def same(run: Weights, twin: Weights, family: str) -> None:
    """Compare tensor by tensor, relative to a tensor's largest element."""
    found = difference(run, twin)
    wrong = {
        name: value
        for name, value in found.items()
        if value > TOLERANCE and not name.endswith(NO_GRADIENT.get(family, "-"))
    }
    assert not wrong, f"{len(wrong)} of {len(found)} tensors differ: {sorted(wrong.items(), key=lambda i: -i[1])[:5]}"


@pytest.mark.parametrize("method", METHODS)
def test_every_step_has_the_loss_of_the_plain_loop(family: Family, method: str) -> None:
    pair = family.pairs[method]
    assert len(pair.losses) == STEPS
    assert pair.losses == pytest.approx(pair.twin.losses, rel=TOLERANCE)


@pytest.mark.parametrize("method", METHODS)
def test_the_trained_weights_are_those_of_the_plain_loop(family: Family, method: str) -> None:
    pair, cell = family.pairs[method], family.material.cell
    last = load_file(pair.folder / "last.safetensors")
    same(last, pair.twin.weights[STEPS], cell.family)
    if method != "full":  # what a user of PEFT loads
        saved = load_file(pair.folder / "adapter" / "adapter_model.safetensors")
        short = {name.replace(".default", "").replace(".modules_to_save", ""): last[name] for name in last}
        assert saved.keys() == short.keys()
        assert all(torch.equal(saved[name], short[name]) for name in saved)


@pytest.mark.parametrize("method", METHODS)
def test_the_shown_checkpoint_is_the_one_that_the_protocol_chooses(family: Family, method: str) -> None:
    pair, cell = family.pairs[method], family.material.cell
    measured = pair.twin.measured
    run = {line["step"]: line["validation"]["loss"] for line in pair.lines if "validation" in line}
    assert run == pytest.approx({step: values["loss"] for step, values in measured.items()}, rel=TOLERANCE)
    lowest = best({step: values["loss"] for step, values in measured.items()}, highest=False)
    chosen = {"last": STEPS, "best_loss": lowest}
    kept = pair.folder / "selected" / "best_loss.json"  # a finished run drops what nothing reports
    if kept.exists() or cell.chosen == "best_loss":
        assert json.loads(kept.read_text())["step"] == lowest
    headline = pair.record["scores"]["headline"]
    if cell.labels:
        scores = {step: values["score"] for step, values in measured.items()}
        assert dict(pair.record["curves"]["dev_score"]) == pytest.approx(scores, rel=1e-4)
        chosen["best_dev"] = best(scores, highest=True)
        assert headline["value"] == pytest.approx(scores[chosen["best_dev"]], rel=1e-4)
    assert headline["checkpoint"] == cell.chosen
    for name, step in chosen.items():
        file = pair.folder / ("last.safetensors" if name == "last" else f"selected/{name}.safetensors")
        if file.exists() or name == cell.chosen:
            same(load_file(file), pair.twin.weights[step], cell.family)


def test_a_cell_has_whatever_a_loop_can_get_wrong(family: Family) -> None:
    cell, material = family.material.cell, family.material
    assert STEPS * cell.recipes["full"].batch > len(material.rows), "no epoch ends"
    norms = [norm for pair in family.pairs.values() for norm in pair.twin.norms]
    assert max(norms) > 1, "the Trainer's own bound would not show where the recipe has none"
    for method, recipe in cell.recipes.items():
        trace = family.pairs[method].twin
        assert 0 < recipe.warmup < STEPS
        assert recipe.decay > 0
        assert recipe.micro < recipe.batch
        assert any(len(set(widths)) > 1 for widths in trace.widths), "micro-batches are alike"
        if not cell.labels:
            assert any(len(set(items)) > 1 for items in trace.items), "micro-batches have equally many targets"
        if recipe.clip:
            assert min(trace.norms) < recipe.clip < max(trace.norms), "clipping acts always or never"
    if cell.chosen != "last":
        name = "score" if cell.labels else "loss"
        curves = [{s: v[name] for s, v in pair.twin.measured.items()} for pair in family.pairs.values()]
        chosen = [best(curve, highest=bool(cell.labels)) for curve in curves]
        assert any(step != STEPS for step in chosen), "the last checkpoint is always the best"
        assert any(step != best(c, highest=not cell.labels) for step, c in zip(chosen, curves, strict=True))


# family, method, what is changed: each of the loop's rules, so that a run that breaks it cannot pass.
RULES: list[tuple[str, str, dict[str, Any]]] = [
    ("gpt2", "lora", {"shift": 0}),
    ("gpt2", "lora", {"smoothing": 0.0}),
    ("gpt2", "lora", {"mean": "micro"}),
    ("gpt2", "lora", {"grouped": False}),
    ("gpt2", "lora", {"epsilon": 1e-8}),
    ("gpt2", "full", {"clip": 1.0}),
    ("roberta", "full", {"decay": 0.0}),
    ("roberta", "full", {"decayed": "everything"}),
    ("roberta", "full", {"decayed": "nothing"}),
    ("roberta", "full", {"beta2": 0.999}),
    ("roberta", "lora", {"fill": False}),
    ("roberta", "lora", {"clip": 0.0}),
    ("roberta", "lora", {"seed": 14}),
    ("roberta", "lora", {"warmup": 1}),
    ("roberta", "lora", {"warmup": 3}),
    ("roberta", "lora", {"steps": STEPS + 1}),
    ("roberta", "lora", {"schedule": "constant"}),
    ("roberta", "dual_lora", {"delta_warmup": 5}),
    ("roberta", "dual_lora", {"delta_warmup": 7}),
]


@pytest.mark.parametrize(("name", "method", "change"), RULES, ids=lambda value: str(value))
def test_a_rule_that_is_broken_shows_in_the_weights(
    name: str, method: str, change: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    family = prepared(name, tmp_path_factory)
    steps = sorted(family.pairs[method].twin.weights)
    until = next(step for step in steps if step > 5)
    recipe = dataclasses.replace(family.material.cell.recipes[method], **change)
    broken = family.material.train(method, recipe, until).weights[until]
    largest = max(difference(broken, family.pairs[method].twin.weights[until]).values())
    assert largest > 3 * TOLERANCE


def test_the_first_of_equal_losses_is_kept(tmp_path: Path) -> None:
    """At a rate that moves nothing every validation loss is the same."""
    material = Material.of(CELLS["llama"], tmp_path)
    # A finished run keeps the best weights where its protocol reports them.
    reported = ("profile.test_items=1", "protocol.also_report=[best_loss]")
    words = command(material.cell, material.base, material.data, tmp_path / "results", *reported)
    words += [*own_words(material.cell, "lora"), "recipe.learning_rate=1e-30", "profile.max_steps=3"]
    assert launch(compose([*words, "protocol.validation_every_steps=1"])) == 0
    [kept] = (tmp_path / "results" / "runs").glob("*/selected/best_loss.json")
    assert json.loads(kept.read_text())["step"] == 1
