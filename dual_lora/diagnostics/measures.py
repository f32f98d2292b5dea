"""Numbers about update matrices. All take float32 matrices (out, in) and return plain Python numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def singular_values(matrix: Tensor) -> Tensor:
    """Return the singular values, largest first, in float32."""
    return torch.linalg.svdvals(matrix.float())


def numerical_rank(values: Tensor, shape: tuple[int, int]) -> int:
    """Return how many singular values exceed rounding: σ_max · max(shape) · ε of float32 (numpy's and torch's rule)."""
    if values.numel() == 0 or not values[0] > 0:
        return 0
    return int((values > values[0] * max(shape) * torch.finfo(torch.float32).eps).sum())


def stable_rank(values: Tensor) -> float:
    """Return ‖M‖²_F / ‖M‖²₂: the rank if all directions are equal, near 1 if one dominates; 0 for a zero matrix."""
    squares = values.double() ** 2
    return float(squares.sum() / squares[0]) if values.numel() and squares[0] > 0 else 0.0


def agreement(update: Tensor, reference: Tensor, directions: int = 16) -> dict[str, float]:
    """Compare an update with the one of full fine-tuning.

    Args:
        update, reference: (out, in) each, on one device.
        directions: how many leading singular directions the subspace overlap is of.

    Returns:
        `cosine` of the two as vectors; `sign_agreement`, the share of entries with the same sign, weighted by the
        reference's magnitude (0.5 for unrelated updates); `subspace_overlap` of the leading left and right singular
        directions, ‖U₁ᵀU₂‖²_F/k averaged over both sides (k/dimension for unrelated ones).
    """
    update, reference = update.float(), reference.float()
    weight = reference.abs()
    same = (torch.sign(update) == torch.sign(reference)).float()
    count = min(directions, *update.shape)
    left, _, right = torch.linalg.svd(update, full_matrices=False)
    left_reference, _, right_reference = torch.linalg.svd(reference, full_matrices=False)
    overlap = [
        float((left[:, :count].T @ left_reference[:, :count]).square().sum()) / count,
        float((right[:count] @ right_reference[:count].T).square().sum()) / count,
    ]
    norms = update.norm() * reference.norm()
    return {
        "cosine": float((update * reference).sum() / norms) if norms > 0 else 0.0,
        "sign_agreement": float((same * weight).sum() / weight.sum()) if weight.any() else 0.0,
        "subspace_overlap": sum(overlap) / 2,
    }
