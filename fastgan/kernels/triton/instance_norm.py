r"""Instance norm + affine + residual + activation + reflection padding, its backward and double backward, in Triton.

The formulas are in :mod:`fastgan.reference.instance_norm`. Every kernel works on tiles [planes, elements]: in NCHW a
plane's elements lie next to each other, in channels_last its neighbours' do, and a tile takes whole 128-bit rows of
channels. One source serves both, with the offset of element m of a plane its base + m, or base + m C.

**Regimes**, chosen by :func:`setting` from bucketed sizes. With B the bytes of x, and B' those of the padded tensor:

=================  ============================================  =======================  ============================
                   where                                         forward                  backward; double backward
=================  ============================================  =======================  ============================
resident           a plane's elements fit in one program's       B + B'                   2B + B'; 3B + 2B'
                   registers: read once, written once
resident, grouped  many small planes share a program             the same                 the same
looped             many large planes: a program reads each       B + B' and the second    the same, and the second
                   twice, the second time from the cache if      read where the cache     reads
                   the planes in flight fit there                does not hold it
split              a plane is cut in `splits` pieces: one        2B + B'                  3B + 2B'; 5B + 3B'
                   launch reduces each, a second merges the
                   pieces' sums and reads the plane again, from
                   its end, which the L2 still holds
=================  ============================================  =======================  ============================

A residual adds B to each (2B where a split kernel must find the activation's cut twice), its gradient B. With
padding, forward and the double backward write the padded tensor by gathering from the plane again: those reads hit
the cache that the reduction has just filled, and are not counted. The backward of padding, which adds each border
element's copies to it, is a gather too: element (h, w) reads its up to nine copies; masked-off reads move nothing.

Statistics are float32: two passes over registers in a resident program; per-lane Welford updates in a split one,
merged by Chan's formula across lanes and then across pieces. The merge is done by every program of the second launch
in the same order, so results are deterministic and there are no atomics. Offsets across planes are 64-bit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels import layout
from fastgan.kernels.dispatch import Call
from fastgan.kernels.triton._launch import (
    INTERPRETED,
    launch,
    multiprocessors,
    unsupported_device,
    unsupported_dtype,
)
from fastgan.kernels.triton.aot import Budget, Case

_ACTIVATIONS = {"none": 0, "relu": 1, "leaky_relu": 2}


def supports(call: Call) -> str | None:
    """None when these kernels serve the call, else the reason why not."""
    return unsupported_device(call) or unsupported_dtype(call)


# fmt: off
# --- addressing ---------------------------------------------------------------------------------------------------
# CL: channels last. BP, BM: planes and elements of a tile. D, H, W: the plane's sizes (D = H = 1 where it has fewer
# dimensions); DIMS: how many they are, 1 where elements' coordinates do not matter. RES: 0 no residual, 1 one that lies
# in memory as x does, 2 one with strides rs_*.

# A kernel serves all sizes: what it needs to know of one is compiled in as ALIGN. D, H and W may be compiled in.
_SIZES = ("planes", "C", "M", "M_out", "D", "H", "W")


@triton.jit
def _aligned(C, M, M_out, W, CL: tl.constexpr, ALIGN: tl.constexpr, ALIGN_OUT: tl.constexpr, ALIGN_W: tl.constexpr):
    """C, M, M_out and W, such that the compiler sees which power of two divides the contiguous ones."""
    if CL:
        return C // ALIGN * ALIGN, M, M_out, W
    else:
        return C, M // ALIGN * ALIGN, M_out // ALIGN_OUT * ALIGN_OUT, W // ALIGN_W * ALIGN_W


@triton.jit
def _planes(program, planes, C, CL: tl.constexpr, BP: tl.constexpr):
    """Indices in [N, C], in N and in C (64-bit) of a program's planes [BP], and which exist; n may be scalar."""
    lane = tl.arange(0, BP)
    if CL:
        blocks = tl.cdiv(C, BP)
        n = (program // blocks).to(tl.int64)
        c = (program % blocks) * BP + lane
        plane = n * C + c
        valid = c < C
    else:
        # Dividing 64-bit numbers takes three times the registers: only where there are 2**31 planes.
        unsigned: tl.constexpr = tl.uint64 if planes.dtype == tl.int64 else tl.uint32
        index = program.to(unsigned) * BP + lane.to(unsigned)
        valid = index < planes.to(unsigned)
        plane = index.to(tl.int64)
        n = (index // C.to(unsigned)).to(tl.int64)
        c = (index % C.to(unsigned)).to(tl.int64)
    return plane, n, c, valid


@triton.jit
def _base(plane, n, c, C, M, CL: tl.constexpr):
    """Offset of each plane's first element in a dense tensor whose planes have M elements."""
    return (n * M * C + c if CL else plane * M)[:, None]


@triton.jit
def _within(m, C, CL: tl.constexpr):
    """Offset of element m within its plane, in a dense tensor."""
    return (m.to(tl.int64) * C if CL else m)[None, :]


@triton.jit
def _divide(i, by):
    """i // by and i % by, for i >= 0: without signs a division takes half as long."""
    unsigned: tl.constexpr = tl.uint64 if i.dtype == tl.int64 else tl.uint32
    i_unsigned, by_unsigned = i.to(unsigned), tl.cast(by, unsigned)
    return (i_unsigned // by_unsigned).to(i.dtype), (i_unsigned % by_unsigned).to(i.dtype)


@triton.jit
def _coordinates(m, H, W, DIMS: tl.constexpr):
    if DIMS == 1:
        return m * 0, m * 0, m
    else:
        row, w = _divide(m, W)
        if DIMS == 2:
            return row * 0, row, w
        else:
            d, h = _divide(row, H)
            return d, h, w


@triton.jit
def _load_residual(residual, p_plane, m, mask, C, rs_d, rs_h, rs_w, H, W, DIMS: tl.constexpr,
                   CL: tl.constexpr, RES: tl.constexpr):  # fmt: skip
    """[BP, BM]; p_plane from :func:`_residual_base`."""
    if RES == 0:
        return 0.0
    elif RES == 1:
        return tl.load(residual + p_plane + _within(m, C, CL), mask, other=0).to(tl.float32)
    else:
        d, h, w = _coordinates(m, H, W, DIMS)
        offset = d.to(tl.int64) * rs_d + h.to(tl.int64) * rs_h + w.to(tl.int64) * rs_w
        return tl.load(residual + p_plane + offset[None, :], mask, other=0).to(tl.float32)


@triton.jit
def _residual_base(base, n, c, rs_n, rs_c, RES: tl.constexpr):
    if RES == 2:
        return (n * rs_n + c.to(tl.int64) * rs_c)[:, None]
    else:
        return base


@triton.jit
def _reflect(i, SIZE, PAD: tl.constexpr):
    """Which element of a dimension its padded element i copies."""
    return SIZE - 1 - tl.abs(SIZE - 1 - tl.abs(i - PAD))


@triton.jit
def _source(j, D, H, W, DIMS: tl.constexpr, PAD: tl.constexpr):
    """Which element of the plane element j of the padded plane copies."""
    if PAD == 0:
        return j
    elif DIMS == 1:
        return _reflect(j, W, PAD)
    else:
        row, w = _divide(j, W + 2 * PAD)
        if DIMS == 2:
            return W * _reflect(row, H, PAD) + _reflect(w, W, PAD)
        else:
            d, h = _divide(row, H + 2 * PAD)
            return W * (H * _reflect(d, D, PAD) + _reflect(h, H, PAD)) + _reflect(w, W, PAD)


@triton.jit
def _copy(i, which: tl.constexpr, SIZE, PAD: tl.constexpr):
    """Where padding puts element i of a dimension (0: in the middle; 1, 2: mirrored before and behind), and if so."""
    if which == 0:
        return i + PAD, i >= 0
    elif which == 1:
        return PAD - i, (i >= 1) & (i <= PAD)
    else:
        return 2 * (SIZE - 1) - i + PAD, (i >= SIZE - 1 - PAD) & (i <= SIZE - 2)


@triton.jit
def _has_copy(first, last, which: tl.constexpr, SIZE, PAD: tl.constexpr):
    """Whether padding puts any of the elements first to last of a dimension there."""
    if which == 0:
        return True
    elif which == 1:
        return (first <= PAD) & (last >= 1)
    else:
        return (first <= SIZE - 2) & (last >= SIZE - 1 - PAD)


@triton.jit
def _add_copies(total, grad, base, d, h, w, mask, C, D, H, W, i: tl.constexpr, j: tl.constexpr, DIMS: tl.constexpr,
                PAD: tl.constexpr, CL: tl.constexpr):  # fmt: skip
    """Adds elements' copies in the rows where padding puts theirs."""
    if DIMS == 3:
        at_d, in_d = _copy(d, i, D, PAD)
    else:
        at_d, in_d = d, d >= 0
    if DIMS > 1:
        at_h, in_h = _copy(h, j, H, PAD)
    else:
        at_h, in_h = h, h >= 0
    row = (at_d * (H + 2 * PAD) + at_h) * (W + 2 * PAD)
    for k in tl.static_range(3):
        at_w, in_w = _copy(w, k, W, PAD)
        exists = mask & (in_d & in_h & in_w)[None, :]
        total += tl.load(grad + base + _within(row + at_w, C, CL), exists, other=0).to(tl.float32)
    return total


@triton.jit
def _load_folded(grad, base, m, at, mask, C, D, H, W, DIMS: tl.constexpr, PAD: tl.constexpr,
                 CL: tl.constexpr):  # fmt: skip
    """The padded gradient, each element's copies added to it: [BP, BM]. at: the first of the elements m.

    Only a tile that reaches a plane's first or last rows looks for copies in others than its own.
    """
    if PAD == 0:
        return tl.load(grad + base + _within(m, C, CL), mask, other=0).to(tl.float32)
    else:
        d, h, w = _coordinates(m, H, W, DIMS)
        first, last = at // W, (at + m.shape[0] - 1) // W
        first_d, last_d = first * 0, first * 0
        if DIMS == 3:
            first_d, last_d = first // H, last // H
            first, last = first * 0, H - 1
        total = tl.zeros(mask.shape, tl.float32)
        for i in tl.static_range(3 if DIMS == 3 else 1):
            for j in tl.static_range(3 if DIMS > 1 else 1):
                if _has_copy(first_d, last_d, i, D, PAD) & _has_copy(first, last, j, H, PAD):
                    total = _add_copies(total, grad, base, d, h, w, mask, C, D, H, W, i, j, DIMS, PAD, CL)
        return total


@triton.jit
def _parameter(pointer, c, valid, absent: tl.constexpr):
    """weight or bias of each plane [BP, 1], or what stands for an absent one."""
    if pointer is None:
        return absent
    else:
        return tl.load(pointer + c, valid, other=0).to(tl.float32)[:, None]


# --- pieces of the formulas ---------------------------------------------------------------------------------------


@triton.jit
def _activate(z, slope, ACT: tl.constexpr):
    if ACT == 1:
        return tl.where(z <= 0, 0.0, z)  # keeps NaN, as torch.relu does
    elif ACT == 2:
        return tl.where(z > 0, z, z * slope)
    else:
        return z


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
def _rstd(variance, eps):
    return 1.0 / tl.sqrt_rn(variance + eps)


@triton.jit
def _pieces(M, CHUNK, SPLITS: tl.constexpr):
    """How many elements each piece of a plane has: [1, SPLITS]."""
    start = tl.arange(0, SPLITS).to(tl.int64)[None, :] * CHUNK
    return tl.minimum(tl.maximum(M - start, 0), CHUNK).to(tl.float32)


@triton.jit
def _merge_sums(sums, plane, valid, planes, M, which: tl.constexpr, SPLITS: tl.constexpr):
    """The mean of the `which`-th sum over all pieces: [BP, 1]. sums [which, planes, SPLITS]."""
    at = sums + (which * planes + plane)[:, None] * SPLITS + tl.arange(0, SPLITS)[None, :]
    return tl.sum(tl.load(at, valid[:, None], other=0), 1, keep_dims=True) / M


# --- forward ------------------------------------------------------------------------------------------------------


@triton.jit
def _write_normalised(x, residual, y, base, p_residual, p_y, valid, mu, scale, b, C, M_out, start, stop,
                      rs_d, rs_h, rs_w, slope, D, H, W, DIMS: tl.constexpr,
                      PAD: tl.constexpr, CL: tl.constexpr, ACT: tl.constexpr, RES: tl.constexpr,
                      BM: tl.constexpr):  # fmt: skip
    """Elements start to stop of the (padded) result, from x in memory."""
    for at in range(start, stop, BM):
        j = at + tl.arange(0, BM)
        mask = valid[:, None] & (j < M_out)[None, :]
        m = _source(j, D, H, W, DIMS, PAD)
        b_x = tl.load(x + base + _within(m, C, CL), mask, other=0).to(tl.float32)
        z = (b_x - mu) * scale + b
        z += _load_residual(residual, p_residual, m, mask, C, rs_d, rs_h, rs_w, H, W, DIMS, CL, RES)
        tl.store(y + p_y + _within(j, C, CL), _activate(z, slope, ACT).to(y.dtype.element_ty), mask)


@triton.jit(do_not_specialize=_SIZES)
def forward_resident(
    x, weight, bias, residual, y, mean, rstd, planes, C, M, M_out, rs_n, rs_c, rs_d, rs_h, rs_w, eps, slope,
    D, H, W, DIMS: tl.constexpr, PAD: tl.constexpr, CL: tl.constexpr, ACT: tl.constexpr,
    RES: tl.constexpr, ALIGN: tl.constexpr, ALIGN_OUT: tl.constexpr, ALIGN_W: tl.constexpr, BP: tl.constexpr,
    BM: tl.constexpr,
):
    """Reads each plane once into registers: B + B' bytes (+ B for a residual)."""
    eps, slope = tl.cast(eps, tl.float32), tl.cast(slope, tl.float32)
    C, M, M_out, W = _aligned(C, M, M_out, W, CL, ALIGN, ALIGN_OUT, ALIGN_W)
    plane, n, c, valid = _planes(tl.program_id(0), planes, C, CL, BP)
    base = _base(plane, n, c, C, M, CL)
    m = tl.arange(0, BM)
    mask = valid[:, None] & (m < M)[None, :]
    b_x = tl.load(x + base + _within(m, C, CL), mask, other=0).to(tl.float32)
    mu = tl.sum(b_x, 1, keep_dims=True) / M
    centred = tl.where(mask, b_x - mu, 0.0)
    r = _rstd(tl.sum(centred * centred, 1, keep_dims=True) / M, eps)
    tl.store(mean + plane[:, None], mu, valid[:, None])
    tl.store(rstd + plane[:, None], r, valid[:, None])
    scale = r * _parameter(weight, c, valid, 1.0)
    b = _parameter(bias, c, valid, 0.0)
    p_residual = _residual_base(base, n, c, rs_n, rs_c, RES)
    if PAD == 0:
        z = centred * scale + b
        z += _load_residual(residual, p_residual, m, mask, C, rs_d, rs_h, rs_w, H, W, DIMS, CL, RES)
        tl.store(y + base + _within(m, C, CL), _activate(z, slope, ACT).to(y.dtype.element_ty), mask)
    else:
        BO: tl.constexpr = BM if BP * BM <= 4096 else 4096 // BP
        p_y = _base(plane, n, c, C, M_out, CL)
        _write_normalised(x, residual, y, base, p_residual, p_y, valid, mu, scale, b, C, M_out, 0, M_out,
                          rs_d, rs_h, rs_w, slope, D, H, W, DIMS, PAD, CL, ACT, RES, BO)  # fmt: skip


@triton.jit
def _moments(x, base, valid, C, M, start, stop, CL: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr):
    """Mean of x, and sum of squared deviations, over elements start to stop of each plane: [BP, 1] each.

    About the plane's first element: means are then rounded at the scale of the deviations, however far x is off.
    """
    origin = tl.load(x + base, valid[:, None], other=0).to(tl.float32)
    lane_mean = tl.zeros([BP, BM], tl.float32)
    lane_square = tl.zeros([BP, BM], tl.float32)
    seen = 0.0
    for at in range(start, stop, BM):
        m = at + tl.arange(0, BM)
        mask = valid[:, None] & (m < M)[None, :]
        b_x = tl.load(x + base + _within(m, C, CL), mask, other=0).to(tl.float32) - origin
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


@triton.jit(do_not_specialize=_SIZES)
def forward_moments(x, means, squares, planes, C, M, CHUNK, CL: tl.constexpr, ALIGN: tl.constexpr,
                    BP: tl.constexpr, BM: tl.constexpr, SPLITS: tl.constexpr):
    """Mean and sum of squared deviations of one piece of each plane: B bytes. CHUNK is a multiple of BM."""
    C, M, _, _ = _aligned(C, M, M, M, CL, ALIGN, ALIGN, ALIGN)
    plane, n, c, valid = _planes(tl.program_id(0), planes, C, CL, BP)
    split = tl.program_id(1)
    start = (split.to(tl.int64) * CHUNK).to(M.dtype)
    mu, square = _moments(x, _base(plane, n, c, C, M, CL), valid, C, M, start, tl.minimum(start + CHUNK, M), CL, BP, BM)
    at = (plane * SPLITS + split)[:, None]
    tl.store(means + at, mu, valid[:, None])
    tl.store(squares + at, square, valid[:, None])


@triton.jit(do_not_specialize=_SIZES)
def forward_apply(
    x, weight, bias, residual, y, mean, rstd, means, squares, planes, C, M, M_out, CHUNK, CHUNK_OUT, rs_n, rs_c,
    rs_d, rs_h, rs_w, eps, slope, D, H, W, DIMS: tl.constexpr, PAD: tl.constexpr,
    CL: tl.constexpr, ACT: tl.constexpr, RES: tl.constexpr, ALIGN: tl.constexpr, ALIGN_OUT: tl.constexpr,
    ALIGN_W: tl.constexpr,
    BP: tl.constexpr, BM: tl.constexpr, SPLITS: tl.constexpr,
):
    """Merges the pieces' moments and writes one piece of each result: B + B' bytes (+ B for a residual).

    With one piece only, it reduces it first.
    """
    eps, slope = tl.cast(eps, tl.float32), tl.cast(slope, tl.float32)
    C, M, M_out, W = _aligned(C, M, M_out, W, CL, ALIGN, ALIGN_OUT, ALIGN_W)
    # From the end: what the first launch read last is still in the L2.
    plane, n, c, valid = _planes(tl.num_programs(0) - 1 - tl.program_id(0), planes, C, CL, BP)
    split = tl.num_programs(1) - 1 - tl.program_id(1)
    base = _base(plane, n, c, C, M, CL)
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
    scale = r * _parameter(weight, c, valid, 1.0)
    b = _parameter(bias, c, valid, 0.0)
    p_residual = _residual_base(base, n, c, rs_n, rs_c, RES)
    p_y = _base(plane, n, c, C, M_out, CL)
    start = (split.to(tl.int64) * CHUNK_OUT).to(M_out.dtype)
    _write_normalised(x, residual, y, base, p_residual, p_y, valid, mu, scale, b, C, M_out, start,
                      tl.minimum(start + CHUNK_OUT, M_out), rs_d, rs_h, rs_w, slope,
                      D, H, W, DIMS, PAD, CL, ACT, RES, BM)  # fmt: skip


# --- backward -----------------------------------------------------------------------------------------------------


@triton.jit
def _load_terms(grad, x, residual, base, p_grad, p_residual, m, at, mask, mu, r, w, b, C, rs_d, rs_h, rs_w, slope,
                D, H, W, DIMS: tl.constexpr, PAD: tl.constexpr, CL: tl.constexpr,
                ACT: tl.constexpr, RES: tl.constexpr):  # fmt: skip
    """xhat and g of elements m: [BP, BM]."""
    b_grad = _load_folded(grad, p_grad, m, at, mask, C, D, H, W, DIMS, PAD, CL)
    xhat, cut = _load_cut(x, residual, base, p_residual, m, mask, mu, r, w, b, C, rs_d, rs_h, rs_w, slope,
                          H, W, DIMS, CL, ACT, RES)  # fmt: skip
    return xhat, b_grad * cut


@triton.jit
def _load_cut(x, residual, base, p_residual, m, mask, mu, r, w, b, C, rs_d, rs_h, rs_w, slope, H, W,
              DIMS: tl.constexpr, CL: tl.constexpr, ACT: tl.constexpr, RES: tl.constexpr):  # fmt: skip
    """xhat and act'(z) of elements m: [BP, BM]."""
    centred = tl.load(x + base + _within(m, C, CL), mask, other=0).to(tl.float32) - mu
    # The forward pass rounds z in the same way.
    z = centred * (r * w) + b
    if ACT != 0:
        z += _load_residual(residual, p_residual, m, mask, C, rs_d, rs_h, rs_w, H, W, DIMS, CL, RES)
    return centred * r, _derivative(z, slope, ACT)


@triton.jit
def _store(pointer, base, m, value, mask, C, CL: tl.constexpr):
    tl.store(pointer + base + _within(m, C, CL), value.to(pointer.dtype.element_ty), mask)


@triton.jit
def _statistics(mean, rstd, weight, bias, plane, c, valid):
    """mu, r, w and b of each plane: [BP, 1]."""
    mu = tl.load(mean + plane, valid, other=0)[:, None]
    r = tl.load(rstd + plane, valid, other=0)[:, None]
    return mu, r, _parameter(weight, c, valid, 1.0), _parameter(bias, c, valid, 0.0)


@triton.jit(do_not_specialize=_SIZES)
def backward_resident(
    grad, x, weight, bias, residual, mean, rstd, grad_x, grad_z, m1, m2, planes, C, M, M_out, rs_n, rs_c, rs_d,
    rs_h, rs_w, slope, D, H, W, DIMS: tl.constexpr, PAD: tl.constexpr, CL: tl.constexpr,
    ACT: tl.constexpr, RES: tl.constexpr, ALIGN: tl.constexpr, ALIGN_OUT: tl.constexpr, ALIGN_W: tl.constexpr,
    BP: tl.constexpr,
    BM: tl.constexpr,
):
    """Reads grad and x once: 2B + B' bytes (+ B for a residual, + B for grad_z)."""
    slope = tl.cast(slope, tl.float32)
    C, M, M_out, W = _aligned(C, M, M_out, W, CL, ALIGN, ALIGN_OUT, ALIGN_W)
    plane, n, c, valid = _planes(tl.program_id(0), planes, C, CL, BP)
    mu, r, w, b = _statistics(mean, rstd, weight, bias, plane, c, valid)
    base = _base(plane, n, c, C, M, CL)
    m = tl.arange(0, BM)
    mask = valid[:, None] & (m < M)[None, :]
    xhat, g = _load_terms(grad, x, residual, base, _base(plane, n, c, C, M_out, CL),
                          _residual_base(base, n, c, rs_n, rs_c, RES), m, 0, mask, mu, r, w, b, C, rs_d, rs_h, rs_w,
                          slope, D, H, W, DIMS, PAD, CL, ACT, RES)  # fmt: skip
    mean_1 = tl.sum(g, 1, keep_dims=True) / M
    mean_2 = tl.sum(g * xhat, 1, keep_dims=True) / M
    tl.store(m1 + plane[:, None], mean_1, valid[:, None])
    tl.store(m2 + plane[:, None], mean_2, valid[:, None])
    _store(grad_x, base, m, (r * w) * (g - mean_1 - xhat * mean_2), mask, C, CL)
    if grad_z is not None:
        _store(grad_z, base, m, g, mask, C, CL)


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
        xhat, g = _load_terms(grad, x, residual, base, p_grad, p_residual, m, at, mask, mu, r, w, b, C,
                              rs_d, rs_h, rs_w, slope, D, H, W, DIMS, PAD, CL, ACT, RES)  # fmt: skip
        sum_1 += g
        sum_2 += g * xhat
    return tl.sum(sum_1, 1, keep_dims=True), tl.sum(sum_2, 1, keep_dims=True)


@triton.jit(do_not_specialize=_SIZES)
def backward_sums(
    grad, x, weight, bias, residual, mean, rstd, sums, planes, C, M, M_out, CHUNK, rs_n, rs_c, rs_d, rs_h, rs_w,
    slope, D, H, W, DIMS: tl.constexpr, PAD: tl.constexpr, CL: tl.constexpr,
    ACT: tl.constexpr, RES: tl.constexpr, ALIGN: tl.constexpr, ALIGN_OUT: tl.constexpr, ALIGN_W: tl.constexpr,
    BP: tl.constexpr,
    BM: tl.constexpr, SPLITS: tl.constexpr,
):
    """Sums of g and of g xhat over one piece of each plane: B + B' bytes (+ B for a residual)."""
    slope = tl.cast(slope, tl.float32)
    C, M, M_out, W = _aligned(C, M, M_out, W, CL, ALIGN, ALIGN_OUT, ALIGN_W)
    plane, n, c, valid = _planes(tl.program_id(0), planes, C, CL, BP)
    mu, r, w, b = _statistics(mean, rstd, weight, bias, plane, c, valid)
    base = _base(plane, n, c, C, M, CL)
    p_grad = _base(plane, n, c, C, M_out, CL)
    p_residual = _residual_base(base, n, c, rs_n, rs_c, RES)
    split = tl.program_id(1)
    start = (split.to(tl.int64) * CHUNK).to(M.dtype)
    sum_1, sum_2 = _sum_terms(grad, x, residual, base, p_grad, p_residual, valid, mu, r, w, b, C, M, start,
                              tl.minimum(start + CHUNK, M), rs_d, rs_h, rs_w, slope, D, H, W, DIMS, PAD, CL, ACT, RES,
                              BP, BM)
    at = sums + (plane * SPLITS + split)[:, None]
    tl.store(at, sum_1, valid[:, None])
    tl.store(at + tl.cast(planes, tl.int64) * SPLITS, sum_2, valid[:, None])


@triton.jit(do_not_specialize=_SIZES)
def backward_apply(
    grad, x, weight, bias, residual, mean, rstd, sums, grad_x, grad_z, m1, m2, planes, C, M, M_out, CHUNK, rs_n,
    rs_c, rs_d, rs_h, rs_w, slope, D, H, W, DIMS: tl.constexpr, PAD: tl.constexpr,
    CL: tl.constexpr, ACT: tl.constexpr, RES: tl.constexpr, ALIGN: tl.constexpr, ALIGN_OUT: tl.constexpr,
    ALIGN_W: tl.constexpr,
    BP: tl.constexpr, BM: tl.constexpr, SPLITS: tl.constexpr,
):
    """Merges the sums and writes one piece of each gradient: 2B + B' bytes (+ B for a residual, + B for grad_z).

    With one piece only, it reduces it first.
    """
    slope = tl.cast(slope, tl.float32)
    C, M, M_out, W = _aligned(C, M, M_out, W, CL, ALIGN, ALIGN_OUT, ALIGN_W)
    plane, n, c, valid = _planes(tl.num_programs(0) - 1 - tl.program_id(0), planes, C, CL, BP)
    split = tl.num_programs(1) - 1 - tl.program_id(1)
    mu, r, w, b = _statistics(mean, rstd, weight, bias, plane, c, valid)
    base = _base(plane, n, c, C, M, CL)
    p_grad = _base(plane, n, c, C, M_out, CL)
    p_residual = _residual_base(base, n, c, rs_n, rs_c, RES)
    if SPLITS == 1:
        mean_1, mean_2 = _sum_terms(grad, x, residual, base, p_grad, p_residual, valid, mu, r, w, b, C, M, 0, M,
                                    rs_d, rs_h, rs_w, slope, D, H, W, DIMS, PAD, CL, ACT, RES, BP, BM)
        mean_1, mean_2 = mean_1 / M, mean_2 / M
    else:
        mean_1 = _merge_sums(sums, plane, valid, planes, M, 0, SPLITS)
        mean_2 = _merge_sums(sums, plane, valid, planes, M, 1, SPLITS)
    if split == 0:
        tl.store(m1 + plane[:, None], mean_1, valid[:, None])
        tl.store(m2 + plane[:, None], mean_2, valid[:, None])
    start = (split.to(tl.int64) * CHUNK).to(M.dtype)
    for at in range(start, tl.minimum(start + CHUNK, M), BM):
        m = at + tl.arange(0, BM)
        mask = valid[:, None] & (m < M)[None, :]
        xhat, g = _load_terms(grad, x, residual, base, p_grad, p_residual, m, at, mask, mu, r, w, b, C,
                              rs_d, rs_h, rs_w, slope, D, H, W, DIMS, PAD, CL, ACT, RES)  # fmt: skip
        _store(grad_x, base, m, (r * w) * (g - mean_1 - xhat * mean_2), mask, C, CL)
        if grad_z is not None:
            _store(grad_z, base, m, g, mask, C, CL)


# --- double backward ----------------------------------------------------------------------------------------------


@triton.jit
def _gradient_of_grad(u, xhat, cut, mean_u, a, s, v_w, v_b, v_r):
    return (s * (u - mean_u - xhat * a) + v_w * xhat + v_b + v_r) * cut


@triton.jit
def _gradient_of_x(u, xhat, g, mean_u, a, q, mean_1, mean_2, r, s, v_w):
    curved = (u - mean_u) * mean_2 + (g - mean_1) * a + xhat * (q - mean_u * mean_1 - 3.0 * a * mean_2)
    return r * (v_w * (g - mean_1 - xhat * mean_2) - s * curved)


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
        m = _source(j, D, H, W, DIMS, PAD)
        b_u = tl.load(u + base + _within(m, C, CL), mask, other=0).to(tl.float32)
        v_r = _load_residual(v_residual, base, m, mask, C, 0, 0, 0, H, W, DIMS, CL, 0 if v_residual is None else 1)
        xhat, cut = _load_cut(x, residual, base, p_residual, m, mask, mu, r, w, b, C, rs_d, rs_h, rs_w, slope,
                              H, W, DIMS, CL, ACT, RES)  # fmt: skip
        _store(grad_grad, p_out, j, _gradient_of_grad(b_u, xhat, cut, mean_u, a, r * w, v_w, v_b, v_r), mask, C, CL)


@triton.jit(do_not_specialize=_SIZES)
def double_resident(
    u, v_residual, v_weight, v_bias, grad, x, weight, bias, residual, mean, rstd, m1, m2, grad_grad, grad_x,
    grad_weight, planes, C, M, M_out, rs_n, rs_c, rs_d, rs_h, rs_w, slope, D, H,
    W,
    DIMS: tl.constexpr, PAD: tl.constexpr, CL: tl.constexpr, ACT: tl.constexpr, RES: tl.constexpr, ALIGN: tl.constexpr,
    ALIGN_OUT: tl.constexpr, ALIGN_W: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr,
):
    """Reads u, grad and x once: 3B + 2B' bytes (+ B for a residual, + B for v_residual)."""
    slope = tl.cast(slope, tl.float32)
    C, M, M_out, W = _aligned(C, M, M_out, W, CL, ALIGN, ALIGN_OUT, ALIGN_W)
    plane, n, c, valid = _planes(tl.program_id(0), planes, C, CL, BP)
    mu, r, w, b = _statistics(mean, rstd, weight, bias, plane, c, valid)
    mean_1 = tl.load(m1 + plane, valid, other=0)[:, None]
    mean_2 = tl.load(m2 + plane, valid, other=0)[:, None]
    v_w = _parameter(v_weight, c, valid, 0.0)
    v_b = _parameter(v_bias, c, valid, 0.0)
    base = _base(plane, n, c, C, M, CL)
    p_grad = _base(plane, n, c, C, M_out, CL)
    p_residual = _residual_base(base, n, c, rs_n, rs_c, RES)
    m = tl.arange(0, BM)
    mask = valid[:, None] & (m < M)[None, :]
    b_u = tl.load(u + base + _within(m, C, CL), mask, other=0).to(tl.float32)
    xhat, cut = _load_cut(x, residual, base, p_residual, m, mask, mu, r, w, b, C, rs_d, rs_h, rs_w, slope,
                          H, W, DIMS, CL, ACT, RES)  # fmt: skip
    g = _load_folded(grad, p_grad, m, 0, mask, C, D, H, W, DIMS, PAD, CL) * cut
    mean_u = tl.sum(b_u, 1, keep_dims=True) / M
    a = tl.sum(b_u * xhat, 1, keep_dims=True) / M
    q = tl.sum(b_u * g, 1, keep_dims=True) / M
    tl.store(grad_weight + plane[:, None], r * M * (q - mean_u * mean_1 - a * mean_2), valid[:, None])
    _store(grad_x, base, m, _gradient_of_x(b_u, xhat, g, mean_u, a, q, mean_1, mean_2, r, r * w, v_w), mask, C, CL)
    if PAD == 0:
        v_r = _load_residual(v_residual, base, m, mask, C, 0, 0, 0, H, W, DIMS, CL, 0 if v_residual is None else 1)
        _store(grad_grad, base, m, _gradient_of_grad(b_u, xhat, cut, mean_u, a, r * w, v_w, v_b, v_r), mask, C, CL)
    else:
        BO: tl.constexpr = BM if BP * BM <= 4096 else 4096 // BP
        _write_padded_gradient_of_grad(
            u, v_residual, x, residual, grad_grad, base, p_residual, p_grad, valid, mu, r, w, b, mean_u, a, v_w, v_b,
            C, M_out, 0, M_out, rs_d, rs_h, rs_w, slope, D, H, W, DIMS, PAD, CL, ACT, RES, BO,
        )  # fmt: skip


@triton.jit
def _sum_products(u, grad, x, residual, base, p_grad, p_residual, valid, mu, r, w, b, C, M, start, stop, rs_d, rs_h,
                  rs_w, slope, D, H, W, DIMS: tl.constexpr, PAD: tl.constexpr,
                  CL: tl.constexpr, ACT: tl.constexpr, RES: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr):
    """Sums of u, u xhat and u g over elements start to stop of each plane: [BP, 1] each."""
    sum_u = tl.zeros([BP, BM], tl.float32)
    sum_a = tl.zeros([BP, BM], tl.float32)
    sum_q = tl.zeros([BP, BM], tl.float32)
    for at in range(start, stop, BM):
        m = at + tl.arange(0, BM)
        mask = valid[:, None] & (m < M)[None, :]
        b_u = tl.load(u + base + _within(m, C, CL), mask, other=0).to(tl.float32)
        xhat, g = _load_terms(grad, x, residual, base, p_grad, p_residual, m, at, mask, mu, r, w, b, C,
                              rs_d, rs_h, rs_w, slope, D, H, W, DIMS, PAD, CL, ACT, RES)  # fmt: skip
        sum_u += b_u
        sum_a += b_u * xhat
        sum_q += b_u * g
    return tl.sum(sum_u, 1, keep_dims=True), tl.sum(sum_a, 1, keep_dims=True), tl.sum(sum_q, 1, keep_dims=True)


@triton.jit(do_not_specialize=_SIZES)
def double_sums(
    u, grad, x, weight, bias, residual, mean, rstd, sums, planes, C, M, M_out, CHUNK, rs_n, rs_c, rs_d, rs_h, rs_w,
    slope, D, H, W, DIMS: tl.constexpr, PAD: tl.constexpr, CL: tl.constexpr,
    ACT: tl.constexpr, RES: tl.constexpr, ALIGN: tl.constexpr, ALIGN_OUT: tl.constexpr, ALIGN_W: tl.constexpr,
    BP: tl.constexpr,
    BM: tl.constexpr, SPLITS: tl.constexpr,
):
    """Sums of u, u xhat and u g over one piece of each plane: 2B + B' bytes (+ B for a residual)."""
    slope = tl.cast(slope, tl.float32)
    C, M, M_out, W = _aligned(C, M, M_out, W, CL, ALIGN, ALIGN_OUT, ALIGN_W)
    plane, n, c, valid = _planes(tl.program_id(0), planes, C, CL, BP)
    mu, r, w, b = _statistics(mean, rstd, weight, bias, plane, c, valid)
    base = _base(plane, n, c, C, M, CL)
    p_grad = _base(plane, n, c, C, M_out, CL)
    p_residual = _residual_base(base, n, c, rs_n, rs_c, RES)
    split = tl.program_id(1)
    start = (split.to(tl.int64) * CHUNK).to(M.dtype)
    sum_u, sum_a, sum_q = _sum_products(
        u, grad, x, residual, base, p_grad, p_residual, valid, mu, r, w, b, C, M, start, tl.minimum(start + CHUNK, M),
        rs_d, rs_h, rs_w, slope, D, H, W, DIMS, PAD, CL, ACT, RES, BP, BM,
    )
    at = sums + (plane * SPLITS + split)[:, None]
    stride = tl.cast(planes, tl.int64) * SPLITS
    tl.store(at, sum_u, valid[:, None])
    tl.store(at + stride, sum_a, valid[:, None])
    tl.store(at + 2 * stride, sum_q, valid[:, None])


@triton.jit(do_not_specialize=_SIZES)
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
    C, M, M_out, W = _aligned(C, M, M_out, W, CL, ALIGN, ALIGN_OUT, ALIGN_W)
    plane, n, c, valid = _planes(tl.num_programs(0) - 1 - tl.program_id(0), planes, C, CL, BP)
    split = tl.num_programs(1) - 1 - tl.program_id(1)
    mu, r, w, b = _statistics(mean, rstd, weight, bias, plane, c, valid)
    mean_1 = tl.load(m1 + plane, valid, other=0)[:, None]
    mean_2 = tl.load(m2 + plane, valid, other=0)[:, None]
    v_w = _parameter(v_weight, c, valid, 0.0)
    v_b = _parameter(v_bias, c, valid, 0.0)
    base = _base(plane, n, c, C, M, CL)
    p_grad = _base(plane, n, c, C, M_out, CL)
    p_residual = _residual_base(base, n, c, rs_n, rs_c, RES)
    if SPLITS == 1:
        mean_u, a, q = _sum_products(u, grad, x, residual, base, p_grad, p_residual, valid, mu, r, w, b, C, M, 0, M,
                                     rs_d, rs_h, rs_w, slope, D, H, W, DIMS, PAD, CL, ACT, RES, BP, BM)
        mean_u, a, q = mean_u / M, a / M, q / M
    else:
        mean_u = _merge_sums(sums, plane, valid, planes, M, 0, SPLITS)
        a = _merge_sums(sums, plane, valid, planes, M, 1, SPLITS)
        q = _merge_sums(sums, plane, valid, planes, M, 2, SPLITS)
    if split == 0:
        tl.store(grad_weight + plane[:, None], r * M * (q - mean_u * mean_1 - a * mean_2), valid[:, None])
    start = (split.to(tl.int64) * CHUNK).to(M.dtype)
    for at in range(start, tl.minimum(start + CHUNK, M), BM):
        m = at + tl.arange(0, BM)
        mask = valid[:, None] & (m < M)[None, :]
        b_u = tl.load(u + base + _within(m, C, CL), mask, other=0).to(tl.float32)
        xhat, cut = _load_cut(x, residual, base, p_residual, m, mask, mu, r, w, b, C, rs_d, rs_h, rs_w, slope,
                              H, W, DIMS, CL, ACT, RES)  # fmt: skip
        g = _load_folded(grad, p_grad, m, at, mask, C, D, H, W, DIMS, PAD, CL) * cut
        _store(grad_x, base, m, _gradient_of_x(b_u, xhat, g, mean_u, a, q, mean_1, mean_2, r, r * w, v_w), mask, C, CL)
        if PAD == 0:
            v_r = _load_residual(v_residual, base, m, mask, C, 0, 0, 0, H, W, DIMS, CL, 0 if v_residual is None else 1)
            _store(grad_grad, base, m, _gradient_of_grad(b_u, xhat, cut, mean_u, a, r * w, v_w, v_b, v_r), mask, C, CL)
    if PAD != 0:
        start_out = (split.to(tl.int64) * CHUNK_OUT).to(M_out.dtype)
        _write_padded_gradient_of_grad(
            u, v_residual, x, residual, grad_grad, base, p_residual, p_grad, valid, mu, r, w, b, mean_u, a, v_w, v_b,
            C, M_out, start_out, tl.minimum(start_out + CHUNK_OUT, M_out), rs_d, rs_h, rs_w, slope,
            D, H, W, DIMS, PAD, CL, ACT, RES, BM,
        )  # fmt: skip


# fmt: on
# --- the launch table ---------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """A tile of `planes` x `elements`, and in how many pieces a plane is cut (0: resident, 1: looped over)."""

    planes: int
    elements: int
    splits: int
    num_warps: int


# The most elements of a tile, and how many of them a thread takes. Bounded by registers: a padded gradient is
# gathered, the double backward keeps four values for each element, and channels_last computes an address for every
# row. `aot` shows that none of these spills, and how many warps stay resident.
_RESIDENT = {  # operator -> NCHW, NCHW gathered, channels_last, channels_last gathered
    "forward": ((16384, 16), (8192, 8), (8192, 16), (8192, 16)),
    "backward": ((16384, 16), (4096, 8), (8192, 16), (4096, 8)),
    "double_backward": ((8192, 16), (2048, 8), (4096, 8), (2048, 4)),
}
_SPLIT = {  # operator -> plain, gathered
    "forward": ((4096, 16), (4096, 16)),
    "backward": ((2048, 8), (1024, 4)),
    "double_backward": ((2048, 8), (1024, 4)),
}

# Elements of a thread, of 1024: where 128 bits are read at a time, and where one element is.
_LOOPED = {"forward": (8, 8), "backward": (8, 2), "double_backward": (8, 2)}


@lru_cache(maxsize=1024)
def setting(
    operator: str,
    planes: int,
    channels: int,
    elements: int,
    itemsize: int,
    channels_last: bool,
    padded: bool,
    volume: bool,
    processors: int,
    strided: bool = False,
) -> Setting:
    """The regime and tile for `planes` planes of `elements` elements on a device with `processors` multiprocessors.

    A plane (in channels_last: a 32-byte row of channels of every element) that fits in a program's registers stays
    there. Small ones are grouped, as far as two waves of programs remain. Larger ones are cut so that four programs
    exist for each multiprocessor, but into at most sqrt(elements) / 2 pieces: every program of the second launch reads
    the sums of all pieces of its planes, which must stay few against its own elements. Where that leaves one piece,
    one large program for each plane loops over it twice; a multiprocessor holds one or two, so that the planes in
    flight fit in the L2.

    Planes that are no multiple of 16 bytes and, in NCHW, padding and a residual that is a strided view are read element
    by element: each has an address and a mask of its own, which take registers, and so do the numbers of each plane of
    a group.
    """
    gathered = padded or strided
    most_resident, per_thread = _RESIDENT[operator][2 * channels_last + gathered]
    odd = (channels if channels_last else elements) % (16 // itemsize) > 0
    single = odd or (gathered and not channels_last)
    if odd and (channels_last or not gathered):
        most_resident //= 2
    if volume and padded and operator != "forward":  # gathered by 27 loads
        most_resident //= 2
    most_grouped = 4096 if operator == "forward" else 2048
    width = triton.next_power_of_2(elements)
    least = min(triton.next_power_of_2(channels), 32 // itemsize) if channels_last else 1
    if least * width <= most_resident:
        most = triton.next_power_of_2(channels) if channels_last else planes
        group = least
        while group * 2 <= most and 2 * group * width <= most_grouped and planes >= 2 * group * 2 * processors:
            group *= 2
        if operator != "forward":
            tile = group * width
            per_thread = min(per_thread, max(4, tile // 512) if single else 8 if tile <= 2048 else 16)
        return Setting(group, width, 0, _warps(group * width, per_thread))
    group = min(triton.next_power_of_2(channels), 128 // itemsize) if channels_last else 1
    tile, per_thread = _SPLIT[operator][gathered]
    if odd and (channels_last or not gathered):
        per_thread //= 2
    elif channels_last and operator != "double_backward":
        per_thread = max(per_thread, 16 // itemsize)  # 128 bits
    width = min(width, tile // group)
    blocks = -(-channels // group) * (planes // channels) if channels_last else planes
    most = min(triton.next_power_of_2(int(elements**0.5)) // 2, -(-elements // width), 256)
    splits = 1
    while splits * 2 <= most and splits * blocks < 4 * processors:
        splits *= 2
    if splits == 1 and not channels_last:
        return Setting(1, min(triton.next_power_of_2(elements), 1024 * _LOOPED[operator][single]), 1, 32)
    return Setting(group, width, splits, _warps(group * width, per_thread))


def _warps(tile: int, per_thread: int) -> int:
    """With 32 warps a thread has 64 registers: they hold no 16 elements beside their addresses."""
    return min(max(tile // (32 * per_thread), 1), 32 if per_thread <= 8 else 16)


class _Plan(NamedTuple):
    """What every launch of a call on such shapes and strides shares; computed once for each."""

    setting: Setting
    grid: tuple[int, ...]
    padded: tuple[int, ...]
    planes: int
    sizes: tuple[int, ...]  # planes, channels, elements of a plane, and of a padded one
    chunks: tuple[int, ...]  # how many of a plane's elements, and of a padded plane's, a split program takes
    strides: tuple[int, ...]
    flags: dict[str, Any]


@lru_cache(maxsize=4096)
def _plan(
    operator: str,
    shape: tuple[int, ...],
    itemsize: int,
    channels_last: bool,
    residual: tuple[int, ...] | None,
    activation: str,
    pad: int,
    processors: int,
) -> _Plan:
    """residual: None without one, () for one that lies in memory as x does, else its strides."""
    n, channels, *spatial = shape
    planes, elements = n * channels, math.prod(spatial)
    padded = (n, channels, *(size + 2 * pad for size in spatial))
    out_elements = math.prod(padded[2:])
    chosen = setting(
        operator, planes, channels, elements, itemsize, channels_last, pad > 0, len(spatial) == 3, processors,
        bool(residual),
    )  # fmt: skip
    blocks = n * -(-channels // chosen.planes) if channels_last else -(-planes // chosen.planes)
    kind = 0 if residual is None else 2 if residual else 1
    sizes = (1,) * (3 - len(spatial)) + tuple(spatial)
    dims = len(spatial) if pad or kind == 2 else 1  # else elements' coordinates do not matter
    alignment_w = 1 if channels_last or dims == 1 else _alignment(sizes[2])
    if dims > 1 and not channels_last:
        sizes = _compiled_in(sizes)
    flags = {
        **dict(zip("DHW", sizes, strict=True)), "DIMS": dims, "PAD": pad, "CL": channels_last,
        "ACT": _ACTIVATIONS[activation], "RES": kind, "ALIGN": _alignment(channels if channels_last else elements),
        "ALIGN_OUT": 1 if channels_last else _alignment(out_elements),
        "ALIGN_W": alignment_w, "BP": chosen.planes, "BM": chosen.elements,
        "num_warps": chosen.num_warps,
    }  # fmt: skip
    odd = flags["ALIGN"] * itemsize < 16
    if chosen.num_warps <= 16 and (odd or ((pad or kind) and not (operator == "forward" and channels_last))):
        # Left alone, the assembler rather spills a few of these kernels' registers than use one more than lets another
        # program fit. This many let 16 warps.
        flags["maxnreg"] = 128
    chunks: tuple[int, ...] = ()
    if chosen.splits:
        flags["SPLITS"] = chosen.splits
        chunks = tuple(
            -(-size // (chosen.elements * chosen.splits)) * chosen.elements for size in (elements, out_elements)
        )
    return _Plan(
        setting=chosen,
        grid=(blocks, chosen.splits) if chosen.splits else (blocks,),
        padded=padded,
        planes=planes,
        sizes=(planes, channels, elements, out_elements),
        chunks=chunks,
        strides=(*residual[:2], *(0,) * (5 - len(residual)), *residual[2:]) if residual else (0,) * 5,
        flags=flags,
    )


_sizes_compiled_in: set[tuple[int, ...]] = set()


def _compiled_in(sizes: tuple[int, ...]) -> tuple[Any, ...]:
    """Sizes that are compiled in, as far as they are few: in NCHW every element of every thread divides by them.

    A network whose images change their size would compile for ever.
    """
    if INTERPRETED or (sizes not in _sizes_compiled_in and len(_sizes_compiled_in) >= 16):
        return sizes
    _sizes_compiled_in.add(sizes)
    return tuple(map(tl.constexpr, sizes))


def _alignment(n: int) -> int:
    """The largest power of two, up to 16, that divides n."""
    return min(n & -n, 16)


def _prepare(
    operator: str, x: Tensor, residual: Tensor | None, activation: str, pad: int
) -> tuple[Tensor, bool, _Plan]:
    """x, dense in its layout; whether that is channels last; the plan."""
    last = layout.is_channels_last(x)
    strides = None if residual is None else () if layout.is_dense(residual, last) else residual.stride()
    plan = _plan(operator, x.shape, x.element_size(), last, strides, activation, pad, multiprocessors(x.device))
    return layout.dense(x, last), last, plan


# --- the operators ------------------------------------------------------------------------------------------------


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
    """See :func:`fastgan.reference.instance_norm.forward`."""
    if x.numel() == 0:
        return _empty(x, reflect_pad), _per_plane(x), _per_plane(x)
    x, last, plan = _prepare("forward", x, residual, activation, reflect_pad)
    y = layout.empty(plan.padded, last, dtype=x.dtype, device=x.device)
    mean, rstd = _per_plane(x), _per_plane(x)
    tensors = (x, _contiguous(weight), _contiguous(bias), residual, y, mean, rstd)
    scalars = (*plan.strides, eps, negative_slope)
    if not plan.setting.splits:
        launch(forward_resident, plan.grid, x.device, *tensors, *plan.sizes, *scalars, **plan.flags)
        return y, mean, rstd
    means = squares = None
    if plan.setting.splits > 1:
        means, squares = _pieces_of(x, plan, 2)
        reduce = {name: plan.flags[name] for name in ("CL", "ALIGN", "BP", "BM", "SPLITS", "num_warps")}
        launch(forward_moments, plan.grid, x.device, x, means, squares, *plan.sizes[:3], plan.chunks[0], **reduce)
    launch(
        forward_apply, plan.grid, x.device, *tensors, means, squares, *plan.sizes, *plan.chunks, *scalars, **plan.flags
    )
    return y, mean, rstd


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
    need_grad_z: bool,
    need_sums: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """See :func:`fastgan.reference.instance_norm.backward`; None is what is not needed."""
    if x.numel() == 0:
        m1, m2 = (_per_plane(x), _per_plane(x)) if need_sums else (None, None)
        return _empty(x), _empty(x) if need_grad_z else None, m1, m2
    x, last, plan = _prepare("backward", x, residual, activation, reflect_pad)
    grad_x, m1, m2 = _empty(x), _per_plane(x), _per_plane(x)
    grad_z = _empty(x) if need_grad_z else None
    tensors = (layout.dense(grad, last), x, _contiguous(weight), _contiguous(bias), residual, mean, rstd)
    scalars = (*plan.strides, negative_slope)
    results = (grad_x, grad_z, m1, m2)
    if not plan.setting.splits:
        launch(backward_resident, plan.grid, x.device, *tensors, *results, *plan.sizes, *scalars, **plan.flags)
    else:
        sums, shared = None, (*plan.sizes, plan.chunks[0], *scalars)
        if plan.setting.splits > 1:
            sums = _pieces_of(x, plan, 2)
            launch(backward_sums, plan.grid, x.device, *tensors, sums, *shared, **plan.flags)
        launch(backward_apply, plan.grid, x.device, *tensors, sums, *results, *shared, **plan.flags)
    return (grad_x, grad_z, m1, m2) if need_sums else (grad_x, grad_z, None, None)


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
    """See :func:`fastgan.reference.instance_norm.double_backward`."""
    if x.numel() == 0:
        return _empty(x, reflect_pad), _empty(x), _per_plane(x)
    x, last, plan = _prepare("double_backward", x, residual, activation, reflect_pad)
    grad_grad = layout.empty(plan.padded, last, dtype=x.dtype, device=x.device)
    grad_x, grad_weight = _empty(x), _per_plane(x)
    u = layout.dense(grad_grad_x, last)
    v_residual = None if grad_grad_residual is None else layout.dense(grad_grad_residual, last)
    cotangents = (v_residual, _contiguous(grad_grad_weight), _contiguous(grad_grad_bias))
    tensors = (layout.dense(grad, last), x, _contiguous(weight), _contiguous(bias), residual, mean, rstd)
    scalars = (*plan.strides, negative_slope)
    results = (grad_grad, grad_x, grad_weight)
    if not plan.setting.splits:
        launch(
            double_resident, plan.grid, x.device, u, *cotangents, *tensors, m1, m2, *results, *plan.sizes, *scalars,
            **plan.flags,
        )  # fmt: skip
        return results
    sums = None
    if plan.setting.splits > 1:
        sums = _pieces_of(x, plan, 3)
        launch(double_sums, plan.grid, x.device, u, *tensors, sums, *plan.sizes, plan.chunks[0], *scalars, **plan.flags)
    launch(
        double_apply, plan.grid, x.device, u, *cotangents, *tensors, m1, m2, sums, *results, *plan.sizes,
        *plan.chunks, *scalars, **plan.flags,
    )  # fmt: skip
    return results


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _empty(x: Tensor, pad: int = 0) -> Tensor:
    """Dense, in x's layout, with x's (padded) shape."""
    shape = (*x.shape[:2], *(size + 2 * pad for size in x.shape[2:])) if pad else x.shape
    return layout.empty(shape, layout.is_channels_last(x), dtype=x.dtype, device=x.device)


def _per_plane(x: Tensor) -> Tensor:
    return torch.empty(x.shape[:2], dtype=torch.float32, device=x.device)


def _pieces_of(x: Tensor, plan: _Plan, sums: int) -> Tensor:
    return torch.empty((sums, plan.planes, plan.setting.splits), dtype=torch.float32, device=x.device)


def traffic(operator: str, B: int, B_out: int, *, residual: bool = False, gradient: bool = False) -> tuple[int, int]:
    """Bytes that the reducing launch of the split regime moves, and the only launch of the resident one (or the last).

    Args:
        operator: ``forward``, ``backward`` or ``double_backward``.
        B, B_out: bytes of x and of the padded tensor.
        residual: whether there is one (for the derivatives: and an activation).
        gradient: whether the residual's gradient is written (backward), or its cotangent read (double backward).
    """
    extra, more = B * residual, B * gradient
    if operator == "forward":
        return B, B + B_out + extra
    if operator == "backward":
        return B + B_out + extra, 2 * B + B_out + extra + more
    return 2 * B + B_out + extra, 3 * B + 2 * B_out + extra + more


# --- ahead of time ------------------------------------------------------------------------------------------------


# Calls at the edges of the launch table, where a thread holds most: shape, channels_last, residual, padding.
_EDGES: tuple[tuple[tuple[int, ...], bool, str | None, int], ...] = (
    ((16, 64, 128, 128), False, "dense", 0),
    ((16, 64, 89, 91), False, "interior", 0),
    ((16, 127, 127, 127), False, "dense", 0),
    ((64, 512, 7, 7), False, "interior", 1),
    ((64, 512, 3), False, "interior", 1),
    ((64, 512, 4, 4, 4), False, "interior", 3),
    ((64, 512, 17, 17), False, "interior", 3),
    ((1, 64, 96, 96), False, "interior", 3),
    ((16, 127, 15, 17, 19), False, "interior", 0),
    ((1, 3, 31, 31), True, "dense", 1),
    ((16, 127, 17, 17), True, "interior", 1),
    ((1, 3, 33, 33), True, "dense", 0),
    ((64, 512, 61), True, "interior", 3),
    ((1, 3, 256, 256), True, "dense", 1),
    ((1, 64, 256, 256), True, None, 3),
)


def aot_cases() -> Iterator[Case]:
    """The largest tiles of each regime that :func:`setting` chooses for a full device; the heaviest everywhere.

    "full": with affine parameters, a strided residual and padding. "edge": only spills count. Odd sizes allow no wide
    access and so take the most registers.
    """
    wide, half = torch.float32, torch.bfloat16
    for operator in ("forward", "backward", "double_backward"):
        for channels_last in (False, True):
            for full in (False, True):
                tile, _ = _RESIDENT[operator][2 * channels_last + full]
                dtype = wide if channels_last == full else half
                rows = tile // 128 // (32 // dtype.itemsize if channels_last else 1)
                archs = (80, 90, 100) if full != channels_last else (90,)
                yield _case(operator, "resident", (16, 256, rows, 128), dtype, channels_last, full, archs)
                dtype = half if dtype is wide else wide
                archs = (80, 90, 100) if full and channels_last else (90,)
                yield _case(operator, "split", (8, 64, 256, 256), dtype, channels_last, full, archs)
        yield _case(operator, "resident, odd", (16, 127, 43, 47), wide, False, True)
        yield _case(operator, "looped", (16, 64, 256, 256), wide, False, False)
        yield _case(operator, "looped", (16, 64, 256, 256), half, False, True)
        yield _case(operator, "split", (1, 1, 192, 192), wide, False, False)  # arguments of 1 are compiled in
        yield _case(operator, "resident, grouped", (64, 512, 8, 8), wide, True, True)
    yield _case("double_backward", "resident, odd, small", (64, 127, 9, 7), half, True, True)
    yield _case("double_backward", "resident, odd, 1-D", (16, 127, 61), half, True, True, (80, 90, 100))
    for k, (operator, edge) in enumerate(itertools.product(_RESIDENT, _EDGES)):
        shape, channels_last, residual, pad = edge
        dtype = (wide, half, torch.float16)[k % 3]
        moved = traffic(
            operator, *_bytes(shape, dtype, pad), residual=residual is not None, gradient=residual is not None
        )
        yield Case(
            f"{operator} edge {_named(channels_last, dtype)} {'x'.join(map(str, shape))} {residual} pad{pad}",
            example(operator, shape, dtype, channels_last, residual, pad, "leaky_relu"),
            tuple(Budget(count, False, False, 8) for count in moved),
            (80, 90) if k % 4 == 0 else (90, 100) if k % 4 == 2 else (90,),
            resident_too=True,
        )


def _bytes(shape: tuple[int, ...], dtype: torch.dtype, pad: int) -> tuple[int, int]:
    """Of a tensor, and of the padded one."""
    plain, padded = (math.prod(shape[:2]) * math.prod(n + 2 * p for n in shape[2:]) for p in (0, pad))
    return plain * dtype.itemsize, padded * dtype.itemsize


def _named(channels_last: bool, dtype: torch.dtype) -> str:
    return f"{'channels_last' if channels_last else 'NCHW'} {str(dtype).removeprefix('torch.')}"


def example(
    operator: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    channels_last: bool,
    residual: str | None,
    pad: int,
    activation: str,
) -> Callable[[], object]:
    """A call on meta tensors; with affine parameters if it is padded or has a residual.

    residual: None, ``"dense"`` or the ``"interior"`` of a padded tensor.
    """

    def tensor(margin: int) -> Tensor:
        sizes = (*shape[:2], *(size + 2 * margin for size in shape[2:]))
        return layout.empty(sizes, channels_last, dtype=dtype, device=torch.device("meta"))

    x, padded = tensor(0), tensor(pad)
    added = {None: None, "dense": x, "interior": tensor(1)}[residual]
    for dim, size in enumerate(shape[2:], 2):
        added = None if added is None else added.narrow(dim, added.size(dim) - size and 1, size)
    weight = torch.empty(shape[1], device="meta") if pad or residual else None
    plane = torch.empty(shape[:2], device="meta")
    parameters, act = (weight, weight, added), (activation, 0.2, pad)

    def run() -> object:
        if operator == "forward":
            return forward(x, *parameters, *act, 1e-5)
        if operator == "backward":
            return backward(padded, x, *parameters, plane, plane, *act, residual is not None)
        u = (x, x if residual else None, weight, weight)
        return double_backward(*u, padded, x, *parameters, plane, plane, plane, plane, *act)

    return run


def _case(
    operator: str,
    regime: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    channels_last: bool,
    full: bool,
    archs: tuple[int, ...] = (90,),
) -> Case:
    pad = 1 if full else 0
    run = example(operator, shape, dtype, channels_last, "interior" if full else None, pad, "relu")
    reduce, apply = traffic(operator, *_bytes(shape, dtype, pad), residual=full, gradient=full)
    aligned = shape[1 if channels_last else -1] % 8 == 0 and not (regime == "looped" and full)
    # Padding makes a plane a multiple of 4 elements here; its gradients' split programs take 4 to a thread. In
    # bfloat16 both are 64 bits.
    wide_result = not full or dtype == torch.float32 or (channels_last if operator == "forward" else regime != "split")
    apply_loads_x_whole = operator != "forward" or not full or channels_last or regime != "split"
    if operator == "double_backward" and full and regime == "resident" and dtype != torch.float32:
        aligned = False  # 4 to a thread are 64 bits
    budgets: tuple[Budget, ...] = (Budget(apply, aligned and apply_loads_x_whole, aligned and wide_result),)
    if regime == "split":
        budgets = (Budget(reduce, True, False), *budgets)
    return Case(f"{operator} {regime} {_named(channels_last, dtype)}{' full' if full else ''}", run, budgets, archs)
