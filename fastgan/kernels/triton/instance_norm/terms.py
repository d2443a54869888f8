"""What the backward and the double backward read of a tile: xhat, act'(z) and g, and sums over a plane's pieces.

With z = w xhat + b + residual and xhat = (x - mu) r, g = act'(z) grad, grad's padding folded back onto its plane.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastgan.kernels.triton.instance_norm import padding, tiles

# fmt: off


@triton.jit
def _derivative(z, slope, ACT: tl.constexpr):
    """act'(z)."""
    if ACT == 1:
        return tl.where(z > 0, 1.0, 0.0)
    elif ACT == 2:
        return tl.where(z > 0, 1.0, slope)
    else:
        return 1.0


@triton.jit
def statistics(mean, rstd, weight, bias, plane, c, valid):
    """mu, r, w and b of each plane: [BP, 1]."""
    mu = tl.load(mean + plane, valid, other=0)[:, None]
    r = tl.load(rstd + plane, valid, other=0)[:, None]
    return mu, r, tiles.parameter(weight, c, valid, 1.0), tiles.parameter(bias, c, valid, 0.0)


@triton.jit
def load_cut(x, residual, base, p_residual, m, mask, mu, r, w, b, C, rs_d, rs_h, rs_w, slope, H, W,
             DIMS: tl.constexpr, CL: tl.constexpr, ACT: tl.constexpr, RES: tl.constexpr):
    """xhat and act'(z) of elements m: [BP, BM]."""
    centred = tl.load(x + base + tiles.within(m, C, CL), mask, other=0).to(tl.float32) - mu
    # The forward pass rounds z in the same way.
    z = centred * (r * w) + b
    if ACT != 0:
        z += tiles.load_residual(residual, p_residual, m, mask, C, rs_d, rs_h, rs_w, H, W, DIMS, CL, RES)
    return centred * r, _derivative(z, slope, ACT)


@triton.jit
def load_terms(grad, x, residual, base, p_grad, p_residual, m, at, mask, mu, r, w, b, C, rs_d, rs_h, rs_w, slope,
               D, H, W, DIMS: tl.constexpr, PAD: tl.constexpr, CL: tl.constexpr, ACT: tl.constexpr,
               RES: tl.constexpr):
    """xhat and g of elements m: [BP, BM]."""
    b_grad = padding.load_folded(grad, p_grad, m, at, mask, C, D, H, W, DIMS, PAD, CL)
    xhat, cut = load_cut(x, residual, base, p_residual, m, mask, mu, r, w, b, C, rs_d, rs_h, rs_w, slope,
                         H, W, DIMS, CL, ACT, RES)
    return xhat, b_grad * cut


@triton.jit
def merge_sums(sums, plane, valid, planes, M, which: tl.constexpr, SPLITS: tl.constexpr):
    """The mean of the `which`-th sum over all pieces: [BP, 1]. sums [which, planes, SPLITS]."""
    at = sums + (which * planes + plane)[:, None] * SPLITS + tl.arange(0, SPLITS)[None, :]
    return tl.sum(tl.load(at, valid[:, None], other=0), 1, keep_dims=True) / M
# fmt: on
