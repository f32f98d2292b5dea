"""What documents say of endpoints, from records with planted scores."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
import scipy.stats

from dual_lora.commands import main
from dual_lora.records.schema import parse
from dual_lora.report import neighbours, stats
from dual_lora.report.findings import Findings
from dual_lora.report.workspace import Workspace
from tests.unit.page.page_builder import document, values, workspace
from tests.unit.report.report_builder import BEGUN, EXPERIMENT, record, seeds_of

LORA = (0.600, 0.650, 0.700, 0.620, 0.680, 0.640)
BETTER = (0.622, 0.671, 0.719, 0.641, 0.700, 0.662)
WORSE = (0.578, 0.629, 0.681, 0.599, 0.660, 0.618)
STATED = "t,Small,DUAL_LORA minus LORA,,BoolQ,delta_points,{value},A blog,yes\n"


def found(space: Workspace) -> Findings:
    views = space.views(space.all_records())
    return Findings(views, space.experiments())


def test_a_table_without_runs_is_not_run_and_says_how_to(tmp_path):
    part = found(workspace(tmp_path, record("lora"))).part("table_x")
    assert "**Not run**: A block.\n\n    python run.py -m experiment=table_x method=none,dual_lora\n" in part
    assert "method=lora seed=1,2,3,4,5" in part
    assert "|" not in part


def test_where_trials_choose_the_rates_they_are_run_first(tmp_path):
    text = EXPERIMENT.replace("  reference: lora", "  trials: [table_x]\n  reference: lora")
    space = workspace(tmp_path, record("lora"), text=text)
    said = found(space).part("table_x").splitlines()[-1]
    assert said == (
        "    python run.py tune table_x --then table_x | sh  # the trials; again, until it runs what they chose"
    )
    main(["tables", "--home", str(tmp_path)])
    assert "experiment=table_x" not in space.page.read_text().partition('"todo"')[2].partition('"again"')[0]


def test_a_measured_table_shows_the_difference_its_tests_and_its_cost(tmp_path):
    records = [*seeds_of("lora", LORA), *seeds_of("dual_lora", WORSE)]
    part = found(workspace(tmp_path, *records)).part("table_x", "BoolQ")
    differences = [100 * (ours - theirs) for ours, theirs in zip(WORSE, LORA, strict=True)]
    test = scipy.stats.ttest_1samp(differences, 0)
    low, high = test.confidence_interval()
    shown = f"{sum(differences) / 6:+.2f} \\[{low:+.2f}, {high:+.2f}\\]".replace("-", "−")
    (row,) = [line for line in part.splitlines() if line.startswith("| DUAL")]
    assert row.startswith(f"| DUAL_LORA | {shown} | 6 | &lt; 0.001 | 0.031 | 1.00 | ")
    assert row.endswith("| **worse** |")
    assert "PIQA" not in part
    assert "12 of 18 runs, 36.0 GPU minutes (NVIDIA H100), commit c0ffee." in part


@pytest.mark.parametrize(("stated", "where"), [(2.1, "is in"), (5.0, "is not in")])
def test_a_stated_difference_is_in_the_interval_or_not(tmp_path, stated, where):
    text = EXPERIMENT.replace("  published_models", "  published_notes: [papers]\n  published_models")
    space = workspace(tmp_path, *seeds_of("lora", LORA), *seeds_of("dual_lora", BETTER), text=text)
    with (tmp_path / "results/published/papers.csv").open("a") as file:
        file.write(STATED.format(value=stated))
    said = f"The difference stated for Small ({stated:+g}, read second-hand) {where} DUAL_LORA's interval."
    assert said in found(space).part("table_x")
    assert said in found(space).part("headline")
    assert said in space.views(space.all_records())["table_x"].blocks[0].findings


def test_the_headline_has_a_line_for_each_endpoint(tmp_path):
    space = workspace(tmp_path, *seeds_of("lora", LORA), *seeds_of("dual_lora", BETTER))
    (tmp_path / "experiments/table_y.yaml").write_text(EXPERIMENT.replace("smollm2\n", "llama\n").replace("A t", "B t"))
    other = EXPERIMENT.replace("reference: lora", "reference: dual_lora").replace("A t", "C t")
    (tmp_path / "experiments/table_z.yaml").write_text(other)
    _, _, row, _, line, waiting = found(space).part("headline").splitlines()
    assert row.startswith("| [A table: A block](results/tables/table_x.md) | BoolQ | LORA | +2.08")
    assert row.endswith("| 6 | **better** |")
    assert line.endswith(": BoolQ against DUAL_LORA: **worse**: LORA.")
    assert waiting == "- Not run: [B table](results/tables/table_y.md)."


def test_what_a_table_says_beyond_its_endpoint_is_said_too(tmp_path):
    said = found(workspace(tmp_path, *seeds_of("lora", LORA), *seeds_of("dual_lora", BETTER)))
    view = said.views["table_x"]
    block = replace(view.blocks[0], findings=(*view.blocks[0].findings, "It grows by 2 with each doubling."))
    part = replace(said, views={"table_x": replace(view, blocks=(block,))}).part("table_x")
    assert part.count("against LORA") == 0  # the endpoint is a row of the table
    assert "\nIt grows by 2 with each doubling.\n" in part


def test_a_table_without_an_endpoint_says_what_its_runs_took(tmp_path):
    text = EXPERIMENT.replace("  reference: lora\n", "").replace("  endpoint: {column: BoolQ", "  # {")
    part = found(workspace(tmp_path / "a", text=text)).part("table_x")
    assert part == "**Not run**: A block.\n\n    python run.py -m experiment=table_x"
    part = found(workspace(tmp_path / "b", record("lora"), text=text)).part("table_x")
    assert part.endswith(
        "[Scores](results/tables/table_x.md): 1 of 18 runs, 3.0 GPU minutes (NVIDIA H100), commit c0ffee."
    )


def test_costs_name_the_tables_that_have_runs(tmp_path):
    space = workspace(tmp_path, *seeds_of("lora", LORA))
    (tmp_path / "experiments/table_y.yaml").write_text(EXPERIMENT.replace("smollm2\n", "llama\n"))
    *_, row = found(space).part("costs").splitlines()
    assert row == (
        "| [A table](results/tables/table_x.md) | 6 | 18.0 | NVIDIA H100 | `python run.py -m experiment=table_x` |"
    )


def test_a_document_is_filled_from_where_it_is_and_held(tmp_path, capsys):
    workspace(tmp_path, *seeds_of("lora", LORA), *seeds_of("dual_lora", BETTER))
    path = tmp_path / "docs" / "found.md"
    path.parent.mkdir()
    path.write_text("<!-- finding:table_x columns=BoolQ -->\n<!-- /finding -->\n")
    assert main(["tables", "--home", str(tmp_path)]) == 0
    text = path.read_text()
    assert "(../results/tables/table_x.md)" in text
    assert main(["tables", "--check", "--home", str(tmp_path)]) == 0
    path.write_text(text.replace("+2.08", "+2.80"))
    assert main(["tables", "--check", "--home", str(tmp_path)]) == 1
    path.write_text(text.replace("columns=BoolQ", "columns=BoolW"))
    assert main(["tables", "--check", "--home", str(tmp_path)]) == 2
    assert "'BoolW'" in capsys.readouterr().err


@pytest.mark.parametrize(("size", "needed"), [(0.5, 34), (0.8, 15)])
def test_detectable_differences_agree_with_published_sample_sizes(size, needed):
    """Pairs needed for 80 % power, two-sided 5 %: G*Power's examples of a paired t test."""
    one_sd = dict(enumerate((-1.0, 1.0, -1.0, 1.0, -(0.5**0.5), 0.5**0.5)))  # sample standard deviation 1
    assert stats.detectable([one_sd], needed) < size < stats.detectable([one_sd], needed - 1)


