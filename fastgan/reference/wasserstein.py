r"""What the exact 1-D Wasserstein operators mean, in plain PyTorch, and their gradients written out.

Let the sorted samples be :math:`x_0 \le \dots \le x_{n-1}` with normalised weights a, and y with b alike, equal values
in index order. Both quantile functions are constant between the cuts
:math:`A_i = a_0 + \dots + a_i`, :math:`B_j = b_0 + \dots + b_j`. All cuts together split [0, 1] into at most n + m - 1
segments k, each with a mass and one atom of either side, which is the optimal (monotone) plan:

.. math:: W_p^p = \int_0^1 |F^{-1}(u) - G^{-1}(u)|^p\,du = \sum_k m_k\, |d_k|^p, \qquad d_k = x_{i_k} - y_{j_k}

**Gradient for the values.** :math:`\partial W_p^p/\partial x_i = \sum_{k: i_k = i} m_k\, p\,|d_k|^{p-1} \mathrm{sgn}\,
d_k`, with sgn(0) = 0; for y the negative. The second derivative :math:`p(p-1)\, m_k |d_k|^{p-2}` is 0 for p = 1, and is
taken as 0 at d = 0 where it is infinite (p < 2).

**Gradient for the weights.** Moving the cut :math:`A_i` up by ε replaces :math:`x_{i+1}` by :math:`x_i` against the y
found at that level, so :math:`\kappa_i = \partial W_p^p / \partial A_i = c(x_i, y) - c(x_{i+1}, y)` with
c(x, y) = |x - y|^p. Where a cut of y lies at the same level, y jumps there and the plan is degenerate: the average over
its two one-sided values is taken, which is the average of two vertices of the dual, hence feasible. The dual
potentials are :math:`f_i = f_0 - \sum_{l<i} \kappa_l`, and through the normalisation of the weights
:math:`\partial W_p^p / \partial a_i = (f_i - \sum_l a_l f_l / \sum a) / \sum a`.

**Exact ties.** Cuts are compared as :math:`A_i \sum b` against :math:`B_j \sum a`, un-normalised cumulative sums scaled
by powers of two: for integer weights (and for uniform ones) these are exact in float64. Other weights round: two cuts
that should be one then leave a segment of some 1e-17 of the mass, whose p-th root matters for p > 2, and for p = ∞ as
much as any. So where p is neither 1 nor 2, sums are compensated, and a cut of y within 2⁻⁴⁷ of the total of one of x is
taken for it.

**Scale.** For p other than 1, 2 and ∞ the cost is that of d/D with :math:`D = \max_k |d_k|`, so that no power
overflows or vanishes; :math:`W_p = D\,\mathrm{cost}^{1/p}` does not depend on the D chosen, so autograd may take
it as a constant.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def wasserstein_1d(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    *,
    p: float = 1.0,
    root: bool = True,
) -> Tensor:
    """``W_p`` or ``W_p^p`` of x [..., n] and y [..., m] (equal leading shapes), differentiable to any order."""
    value, scale = cost(x, y, x_weights, y_weights, p)
    return finish(value, scale, p, root).to(x.dtype)


def cost(x: Tensor, y: Tensor, x_weights: Tensor | None, y_weights: Tensor | None, p: float) -> tuple[Tensor, Tensor]:
    """The cost of d/D, and D, both [...] in float64. For p = ∞ the cost is max |d|."""
    n, m = x.size(-1), y.size(-1)
    xs, x_order = x.sort(dim=-1, stable=True)
    ys, y_order = y.sort(dim=-1, stable=True)
    xs, ys = xs.double(), ys.double()
    nan = torch.where(xs.isnan().any(-1) | ys.isnan().any(-1), math.nan, 1.0).to(xs.dtype).unsqueeze(-1)
    xs, ys = xs * nan, ys * nan
    if x_weights is None and y_weights is None and n == m:
        d = difference(xs, ys)
        scale = power_scale(d, p)
        if p == math.inf:
            return _largest(d), scale
        return power(d / scale.unsqueeze(-1), p).mean(-1), scale

    a, b = cuts(xs, x_weights, x_order, p), cuts(ys, y_weights, y_order, p)
    ka, kb, total = cross(a, b, p)
    i, j, mass = segments(ka, kb, total)
    used = mass > 0
    d = torch.where(used, difference(xs.gather(-1, i), ys.gather(-1, j)), 0.0)
    scale = power_scale(d, p)
    if p == math.inf:
        return _largest(d), scale
    unit = scale.unsqueeze(-1)
    value = (mass * power(d / unit, p)).sum(-1)
    if x_weights is not None:
        normal = a / a[..., -1:]
        value = value + ((normal - normal.detach())[..., :-1] * slopes(xs / unit, ys / unit, ka, kb, p)).sum(-1)
    if y_weights is not None:
        normal = b / b[..., -1:]
        value = value + ((normal - normal.detach())[..., :-1] * slopes(ys / unit, xs / unit, kb, ka, p)).sum(-1)
    return value, scale


def finish(value: Tensor, scale: Tensor, p: float, root: bool) -> Tensor:
    """``W_p`` or ``W_p^p`` of the scaled cost; the root has derivative 0 where the cost is 0."""
    if p == 1 or p == math.inf:
        return value
    if not root:
        return value if p == 2 else value * scale**p
    zero = value == 0
    rooted = (value.masked_fill(zero, 1.0) ** (1 / p)).masked_fill(zero, 0.0)
    return rooted if p == 2 else rooted * scale


def mean_cost(value: Tensor, scale: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """The mean of the rows' costs over the last dimension, as that of d/D for one D, and that D; p is finite."""
    if p in (1.0, 2.0):  # there is no scale
        return value.mean(-1), scale
    return (value * share_of_scale(scale, p)).mean(-1), scale.amax(-1)


