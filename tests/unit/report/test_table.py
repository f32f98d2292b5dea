"""From records to tables: what is shown, what is marked, what is refused."""

from __future__ import annotations

import csv
import dataclasses
import io

import pytest

from dual_lora.records.schema import parse
from dual_lora.report import definition, formats, selection
from tests.unit.report.report_builder import EXPERIMENT, PROTOCOL, ours, record, seeds_of


def test_mean_spread_and_average_per_seed(build):
    cells = ours(build(*seeds_of("lora", (0.60, 0.62, 0.64))), "LORA").cells
    assert cells[0].value == pytest.approx(62.0)
    assert cells[0].sd == pytest.approx(2.0)
    assert cells[2].value == pytest.approx(66.0)
    assert cells[2].sd == pytest.approx(1.0)


def test_published_values_stand_beside_ours_with_source_and_spread(build):
    text = formats.markdown(build(*seeds_of("lora", (0.6, 0.62, 0.64))))
    assert "| Small | LoRA (r=32) | published [2] | 68.9 ± 0.4 |" in text
    assert "| Small | Prefix<sup>s</sup> | published [1] | 64.3 |" in text
    assert "2. A paper & its_table" in text
    assert text.index("LoRA (r=32)") < text.index("62.0 ± 2.0")
    assert "second-hand" in text


def test_scores_on_other_items_are_not_paired(build):
    table = build(*seeds_of("lora", (0.60, 0.65, 0.70)), *seeds_of("dual_lora", (0.62, 0.671, 0.719), items=500))
    assert ours(table, "DUAL_LORA").cells[0].difference is None


def test_doubts_are_marked(build):
    line = ours(
        build(record("lora", at_chance=True, guessed=("learning_rate",)), record("dual_lora", recipe="default/x")),
        "LORA",
    )
    assert "g" in line.marks
    assert "c" in line.cells[0].marks
    table = build(record("lora", guessed=("learning_rate",)), record("dual_lora", recipe="default/x"))
    assert "d" in ours(table, "DUAL_LORA").marks
    assert any("learning_rate" in note for note in table.blocks[0].notes)


def test_a_failed_cell_says_how_it_failed(build):
    table = build(
        record("dual_lora", 0, status="out_of_memory"), record("lora", 0), record("lora", 1, status="diverged")
    )
    assert ours(table, "DUAL_LORA").cells[0].word == "out_of_memory"
    assert "f" in ours(table, "LORA").cells[0].marks
    assert ours(table, "LORA").n == "1"
    assert any("diverged (it did not work)" in note for note in table.blocks[0].notes)


def test_an_undefined_score_is_no_zero(build):
    assert ours(build(record("lora", scores={"boolq": None, "piqa": 0.7})), "LORA").cells[0].word == "undefined"


def test_a_cell_not_run_is_empty_and_the_command_that_fills_it_stands_below(build):
    table = build(*seeds_of("lora", (0.6,) * 6), record("dual_lora", 1), record("none", 2))
    assert all(cell.empty for cell in ours(build(), "dual_lora").cells)
    assert table.blocks[0].commands == ("python run.py -m experiment=table_x method=dual_lora seed=0,2,3,4,5",)
    assert build().blocks[0].commands == ("python run.py -m experiment=table_x",)


def test_the_untrained_row_needs_no_second_seed(build):
    table = build(record("none", 1))
    assert ours(table, "NONE").n == "1"
    assert not any("none" in command for command in table.blocks[0].commands)


def test_two_protocols_in_one_block_are_refused_with_the_fields_that_differ(build):
    other = {**PROTOCOL, "loss_on": "all", "hash": "bbbb"}
    with pytest.raises(selection.MixedBlockError, match="loss_on: 'answer' and 'all'"):
        build(record("lora", 0), record("lora", 1, protocol=other))


def test_two_sizes_of_one_profile_in_one_block_are_refused(build):
    cut = record("lora", 1)
    cut["identity"]["profile"]["max_steps"] = 3
    with pytest.raises(selection.MixedBlockError, match="max_steps: None and 3"):
        build(record("lora", 0), cut)


@pytest.mark.parametrize(
    "values",
    [
        {"source": "sample"},
        {"profile": "demo"},
        {"profile": "quick"},
        {"model": "llama"},
        {"seed": 9},
        {"protocol": {**PROTOCOL, "name": "paper"}},
    ],
)
def test_records_of_something_else_stay_out(build, values):
    assert ours(build(record("lora", **values)), "lora").n == ""


