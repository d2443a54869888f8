"""Tiles [planes, elements] of the instance norm's kernels: where their elements lie, and loads and stores of them.

In NCHW a plane's elements lie next to each other, in channels_last its neighbours' do. One source serves both: element
m of a plane lies at the plane's base + m, or at its base + m C.

Names that all kernels share. CL: channels last. BP, BM: planes and elements of a tile. C, M, M_out: channels, elements
of a plane and of a padded one. D, H, W: the plane's sizes (D = H = 1 where it has fewer dimensions); DIMS: how many
they are, 1 where elements' coordinates do not matter. ACT: 0 none, 1 relu, 2 leaky_relu. RES: 0 no residual, 1 one
that lies in memory as x does, 2 one with strides rs_*. PAD: by how many elements each side is padded. p_*: offsets
[BP, 1] of planes; b_*: values.
"""

from __future__ import annotations

import triton
import triton.language as tl

# fmt: off

# A kernel serves all sizes: what it needs to know of one is compiled in as ALIGN. D, H and W may be compiled in.
SIZES = ("planes", "C", "M", "M_out", "D", "H", "W")


@triton.jit
def aligned(C, M, M_out, W, CL: tl.constexpr, ALIGN: tl.constexpr, ALIGN_OUT: tl.constexpr, ALIGN_W: tl.constexpr):
    """C, M, M_out and W, such that the compiler sees which power of two divides the contiguous ones."""
    if CL:
        return C // ALIGN * ALIGN, M, M_out, W
    else:
        return C, M // ALIGN * ALIGN, M_out // ALIGN_OUT * ALIGN_OUT, W // ALIGN_W * ALIGN_W


@triton.jit
def planes(program, planes, C, CL: tl.constexpr, BP: tl.constexpr):
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
def base(plane, n, c, C, M, CL: tl.constexpr):
    """Offset of each plane's first element in a dense tensor whose planes have M elements."""
    return (n * M * C + c if CL else plane * M)[:, None]


@triton.jit
def within(m, C, CL: tl.constexpr):
    """Offset of element m within its plane, in a dense tensor."""
    return (m.to(tl.int64) * C if CL else m)[None, :]


@triton.jit
def mirrored(at, stop, BM: tl.constexpr):
    """Where a loop from 0 to stop is instead if it runs from the end, which was read last and may still be cached."""
    return (stop - 1) // BM * BM - at


@triton.jit
def divide(i, by):
    """i // by and i % by, for i >= 0: without signs a division takes half as long."""
    unsigned: tl.constexpr = tl.uint64 if i.dtype == tl.int64 else tl.uint32
    i_unsigned, by_unsigned = i.to(unsigned), tl.cast(by, unsigned)
    return (i_unsigned // by_unsigned).to(i.dtype), (i_unsigned % by_unsigned).to(i.dtype)


@triton.jit
def coordinates(m, H, W, DIMS: tl.constexpr):
    """Depth, row and column of element m of a plane."""
    if DIMS == 1:
        return m * 0, m * 0, m
    else:
        row, w = divide(m, W)
        if DIMS == 2:
            return row * 0, row, w
        else:
            d, h = divide(row, H)
            return d, h, w


@triton.jit
def residual_base(base, n, c, rs_n, rs_c, RES: tl.constexpr):
    """Offset of each plane's first element in the residual; base: in x."""
    if RES == 2:
        return (n * rs_n + c.to(tl.int64) * rs_c)[:, None]
    else:
        return base


@triton.jit
def load_residual(residual, p_plane, m, mask, C, rs_d, rs_h, rs_w, H, W, DIMS: tl.constexpr,
                  CL: tl.constexpr, RES: tl.constexpr):
    """[BP, BM]; p_plane from :func:`residual_base`."""
    if RES == 0:
        return 0.0
    elif RES == 1:
        return tl.load(residual + p_plane + within(m, C, CL), mask, other=0).to(tl.float32)
    else:
        d, h, w = coordinates(m, H, W, DIMS)
        offset = d.to(tl.int64) * rs_d + h.to(tl.int64) * rs_h + w.to(tl.int64) * rs_w
        return tl.load(residual + p_plane + offset[None, :], mask, other=0).to(tl.float32)


@triton.jit
def parameter(pointer, c, valid, absent: tl.constexpr):
    """weight or bias of each plane [BP, 1], or what stands for an absent one."""
    if pointer is None:
        return absent
    else:
        return tl.load(pointer + c, valid, other=0).to(tl.float32)[:, None]


@triton.jit
def store(pointer, base, m, value, mask, C, CL: tl.constexpr):
    """Elements m of planes in a dense tensor, rounded to its type."""
    tl.store(pointer + base + within(m, C, CL), value.to(pointer.dtype.element_ty), mask)
# fmt: on
