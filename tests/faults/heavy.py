"""What a run imports only when it gets there; loaded once in the server that children are forked from."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import accelerate
import hydra
import peft
import torch
import transformers

import dual_lora.callbacks
import dual_lora.cell
import dual_lora.generation
import dual_lora.heads.causal_lm
import dual_lora.heads.classifier
import dual_lora.launch.local
import dual_lora.methods.application
import dual_lora.models.loading
import dual_lora.ranking
import dual_lora.run
import dual_lora.training
from dual_lora import methods, models

torch.set_num_threads(1)
__all__ = ["accelerate", "dual_lora", "hydra", "methods", "models", "peft", "transformers"]
