"""Reflection padding, in the kernels that normalise: no pass of its own.

The padded tensor is written by a gather: its element j copies element source(j) of the plane, which the reduction has
just brought into the cache. The gradient of padding, which adds each border element's copies to it, is a gather too:
element (h, w) reads its up to nine copies (27 in three dimensions); masked-off reads move nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastgan.kernels.triton.instance_norm import tiles

# fmt: off


@triton.jit
def _reflect(i, SIZE, PAD: tl.constexpr):
    """Which element of a dimension its padded element i copies."""
    return SIZE - 1 - tl.abs(SIZE - 1 - tl.abs(i - PAD))


@triton.jit
def source(j, D, H, W, DIMS: tl.constexpr, PAD: tl.constexpr):
    """Which element of the plane element j of the padded plane copies."""
    if PAD == 0:
        return j
    elif DIMS == 1:
        return _reflect(j, W, PAD)
    else:
        row, w = tiles.divide(j, W + 2 * PAD)
        if DIMS == 2:
            return W * _reflect(row, H, PAD) + _reflect(w, W, PAD)
        else:
            d, h = tiles.divide(row, H + 2 * PAD)
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
                PAD: tl.constexpr, CL: tl.constexpr):
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
        total += tl.load(grad + base + tiles.within(row + at_w, C, CL), exists, other=0).to(tl.float32)
    return total


@triton.jit
def load_folded(grad, base, m, at, mask, C, D, H, W, DIMS: tl.constexpr, PAD: tl.constexpr,
                CL: tl.constexpr):
    """The padded gradient, each element's copies added to it: [BP, BM]. at: the first of the elements m.

    Only a tile that reaches a plane's first or last rows looks for copies in others than its own.
    """
    if PAD == 0:
        return tl.load(grad + base + tiles.within(m, C, CL), mask, other=0).to(tl.float32)
    else:
        d, h, w = tiles.coordinates(m, H, W, DIMS)
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
# fmt: on
