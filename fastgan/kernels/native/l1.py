"""Weighted L1 in C++ (csrc/cpu/l1.cpp). The formulas: :mod:`fastgan.reference.l1`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgan.kernels.dispatch import Call
from fastgan.kernels.native._tensor import _C, DTYPES, address, threads


def supports(call: Call) -> str | None:
    return None if call.device == "cpu" else f"the C++ kernels serve the CPU, got {call.device!r}"


def forward(
    tensors: Sequence[Tensor], weights: Sequence[float], sign_bytes: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The weighted sum, and the packed signs of the pairs whose ``sign_bytes`` are not 0.

    tensors: a and b of each pair in turn, dense in one layout.
    """
    signs = torch.empty(sum(sign_bytes), dtype=torch.uint8)
    pairs, at = [], signs.data_ptr()
    for k, (weight, size) in enumerate(zip(weights, sign_bytes, strict=True)):
        a, b = tensors[2 * k], tensors[2 * k + 1]
        n = a.numel()
        pairs.append((a.data_ptr(), b.data_ptr(), at if size else 0, n, weight / n, DTYPES[a.dtype], DTYPES[b.dtype]))
        at += size
    return torch.scalar_tensor(_C.l1_forward(pairs, threads()), dtype=dtype), signs


def backward(
    grad: Tensor,
    signs: Tensor,
    numels: Sequence[int],
    weights: Sequence[float],
    sign_bytes: Sequence[int],
    dtypes: Sequence[torch.dtype | None],
) -> list[Tensor]:
    """The flat gradients of those tensors whose ``dtypes`` are not None."""
    grads: list[Tensor] = []
    pairs, at = [], signs.data_ptr()
    for k, (n, weight, size) in enumerate(zip(numels, weights, sign_bytes, strict=True)):
        if size:
            sides = [None if dtype is None else torch.empty(n, dtype=dtype) for dtype in dtypes[2 * k : 2 * k + 2]]
            grads += [side for side in sides if side is not None]
            pairs.append(_pair(sides, at, n, weight))
        at += size
    _C.l1_backward(float(grad), pairs, threads())
    return grads


def directional(
    directions: Sequence[Tensor | None],
    signs: Tensor,
    numels: Sequence[int],
    weights: Sequence[float],
    sign_bytes: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """The derivative of the weighted sum along ``directions``, dense in the pairs' layouts; None is zero."""
    pairs, at = [], signs.data_ptr()
    for k, (n, weight, size) in enumerate(zip(numels, weights, sign_bytes, strict=True)):
        if size:
            pairs.append(_pair(directions[2 * k : 2 * k + 2], at, n, weight))
        at += size
    return torch.scalar_tensor(_C.l1_directional(pairs, threads()), dtype=dtype)


def _pair(
    sides: Sequence[Tensor | None], signs: int, n: int, weight: float
) -> tuple[int, int, int, int, float, int, int]:
    a, b = sides
    codes = [0 if side is None else DTYPES[side.dtype] for side in sides]
    return address(a), address(b), signs, n, weight / n, codes[0], codes[1]
