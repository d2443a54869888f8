"""Calls to compile ahead of time: see :mod:`fastgan.kernels.triton.aot`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastgan.kernels import layout
from fastgan.kernels.triton.aot import Budget, Case
from fastgan.kernels.triton.instance_norm.launch_table import RESIDENT, traffic
from fastgan.kernels.triton.instance_norm.launchers import backward, double_backward, forward

# Calls at the edges of the launch table, where a thread holds most: shape, channels_last, residual, padding.
_Edge = tuple[tuple[int, ...], bool, str | None, int]
_EDGES: tuple[_Edge, ...] = (
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
                tile, _ = RESIDENT[operator][2 * channels_last + full]
                dtype = wide if channels_last == full else half
                rows = tile // 128 // (32 // dtype.itemsize if channels_last else 1)
                archs = (80, 90, 100) if full != channels_last else (90,)
                yield _case(operator, "resident", (16, 256, rows, 128), dtype, channels_last, full, archs)
                dtype = half if dtype is wide else wide
                archs = (80, 90, 100) if full and channels_last else (90,)
                yield _case(operator, "split", (8, 64, 256, 256), dtype, channels_last, full, archs)
        yield _case(operator, "resident, odd", (16, 127, 43, 47), wide, False, True)
        yield _case(operator, "looped", (16, 64, 256, 256), wide, False, False)
        yield _case(operator, "looped", (16, 64, 256, 256), half, False, False)
        yield _case(operator, "looped", (16, 64, 256, 256), half, False, True)
        yield _case(operator, "split", (1, 1, 192, 192), wide, False, False)  # arguments of 1 are compiled in
        yield _case(operator, "resident, grouped", (64, 512, 8, 8), wide, True, True)
    yield _case("double_backward", "resident, odd, small", (64, 127, 9, 7), half, True, True)
    yield _case("double_backward", "resident, odd, 1-D", (16, 127, 61), half, True, True, (80, 90, 100))
    for k, (operator, edge) in enumerate(itertools.product(RESIDENT, _EDGES)):
        some = ((80, 90), (90,), (90, 100), (90,))[k % 4]
        yield _edge(operator, edge, (wide, half, torch.float16)[k % 3], some)
    yield _edge("backward", ((16, 127, 4, 4, 4), False, None, 3), wide, (80, 90, 100), "relu")
    for operator in ("backward", "double_backward"):
        yield _edge(operator, ((1, 64, 384, 384), True, "interior", 1), torch.float16, (80, 90, 100))


def _edge(
    operator: str, edge: _Edge, dtype: torch.dtype, archs: tuple[int, ...], activation: str = "leaky_relu"
) -> Case:
    shape, channels_last, residual, pad = edge
    moved = traffic(operator, *_bytes(shape, dtype, pad), residual=residual is not None, gradient=residual is not None)
    return Case(
        f"{operator} edge {_named(channels_last, dtype)} {'x'.join(map(str, shape))} {residual} pad{pad}",
        example(operator, shape, dtype, channels_last, residual, pad, activation),
        tuple(Budget(count, False, False, 8) for count in moved),
        archs,
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
