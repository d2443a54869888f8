"""The backward kernels: grad_x = r w (g - m1 - xhat m2), with m1 = mean(g) and m2 = mean(g xhat), and grad_z = g.

Resident: `backward_resident`. Looped: `backward_apply` alone, with one piece. Split: `backward_sums`, then
`backward_apply`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastgan.kernels.triton.instance_norm import terms, tiles

# fmt: off


@triton.jit(do_not_specialize=tiles.SIZES)
def backward_resident(
    grad, x, weight, bias, residual, mean, rstd, grad_x, grad_z, m1, m2, planes, C, M, M_out, rs_n, rs_c, rs_d,
    rs_h, rs_w, slope, D, H, W, DIMS: tl.constexpr, PAD: tl.constexpr, CL: tl.constexpr,
    ACT: tl.constexpr, RES: tl.constexpr, ALIGN: tl.constexpr, ALIGN_OUT: tl.constexpr, ALIGN_W: tl.constexpr,
    BP: tl.constexpr, BM: tl.constexpr,
):
    """Reads grad and x once: 2B + B' bytes (+ B for a residual, + B for grad_z)."""
    slope = tl.cast(slope, tl.float32)
    C, M, M_out, W = tiles.aligned(C, M, M_out, W, CL, ALIGN, ALIGN_OUT, ALIGN_W)
    plane, n, c, valid = tiles.planes(tl.program_id(0), planes, C, CL, BP)
    mu, r, w, b = terms.statistics(mean, rstd, weight, bias, plane, c, valid)
    base = tiles.base(plane, n, c, C, M, CL)
    m = tl.arange(0, BM)
    mask = valid[:, None] & (m < M)[None, :]
    p_grad = tiles.base(plane, n, c, C, M_out, CL)
    p_residual = tiles.residual_base(base, n, c, rs_n, rs_c, RES)
    xhat, g = terms.load_terms(grad, x, residual, base, p_grad, p_residual, m, 0, mask, mu, r, w, b, C,
                               rs_d, rs_h, rs_w, slope, D, H, W, DIMS, PAD, CL, ACT, RES)
    mean_1 = tl.sum(g, 1, keep_dims=True) / M
    mean_2 = tl.sum(g * xhat, 1, keep_dims=True) / M
    if m1 is not None:
        tl.store(m1 + plane[:, None], mean_1, valid[:, None])
        tl.store(m2 + plane[:, None], mean_2, valid[:, None])
    tiles.store(grad_x, base, m, (r * w) * (g - mean_1 - xhat * mean_2), mask, C, CL)
    if grad_z is not None:
        tiles.store(grad_z, base, m, g, mask, C, CL)


@triton.jit
def _sum_terms(grad, x, residual, base, p_grad, p_residual, valid, mu, r, w, b, C, M, start, stop, rs_d, rs_h, rs_w,
               slope, D, H, W, DIMS: tl.constexpr, PAD: tl.constexpr, CL: tl.constexpr,
               ACT: tl.constexpr, RES: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr):
    """Sums of g and of g xhat over elements start to stop of each plane: [BP, 1] each."""
    sum_1 = tl.zeros([BP, BM], tl.float32)
    sum_2 = tl.zeros([BP, BM], tl.float32)
    for at in range(start, stop, BM):
        m = at + tl.arange(0, BM)
        mask = valid[:, None] & (m < M)[None, :]
        xhat, g = terms.load_terms(grad, x, residual, base, p_grad, p_residual, m, at, mask, mu, r, w, b, C,
                                   rs_d, rs_h, rs_w, slope, D, H, W, DIMS, PAD, CL, ACT, RES)
        sum_1 += g
        sum_2 += g * xhat
    return tl.sum(sum_1, 1, keep_dims=True), tl.sum(sum_2, 1, keep_dims=True)


