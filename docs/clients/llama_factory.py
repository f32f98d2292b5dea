"""LLaMA-Factory has no door for other adapters, but trains the one that it is given: a new one of Dual LoRA.

python docs/clients/llama_factory.py SETTINGS.yaml

SETTINGS.yaml is as for `llamafactory-cli train`, without `finetuning_type` and LoRA's settings.
"""

import sys
from pathlib import Path

import yaml
from llamafactory.train.tuner import run_exp
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from dual_lora import DeltaWarmupCallback, DualLoraConfig

settings = yaml.safe_load(Path(sys.argv[1]).read_text())
start = f"{settings['output_dir']}-start"
base = AutoModelForCausalLM.from_pretrained(settings["model_name_or_path"], dtype="auto")
get_peft_model(base, DualLoraConfig(r_magnitude=4, r_direction=4, alpha=8, task_type="CAUSAL_LM")).save_pretrained(
    start
)
run_exp(
    {**settings, "finetuning_type": "lora", "adapter_name_or_path": start},  # "lora": any adapter of PEFT
    callbacks=[DeltaWarmupCallback()],
)
