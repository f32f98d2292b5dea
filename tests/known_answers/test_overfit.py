"""Under the paper's recipes a tiny model memorises 24 examples, and whatever evaluates it then finds the references.

What the suite's own evaluation says is compared with what the saved files say when transformers and PEFT alone read
them: prompts, tokens and answers are then put together in `overfit.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dual_lora import methods
from dual_lora.commands import main
from dual_lora.config import recipes
from tests.known_answers.overfit import (
    ITEMS,
    Cell,
    Trained,
    base_model,
    known,
    metrics_of,
    outputs,
    saved_model,
    stock_model,
    train,
)

# The learning rate and the number of steps that are enough, with a third to spare.
_RATES = {
    "gpt2": {"dual_lora": 1e-2, "lora": 1e-2, "full": 3e-3},
    "llama": {"dual_lora": 1e-2, "lora": 1e-2, "full": 3e-3},
    "roberta": {"dual_lora": 1e-2, "lora": 5e-3, "full": 2e-3},
    "deberta": {"dual_lora": 1e-2, "lora": 5e-3, "full": 2e-3},
    "bert": {"dual_lora": 1e-2, "lora": 5e-3, "full": 2e-3},
}
_MODELS = {
    "gpt2": "gpt2_medium",
    "llama": "llama",
    "roberta": "roberta_base",
    "deberta": "deberta_v3_base",
    "bert": "minilm",
}
_STEPS = {"gpt2": 120, "llama": 120, "roberta": 80, "deberta": 80, "bert": 80}


def _cell(family: str, task: str, method: str, *words: str, **more: Any) -> Cell:
    return Cell(family, _MODELS[family], task, method, _STEPS[family], _RATES[family][method], words, **more)


FAST = [
    _cell("gpt2", "e2e", "dual_lora"),
    _cell("llama", "commonsense", "dual_lora"),
    _cell("gpt2", "e2e", "full"),
    _cell("roberta", "glue/cola", "dual_lora"),
    _cell("roberta", "glue/cola", "full"),
    _cell("deberta", "glue/rte", "dual_lora"),
    _cell("bert", "glue/mrpc", "lora"),
]
_EVERY = [
    _cell(family, task, method)
    for family, task in (
        ("gpt2", "e2e"),
        ("gpt2", "webnlg"),
        ("llama", "commonsense"),
        ("roberta", "glue/cola"),
        ("roberta", "glue/mrpc"),
        ("deberta", "glue/cola"),
        ("deberta", "glue/rte"),
        ("bert", "glue/mrpc"),
    )
    for method in ("dual_lora", "lora", "full")
]
SLOW = [cell for cell in _EVERY if cell not in FAST]
CONTRADICTED = _cell("roberta", "glue/mrpc", "full", contradicted=True)


def cells(*kept: Callable[[Cell], bool]) -> Any:
    """Parametrize a test with the cells that fulfil all conditions."""
    every = [*FAST, *(pytest.param(cell, marks=pytest.mark.slow) for cell in SLOW)]
    chosen = [one for one in every if all(keep(_bare(one)) for keep in kept)]
    return pytest.mark.parametrize("cell", chosen, ids=lambda cell: str(cell))


def _bare(one: Any) -> Cell:
    return one if isinstance(one, Cell) else one.values[0]


def adapts(cell: Cell) -> bool:
    return cell.method != "full"


def writes(cell: Cell) -> bool:
    return cell.writes


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Cell], Trained]:
    """Return a cell as trained, once per module."""
    made: dict[Cell, Trained] = {}

    def get(cell: Cell) -> Trained:
        if cell not in made:
            made[cell] = train(cell, tmp_path_factory.mktemp("overfit"))
        return made[cell]

    return get


def exported(found: Trained, folder: Path, checkpoint: str = "last") -> Path:
    """Let the project write a checkpoint of a run in stock files."""
    run_id = found.record["identity"]["run_id"]
    words = [f"run={run_id}", f"results={found.results}", f"out={folder}", f"checkpoint={checkpoint}"]
    assert main(["export", *words]) == 0
    return folder


@cells()
def test_the_suite_finds_the_memorised_references(cell: Cell, trained: Callable[[Cell], Trained]) -> None:
    found = trained(cell)
    assert found.record["status"] == "finished", found.record.get("message")
    identity = found.record["identity"]
    assert identity["protocol"]["name"] == "paper"
    shipped = f"{cell.model}/{cell.task}/{cell.method}"
    assert identity["recipe"]["name"] == (shipped if _has_recipe(cell) else f"default/{cell.task}")
    assert not [note for note in found.record["scores"]["notes"] if "cut" in note]
    for checkpoint in ("last", found.record["scores"]["headline"]["checkpoint"]):
        _all_right(cell, found.record["scores"]["measurements"], checkpoint)
        if cell.task in ("e2e", "webnlg"):
            assert found.predictions(checkpoint) == [answer for _, answer in found.texts]


def _has_recipe(cell: Cell) -> bool:
    return recipes.find(f"{cell.model}/{cell.task}/{cell.method}") is not None


def _all_right(cell: Cell, measurements: list[dict[str, Any]], checkpoint: str) -> None:
    """Hold the scores of a checkpoint against those of the references themselves."""
    if cell.task in ("e2e", "webnlg"):
        scores = metrics_of(measurements, checkpoint, "generate")
        assert set(scores) == ({"e2e"} if cell.task == "e2e" else {"seen", "unseen", "all"})
        assert min(values["BLEU"] for values in scores.values()) >= 0.95
    elif cell.task == "commonsense":
        for scoring in ("generate", "likelihood"):
            scores = metrics_of(measurements, checkpoint, scoring)
            assert len(scores) == 9
            assert {values["accuracy"] for values in scores.values()} == {1.0}
        whole = [one for one in measurements if one["scoring"] == "generate" and one["subset"] == "average"]
        assert {one["counts"]["not_exact_sentence"] for one in whole} == {0}
    else:
        (scores,) = metrics_of(measurements, checkpoint, "classify").values()
        assert set(scores.values()) == {1.0}  # accuracy, F1, Matthews' correlation


@cells()
def test_the_saved_weights_alone_know_them(cell: Cell, trained: Callable[[Cell], Trained], tmp_path: Path) -> None:
    """Unmerged, merged and exported; the base does not."""
    found = trained(cell)
    assert known(outputs(base_model(found), found), found) <= (0 if cell.writes else ITEMS * 3 // 4)
    model = saved_model(found)
    logits = outputs(model, found)
    assert known(logits, found) == ITEMS
    with methods.merged(model) as merged:
        _same(outputs(merged, found), logits)
    _same(outputs(model, found), logits)
    stock = stock_model(found, exported(found, tmp_path / "stock"))
    assert type(stock).__module__.startswith("transformers.")
    _same(outputs(stock, found), logits)


def _same(logits: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
    for one, other in zip(logits, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)  # float32 sums in another order


@cells(adapts)
def test_the_script_scores_the_saved_adapter_alike(
    cell: Cell, trained: Callable[[Cell], Trained], tmp_path: Path
) -> None:
    found = trained(cell)
    words = [f"model.path={found.base}", f"adapter={found.folder / 'adapter'}"]
    _same_scores(found, _scored(found, words, tmp_path), "adapter")


@cells(writes)
def test_the_script_scores_the_exported_checkpoint_alike(
    cell: Cell, trained: Callable[[Cell], Trained], tmp_path: Path
) -> None:
    found = trained(cell)
    words = [f"model.path={exported(found, tmp_path / 'stock')}"]
    _same_scores(found, _scored(found, words, tmp_path), "base")


def _scored(found: Trained, words: list[str], folder: Path) -> list[dict[str, Any]]:
    out = folder / "scores.json"
    data = ["data.source=local", f"data.dir={found.data}", f"results={folder}", "launch.device=cpu"]
    assert main(["evaluate", f"out={out}", *found.cell.own_words, *data, "launch.eval_batch=96", *words]) == 0
    return json.loads(out.read_text())["measurements"]


def _same_scores(found: Trained, measurements: list[dict[str, Any]], checkpoint: str) -> None:
    _all_right(found.cell, measurements, checkpoint)
    recorded = found.record["scores"]["measurements"]
    for scoring in {one["scoring"] for one in measurements}:
        assert metrics_of(measurements, checkpoint, scoring) == metrics_of(recorded, "last", scoring)


@pytest.mark.parametrize("cell", FAST[:2], ids=str)
def test_the_weights_of_the_lowest_validation_loss_are_kept(cell: Cell, trained: Callable[[Cell], Trained]) -> None:
    """On E2E of the first validation (its texts contradict what is trained), on commonsense of the last one."""
    found = trained(cell)
    curve = found.record["curves"]["validation_loss"]
    step, lowest = min(curve, key=lambda point: point[1])
    assert (step == cell.steps) == (cell.task == "commonsense")
    values = json.loads((found.folder / "selected" / "best_loss.json").read_text())
    assert values["step"] == step
    assert values["loss"] == pytest.approx(lowest, rel=1e-6)
    best, last = (load_file(found.folder / name) for name in ("selected/best_loss.safetensors", "last.safetensors"))
    assert best.keys() == last.keys()
    assert all(torch.equal(best[name], last[name]) for name in last) == (step == cell.steps)


def test_the_weights_of_the_lowest_validation_loss_are_scored(
    trained: Callable[[Cell], Trained], tmp_path: Path
) -> None:
    found = trained(FAST[0])
    assert found.record["scores"]["headline"]["checkpoint"] == "last"
    assert found.metrics("best_loss", "generate")["e2e"]["BLEU"] < 0.5
    best = outputs(saved_model(found, "selected/best_loss.safetensors"), found)
    assert known(best, found) == 0
    _same(outputs(stock_model(found, exported(found, tmp_path / "best", "best_loss")), found), best)
    assert known(outputs(saved_model(found, "last.safetensors"), found), found) == ITEMS


def test_the_best_epoch_of_glue_is_not_the_last(trained: Callable[[Cell], Trained]) -> None:
    """A development set that contradicts the training set in every item: what is memorised is wrong everywhere."""
    found = trained(CONTRADICTED)
    assert found.record["status"] == "finished", found.record.get("message")
    (last,), (best,) = (found.metrics(name, "classify").values() for name in ("last", "best_dev"))
    assert last["accuracy"] == 0.0
    assert known(outputs(saved_model(found), found), found) == ITEMS
    score = max(value for _, value in found.record["curves"]["dev_score"])
    assert 0.0 < best["accuracy"] == score == found.record["scores"]["headline"]["value"]
    right = known(outputs(saved_model(found, "selected/best_dev.safetensors"), found), found)
    assert right == round((1.0 - score) * ITEMS)


@pytest.mark.slow
def test_answers_in_words_are_memorised_too(trained: Callable[[Cell], Trained]) -> None:
    """task.target=text: what is learned is the answer's text, so ranking the texts (cloze) is right as well."""
    found = trained(_cell("llama", "commonsense", "dual_lora", "task.target=text"))
    for scoring in ("generate", "cloze"):
        scores = found.metrics("best_loss", scoring)
        assert len(scores) == 9
        assert {value for values in scores.values() for value in values.values()} == {1.0}
