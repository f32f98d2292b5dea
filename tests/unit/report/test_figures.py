"""Figures hold the points that the records hold, and their files can be read back."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from dual_lora.commands import main
from dual_lora.report import drawing, inside, tidy
from dual_lora.report.figures import DESCENT, STEP, UPDATE, Figure, figures
from tests.unit.page.page_builder import DIAGNOSTICS, document, values, workspace
from tests.unit.report.report_builder import EXPERIMENT, record, seeds_of

RATES = """
hydra:
  sweeper:
    params:
      model: smollm2
      task: commonsense
      method: {method}
      recipe.learning_rate: 1e-4,2e-4,4e-4
      protocol: strict
      profile: study
      seed: 0,1
table:
  {title}
  block: Rates
  columns: [{{label: loss, subset: boolq, metric: loss, scale: 1, decimals: 2, better: lower}}]
  figure: {{x: recipe.learning_rate, column: loss, log_x: true}}
"""
LORA = (0.60, 0.61, 0.62, 0.60, 0.61, 0.62)
DUAL = (0.64, 0.65, 0.67, 0.64, 0.65, 0.66)


def of(space, kind: str) -> Figure:
    """Return the workspace's one figure of a kind."""
    views = space.views(space.all_records())
    (found,) = [f for view in views.values() for f in figures(view, space.experiments()) if f.kind == kind]
    return found


def drawn(figure: Figure, folder) -> str:
    """Draw a figure twice, the second time elsewhere, and return its file, which is the same."""
    assert drawing.draw(figure, folder / "a.svg")
    assert drawing.draw(figure, folder / "b.svg")
    text = (folder / "a.svg").read_text(encoding="utf-8")
    assert text == (folder / "b.svg").read_text(encoding="utf-8")
    assert "dc:date" not in text
    assert not re.search(r' d="[^"]*\n', text)  # a path is a line
    assert text.count("font-family") == 1
    return text


def on_canvas(svg: str, name: str) -> np.ndarray:
    """Return the points of a line, or of its markers, as the file has them."""
    group = svg.partition(f'<g id="{name}">')[2]
    assert group, name
    path = re.search(r'<path d="(M[^"]+)"', group)
    marks = re.findall(r'<use xlink:href="[^"]+" x="([\d.]+)" y="([\d.]+)"', group.partition("</g>\n   <g id")[0])
    if path and group.find("<path d") < group.find("<use"):
        marks = re.findall(r"[ML] ([\d.]+) ([\d.]+)", path[1])
    return np.array(marks, dtype=float)


def agree(canvas: np.ndarray, values_: list[float]) -> bool:
    """Whether places on an axis are what a linear axis makes of these values."""
    slope, offset = np.polyfit(values_, canvas, 1)
    return bool(np.allclose(slope * np.array(values_) + offset, canvas, atol=2e-3)) and slope != 0


def rates(folder):
    """Return a workspace with two blocks of trials: LoRA's best is within its grid, Dual LoRA's at its end."""
    losses = {"lora": (1.5, 1.2, 1.3), "dual_lora": (1.6, 1.4, 1.1)}
    trials = [
        record(method, seed, {"boolq": loss + seed / 10}, metric="loss", learning_rate=rate)
        for method, own in losses.items()
        for rate, loss in zip((1e-4, 2e-4, 4e-4), own, strict=True)
        for seed in (0, 1)
    ]
    title = "title: Rates\n  blocks: [table_x, more]"
    space = workspace(folder, *trials, text=RATES.format(method="lora", title=title))
    more = RATES.format(method="dual_lora", title="labels: {dual_lora: Dual LoRA}")
    (folder / "experiments" / "more.yaml").write_text(more)
    return space


def test_rates_of_all_methods_are_in_one_figure_with_the_best_and_the_ends_marked(tmp_path):
    figure = of(rates(tmp_path), "rates")
    (panel,) = figure.panels
    assert (panel.x, panel.y, panel.log_x, panel.better) == ("learning rate", "loss", True, "lower")
    points = {m: [(p.x, round(p.y, 3), p.chosen, p.end, p.n) for p in own] for m, own in panel.lines.items()}
    assert points == {
        "LORA": [(1e-4, 1.55, False, True, 2), (2e-4, 1.25, True, False, 2), (4e-4, 1.35, False, True, 2)],
        "Dual LoRA": [(1e-4, 1.65, False, True, 2), (2e-4, 1.45, False, False, 2), (4e-4, 1.15, True, True, 2)],
    }
    assert panel.lines["LORA"][0].high - 1.55 == pytest.approx(0.1 / 2**0.5)  # one sd of 1.5 and 1.6
    svg = drawn(figure, tmp_path)
    for method, own in points.items():
        canvas = on_canvas(svg, f"line0:{method}")
        assert agree(canvas[:, 0], [math.log(x) for x, *_ in own])
        assert agree(canvas[:, 1], [y for _, y, *_ in own])
    best = on_canvas(svg, "chosen0:LORA")
    assert np.allclose(best, on_canvas(svg, "line0:LORA")[1], atol=2e-3)
    assert len(on_canvas(svg, "end0:Dual LoRA")) == 1
    assert '<g id="end0:LORA"/>' in svg  # empty
    for text in (">learning rate<", ">loss (lower is better)<", ">LORA<", ">Dual LoRA<"):
        assert text in svg


