"""The double-backward kernels: gradients of <u, grad_x> + <v, the other gradients> for grad, x and weight.

The formulas are those of :func:`fastgan.reference.instance_norm.double_backward`. Resident: `double_resident`.
Looped: `double_apply` alone, with one piece. Split: `double_sums`, then `double_apply`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastgan.kernels.triton.instance_norm import padding, terms, tiles

# fmt: off


@triton.jit
def _gradient_of_grad(u, xhat, cut, mean_u, a, s, v_w, v_b, v_r):
    return (s * (u - mean_u - xhat * a) + v_w * xhat + v_b + v_r) * cut


@triton.jit
def _gradient_of_x(u, xhat, g, mean_u, a, q, mean_1, mean_2, r, s, v_w):
    curved = (u - mean_u) * mean_2 + (g - mean_1) * a + xhat * (q - 3.0 * a * mean_2)
    return r * (v_w * (g - mean_1 - xhat * mean_2) - s * curved)


@triton.jit
def _load_v_residual(v_residual, base, m, mask, C, H, W, DIMS: tl.constexpr, CL: tl.constexpr):
    """[BP, BM]; dense, or absent."""
    return tiles.load_residual(v_residual, base, m, mask, C, 0, 0, 0, H, W, DIMS, CL, 0 if v_residual is None else 1)


@triton.jit
def _write_padded_gradient_of_grad(
    u, v_residual, x, residual, grad_grad, base, p_residual, p_out, valid, mu, r, w, b, mean_u, a, v_w, v_b, C,
    M_out, start, stop, rs_d, rs_h, rs_w, slope, D, H, W, DIMS: tl.constexpr,
    PAD: tl.constexpr, CL: tl.constexpr, ACT: tl.constexpr, RES: tl.constexpr, BM: tl.constexpr,
):
    """Elements start to stop of the padded gradient of grad, from its arguments in memory."""
    for at in range(start, stop, BM):
        j = at + tl.arange(0, BM)
        mask = valid[:, None] & (j < M_out)[None, :]
        m = padding.source(j, D, H, W, DIMS, PAD)
        b_u = tl.load(u + base + tiles.within(m, C, CL), mask, other=0).to(tl.float32)
        v_r = _load_v_residual(v_residual, base, m, mask, C, H, W, DIMS, CL)
        xhat, cut = terms.load_cut(x, residual, base, p_residual, m, mask, mu, r, w, b, C, rs_d, rs_h, rs_w, slope,
                                   H, W, DIMS, CL, ACT, RES)
        b_grad_grad = _gradient_of_grad(b_u, xhat, cut, mean_u, a, r * w, v_w, v_b, v_r)
        tiles.store(grad_grad, p_out, j, b_grad_grad, mask, C, CL)


@triton.jit(do_not_specialize=tiles.SIZES)
def double_resident(
    u, v_residual, v_weight, v_bias, grad, x, weight, bias, residual, mean, rstd, m1, m2, grad_grad, grad_x,
    grad_weight, planes, C, M, M_out, rs_n, rs_c, rs_d, rs_h, rs_w, slope, D, H, W,
    DIMS: tl.constexpr, PAD: tl.constexpr, CL: tl.constexpr, ACT: tl.constexpr, RES: tl.constexpr, ALIGN: tl.constexpr,
    ALIGN_OUT: tl.constexpr, ALIGN_W: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr,
):
    """Reads u, grad and x once: 3B + 2B' bytes (+ B for a residual, + B for v_residual)."""
    slope = tl.cast(slope, tl.float32)
    C, M, M_out, W = tiles.aligned(C, M, M_out, W, CL, ALIGN, ALIGN_OUT, ALIGN_W)
    plane, n, c, valid = tiles.planes(tl.program_id(0), planes, C, CL, BP)
    mu, r, w, b = terms.statistics(mean, rstd, weight, bias, plane, c, valid)
    mean_1 = tl.load(m1 + plane, valid, other=0)[:, None]
    mean_2 = tl.load(m2 + plane, valid, other=0)[:, None]
    v_w = tiles.parameter(v_weight, c, valid, 0.0)
    v_b = tiles.parameter(v_bias, c, valid, 0.0)
    base = tiles.base(plane, n, c, C, M, CL)
    p_grad = tiles.base(plane, n, c, C, M_out, CL)
    p_residual = tiles.residual_base(base, n, c, rs_n, rs_c, RES)
    m = tl.arange(0, BM)
    mask = valid[:, None] & (m < M)[None, :]
    b_u = tl.load(u + base + tiles.within(m, C, CL), mask, other=0).to(tl.float32)
    xhat, cut = terms.load_cut(x, residual, base, p_residual, m, mask, mu, r, w, b, C, rs_d, rs_h, rs_w, slope,
                               H, W, DIMS, CL, ACT, RES)
    g = padding.load_folded(grad, p_grad, m, 0, mask, C, D, H, W, DIMS, PAD, CL) * cut
    mean_u = tl.sum(b_u, 1, keep_dims=True) / M
    a = tl.sum(b_u * xhat, 1, keep_dims=True) / M
    q = tl.sum(b_u * (g - mean_1), 1, keep_dims=True) / M
    tl.store(grad_weight + plane[:, None], r * M * (q - a * mean_2), valid[:, None])
    b_grad_x = _gradient_of_x(b_u, xhat, g, mean_u, a, q, mean_1, mean_2, r, r * w, v_w)
    tiles.store(grad_x, base, m, b_grad_x, mask, C, CL)
    if PAD == 0:
        v_r = _load_v_residual(v_residual, base, m, mask, C, H, W, DIMS, CL)
        b_grad_grad = _gradient_of_grad(b_u, xhat, cut, mean_u, a, r * w, v_w, v_b, v_r)
        tiles.store(grad_grad, base, m, b_grad_grad, mask, C, CL)
    else:
        BO: tl.constexpr = BM if BP * BM <= 4096 else 4096 // BP
        _write_padded_gradient_of_grad(
            u, v_residual, x, residual, grad_grad, base, p_residual, p_grad, valid, mu, r, w, b, mean_u, a, v_w, v_b,
            C, M_out, 0, M_out, rs_d, rs_h, rs_w, slope, D, H, W, DIMS, PAD, CL, ACT, RES, BO,
        )


