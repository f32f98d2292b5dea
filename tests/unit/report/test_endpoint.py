"""What a page may claim, and what it says instead."""

from __future__ import annotations

import csv
import io
import itertools
import random

import pytest

from dual_lora.records.schema import parse
from dual_lora.report import escape, formats, neighbours
from tests.unit.report.report_builder import EXPERIMENT, PROTOCOL, ours, record, seeds_of

LORA = (0.600, 0.650, 0.700, 0.620, 0.680, 0.640)
BETTER = (0.622, 0.671, 0.719, 0.641, 0.700, 0.662)
WORSE = (0.578, 0.629, 0.681, 0.599, 0.660, 0.618)
SAME = (0.601, 0.649, 0.7005, 0.6195, 0.681, 0.639)
NOISY = (0.66, 0.64, 0.72, 0.58, 0.69, 0.63)


def verdict(table) -> str:
    cell = ours(table, "DUAL_LORA").cells[0]
    return cell.comparison.verdict


@pytest.mark.parametrize(
    ("values", "expected"), [(BETTER, "better"), (WORSE, "worse"), (SAME, "equal"), (NOISY, "open")]
)
def test_the_endpoint_has_a_verdict_and_only_better_is_bold(build, values, expected):
    table = build(*seeds_of("lora", LORA), *seeds_of("dual_lora", values))
    assert verdict(table) == expected
    assert ours(table, "DUAL_LORA").cells[0].bold == (expected == "better")
    assert not ours(table, "LORA").cells[0].bold


def test_less_is_better_where_the_column_says_so(build):
    text = EXPERIMENT.replace("{label: BoolQ, subset: boolq,", "{label: BoolQ, subset: boolq, better: lower,")
    assert verdict(build(*seeds_of("lora", LORA), *seeds_of("dual_lora", WORSE), text=text)) == "better"


def test_no_other_column_is_ever_bold(build):
    text = EXPERIMENT.replace("endpoint: {column: BoolQ", "endpoint: {column: PIQA")
    line = ours(build(*seeds_of("lora", LORA), *seeds_of("dual_lora", BETTER), text=text), "DUAL_LORA")
    assert [cell.bold for cell in line.cells] == [False, False, False]
    assert line.cells[0].difference.interval()[0] > 0  # shown, without a verdict


def test_fewer_than_six_pairs_have_an_interval_and_no_verdict(build):
    table = build(*seeds_of("lora", LORA[:5]), *seeds_of("dual_lora", BETTER[:5]))
    assert verdict(table) == "too few pairs"
    assert not ours(table, "DUAL_LORA").cells[0].bold
    assert "fewer than 6 pairs: no verdict" in formats.markdown(table)


def test_two_seeds_have_no_interval_anywhere(build):
    table = build(*seeds_of("lora", LORA[:2]), *seeds_of("dual_lora", BETTER[:2]))
    assert "| LORA | here | 62.5 ± 3.5 |" in formats.markdown(table)
    assert "| SMOLLM2 | DUAL_LORA | +2.15 |" in formats.markdown(table)
    for row in csv.DictReader(io.StringIO(formats.tidy_csv(table))):
        assert row["origin"] == "published" or not any(row[name] for name in ("low", "high", "difference_low", "p"))


def test_a_cell_at_chance_is_never_better(build):
    table = build(*seeds_of("lora", LORA), *seeds_of("dual_lora", BETTER, at_chance=True))
    assert verdict(table) == "at chance"
    assert not ours(table, "DUAL_LORA").cells[0].bold


@pytest.mark.parametrize("method", ["lora", "dual_lora"])
def test_a_run_from_before_the_endpoint_was_named_settles_nothing(build, method):
    values = [*seeds_of("lora", LORA), *seeds_of("dual_lora", BETTER)]
    early = next(value for value in values if value["identity"]["method"]["name"] == method)
    early["origin"]["started"] = "2026-01-31T11:59:59+0000"
    table = build(*values)
    assert verdict(table) == "exploratory"
    assert not ours(table, "DUAL_LORA").cells[0].bold
    del early["origin"]["started"]
    assert verdict(build(*values)) == "exploratory"


def test_more_endpoints_on_a_page_make_each_harder_to_pass(build):
    """The lead of a method alone does not survive next to eleven others with the same error rate."""
    lead = [a + b for a, b in zip(LORA, (0.030, 0.002, 0.018, 0.001, 0.028, 0.010), strict=True)]
    alone = build(*seeds_of("lora", LORA), *seeds_of("dual_lora", lead))
    assert verdict(alone) == "better"
    others = [f"m{number}" for number in range(11)]
    text = EXPERIMENT.replace("none,lora,dual_lora", f"none,lora,dual_lora,{','.join(others)}")
    noise = [record_of for name in others for record_of in seeds_of(name, NOISY)]
    page = build(*seeds_of("lora", LORA), *seeds_of("dual_lora", lead), *noise, text=text)
    assert verdict(page) == "open"
    p = [ours(table, "DUAL_LORA").cells[0].comparison.p for table in (alone, page)]
    assert p[1] == pytest.approx(12 * p[0])


