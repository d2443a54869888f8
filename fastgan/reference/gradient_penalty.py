r"""What ``gradient_norm_penalty`` means, in plain PyTorch, and its gradients written out.

With :math:`r_n = \|g_n\|_2` over all of a sample's elements, N samples and target t,

.. math:: L = \frac1N \sum_n \varphi(r_n),\qquad \varphi(r) = (r - t)^2 \ \text{ or, one-sided, }\ \max(0, r - t)^2

**Backward.** With the cotangent :math:`\bar L`,

.. math:: \bar g_n = \bar L\, c_n\, g_n,\qquad c_n = \frac{\varphi'(r_n)}{N r_n} = \frac2N\Big(1 - \frac{t}{r_n}\Big)

where :math:`c_n = 0` at :math:`r_n = 0` (a subgradient: the norm has no derivative there) unless t = 0, where
:math:`c_n = 2/N` everywhere; one-sided, :math:`c_n = 0` for :math:`r_n \le t`.

**Double backward.** With the cotangent u of :math:`\bar g` and :math:`d_n = \langle u_n, g_n\rangle`,

.. math:: \bar{\bar L} = \sum_n c_n d_n,\qquad
    \bar{\bar g}_n = \bar L\,\big(c_n u_n + e_n d_n g_n\big),\qquad e_n = \frac{c'(r_n)}{r_n} = \frac{2 t}{N r_n^3}

with :math:`e_n = 0` wherever the choices above made :math:`c_n` constant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.reference._dtype import statistics_dtype


def gradient_norm_penalty(grads: Tensor, *, target: float = 1.0, one_sided: bool = False) -> Tensor:
    """``mean((‖g‖ - target)²)`` in float32 (float64 for float64), differentiable to any order by PyTorch itself."""
    squares = grads.to(statistics_dtype(grads.dtype)).flatten(1).square().sum(1)
    if target == 0.0:
        return squares.mean()  # smooth at zero too
    zero = squares == 0  # which a NaN is not: it stays visible
    # Both selects are needed: sqrt's derivative at 0 is infinite, and 0 * inf is NaN.
    norms = torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt())
    excess = norms - target
    if one_sided:
        excess = excess.clamp(min=0)
    return excess.square().mean()


def coefficients(norms: Tensor, target: float, one_sided: bool) -> tuple[Tensor, Tensor]:
    """c and e [N] as in the module's docstring."""
    scale = 2.0 / norms.numel()
    if target == 0.0:
        return torch.full_like(norms, scale), torch.zeros_like(norms)
    flat = norms <= (target if one_sided else 0.0)
    safe = torch.where(flat, 1.0, norms)
    c, e = scale * (1 - target / safe), scale * target / safe**3
    return torch.where(flat, 0.0, c), torch.where(flat, 0.0, e)


def backward(grad: Tensor, grads: Tensor, target: float, one_sided: bool) -> Tensor:
    """The gradient for ``grads`` [N, ...]."""
    g = grads.to(statistics_dtype(grads.dtype)).flatten(1)
    c, _ = coefficients(g.square().sum(1).sqrt(), target, one_sided)
    return (grad.to(g.dtype) * c[:, None] * g).view(grads.shape).to(grads.dtype)


def double_backward(u: Tensor, grad: Tensor, grads: Tensor, target: float, one_sided: bool) -> tuple[Tensor, Tensor]:
    """The gradients of the backward pass for ``grad`` (a scalar) and ``grads``."""
    dtype = statistics_dtype(grads.dtype)
    g, u = grads.to(dtype).flatten(1), u.to(dtype).flatten(1)
    c, e = coefficients(g.square().sum(1).sqrt(), target, one_sided)
    dot = (u * g).sum(1)
    grad_grads = grad.to(dtype) * (c[:, None] * u + (e * dot)[:, None] * g)
    return (c * dot).sum().to(grad.dtype), grad_grads.view(grads.shape).to(grads.dtype)
