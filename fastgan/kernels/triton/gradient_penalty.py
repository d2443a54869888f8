"""The penalty on per-sample gradient norms, its gradient and its double backward, in Triton.

The formulas are in :mod:`fastgan.reference.gradient_penalty`. A program takes a tile of one sample. Forward: one pass
leaves a sum of squares per tile, and one program adds them in order and takes norms and penalty. Backward: one launch
reads and writes once. Double backward: a pass of dot products, a pass that reads again and writes, and a sum.
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
from fastgan.kernels.triton.interpolate import tiles_of

_WARPS = 4
_SUMS = 1024  # partial sums that a program adds at a time


def supports(call: Call) -> str | None:
    """None when these kernels serve the call, else the reason why not."""
    return unsupported_device(call) or unsupported_dtype(call)


# fmt: off
@triton.jit
def _coefficients(norm, target, samples, ONE_SIDED: tl.constexpr):
    """c of the reference, e times the norm squared, and 1 / norm; a NaN norm stays visible.

    The norm's cube leaves float32 where the norm is below 1e-13, its square where the sum of squares does too.
    """
    scale = 2.0 / tl.cast(samples, tl.float32)
    flat = norm <= (target if ONE_SIDED else 0.0)
    safe = tl.where(flat, 1.0, norm)
    c = tl.where(flat, 0.0, scale * (1 - target / safe))
    e = tl.where(flat, 0.0, scale * target / safe)
    smooth = target == 0.0
    return tl.where(smooth, scale, c), tl.where(smooth, 0.0, e), 1 / safe


@triton.jit
def _sum_tiles(partials, sample, samples, tiles, BN: tl.constexpr, BT: tl.constexpr):
    """The sums of the tiles of samples [BN], in order, in float64."""
    total = tl.zeros([BN], tl.float64)
    for begin in range(0, tiles, BT):
        tile = begin + tl.arange(0, BT)
        mask = (sample < samples)[:, None] & (tile < tiles)[None, :]
        block = tl.load(partials + sample.to(tl.int64)[:, None] * tiles + tile[None, :], mask, other=0)
        total += tl.sum(block.to(tl.float64), 1)
    return total


@triton.jit
def dot_kernel(x, y,  # [N, size]
               partials,  # [N, tiles]
               size, tiles, BLOCK: tl.constexpr):
    sample = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    i = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at = sample.to(tl.int64) * size + i
    a = tl.load(x + at, i < size, other=0).to(tl.float32)
    b = tl.load(y + at, i < size, other=0).to(tl.float32)
    tl.store(partials + tl.program_id(0), tl.sum(a * b, 0))


@triton.jit
def penalty_kernel(partials,  # [N, tiles]
                   norms,  # [N]
                   penalty,  # []
                   target, samples, tiles, ONE_SIDED: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr):
    target = tl.cast(target, tl.float32)
    total = tl.zeros([BN], tl.float64)
    for begin in range(0, samples, BN):
        sample = begin + tl.arange(0, BN)
        norm = tl.sqrt_rn(_sum_tiles(partials, sample, samples, tiles, BN, BT).to(tl.float32))
        tl.store(norms + sample, norm, sample < samples)
        excess = norm - target
        if ONE_SIDED:
            excess = tl.where(excess < 0, 0.0, excess)
        total += tl.where(sample < samples, excess * excess, 0.0).to(tl.float64)
    tl.store(penalty, (tl.sum(total, 0) / tl.cast(samples, tl.float64)).to(tl.float32))


@triton.jit
def backward_kernel(grad,  # []
                    grads,  # [N, size]
                    norms,  # [N]
                    out,  # [N, size]
                    target, samples, size, tiles, ONE_SIDED: tl.constexpr, BLOCK: tl.constexpr):
    sample = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    c, _, _ = _coefficients(tl.load(norms + sample), tl.cast(target, tl.float32), samples, ONE_SIDED)
    factor = tl.load(grad).to(tl.float32) * c
    i = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at = sample.to(tl.int64) * size + i
    g = tl.load(grads + at, i < size, other=0).to(tl.float32)
    tl.store(out + at, (factor * g).to(out.dtype.element_ty), i < size)


@triton.jit
def double_backward_kernel(u, grad, grads, norms,
                           partials,  # [N, tiles], of <u, grads>
                           out, target, samples, size, tiles, ONE_SIDED: tl.constexpr, BLOCK: tl.constexpr,
                           BT: tl.constexpr):
    sample = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    dot = tl.sum(_sum_tiles(partials, sample + tl.arange(0, 1), samples, tiles, 1, BT), 0).to(tl.float32)
    c, e, inverse = _coefficients(tl.load(norms + sample), tl.cast(target, tl.float32), samples, ONE_SIDED)
    scale = tl.load(grad).to(tl.float32)
    along = e * (dot * inverse) * inverse
    i = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at = sample.to(tl.int64) * size + i
    v = tl.load(u + at, i < size, other=0).to(tl.float32)
    g = tl.load(grads + at, i < size, other=0).to(tl.float32)
    tl.store(out + at, (scale * (c * v + along * g)).to(out.dtype.element_ty), i < size)


@triton.jit
def grad_grad_kernel(partials, norms, out, target, samples, tiles, ONE_SIDED: tl.constexpr, BN: tl.constexpr,
                     BT: tl.constexpr):
    total = tl.zeros([BN], tl.float64)
    for begin in range(0, samples, BN):
        sample = begin + tl.arange(0, BN)
        dot = _sum_tiles(partials, sample, samples, tiles, BN, BT)
        norm = tl.load(norms + sample, sample < samples, other=0)
        c, _, _ = _coefficients(norm, tl.cast(target, tl.float32), samples, ONE_SIDED)
        total += tl.where(sample < samples, c.to(tl.float64) * dot, 0.0)
    tl.store(out, tl.sum(total, 0).to(tl.float32))
# fmt: on


def forward(grads: Tensor, target: float, one_sided: bool) -> tuple[Tensor, Tensor]:
    """As :func:`fastgan.kernels.native.gradient_penalty.forward`."""
    samples, device = grads.size(0), grads.device
    partials = _dot(grads, grads)
    norms = torch.empty(samples, dtype=torch.float32, device=device)
    penalty = torch.empty((), dtype=torch.float32, device=device)
    launch(
        penalty_kernel, (1,), device, partials, norms, penalty, target, samples, partials.size(1),
        num_warps=_WARPS, maxnreg=128, ONE_SIDED=one_sided, **_block_of_sums(partials.size(1)),
    )  # fmt: skip
    return penalty, norms


def backward(grad: Tensor, grads: Tensor, norms: Tensor, target: float, one_sided: bool) -> Tensor:
    """As :func:`fastgan.kernels.native.gradient_penalty.backward`."""
    samples, size = grads.size(0), grads.numel() // grads.size(0)
    (block, tiles), out = tiles_of(size), torch.empty_like(grads)
    launch(
        backward_kernel, (samples * tiles,), grads.device, grad, grads, norms, out, target, samples, size, tiles,
        num_warps=_WARPS, ONE_SIDED=one_sided, BLOCK=block,
    )  # fmt: skip
    return out


def double_backward(
    u: Tensor, grad: Tensor, grads: Tensor, norms: Tensor, target: float, one_sided: bool
) -> tuple[Tensor, Tensor]:
    """As :func:`fastgan.kernels.native.gradient_penalty.double_backward`."""
    samples, size = grads.size(0), grads.numel() // grads.size(0)
    (block, tiles), out = tiles_of(size), torch.empty_like(grads)
    partials = _dot(u, grads)
    launch(
        double_backward_kernel, (samples * tiles,), grads.device, u, grad, grads, norms, partials, out, target,
        samples, size, tiles, num_warps=_WARPS, ONE_SIDED=one_sided, BLOCK=block,
        BT=min(triton.next_power_of_2(tiles), _SUMS),
    )  # fmt: skip
    grad_grad = torch.empty_like(grad)
    launch(
        grad_grad_kernel, (1,), grads.device, partials, norms, grad_grad, target, samples, tiles,
        num_warps=_WARPS, maxnreg=128, ONE_SIDED=one_sided, **_block_of_sums(tiles),
    )  # fmt: skip
    return grad_grad, out


def _block_of_sums(tiles: int) -> dict[str, int]:
    """Of how many samples and tiles the one program of a launch adds sums at a time: for each it waits for memory.

    Such a program may have 128 registers a thread (maxnreg): the assembler would spill some to let another one fit.
    """
    width = min(triton.next_power_of_2(tiles), 32)
    return {"BN": _SUMS // width, "BT": width}


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Each tile's <x, y>: [N, tiles]."""
    samples, size = x.size(0), x.numel() // x.size(0)
    block, tiles = tiles_of(size)
    partials = torch.empty((samples, tiles), dtype=torch.float32, device=x.device)
    launch(
        dot_kernel, (samples * tiles,), x.device, x, y, partials, size, tiles, num_warps=_WARPS, BLOCK=block
    )  # fmt: skip
    return partials


