r"""What ``instance_norm_act`` means, in plain PyTorch, and its gradients written out.

Per plane (one sample, one channel) of M elements, with statistics in float32 (float64 for float64):

.. math::
    \mu = \tfrac1M \sum x,\quad r = \big(\tfrac1M \sum (x-\mu)^2 + \epsilon\big)^{-1/2},\quad \hat x = (x-\mu) r,
    \quad z = w\,\hat x + b + \text{residual},\quad y = \mathrm{pad}(\mathrm{act}(z))

**Backward.** Let :math:`g = \mathrm{act}'(z)\,\mathrm{pad}^T(\bar y)`, :math:`m_1` the plane's mean of g and
:math:`m_2` its mean of :math:`g \hat x`. With :math:`s = w r` and the symmetric map
:math:`P g = g - m_1 - \hat x\, m_2`:

.. math:: \bar x = s\,P g,\quad \bar w = \sum_n M m_2,\quad \bar b = \sum_n M m_1,\quad \overline{res} = g

**Double backward.** Let u, v_w, v_b, v_res be the cotangents of these four, and :math:`\bar u, a, q` the plane's
means of u, :math:`u \hat x` and :math:`u (g - m_1)`. The gradient with respect to g is
:math:`s P u + v_w \hat x + v_b + v_{res}`, masked by act' and padded. Since
:math:`\partial r/\partial x = -r^2 \hat x / M`,

.. math::
    \bar{\bar x} = -s r \big[(u - \bar u) m_2 + (g - m_1) a + \hat x (q - 3 a m_2)\big]
        + v_w r\,P g, \qquad \bar{\bar w} = \sum_n r M (q - a m_2)

and the gradients for bias and residual are zero (act' is piecewise constant).
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

from fastgan.reference._dtype import statistics_dtype


def instance_norm_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: str = "relu",
    negative_slope: float = 0.2,
    reflect_pad: int = 0,
    eps: float = 1e-5,
) -> Tensor:
    """``reflect_pad(act(norm(x) * weight + bias + residual))``, differentiable to any order by PyTorch itself."""
    z, _, _ = _normalise(x, weight, bias, residual, eps)
    y = _activate(z, activation, negative_slope).to(x.dtype)
    return _pad(y, reflect_pad)


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    negative_slope: float,
    reflect_pad: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and each plane's mean and reciprocal standard deviation [N, C] in the statistics' dtype."""
    z, mean, rstd = _normalise(x, weight, bias, residual, eps)
    y = _pad(_activate(z, activation, negative_slope).to(x.dtype), reflect_pad)
    return y, mean.flatten(1), rstd.flatten(1)


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    activation: str,
    negative_slope: float,
    reflect_pad: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(gradient of x, gradient of z, m1, m2); m1 and m2 [N, C] as in the module's docstring."""
    xhat, g, s, _ = _terms(grad, x, weight, bias, residual, mean, rstd, activation, negative_slope, reflect_pad)
    m1, m2 = _mean(g), _mean(g * xhat)
    return (s * (g - m1 - xhat * m2)).to(x.dtype), g.to(x.dtype), m1.flatten(1), m2.flatten(1)


def double_backward(
    grad_grad_x: Tensor,
    grad_grad_residual: Tensor | None,
    grad_grad_weight: Tensor | None,
    grad_grad_bias: Tensor | None,
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    m1: Tensor,
    m2: Tensor,
    activation: str,
    negative_slope: float,
    reflect_pad: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient of grad, gradient of x, per-plane gradient of weight [N, C]) of the backward pass."""
    xhat, g, s, slope = _terms(grad, x, weight, bias, residual, mean, rstd, activation, negative_slope, reflect_pad)
    dtype, dims = mean.dtype, x.dim()
    r, m1, m2 = (_per_plane(t, dims) for t in (rstd, m1, m2))
    u = grad_grad_x.to(dtype)
    mean_u, a, q = _mean(u), _mean(u * xhat), _mean(u * (g - m1))
    grad_g = s * (u - mean_u - xhat * a)
    grad_x = -s * r * ((u - mean_u) * m2 + (g - m1) * a + xhat * (q - 3 * a * m2))
    if grad_grad_weight is not None:
        v_w = _per_channel(grad_grad_weight.to(dtype), dims)
        grad_g = grad_g + v_w * xhat
        grad_x = grad_x + v_w * r * (g - m1 - xhat * m2)
    if grad_grad_bias is not None:
        grad_g = grad_g + _per_channel(grad_grad_bias.to(dtype), dims)
    if grad_grad_residual is not None:
        grad_g = grad_g + grad_grad_residual.to(dtype)
    plane = x[0, 0].numel() if x.size(0) and x.size(1) else 0
    grad_weight = r * plane * (q - a * m2)
    return _pad((grad_g * slope).to(grad.dtype), reflect_pad), grad_x.to(x.dtype), grad_weight.flatten(1)


def fold_reflection(grad: Tensor, pad: int) -> Tensor:
    """The adjoint of reflection padding: adds what each border element was copied to back onto its source.

    grad [N, C, *(spatial + 2 pad)] -> [N, C, *spatial].
    """
    if pad == 0:
        return grad
    for dim in range(2, grad.dim()):
        size = grad.size(dim) - 2 * pad
        inner = grad.narrow(dim, pad, size).clone()
        inner.narrow(dim, 1, pad).add_(grad.narrow(dim, 0, pad).flip(dim))
        inner.narrow(dim, size - 1 - pad, pad).add_(grad.narrow(dim, pad + size, pad).flip(dim))
        grad = inner
    return grad


def _normalise(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = statistics_dtype(x.dtype)
    x = x.to(dtype)
    mean = _mean(x)
    rstd = (_mean((x - mean).square()) + eps).rsqrt()
    return _affine((x - mean) * rstd, weight, bias, residual), mean, rstd


def _affine(xhat: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    z = xhat
    if weight is not None:
        z = z * _per_channel(weight.to(xhat.dtype), xhat.dim())
    if bias is not None:
        z = z + _per_channel(bias.to(xhat.dtype), xhat.dim())
    if residual is not None:
        z = z + residual.to(xhat.dtype)
    return z


def _terms(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    activation: str,
    negative_slope: float,
    reflect_pad: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """xhat, g, s and act'(z)."""
    dims, dtype = x.dim(), mean.dtype
    r = _per_plane(rstd, dims)
    xhat = (x.to(dtype) - _per_plane(mean, dims)) * r
    g = fold_reflection(grad.to(dtype), reflect_pad)
    slope = torch.ones_like(xhat)
    if activation != "none":
        z = _affine(xhat, weight, bias, residual)
        slope = torch.where(z > 0, slope, 0.0 if activation == "relu" else negative_slope)
    s = r if weight is None else r * _per_channel(weight.to(dtype), dims)
    return xhat, g * slope, s, slope


def _activate(z: Tensor, activation: str, negative_slope: float) -> Tensor:
    if activation == "relu":
        return nnf.relu(z)
    return nnf.leaky_relu(z, negative_slope) if activation == "leaky_relu" else z


def _pad(y: Tensor, pad: int) -> Tensor:
    return nnf.pad(y, (pad, pad) * (y.dim() - 2), mode="reflect") if pad else y


def _mean(t: Tensor) -> Tensor:
    return t.mean(dim=tuple(range(2, t.dim())), keepdim=True)


def _per_channel(t: Tensor, dims: int) -> Tensor:
    return t.view(1, -1, *(1,) * (dims - 2))


def _per_plane(t: Tensor, dims: int) -> Tensor:
    return t.view(*t.shape, *(1,) * (dims - 2))
