"""Interpolation in C++ (csrc/cpu/interpolate.cpp). The formulas: :mod:`fastgan.reference.interpolate`."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.kernels.dispatch import Call
from fastgan.kernels.native._tensor import _C, CPU, threads
from fastgan.reference._dtype import statistics_dtype


def supports(call: Call) -> str | None:
    return None if call.device == "cpu" else f"the C++ kernels serve the CPU, got {call.device!r}"


def forward(real: Tensor, fake: Tensor, alpha: Tensor | None, seed: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The points, and the alpha [N] that was drawn from ``seed`` (None if alpha is given).

    real, fake: [N, ...], dense in one layout.
    """
    out, drawn, number = torch.empty_like(real), None, 0
    if seed is not None:
        drawn = torch.empty(real.size(0), dtype=statistics_dtype(real.dtype), device=CPU)
        number = int(seed.item())
    _C.interpolate_forward(real, fake, drawn if alpha is None else alpha, seed is not None, number, out, threads())
    return out, drawn


def backward(
    grad: Tensor,
    real: Tensor | None,
    fake: Tensor | None,
    alpha: Tensor,
    need_real: bool,
    need_fake: bool,
    need_alpha: bool,
) -> tuple[Tensor | None, ...]:
    """The gradients of real, fake and alpha; None for one that is not needed."""
    grad_real = torch.empty_like(grad) if need_real else None
    grad_fake = torch.empty_like(grad) if need_fake else None
    grad_alpha = torch.empty_like(alpha) if need_alpha else None
    _C.interpolate_backward(grad, real, fake, alpha, grad_real, grad_fake, grad_alpha, threads())
    return grad_real, grad_fake, grad_alpha