def test_the_page_says_what_the_endpoint_says_in_words_and_in_numbers(build):
    table = build(*seeds_of("lora", LORA), *seeds_of("dual_lora", BETTER), *seeds_of("none", (0.5,)))
    [finding] = table.blocks[0].findings
    assert finding.startswith("BoolQ, DUAL_LORA against LORA: +2.08 [+1.96, +2.21], 6 pairs, df 5; Holm p < 0.001; ")
    assert "sign-flip p = 0.031; " in finding
    assert finding.endswith("; better.")
    assert f"- {escape.markdown(finding)}" in formats.markdown(table)
    brief = "BoolQ, DUAL_LORA against LORA: +2.08 [+1.96, +2.21], 6 pairs, df 5; better."
    assert f"- {escape.markdown(brief)}\n" in formats.excerpt(table, ["BoolQ", "n"])
    assert finding in formats.on_screen(table)
    rows = list(csv.DictReader(io.StringIO(formats.tidy_csv(table))))
    row = next(row for row in rows if row["method"] == "DUAL_LORA" and row["column"] == "BoolQ")
    assert (row["verdict"], row["bold"], row["pairs"], row["sign_flip_p"]) == ("better", "yes", "6", "0.03125")
    assert float(row["equal_p"]) > 0.99
    assert not any(row["verdict"] for row in rows if row["column"] != "BoolQ")


def test_three_methods_are_compared_in_blocks_too(build):
    text = EXPERIMENT.replace("none,lora,dual_lora", "none,lora,dora,dual_lora")
    table = build(*seeds_of("lora", LORA), *seeds_of("dora", SAME), *seeds_of("dual_lora", NOISY), text=text)
    comparison = ours(table, "DUAL_LORA").cells[0].comparison
    assert comparison.blocked.df == 10  # (3 methods - 1)(6 seeds - 1)
    assert comparison.blocked.mean == pytest.approx(comparison.difference.mean)
    assert "blocked" in table.blocks[0].findings[1]
    fewer = text.replace("margin: 0.5}", "blocked: [lora, dual_lora]}")
    table = build(*seeds_of("lora", LORA), *seeds_of("dora", SAME), *seeds_of("dual_lora", NOISY), text=fewer)
    assert ours(table, "DUAL_LORA").cells[0].comparison.blocked is None


TASKS = (
    EXPERIMENT.replace("task: commonsense", "task: glue/cola,glue/sst2")
    .replace(
        """    - {label: BoolQ, subset: boolq, published: BoolQ}
    - {label: PIQA, subset: piqa}
""",
        """    - {label: CoLA, task: glue/cola, subset: boolq}
    - {label: SST-2, task: glue/sst2, subset: boolq}
""",
    )
    .replace("column: BoolQ, named", "column: Avg., named")
)


def test_an_average_over_tasks_is_not_paired_by_seeds_that_tasks_do_not_share(build):
    """Opposite swings of two tasks at the same seed number would cancel if their runs were one."""
    up, down = (0.58, 0.60, 0.62, 0.64), (0.64, 0.62, 0.60, 0.58)
    values = [
        *seeds_of("lora", (0.6, 0.6, 0.6, 0.6), task="glue/cola"),
        *seeds_of("lora", (0.6, 0.6, 0.6, 0.6), task="glue/sst2"),
        *seeds_of("dual_lora", up, task="glue/cola"),
        *seeds_of("dual_lora", down, task="glue/sst2"),
    ]
    cell = ours(build(*values, text=TASKS), "DUAL_LORA").cells[2]
    assert cell.difference.mean == pytest.approx(1.0)
    assert cell.difference.n == 8
    assert cell.difference.df == pytest.approx(6)
    assert cell.difference.se == pytest.approx((2 * (20 / 3) / 4) ** 0.5 / 2)  # each task's variance is 20/3
    assert cell.sd == pytest.approx((2 * 20 / 3) ** 0.5 / 2)
    assert ours(build(*values, text=TASKS), "DUAL_LORA").n == "4"


def test_a_task_without_runs_leaves_the_average_empty(build):
    line = ours(build(*seeds_of("lora", LORA, task="glue/cola"), text=TASKS), "LORA")
    assert [cell.empty for cell in line.cells] == [False, True, True]


