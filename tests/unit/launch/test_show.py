"""What a command shows at the end besides its records' comparison."""

from pathlib import Path

from dual_lora.config.compose import compose
from dual_lora.evaluation.prediction_lines import line
from dual_lora.launch import prepare
from dual_lora.launch.show import before_and_after
from dual_lora.runs.resolve import Resolved


def replied(run: Resolved, name: str) -> list[str]:
    """Write replies to all test items, as an evaluation keeps them."""
    assert run.items is not None
    replies = [f"{name} {index}" for index in range(len(run.items.test))]
    folder = run.folder / "predictions"
    folder.mkdir(parents=True)
    text = "".join(line(index, reply) + "\n" for index, reply in enumerate(replies))
    (folder / f"{name}.test.generate.jsonl").write_text(text)
    return replies


def test_inputs_are_shown_with_the_replies_of_the_base_and_of_the_trained_model(tmp_path: Path) -> None:
    words = ["model=tiny_llama", "task=e2e", "data.source=sample", "task.metrics=[BLEU]", "launch.device=cpu"]
    words += ["-m", "method=none,lora", "profile.test_items=6", "profile.samples=3", f"results={tmp_path}"]
    base, trained = prepare(compose(words))
    assert before_and_after([base, trained]) == [], "nothing was generated yet"
    before, after = replied(base, "base"), replied(trained, "last")
    shown = before_and_after([base, trained])
    assert [(one, other) for _, one, other in shown] == [(before[place], after[place]) for place in (0, 2, 4)]
    assert trained.items is not None
    for (prompt, _, _), place in zip(shown, (0, 2, 4), strict=True):
        assert prompt.startswith(trained.items.test[place].fields["input"])
    assert before_and_after([trained]) == [], "there is no base to compare with"
