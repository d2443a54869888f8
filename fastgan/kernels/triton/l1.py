"""Weighted L1 distances of several pairs, their gradients and directional derivatives, in Triton.

The formulas are in :mod:`fastgan.reference.l1`. A program takes a tile of 4096 elements of one pair; up to four pairs,
the cycle and identity terms of both directions, share a launch, and a second launch of one program adds the tiles'
sums in float64, in order. Bytes, with B those of a pair's tensor of 4-byte elements: forward 2B + B/16 for the signs,
backward B/16 + B for each wanted gradient.

Signs: word l of a tile holds, in bits 2k and 2k + 1, whether a > b and a < b at its element k LANES + l. No lane needs
another's bits, and each k is one coalesced access.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.dispatch import Call
from fastgan.kernels.triton._launch import launch, unsupported_device, unsupported_dtype
from fastgan.kernels.triton.aot import Budget, Case

_LANES, _WORD = 256, 16
_TILE = _LANES * _WORD
_PAIRS = 4  # per launch
_SUM_BLOCK = 1024


def supports(call: Call) -> str | None:
    """None when these kernels serve the call, else the reason why not."""
    return unsupported_device(call) or unsupported_dtype(call)


# fmt: off
# NEED: of a pair, 1 if a is there (or wants a gradient), plus 2 if b is. e*: the tiles up to and with each pair.
# STEP: how many loads from each tensor are in flight: as many as registers hold.


@triton.jit
def _forward_tile(a, b, signs, partial, n, scale, tile, SIGNS: tl.constexpr, LANES: tl.constexpr,
                  WORD: tl.constexpr, STEP: tl.constexpr):
    lane = tl.arange(0, LANES)
    base = tile.to(tl.int64) * (LANES * WORD)
    total = tl.zeros([LANES], tl.float32)
    word = tl.zeros([LANES], tl.int32)
    for first in range(0, WORD, STEP):
        for step in tl.static_range(STEP):
            k = first + step
            i = base + k * LANES + lane
            d = tl.load(a + i, i < n, other=0).to(tl.float32) - tl.load(b + i, i < n, other=0).to(tl.float32)
            total += tl.abs(d)
            if SIGNS:
                word |= ((d > 0).to(tl.int32) | ((d < 0).to(tl.int32) << 1)) << (2 * k)
    tl.store(partial, tl.sum(total, 0) * tl.cast(scale, tl.float32))
    if SIGNS:
        tl.store(signs + tile.to(tl.int64) * LANES + lane, word)


@triton.jit
def _backward_tile(a, b, signs, grad, n, scale, tile, NEED: tl.constexpr, LANES: tl.constexpr, WORD: tl.constexpr):
    lane = tl.arange(0, LANES)
    base = tile.to(tl.int64) * (LANES * WORD)
    value = tl.load(grad).to(tl.float32) * tl.cast(scale, tl.float32)
    word = tl.load(signs + tile.to(tl.int64) * LANES + lane)
    for k in tl.static_range(WORD):
        i = base + k * LANES + lane
        code = (word >> (2 * k)) & 3
        g = tl.where(code == 1, value, tl.where(code == 2, -value, 0.0))
        if NEED & 1:
            tl.store(a + i, g.to(a.dtype.element_ty), i < n)
        if NEED & 2:
            tl.store(b + i, (-g).to(b.dtype.element_ty), i < n)


@triton.jit
def _directional_tile(a, b, signs, partial, n, scale, tile, NEED: tl.constexpr, LANES: tl.constexpr,
                      WORD: tl.constexpr, STEP: tl.constexpr):
    lane = tl.arange(0, LANES)
    base = tile.to(tl.int64) * (LANES * WORD)
    word = tl.load(signs + tile.to(tl.int64) * LANES + lane)
    total = tl.zeros([LANES], tl.float32)
    for first in range(0, WORD, STEP):
        for step in tl.static_range(STEP):
            k = first + step
            i = base + k * LANES + lane
            code = (word >> (2 * k)) & 3
            d = tl.zeros([LANES], tl.float32)
            if NEED & 1:
                d += tl.load(a + i, i < n, other=0).to(tl.float32)
            if NEED & 2:
                d -= tl.load(b + i, i < n, other=0).to(tl.float32)
            total += tl.where(code == 1, d, tl.where(code == 2, -d, 0.0))
    tl.store(partial, tl.sum(total, 0) * tl.cast(scale, tl.float32))


@triton.jit
def forward_kernel(a0, b0, s0, n0, w0, a1, b1, s1, n1, w1, a2, b2, s2, n2, w2, a3, b3, s3, n3, w3, e0, e1, e2,
                   partials,  # [tiles]
                   N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr,
                   LANES: tl.constexpr, WORD: tl.constexpr, STEP: tl.constexpr):
    tile = tl.program_id(0)
    if tile < e0:
        _forward_tile(a0, b0, s0, partials + tile, n0, w0, tile, N0 > 0, LANES, WORD, STEP)
    elif tile < e1:
        _forward_tile(a1, b1, s1, partials + tile, n1, w1, tile - e0, N1 > 0, LANES, WORD, STEP)
    elif tile < e2:
        _forward_tile(a2, b2, s2, partials + tile, n2, w2, tile - e1, N2 > 0, LANES, WORD, STEP)
    else:
        _forward_tile(a3, b3, s3, partials + tile, n3, w3, tile - e2, N3 > 0, LANES, WORD, STEP)


@triton.jit
def backward_kernel(a0, b0, s0, n0, w0, a1, b1, s1, n1, w1, a2, b2, s2, n2, w2, a3, b3, s3, n3, w3, e0, e1, e2,
                    grad,  # []
                    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr,
                    LANES: tl.constexpr, WORD: tl.constexpr):
    tile = tl.program_id(0)
    if tile < e0:
        _backward_tile(a0, b0, s0, grad, n0, w0, tile, N0, LANES, WORD)
    elif tile < e1:
        _backward_tile(a1, b1, s1, grad, n1, w1, tile - e0, N1, LANES, WORD)
    elif tile < e2:
        _backward_tile(a2, b2, s2, grad, n2, w2, tile - e1, N2, LANES, WORD)
    else:
        _backward_tile(a3, b3, s3, grad, n3, w3, tile - e2, N3, LANES, WORD)


@triton.jit
def directional_kernel(a0, b0, s0, n0, w0, a1, b1, s1, n1, w1, a2, b2, s2, n2, w2, a3, b3, s3, n3, w3, e0, e1, e2,
                       partials,  # [tiles]
                       N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr,
                       LANES: tl.constexpr, WORD: tl.constexpr, STEP: tl.constexpr):
    tile = tl.program_id(0)
    if tile < e0:
        _directional_tile(a0, b0, s0, partials + tile, n0, w0, tile, N0, LANES, WORD, STEP)
    elif tile < e1:
        _directional_tile(a1, b1, s1, partials + tile, n1, w1, tile - e0, N1, LANES, WORD, STEP)
    elif tile < e2:
        _directional_tile(a2, b2, s2, partials + tile, n2, w2, tile - e1, N2, LANES, WORD, STEP)
    else:
        _directional_tile(a3, b3, s3, partials + tile, n3, w3, tile - e2, N3, LANES, WORD, STEP)


@triton.jit
def sum_kernel(partials,  # [count]
               out,  # []
               count, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    for begin in range(0, count, BLOCK):
        total += tl.load(partials + begin + lane, begin + lane < count, other=0).to(tl.float64)
    tl.store(out, tl.sum(total, 0).to(out.dtype.element_ty))
# fmt: on


def forward(
    tensors: Sequence[Tensor], weights: Sequence[float], sign_bytes: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """As :func:`fastgan.kernels.native.l1.forward`."""
    device = tensors[0].device
    signs = torch.empty(sum(sign_bytes), dtype=torch.uint8, device=device)
    numels = [t.numel() for t in tensors[::2]]
    total = _reduce(forward_kernel, tensors, signs, numels, weights, sign_bytes, dtype, device, lambda k: True)
    return total, signs


def backward(
    grad: Tensor,
    signs: Tensor,
    numels: Sequence[int],
    weights: Sequence[float],
    sign_bytes: Sequence[int],
    dtypes: Sequence[torch.dtype | None],
) -> list[Tensor]:
    """As :func:`fastgan.kernels.native.l1.backward`."""
    sides = [
        None if dtype is None else torch.empty(numels[k // 2], dtype=dtype, device=grad.device)
        for k, dtype in enumerate(dtypes)
    ]

    def wanted(k: int) -> bool:
        return sides[2 * k] is not None or sides[2 * k + 1] is not None

    for pairs in _groups(sides, signs, numels, weights, sign_bytes, wanted):
        _launch_group(backward_kernel, pairs, grad, grad.device)
    return [side for side in sides if side is not None]


def directional(
    directions: Sequence[Tensor | None],
    signs: Tensor,
    numels: Sequence[int],
    weights: Sequence[float],
    sign_bytes: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """As :func:`fastgan.kernels.native.l1.directional`."""

    def given(k: int) -> bool:
        return directions[2 * k] is not None or directions[2 * k + 1] is not None

    return _reduce(directional_kernel, directions, signs, numels, weights, sign_bytes, dtype, signs.device, given)


# One pair's arguments of a kernel, and its NEED: a, b, signs, n, scale.
_Pair = tuple[tuple[Tensor, Tensor, Tensor, int, float], int]


def _groups(
    sides: Sequence[Tensor | None],
    signs: Tensor,
    numels: Sequence[int],
    weights: Sequence[float],
    sign_bytes: Sequence[int],
    takes_part: Callable[[int], bool],
) -> Iterator[list[_Pair]]:
    """The pairs that take part, as many as share a launch. An absent side is replaced by the present one, unread."""
    pairs: list[_Pair] = []
    words = signs.view(torch.int32).split_with_sizes([size // 4 for size in sign_bytes])
    for k, (n, weight, size) in enumerate(zip(numels, weights, sign_bytes, strict=True)):
        if takes_part(k):
            a, b = sides[2 * k], sides[2 * k + 1]
            need = (a is not None) + 2 * (b is not None)
            present = a if a is not None else b
            assert present is not None
            arguments = (present if a is None else a, present if b is None else b, words[k], n, weight / n)
            pairs.append((arguments, need if size else 0))
    for begin in range(0, len(pairs), _PAIRS):
        yield pairs[begin : begin + _PAIRS]


def _launch_group(kernel: object, pairs: list[_Pair], result: Tensor, device: torch.device) -> int:
    """Launches ``kernel`` over a group and returns its number of tiles."""
    ends, total = [], 0
    for (_, _, _, n, _), _ in pairs:
        total += -(-n // _TILE)
        ends.append(total)
    filled = pairs + pairs[-1:] * (_PAIRS - len(pairs))  # never reached: their tiles would begin at `total`
    ends += [total] * (_PAIRS - len(ends))
    arguments = [argument for pair, _ in filled for argument in pair]
    # A lane accesses 128 bits at a time: 4 elements of 4 bytes, or 8 of 2.
    half = 2 in [side.element_size() for pair, _ in pairs for side in pair[:2]]
    flags = {f"N{k}": need for k, (_, need) in enumerate(filled)} | {"LANES": _LANES, "WORD": _WORD}
    if kernel is not backward_kernel:
        flags["STEP"] = _WORD // 2 if half else _WORD
    launch(kernel, (total,), device, *arguments, *ends[:3], result, num_warps=1 if half else 2, **flags)
    return total


def _reduce(
    kernel: object,
    sides: Sequence[Tensor | None],
    signs: Tensor,
    numels: Sequence[int],
    weights: Sequence[float],
    sign_bytes: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    takes_part: Callable[[int], bool],
) -> Tensor:
    tiles = sum(-(-n // _TILE) for k, n in enumerate(numels) if takes_part(k))
    partials, at = torch.empty(tiles, dtype=torch.float32, device=device), 0
    for pairs in _groups(sides, signs, numels, weights, sign_bytes, takes_part):
        at += _launch_group(kernel, pairs, partials[at:], device)
    total = torch.empty((), dtype=dtype, device=device)
    launch(sum_kernel, (1,), device, partials, total, tiles, num_warps=4, BLOCK=_SUM_BLOCK)
    return total


def aot_cases() -> Iterator[Case]:
    """Four pairs as CycleGAN has them, with both gradients of one pair."""
    n, weights, size = 3 * 256 * 256, (10.0, 10.0, 5.0, 5.0), 3 * 256 * 256 // 4
    signs = torch.empty(4 * size, dtype=torch.uint8, device="meta")
    grad = torch.empty((), device="meta")
    for dtype in (torch.float32, torch.bfloat16):
        tensors = [torch.empty(n, dtype=dtype if k % 2 == 0 else torch.float32, device="meta") for k in range(8)]
        one = n * dtype.itemsize
        small = Budget(4 * 4 * n // _TILE, False, False, 1)
        yield Case(
            f"weighted_l1 forward {dtype}",
            lambda t=tensors: forward(t, weights, [size] * 4, torch.float32),  # type: ignore[misc]
            # 32 wide loads in flight per thread fill the registers, and need few warps.
            (Budget(4 * (one + 4 * n + size), wide_stores=False, warps=12), small),
        )
        yield Case(
            f"weighted_l1 backward {dtype}",
            lambda d=dtype: backward(grad, signs, [n] * 4, weights, [size] * 4, [d, None] * 3 + [d, d]),  # type: ignore[misc]
            (Budget(4 * (one + size) + one, wide_loads=False),),
        )
        yield Case(
            f"weighted_l1 directional {dtype}",
            lambda t=tensors: directional(t, signs, [n] * 4, weights, [size] * 4, torch.float32),  # type: ignore[misc]
            (Budget(4 * (one + 4 * n + size), wide_stores=False), small),
            (90,),
        )
