"""What each process validates: its own rows once, however accelerate fills up its last batch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from dual_lora.distributed import processes
from dual_lora.training.sampling import own_rows


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("rows", [1, 8, 64])
@pytest.mark.parametrize("examples", [1, 7, 8, 13, 16, 21, 32, 120])
def test_the_mean_over_processes_is_that_over_the_examples(examples, rows, count, monkeypatch):
    """As the Trainer computes it: a batch's mean once for each of its rows, cut off after the last example."""
    monkeypatch.setattr(processes, "world_size", lambda: count)
    every = BatchSampler(range(examples), rows, drop_last=False)
    shards = [list(BatchSamplerShard(every, num_processes=count, process_index=rank)) for rank in range(count)]
    counted: list[float] = []
    for number, step in enumerate(zip(*shards, strict=True)):
        last = number == len(shards[0]) - 1
        state = SimpleNamespace(end_of_dataloader=last, remainder=examples % (rows * count))
        for rank, batch in enumerate(step):
            monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
            [kept] = own_rows({"values": torch.tensor(batch, dtype=torch.float64)}, state, rows).values()
            assert len(kept) >= 1
            counted += [kept.mean().item()] * rows
    assert sum(counted[:examples]) / examples == pytest.approx((examples - 1) / 2)


def test_places_with_a_loss_are_those_of_the_rows_that_stay(monkeypatch):
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    monkeypatch.setattr(processes, "rank", lambda: 1)
    labels = torch.full((3, 32), -100)
    labels[[0, 1, 1, 2], [1, 0, 1, 1]] = 7
    batch = {"input_ids": labels, "shift_labels": labels, "loss_positions": torch.tensor([1, 32, 33, 65])}
    kept = own_rows(batch, SimpleNamespace(end_of_dataloader=True, remainder=5), 3)
    assert {name: len(value) for name, value in kept.items() if name != "loss_positions"} == dict.fromkeys(
        ("input_ids", "shift_labels"), 2
    )
    assert kept["loss_positions"].tolist()[:3] == [1, 32, 33]
    assert set(kept["loss_positions"].tolist()[3:]) == {31}, "that of the first row which predicts nothing"
    for state in ({"end_of_dataloader": False, "remainder": 5}, {"end_of_dataloader": True, "remainder": 0}):
        assert own_rows(batch, SimpleNamespace(**state), 3) is batch
