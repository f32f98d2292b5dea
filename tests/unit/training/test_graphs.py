"""Graphed steps on a CPU, where a replay calls the recorded function on the graph's own buffers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from dual_lora.config import ConfigError
from dual_lora.distributed import processes
from dual_lora.evaluation.causal_lm import Collator
from dual_lora.models.tiny_tokenizer import tiny_tokenizer
from dual_lora.tasks.encoding import IGNORED
from dual_lora.tasks.padding import loss_places, rounded_count, rounded_length
from dual_lora.training import graphs
from dual_lora.training.graphs import GraphedCalls, GraphedSteps, StaticGradients, draws_numbers, obstacle
from dual_lora.training.loss import loss_positions, token_loss
from dual_lora.training.recorders import Recorder
from tests.small_cells import config

# ---------------------------------------------------------------- few shapes


@pytest.mark.parametrize(("ladder", "least", "most_added"), [(rounded_length, 8, 1 / 8), (rounded_count, 16, 1 / 4)])
def test_a_ladder_rises_and_adds_a_bounded_share(ladder: Callable[[int], int], least: int, most_added: float) -> None:
    before = 0
    for number in range(1, 3000):
        found = ladder(number)
        assert found >= number
        assert found % least == 0
        assert found >= before
        assert ladder(found) == found
        assert found - number < max(least, most_added * number + 1)
        before = found
    assert len({ladder(number) for number in range(1, 1025)}) <= 40


def test_the_places_of_labels_are_all_named_and_what_is_added_has_no_loss() -> None:
    labels = torch.full((3, 8), IGNORED)
    labels[0, 2], labels[2, 5] = 7, 9
    found = loss_positions(labels)
    assert found.tolist() == [2, 21] + [7] * 14
    assert (labels.flatten()[found][2:] == IGNORED).all()


def test_logits_of_a_text_with_few_prompts_are_computed_everywhere() -> None:
    for places in (24, 1792, 6656):
        counts = [loss_places(labels, places) for labels in range(places)]
        assert all(labels <= count <= places for labels, count in enumerate(counts))
        assert all(count in (places, rounded_count(labels)) for labels, count in enumerate(counts))
        assert set(counts[3 * places // 4 :]) == {places}
        assert places not in counts[: 9 * places // 16]
    labels = torch.full((4, 8), 7)
    labels[:, -1] = labels[1, 4:] = IGNORED
    assert loss_positions(labels).tolist() == list(range(32))


@pytest.mark.parametrize("prompt", [3, 0])
def test_padding_to_few_shapes_changes_no_loss_and_no_gradient(prompt: int) -> None:
    tokenizer = tiny_tokenizer("llama", max_length=256)
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**shape, vocab_size=99), dtype=torch.float64)
    texts = [torch.randint(3, 90, (length,)).tolist() for length in ((9, 33, 131) if prompt else (131, 120, 131))]
    labels = [[IGNORED] * prompt + ids[prompt:] for ids in texts]
    rows = [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": own}
        for ids, own in zip(texts, labels, strict=True)
    ]
    found = {}
    for few, length in ((False, 136), (True, 144)):
        batch = Collator(tokenizer, few_shapes=few)([dict(row) for row in rows])
        assert batch["input_ids"].shape == (3, length)
        model.zero_grad()
        loss, _ = token_loss(model, batch, model.get_output_embeddings(), items=7)
        loss.backward()
        found[few] = [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]
    torch.testing.assert_close(found[True], found[False], rtol=1e-5, atol=1e-7)  # the loss is computed in float32


# ---------------------------------------------------------------- gradients


def test_gradients_keep_their_storage_and_unused_parameters_stay_without() -> None:
    layer, unused = nn.Linear(3, 2), nn.Parameter(torch.ones(2))
    layer(torch.ones(1, 3)).sum().backward()
    expected = [parameter.grad.clone() for parameter in layer.parameters()]
    held = StaticGradients([*layer.parameters(), unused])
    addresses = [parameter.grad.data_ptr() for parameter in layer.parameters()]
    assert all(address % 64 == 0 for address in addresses)
    for parameter, gradient in zip(layer.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)
    held.restore()  # nothing was taken away, so nothing is set to zero
    assert torch.equal(layer.weight.grad, expected[0])
    layer.zero_grad()
    held.restore()
    assert unused.grad is None
    assert [parameter.grad.data_ptr() for parameter in layer.parameters()] == addresses
    assert all(not parameter.grad.any() for parameter in layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    assert torch.equal(layer.weight.grad, expected[0])


def test_gradients_are_collected_by_one_addition_and_stay_where_a_step_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(2, 3)
    layer.weight.grad, layer.bias.grad = torch.ones(3, 2), torch.ones(3)
    held = StaticGradients(layer.parameters())
    own, seen = [layer.weight.grad, layer.bias.grad], []

    def step() -> Tensor:
        seen.append(layer.weight.grad)
        loss = (2 * layer.weight).sum()
        loss.backward()
        return loss.detach()

    assert held.collect(step) == 2 * layer.weight.sum()
    assert seen == [None]
    assert torch.equal(own[0], torch.full((3, 2), 3.0))
    assert torch.equal(own[1], torch.ones(3))
    with pytest.raises(ZeroDivisionError):
        held.collect(lambda: torch.tensor(1 // 0))
    assert layer.weight.grad is own[0]
    assert layer.bias.grad is own[1]
    monkeypatch.setattr(graphs, "_COLLECTED", 0)
    held.collect(step)
    assert seen[-1] is own[0]


@pytest.mark.parametrize("own", [True, False], ids=["own", "copied"])
def test_a_gradient_that_comes_later_must_be_the_parameters_own(monkeypatch: pytest.MonkeyPatch, own: bool) -> None:
    """A sum or a copy of it would hold what was there before it came."""
    layer = nn.Linear(2, 3, bias=False)
    layer.weight.grad = torch.ones(3, 2)
    held, branch = StaticGradients(layer.parameters()), SimpleNamespace(addresses=set())
    monkeypatch.setattr(graphs, "branched", lambda: nullcontext(branch))

    def step() -> Tensor:
        gradient = torch.full((3, 2), 2.0)
        branch.addresses.add(gradient.data_ptr())
        layer.weight.grad = gradient if own else gradient.clone()
        return gradient

    with nullcontext() if own else pytest.raises(RuntimeError, match="before it was computed"):
        held.collect(step)
    assert torch.equal(layer.weight.grad, torch.full((3, 2), 3.0 if own else 1.0))


# ---------------------------------------------------------------- steps


class Fixture:
    """A linear model, its micro-step, and how often Python ran it."""

    def __init__(self) -> None:
        self.layer = nn.Linear(4, 1)
        self.runs = 0

    def __call__(self, batch: dict[str, Tensor], items: Any) -> Tensor:
        self.runs += 1
        loss = self.layer(batch["x"]).square().sum() / items
        loss.backward()
        return loss.detach()

    def steps(self, **options: Any) -> GraphedSteps:
        return GraphedSteps(self, list(self.layer.parameters()), **{"recorder": Recorder(), **options})


def batch(rows: int) -> dict[str, Tensor]:
    return {"x": torch.randn(rows, 4)}


def test_a_shape_is_recorded_when_it_comes_again_and_the_least_used_graph_goes() -> None:
    fixture = Fixture()
    steps = fixture.steps(most=2)
    for rows in (1, 1, 1, 2, 2, 3, 3, 3, 1, 1, 2):
        steps(batch(rows), torch.tensor(2.0))
    # 2 gave way to 3, as it had been used once; when it came again, it was recorded at once.
    assert steps.report() == {"graphs": 2, "captures": 4, "replays": 8, "eager": 3, "reason": None}


def test_a_replay_computes_with_its_own_batch_and_items_and_its_loss_is_kept() -> None:
    fixture = Fixture()
    steps = fixture.steps()
    losses, expected = [], []
    for items in (1.0, 2.0, 4.0, 8.0):
        given = batch(3)
        losses.append(steps(given, torch.tensor(items)))
        expected.append(fixture.layer(given["x"]).square().sum() / items)
        fixture.layer.zero_grad()
    assert torch.equal(torch.stack(losses), torch.stack(expected).detach())
    assert steps.replays == 3


def test_what_changed_is_called_and_a_failed_recording_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    fixture, follows = Fixture(), [False]
    steps = fixture.steps(follows=lambda: follows[0])
    for _ in range(4):
        steps(batch(3), torch.tensor(1.0))
    assert steps.replays == 0

    class Refusing(Recorder):
        def record(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    steps = fixture.steps(recorder=Refusing())
    for _ in range(5):
        steps(batch(3), torch.tensor(1.0))
    assert steps.report() == {
        "graphs": 0,
        "captures": 0,
        "replays": 0,
        "eager": 5,
        "reason": "RuntimeError: operation not permitted when stream is capturing",
    }
    assert len([record for record in caplog.records if "without CUDA graphs" in record.message]) == 1
    steps = fixture.steps(recorder=Refusing(), required=True)
    steps(batch(3), torch.tensor(1.0))
    with pytest.raises(RuntimeError, match="launch.graphs=on, but a step cannot be recorded"):
        steps(batch(3), torch.tensor(1.0))


def test_what_leaves_memory_behind_makes_earlier_graphs_unusable() -> None:
    class Leaving(Recorder):
        left = False

        def run(self, function: Callable[[], Any]) -> Any:
            self.generation += self.left
            return function()

    fixture, recorder = Fixture(), Leaving()
    steps = fixture.steps(recorder=recorder)
    for _ in range(3):
        steps(batch(3), torch.tensor(1.0))
    passes = GraphedCalls(lambda given, _: fixture.layer(given["x"]).sum().detach(), recorder=recorder)
    passes(batch(3))
    assert steps.report()["graphs"] == 1
    recorder.left = True
    passes(batch(4))
    assert steps.report()["graphs"] == 0, "memory is that of all who share the recorder"
    steps(batch(3), torch.tensor(1.0))
    assert steps.report() == {"graphs": 1, "captures": 2, "replays": 3, "eager": 1, "reason": None}
    steps.close()
    steps(batch(3), torch.tensor(1.0))
    assert steps.report() == {"graphs": 0, "captures": 2, "replays": 3, "eager": 2, "reason": None}


def test_the_reason_of_a_scripted_function_is_at_the_end_of_its_trace() -> None:
    class Refusing(Recorder):
        def record(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
            raise RuntimeError("The following operation failed in the TorchScript interpreter.\n  trace\ncopies\n")

    fixture = Fixture()
    steps = fixture.steps(recorder=Refusing())
    for _ in range(2):
        steps(batch(3), torch.tensor(1.0))
    assert steps.report()["reason"] == "RuntimeError: copies"


def test_dropout_is_found_in_modules_and_in_settings() -> None:
    assert not draws_numbers(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0)))
    assert draws_numbers(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["launch.graphs=off"], "launch.graphs=off"),
        (["launch=deepspeed"], "launch.engine=deepspeed"),
        (["method=adalora"], "AdaLoRA"),
        ([], "there is no GPU"),
    ],
)
def test_a_run_without_graphs_says_why_and_one_that_asks_for_them_is_refused(
    words: list[str], reason: str, tmp_path: Path
) -> None:
    assert reason in str(obstacle(config(tmp_path, *words)))
    if words != ["launch.graphs=off"]:
        with pytest.raises(ConfigError, match=r"launch.graphs=on: .*; use launch.graphs=auto"):
            obstacle(config(tmp_path, *words, "launch.graphs=on"))


def test_checkpointing_with_dropout_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "uses_gpu", lambda device: True)
    cell = config(tmp_path, "launch.gradient_checkpointing=true")
    assert obstacle(cell) is None
    assert "dropout" in str(obstacle(cell, draws=True))
