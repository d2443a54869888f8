"""What the launchers of both devices share: results are allocated, and sides become what the bindings take.

``run`` is a device's launcher: it takes samples, weights, p, the results and cotangent of each side (gradient, weights'
gradient, cotangent), cost, scale and the cost's cotangent. :func:`side` has its other end in
csrc/bindings/wasserstein_problem.h.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastgan.kernels.native._tensor import address, empty


def forward(
    run: Callable[..., None],
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    p: float,
    need: int,
    samples: torch.dtype,
    together: int = 1,
    weights: tuple[torch.dtype, torch.dtype] = (torch.float64, torch.float64),
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(cost, scale, the needed unit gradients).

    Those of the samples are of dtype ``samples``, so many an element; those of each side's weights of ``weights``.
    """
    device = x.device
    cost = empty(x.shape[:-1], torch.float64, device)
    scale = torch.empty_like(cost)
    ux = empty((*x.shape[:-1], -(-x.size(-1) // together)), samples, device) if need & 1 else None
    uy = empty((*y.shape[:-1], -(-y.size(-1) // together)), samples, device) if need & 2 else None
    ua = empty(x.shape, weights[0], device) if need & 4 else None
    ub = empty(y.shape, weights[1], device) if need & 8 else None
    run(x, y, x_weights, y_weights, p, (ux, ua, None), (uy, ub, None), cost, scale, None)
    return cost, scale, [unit for unit in (ux, uy, ua, ub) if unit is not None]


def second(
    run: Callable[..., None],
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
    hx, hy = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, y))
    vx, vy = (None if v is None else v.to(x.dtype).contiguous() for v in (vx, vy))
    grad = grad.double().contiguous()
    run(x, y, x_weights, y_weights, p, (hx, None, vx), (hy, None, vy), None, scale.contiguous(), grad)
    return hx, hy


def rows_of(t: Tensor) -> Tensor:
    """t [..., n] as [rows, n] with neighbouring elements next to each other; rows may overlap (stride 0)."""
    if t.dim() != 2:
        t = t.reshape(t.shape[:-1].numel(), t.size(-1))
    return t if t.stride(1) == 1 or t.size(1) == 1 else t.contiguous()


def side(
    values: Tensor, weights: Tensor | None, grad: Tensor | None, grad_weights: Tensor | None, cotangent: Tensor | None
) -> tuple[int, ...]:
    """What the bindings call a side."""
    gradient, is_signs = address(grad), grad is not None and grad.dtype == torch.int32
    return (
        values.data_ptr(), values.stride(0), address(weights), 0 if weights is None else weights.stride(0),
        values.size(1), 0 if is_signs else gradient, gradient if is_signs else 0,
        0 if weights is None else address(grad_weights), address(cotangent),
        weights is not None and weights.dtype == torch.float32,
    )  # fmt: skip
