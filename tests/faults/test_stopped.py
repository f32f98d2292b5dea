"""Signals, errors of the run, and what the record says of them; the other cells of a sweep go on."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from dual_lora.config import ConfigError
from dual_lora.records import redaction
from dual_lora.runs.resolve import check_writable
from tests.faults.children import At, Child, run, wait_for
from tests.small_cells import CLASSIFYING, config, numbers, only_record

STEP = "dual_lora.training.trainer._Trainer.training_step"


@pytest.mark.parametrize(
    ("name", "status"), [("SIGINT", "interrupted"), ("SIGTERM", "interrupted"), ("SIGUSR2", "timed_out")]
)
def test_signal_in_training_finishes_the_step_and_saves(name, status, undisturbed, tmp_path):
    results = tmp_path / "results"
    child = run(results, kind=CLASSIFYING, fault=At(STEP, 3, "signal", name))
    assert child.code == 130
    record = only_record(results)
    assert record["status"] == status
    assert f"{name} after step 3 of 6" in record["message"]
    again = run(results, kind=CLASSIFYING)
    assert again.code == 0, again.log
    record = only_record(results)
    assert record["execution"]["resumed_from"] == [3], "no step is repeated"
    for section in ("scores", "curves"):
        assert numbers(record)[section] == undisturbed["classifying"][section]


def test_a_head_on_a_frozen_base_continues_where_it_stopped(tmp_path):
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    assert run(whole, "method=head", kind=CLASSIFYING).code == 0
    assert run(stopped, "method=head", kind=CLASSIFYING, fault=At(STEP, 3, "signal", "SIGTERM")).code == 130
    assert run(stopped, "method=head", kind=CLASSIFYING).code == 0
    record = only_record(stopped)
    assert record["execution"]["resumed_from"] == [3]
    assert numbers(record) == numbers(only_record(whole))


def test_signal_in_evaluation_is_recorded_and_continued(tmp_path):
    results = tmp_path / "results"
    child = run(results, fault=At("dual_lora.evaluation.evaluator._Kept.add", 1, "signal", "SIGTERM"))
    assert child.code == 130
    assert only_record(results)["status"] == "interrupted"
    again = run(results, fault=At(STEP, 1, "kill"))
    assert again.code == 0, "it trained again"
    assert only_record(results)["status"] == "finished"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signal_while_the_record_is_written_waits_for_it(name, tmp_path):
    child = run(tmp_path, kind=CLASSIFYING, fault=At("dual_lora.records.write", 1, "signal", name))
    assert child.code != 0
    assert only_record(tmp_path)["status"] == "finished"


def test_second_ctrl_c_stops_at_once(tmp_path):
    """Not at the end of the step, and without the checkpoint that the first one asks for."""
    results, mark = tmp_path / "results", tmp_path / "paused"
    child = Child(results, kind=CLASSIFYING, fault=At(STEP, 3, "pause", mark))
    wait_for(mark.exists, "the middle of training")
    child.signal(signal.SIGINT)
    time.sleep(0.5)
    assert child.alive, "the first one waits for the step"
    child.signal(signal.SIGINT)
    assert child.wait() == 130
    assert only_record(results)["status"] == "interrupted"
    assert not list((results / "runs").glob("*/checkpoints/checkpoint-3"))


def test_out_of_memory_is_recorded_with_advice_and_other_cells_go_on(tmp_path):
    results = tmp_path / "results"
    fault = At(STEP, 2, "OutOfMemoryError", "CUDA out of memory. Tried to allocate 20.00 GiB.")
    child = run(results, kind=CLASSIFYING, fault=fault, cells=2)
    assert child.code == 1
    records = [json.loads(path.read_text()) for path in (results / "records").glob("*.json")]
    first, second = sorted(records, key=lambda record: record["identity"]["seed"])
    assert first["status"] == "out_of_memory"
    assert "with 8 × " in first["message"]
    assert "launch.per_device_batch=4" in first["message"]
    assert "Tried to allocate 20.00 GiB" in first["message"]
    assert second["status"] == "finished"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("MemoryError", "host"),
        ("RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_memory_that_others_took_is_recorded_as_such(tmp_path, kind, words):
    child = run(tmp_path / "results", kind=CLASSIFYING, fault=At(STEP, 1, kind, words))
    assert child.code == 1
    assert only_record(tmp_path / "results")["status"] == "out_of_memory"


@pytest.mark.parametrize(("free", "verdict"), [(8 * 2**20, True), (2**33, False), (None, False)])
def test_a_failure_of_cublas_counts_as_memory_only_on_a_full_card(monkeypatch, free, verdict):
    import torch

    from dual_lora.runs.lifecycle import _out_of_memory

    def left():
        if free is None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return free, 2**36

    error = RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb)`")
    assert not _out_of_memory(error), "without a GPU it cannot be"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", left)
    assert _out_of_memory(error) is verdict


def test_nan_is_diverged_with_its_step(tmp_path):
    import torch

    fault = At("transformers.Trainer.training_step", 3, "value", torch.tensor(float("nan")))
    child = run(tmp_path / "results", kind=CLASSIFYING, fault=fault)
    assert child.code == 1
    record = only_record(tmp_path / "results")
    assert record["status"] == "diverged"
    assert "step 3 is nan" in record["message"]
    assert "recipe.learning_rate" in record["message"]


def test_failed_run_is_retried_on_request_only(tmp_path):
    results = tmp_path / "results"
    assert run(results, kind=CLASSIFYING, fault=At(STEP, 2, "RuntimeError", "the cat sat on it")).code == 1
    record = only_record(results)
    assert record["status"] == "failed"
    assert "the cat sat on it" in record["message"]
    assert "Traceback" in next((results / "runs").glob("*/error.txt")).read_text()
    left_alone = run(results, kind=CLASSIFYING)
    assert left_alone.code == 1
    assert "retry=true" in left_alone.log
    assert run(results, "retry=true", kind=CLASSIFYING).code == 0
    assert only_record(results)["status"] == "finished"


def test_changed_training_text_is_refused_on_resume(tmp_path):
    results = tmp_path / "results"
    assert run(results, kind=CLASSIFYING, fault=At(STEP, 4, "kill")).code == -9
    [path] = (results / "runs").glob("*/rendered.json")
    path.write_text(json.dumps({"sha256": "0" * 64}))
    child = run(results, kind=CLASSIFYING)
    assert child.code != 0
    assert "the training text differs from when this run began" in child.log
    assert not list((results / "records").glob("*.json"))


@pytest.mark.parametrize("obstacle", ["records", "runs"])
def test_results_that_cannot_be_written_are_refused_at_once(obstacle, tmp_path):
    (tmp_path / obstacle).write_text("a file where a folder has to be")
    with pytest.raises(ConfigError, match="cannot be written"):
        check_writable(tmp_path)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that nobody can write")
def test_read_only_file_system_is_refused_at_once():
    with pytest.raises(ConfigError, match="use results=FOLDER, or make it writable"):
        check_writable(Path("/proc/sys/results"))


def test_damaged_record_is_named(tmp_path):
    results = tmp_path / "results"
    assert run(results, kind=CLASSIFYING).code == 0
    [path] = (results / "records").glob("*.json")
    path.write_text(path.read_text()[:100])
    child = run(results, kind=CLASSIFYING)
    assert child.code == 3, "refused, and what other runs there are go on"
    assert f"error: {path} is damaged" in child.log
    assert "Traceback" not in child.log


def test_tokens_do_not_reach_records_or_logs(tmp_path):
    token = "hf_" + "Ab3" * 12
    results = tmp_path / "results"
    message = f"401 for https://user:{token}@host/x with password=hunter2hunter2"
    assert run(results, kind=CLASSIFYING, fault=At(STEP, 1, "RuntimeError", message)).code == 1
    for path in [*results.rglob("*.json"), *results.rglob("*.txt")]:
        assert token not in path.read_text()
        assert "hunter2" not in path.read_text()
    assert "401 for https://" in only_record(results)["message"]


@pytest.mark.parametrize(
    "text",
    [
        "value-of-the-variable",
        "Authorization: token=abcdefgh12345",
        "wandb_api_key = abcdefgh12345",
        "https://me:abcdefgh12345@example.org",
        "ghp_" + "a1" * 18,
        "model.path=/x api_key:abcdefgh12345",
        "the password: abcdefgh12345, as you know",
        "password=abcdefgh12345",
        "some-program --api-key=abcdefgh12345",
        "export A_TOKEN=abcdefgh12345",
        "{'hub_token': 'abcdefgh12345', 'other': 1}",
        '{"token": "abcdefgh12345"}',
    ],
)
def test_secrets_are_hidden_wherever_they_stand(text, monkeypatch):
    monkeypatch.setenv("MY_SECRET_TOKEN", "value-of-the-variable")
    hidden = redaction.hide(text)
    assert redaction.HIDDEN in hidden
    assert "abcdefgh12345" not in hidden
    assert "value-of-the-variable" not in hidden


@pytest.mark.parametrize(
    "text",
    [
        "recipe.max_length_tokens=512",
        "tokens_per_second: 5",
        "pad_token_id=0",
        "prompts of one length share a token: the prompt's last one",
        "the tokenizer has no start token: <s> is missing",
        "eos_token=</s>, pad_token=<|endoftext|>",
        "the secret: nothing but patience",
        "token=29871",
    ],
)
def test_words_with_token_in_them_are_no_secrets(text):
    assert redaction.hide(text) == text


def test_code_of_a_checkpoint_folder_is_never_run(tmp_path):
    """A folder that names code of its own is read as the architecture it claims to be, and the code stays unread."""
    from dual_lora import models
    from dual_lora.tasks.base import Head

    trap = tmp_path / "executed"
    cell = config(tmp_path / "results")
    loaded = models.load(cell.model, Head("causal_lm"), dtype="float32", seed=0)
    folder = tmp_path / "checkpoint"
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["auto_map"] = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "evil.py").write_text(f"open({str(trap)!r}, 'w')\n")
    other = config(tmp_path / "results", f"model.path={folder}")
    models.load(other.model, Head("causal_lm"), dtype="float32", seed=0)
    assert not trap.exists()


def test_pickled_weights_are_refused(tmp_path):
    from dual_lora import models
    from dual_lora.tasks.base import Head

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cposix\nsystem\n")
    cell = config(tmp_path / "results", f"model.path={tmp_path}")
    with pytest.raises(models.ModelError, match="pickle files are not read"):
        models.load(cell.model, Head("causal_lm"), dtype="float32", seed=0)
