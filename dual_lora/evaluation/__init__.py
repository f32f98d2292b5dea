"""Scoring a model by what it writes, ranks and classifies.

`generation` gives replies, `ranking` the likelihoods of offered answers, `classification` logits, `validation` losses.
`evaluator` runs them over a task's items and keeps every prediction, `gate` looks for faults before hours of it,
`epoch_scores` follows a classifier's epochs, `rescoring` scores kept predictions again, `samples` shows some.
"""
