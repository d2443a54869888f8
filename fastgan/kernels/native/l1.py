"""Weighted L1 in C++ (csrc/cpu/l1.cpp). The formulas: :mod:`fastgan.reference.l1`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgan.kernels.dispatch import Call
from fastgan.kernels.native._tensor import _C, CPU, DTYPES, address, scalar, threads


def supports(call: Call) -> str | None:
    return None if call.device == "cpu" else f"the C++ kernels serve the CPU, got {call.device!r}"


def forward(
    tensors: Sequence[Tensor], weights: Sequence[float], sign_bytes: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The weighted sum, and the packed signs of the pairs whose ``sign_bytes`` are not 0.

    tensors: a and b of each pair in turn, dense in one layout.
    """
    value, signs, *_ = forward_with_gradients(tensors, weights, sign_bytes, dtype, [False] * len(tensors))
    return value, signs


def forward_with_gradients(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    sign_bytes: Sequence[int],
    dtype: torch.dtype,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    """What :func:`forward` gives and, from the same pass, the sum's gradients for those tensors that are wanted."""
    signs = torch.empty(sum(sign_bytes), dtype=torch.uint8, device=CPU)
    grads = [torch.empty_like(t) if want else None for t, want in zip(tensors, wanted, strict=True)]
    pairs, at = [], signs.data_ptr()
    for k, (weight, size) in enumerate(zip(weights, sign_bytes, strict=True)):
        a, b = tensors[2 * k], tensors[2 * k + 1]
        n = a.numel()
        pairs.append(
            (
                a.data_ptr(), b.data_ptr(), address(grads[2 * k]), address(grads[2 * k + 1]), at if size else 0,
                n, weight / n, DTYPES[a.dtype], DTYPES[b.dtype],
            )
        )  # fmt: skip
        at += size
    value = scalar(_C.l1_forward(pairs, threads()), dtype)
    return value, signs, *[grad for grad in grads if grad is not None]


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
            sides = [d if d is None else torch.empty(n, dtype=d, device=CPU) for d in dtypes[2 * k : 2 * k + 2]]
            grads += [side for side in sides if side is not None]
            pairs.append(_pair((None, None, *sides), at, n, weight))
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
            pairs.append(_pair((*directions[2 * k : 2 * k + 2], None, None), at, n, weight))
        at += size
    return scalar(_C.l1_directional(pairs, threads()), dtype)


def _pair(tensors: Sequence[Tensor | None], signs: int, n: int, weight: float) -> tuple[int | float, ...]:
    """tensors: a, b and their gradients, those that are there."""
    codes = [max([DTYPES[t.dtype] for t in tensors[k::2] if t is not None], default=0) for k in (0, 1)]
    return *map(address, tensors), signs, n, weight / n, *codes
