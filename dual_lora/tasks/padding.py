"""Few shapes: batches are padded to lengths of a small ladder, so that a graph of a step serves many batches.

    rounded_length(83)  # 88:  multiples of 8 up to 128, then 8 lengths for each doubling: at most an eighth is added
    rounded_count(300)  # 320: multiples of 16 up to 128, then 4 counts for each doubling: at most a quarter is added
    loss_places(300, 400)  # 400: all places of a batch where that is three quarters of them or more

All are functions of the batch alone. On a GPU they are used whether or not steps are graphs, so that the two compute
the same bits.
"""

from __future__ import annotations


def rounded_length(tokens: int) -> int:
    """Return the length that a batch whose longest row has `tokens` tokens is padded to."""
    return _rounded(tokens, least=8, steps=8)


def rounded_count(number: int) -> int:
    """Return how many rows, or places in them, are computed where `number` are wanted."""
    return _rounded(max(number, 1), least=16, steps=4)


def loss_places(labels: int, places: int) -> int:
    """Return at how many of a batch's `places` (rows × length) logits are computed, `labels` of which have a label.

    Where the loss is on whole texts that is all of them: two counts for each length would be twice the graphs.
    """
    rounded = rounded_count(labels)
    return places if 4 * rounded >= 3 * places else rounded


def _rounded(number: int, least: int, steps: int) -> int:
    """Round up to one of `steps` evenly spaced numbers between two powers of two, and to a multiple of `least`."""
    octave = 1 << (number - 1).bit_length() if number > 1 else 1  # the power of two that is not below `number`
    step = max(least, octave // 2 // steps)
    return -(-number // step) * step
