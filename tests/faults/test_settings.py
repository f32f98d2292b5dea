"""Settings out of range: refused before any work, by name, with what is legal; nothing else happens.

Many tools take -1 for "all" or "no limit" and 0 for "none"; a computed setting may be NaN.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import typing

import pytest

from dual_lora.config import ConfigError, RunConfig
from dual_lora.config.bounds import legal_range
from dual_lora.config.compose import compose
from dual_lora.launch import check, prepare
from dual_lora.runs import lifecycle
from tests.small_cells import CLASSIFYING, DESCRIBING, WRITING, config

NAN, INF = math.nan, math.inf
FRACTIONS = ["recipe.label_smoothing", "recipe.adam_beta1", "recipe.adam_beta2", "model.dropout"]
FRACTIONS += ["model.classifier_dropout"]
# What each number in the settings may be, written down a second time: lowest and highest legal value, what is just
# outside. Everything else in this file follows from the schema.
COUNTS = {
    1: "recipe.global_batch recipe.max_length_tokens recipe.trials protocol.decoding.beams "
    "protocol.decoding.max_new_tokens protocol.max_length_tokens protocol.validation_examples "
    "protocol.validation_every_steps recipe.validation_every_steps profile.train_examples profile.max_steps "
    "launch.num_gpus launch.nodes protocol.report_examples protocol.selection_examples "
    "launch.parallel launch.per_device_batch launch.eval_batch launch.save_every_steps launch.keep_checkpoints "
    "launch.gpus_per_node launch.time_limit_minutes launch.cpus_per_task launch.memory_gb "
    "model.dimensions.hidden_size model.dimensions.intermediate_size model.dimensions.num_layers "
    "model.dimensions.num_heads model.dimensions.num_key_value_heads model.dimensions.vocab_size",
    0: "recipe.warmup_steps protocol.decoding.no_repeat_ngram_size profile.validation_examples profile.test_items "
    "profile.samples launch.dataloader_workers launch.signal_seconds method.delta_warmup_steps "
    "model.dimensions.max_positions seed protocol.validation_seed",
}
REALS: dict[str, tuple[list[float], list[float]]] = {
    "recipe.learning_rate": ([1e-9, 1e18], [0, -1e-3, 1e39]),
    "recipe.head_learning_rate": ([1e-9, 1.0], [0, -1e-3]),
    "recipe.epochs": ([0.01, 3, 1000], [0, -1, 1e7]),
    "recipe.warmup_ratio": ([0, 0.06, 1], [-0.1, 1.1]),
    "recipe.weight_decay": ([0, 0.1, 2], [-0.1, 1e39]),
    "recipe.max_grad_norm": ([0, 0.1, 5], [-1]),
    "recipe.adam_epsilon": ([1e-8], [0, -1e-8]),
    "protocol.decoding.length_penalty": ([-1, 0, 0.8, 10], [-11, 1e300]),
    "protocol.validation_fraction": ([0.1], [0, 1, -0.1, 1.5]),
    **dict.fromkeys(FRACTIONS, ([0, 0.1, 0.999], [1, 1.5, -0.1])),
}


def numbers(kind: type = RunConfig, prefix: str = "") -> dict[str, typing.Any]:
    """Return every setting that is a number, with its type."""
    found = {}
    for name, annotation in typing.get_type_hints(kind, include_extras=True).items():
        plain = typing.get_type_hints(kind)[name]
        if dataclasses.is_dataclass(plain):
            found |= numbers(plain, f"{prefix}{name}.")
        elif typing.get_origin(plain) is not dict and {int, float} & {plain, *typing.get_args(plain)}:
            found[prefix + name] = annotation
    return found


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    return config(tmp_path_factory.mktemp("results"), kind=WRITING).to_dict()


def put(values: dict, name: str, value: object) -> dict:
    first, _, rest = name.partition(".")
    return {**values, first: put(values.get(first) or {}, rest, value) if rest else value}


def refused(values: dict, name: str, value: object) -> str:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_dict(put(values, name, value))
    return str(caught.value)


def test_every_number_is_in_the_lists_of_this_file():
    listed = {name for names in COUNTS.values() for name in names.split()} | REALS.keys()
    literals = {"launch.zero_stage"}  # 0, 1, 2 or 3
    assert numbers().keys() - literals == listed | {"method.budget"}


@pytest.mark.parametrize("name", sorted(numbers()))
def test_what_is_no_number_of_the_kind_is_refused_by_name(name, values):
    for value in (NAN, INF, -INF):
        assert refused(values, name, value) == f"{name}={value}: it must be a finite number"
    if name == "method.budget":  # a number, or the words like:METHOD@RANK
        return
    for value in (True, "3", "many", [1], {}):
        assert refused(values, name, value).startswith(f"{name}={value!r}: ")


@pytest.mark.parametrize(("lowest", "name"), [(low, name) for low, names in COUNTS.items() for name in names.split()])
def test_a_count_out_of_range_is_refused_with_the_range(lowest, name, values):
    highest = 2**32 - 1 if "seed" in name.rpartition(".")[2].split("_") else 2**31 - 1
    null = ", or recipe" if name == "protocol.validation_every_steps" else ""
    null += ", or null" if type(None) in typing.get_args(numbers()[name]) else ""
    told = f"it must be a whole number, at least {lowest} and at most {highest}{null}"
    for value in (lowest - 1, -5, highest + 1, 10**30, 2.5):
        assert refused(values, name, value) == f"{name}={value!r}: {told}"
    for value in (lowest, 7, highest):
        if (name, value) not in {("profile.test_items", 0), ("profile.validation_examples", 0)}:
            RunConfig.from_dict(put(values, name, value))


@pytest.mark.parametrize("name", REALS)
def test_a_fraction_out_of_range_is_refused_with_the_range(name, values):
    legal, illegal = REALS[name]
    for value in legal:
        RunConfig.from_dict(put(values, name, value))
    for value in illegal:
        assert refused(values, name, value) == f"{name}={value!r}: it must be {legal_range(numbers()[name])}"


def test_nan_in_what_peft_would_check_is_refused_by_its_name_on_the_command_line(values):
    assert refused(values, "method.alpha", NAN).startswith("method.alpha=nan: ")
    assert refused(values, "method.settings", {"lora_alpha": INF}).startswith("method.lora_alpha=inf: ")
    assert refused(values, "method.optimizer.settings", {"ratio": NAN}).startswith("method.optimizer.ratio=nan: ")
    assert refused(values, "recipe.learning_rates", {"2": NAN}).startswith("recipe.learning_rates.2=nan: ")


JUNK = (None, True, 0, -1, 2.5, "", "x", ".x", [], ["x"], [None], {}, {"x": 1}, {1: 2}, 10**30)


def test_no_value_of_any_setting_ends_in_another_error(values):
    def walk(inside: dict, prefix: str = ""):
        for name, value in inside.items():
            yield prefix + name
            if isinstance(value, dict) and value:
                yield from walk(value, f"{prefix}{name}.")

    tried = 0
    for name in walk(values):
        for value in JUNK:
            tried += 1
            with contextlib.suppress(ConfigError):
                RunConfig.from_dict(put(values, name, value))
    assert tried > 1000


WRONG = [
    ("method.target_modules=[q_prj]", r"'q_prj' matches no layer of model=tiny_llama; did you mean 'q_proj'\?"),
    ("method.target_modules=[]", "name the layers in a list, or null for the model's own"),
    ("method.target_modules=3", "name the layers in a list"),
    ("'method.target_modules=q_proj'", r"matches the whole name of no layer .*or give a list, \[q_proj\]"),
    ("'method.target_modules=\"*\"'", "is not a regular expression"),
    ("method.layers_to_transform=[1,2]", r"layers_to_transform=\[1, 2\]: model=tiny_llama has the blocks 0 to 1"),
    ("method.layers_to_transform=-1", "layers_to_transform=-1: model=tiny_llama has the blocks 0 to 1"),
    ("method.layers_to_transform=[[1]]", r"layers_to_transform=\[\[1\]\]: model=tiny_llama has the blocks 0 to 1"),
    ("method.layers_to_transform=[]", r"layers_to_transform=\[\]: .*name some in a list"),
    ("method.r=0", "a rank is a whole number of at least 1"),
    (
        "method.r=100000",
        r"method\.r=100000: model\.layers\.0\.self_attn\.k_proj has 64 inputs and 32 outputs.*r=32 or less",
    ),
    ("method.lora_alpha=-1", "method.lora_alpha=-1: it must be a number above 0"),
    ("method.lora_alpha=many", "method.lora_alpha='many': it must be a number above 0"),
    ("method.bias=some", "method.bias='some': it must be none, all or lora_only"),
    ("method.init_lora_weights=pisa", "method.init_lora_weights='pisa': it must be .*pissa"),
    ("method.rank_pattern={q_proj:0}", "method.rank_pattern.q_proj=0: a rank is a whole number of at least 1"),
    ("method.alpha_pattern={q_proj:-1}", "method.alpha_pattern.q_proj=-1: it must be a number above 0"),
    ("method.lora_dropout=1", "method.lora_dropout=1: it must be a number of at least 0 and below 1"),
    ("method.config_class=.x", r"method.config_class=\.x cannot be imported"),
    ("method.config_class=..", r"method.config_class=\.\. cannot be imported"),
    ("method.budget=true", "method.budget=True"),
    ("task.headline=BLEU", "task.headline: commonsense does not measure 'BLEU'. Legal: accuracy"),
    ("task.metrics=[BLEU]", "task.metrics: commonsense does not measure 'BLEU'. Legal: accuracy"),
    ("task.scorings=[classify]", "'classify' does not exist"),
    ("protocol.checkpoint=best_dev", "protocol.checkpoint=best_dev: .*Legal: last, best_loss"),
    ("protocol.checkpoint=best_heldout", "protocol.checkpoint=best_heldout: .*Legal: last, best_loss"),
    ("protocol.also_report=[best]", "protocol.also_report='best'"),
    ("protocol.reference_form=raw", "protocol.reference_form=raw has no effect on task=commonsense, .* only null"),
    ("protocol.validation_fraction=0.5", "protocol.validation_fraction=0.5 has no effect on task=commonsense"),
    ("recipe.label_smoothing=1.5", "recipe.label_smoothing=1.5: it must be a finite number, at least 0 and below 1"),
]
WRONG_CLASSIFYING = [
    ("protocol.checkpoint=best_loss", "protocol.checkpoint=best_loss: .*Legal: last, best_dev"),
    ("task.headline=f1", "task.headline: glue/rte does not measure 'f1'. Legal: accuracy"),
    ("recipe.max_length_tokens=7", "recipe.max_length_tokens=7: an encoder needs at least 8"),
    ("protocol.validation_fraction=1", "validation_fraction=1: it must be a finite number, above 0 and below 1"),
]


WRONG_CLASSIFYING += [
    (f"{name}={value}", rf"{name}={told} has no effect on task=glue/rte, which has only {legal}; leave it out")
    for name, value, told, legal in (
        ("task.subsets", "[cola]", r"\[cola\]", r"\[rte\]"),
        ("task.target", "text", "text", "label"),
        ("task.metrics", "[accuracy]", r"\[accuracy\]", r"\[\]"),
        ("task.scorings", "[generate]", r"\[generate\]", r"\[\] or \[classify\]"),
        ("protocol.prompt", "alpaca", "alpaca", "default"),
        ("protocol.loss_on", "all", "all", "answer"),
        ("protocol.append_end", "false", "False", "True"),
        ("protocol.reference_form", "raw", "raw", "null"),
        ("protocol.drop_repeated_examples", "true", "True", "False"),
        ("protocol.validation_examples", "5", "5", "null"),
    )
]
WRONG_CLASSIFYING += [
    ("protocol.decoding.beams=4", "protocol.decoding.beams=4: task=glue/rte decodes nothing; leave it out")
]
WRONG_DESCRIBING = [
    ("task.subsets=[seen]", r"task.subsets=\[seen\] has no effect on task=e2e, which has only \[e2e\]; leave it out"),
    ("task.target=text", "task.target=text has no effect on task=e2e"),
    ("protocol.prompt=alpaca", "protocol.prompt=alpaca has no effect on task=e2e, which has only lora or default"),
    ("protocol.drop_repeated_examples=true", "protocol.drop_repeated_examples=True has no effect on task=e2e"),
    ("protocol.validation_examples=10", "protocol.validation_examples=10 has no effect on task=e2e"),
    ("protocol.validation_fraction=0.5", "protocol.validation_fraction=0.5 has no effect on task=e2e"),
    ("protocol.reference_form=lorra", "unknown protocol.reference_form='lorra'"),
]


@pytest.mark.parametrize(
    ("kind", "word", "told"),
    [(WRITING, *case) for case in WRONG]
    + [(CLASSIFYING, *case) for case in WRONG_CLASSIFYING]
    + [(DESCRIBING, *case) for case in WRONG_DESCRIBING],
)
def test_what_nothing_measures_or_no_layer_has_is_refused_before_anything_starts(kind, word, told, tmp_path):
    def start() -> None:
        cell = config(tmp_path, "method=lora", word.strip("'"), kind=kind)
        check(cell)
        prepare([cell])

    with pytest.raises(ConfigError, match=told):
        start()
    assert not list(tmp_path.glob("runs/*"))


def test_a_checkpoint_that_the_profile_leaves_unmeasured_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"protocol\.checkpoint=best_loss: .*Legal: last"):
        prepare([config(tmp_path, "protocol.checkpoint=best_loss", "profile.validation_examples=0")])


def test_a_reply_for_which_the_model_has_no_room_is_found_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("dual_lora.runs.work.train", lambda *_, **__: pytest.fail("it trained"))
    [prepared] = prepare([config(tmp_path, "protocol.decoding.max_new_tokens=100000")])
    made = lifecycle.run(prepared)
    assert made["status"] == "failed"
    assert "the reply may have 100000, but the model has" in made["message"]
    assert "lower protocol.decoding.max_new_tokens" in made["message"]


@pytest.mark.parametrize("group", ["model", "task", "method", "protocol", "profile", "launch"])
@pytest.mark.parametrize("value", ["null", ""])
def test_a_choice_of_nothing_is_refused_with_the_choices(group, value):
    with pytest.raises(ConfigError, match=rf"^{group}={value}: choose one; legal: \w+"):
        compose([*WRITING, f"{group}={value}"])
