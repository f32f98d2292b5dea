"""What is said of starts, runs and passes: each number in its column, and what is missing as missing."""

from __future__ import annotations

import pytest

from dual_lora.benchmarks import start_tables

MADE = {"environment": {"card": "C", "torch": "1", "transformers": "2", "peft": "3"}, "command": "bench", "repeated": 5}


def test_starts_stand_in_their_columns() -> None:
    times = {"against": {"seconds": 9.94, "cpu_seconds": 8.0}, "first": {"seconds": 7.0, "cpu_seconds": 6.0}}
    text = start_tables.start_section({**MADE, "rows": [{"run": "a run", **times}]})
    assert text.splitlines()[-1] == "| a run | 8.0 | 6.0 | – | 9.9 | 7.0 | – |"


def test_runs_and_passes_say_what_ran_with_graphs() -> None:
    row = {"graphs": "auto", "parallel": 8, "runs_per_minute": 12.34, "train_seconds": 5, "eval_seconds": 2.25}
    assert start_tables.runs_section({**MADE, "rows": [row]}).endswith("\n| 8 | on | 12.3 | 5.0 | 2.2 |")
    row = {"part": "cloze", "items": 8000, "batch": 512, "graphs": "off", "seconds": 3, "replays": 0, "eager": 9}
    found = start_tables.passes_section({**MADE, "rows": [{**row, "reserved_GiB": 4}]})
    assert found.endswith("\n| cloze | 8,000 | 512 | off | 3.0 | 0 of 9 | 4.0 |")


def test_attention_says_which_kernel_gave_other_bits() -> None:
    kernels = {"cudnn": {"us": 127.4, "calls_that_differ": 19, "apart": 0.0009765625}, "efficient": {"us": 260.5}}
    kernels["efficient"]["calls_that_differ"] = 0
    found = {**MADE, "rows": [], "attention": {"note": "n", "of": 30, "rows": [{"case": "decode", **kernels}]}}
    expected = "| decode | 127 | 19 of 30 | 0.0010 | 260 | 0 of 30 |"
    assert start_tables.passes_section(found).splitlines()[-1] == expected


@pytest.mark.parametrize(
    "section", [start_tables.start_section, start_tables.runs_section, start_tables.passes_section]
)
def test_what_was_not_measured_says_so(section) -> None:
    assert section({}) == "Not measured."
