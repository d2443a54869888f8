"""The penalty on gradient norms in C++ (csrc/cpu/gradient_penalty.cpp).

The formulas: :mod:`fastgan.reference.gradient_penalty`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.kernels.dispatch import Call
from fastgan.kernels.native._tensor import _C, CPU, scalar, threads
from fastgan.reference._dtype import statistics_dtype


def supports(call: Call) -> str | None:
    return None if call.device == "cpu" else f"the C++ kernels serve the CPU, got {call.device!r}"


def forward(grads: Tensor, target: float, one_sided: bool) -> tuple[Tensor, Tensor]:
    """The penalty, and the norms [N]. grads: [N, ...], dense."""
    return _forward(grads, target, one_sided, 1.0, None)


def forward_with_gradient(
    grads: Tensor, target: float, one_sided: bool, weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``weight`` times the penalty, the norms and, while a sample is in cache, the former's gradient for ``grads``."""
    gradient = torch.empty_like(grads)
    return *_forward(grads, target, one_sided, weight, gradient), gradient


def _forward(
    grads: Tensor, target: float, one_sided: bool, weight: float, gradient: Tensor | None
) -> tuple[Tensor, Tensor]:
    dtype = statistics_dtype(grads.dtype)
    penalty, norms = scalar(dtype), torch.empty(grads.size(0), dtype=dtype, device=CPU)
    _C.gradient_penalty_forward(grads, penalty, norms, weight, gradient, target, one_sided, threads())
    return penalty, norms


def backward(grad: Tensor, grads: Tensor, norms: Tensor, target: float, one_sided: bool) -> Tensor:
    """The gradient for ``grads``."""
    out = torch.empty_like(grads)
    _C.gradient_penalty_backward(grad.item(), grads, norms, out, target, one_sided, threads())
    return out


def double_backward(
    u: Tensor, grad: Tensor, grads: Tensor, norms: Tensor, target: float, one_sided: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of the backward pass for ``grad`` and ``grads``, given its cotangent u, dense as ``grads`` is."""
    grad_grad, out = scalar(grad.dtype), torch.empty_like(grads)
    _C.gradient_penalty_double_backward(u, grad.item(), grads, norms, grad_grad, out, target, one_sided, threads())
    return grad_grad, out