def test_the_variant_with_most_seeds_is_shown_whatever_it_scored_and_the_others_are_named(build):
    table = build(
        *seeds_of("lora", (0.5, 0.5, 0.5)), record("lora", 0, {"boolq": 0.9, "piqa": 0.9}, learning_rate=1e-3)
    )
    assert ours(table, "LORA").cells[0].value == pytest.approx(50.0)
    assert any("not shown: 1 with recipe.learning_rate=0.001" in note for note in table.blocks[0].notes)


def test_cost_columns(build):
    assert ours(build(record("lora")), "LORA").cost == ("120", "2.0", "900,000")
    assert ours(build(record("lora")), "LORA").trials == "4"


def test_csv_holds_every_number_unrounded(build):
    text = formats.tidy_csv(build(*seeds_of("lora", (0.601, 0.62, 0.64)), record("dual_lora")))
    rows = list(csv.DictReader(io.StringIO(text)))
    row = next(row for row in rows if row["origin"] == "here" and row["method"] == "LORA" and row["column"] == "BoolQ")
    assert float(row["value"]) == pytest.approx(62.0333, abs=1e-4)
    assert (row["n"], row["bold"]) == ("3", "")
    assert next(row for row in rows if row["origin"] == "published")["source"]


def test_panels_are_grids_of_their_own(build):
    text = EXPERIMENT.replace("{label: PIQA,", "{label: PIQA, panel: Two,")
    blocks = build(record("lora"), text=text.replace("    - {label: Avg., average: true}\n", "")).blocks
    assert [block.columns for block in blocks] == [("BoolQ",), ("PIQA",)]
    assert blocks[1].heading == "A block: Two"


def test_a_run_without_the_mnli_start_is_marked_and_does_not_fill_the_published_cell(build):
    text = EXPERIMENT.replace("task: commonsense", "task: glue/rte").replace(
        "seed: 0,1,2,3,4,5", "seed: 0\n      init_from: auto"
    )
    without, started = record("lora", task="glue/rte"), record("lora", task="glue/rte", init_from="9f3c")
    assert ours(build(without, text=text), "lora").n == ""
    assert ours(build(started, text=text), "LORA").n == "1"
    plain = ours(build(without, text=text.replace("init_from: auto", "init_from: none")), "LORA")
    assert "m" in plain.cells[0].marks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seed: 0,1,2,3,4,5", ""), "lacks seed"),
        (("protocol: strict", "protocol: strict,paper"), "one block shows one protocol"),
        (("reference: lora", "reference: lroa"), "did you mean 'lora'"),
        (("subset: piqa", "subsett: piqa"), "subsett"),
        (
            ("  endpoint: {column: BoolQ, named: 2026-01-31T12:00+00:00, margin: 0.5}\n", ""),
            "name the one column that dec",
        ),
        (("column: BoolQ, named", "column: Boolq, named"), "did you mean 'BoolQ'"),
        (("named: 2026-01-31T12:00+00:00, ", ""), "endpoint.named: Field required"),
        (("12:00+00:00", "12:00"), "add the time zone"),
        (("margin: 0.5}", "margin: -1}"), "a positive number"),
        (("margin: 0.5}", "blocked: [none, dual_lora]}"), "blocked lacks the reference 'lora'"),
        (("  reference: lora\n", ""), "endpoint needs table.reference"),
        (("task: commonsense", "task: commonsense,e2e"), "needs a task"),
    ],
)
def test_a_definition_that_cannot_be_used_names_the_setting(build, change, message):
    with pytest.raises(definition.DefinitionError, match=message):
        build(text=EXPERIMENT.replace(*change))


PART = """
defaults: [rates, _self_]
hydra: {sweeper: {params: {method: full, recipe.learning_rate: "1,2"}}}
table: {block: A part, labels: {full: Full}}
"""


def test_a_part_of_an_experiment_has_the_sweep_and_the_columns_that_it_does_not_state(tmp_path):
    lines = [line for line in EXPERIMENT.splitlines() if "reference:" not in line and "endpoint:" not in line]
    text = "\n".join([*lines, "  labels: {smollm2: Small}", "  blocks: [rates, rates_full]"])
    (tmp_path / "rates.yaml").write_text(text)
    (tmp_path / "rates_full.yaml").write_text(PART)
    experiments = definition.read_all(tmp_path)
    whole, part = experiments["rates"], experiments["rates_full"]
    assert part.sweep == whole.sweep | {"method": ("full",), "recipe.learning_rate": ("1", "2")}
    shown = {"title": None, "blocks": (), "block": "A part", "labels": {"smollm2": "Small", "full": "Full"}}
    assert part.block == dataclasses.replace(whole.block, **shown)
    assert definition.tables(experiments) == {"rates": [whole, part]}


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ("[ratse, _self_]", "rates_full.yaml: defaults: experiment 'ratse' does not exist; did you mean 'rates'"),
        ("[rates_full, _self_]", "experiment 'rates_full' does not exist"),
        ("[_self_, rates]", r"a part has \[EXPERIMENT, _self_\]"),
        ("rates", r"rates_full.yaml: defaults=rates: a part has \[EXPERIMENT, _self_\]"),
        ("[other, _self_]", r"other.yaml: defaults=\['rates', '_self_'\]: .*, its experiment has none"),
    ],
)
def test_a_part_of_no_experiment_is_refused(tmp_path, defaults, message):
    (tmp_path / "rates.yaml").write_text(EXPERIMENT)
    (tmp_path / "other.yaml").write_text(PART)
    (tmp_path / "rates_full.yaml").write_text(PART.replace("[rates, _self_]", defaults))
    with pytest.raises(definition.DefinitionError, match=message):
        definition.read(tmp_path / "rates_full.yaml")