def test_what_else_is_swept_makes_a_line_of_its_own_and_only_a_rate_is_chosen(tmp_path):
    text = RATES.format(method="dual_lora", title="title: Rates")
    trials = [
        record("dual_lora", 0, {"boolq": rank + 1e3 * rate}, metric="loss", learning_rate=rate)
        for rank in (2, 8)
        for rate in (1e-4, 2e-4, 4e-4)
    ]
    for made, rank in zip(trials, (2, 2, 2, 8, 8, 8), strict=True):
        made["identity"]["method"]["settings"]["r"] = rank
    swept = text.replace("seed: 0,1", "seed: 0\n      method.r: 2,8")
    (panel,) = of(workspace(tmp_path / "a", *trials, text=swept), "rates").panels
    assert {m: [p.chosen for p in own] for m, own in panel.lines.items()} == dict.fromkeys(
        ("DUAL_LORA (r 2)", "DUAL_LORA (r 8)"), [True, False, False]
    )
    by_rank = swept.replace("x: recipe.learning_rate", "x: method.r")
    (panel,) = of(workspace(tmp_path / "b", *trials, text=by_rank), "rates").panels
    found = {m: [(p.x, round(p.y, 2)) for p in own] for m, own in panel.lines.items()}
    assert found["DUAL_LORA (learning rate 0.0002)"] == [(2, 2.2), (8, 8.2)]
    assert not any(point.chosen for own in panel.lines.values() for point in own)


def test_a_grid_that_was_extended_is_shown_with_its_new_rates(tmp_path):
    text = RATES.format(method="lora", title="title: Rates").replace("seed: 0,1", "seed: 100,101")
    rates_ = (5e-5, 1e-4, 2e-4, 4e-4)
    trials = [
        record("lora", seed, {"boolq": rate}, metric="loss", learning_rate=rate)
        for rate in rates_
        for seed in (100, 101)
    ]
    space = workspace(tmp_path, *trials, record("lora", 0, metric="loss", learning_rate=8e-4), text=text)
    (block,) = space.views(space.all_records())["table_x"].blocks
    assert [line.choices["recipe.learning_rate"] for line in block.lines] == ["5e-05", "0.0001", "0.0002", "0.0004"]
    assert (block.runs_done, block.runs_all) == (6, 6)  # of the file's grid
    (panel,) = of(space, "rates").panels
    assert [(p.x, p.chosen, p.end) for p in panel.lines["LORA"]][0] == (5e-5, True, True)
    two = text.replace("method: lora", "method: lora,dora")  # of which one was extended
    space = workspace(tmp_path / "two", *trials, text=two)
    (block,) = space.views(space.all_records())["table_x"].blocks
    lines = [(line.choices["method"], line.choices["recipe.learning_rate"]) for line in block.lines]
    assert ("lora", "5e-05") in lines
    assert [rate for method, rate in lines if method == "dora"] == ["0.0001", "0.0002", "0.0004"]


def test_a_trial_at_a_rate_that_a_grid_was_extended_by_belongs_to_its_experiment(tmp_path, capsys):
    """Where the table shows it: nothing says that it is in no table, and it goes into the file of its experiment."""
    text = RATES.format(method="lora", title="title: Rates").replace("seed: 0,1", "seed: 100,101")
    trials = [record("lora", seed, learning_rate=rate) for rate in (1e-4, 8e-4) for seed in (100, 101)]
    space = workspace(tmp_path, *trials, text=text)
    extended = values(document(space))["runs"][trials[-1]["identity"]["run_id"]]
    assert extended["again"] == "python run.py -m experiment=table_x recipe.learning_rate=0.0008 seed=101"
    assert main(["tables", "--home", str(tmp_path), "--records", str(space.records)]) == 0
    assert "in no table" not in capsys.readouterr().out
    assert main(["pack", "table_x", "--home", str(tmp_path)]) == 0
    assert [path.name for path in space.records.iterdir()] == ["table_x.jsonl"]