def test_an_average_over_named_subsets_is_of_one_run(build):
    text = EXPERIMENT.replace("{label: PIQA, subset: piqa}", "{label: Two, subsets: [boolq, piqa]}")
    line = ours(build(record("lora", scores={"boolq": 0.6, "piqa": 0.8}), text=text), "LORA")
    assert line.cells[1].value == pytest.approx(70.0)
    missing = ours(build(record("lora", scores={"boolq": 0.6}), text=text), "LORA")
    assert missing.cells[1].empty


def test_records_of_several_commits_or_of_a_changed_tree_are_named_in_the_heading(build):
    one, two, three = record("lora"), record("lora", 1), record("dual_lora")
    assert build(one, two, three).blocks[0].heading == "A block"
    two["origin"]["commit"] = "beef00ddd"
    assert build(one, two, three).blocks[0].heading == "A block [made by 2 commits (beef00d, c0ffee)]"
    three["origin"]["dirty"] = True
    heading = build(one, two, three).blocks[0].heading
    assert heading.endswith("[made by 2 commits (beef00d, c0ffee); 1 of 3 records by uncommitted changes]")


def times(value, started: str, finished: str, **execution):
    value["origin"] |= {"started": f"2026-03-01T{started}+0000", "finished": f"2026-03-01T{finished}+0000"}
    value["execution"] |= execution
    return value


@pytest.mark.parametrize(
    ("other", "seconds"),
    [
        (("12:02:30", "12:10:00", {}), "120"),  # one after the other
        (("12:02:29", "12:10:00", {}), ""),
        (("12:02:29", "12:10:00", {"device": "NVIDIA A100"}), "120"),
        (("12:02:29", "12:10:00", {"cards": ["b"]}), "120"),
        (("12:02:29", "12:10:00", {"cards": ["b", "a"]}), ""),
        (("11:00:00", "13:00:00", {}), ""),
    ],
)
def test_seconds_are_of_runs_that_had_their_card_to_themselves(build, other, seconds):
    started, finished, execution = other
    neighbour = times(record("dual_lora", task="e2e"), started, finished, **execution)  # in no row of this table
    cards = {"cards": ["a"]} if "cards" in execution else {}
    table = build(times(record("lora"), "12:00:00", "12:02:30", **cards), neighbour)
    assert ours(table, "LORA").cost == (seconds, "2.0", "900,000")
    said = "seconds are of runs that had their card to themselves: 1 of 1 had not"
    assert (said in " ".join(table.blocks[0].notes)) == (seconds == "")


@pytest.mark.parametrize("execution", [{"parallel": 3}, {"resumed_from": [40]}])
def test_a_run_of_a_sweep_of_several_or_of_several_times_has_no_seconds(build, execution):
    assert ours(build(times(record("lora"), "12:00:00", "12:02:30", **execution)), "LORA").cost[0] == ""


def test_neighbours_are_those_that_a_comparison_of_all_pairs_finds():
    generator = random.Random(0)
    for _ in range(200):
        runs = []
        for seed in range(generator.randint(2, 8)):
            begun, device = generator.randint(10, 40), generator.choice("xy")
            cards = generator.choice([None, [f"{device}1"], [f"{device}2"], [f"{device}1", f"{device}2"]])
            execution = {"device": device} | ({"cards": cards} if cards else {})
            ended = begun + generator.randint(1, 9)
            runs.append(parse(times(record("lora", seed), f"12:{begun}:00", f"12:{ended}:00", **execution)))
        shared = {one.run_id for one, other in itertools.permutations(runs, 2) if together(one, other)}
        assert neighbours.alone(runs) == {run.run_id for run in runs} - shared


def together(one, other) -> bool:
    (begun, ended), (others, end) = neighbours.span(one), neighbours.span(other)
    ours, theirs = (run.execution.get("cards") for run in (one, other))
    same = set(ours) & set(theirs) if ours and theirs else one.execution["device"] == other.execution["device"]
    return bool(same) and begun < end and others < ended


def test_a_column_judged_by_what_chose_the_settings_is_named(build):
    text = EXPERIMENT.replace("{label: PIQA, subset: piqa}", "{label: loss, curve: validation_loss}")
    values = [record("lora"), record("dual_lora"), record("none")]
    said = "loss: of validation examples that trials may have chosen the settings by"
    assert said in " ".join(build(*values, text=text).blocks[0].notes)
    for value in values:
        value["identity"]["protocol"] = {**PROTOCOL, "validation_part": "report"}
    assert said not in " ".join(build(*values, text=text).blocks[0].notes)
