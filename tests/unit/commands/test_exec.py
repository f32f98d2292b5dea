"""`exec`: a program and its arguments, and the card that names it. test_registration.py loads an adapter with it."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from peft import get_peft_model
from torch import nn

from dual_lora import DualLoraConfig
from dual_lora.commands import exec as exec_command
from dual_lora.tuner.card import say_how_to_load


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    model = get_peft_model(nn.ModuleDict({"layer": nn.Linear(4, 4)}), DualLoraConfig(target_modules=["layer"]))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("program", ["json.tool", "pygmentize"])
def test_modules_and_console_scripts_run_with_their_own_arguments(program, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["before"])
    with pytest.raises(SystemExit) if program == "json.tool" else nullcontext():
        exec_command.main([program, "--help"])
    assert "usage" in capsys.readouterr().out.lower()
    assert sys.argv[1:] == ["--help"]


def test_the_card_says_how_to_load_and_keeps_what_is_there(adapter):
    card = adapter / "README.md"
    text = card.read_text()
    assert text.startswith("---\n"), "PEFT's front matter stays in front"
    assert "import dual_lora" in text
    assert text.index("import dual_lora") < text.index("# Model Card")
    card.write_text(text + "\nMy own words.\n")
    say_how_to_load(adapter, None)
    assert card.read_text() == text + "\nMy own words.\n"
