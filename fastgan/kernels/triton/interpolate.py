"""Interpolation with one alpha per sample, drawn by Philox or given, and its gradients, in Triton.

The formulas are in :mod:`fastgan.reference.interpolate`. A program takes a tile of one sample. Every program of a
sample draws the same alpha again (ten rounds of integer arithmetic), so it costs no launch and no pass over memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.dispatch import Call
from fastgan.kernels.triton._launch import launch, unsupported_device, unsupported_dtype
from fastgan.kernels.triton.aot import Budget, Case

_WARPS = 4


def supports(call: Call) -> str | None:
    """None when these kernels serve the call, else the reason why not."""
    return unsupported_device(call) or unsupported_dtype(call)


def tiles_of(size: int) -> tuple[int, int]:
    """How many of a sample's elements a program takes, a power of two, and how many programs that makes."""
    block = min(4096, max(128, 1 << (size - 1).bit_length()))
    return block, -(-size // block)


# fmt: off
@triton.jit
def forward_kernel(real, fake, out,  # [N, size]
                   alpha,  # [N], read, or written if DRAW
                   seed,  # [1] int64
                   size, tiles, DRAW: tl.constexpr, BLOCK: tl.constexpr):
    sample = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    if DRAW:
        word = tl.randint(tl.load(seed), sample).to(tl.uint32, bitcast=True)
        a = (word >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2**-24
        if tile == 0:
            tl.store(alpha + sample, a)
    else:
        a = tl.load(alpha + sample)
    i = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at = sample.to(tl.int64) * size + i
    r = tl.load(real + at, i < size, other=0).to(tl.float32)
    f = tl.load(fake + at, i < size, other=0).to(tl.float32)
    tl.store(out + at, (a * r + (1 - a) * f).to(out.dtype.element_ty), i < size)


@triton.jit
def backward_kernel(grad, real, fake, alpha, grad_real, grad_fake,
                    partials,  # [N, tiles]
                    size, tiles, NEED_REAL: tl.constexpr, NEED_FAKE: tl.constexpr, NEED_ALPHA: tl.constexpr,
                    BLOCK: tl.constexpr):
    sample = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    a = tl.load(alpha + sample)
    i = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at = sample.to(tl.int64) * size + i
    g = tl.load(grad + at, i < size, other=0).to(tl.float32)
    if NEED_REAL:
        tl.store(grad_real + at, (a * g).to(grad_real.dtype.element_ty), i < size)
    if NEED_FAKE:
        tl.store(grad_fake + at, ((1 - a) * g).to(grad_fake.dtype.element_ty), i < size)
    if NEED_ALPHA:
        r = tl.load(real + at, i < size, other=0).to(tl.float32)
        f = tl.load(fake + at, i < size, other=0).to(tl.float32)
        tl.store(partials + tl.program_id(0), tl.sum(g * (r - f), 0))
# fmt: on


def forward(real: Tensor, fake: Tensor, alpha: Tensor | None, seed: Tensor | None) -> tuple[Tensor, Tensor]:
    """As :func:`fastgan.kernels.native.interpolate.forward`."""
    samples, size = real.size(0), real.numel() // real.size(0)
    out = torch.empty_like(real)
    drawn = torch.empty(0 if seed is None else samples, dtype=torch.float32, device=real.device)
    block, tiles = tiles_of(size)
    launch(
        forward_kernel, (samples * tiles,), real.device, real, fake, out, drawn if alpha is None else alpha, seed,
        size, tiles, num_warps=_WARPS, DRAW=seed is not None, BLOCK=block,
    )  # fmt: skip
    return out, drawn


def backward(
    grad: Tensor,
    real: Tensor | None,
    fake: Tensor | None,
    alpha: Tensor,
    need_real: bool,
    need_fake: bool,
    need_alpha: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`fastgan.kernels.native.interpolate.backward`."""
    samples, size = grad.size(0), grad.numel() // grad.size(0)
    grad_real, grad_fake = (torch.empty_like(grad) if need else grad.new_empty(0) for need in (need_real, need_fake))
    block, tiles = tiles_of(size)
    partials = alpha.new_empty((samples, tiles) if need_alpha else 0)
    launch(
        backward_kernel, (samples * tiles,), grad.device, grad, real, fake, alpha, grad_real, grad_fake, partials,
        size, tiles, num_warps=_WARPS, NEED_REAL=need_real, NEED_FAKE=need_fake, NEED_ALPHA=need_alpha, BLOCK=block,
    )  # fmt: skip
    return grad_real, grad_fake, partials.sum(1) if need_alpha else partials


def aot_cases() -> Iterator[Case]:
    """WGAN-GP's batch of 64 at 64 x 64."""
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.empty(64, 3 * 64 * 64, dtype=dtype, device="meta")
        alpha, seed = torch.empty(64, device="meta"), torch.empty(1, dtype=torch.int64, device="meta")
        one = x.numel() * x.element_size()
        yield Case(f"interpolate forward {dtype}", lambda x=x, seed=seed: forward(x, x, None, seed), (Budget(3 * one),))  # type: ignore[misc]
        yield Case(
            f"interpolate backward {dtype}",
            lambda x=x, alpha=alpha: backward(x, x, x, alpha, True, True, True),  # type: ignore[misc]
            (Budget(5 * one),),
            (90,),
        )
