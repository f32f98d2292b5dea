"""What a run imports only when it gets there; loaded once in the server that children are forked from."""

# ruff: noqa: F401  # they are imported for nothing but that

import gc
import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import accelerate
import deepspeed
import hydra
import peft
import scipy.stats
import sklearn.metrics
import torch
import transformers
import transformers.conversion_mapping
import transformers.models.llama.modeling_llama
import transformers.models.roberta.modeling_roberta

import dual_lora.evaluation.causal_lm
import dual_lora.evaluation.classifier
import dual_lora.evaluation.generation
import dual_lora.evaluation.ranking
import dual_lora.launch.local
import dual_lora.methods.application
import dual_lora.methods.merging
import dual_lora.methods.optimizers
import dual_lora.methods.weights
import dual_lora.metrics.glue
import dual_lora.models.loading
import dual_lora.runs.lifecycle
import dual_lora.runs.work
import dual_lora.tasks.commonsense
import dual_lora.tasks.glue
import dual_lora.training.callbacks
import dual_lora.training.trainer
from dual_lora import methods, models
from tests import computed_once

torch.set_num_threads(1)
computed_once.keep()
gc.collect()
gc.freeze()  # every child would otherwise walk through all of these modules whenever it collects garbage
