"""Weighted L1 in C++ (csrc/cpu/l1.cpp). The formulas: :mod:`fastgan.reference.l1`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgan.kernels.dispatch import Call
from fastgan.kernels.native._tensor import _C, CPU, scalar, threads


def supports(call: Call) -> str | None:
    return None if call.device == "cpu" else f"the C++ kernels serve the CPU, got {call.device!r}"


def forward(
    tensors: Sequence[Tensor], weights: Sequence[float], sign_bytes: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The weighted sum, and the packed signs of the pairs whose ``sign_bytes`` are not 0.

    tensors: a and b of each pair in turn, dense in one layout.
    """
    return _forward(tensors, weights, sign_bytes, dtype, [None] * len(tensors))


def forward_with_gradients(
    tensors: Sequence[Tensor], weights: Sequence[float], sign_bytes: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor | None, ...]:
    """What :func:`forward` gives and, from the same pass, the sum's gradient for each tensor that requires one."""
    grads = [torch.empty_like(t) if t.requires_grad else None for t in tensors]
    return *_forward(tensors, weights, sign_bytes, dtype, grads), *grads


def _forward(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    sign_bytes: Sequence[int],
    dtype: torch.dtype,
    grads: Sequence[Tensor | None],
) -> tuple[Tensor, Tensor]:
    value, signs = scalar(dtype), torch.empty(sum(sign_bytes), dtype=torch.uint8, device=CPU)
    _C.l1_forward(value, tensors, weights, sign_bytes, signs, grads, threads())
    return value, signs


def backward(
    grad: Tensor,
    signs: Tensor,
    numels: Sequence[int],
    weights: Sequence[float],
    sign_bytes: Sequence[int],
    dtypes: Sequence[torch.dtype | None],
) -> list[Tensor]:
    """The flat gradients of those tensors whose ``dtypes`` are not None."""
    sizes = [n for n in numels for _ in "ab"]
    grads = [d if d is None else torch.empty(n, dtype=d, device=CPU) for n, d in zip(sizes, dtypes, strict=True)]
    _C.l1_backward(grad.item(), signs, numels, weights, sign_bytes, grads, threads())
    return [grad for grad in grads if grad is not None]


def directional(
    directions: Sequence[Tensor | None],
    signs: Tensor,
    numels: Sequence[int],
    weights: Sequence[float],
    sign_bytes: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """The derivative of the weighted sum along ``directions``, dense in the pairs' layouts; None is zero."""
    value = scalar(dtype)
    _C.l1_directional(value, directions, signs, numels, weights, sign_bytes, threads())
    return value
