"""Preferences with TRL on a trained adapter: the reference is the adapter as it was, and the loss starts at ln 2.

python docs/clients/dpo.py ADAPTER FOLDER
"""

import sys

from datasets import Dataset
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer

from dual_lora import DeltaWarmupCallback

adapter, folder = sys.argv[1:3]
model = AutoPeftModelForCausalLM.from_pretrained(adapter, is_trainable=True)
pairs = {"prompt": ["say a", "say b"] * 2, "chosen": [" a", " b"] * 2, "rejected": [" b", " a"] * 2}
trainer = DPOTrainer(
    model=model,
    args=DPOConfig(
        folder, max_steps=2, per_device_train_batch_size=2, logging_steps=1, report_to=[], save_strategy="no",
        use_cpu=True, bf16=False, gradient_checkpointing=False,
    ),
    train_dataset=Dataset.from_dict(pairs),
    processing_class=AutoTokenizer.from_pretrained(model.peft_config["default"].base_model_name_or_path),
    callbacks=[DeltaWarmupCallback(0)],  # the update is trained already
)  # fmt: skip
trainer.train()
print("losses", [entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
