"""What a run prints when it ends."""

from rich.console import Console

from dual_lora.report.screen import comparison
from tests.unit.report.report_builder import record


def text(records) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(comparison(records))
    return console.export_text()


def test_the_trained_row_shows_its_distance_to_the_untrained_one():
    base = record("none", scores={"boolq": 0.50, "piqa": 0.7})
    trained = record("dual_lora", scores={"boolq": 0.62, "piqa": 0.65})
    shown = text([base, trained])
    assert "62.0 (+12.0)" in shown
    assert "65.0 (-5.0)" in shown
    assert "50.0 (" not in shown


def test_seconds_memory_and_parameters_are_shown():
    shown = text([record("lora")])
    assert "120" in shown
    assert "2.00" in shown  # the largest of the ranks
    assert "1,000,000" in shown


def test_one_subset_shows_all_its_metrics_and_unbounded_ones_are_no_percentages():
    values = record("lora", scores={"e2e": 0.5}, metric="BLEU", task="e2e")
    values["scores"]["measurements"][0]["metrics"]["NIST"] = 6.25
    shown = text([values])
    assert "BLEU %" in shown
    assert "50.0" in shown
    assert "6.25" in shown


def test_a_failed_run_is_named_and_has_no_scores():
    shown = text([record("none"), record("full", status="out_of_memory")])
    assert "out_of_memory" in shown


def test_runs_of_several_seeds_name_theirs():
    assert "seed 1" in text([record("lora", seed=0), record("lora", seed=1)])


def test_rows_of_a_sweep_over_a_setting_name_it_and_seeds_have_a_mean():
    rows = [
        record("lora", seed, scores={"e2e": value}, metric="BLEU", task="e2e", learning_rate=rate)
        for rate, values in ((1e-3, (0.50, 0.54)), (2e-3, (0.60, 0.66)))
        for seed, value in enumerate(values)
    ]
    shown = text(rows)
    assert "LORA learning_rate=0.001 seed 1" in shown
    assert "LORA learning_rate=0.001 mean ± sd, n=2 │ 52.0 ± 2.8" in shown
    assert "LORA learning_rate=0.002 mean ± sd, n=2 │ 63.0 ± 4.2" in shown
    lines = [line for line in shown.splitlines() if "│ LORA" in line]
    assert len(lines) == len(set(lines)) == 6


def test_a_failed_seed_is_no_part_of_the_mean():
    rows = [record("lora", 0), record("lora", 1), record("lora", 2, status="diverged")]
    assert "mean ± sd, n=2" in text(rows)
    assert "seed 2 diverged" in text(rows)