def test_a_blinded_look_sees_the_spread_of_six_pairs_and_nothing_else():
    pairs = dict(enumerate((0.1, -0.3, 0.2, 0.4, -0.1, 0.0)))
    moved = {seed: value + 7 for seed, value in pairs.items()}
    first = stats.detectable([pairs], 20)
    assert first == pytest.approx(stats.detectable([moved], 20))
    assert first == stats.detectable([pairs | {6: 1e3}], 20)
    assert stats.detectable([pairs, pairs], 20) == pytest.approx(first / 2**0.5, rel=0.03)  # two tasks, one mean
    assert stats.detectable([pairs, dict(list(pairs.items())[:5])], 20) is None


def test_gpu_minutes_count_a_card_once_and_no_cpu():
    def run(begin: int, end: int, device: str = "NVIDIA H100", **execution):
        made = parse(record())
        times = {
            name: (BEGUN + timedelta(minutes=m)).isoformat() for name, m in (("started", begin), ("finished", end))
        }
        return replace(made, origin=times, execution={"device": device, **execution})

    assert neighbours.gpu_minutes([run(0, 10), run(2, 5), run(8, 12), run(20, 21)]) == 13
    assert neighbours.gpu_minutes([run(0, 10, cards=["a"]), run(0, 10, cards=["b"]), run(5, 12, cards=["a"])]) == 22
    assert neighbours.gpu_minutes([run(0, 10, world_size=2)]) == 20
    assert neighbours.gpu_minutes([run(0, 10, "CPU: some")]) == 0


