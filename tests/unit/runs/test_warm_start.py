"""The weights MRPC, RTE and STS-B start from: which, how they are named in errors, and that they arrive."""

import copy
import dataclasses
import functools
import shlex
import shutil

import pytest
import torch
from safetensors.torch import save_file

from dual_lora import methods, models, records
from dual_lora.config import ConfigError
from dual_lora.config.compose import compose
from dual_lora.models.head import is_head_parameter
from dual_lora.runs import warm_start
from dual_lora.runs.identity import identity
from dual_lora.tasks import glue


@functools.cache
def composed_once(*words):
    return compose(["model=tiny_roberta", "data.source=sample", *words])[0]


def composed(results, task="rte", method="dual_lora", *more):
    return dataclasses.replace(composed_once(f"task=glue/{task}", f"method={method}", *more), results=str(results))


def adapted(config):
    head = glue.build(config).head
    loaded = models.load(config.model, head, dtype="float32", seed=config.seed)
    return methods.apply(loaded.model, config.method, model_config=config.model, head=head, seed=config.seed)


def finish_mnli(config, score, status="finished", weights=True):
    """Leave behind what a finished MNLI run leaves: its record and the trained weights of its best epoch."""
    named = identity(
        config,
        dtype="float32",
        model_fingerprint=models.fingerprint(config.model),
        data_fingerprint=glue.build(config).fingerprint(),
    )
    headline = {"metric": "accuracy", "value": score, "subset": "mnli", "scoring": "classify", "checkpoint": "best_dev"}
    measured = {"split": "validation", "items": 4, "metrics": {"accuracy": score}}
    measured |= {key: headline[key] for key in ("subset", "scoring", "checkpoint")}
    made = records.build(status=status, identity=named, scores={"headline": headline, "measurements": [measured]})
    records.write(records.record_path(config.results, named["run_id"]), made)
    model = adapted(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.fill_(score or 0.5) if not is_head_parameter(model, name) else parameter.fill_(9.0)
    if weights:
        file = records.weights_file(records.run_folder(config.results, named["run_id"]), "best_dev")
        file.parent.mkdir(parents=True)
        save_file(methods.trainable_state(model), file)
    return named["run_id"], model


def test_no_start_is_the_default(tmp_path):
    assert warm_start.resolve(composed(tmp_path)) is None


def test_auto_takes_the_best_finished_mnli_run(tmp_path):
    ids = [
        finish_mnli(composed(tmp_path, "mnli", "dual_lora", f"seed={seed}"), score)[0]
        for seed, score in enumerate([0.7, 0.9, 0.8, None])
    ]
    finish_mnli(composed(tmp_path, "mnli", "dual_lora", "seed=7"), 0.95, status="diverged")
    start = warm_start.resolve(composed(tmp_path, "rte", "dual_lora", "init_from=auto"))
    assert start.run_id == ids[1]
    assert start.origin() == {"sha256": start.sha256, "run_id": ids[1], "checkpoint": "best_dev"}
    assert start == warm_start.resolve(composed(tmp_path, "rte", "dual_lora", f"init_from={ids[1]}"))
    assert start.sha256 == warm_start.resolve(composed(tmp_path, "rte", "dual_lora", f"init_from={start.path}")).sha256
    worse = warm_start.resolve(composed(tmp_path, "rte", "dual_lora", f"init_from={ids[0]}"))
    assert worse.sha256 != start.sha256


def test_auto_without_a_run_names_the_command_that_makes_it(tmp_path):
    config = composed(tmp_path, "stsb", "lora", "init_from=auto", "protocol=strict", "seed=3")
    expected = (
        f"model=tiny_roberta task=glue/mnli method=lora protocol=strict data.source=sample seed=3 results={tmp_path}"
    )
    with pytest.raises(ConfigError, match=f"python run.py {expected}") as error:
        warm_start.resolve(config)
    assert "init_from=none" in str(error.value)
    command = warm_start.command(config).removeprefix("python run.py ").split()
    made, _ = finish_mnli(compose(command)[0], 0.6)
    assert warm_start.resolve(config).run_id == made


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (("lora",), "method.name is 'lora'"),
        (("dual_lora", "method.alpha=64"), "method.alpha is 64, this run's 32"),
        (("dual_lora", "protocol=strict"), "protocol is strict, this run needs paper"),
        (("dual_lora", "profile=quick"), "profile is quick, this run needs full"),
        (
            ("dual_lora", "recipe.name=default/glue/other"),
            "recipe is default/glue/other, this run needs default/glue/mnli",
        ),
    ],
)
def test_runs_of_another_kind_do_not_count(tmp_path, change, part):
    run_id, _ = finish_mnli(composed(tmp_path, "mnli", *change), 0.9)
    with pytest.raises(ConfigError, match="no finished MNLI record"):
        warm_start.resolve(composed(tmp_path, "rte", "dual_lora", "init_from=auto"))
    with pytest.raises(ConfigError, match=part):
        warm_start.resolve(composed(tmp_path, "rte", "dual_lora", f"init_from={run_id}"))


