"""Supervised fine-tuning with TRL: the adapter goes in as `peft_config`, the warm-up as a callback.

python docs/clients/sft.py MODEL FOLDER
"""

import sys

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from dual_lora import DeltaWarmupCallback, DualLoraConfig

model, folder = sys.argv[1:3]
texts = ["a short text", "another short text", "a third one", "and the last text of these"] * 2
trainer = SFTTrainer(
    model=model,
    args=SFTConfig(
        folder, max_steps=2, per_device_train_batch_size=2, learning_rate=4e-4, report_to=[], save_strategy="no",
        use_cpu=True, bf16=False,
    ),
    train_dataset=Dataset.from_dict({"text": texts}),
    peft_config=DualLoraConfig(r_magnitude=4, r_direction=4, alpha=8, task_type="CAUSAL_LM"),
    callbacks=[DeltaWarmupCallback()],
)  # fmt: skip
trainer.train()
trainer.save_model(f"{folder}/adapter")