def test_a_figure_is_drawn_again_only_for_other_points(tmp_path):
    figure, path = of(rates(tmp_path), "rates"), tmp_path / "a.svg"
    drawn(figure, tmp_path)
    before = path.stat().st_mtime_ns
    assert drawing.draw(figure, path)
    assert path.stat().st_mtime_ns == before
    (panel,) = figure.panels
    moved = replace(panel, lines={**panel.lines, "LORA": panel.lines["LORA"][:2]})
    assert drawing.draw(replace(figure, panels=(moved,)), path)
    assert len(on_canvas(path.read_text(encoding="utf-8"), "line0:LORA")) == 2


def test_a_label_with_dollars_is_drawn_as_it_is(tmp_path):
    figure = of(rates(tmp_path), "rates")
    (panel,) = figure.panels
    lines = {"$\\nothing$ & <b>": panel.lines["LORA"]}
    svg = drawn(replace(figure, panels=(replace(panel, lines=lines),)), tmp_path)
    assert "$\\nothing$ &amp; &lt;b&gt;" in svg


def test_lines_are_told_apart_without_colours(tmp_path):
    svg = drawn(of(rates(tmp_path), "rates"), tmp_path)
    lines = [svg.partition(f'<g id="line0:{method}">')[2] for method in ("LORA", "Dual LoRA")]
    dashes = {re.search(r"stroke-dasharray: ([^;\"]+)", line.partition("</g>")[0]) is None for line in lines}
    shapes = {re.search(r'<path id="m\w+" d="([^"]+)"', line)[1] for line in lines}
    assert len(dashes) == len(shapes) == 2


def test_differences_are_those_of_the_table_with_the_endpoint_first(tmp_path):
    space = workspace(tmp_path, *seeds_of("lora", LORA), *seeds_of("dual_lora", DUAL))
    figure = of(space, "differences")
    assert [panel.x for panel in figure.panels] == [f"{label} minus LORA" for label in ("BoolQ", "PIQA", "Avg.")]
    assert [panel.margin for panel in figure.panels] == [0.5, None, None]
    ((point,),) = figure.panels[0].lines.values()
    assert (point.x, point.low, point.high, point.n) == pytest.approx((4.1667, 3.7382, 4.5951, 6), abs=1e-4)
    svg = drawn(figure, tmp_path)
    bar = re.findall(r'"M ([\d.]+) ([\d.]+) L ([\d.]+) \2"', svg)
    mark = on_canvas(svg, "line0:DUAL_LORA")[0]
    left, _, right = (float(v) for v in min(bar, key=lambda one: abs(float(one[1]) - mark[1])))
    assert (mark[0] - left) / (right - left) == pytest.approx(0.5, abs=1e-3)


def test_curves_are_means_over_seeds_with_their_range(tmp_path):
    records = [*seeds_of("lora", LORA), *seeds_of("dual_lora", DUAL)]
    for place, made in enumerate(records):
        made["curves"] = {"validation_loss": [[step, 3.0 / step + place / 10] for step in (1, 2, 4)]}
    panel, *_ = of(workspace(tmp_path, *records), "curves").panels
    assert panel.y == "validation loss"
    for method, first in (("LORA", 0.0), ("DUAL_LORA", 0.6)):
        points = [(p.x, p.y, p.low, p.high, p.n) for p in panel.lines[method]]
        wanted = [(s, 3 / s + first + 0.25, 3 / s + first, 3 / s + first + 0.5, 6) for s in (1, 2, 4)]
        assert points == [pytest.approx(one) for one in wanted]


def test_score_against_parameters_is_a_line_where_a_method_has_several_ranks(tmp_path):
    text = EXPERIMENT.replace("seed: 0,1,2,3,4,5", "seed: 0,1\n      method.r: 2,8")
    records = [record("none")]
    for method, rank, score in (("lora", 2, 0.60), ("lora", 8, 0.66), ("dual_lora", 8, 0.70)):
        for seed in (0, 1):
            made = record(method, seed, {"boolq": score, "piqa": 0.7})
            made["identity"]["method"]["settings"]["r"] = rank
            made["cost"]["trainable_parameters_without_head"] = 1000 * rank
            records.append(made)
    parameters, memory = of(workspace(tmp_path, *records, text=text), "cost").panels
    points = {method: [(p.x, round(p.y, 6)) for p in own] for method, own in parameters.lines.items()}
    assert points == {"LORA": [(2000, 60), (8000, 66)], "DUAL_LORA": [(8000, 70)]}
    assert {p.x for own in memory.lines.values() for p in own} == {2.0}
    assert "NONE" not in memory.lines  # nothing was trained


