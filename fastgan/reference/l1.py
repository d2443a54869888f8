r"""What ``weighted_l1`` means, in plain PyTorch, and its gradients written out.

.. math:: L = \sum_k w_k \frac1{M_k} \sum_i |a_{ki} - b_{ki}|

**Backward.** With :math:`s = \mathrm{sign}(a - b)` (0 where they are equal) and the cotangent :math:`\bar L`,

.. math:: \bar a_k = \bar L\,\frac{w_k}{M_k}\, s_k,\qquad \bar b_k = -\bar a_k

**Double backward.** s is piecewise constant, so the backward pass depends on :math:`\bar L` alone. With cotangents
u of :math:`\bar a` and v of :math:`\bar b`, the gradient for :math:`\bar L` is
:math:`\sum_k \frac{w_k}{M_k} \sum_i s_{ki} (u_{ki} - v_{ki})`; this is also the forward-mode tangent of L in the
direction (u, v).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Pairs = Sequence[tuple[Tensor, Tensor, float]]


def weighted_l1(pairs: Pairs) -> Tensor:
    """``sum(weight * mean|a - b|)`` in float32 (float64 with float64), differentiable by PyTorch itself."""
    dtype = result_dtype(pairs)
    total = torch.zeros((), dtype=dtype, device=pairs[0][0].device)
    for a, b, weight in pairs:
        total = total + weight * (a.to(dtype) - b.to(dtype)).abs().mean()
    return total


def gradients(grad: Tensor, pairs: Pairs) -> list[tuple[Tensor, Tensor]]:
    """The gradients for each pair's a and b, in their dtypes."""
    dtype = result_dtype(pairs)
    result = []
    for a, b, weight in pairs:
        unit = torch.sign(a.to(dtype) - b.to(dtype)) * (grad.to(dtype) * (weight / a.numel()))
        result.append((unit.to(a.dtype), (-unit).to(b.dtype)))
    return result


def directional(pairs: Pairs, directions: Sequence[tuple[Tensor | None, Tensor | None]]) -> Tensor:
    """The derivative of L along ``directions`` (u, v) of each pair's (a, b); None is zero."""
    dtype = result_dtype(pairs)
    total = torch.zeros((), dtype=dtype, device=pairs[0][0].device)
    for (a, b, weight), (u, v) in zip(pairs, directions, strict=True):
        sign = torch.sign(a.to(dtype) - b.to(dtype))
        for direction, side in ((u, 1.0), (v, -1.0)):
            if direction is not None:
                total = total + side * weight * (sign * direction.to(dtype)).mean()
    return total


def result_dtype(pairs: Pairs) -> torch.dtype:
    """float64 if any tensor is float64, else float32."""
    wide = any(t.dtype == torch.float64 for a, b, _ in pairs for t in (a, b))
    return torch.float64 if wide else torch.float32