def test_where_a_change_with_a_setting_decides_the_headline_and_the_page_say_that_alone(tmp_path):
    text = EXPERIMENT.replace("none,lora,dual_lora", "lora,dual_lora\n      method.r: 2,4,8")
    text += "  trend: {of: difference, column: BoolQ, over: method.r, margin: 1}\n"
    records = []
    for place, rank in enumerate((2, 4, 8)):
        for method, slope in (("lora", 0.0), ("dual_lora", 0.02)):
            for made in seeds_of(method, [0.5 + slope * place + 0.001 * seed * place for seed in range(6)]):
                made["identity"]["method"]["settings"] = {"r": rank}
                records.append(made)
    space = workspace(tmp_path, *records, text=text)
    rows = [line for line in found(space).part("headline").splitlines() if "results/tables" in line]
    assert len(rows) == 1
    assert rows[0].endswith(
        "| BoolQ for each doubling of the r | LORA | +2.00 \\[+2.00, +2.00\\] | 6 | **gains with size** |"
    )
    shown = values(document(space))
    assert shown["headline"]["short"] == "Not shown so far", "a lead that grows with size is not a lead"
    (entry,) = shown["verdicts"]
    assert entry["asked"] == "better with size?"
    assert (entry["answer"], entry["diff"][0], entry["margin"]) == ("supported", pytest.approx(2.0), 1)
    assert entry["endpoint"] == "BoolQ for each doubling of the r"


def test_several_rows_of_our_method_are_told_apart_in_the_headline(tmp_path):
    text = EXPERIMENT.replace("none,lora,dual_lora", "lora,dual_lora\n      method.r: 2,4")
    text += '  labels: {"4": at four}\n'
    records = []
    for rank in (2, 4):
        for method, scores in (("lora", LORA), ("dual_lora", BETTER)):
            for made in seeds_of(method, scores):
                made["identity"]["method"]["settings"] = {"r": rank}
                records.append(made)
    part = found(workspace(tmp_path, *records, text=text)).part("headline")
    rows = [line.split(" | ") for line in part.splitlines() if "results/tables" in line]
    assert [row[2] for row in rows] == ["LORA (r = 2)", "LORA (at four)"]


def test_what_checks_a_result_is_said_to_and_is_not_counted_as_a_further_one(tmp_path):
    """Both on the same seeds here: our method is better in three rows, of which two are of the check."""
    rates = "lora,dual_lora\n      recipe.learning_rate: 1e-4,2e-4"
    trend = "  trend: {of: reference, column: BoolQ, over: recipe.learning_rate, revises: table_x, result: the lead}\n"
    check = EXPERIMENT.replace("none,lora,dual_lora", rates).replace("A table", "The check") + trend
    records = [
        made
        for rate in (1e-4, 2e-4)
        for method, scores in (("lora", LORA), ("dual_lora", BETTER))
        for made in seeds_of(method, scores, learning_rate=rate)
    ]
    space = workspace(tmp_path, *records)
    (tmp_path / "experiments" / "check.yaml").write_text(check)
    rows = [line for line in found(space).part("headline").splitlines() if "**better**" in line]
    assert [row.rpartition("**better**")[2] for row in rows] == [
        " |",
        *["; a check of [A table](results/tables/table_x.md) |"] * 2,
    ]
    shown = values(document(space))
    answer = shown["headline"]
    assert answer["short"] == "Better in 1 of 1 comparison, worse in 0"
    assert answer["text"].startswith("Of 1 comparisons with LORA, one for each endpoint, 1 find Dual LoRA better")
    assert answer["text"].endswith(" Not counted: 2 that check A table (2 better, 0 worse).")
    listed = [shown["verdicts"][place] for place in answer["show"]]
    assert [entry.get("checks") for entry in listed] == [None, "A table", "A table"], "nothing is left out"


def test_a_result_that_a_later_table_makes_smaller_says_so_wherever_it_is_told(tmp_path):
    records = [*seeds_of("lora", LORA), *seeds_of("dual_lora", BETTER)]
    before = found(workspace(tmp_path, *records))
    [view] = before.views.values()
    later = replace(view, name="later", title="Later", blocks=(replace(view.blocks[0], makes_smaller="table_x"),))
    after = Findings({**before.views, "later": later}, before.experiments)
    numbered = {title: replace(view, name=title, title=title) for title in ("Study E10", "Study E2")}
    headline = Findings(numbered, before.experiments).part("headline")
    assert headline.index("Study E2") < headline.index("Study E10")
    for part in ("table_x", "headline"):
        rows = [
            [line for line in one.part(part).splitlines() if line.endswith(" |") and "**better**" in line]
            for one in (before, after)
        ]
        assert rows[0][0].endswith("| **better** |")
        assert all(line.endswith("| **better**; smaller in [Later](results/tables/later.md) |") for line in rows[1])
