"""Settings are chosen on validation alone, and what was predicted can be scored again."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dual_lora.commands import main
from dual_lora.config import ConfigError
from dual_lora.config.compose import compose
from dual_lora.evaluation import archive
from dual_lora.records.evidence import checksum
from dual_lora.runs import lifecycle
from dual_lora.runs.resolve import resolve

SMALL = ["data.source=sample", "profile.max_steps=2", "launch.device=cpu", "protocol=strict"]
WRITING = ["model=tiny_llama", "task=e2e", "task.metrics=[BLEU,NIST]"]


def cell(results: Path, *arguments: str) -> dict[str, Any]:
    (config,) = compose([*SMALL, f"results={results}", *arguments])
    return lifecycle.run(resolve(config))


def test_a_trial_of_a_writing_model_looks_at_no_test_item(tmp_path: Path, capsys: Any) -> None:
    record = cell(tmp_path, *WRITING, "method=lora", "profile=trial")
    assert record["status"] == "finished", record.get("message")
    [measured] = record["scores"]["measurements"]
    assert (measured["split"], measured["scoring"]) == ("validation", "loss")
    assert record["scores"]["headline"]["value"] == measured["metrics"]["loss"] > 0
    assert not list((tmp_path / "runs").rglob("*.test.*"))
    assert main(["rescore", record["identity"]["run_id"], "--results", str(tmp_path)]) == 1
    assert "scored no test item" in capsys.readouterr().err


def test_a_trial_of_a_classifier_looks_at_the_held_out_tenth_only(tmp_path: Path) -> None:
    record = cell(tmp_path, "model=tiny_roberta", "task=glue/rte", "method=lora", "profile=trial")
    assert {entry["split"] for entry in record["scores"]["measurements"]} == {"validation"}
    assert record["scores"]["headline"]["metric"] == "accuracy"
    with pytest.raises(ConfigError, match="holds out no validation examples"):
        cell(tmp_path, "model=tiny_roberta", "task=glue/rte", "method=lora", "profile=trial", "protocol=paper")


def test_a_trial_that_trains_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing would be measured"):
        cell(tmp_path, *WRITING, "method=none", "profile=trial")


def test_a_trial_that_validates_nothing_is_refused(tmp_path: Path) -> None:
    """It trained to the end, and then there was nothing that its table could show."""
    with pytest.raises(ConfigError, match="validation_examples=0: nothing would be measured"):
        cell(tmp_path, *WRITING, "method=lora", "profile=trial", "profile.validation_examples=0")


EXPERIMENT = """# @package _global_
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      model: tiny_llama
      task: e2e
      method: {method}
      recipe.learning_rate: {rates}
      protocol: strict
      profile: {profile}
      seed: {seeds}
table:
  block: Trials
  columns: [{{label: loss, subset: all, scoring: loss, metric: loss}}]
