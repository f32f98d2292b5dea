"""Fine-tune a causal language model with Dual LoRA on lines of text, and load what was saved.

python dual_lora_finetuning.py --model HuggingFaceTB/SmolLM2-135M --texts FILE --out FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

from dual_lora import DeltaWarmupCallback, DualLoraConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", type=Path, required=True, help="one text a line")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=4e-4, help="about twice LoRA's")
    options = parser.parse_args()

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    examples = [tokenizer(text, truncation=True, max_length=512) for text in options.texts.read_text().splitlines()]
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(options.model),
        DualLoraConfig(r_magnitude=16, r_direction=16, alpha=32, task_type="CAUSAL_LM"),
    )
    model.print_trainable_parameters()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            str(options.out / "run"),
            max_steps=options.steps,
            learning_rate=options.learning_rate,
            per_device_train_batch_size=4,
            save_strategy="no",
            report_to=[],
        ),
        train_dataset=examples,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        callbacks=[DeltaWarmupCallback()],  # ΔW starts at 0
    )
    trainer.train()
    model.save_pretrained(options.out / "adapter")

    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(options.model), options.out / "adapter")
    merged = loaded.merge_and_unload()  # a plain model again
    merged.save_pretrained(options.out / "merged")


if __name__ == "__main__":
    main()
