"""Forward and backward of one layer in row tiles of plain PyTorch, on any device.

Backward recomputes M = BA and P = DC tile by tile, so nothing of size out x in is kept, and a tile fits in a CPU's
cache: the elementwise passes that dominate a naive version on memory traffic cost little. Forward, backward and
`delta_weight` cut the rows in the same places, so P, and with it every sign, is the same number in all three.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dual_lora.kernels.spec import Factors, Gradients, Update, UpdateSpec, limit

# Elements per tile. CPU: 2 MiB of float32, the L2 cache of one or two server cores. CUDA: 64 MiB of float32, so large
# that kernel launches do not matter.
TILE_ELEMENTS = {"cpu": 2**19, "cuda": 2**24}
WIDE = (torch.float32, torch.float64)


def delta_weight(update: Update) -> Tensor:
    """The update as (out, in) float32."""
    update = _float32(update)
    a, b, _, _ = update.factors
    out = torch.empty(b.shape[0], a.shape[1], dtype=a.dtype, device=a.device)
    for rows in row_tiles(out.shape[0], out.shape[1], out.device):
        out[rows] = _effective_tile(None, update, rows, a.dtype)
    return out


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, update: Update, base: Tensor | None = None
) -> Tensor:
    """``x @ (W0 + dW)^T + bias`` for x of shape (tokens, in) and `weight` (out, in) of any strides.

    Without `weight`, the update's part alone, added to `base` (tokens, out).
    """
    update = _float32(update)
    y = x.new_empty(x.shape[0], update.factors[1].shape[0])
    for rows in row_tiles(y.shape[1], x.shape[1], x.device):
        tile = _effective_tile(weight, update, rows, x.dtype)
        if base is not None:
            torch.addmm(base[:, rows], x, tile.t(), out=y[:, rows])
        elif bias is not None:
            torch.addmm(bias[rows].to(x.dtype), x, tile.t(), out=y[:, rows])
        else:
            torch.mm(x, tile.t(), out=y[:, rows])
    return y


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    update: Update,
    *,
    needs_input_grad: bool = True,
    needs_factor_grad: bool = True,
) -> Gradients:
    """Gradients of x and of A, B, C, D from `grad` (tokens, out) and `x` (tokens, in), both in x's dtype.

    The factor gradients are float32 (float64 for float64 factors) and zero-sized when `needs_factor_grad` is false.
    """
    update = _float32(update)
    a, b, c, d = update.factors
    # Several tiles add up in float32: rounding a bf16 sum once per tile would be visible.
    exact = x.dtype if x.dtype in WIDE else torch.float32
    grad_x = torch.zeros(x.shape, dtype=exact, device=x.device) if needs_input_grad else None
    sums = [torch.zeros_like(f) if needs_factor_grad else f.new_empty(0) for f in update.factors]
    for rows in row_tiles(grad.shape[1], x.shape[1], x.device):
        grad_rows = grad[:, rows]
        p = d[rows] @ c
        window = p.abs().le_(1) if update.spec.ste == "hard_tanh" else None
        u, v = _activate(b[rows] @ a, p, update.spec)
        if grad_x is not None:
            tile = _add_base(u, v, weight, update, rows, x.dtype)
            if exact == x.dtype:
                grad_x.addmm_(grad_rows, tile)
            else:
                grad_x.add_(grad_rows @ tile)
        if needs_factor_grad:
            g = (grad_rows.t() @ x).to(a.dtype)
            _reduce_tile(g, u, v, window, update, rows, sums)
    for total in sums:
        total.mul_(update.scaling)
    return (None if grad_x is None else grad_x.to(x.dtype), sums[0], sums[1], sums[2], sums[3])


def row_tiles(rows: int, columns: int, device: torch.device) -> Iterator[slice]:
    """Slices of output rows that every pass over one weight uses, in order."""
    elements = TILE_ELEMENTS.get(device.type, TILE_ELEMENTS["cpu"])
    step = max(1, elements // max(columns, 1))
    for begin in range(0, rows, step):
        yield slice(begin, min(begin + step, rows))


def _reduce_tile(
    g: Tensor, u: Tensor, v: Tensor, window: Tensor | None, update: Update, rows: slice, sums: list[Tensor]
) -> None:
    """Add one row tile of G = dL/dW to the four factor gradients, without the factor s; consumes `g`."""
    (a, b, c, d), _, scaling, spec = update[:4]
    gm = g * v
    if spec.magnitude_activation == "relu":
        gm.mul_(u.sign())
    torch.mm(gm, a.t(), out=sums[1][rows])
    sums[0].addmm_(b[rows].t(), gm)
    q = g.mul_(u)
    if spec.direction_activation == "sign" and spec.ste == "clipped_gradient" and scaling:
        largest = limit(scaling, update.loss_scale)
        q.clamp_(-largest, largest)
    if window is not None:
        q.mul_(window)
    torch.mm(q, c.t(), out=sums[3][rows])
    sums[2].addmm_(d[rows].t(), q)


def _effective_tile(base: Tensor | None, update: Update, rows: slice, dtype: torch.dtype) -> Tensor:
    a, b, c, d = update.factors
    u, v = _activate(b[rows] @ a, d[rows] @ c, update.spec)
    return _add_base(u, v, base, update, rows, dtype)


def _add_base(u: Tensor, v: Tensor, base: Tensor | None, update: Update, rows: slice, dtype: torch.dtype) -> Tensor:
    """One row tile of W0 + s (U V - U0 V0), rounded once."""
    _, start, scaling, spec = update[:4]
    if start is None and base is not None:
        return torch.addcmul(base[rows].to(u.dtype), u, v, value=scaling).to(dtype)
    delta = (u * v).mul_(scaling)
    if start is not None:
        a, b, c, d = start
        u, v = _activate(b[rows] @ a, d[rows] @ c, spec)
        delta.sub_(u.mul_(v).mul_(scaling))
    if base is not None:
        delta.add_(base[rows])
    return delta.to(dtype)


def _activate(m: Tensor, p: Tensor, spec: UpdateSpec) -> tuple[Tensor, Tensor]:
    """(U(m), V(p)), in place. In-place arithmetic runs at the speed of the cache, where `torch.where` does not."""
    if spec.magnitude_activation == "relu":
        m.relu_()
    if spec.direction_activation == "sign":
        p.gt_(0).mul_(2).sub_(1)
    return m, p


def _float32(update: Update) -> Update:
    """The update with its factors in float32, or float64 where they are; itself if they are."""
    if all(f.dtype in WIDE for f in (*update.factors, *(update.start or ()))):
        return update
    start = None if update.start is None else _widened(update.start)
    return update._replace(factors=_widened(update.factors), start=start)


def _widened(factors: Factors) -> Factors:
    a, b, c, d = (f if f.dtype in WIDE else f.float() for f in factors)
    return a, b, c, d
