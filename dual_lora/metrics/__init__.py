"""Scores of the benchmarks, over the field's own scorers. Pure functions on lists; no network, no torch."""