def test_what_diagnostics_saw_is_shown_by_step_and_by_layer(tmp_path):
    """Two layers of 2 × 3 and 4 × 6 entries: shares are of all 30 entries, norms of both layers together."""
    records = [*seeds_of("lora", LORA), *seeds_of("dual_lora", DUAL)]
    for made in records[-2:]:
        made["curves"]["diagnostics"] = DIAGNOSTICS
    space = workspace(tmp_path, *records)
    figure = of(space, "inside")
    shown = {p.y: {m: [(o.x, o.y) for o in own] for m, own in p.lines.items()} for p in figure.panels}
    last = math.hypot(0.2 * 3, 0.1 * 4) / 5
    assert shown["zeros in ReLU(BA)"]["DUAL_LORA"] == [(1, pytest.approx(0.5)), (10, pytest.approx(0.52))]
    assert shown["signs flipped by one step"]["DUAL_LORA"] == [(1, pytest.approx(0.12)), (10, pytest.approx(0.018))]
    assert shown[UPDATE]["DUAL_LORA"] == [(1, pytest.approx(0.1)), (10, pytest.approx(last))]
    assert shown["cosine with full fine-tuning"] == {"DUAL_LORA": [(1, 0.3), (2, 0.1)]}
    assert shown["stable rank of the update"] == {
        "DUAL_LORA": [(1, 1.5), (2, 3.0)],
        "DUAL_LORA, untrained": [(1, 2.5), (2, 4.0)],
    }
    assert shown["numerical rank / largest possible"] == {"DUAL_LORA": [(1, 1.0), (2, 1.0)]}
    canvas = on_canvas(drawn(figure, tmp_path), "line0:DUAL_LORA")
    assert canvas[0][1] > canvas[1][1]  # upwards on the page, from 0.50 to 0.52
    seen = next(record for record in space.all_records() if inside.report(record))
    flips, both = (0.12 + 0.018) / 2, (0.1 + last) / 2  # over the steps of the figure
    for measure, mean in {"flipped_share": flips, "update_ratio": both, "stable_rank": 2.25, "cosine": 0.2}.items():
        assert inside.mean(seen, measure) == pytest.approx(mean), measure
    assert inside.mean(seen, "magnitude_step") is None
    (of_page,) = values(document(space))["inside"]
    assert of_page["panels"][0]["lines"] == {"DUAL_LORA": [[1, 0.5, 0.5, 0.5], [10, 0.52, 0.52, 0.52]]}
    rows = tidy.tables(space.all_records(), [])["diagnostics"]
    assert len(rows) == 2 * 2 * (1 + 4 + 3 * 2)  # runs × layers × (a norm, four at the end, three series of two steps)
    flips = [(row["step"], row["value"]) for row in rows if row["measure"] == "flipped_share" and row["layer"] == "b"]
    assert flips[:2] == [(1, 0.1), (10, 0.02)]


def test_the_parts_of_a_step_are_lines_of_one_panel(tmp_path):
    watched = copy.deepcopy(DIAGNOSTICS)
    first, second = watched["layers"].values()
    first["series"] |= {"magnitude_step": [0.0, 0.3], "flip_step": [0.0, 0.1], "flip_descent": [None, 0.6]}
    second["series"] |= {"magnitude_step": [0.0, 0.1], "flip_step": [0.0, 0.2], "flip_descent": [None, 0.8]}
    made = record("dual_lora", 0)
    made["curves"]["diagnostics"] = watched
    figure = of(workspace(tmp_path, made), "inside")
    shown = {p.y: {m: [(o.x, o.y) for o in own] for m, own in p.lines.items()} for p in figure.panels}
    assert shown[STEP] == {
        "DUAL_LORA, by magnitudes": [(10, pytest.approx(math.hypot(0.3 * 3, 0.1 * 4) / 5))],
        "DUAL_LORA, by flips": [(10, pytest.approx(math.hypot(0.1 * 3, 0.2 * 4) / 5))],
    }, "a step that moves nothing has no place on a logarithmic axis"
    assert shown[DESCENT] == {"DUAL_LORA, by flips": [(10, pytest.approx((0.6 * 6 + 0.8 * 24) / 30))]}
    assert len(on_canvas(drawn(figure, tmp_path), "line2:DUAL_LORA, by flips")) == 1


def test_a_figure_without_records_is_not_drawn_and_has_its_commands(tmp_path):
    space = workspace(tmp_path, text=EXPERIMENT.replace("seed: 0", "diagnostics: on\n      seed: 0"))
    found = {kind: of(space, kind) for kind in ("differences", "curves", "cost", "inside")}
    for figure in found.values():
        assert (figure.panels, figure.commands) == ((), ("python run.py -m experiment=table_x",))
        assert not drawing.draw(figure, tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()
    (missing,) = values(document(space))["missing"]
    assert missing["title"] == "A table: A block"
    assert missing["kinds"][0] == "differences from the reference"
    assert len(missing["kinds"]) == 4
    assert missing["commands"] == ["python run.py -m experiment=table_x"]
