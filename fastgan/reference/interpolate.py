r"""What ``interpolate`` means, in plain PyTorch, its gradients written out, and the random numbers it draws.

.. math:: \hat x_n = \alpha_n\, r_n + (1 - \alpha_n)\, f_n

**Backward.** With the cotangent g of :math:`\hat x`,

.. math:: \bar r = \alpha g,\qquad \bar f = (1 - \alpha) g,\qquad \bar\alpha_n = \langle g_n, r_n - f_n\rangle

**Double backward.** With cotangents :math:`u_r, u_f, u_\alpha` of these three, the gradients are

.. math::
    \bar g = \alpha u_r + (1 - \alpha) u_f + u_\alpha (r - f),\quad \bar{\bar r} = u_\alpha g,\quad
    \bar{\bar f} = -u_\alpha g,\quad \bar{\bar\alpha}_n = \langle g_n, u_{r,n} - u_{f,n}\rangle

**Random numbers.** :math:`\alpha_n` is the upper 24 bits of the first word of Philox-4x32-10 (Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3") with the 64-bit seed as key and n as counter, times 2⁻²⁴: uniform on
the multiples of 2⁻²⁴ in [0, 1). Every backend draws the same numbers from the same seed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.reference._dtype import statistics_dtype


def interpolate(real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
    """``alpha * real + (1 - alpha) * fake``, alpha [N]; computed in float32 (float64 for float64), rounded once."""
    dtype = statistics_dtype(real.dtype)
    a = per_sample(alpha.to(dtype), real)
    return (a * real.to(dtype) + (1 - a) * fake.to(dtype)).to(real.dtype)


def backward(grad: Tensor, real: Tensor, fake: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients for real, fake and alpha."""
    dtype = statistics_dtype(real.dtype)
    a, g = per_sample(alpha.to(dtype), real), grad.to(dtype)
    grad_alpha = sum_per_sample(g * (real.to(dtype) - fake.to(dtype)))
    return (a * g).to(real.dtype), ((1 - a) * g).to(real.dtype), grad_alpha.to(alpha.dtype)


def per_sample(alpha: Tensor, x: Tensor) -> Tensor:
    """alpha [N] shaped to broadcast over x [N, ...]."""
    return alpha.view(-1, *(1,) * (x.dim() - 1))


def sum_per_sample(x: Tensor) -> Tensor:
    """[N], the sums over the samples of x [N, ...]."""
    return x if x.dim() == 1 else x.flatten(1).sum(1)


def draw_alpha(seed: Tensor, samples: int) -> Tensor:
    """alpha [samples], float32, from a seed tensor of one int64."""
    word = torch.zeros(4, samples, dtype=torch.int64, device=seed.device)
    word[0] = torch.arange(samples, dtype=torch.int64, device=seed.device)
    key = [seed.reshape(()) & _MASK, (seed.reshape(()) >> 32) & _MASK]
    c0, c1, c2, c3 = word
    for _ in range(10):
        high0, low0 = _multiply(c0, 0xD2511F53)
        high2, low2 = _multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high2 ^ c1 ^ key[0], low2, high0 ^ c3 ^ key[1], low0
        key = [(key[0] + 0x9E3779B9) & _MASK, (key[1] + 0xBB67AE85) & _MASK]
    alpha: Tensor = (c0 >> 8).to(torch.float32) * 2.0**-24
    return alpha


_MASK = 0xFFFFFFFF


def _multiply(x: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """The upper and lower 32 bits of a 32 x 32 bit product; int64 wraps around, which keeps all 64 bits right."""
    product = x * constant
    return (product >> 32) & _MASK, product & _MASK
