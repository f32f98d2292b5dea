"""What models get besides their tokens on a GPU, so that they ask it nothing."""

from __future__ import annotations

import torch
from transformers import AutoModelForSequenceClassification

from dual_lora.config.compose import compose
from dual_lora.models import attention
from dual_lora.models.architecture import transformers_config


def test_deberta_reads_its_distances_from_a_table_and_computes_the_same() -> None:
    [cell] = compose(["model=tiny_deberta", "task=glue/rte", "data.source=sample", "method=lora"])
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(transformers_config(cell.model)).eval()
    encoder = model.deberta.encoder
    seen: list[torch.Tensor | None] = []
    encoder.layer[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["relative_pos"]), with_kwargs=True
    )
    for length in (8, 40):
        tokens = torch.randint(5, 100, (2, length))
        mask = torch.ones_like(tokens)
        mask[1, length // 2 :] = 0
        expected = model(input_ids=tokens, attention_mask=mask).logits
        with attention.with_distances(model):
            found = model(input_ids=tokens, attention_mask=mask).logits
        assert torch.equal(found, expected)
        made, given = seen[-2:]
        assert made is not None
        assert given is not None
        assert torch.equal(made, given)
        assert given.untyped_storage().nbytes() == 8 * model.config.max_position_embeddings**2  # a part of the table
    assert not encoder._forward_pre_hooks
