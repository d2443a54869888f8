"""Exact 1-D Wasserstein on the CPU: the launchers of csrc/cpu/wasserstein.cpp; CUDA calls go on to _wasserstein_cuda.

Contract of every backend: :func:`forward` gives the cost of d/D and the scale D [...] in float64, and for every
input whose bit is set in ``need`` its unit gradient, else a tensor [..., 0]. For samples that is n times the gradient
of the cost for d/D, in the samples' dtype; for weights the gradient of the cost, in float64. :func:`second` gives what
the backward pass sends on to the samples. Formulas: :mod:`fastgan.reference.wasserstein`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.kernels.dispatch import Call
from fastgan.kernels.native import _wasserstein_cuda
from fastgan.kernels.native._tensor import _C, DTYPES, address, threads


def supports(call: Call) -> str | None:
    """None if the call is served (on the CPU nearly every one is), else the reason why not."""
    if call.device == "cuda":
        return _wasserstein_cuda.supports(call)
    if call.device != "cpu":
        return f"the native kernels run on the CPU and on CUDA, not on {call.device!r}"
    if max(call["n"], call["m"]) >= 1 << 31:
        return "indices are 32-bit: a row must have fewer than 2^31 samples"
    return None


def forward(
    x: Tensor, y: Tensor, x_weights: Tensor | None, y_weights: Tensor | None, p: float, need: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(cost, scale, unit gradients of x, y, x_weights, y_weights)."""
    if x.is_cuda:
        return _wasserstein_cuda.forward(x, y, x_weights, y_weights, p, need)
    rows = x.shape[:-1]
    cost, scale = (torch.empty(rows, dtype=torch.float64) for _ in range(2))
    ux, uy, ua, ub = (
        torch.empty((*rows, t.size(-1) if need >> i & 1 else 0), dtype=x.dtype if i < 2 else torch.float64)
        for i, t in enumerate((x, y, x, y))
    )
    _run(x, y, x_weights, y_weights, p, (ux, ua, None), (uy, ub, None), cost, scale, None)
    return cost, scale, ux, uy, ua, ub


def second(
    vx: Tensor | None,
    vy: Tensor | None,
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    scale: Tensor,
    p: float,
) -> tuple[Tensor, Tensor]:
    """Gradients for x and y of <vx, gradient of x> + <vy, gradient of y>, where grad is the cost's cotangent."""
    if x.is_cuda:
        return _wasserstein_cuda.second(vx, vy, grad, x, y, x_weights, y_weights, scale, p)
    hx, hy = torch.empty(x.shape, dtype=x.dtype), torch.empty(y.shape, dtype=y.dtype)
    vx = None if vx is None else vx.to(x.dtype).contiguous()
    vy = None if vy is None else vy.to(y.dtype).contiguous()
    _run(x, y, x_weights, y_weights, p, (hx, None, vx), (hy, None, vy), grad, scale.contiguous(), grad.contiguous())
    return hx, hy


def _run(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    p: float,
    x_results: tuple[Tensor, Tensor | None, Tensor | None],
    y_results: tuple[Tensor, Tensor | None, Tensor | None],
    cost: Tensor,
    scale: Tensor,
    grad: Tensor | None,
) -> None:
    # The rows must live until the kernel has run: they may be copies.
    x, y = _rows(x), _rows(y)
    a = None if x_weights is None else _rows(x_weights.double())
    b = None if y_weights is None else _rows(y_weights.double())
    _C.wasserstein(
        _side(x, a, *x_results), _side(y, b, *y_results), x.size(0), DTYPES[x.dtype], p,
        cost.data_ptr(), scale.data_ptr(), address(grad), threads(),
    )  # fmt: skip


def _rows(t: Tensor) -> Tensor:
    """t [..., n] as [rows, n] with neighbouring elements next to each other; rows may overlap (stride 0)."""
    if t.dim() != 2:
        t = t.reshape(t.shape[:-1].numel(), t.size(-1))
    return t if t.stride(1) == 1 or t.size(1) == 1 else t.contiguous()


def _side(
    values: Tensor, weights: Tensor | None, grad: Tensor, grad_weights: Tensor | None, cotangent: Tensor | None
) -> tuple[int, ...]:
    """What the binding calls a side; a result without elements is not wanted."""
    return (
        values.data_ptr(), values.stride(0), address(weights), 0 if weights is None else weights.stride(0),
        values.size(1), grad.data_ptr() if grad.size(-1) else 0,
        0 if grad_weights is None or grad_weights.size(-1) == 0 else grad_weights.data_ptr(), address(cotangent),
    )  # fmt: skip