def aot_cases() -> Iterator[Case]:
    """WGAN-GP's batch of 64 at 64 x 64."""
    grad, norms = torch.empty((), device="meta"), torch.empty(64, device="meta")
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.empty(64, 3 * 64 * 64, dtype=dtype, device="meta")
        one = x.numel() * x.element_size()
        small = Budget(4 * 64 * 4, False, False, 4)
        yield Case(
            f"gradient_norm_penalty forward {dtype}",
            lambda x=x: forward(x, 1.0, False),  # type: ignore[misc]
            (Budget(one, wide_stores=False), small),
        )
        yield Case(
            f"gradient_norm_penalty backward {dtype}",
            lambda x=x: backward(grad, x, norms, 1.0, False),  # type: ignore[misc]
            (Budget(2 * one),),
        )
        yield Case(
            f"gradient_norm_penalty double backward {dtype}",
            lambda x=x: double_backward(x, grad, x, norms, 1.0, True),  # type: ignore[misc]
            (Budget(2 * one, wide_stores=False), Budget(3 * one), small),
            (90,),
        )
    odd = torch.empty(64, 3071, dtype=torch.float16, device="meta")
    yield Case(
        "gradient_norm_penalty double backward, odd, torch.float16",
        lambda: double_backward(odd, grad, odd, norms, 1.0, False),
        (Budget(2 * odd.nbytes, False, False), Budget(3 * odd.nbytes, False, False), Budget(4 * 64, False, False, 4)),
        (90,),
    )