def test_frozen_random_weights_must_come_from_the_same_seed(tmp_path):
    run_id, _ = finish_mnli(composed(tmp_path, "mnli", "vera", "seed=1"), 0.9)
    assert warm_start.resolve(composed(tmp_path, "rte", "vera", "init_from=auto", "seed=1")).run_id == run_id
    with pytest.raises(ConfigError, match="its seed is 1, and vera has frozen weights"):
        warm_start.resolve(composed(tmp_path, "rte", "vera", f"init_from={run_id}", "seed=0"))


def test_recorded_but_absent_weights_are_an_error(tmp_path):
    finish_mnli(composed(tmp_path, "mnli"), 0.9, weights=False)
    with pytest.raises(ConfigError, match=r"its weights are not here .*selected/best_dev\.safetensors"):
        warm_start.resolve(composed(tmp_path, "rte", "dual_lora", "init_from=auto"))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("cola", "dual_lora", "init_from=0123456789abcdef"), "task=glue/cola: only glue/mrpc"),
        (
            ("rte", "dual_lora", "init_from=auto", "protocol=restricted"),
            "protocol=restricted: this protocol allows no start",
        ),
        (("rte", "none", "init_from=auto"), "method=none, which trains no weights that a warm start could provide"),
        (("rte", "head", "init_from=auto"), "method=head, which trains no weights that a warm start could provide"),
        (("rte", "dual_lora", "init_from=0123456789abcdef"), "neither a record in"),
    ],
)
def test_a_start_that_cannot_be_is_refused(tmp_path, arguments, part):
    with pytest.raises(ConfigError, match=part):
        warm_start.resolve(composed(tmp_path, *arguments))


def test_only_unambiguous_safetensors_are_read(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match="safetensors files only"):
        warm_start.resolve(composed(tmp_path, "rte", "dual_lora", f"init_from={tmp_path / 'weights.bin'}"))
    with pytest.raises(ConfigError, match=r"none of adapter_model\.safetensors"):
        warm_start.resolve(composed(tmp_path, "rte", "dual_lora", f"init_from={tmp_path}"))
    for name in ("last.safetensors", "adapter_model.safetensors"):
        save_file({"x": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(ConfigError, match="the folder has several"):
        warm_start.resolve(composed(tmp_path, "rte", "dual_lora", f"init_from={tmp_path}"))


@pytest.mark.parametrize("method", ["dual_lora", "lora", "dora", "bitfit", "full"])
def test_everything_but_the_head_arrives(tmp_path, method):
    finish_mnli(composed(tmp_path, "mnli", method), 0.25)
    config = composed(tmp_path, "rte", method, "init_from=auto")
    model = adapted(config)
    head = {
        name: p.clone() for name, p in model.named_parameters() if p.requires_grad and is_head_parameter(model, name)
    }
    assert head
    copied = warm_start.load(model, warm_start.resolve(config))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert copied == len(trained) - len(head)
    for name, parameter in trained.items():
        if name in head:
            assert torch.equal(parameter, head[name])
        else:
            assert bool((parameter == 0.25).all())


@pytest.mark.parametrize("model", ["tiny_roberta", "tiny_deberta"])
@pytest.mark.parametrize("saved", ["run", "peft"])
def test_the_dense_layer_of_the_head_comes_along_if_asked_for(tmp_path, model, saved):
    """RoBERTa's `classifier.dense`, DeBERTa's `pooler.dense`: hidden size squared and a bias, 9.0 in the MNLI run."""
    run_id, source = finish_mnli(composed(tmp_path, "mnli", "lora", f"model={model}"), 0.25)
    source.save_pretrained(tmp_path / "adapter")
    start = run_id if saved == "run" else tmp_path / "adapter"
    config = composed(tmp_path, "rte", "lora", f"model={model}", f"init_from={start}", "init_head=dense")
    model = adapted(config)
    out = {
        name: p.clone()
        for name, p in model.named_parameters()
        if p.requires_grad and name.endswith(("out_proj.weight", "classifier.modules_to_save.default.weight"))
    }
    assert len(out) == 1
    warm_start.load(model, warm_start.resolve(config), config.init_head)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    hidden = config.model.dimensions.hidden_size
    assert sum(p.numel() for p in trained.values() if bool((p == 9.0).all())) == hidden * hidden + hidden
    assert all(torch.equal(trained[name], value) for name, value in out.items())


def test_a_dense_layer_needs_weights_to_come_from_and_a_head_that_has_one(tmp_path):
    with pytest.raises(ConfigError, match="init_head=dense needs weights to come from"):
        warm_start.resolve(composed(tmp_path, "rte", "lora", "init_head=dense"))
    words = ("model=tiny_llama", "init_head=dense", "init_from=auto")
    with pytest.raises(ConfigError, match="the head of a llama model is one layer"):
        warm_start.resolve(composed(tmp_path, "rte", "lora", *words))


def test_the_head_is_in_the_name_of_a_run_only_if_it_is_not_new(tmp_path):
    def named(*words):
        config = composed(tmp_path, "rte", "lora", *words)
        return identity(config, dtype="float32", model_fingerprint={}, data_fingerprint={}, init_from="aa")

    assert "init_head" not in named()
    assert named("init_head=dense")["init_head"] == "dense"
    assert named("init_head=dense")["run_id"] != named()["run_id"]


def test_a_saved_peft_adapter_is_a_start_too(tmp_path):
    _, source = finish_mnli(composed(tmp_path, "mnli"), 0.25)
    source.save_pretrained(tmp_path / "adapter")
    config = composed(tmp_path, "rte", "dual_lora", f"init_from={tmp_path / 'adapter'}")
    model = adapted(config)
    assert warm_start.load(model, warm_start.resolve(config)) > 0
    assert all(
        bool((p == 0.25).all())
        for name, p in model.named_parameters()
        if p.requires_grad and not is_head_parameter(model, name)
    )


def test_weights_of_another_method_or_rank_are_refused(tmp_path):
    finish_mnli(composed(tmp_path, "mnli"), 0.25)
    start = warm_start.resolve(composed(tmp_path, "rte", "dual_lora", "init_from=auto"))
    model = adapted(composed(tmp_path, "rte", "lora"))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match="names differ"):
        warm_start.load(model, start)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ConfigError, match="the ranks of both runs have to be the same"):
        warm_start.load(adapted(composed(tmp_path, "rte", "dual_lora", "method.r_magnitude=8")), start)