def test_labels_of_a_part_that_are_none_are_refused(tmp_path):
    (tmp_path / "rates.yaml").write_text(f"{EXPERIMENT}  labels: {{smollm2: Small}}\n")
    (tmp_path / "rates_full.yaml").write_text(PART.replace("{full: Full}", "3"))
    with pytest.raises(definition.DefinitionError, match="table: labels: Input should be a valid dictionary"):
        definition.read(tmp_path / "rates_full.yaml")


def test_an_ambiguous_column_is_refused(build):
    values = record("lora")
    values["scores"]["measurements"].append({**values["scores"]["measurements"][0], "metrics": {"accuracy": 0.9}})
    with pytest.raises(ValueError, match="2 measurements"):
        build(values)


def test_samples_of_the_first_seed_stand_below_the_table_by_input(build):
    values = [record(method, seed) for method in ("lora", "dual_lora") for seed in (0, 1)]
    for value in values:
        reply = f"{value['identity']['method']['name']} {value['identity']['seed']}"
        value["scores"]["samples"] = [{"input": "name : X", "reply": reply, "reference": "X is a pub."}]
    table = build(*values, text=EXPERIMENT.replace("  reference: lora", "  reference: lora\n  samples: true"))
    [sample] = table.blocks[0].samples
    assert sample.replies == (("LORA", "lora 0"), ("DUAL_LORA", "dual_lora 0"))
    text = formats.markdown(table)
    assert "1. name : X\n    - a reference: X is a pub.\n    - LORA: lora 0\n    - DUAL_LORA: dual_lora 0" in text
    assert not build(*values).blocks[0].samples  # only where the experiment asks for them


def test_the_csv_has_the_runs_that_a_number_is_of(build):
    made = [record("lora", seed) for seed in (0, 1)] + [record("lora", 2, status="diverged")]
    rows = list(csv.DictReader(io.StringIO(formats.tidy_csv(build(*made)))))
    names = {row["column"]: row["runs"] for row in rows if row["origin"] == "here" and row["method"] == "LORA"}
    finished = " ".join(values["identity"]["run_id"] for values in made[:2])
    assert names == {"BoolQ": finished, "PIQA": finished, "Avg.": finished}
    assert {row["runs"] for row in rows if row["origin"] == "published"} == {""}


def test_of_candidates_only_the_one_that_was_run_is_shown(build, tmp_path):
    text = EXPERIMENT.replace("none,lora,dual_lora", "lora,dual_lora,dual_lora_neither")
    text += "  candidates: [dual_lora, dual_lora_neither]\n"
    with pytest.raises(definition.DefinitionError, match=r"table.candidates needs table.trials"):
        build(text=text)
    path = tmp_path / "table_x.yaml"
    path.write_text(f"{text}  trials: [rates]\n")
    experiment = definition.read(path)

    def shown(*values):
        return selection.with_winner(experiment, [parse(value) for value in values]).sweep["method"]

    assert shown(record("lora")) == ("lora",)
    assert shown(record("lora"), record("dual_lora_neither", 3)) == ("lora", "dual_lora_neither")
    assert shown(record("dual_lora", 100)) == ("lora",), "another seed is another experiment's"


def test_a_swept_value_is_called_what_the_experiment_calls_it(build):
    text = EXPERIMENT.replace("none,lora,dual_lora", "lora\n      method.r: 2,32")
    assert [line.method for line in build(text=text).blocks[0].lines][-1] == "lora (r = 32)"
    (block,) = build(text=f'{text}  labels: {{"32": weights of r = 32}}\n').blocks
    assert [line.method for line in block.lines if line.source is None] == [
        "lora (r = 2)",
        "lora (weights of r = 32)",
    ]
