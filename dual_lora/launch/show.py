"""What a command prints at the end: samples, the comparison, where the records are, what to try next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dual_lora import shipped
from dual_lora.config import RunConfig

if TYPE_CHECKING:
    from dual_lora.runs.resolve import Resolved


def show(prepared: list[Resolved], records: list[dict[str, Any] | None]) -> None:
    """Print samples, the comparison, where the records are and what to try next."""
    from dual_lora.records import file_of
    from dual_lora.report import terminal
    from dual_lora.report.screen import comparison

    made = [record for record in records if record is not None]
    if not made:
        return
    console = terminal.console()
    with console.capture() as captured:
        if samples := before_and_after(prepared):
            console.print(_table(samples, prepared[-1].config.method.label))
        console.print(comparison(made))
        for item in prepared:
            held = file_of(item.record_path)
            if held is not None:  # a run that was not begun has none
                console.print(f"record: {held}", soft_wrap=True)
        console.print(f"next:   {_next_command(prepared[-1].config)}", soft_wrap=True)
    text = captured.get()
    print(f"\n{text}", end="")
    prepared[-1].folder.mkdir(parents=True, exist_ok=True)
    (prepared[-1].folder / "summary.txt").write_text(text, encoding="utf-8")


def before_and_after(prepared: list[Resolved]) -> list[tuple[str, str, str]]:
    """Return `profile.samples` test inputs, each with the base model's and the trained model's reply.

    Empty unless the last run's profile asks for it and both runs left predictions.
    """
    from dual_lora.evaluation.prediction_lines import read_values

    last = prepared[-1]
    count = last.config.profile.samples
    base = next((item for item in prepared if item.config.method.trains == "nothing"), None)
    if not count or base is None or base is last or last.items is None:
        return []
    before = read_values(base.folder / "predictions" / "base.test.generate.jsonl")
    after = read_values(last.folder / "predictions" / "last.test.generate.jsonl")
    if not before or not after:
        return []
    items = last.items.test
    places = range(0, len(items), max(1, len(items) // count))[:count]
    prompts = [last.task.render(items[place], training=False).prompt for place in places]
    return [(prompt, before.get(i, ""), after.get(i, "")) for prompt, i in zip(prompts, places, strict=True)]


def _table(samples: list[tuple[str, str, str]], label: str) -> Any:
    from rich.table import Table

    from dual_lora.report import escape

    table = Table(title="Before and after training, on inputs not trained on", title_justify="left", show_lines=True)
    for heading, ratio in (("input", 2), ("before", 3), (f"after ({escape.terminal(label)})", 3)):
        table.add_column(heading, ratio=ratio, overflow="fold")
    for texts in samples:
        table.add_row(*(escape.terminal(text) for text in texts))
    return table


def _next_command(config: RunConfig) -> str:
    elsewhere = shipped.word_for(config.results)
    words = ["tables", *(["--records", str(Path(config.results) / "records")] if elsewhere else [])]
    if config.profile.name == "demo":
        words = ["-m", "profile=demo", "method=lora,dora,dual_lora", *elsewhere]
    return shipped.typed(shipped.command_line(*words))