def test_the_start_is_hashed_by_content_and_not_by_place(tmp_path):
    finish_mnli(composed(tmp_path, "mnli"), 0.25)
    start = warm_start.resolve(composed(tmp_path, "rte", "dual_lora", "init_from=auto"))
    moved = tmp_path / "elsewhere.safetensors"
    shutil.copy(start.path, moved)
    again = warm_start.resolve(composed(tmp_path, "rte", "dual_lora", f"init_from={moved}"))
    assert again == dataclasses.replace(start, path=moved, run_id=None, checkpoint=None)


def test_the_proposed_command_makes_a_run_that_fits(tmp_path):
    """Settings given by hand, a folder with a blank and a local checkpoint are in it: no difference is left."""
    words = ["model=tiny_roberta", "task=glue/rte", "method=lora", "protocol=strict", "data.source=sample", "seed=3"]
    words += ["method.r=3", "method.use_rslora=true", "method.target_modules=[query,value]", "launch.device=cpu"]
    words += ["profile=quick", "profile.max_steps=2", "init_from=auto", f"results={tmp_path}/my results"]
    words += ["protocol.validation_seed=7", "model.dtype=float32"]
    [config] = compose(words)
    with pytest.raises(ConfigError, match="Make one with") as refused:
        warm_start.resolve(config)
    _, _, *proposed = shlex.split(str(refused.value).splitlines()[1])
    made = compose(proposed)[0]
    assert made.task.name == "glue/mnli"
    for part in ("model", "method", "protocol", "profile", "data", "seed", "results"):
        assert getattr(made, part) == getattr(config, part), part
    assert made.launch.device == "cpu"
    run_id, _ = finish_mnli(made, 0.5)
    assert warm_start.resolve(config).run_id == run_id


def test_a_field_that_no_yaml_states_can_be_set_and_a_misspelt_one_is_refused():
    [config] = compose(["model=tiny_llama", "task=e2e", "method=lora", "data.source=sample", "method.use_rslora=true"])
    assert config.method.settings["use_rslora"] is True
    configs = compose(["-m", "model=tiny_llama", "task=e2e", "method=lora,dora", "method.use_rslora=true,false"])
    assert [c.method.settings["use_rslora"] for c in configs] == [True, False] * 2
    with pytest.raises(ConfigError, match="unknown setting 'method.use_rslorra'"):
        compose(["model=tiny_llama", "task=e2e", "method=lora", "method.use_rslorra=true"])
    with pytest.raises(ConfigError, match="unknown setting 'method.use_rslora'"):
        compose(["model=tiny_llama", "task=e2e", "method=full", "method.use_rslora=true"])
