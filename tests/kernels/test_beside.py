"""What a recorded step computes beside the rest: the digits of one stream, whenever it is done."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from dual_lora.kernels import Update, apply_update, apply_update_with_dropout, beside, dispatch, packing, update_spec
from tests.kernels.cases import Case, make_case


@pytest.fixture(autouse=True)
def small_weights_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "PACK_ELEMENTS", 0)


SHAPES: list[dict[str, Any]] = [{"ranks": (16, 9)}, {"ranks": (20, 8), "start": True}]


class LatestBranch(beside.Branch):
    """Forms weights when they are waited for, and has factor gradients, NaN until then, when it is joined."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._ahead = {}
        self._results: dict[int, Tensor] = {}
        self.addresses = set()

    def run(self, launch: Callable[[], None], reads: Any, results: Iterable[Tensor]) -> None:
        launch()
        for result in results:
            self.addresses.add(result.data_ptr())
            self._results[result.data_ptr()] = result.clone()
            result.fill_(float("nan"))

    def launch(self, launches: Iterable[Callable[[], None]]) -> list[Any]:
        launches = list(launches)
        self._calls += launches
        return launches

    def take(self, weight: Tensor | None, factor: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        ahead = self._ahead.pop((factor.data_ptr(), weight is None), None)
        if ahead is None:
            return ()
        self._calls.popleft()()
        return ahead.kept if ahead.kept[0].dtype == dtype else ()

    def finish(self, factors: Iterable[Tensor]) -> None:
        """Write the gradients to where `run` was told."""
        assert not self._calls
        for grad in (factor.grad for factor in factors):
            assert grad is not None
            grad.copy_(self._results.pop(grad.data_ptr()))
        assert not self._results


def leaves(case: Case) -> tuple[Tensor, Update]:
    """The input, and an update that is kept, of parameters."""
    options = dict(case.options)
    start = options.pop("start", None)
    x, *factors = (leaf.detach().clone().requires_grad_() for leaf in (case.x, *case.factors))
    spec = update_spec(**options, kernel="fused")
    return x, Update((factors[0], factors[1], factors[2], factors[3]), start, 0.7, spec, keeps_weight=True)


def step(case: Case, dropout: float, branch: LatestBranch | None, ahead: bool) -> dict[str, Tensor]:
    """Output and gradients, the latter as they are when a backward pass has ended and the branch is joined."""
    x, update = leaves(case)
    torch.manual_seed(5)
    if ahead and branch is not None:
        dispatch.keep_ahead([(None if dropout else case.weight, update)], x.dtype, branch)
    if dropout:
        y = apply_update_with_dropout(x, case.weight, case.bias, update, dropout)
    else:
        y = apply_update(x, case.weight, case.bias, update)
    y.backward(case.grad.to(y.dtype))
    if branch is not None:
        assert all(factor.grad is not None and factor.grad.isnan().all() for factor in update.factors)
        branch.finish(update.factors)
    return {"y": y.detach(), **{name: t.grad for name, t in zip("xABCD", (x, *update.factors), strict=True)}}


@pytest.mark.triton
@pytest.mark.parametrize("ahead", [False, True], ids=["gradients", "weights-too"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_work_beside_the_rest_changes_no_digit(
    fused_device: str, monkeypatch: pytest.MonkeyPatch, shape: dict[str, Any], dropout: float, ahead: bool
) -> None:
    case = make_case((40,), 70, 140, device=fused_device, seed=4, **shape)
    expected = step(case, dropout, None, False)
    branch = LatestBranch()
    monkeypatch.setattr(beside, "branch", lambda: branch)
    found = step(case, dropout, branch, ahead)
    assert len(branch.addresses) == 4
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.triton
@pytest.mark.parametrize(
    "spoil",
    [
        lambda factor: factor.register_hook(lambda grad: grad * 2),
        lambda factor: setattr(factor, "grad", torch.ones_like(factor)),
    ],
    ids=["a hook", "a gradient to add to"],
)
def test_gradients_that_are_read_at_once_are_computed_at_once(
    fused_device: str, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Tensor], Any]
) -> None:
    case = make_case((40,), 70, 140, (16, 9), device=fused_device)
    branch = LatestBranch()
    monkeypatch.setattr(beside, "branch", lambda: branch)
    x, update = leaves(case)
    spoil(update.factors[2])
    apply_update(x, case.weight, case.bias, update).backward(case.grad)
    assert not branch.addresses
    assert all(factor.grad is not None and not factor.grad.isnan().any() for factor in update.factors)


@pytest.mark.triton
def test_small_weights_are_computed_at_once(fused_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "PACK_ELEMENTS", 140 * 70 + 1)
    case = make_case((40,), 70, 140, (16, 9), device=fused_device)
    expected, branch = step(case, 0.0, None, False), LatestBranch()
    monkeypatch.setattr(beside, "branch", lambda: branch)
    x, update = leaves(case)
    dispatch.keep_ahead([(case.weight, update)], x.dtype, branch)
    y = apply_update(x, case.weight, case.bias, update)
    y.backward(case.grad)
    assert not branch.addresses
    assert not branch._ahead
    assert all(
        torch.equal(f.grad, expected[n]) for n, f in zip("ABCD", update.factors, strict=True) if f.grad is not None
    )


@pytest.mark.triton
def test_what_was_formed_in_another_dtype_is_formed_again(fused_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case((40,), 70, 140, (16, 9), device=fused_device)
    branch = LatestBranch()
    monkeypatch.setattr(beside, "branch", lambda: branch)
    x, update = leaves(case)
    dispatch.keep_ahead([(case.weight, update)], torch.bfloat16, branch)
    y = apply_update(x, case.weight, case.bias, update)
    assert torch.equal(y, step(case, 0.0, None, False)["y"])
    assert not branch._calls


class Stream:
    """Notes what waits for what."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log, self.events = name, log, 0

    def record_event(self) -> str:
        self.events += 1
        return f"{self.name} {self.events}"

    def wait_event(self, event: str) -> None:
        self.log.append(f"{self.name} after {event}")

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} after {other.name}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What two streams wait for, and what is launched."""
    noted: list[str] = []
    main, side = Stream("main", noted), Stream("side", noted)
    monkeypatch.setattr(beside, "_stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    return noted


def test_what_a_branch_reads_is_held_until_the_other_stream_has_waited(log: list[str]) -> None:
    branch, held = beside.Branch(0), []
    for number in range(beside.UNDER_WAY + 1):
        reads = torch.zeros(1)
        held.append(weakref.ref(reads))
        branch.run(lambda number=number: log.append(f"launch {number}"), reads, [])
        del reads
        assert (held[0]() is None) == (number == beside.UNDER_WAY)
    waits = [line for line in log if line.startswith("main after")]
    assert waits == ["main after side 1"]
    assert log.index("main after side 1") > log.index(f"launch {beside.UNDER_WAY}")
    for number in range(beside.UNDER_WAY + 1):
        assert log[log.index(f"launch {number}") - 1] == "side after main"
    branch.join()
    assert log[-1] == "main after side"
    assert all(reads() is None for reads in held)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_was_formed_is_waited_for_even_where_it_is_dropped(log: list[str], dtype: torch.dtype) -> None:
    branch, factor, kept = beside.Branch(0), torch.zeros(1), (torch.zeros(2),)
    made: Any = "side 7"  # what the log's stream calls an event
    branch.put(None, factor, beside.Ahead(kept, made))
    assert branch.take(factor, factor, dtype) == ()
    assert log == []
    assert branch.take(None, factor, dtype) == (kept if dtype == torch.float32 else ())
    assert log == ["main after side 7"]
    branch.join()
    assert log == ["main after side 7"]


@pytest.mark.gpu
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_recording_with_branches_has_the_digits_of_one_stream(cuda: str, dropout: float) -> None:
    cases = [
        make_case((448,), 1024, 1024, (16, 16), dtype=torch.bfloat16, device=cuda, seed=s, bias=False) for s in range(6)
    ]
    updates = [leaves(case)[1] for case in cases]
    factors = [factor for update in updates for factor in update.factors]

    def compute() -> Tensor:
        branch = beside.branch()
        if branch is not None:
            parts = zip((None if dropout else case.weight for case in cases), updates, strict=True)
            dispatch.keep_ahead(parts, torch.bfloat16, branch)
        x = cases[0].x
        for case, update in zip(cases, updates, strict=True):
            if dropout:
                x = apply_update_with_dropout(x, case.weight, None, update, dropout)
            else:
                x = apply_update(x, case.weight, None, update)
        x.backward(cases[0].grad)
        return x.detach()

    stream = torch.cuda.Stream(priority=-1)
    with torch.cuda.stream(stream):
        torch.manual_seed(3)
        expected = [compute(), *(factor.grad for factor in factors)]
        for factor in factors:
            factor.grad = None
        graph = torch.cuda.CUDAGraph()
        # A branch is known to this thread only: backward passes must not have one of their own, as in a recording.
        alone = torch.autograd.set_multithreading_enabled(False)
        with torch.cuda.graph(graph, stream=stream), alone, beside.branched() as branch:
            y = compute()
        assert branch is not None
        found = [y, *(factor.grad for factor in factors)]
        assert {grad.data_ptr() for grad in found[1:] if grad is not None} == branch.addresses
        for _ in range(3):
            torch.manual_seed(3)
            graph.replay()
            assert all(
                a is not None and b is not None and torch.equal(a, b) for a, b in zip(found, expected, strict=True)
            )
