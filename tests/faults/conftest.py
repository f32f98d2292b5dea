from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded: the same sums in every process

import torch

torch.set_num_threads(1)
