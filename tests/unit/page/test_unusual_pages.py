"""Pages of records that are unusual: none, many, long names, a rate that diverged, hours of what is not run."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.unit.page.page_builder import FIGURE, PHONE, study, workspace
from tests.unit.report.report_builder import EXPERIMENT, record, seeds_of


def test_figures_without_runs_are_listed_with_their_commands(visit_page_of, tmp_path: Path):
    opened = visit_page_of(workspace(tmp_path / "empty"), "figures")
    opened.locator("summary", has_text="A table: A block").click()
    text = opened.locator("details.waiting").inner_text()
    assert "differences from the reference" in text
    assert "python run.py -m experiment=table_x" in text


def test_a_page_without_records_opens(visit_page_of, tmp_path: Path):
    opened = visit_page_of(workspace(tmp_path / "empty"))
    for view in ("overview", "table/table_x", "figures", "runs"):
        opened.evaluate("view => { location.hash = view }", view)
        opened.wait_for_selector("h1")


def test_a_long_name_leaves_room_for_numbers_on_a_phone(visit_page_of, tmp_path: Path):
    """The first column stays in view when a table is scrolled: it must not cover the rest."""
    text = EXPERIMENT.replace(
        "  published_models", "  labels: {lora: Low-rank adapters with a very long name (r=32)}\n  published_models"
    )
    opened = visit_page_of(workspace(tmp_path / "long", *study(), text=text), "table/table_x", viewport=PHONE)
    opened.set_default_timeout(5_000)
    width = opened.locator("main tbody th").first.bounding_box()["width"]
    assert width < 0.45 * PHONE["width"]
    for cell in opened.locator("main tbody tr").first.locator("button.cell").all():
        cell.click()  # nothing is above it
        opened.keyboard.press("Escape")


def test_many_rows_are_shown_when_asked_for(visit_page_of, tmp_path: Path):
    many = [record("lora", seed, learning_rate=rate / 1e4) for seed in range(6) for rate in range(1, 36)]
    opened = visit_page_of(workspace(tmp_path / "many", *many), "runs")
    assert opened.locator("main tbody tr").count() == 200
    opened.get_by_role("button", name="show all 210 rows").click()
    assert opened.locator("main tbody tr").count() == 210
    opened.get_by_role("searchbox").fill(many[0]["identity"]["run_id"])
    assert opened.locator("main tbody tr").count() == 1
    assert opened.get_by_role("button", name="show all").is_hidden()


def test_what_fills_an_empty_cell_is_said_with_its_hours(visit_page_of, tmp_path: Path):
    space = workspace(tmp_path / "hours", *seeds_of("lora", [0.6, 0.61, 0.62]))
    folder = space.root / "results" / "benchmarks"
    folder.mkdir()
    seconds = {"table_x": {"method=none": 60, "method=lora": 720, "method=dual_lora": "too large for one card"}}
    held = {"card": "a card", "errors": {"smollm2": [0.2, 0.5]}, "made_of": {}, "seconds": seconds}
    (folder / "gpu_hours.json").write_text(json.dumps(held))
    opened = visit_page_of(space, "table/table_x")
    opened.get_by_role("combobox", name="rows", exact=True).select_option("all")
    cell = opened.get_by_role("button", name="none, BoolQ: not run, 1 run, about 0.02 GPU-hours on one a card")
    assert cell.inner_text() == "0.02 h"
    cell.click()
    text = opened.locator("dialog").inner_text()
    for part in ("python run.py -m experiment=table_x method=none", "1 run, about 0.02 GPU-hours", "within 20 %"):
        assert part in text
    opened.keyboard.press("Escape")
    cell = opened.get_by_role("button", name="dual_lora, BoolQ: not run, 6 runs without an estimate: too large")
    assert cell.inner_text() == "·"
    opened.evaluate("location.hash = 'overview'")
    opened.wait_for_selector(".coverage, h2:has-text('How much')")
    assert "0.62 h" in opened.locator("section", has_text="How much of the paper").inner_text()


def test_two_tables_with_one_heading_are_told_apart(visit_page_of, tmp_path: Path):
    """A screen reader lists the regions of the overview: each needs a name of its own."""
    space = workspace(tmp_path / "two", *study())
    other = EXPERIMENT.replace("title: A table", "title: Another table")
    (space.root / "experiments" / "table_y.yaml").write_text(other, encoding="utf-8")
    opened = visit_page_of(space)
    names = [one.get_attribute("aria-label") for one in opened.get_by_role("region").all()]
    assert {"A table: A block", "Another table: A block"} <= set(names)
    assert len(set(names)) == len(names)


def test_a_rate_that_diverged_does_not_hide_the_others(visit_page_of, tmp_path: Path):
    rates = {1e-4: 0.60, 2e-4: 0.61, 4e-4: 0.62, 8e-4: 0.61, 16e-4: 0.02}
    sweep = "recipe.learning_rate: " + ",".join(map(str, rates)) + "\n      seed: 0"
    text = EXPERIMENT.replace("  published_models", FIGURE).replace("seed: 0", sweep)
    made = [record("lora", 0, {"boolq": score, "piqa": 0.7}, learning_rate=rate) for rate, score in rates.items()]
    opened = visit_page_of(workspace(tmp_path / "rates", *made, text=text), "figures")
    figure = opened.locator("figure", has_text="BoolQ by learning rate; 1 point outside").first
    assert figure.locator("svg text", has_text="▼").count() == 1
    texts = figure.locator("svg text").all_text_contents()
    ticks = [float(text) for text in texts if re.fullmatch(r"[\d.]+", text)]
    assert min(tick for tick in ticks if tick >= 1) > 55  # not down to 2; below 1 are the rates
