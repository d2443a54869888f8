"""The forward kernels: y = pad(act(w xhat + b + residual)), with each plane's mean and rstd.

Resident: `forward_resident`. Looped: `forward_apply` alone, with one piece. Split: `forward_moments`, then
`forward_apply`. Statistics are float32: two passes over registers where a plane is resident; elsewhere each lane of a
tile keeps Welford's mean and squares, merged by Chan's formula across lanes, and then across pieces by every program
in the same order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastgan.kernels.triton.instance_norm import padding, tiles

# fmt: off


@triton.jit
def _activate(z, slope, ACT: tl.constexpr):
    if ACT == 1:
        return tl.where(z <= 0, 0.0, z)  # keeps NaN, as torch.relu does
    elif ACT == 2:
        return tl.where(z > 0, z, z * slope)
    else:
        return z


@triton.jit
def _rstd(variance, eps):
    return 1.0 / tl.sqrt_rn(variance + eps)


@triton.jit
def _write_normalised(x, residual, y, base, p_residual, p_y, valid, mu, scale, b, C, M_out, start, stop,
                      rs_d, rs_h, rs_w, slope, D, H, W, DIMS: tl.constexpr,
                      PAD: tl.constexpr, CL: tl.constexpr, ACT: tl.constexpr, RES: tl.constexpr,
                      BM: tl.constexpr, WHOLE: tl.constexpr):
    """Elements start to stop of the (padded) result, from x in memory. WHOLE: all of them, the last ones first."""
    for step in range(start, stop, BM):
        at = tiles.mirrored(step, stop, BM) if WHOLE else step
        j = at + tl.arange(0, BM)
        mask = valid[:, None] & (j < M_out)[None, :]
        m = padding.source(j, D, H, W, DIMS, PAD)
        b_x = tl.load(x + base + tiles.within(m, C, CL), mask, other=0).to(tl.float32)
        z = (b_x - mu) * scale + b
        z += tiles.load_residual(residual, p_residual, m, mask, C, rs_d, rs_h, rs_w, H, W, DIMS, CL, RES)
        tl.store(y + p_y + tiles.within(j, C, CL), _activate(z, slope, ACT).to(y.dtype.element_ty), mask)


@triton.jit(do_not_specialize=tiles.SIZES)
def forward_resident(
    x, weight, bias, residual, y, mean, rstd, planes, C, M, M_out, rs_n, rs_c, rs_d, rs_h, rs_w, eps, slope,
    D, H, W, DIMS: tl.constexpr, PAD: tl.constexpr, CL: tl.constexpr, ACT: tl.constexpr,
    RES: tl.constexpr, ALIGN: tl.constexpr, ALIGN_OUT: tl.constexpr, ALIGN_W: tl.constexpr, BP: tl.constexpr,
    BM: tl.constexpr,
):
    """Reads each plane once into registers: B + B' bytes (+ B for a residual)."""
    eps, slope = tl.cast(eps, tl.float32), tl.cast(slope, tl.float32)
    C, M, M_out, W = tiles.aligned(C, M, M_out, W, CL, ALIGN, ALIGN_OUT, ALIGN_W)
    plane, n, c, valid = tiles.planes(tl.program_id(0), planes, C, CL, BP)
    base = tiles.base(plane, n, c, C, M, CL)
    m = tl.arange(0, BM)
    mask = valid[:, None] & (m < M)[None, :]
    b_x = tl.load(x + base + tiles.within(m, C, CL), mask, other=0).to(tl.float32)
    mu = tl.sum(b_x, 1, keep_dims=True) / M
    centred = tl.where(mask, b_x - mu, 0.0)
    r = _rstd(tl.sum(centred * centred, 1, keep_dims=True) / M, eps)
    tl.store(mean + plane[:, None], mu, valid[:, None])
    tl.store(rstd + plane[:, None], r, valid[:, None])
    scale = r * tiles.parameter(weight, c, valid, 1.0)
    b = tiles.parameter(bias, c, valid, 0.0)
    p_residual = tiles.residual_base(base, n, c, rs_n, rs_c, RES)
    if PAD == 0:
        z = centred * scale + b
        z += tiles.load_residual(residual, p_residual, m, mask, C, rs_d, rs_h, rs_w, H, W, DIMS, CL, RES)
        tl.store(y + base + tiles.within(m, C, CL), _activate(z, slope, ACT).to(y.dtype.element_ty), mask)
    else:
        BO: tl.constexpr = BM if BP * BM <= 4096 else 4096 // BP
        p_y = tiles.base(plane, n, c, C, M_out, CL)
        _write_normalised(x, residual, y, base, p_residual, p_y, valid, mu, scale, b, C, M_out, 0, M_out,
                          rs_d, rs_h, rs_w, slope, D, H, W, DIMS, PAD, CL, ACT, RES, BO, False)


