"""Training a run: `transformers.Trainer` (`trainer`), what watches it (`callbacks`, `stopping`), and what it follows.

`arguments` says the recipe in the Trainer's words, `sampling` derives the order of examples, `loss` is what is
minimised, `checkpoints` seals what is written so that a damaged one is noticed. `graphs` records steps as CUDA graphs;
`sharded` is for a model of which every process holds a part.
"""
