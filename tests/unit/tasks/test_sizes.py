"""Sizes of downloads in a plan: of every task, counted where the data is here, unknown where nobody read them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import pytest

from dual_lora.config.choices import options
from dual_lora.config.compose import compose
from dual_lora.launch import describe
from dual_lora.tasks import files, sizes
from dual_lora.tasks.commonsense.data import IDS
from dual_lora.tasks.downloads import RELEASE_SHA256

HELD = json.loads(sizes.TABLE.read_text(encoding="utf-8"))


def fetched(*words: str) -> sizes.Fetched:
    return sizes.to_fetch(compose(["method=lora", *words])[0])


def test_every_task_has_sizes_and_every_size_its_source():
    assert {name.partition(" ")[0] for name in HELD if name != "about"} == set(options("task"))
    for name, held in HELD.items():
        if name != "about":
            assert held["source"] or set(held["files"].values()) == {None}, name


@pytest.mark.skipif("DUAL_LORA_DATA" not in os.environ, reason="DUAL_LORA_DATA: a folder of data")
def test_sizes_are_those_of_the_pinned_files():
    folder = Path(os.environ["DUAL_LORA_DATA"])
    places = {"e2e lora": ("e2e", "e2e/lora_format"), "webnlg": ("webnlg_challenge_2017", "webnlg_2017")}
    for name, (published, place) in places.items():
        for file, size in HELD[name]["files"].items():
            raw = files.read_bytes(folder / place, file)
            assert hashlib.sha256(raw).hexdigest() == RELEASE_SHA256[f"{published}/{file}"]
            assert len(raw) == size, file
    for file, size in HELD["commonsense"]["files"].items():
        if size is not None:
            raw = files.read_bytes(folder / "commonsense", file)
            assert hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest() == IDS[f"dataset/{file}"][0]
            assert len(raw) == size, file


def test_what_is_not_known_is_named_and_local_data_is_not_fetched():
    commonsense = fetched("model=llama2", "task=commonsense")
    assert commonsense.bytes == 5_135_736  # seven test files
    assert commonsense.unknown == ("commonsense_170k.json", "hellaswag/test.json")
    assert fetched("model=roberta_base", "task=glue/rte").bytes == 1_274_409
    assert fetched("model=gpt2_medium", "task=e2e").bytes == 9_624_463 + 1_198_093 + 1_351_149
    assert fetched("model=gpt2_medium", "task=e2e", "protocol=strict").unknown == ("default/test/0000.parquet",)
    assert fetched("task=e2e", "data.source=sample") == (0, (), "")
    [cell] = compose(["model=gpt2_medium", "task=e2e", "method=lora"])
    own = dataclasses.replace(cell, task=dataclasses.replace(cell.task, name="mine"))
    assert sizes.to_fetch(own).unknown == ("data of task=mine",)


def test_a_plan_says_what_is_fetched_once_for_all_runs_of_a_sweep(capsys):
    describe(compose(["model=gpt2_medium", "task=e2e", "method=lora", "plan=h100"]))
    text = capsys.readouterr().out
    assert (
        "  download    1.3 GiB of weights (parameters by the bytes they are stored in); 11.6 MiB of data (files "
        in text
    )
    describe(compose(["-m", "model=gpt2_medium", "task=e2e,webnlg", "method=lora,dora", "plan=h100"]))
    text = capsys.readouterr().out
    assert text.count("download ") == 1
    assert "1.3 GiB of weights" in text
    assert "39.2 MiB of data" in text  # 12,173,705 and 28,978,422 bytes
    describe(compose(["model=smollm2", "task=e2e", "method=lora", "data.source=sample", "plan=h100"]))
    assert "download" not in capsys.readouterr().out
