"""What a command prints at the end: samples, the comparison, where the records are, what to try next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from dual_lora import shipped
from dual_lora.config import RunConfig


def show(prepared: list[Any], records: list[dict[str, Any] | None]) -> None:
    """Print samples, the comparison, where the records are and what to try next."""
    from dual_lora.evaluation.samples import side_by_side
    from dual_lora.records import file_of
    from dual_lora.report import terminal
    from dual_lora.report.screen import comparison

    made = [record for record in records if record is not None]
    if not made:
        return
    console = terminal.console()
    with console.capture() as captured:
        samples = side_by_side(prepared)
        if samples:
            console.print(_before_and_after(samples, prepared[-1].config.method.label))
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


def _before_and_after(samples: list[tuple[str, str, str]], label: str) -> Any:
    from rich.table import Table

    from dual_lora.report import escape

    table = Table(title="Before and after training, on inputs not trained on", title_justify="left", show_lines=True)
    for heading, ratio in (("input", 2), ("before", 3), (f"after ({escape.terminal(label)})", 3)):
        table.add_column(heading, ratio=ratio, overflow="fold")
    for texts in samples:
        table.add_row(*(escape.terminal(text) for text in texts))
    return table


def _next_command(config: RunConfig) -> str:
    if config.profile.name == "demo":
        return f"{shipped.here()} -m profile=demo method=lora,dora,dual_lora"
    if config.results == "results":
        return f"{shipped.here()} tables"
    return f"{shipped.here()} tables --records {shlex.quote(str(Path(config.results) / 'records'))}"