@triton.jit
def _sum_products(u, grad, x, residual, base, p_grad, p_residual, valid, mu, r, w, b, mean_1, C, M, start, stop, rs_d,
                  rs_h, rs_w, slope, D, H, W, DIMS: tl.constexpr, PAD: tl.constexpr,
                  CL: tl.constexpr, ACT: tl.constexpr, RES: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr):
    """Sums of u, u xhat and u (g - mean(g)) over elements start to stop of each plane: [BP, 1] each."""
    sum_u = tl.zeros([BP, BM], tl.float32)
    sum_a = tl.zeros([BP, BM], tl.float32)
    sum_q = tl.zeros([BP, BM], tl.float32)
    for at in range(start, stop, BM):
        m = at + tl.arange(0, BM)
        mask = valid[:, None] & (m < M)[None, :]
        b_u = tl.load(u + base + tiles.within(m, C, CL), mask, other=0).to(tl.float32)
        xhat, g = terms.load_terms(grad, x, residual, base, p_grad, p_residual, m, at, mask, mu, r, w, b, C,
                                   rs_d, rs_h, rs_w, slope, D, H, W, DIMS, PAD, CL, ACT, RES)
        sum_u += b_u
        sum_a += b_u * xhat
        sum_q += b_u * (g - mean_1)
    return tl.sum(sum_u, 1, keep_dims=True), tl.sum(sum_a, 1, keep_dims=True), tl.sum(sum_q, 1, keep_dims=True)


@triton.jit(do_not_specialize=tiles.SIZES)
def double_sums(
    u, grad, x, weight, bias, residual, mean, rstd, m1, sums, planes, C, M, M_out, CHUNK, rs_n, rs_c, rs_d, rs_h,
    rs_w, slope, D, H, W, DIMS: tl.constexpr, PAD: tl.constexpr, CL: tl.constexpr,
    ACT: tl.constexpr, RES: tl.constexpr, ALIGN: tl.constexpr, ALIGN_OUT: tl.constexpr, ALIGN_W: tl.constexpr,
    BP: tl.constexpr, BM: tl.constexpr, SPLITS: tl.constexpr,
):
    """Sums of u, u xhat and u (g - mean(g)) over one piece of each plane: 2B + B' bytes (+ B for a residual)."""
    slope = tl.cast(slope, tl.float32)
    C, M, M_out, W = tiles.aligned(C, M, M_out, W, CL, ALIGN, ALIGN_OUT, ALIGN_W)
    plane, n, c, valid = tiles.planes(tl.program_id(0), planes, C, CL, BP)
    mu, r, w, b = terms.statistics(mean, rstd, weight, bias, plane, c, valid)
    mean_1 = tl.load(m1 + plane, valid, other=0)[:, None]
    base = tiles.base(plane, n, c, C, M, CL)
    p_grad = tiles.base(plane, n, c, C, M_out, CL)
    p_residual = tiles.residual_base(base, n, c, rs_n, rs_c, RES)
    split = tl.program_id(1)
    start = (split.to(tl.int64) * CHUNK).to(M.dtype)
    sum_u, sum_a, sum_q = _sum_products(
        u, grad, x, residual, base, p_grad, p_residual, valid, mu, r, w, b, mean_1, C, M, start,
        tl.minimum(start + CHUNK, M), rs_d, rs_h, rs_w, slope, D, H, W, DIMS, PAD, CL, ACT, RES, BP, BM,
    )
    at = sums + (plane * SPLITS + split)[:, None]
    stride = tl.cast(planes, tl.int64) * SPLITS
    tl.store(at, sum_u, valid[:, None])
    tl.store(at + stride, sum_a, valid[:, None])
    tl.store(at + 2 * stride, sum_q, valid[:, None])


