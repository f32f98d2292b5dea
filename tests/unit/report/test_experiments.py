"""Every shipped experiment drives a sweep and shows exactly its cells."""

from __future__ import annotations

import dataclasses
import json
import shlex

import pytest
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from dual_lora.config import MNLI_STARTED
from dual_lora.config.compose import compose, options
from dual_lora.records.schema import parse
from dual_lora.report import definition, published, selection, tuned_study, tuning, workspace
from dual_lora.report.workspace import Workspace
from dual_lora.runs.identity import identity
from tests import ROOT
from tests.unit.report import report_builder

EXPERIMENTS = definition.read_all(ROOT / "experiments")
SPACE = Workspace(ROOT)  # reads the records once, when a test asks for them
by_name = pytest.mark.parametrize("name", EXPERIMENTS)


def swept_by_hydra(name: str) -> dict[str, object]:
    values = yaml.safe_load((ROOT / "experiments" / f"{name}.yaml").read_text())
    whole = [swept_by_hydra(other) for other in values.get("defaults", []) if other != "_self_"]
    return {key: value for params in [*whole, values["hydra"]["sweeper"]["params"]] for key, value in params.items()}


@by_name
def test_the_cells_of_the_table_are_the_cells_that_hydra_runs(name):
    params = swept_by_hydra(name)
    overrides = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    (batch,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    swept = {tuple(sorted(job)) for job in batch}
    shown = {tuple(sorted(f"{key}={value}" for key, value in cell.items())) for cell in EXPERIMENTS[name].runs()}
    assert shown == swept


@by_name
def test_every_choice_of_the_sweep_exists(name):
    for group in ("model", "task", "method", "protocol", "profile"):
        assert set(EXPERIMENTS[name].sweep[group]) <= set(options(group)), group


@by_name
def test_an_experiment_composes_to_the_cell_that_its_command_names(name, monkeypatch):
    monkeypatch.setenv("DUAL_LORA_DATA", "/data")
    experiment = EXPERIMENTS[name]
    last = experiment.runs()[-1]
    (command,) = selection.commands(experiment, [last])
    (config,) = compose(shlex.split(command.removeprefix("python run.py ")))
    chosen = {group: getattr(config, group).name for group in ("model", "task", "method", "protocol", "profile")}
    assert chosen == {group: last[group] for group in chosen}
    assert config.seed == int(last["seed"])
    if "task.target" in last:
        assert config.task.target == last["task.target"]
    if "data.dir" in last:
        assert config.data.dir == "/data"
    made = report_builder.record()
    start = "hash" if config.init_from != "none" and config.task.name in MNLI_STARTED else "none"
    made["identity"] = identity(config, dtype="float32", model_fingerprint={}, data_fingerprint={}, init_from=start)
    record = parse(json.loads(json.dumps(made)), "made")
    foreign = [key for key, value in last.items() if not selection.belongs(record, {key: value})]
    assert not foreign, "its record would be in no cell"


@by_name
def test_a_published_nist_has_the_nist_of_the_same_option_next_to_it(name):
    """The release scores with the scorer's option -p (examples/NLG/README.md: measure_scores.py … -p)."""
    columns = EXPERIMENTS[name].block.columns
    assert {column.metric for column in columns if column.published_metric == "NIST"} <= {"NIST_python"}
    blocks = EXPERIMENTS[name].block.blocks
    page = [column for block in blocks for column in EXPERIMENTS[block].block.columns]
    if any(column.published_metric == "NIST" for column in page):
        assert "NIST" not in {column.metric for column in page}, "two definitions on one page"


def test_commands_cover_exactly_the_cells_they_are_for():
    experiment = EXPERIMENTS["table_glue"]
    wanted = [
        cell
        for cell in experiment.runs()
        if (cell["method"] == "lora" and cell["seed"] != "2") or (cell["task"] == "glue/rte" and cell["seed"] == "4")
    ]
    covered = []
    for command in selection.commands(experiment, wanted):
        narrowed = dict(word.split("=", 1) for word in command.split()[4:])
        keep = {key: narrowed.get(key, ",".join(values)).split(",") for key, values in experiment.sweep.items()}
        covered += [cell for cell in experiment.runs() if all(cell[key] in keep[key] for key in cell)]
    assert sorted(map(str, covered)) == sorted(map(str, wanted))  # each once, none else


@by_name
def test_published_names_in_an_experiment_exist(name):
    block = EXPERIMENTS[name].block
    for rows in block.published:
        printed = [row for row in published.read(ROOT / "results" / "published", rows.file) if row.table == rows.table]
        known = {row.method for row in printed}
        named = {method for names in rows.methods.values() for method in names} | set(rows.only or ())
        assert named <= known
    if block.published:
        every = [row for rows in block.published for row in published.read(ROOT / "results" / "published", rows.file)]
        assert set(block.published_models.values()) <= {row.model for row in every}
        tasks = {task for column in block.columns for task in column.published}
        assert tasks <= {row.task for row in every} | {"GLUE_Avg", "commonsense_8task_Avg"}


def test_every_published_number_has_a_source_and_second_hand_ones_say_so():
    files = sorted(path.stem for path in (ROOT / "results" / "published").glob("*.csv"))
    assert files == ["commonsense", "dual_lora", "glue", "nlg"]
    for file in files:
        for row in published.read(ROOT / "results" / "published", file):
            assert row.source
            assert row.second_hand or "dual_lora" not in row.table


@pytest.mark.parametrize(
    "name", [name for name, e in EXPERIMENTS.items() if name.startswith("learning_rates") and e.block.title]
)
def test_every_method_gets_the_same_number_of_trials(name):
    trials = {}
    for block in EXPERIMENTS[name].block.blocks:
        for cell in EXPERIMENTS[block].runs():
            key = (cell["method"], cell["model"], cell["task"])
            trials.setdefault(key, set()).add(cell["recipe.learning_rate"])
            assert cell["seed"] == "0"
    assert len({len(rates) for rates in trials.values()}) == 1, trials
    assert {"lora", "dora", "dual_lora"} <= {method for method, *_ in trials}


@pytest.mark.parametrize("name", [name for name, one in EXPERIMENTS.items() if one.block.trials])
def test_committed_runs_have_what_their_trials_chose(name):
    """Every reported run is at the rate that `run.py tune` chooses from the committed trials."""
    study, held = EXPERIMENTS[name], SPACE.committed_records()
    reported = selection.select(study, held)
    if not reported:
        pytest.skip("no run of it is committed")
    trials = tuned_study.of_study([EXPERIMENTS[name] for name in study.block.trials], study, EXPERIMENTS.values())
    choices = tuned_study.winners(tuning.choose(trials, held), study.block.candidates)
    for record in reported:
        fitting = [
            one.chosen.settings
            for one in choices
            if all(record.name(part) == getattr(one, part) for part in ("model", "task", "method"))
            and selection.belongs(record, {key: v for key, v in one.chosen.settings.items() if key != tuning.RATE})
        ]
        assert len(fitting) == 1, record.run_id
        assert record.identity["recipe"]["learning_rate"] == float(fitting[0][tuning.RATE]), record.run_id


def test_every_committed_record_is_in_a_table():
    tables = definition.tables(EXPERIMENTS)
    assert [record.run_id for record in workspace.in_no_table(SPACE.committed_records(), tables)] == []


def test_no_run_of_the_study_is_in_another_block_that_it_would_break(monkeypatch):
    """Two profiles or protocols in a block are refused, and two records of a trial: what differs is in both files."""
    monkeypatch.setenv("DUAL_LORA_DATA", "/data")
    study = {name: one for name, one in EXPERIMENTS.items() if name.startswith("study_")}
    made = {}
    for name, experiment in study.items():
        run = next((run for run in experiment.runs() if run["method"] == "dual_lora"), experiment.runs()[0])
        (command,) = selection.commands(experiment, [run])
        (config,) = compose(shlex.split(command.removeprefix("python run.py ")))
        record = report_builder.record()
        record["identity"] = identity(config, dtype="", model_fingerprint={}, data_fingerprint={})
        made[name] = parse(json.loads(json.dumps(record)), name)
    found = []
    for name, experiment in study.items():
        # At any rate: trials choose it later, and a grid may grow.
        block = dataclasses.replace(experiment, sweep={k: v for k, v in experiment.sweep.items() if k != tuning.RATE})
        for other, record in made.items():
            if selection.in_sweep(record, block):
                parts = ("profile", "protocol", "method") if min(block.seeds) >= 100 else ("profile", "protocol")
                found += [(other, name) for part in parts if record.identity[part] != made[name].identity[part]]
    assert not found, "a run of the first would be in the second"
