"""Training a run: `transformers.Trainer` (`trainer`), what watches it (`callbacks`, `stopping`), and what it follows.

`schedule` derives steps and batches from the recipe, `sampling` the order of examples, `checkpoints` seals what is
written so that a damaged one is noticed, `deepspeed_config` generates DeepSpeed's configuration.
"""