@triton.jit(do_not_specialize=tiles.SIZES)
def double_apply(
    u, v_residual, v_weight, v_bias, grad, x, weight, bias, residual, mean, rstd, m1, m2, sums, grad_grad, grad_x,
    grad_weight, planes, C, M, M_out, CHUNK, CHUNK_OUT, rs_n, rs_c, rs_d, rs_h, rs_w, slope, D,
    H, W, DIMS: tl.constexpr, PAD: tl.constexpr, CL: tl.constexpr, ACT: tl.constexpr, RES: tl.constexpr,
    ALIGN: tl.constexpr, ALIGN_OUT: tl.constexpr, ALIGN_W: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Merges the sums and writes one piece of each gradient: 3B + 2B' bytes (+ B for each residual).

    With one piece only, it reduces it first.
    """
    slope = tl.cast(slope, tl.float32)
    C, M, M_out, W = tiles.aligned(C, M, M_out, W, CL, ALIGN, ALIGN_OUT, ALIGN_W)
    plane, n, c, valid = tiles.planes(tl.num_programs(0) - 1 - tl.program_id(0), planes, C, CL, BP)
    split = tl.num_programs(1) - 1 - tl.program_id(1)
    mu, r, w, b = terms.statistics(mean, rstd, weight, bias, plane, c, valid)
    mean_1 = tl.load(m1 + plane, valid, other=0)[:, None]
    mean_2 = tl.load(m2 + plane, valid, other=0)[:, None]
    v_w = tiles.parameter(v_weight, c, valid, 0.0)
    v_b = tiles.parameter(v_bias, c, valid, 0.0)
    base = tiles.base(plane, n, c, C, M, CL)
    p_grad = tiles.base(plane, n, c, C, M_out, CL)
    p_residual = tiles.residual_base(base, n, c, rs_n, rs_c, RES)
    if SPLITS == 1:
        mean_u, a, q = _sum_products(u, grad, x, residual, base, p_grad, p_residual, valid, mu, r, w, b, mean_1, C, M,
                                     0, M, rs_d, rs_h, rs_w, slope, D, H, W, DIMS, PAD, CL, ACT, RES, BP, BM)
        mean_u, a, q = mean_u / M, a / M, q / M
    else:
        mean_u = terms.merge_sums(sums, plane, valid, planes, M, 0, SPLITS)
        a = terms.merge_sums(sums, plane, valid, planes, M, 1, SPLITS)
        q = terms.merge_sums(sums, plane, valid, planes, M, 2, SPLITS)
    if split == 0:
        tl.store(grad_weight + plane[:, None], r * M * (q - a * mean_2), valid[:, None])
    start = (split.to(tl.int64) * CHUNK).to(M.dtype)
    for at in range(start, tl.minimum(start + CHUNK, M), BM):
        m = at + tl.arange(0, BM)
        mask = valid[:, None] & (m < M)[None, :]
        b_u = tl.load(u + base + tiles.within(m, C, CL), mask, other=0).to(tl.float32)
        xhat, cut = terms.load_cut(x, residual, base, p_residual, m, mask, mu, r, w, b, C, rs_d, rs_h, rs_w, slope,
                                   H, W, DIMS, CL, ACT, RES)
        g = padding.load_folded(grad, p_grad, m, at, mask, C, D, H, W, DIMS, PAD, CL) * cut
        b_grad_x = _gradient_of_x(b_u, xhat, g, mean_u, a, q, mean_1, mean_2, r, r * w, v_w)
        tiles.store(grad_x, base, m, b_grad_x, mask, C, CL)
        if PAD == 0:
            v_r = _load_v_residual(v_residual, base, m, mask, C, H, W, DIMS, CL)
            b_grad_grad = _gradient_of_grad(b_u, xhat, cut, mean_u, a, r * w, v_w, v_b, v_r)
            tiles.store(grad_grad, base, m, b_grad_grad, mask, C, CL)
    if PAD != 0:
        start_out = (split.to(tl.int64) * CHUNK_OUT).to(M_out.dtype)
        _write_padded_gradient_of_grad(
            u, v_residual, x, residual, grad_grad, base, p_residual, p_grad, valid, mu, r, w, b, mean_u, a, v_w, v_b,
            C, M_out, start_out, tl.minimum(start_out + CHUNK_OUT, M_out), rs_d, rs_h, rs_w, slope,
            D, H, W, DIMS, PAD, CL, ACT, RES, BM,
        )
# fmt: on