"""


def test_the_rate_with_the_lowest_validation_loss_is_chosen_and_the_study_gets_it(tmp_path: Path, capsys: Any) -> None:
    """In two steps of a tiny model the loss falls up to 3e-2 and is far worse at 3e3."""
    rates, parts = ("1e-9", "3e-2", "3e3"), ["protocol.validation_part=select", "protocol.selection_examples=6"]
    for rate, seed in itertools.product(rates, (100, 101)):
        cell(tmp_path, *WRITING, *parts, "method=lora", "profile=trial", f"recipe.learning_rate={rate}", f"seed={seed}")
    experiments = tmp_path / "experiments"
    experiments.mkdir()
    (experiments / "trials.yaml").write_text(
        EXPERIMENT.format(method="lora", rates=",".join(rates), profile="trial", seeds="100,101").replace(
            "      profile:", "      protocol.validation_part: select\n      profile:"
        )
    )
    study = EXPERIMENT.format(method="none,lora", rates="1", profile="study", seeds="0,1")
    (experiments / "study.yaml").write_text(study.replace("      recipe.learning_rate: 1\n", ""))
    options = [f"results={tmp_path}", "--experiments", str(experiments)]
    capsys.readouterr()  # what libraries said while the trials ran
    assert main(["tune", "trials", "--then", "study", *options]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "python run.py -m experiment=study method=lora task=e2e recipe.learning_rate=0.03 recipe.trials=3 "
        f"results={tmp_path}",
        f"python run.py -m experiment=study method=none results={tmp_path}",
    ]
    assert "without label smoothing" in " ".join(said.err.replace("│", " ").split())
    path = next((tmp_path / "records").glob("*.json"))
    stopped = json.loads(path.read_text()) | {"status": "out_of_memory"}
    path.write_text(json.dumps(stopped | {"checksum": checksum(stopped)}))
    assert main(["tune", "trials", *options]) == 2  # says nothing about its rate
    assert "did not end" in capsys.readouterr().err
    path.unlink()
    assert main(["tune", "trials", *options]) == 1
    said = capsys.readouterr()
    assert "1 trials have no record" in said.err
    assert said.out.startswith("python run.py -m experiment=trials model=tiny_llama task=e2e method=lora ")
    assert said.out.endswith(f" results={tmp_path}\n")  # where the trials are looked for: else no end of asking


def test_a_run_is_scored_again_from_its_predictions_and_only_from_them(tmp_path: Path, capsys: Any) -> None:
    sizes = ["profile=quick", "profile.test_items=3", "protocol.decoding.max_new_tokens=6"]
    record = cell(tmp_path, *WRITING, "method=lora", *sizes)
    run_id = record["identity"]["run_id"]
    again = ["--results", str(tmp_path), "--metrics", "BLEU", "NIST", "NIST_python"]
    capsys.readouterr()
    assert main(["rescore", run_id, *again]) == 0
    value = record["scores"]["headline"]["value"]
    assert capsys.readouterr().out == f"[1/1] {run_id}: BLEU {value:.6g}, as before; new: NIST_python\n"
    made = json.loads((tmp_path / "records" / f"{run_id}.json").read_text())
    before, after = (
        {entry["checkpoint"]: entry["metrics"] for entry in one["scores"]["measurements"] if entry["split"] == "test"}
        for one in (record, made)
    )
    assert before.keys() == after.keys()
    for checkpoint, metrics in before.items():
        assert "NIST_python" not in metrics
        assert after[checkpoint] == {**metrics, "NIST_python": after[checkpoint]["NIST_python"]}
    assert made["origin"]["rescored"]["versions"]
    for section in ("identity", "curves", "cost", "execution"):
        assert made[section] == record[section]
    assert main(["rescore", run_id, "--results", str(tmp_path), "--metrics", "NIST"]) == 1
    refused = capsys.readouterr().err
    assert "--metrics NIST would drop BLEU, NIST_python from the record; name these too" in refused
    assert main(["rescore", run_id, "--results", str(tmp_path), *refused.split("too: ")[1].split(";")[0].split()]) == 0
    assert main(["rescore", run_id, *again, "loss"]) == 1
    assert "--metrics loss: computed with the model" in capsys.readouterr().err
    assert main(["rescore", run_id, *again, "BLUE"]) == 1
    assert "--metrics): unknown metric 'BLUE'; did you mean 'BLEU'?" in capsys.readouterr().err
    made = json.loads((tmp_path / "records" / f"{run_id}.json").read_text())
    assert main(["rescore", "0123", "--results", str(tmp_path)]) == 1
    assert not (tmp_path / "runs" / "0123").exists()

    [predictions] = (tmp_path / "runs" / run_id / "predictions").glob("last.test.generate.jsonl")
    predictions.write_text(predictions.read_text().replace('"index": 0, "value": "', '"index": 0, "value": "better '))
    assert main(["rescore", run_id, *again]) == 1
    assert "does not have the predictions" in capsys.readouterr().err
    assert json.loads((tmp_path / "records" / f"{run_id}.json").read_text()) == made


def test_a_run_is_scored_again_from_what_is_committed_of_it(tmp_path: Path, capsys: Any) -> None:
    sizes = ["profile=quick", "profile.test_items=3", "protocol.decoding.max_new_tokens=6"]
    record = cell(tmp_path, *WRITING, "method=lora", *sizes)
    run_id = record["identity"]["run_id"]
    shutil.rmtree(tmp_path / "runs")
    again = ["rescore", run_id, "--results", str(tmp_path)]
    assert main([*again, "--metrics", "BLEU", "NIST"]) == 0
    made = json.loads((tmp_path / "records" / f"{run_id}.json").read_text())
    assert made["scores"]["headline"] == record["scores"]["headline"]
    before, after = (sorted(map(str, one["scores"]["measurements"])) for one in (record, made))
    assert after == before
    assert not list((tmp_path / "runs").glob("*")), "no run is begun"
    path = archive.path(tmp_path, run_id)
    path.write_bytes(path.read_bytes()[:-20])
    assert main(again) == 1
    assert f"{path} cannot be read" in capsys.readouterr().err
    path.unlink()
    assert main(again) == 1
    assert "holds no run; runs here: none" in capsys.readouterr().err


def test_a_record_keeps_what_was_written_for_the_same_few_inputs(tmp_path: Path) -> None:
    sizes = ["profile=quick", "profile.test_items=7", "protocol.decoding.max_new_tokens=4"]
    kept = [cell(tmp_path, *WRITING, f"method={method}", *sizes)["scores"]["samples"] for method in ("none", "lora")]
    assert [len(samples) for samples in kept] == [5, 5]
    assert [sample["input"] for sample in kept[0]] == [sample["input"] for sample in kept[1]]
    assert all(sample["reference"] for samples in kept for sample in samples)
    labels = ["model=tiny_llama", "task=commonsense", "method=none", *sizes[:1], "profile.test_items=1"]
    assert "samples" not in cell(tmp_path, *labels, "protocol.decoding.max_new_tokens=2")["scores"]
