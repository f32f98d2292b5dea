"""The card of a run's adapter says which run it is of; and the adapter of a split model is whole."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel, get_peft_model

from dual_lora import methods
from dual_lora.runs import adapter_card
from tests import committed
from tests.unit.tuner.tiny_adapted_model import logits, make_base, make_config, train_a_little


def test_the_card_names_run_score_and_recipe_and_keeps_what_is_there(tmp_path: Path) -> None:
    record = next(
        r for r in committed.values() if r["status"] == "finished" and r["identity"]["method"]["name"] == "dual_lora"
    )
    get_peft_model(make_base("llama"), make_config("llama")).save_pretrained(tmp_path)
    adapter_card.write(tmp_path, record)
    card = (tmp_path / "README.md").read_text()
    identity, headline = record["identity"], record["scores"]["headline"]
    for word in (
        identity["run_id"],
        identity["recipe"]["name"],
        str(headline["value"]),
        "import dual_lora",
        "r_magnitude",
    ):
        assert word in card
    (tmp_path / "README.md").write_text(card + "\nMy own words.\n")
    adapter_card.write(tmp_path, record)
    adapter_card.write(tmp_path, record)
    assert (tmp_path / "README.md").read_text().count("My own words.") == 1
    assert (tmp_path / "README.md").read_text().count(identity["run_id"]) == card.count(identity["run_id"])


def test_an_adapter_saved_from_gathered_weights_has_its_start(tmp_path: Path) -> None:
    """As a run saves it where weights are split: buffers, what was trained, and what never is."""
    model = get_peft_model(make_base("llama"), make_config("llama", subtract_start=True)).train()
    train_a_little(model)
    whole = {**dict(model.named_buffers()), **methods.frozen_adapter_state(model), **methods.trainable_state(model)}
    model.save_pretrained(tmp_path, state_dict=whole)
    torch.manual_seed(9)
    loaded = PeftModel.from_pretrained(make_base("llama"), tmp_path).eval()
    assert torch.equal(logits(loaded), logits(model.eval()))