@triton.jit
def _moments(x, base, valid, C, M, start, stop, CL: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr):
    """Mean of x, and sum of squared deviations, over elements start to stop of each plane: [BP, 1] each.

    About the plane's first element: means are then rounded at the scale of the deviations, however far x is off.
    """
    origin = tl.load(x + base, valid[:, None], other=0).to(tl.float32)
    lane_mean = tl.zeros([BP, BM], tl.float32)
    lane_square = tl.zeros([BP, BM], tl.float32)
    seen = 0.0
    unroll: tl.constexpr = 1 if CL else 2  # twice the loads in flight; a tile of channels_last has no registers left
    for at in tl.range(start, stop, BM, loop_unroll_factor=unroll):
        m = at + tl.arange(0, BM)
        mask = valid[:, None] & (m < M)[None, :]
        b_x = tl.load(x + base + tiles.within(m, C, CL), mask, other=0).to(tl.float32) - origin
        seen += 1.0
        step = tl.where(mask, b_x - lane_mean, 0.0)
        lane_mean += step * (1.0 / seen)
        lane_square += step * tl.where(mask, b_x - lane_mean, 0.0)
    # Only a plane's last tile is ragged: the lanes beyond its end have seen one element less.
    lane = start + tl.arange(0, BM)
    count = tl.maximum((stop - lane + (BM - 1)) // BM, 0).to(tl.float32)[None, :]
    total = tl.maximum(tl.cast(stop - start, tl.float32), 1.0)
    mu = tl.sum(lane_mean * count, 1, keep_dims=True) / total
    apart = lane_mean - mu
    return mu, tl.sum(lane_square + count * apart * apart, 1, keep_dims=True)


@triton.jit(do_not_specialize=tiles.SIZES)
def forward_moments(x, means, squares, planes, C, M, CHUNK, CL: tl.constexpr, ALIGN: tl.constexpr,
                    BP: tl.constexpr, BM: tl.constexpr, SPLITS: tl.constexpr):
    """Mean and sum of squared deviations of one piece of each plane: B bytes. CHUNK is a multiple of BM."""
    C, M, _, _ = tiles.aligned(C, M, M, M, CL, ALIGN, ALIGN, ALIGN)
    plane, n, c, valid = tiles.planes(tl.program_id(0), planes, C, CL, BP)
    split = tl.program_id(1)
    start = (split.to(tl.int64) * CHUNK).to(M.dtype)
    stop = tl.minimum(start + CHUNK, M)
    mu, square = _moments(x, tiles.base(plane, n, c, C, M, CL), valid, C, M, start, stop, CL, BP, BM)
    at = (plane * SPLITS + split)[:, None]
    tl.store(means + at, mu, valid[:, None])
    tl.store(squares + at, square, valid[:, None])


@triton.jit
def _pieces(M, CHUNK, SPLITS: tl.constexpr):
    """How many elements each piece of a plane has: [1, SPLITS]."""
    start = tl.arange(0, SPLITS).to(tl.int64)[None, :] * CHUNK
    return tl.minimum(tl.maximum(M - start, 0), CHUNK).to(tl.float32)


@triton.jit(do_not_specialize=tiles.SIZES)
def forward_apply(
    x, weight, bias, residual, y, mean, rstd, means, squares, planes, C, M, M_out, CHUNK, CHUNK_OUT, rs_n, rs_c,
    rs_d, rs_h, rs_w, eps, slope, D, H, W, DIMS: tl.constexpr, PAD: tl.constexpr,
    CL: tl.constexpr, ACT: tl.constexpr, RES: tl.constexpr, ALIGN: tl.constexpr, ALIGN_OUT: tl.constexpr,
    ALIGN_W: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr, SPLITS: tl.constexpr,
):
    """Merges the pieces' moments and writes one piece of each result: B + B' bytes (+ B for a residual).

    With one piece only, it reduces it first.
    """
    eps, slope = tl.cast(eps, tl.float32), tl.cast(slope, tl.float32)
    C, M, M_out, W = tiles.aligned(C, M, M_out, W, CL, ALIGN, ALIGN_OUT, ALIGN_W)
    # From the end: what the first launch read last is still in the L2.
    plane, n, c, valid = tiles.planes(tl.num_programs(0) - 1 - tl.program_id(0), planes, C, CL, BP)
    split = tl.num_programs(1) - 1 - tl.program_id(1)
    base = tiles.base(plane, n, c, C, M, CL)
    if SPLITS == 1:
        mu, square = _moments(x, base, valid, C, M, 0, M, CL, BP, BM)
    else:
        pieces = plane[:, None] * SPLITS + tl.arange(0, SPLITS)[None, :]
        count = _pieces(M, CHUNK, SPLITS)
        b_means = tl.load(means + pieces, valid[:, None], other=0)
        mu = tl.sum(b_means * count, 1, keep_dims=True) / M
        apart = b_means - mu
        square = tl.sum(tl.load(squares + pieces, valid[:, None], other=0) + count * apart * apart, 1, keep_dims=True)
    r = _rstd(square / M, eps)
    mu += tl.load(x + base, valid[:, None], other=0).to(tl.float32)
    if split == 0:
        tl.store(mean + plane[:, None], mu, valid[:, None])
        tl.store(rstd + plane[:, None], r, valid[:, None])
    scale = r * tiles.parameter(weight, c, valid, 1.0)
    b = tiles.parameter(bias, c, valid, 0.0)
    p_residual = tiles.residual_base(base, n, c, rs_n, rs_c, RES)
    p_y = tiles.base(plane, n, c, C, M_out, CL)
    start = (split.to(tl.int64) * CHUNK_OUT).to(M_out.dtype)
    _write_normalised(x, residual, y, base, p_residual, p_y, valid, mu, scale, b, C, M_out, start,
                      tl.minimum(start + CHUNK_OUT, M_out), rs_d, rs_h, rs_w, slope,
                      D, H, W, DIMS, PAD, CL, ACT, RES, BM, SPLITS == 1)
# fmt: on