@triton.jit(do_not_specialize=tiles.SIZES)
def backward_sums(
    grad, x, weight, bias, residual, mean, rstd, sums, planes, C, M, M_out, CHUNK, rs_n, rs_c, rs_d, rs_h, rs_w,
    slope, D, H, W, DIMS: tl.constexpr, PAD: tl.constexpr, CL: tl.constexpr,
    ACT: tl.constexpr, RES: tl.constexpr, ALIGN: tl.constexpr, ALIGN_OUT: tl.constexpr, ALIGN_W: tl.constexpr,
    BP: tl.constexpr, BM: tl.constexpr, SPLITS: tl.constexpr,
):
    """Sums of g and of g xhat over one piece of each plane: B + B' bytes (+ B for a residual)."""
    slope = tl.cast(slope, tl.float32)
    C, M, M_out, W = tiles.aligned(C, M, M_out, W, CL, ALIGN, ALIGN_OUT, ALIGN_W)
    plane, n, c, valid = tiles.planes(tl.program_id(0), planes, C, CL, BP)
    mu, r, w, b = terms.statistics(mean, rstd, weight, bias, plane, c, valid)
    base = tiles.base(plane, n, c, C, M, CL)
    p_grad = tiles.base(plane, n, c, C, M_out, CL)
    p_residual = tiles.residual_base(base, n, c, rs_n, rs_c, RES)
    split = tl.program_id(1)
    start = (split.to(tl.int64) * CHUNK).to(M.dtype)
    sum_1, sum_2 = _sum_terms(grad, x, residual, base, p_grad, p_residual, valid, mu, r, w, b, C, M, start,
                              tl.minimum(start + CHUNK, M), rs_d, rs_h, rs_w, slope, D, H, W, DIMS, PAD, CL, ACT, RES,
                              BP, BM)
    at = sums + (plane * SPLITS + split)[:, None]
    tl.store(at, sum_1, valid[:, None])
    tl.store(at + tl.cast(planes, tl.int64) * SPLITS, sum_2, valid[:, None])


@triton.jit(do_not_specialize=tiles.SIZES)
def backward_apply(
    grad, x, weight, bias, residual, mean, rstd, sums, grad_x, grad_z, m1, m2, planes, C, M, M_out, CHUNK, rs_n,
    rs_c, rs_d, rs_h, rs_w, slope, D, H, W, DIMS: tl.constexpr, PAD: tl.constexpr,
    CL: tl.constexpr, ACT: tl.constexpr, RES: tl.constexpr, ALIGN: tl.constexpr, ALIGN_OUT: tl.constexpr,
    ALIGN_W: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr, SPLITS: tl.constexpr,
):
    """Merges the sums and writes one piece of each gradient: 2B + B' bytes (+ B for a residual, + B for grad_z).

    With one piece only, it reduces it first.
    """
    slope = tl.cast(slope, tl.float32)
    C, M, M_out, W = tiles.aligned(C, M, M_out, W, CL, ALIGN, ALIGN_OUT, ALIGN_W)
    plane, n, c, valid = tiles.planes(tl.num_programs(0) - 1 - tl.program_id(0), planes, C, CL, BP)
    split = tl.num_programs(1) - 1 - tl.program_id(1)
    mu, r, w, b = terms.statistics(mean, rstd, weight, bias, plane, c, valid)
    base = tiles.base(plane, n, c, C, M, CL)
    p_grad = tiles.base(plane, n, c, C, M_out, CL)
    p_residual = tiles.residual_base(base, n, c, rs_n, rs_c, RES)
    if SPLITS == 1:
        mean_1, mean_2 = _sum_terms(grad, x, residual, base, p_grad, p_residual, valid, mu, r, w, b, C, M, 0, M,
                                    rs_d, rs_h, rs_w, slope, D, H, W, DIMS, PAD, CL, ACT, RES, BP, BM)
        mean_1, mean_2 = mean_1 / M, mean_2 / M
    else:
        mean_1 = terms.merge_sums(sums, plane, valid, planes, M, 0, SPLITS)
        mean_2 = terms.merge_sums(sums, plane, valid, planes, M, 1, SPLITS)
    if m1 is not None:  # noqa: SIM102 (known when compiled; the other is not)
        if split == 0:
            tl.store(m1 + plane[:, None], mean_1, valid[:, None])
            tl.store(m2 + plane[:, None], mean_2, valid[:, None])
    start = (split.to(tl.int64) * CHUNK).to(M.dtype)
    for step in range(start, tl.minimum(start + CHUNK, M), BM):
        at = tiles.mirrored(step, M, BM) if SPLITS == 1 else step
        m = at + tl.arange(0, BM)
        mask = valid[:, None] & (m < M)[None, :]
        xhat, g = terms.load_terms(grad, x, residual, base, p_grad, p_residual, m, at, mask, mu, r, w, b, C,
                                   rs_d, rs_h, rs_w, slope, D, H, W, DIMS, PAD, CL, ACT, RES)
        tiles.store(grad_x, base, m, (r * w) * (g - mean_1 - xhat * mean_2), mask, C, CL)
        if grad_z is not None:
            tiles.store(grad_z, base, m, g, mask, C, CL)
# fmt: on