def share_of_scale(scale: Tensor, p: float) -> Tensor:
    """What each row's cost is multiplied by, before the mean, to be one of d/D."""
    return (scale / scale.amax(-1, keepdim=True)) ** p


def plan(x: Tensor, y: Tensor, x_weights: Tensor | None, y_weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The segments (i, j, mass), each [..., n + m - 1], with i and j indices of the unsorted samples."""
    xs, x_order = x.sort(dim=-1, stable=True)
    ys, y_order = y.sort(dim=-1, stable=True)
    a, b = cuts(xs.double(), x_weights, x_order), cuts(ys.double(), y_weights, y_order)
    i, j, mass = segments(*cross(a, b))
    return x_order.gather(-1, i[..., :-1]), y_order.gather(-1, j[..., :-1]), mass[..., :-1]


def potentials(
    x: Tensor, y: Tensor, x_weights: Tensor | None, y_weights: Tensor | None, p: float
) -> tuple[Tensor, Tensor]:
    """The dual potentials f [..., n] and g [..., m] in float64: sum a f = sum b g = W_p^p / 2."""
    xs, x_order = x.sort(dim=-1, stable=True)
    ys, y_order = y.sort(dim=-1, stable=True)
    xs, ys = xs.double(), ys.double()
    a, b = cuts(xs, x_weights, x_order, p), cuts(ys, y_weights, y_order, p)
    ka, kb, total = cross(a, b, p)
    f, g = _climb(slopes(xs, ys, ka, kb, p)), _climb(slopes(ys, xs, kb, ka, p))
    i, j, mass = segments(ka, kb, total)
    d = torch.where(mass > 0, difference(xs.gather(-1, i), ys.gather(-1, j)), 0.0)
    half = (mass * power(d, p)).sum(-1, keepdim=True) / 2
    f = f - (_masses(a) * f).sum(-1, keepdim=True) + half
    g = g - (_masses(b) * g).sum(-1, keepdim=True) + half
    return torch.empty_like(f).scatter_(-1, x_order, f), torch.empty_like(g).scatter_(-1, y_order, g)


def double_backward(
    grads: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    grad: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    p: float,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Gradients of the backward pass of :func:`cost`, by PyTorch's autograd.

    Args:
        grads: cotangents of the gradients of (x, y, x_weights, y_weights).
        grad: the cotangent of the cost.
        inputs: x, y, x_weights, y_weights.

    Returns:
        The gradient for ``grad``, and those for the inputs.
    """
    with torch.enable_grad():
        grad = grad.detach().requires_grad_()
        leaves = tuple(None if t is None else t.detach().requires_grad_() for t in inputs)
        x, y, a, b = leaves
        assert x is not None
        assert y is not None
        value, _ = cost(x, y, a, b, p)
        pairs = [(leaf, v) for leaf, v in zip(leaves, grads, strict=True) if leaf is not None and v is not None]
        first = torch.autograd.grad(value, [leaf for leaf, _ in pairs], grad, create_graph=True)
        wanted = [grad, *(leaf for leaf in leaves if leaf is not None)]
        second = torch.autograd.grad(first, wanted, [v for _, v in pairs], materialize_grads=True)
    rest = iter(second[1:])
    return second[0], tuple(None if leaf is None else next(rest) for leaf in leaves)


# --- parts --------------------------------------------------------------------------------------------------------


def difference(x: Tensor, y: Tensor) -> Tensor:
    """x - y, and 0 for two equal infinities, which cost nothing."""
    return torch.where((x == y) & x.isinf(), 0.0, x - y)


def power_scale(d: Tensor, p: float) -> Tensor:
    """D [...]: the largest |d| of each row where powers of d may overflow or vanish, else 1."""
    if p in (1.0, 2.0) or p == math.inf:
        return torch.ones_like(d[..., 0])
    largest = d.detach().abs().amax(-1)
    return torch.where((largest > 0) & largest.isfinite(), largest, 1.0)


def power(d: Tensor, p: float) -> Tensor:
    """|d|^p, whose every derivative that would be infinite at 0 is 0 there."""
    if p == 1:
        return d.abs()
    if p == 2:
        return d * d
    zero = d == 0
    return (d.abs().masked_fill(zero, 1.0) ** p).masked_fill(zero, 0.0)


def cuts(values: Tensor, weights: Tensor | None, order: Tensor, p: float = 1.0) -> Tensor:
    """Cumulative weights of the sorted atoms [..., n] in float64, scaled by a power of two, to a total in [1/2, 1).

    Uniform weights: 1, 2, ..., n. A row with a negative weight, or without finite positive total, is NaN.
    """
    if weights is None:
        return torch.arange(1, values.size(-1) + 1, dtype=values.dtype, device=values.device).expand(values.shape)
    w = weights.double().expand(values.shape)
    total = w.detach().sum(-1, keepdim=True)
    bad = (w < 0).any(-1, keepdim=True) | ~(total > 0) | ~total.isfinite()
    exponent = torch.frexp(torch.where(bad, 1.0, total)).exponent.double()
    w = (w * torch.exp2(-exponent.clamp(min=-1000))).masked_fill(bad, math.nan).gather(-1, order)
    sums = w.cumsum(-1)
    if p in (1.0, 2.0):
        return sums
    lost = w.detach() - torch.diff(sums.detach(), dim=-1, prepend=torch.zeros_like(sums[..., :1]))
    return sums + lost.cumsum(-1)


def cross(a: Tensor, b: Tensor, p: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """The cuts of both sides over one denominator, and that denominator [..., 1]."""
    a, b = a.detach(), b.detach()
    ka, kb, total = a * b[..., -1:], b * a[..., -1:], a[..., -1:] * b[..., -1:]
    return (ka, kb if p in (1.0, 2.0) else _tied(ka, kb, total), total)


def _tied(ka: Tensor, kb: Tensor, total: Tensor) -> Tensor:
    """kb, but the first cut of ka for each that is one with it; the total stays."""
    tolerance = total * 2.0**-47
    near = torch.searchsorted(ka.contiguous(), kb - tolerance).clamp_(max=ka.size(-1) - 1)
    other = ka.gather(-1, near)
    return torch.where((kb < total) & (other - kb <= tolerance), other, kb)


def segments(ka: Tensor, kb: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(i, j, mass) [..., n + m] of the segments between the cuts; the last has no mass."""
    ends = torch.cat((ka, kb), -1).sort(-1).values
    i = torch.searchsorted(ka.contiguous(), ends).clamp_(max=ka.size(-1) - 1)
    j = torch.searchsorted(kb.contiguous(), ends).clamp_(max=kb.size(-1) - 1)
    mass = torch.diff(ends, dim=-1, prepend=torch.zeros_like(ends[..., :1])) / total
    return i, j, mass


def slopes(x: Tensor, y: Tensor, ka: Tensor, kb: Tensor, p: float) -> Tensor:
    """κ [..., n - 1]: the derivative of the cost for each inner cut of x, the average where a cut of y coincides."""
    level, steps = ka[..., :-1].contiguous(), kb.contiguous()
    below = torch.searchsorted(steps, level).clamp_(max=kb.size(-1) - 1)
    above = torch.searchsorted(steps, level, right=True).clamp_(max=kb.size(-1) - 1)
    lower, upper = x[..., :-1], x[..., 1:]
    y_below, y_above = y.gather(-1, below), y.gather(-1, above)
    at_lower = power(difference(lower, y_below), p) + power(difference(lower, y_above), p)
    at_upper = power(difference(upper, y_below), p) + power(difference(upper, y_above), p)
    kappa = (at_lower - at_upper) / 2
    # Infinite samples give no slope; a row of NaNs stays one.
    return torch.where(kappa.isfinite() | x[..., :1].isnan(), kappa, 0.0)


def _largest(d: Tensor) -> Tensor:
    size = d.abs()
    return size.gather(-1, size.detach().argmax(-1, keepdim=True)).squeeze(-1)


def _climb(kappa: Tensor) -> Tensor:
    return torch.nn.functional.pad(-kappa.cumsum(-1), (1, 0))


def _masses(a: Tensor) -> Tensor:
    return torch.diff(a, dim=-1, prepend=torch.zeros_like(a[..., :1])) / a[..., -1:]
