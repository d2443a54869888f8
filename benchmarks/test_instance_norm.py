"""Instance norm + activation: forward, forward + backward, double backward, beside eager PyTorch and torch.compile.

The shapes are CycleGAN's at 256 x 256, batch 1. Every case has a copy of x as its floor; the bytes are those that must
cross memory: x, the residual and y forward; x, the gradient and its results backward.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor

import fastgan.functional as F
from benchmarks import harness

Function = Callable[..., Tensor]
SHAPES = [(1, 64, 256, 256), (1, 128, 128, 128), (1, 256, 64, 64), (1, 512, 31, 31)]
LARGE = [(16, 64, 256, 256), (64, 256, 32, 32), (4, 32, 512, 512)]  # on a GPU
# passes over x's bytes that each pass must at least make, and operations for each of its elements
PASSES = {"forward": 2, "forward+backward": 5, "double backward": 5}
OPERATIONS = {"forward": 8, "forward+backward": 20, "double backward": 30}


def _eager(x: Tensor, residual: Tensor | None, pad: int) -> Tensor:
    z = nnf.instance_norm(x)
    z = nnf.leaky_relu(z, 0.2) if residual is None else nnf.leaky_relu(z + residual, 0.2)
    return nnf.pad(z, (pad,) * 4, mode="reflect") if pad else z


def _fused(x: Tensor, residual: Tensor | None, pad: int) -> Tensor:
    return F.instance_norm_act(x, residual=residual, activation="leaky_relu", reflect_pad=pad)


def _cases() -> list[Any]:
    cases: list[Any] = list(itertools.product(SHAPES, (False, True), (torch.float32,), PASSES, (None,)))
    if harness.DEVICE == "cuda":
        dtypes = (torch.float32, torch.bfloat16)
        cases += itertools.product(LARGE, (False, True), dtypes, ("forward", "forward+backward"), (None,))
    small = (1, 256, 64, 64)
    cases += [(small, last, torch.bfloat16, kind, None) for last in (False, True) for kind in PASSES]
    cases += [
        (small, channels_last, torch.float32, "forward+backward", extra)
        for channels_last in (False, True)
        for extra in ("residual", "reflect pad")
    ]
    cases += [((1, 1, 2, 2), False, torch.float32, kind, None) for kind in ("forward", "forward+backward")]
    return cases


def _id(case: Any) -> str:
    shape, channels_last, dtype, kind, extra = case
    layout = "channels_last" if channels_last else "NCHW"
    return " ".join(["x".join(map(str, shape)), layout, str(dtype)[6:], *([extra] if extra else []), kind])


def _least_bytes(x: Tensor, kind: str, extra: str | None) -> int:
    if extra == "residual":  # read forward; its gradient is written backward
        return x.nbytes * (PASSES[kind] + 2)
    if extra == "reflect pad":  # y is larger, and so is its gradient
        height, width = x.shape[2:]
        return x.nbytes * (PASSES[kind] - 2) + 2 * x.nbytes * (height + 2) * (width + 2) // (height * width)
    return x.nbytes * PASSES[kind]


def _run(function: Function, kind: str, x: Tensor, residual: Tensor | None, pad: int) -> Callable[[], Any]:
    if kind == "forward":
        return lambda: function(x, residual, pad)
    leaves = [t.detach().requires_grad_() for t in (x, residual) if t is not None]
    arguments = (*leaves, *(None,) * (2 - len(leaves)), pad)
    y = function(*arguments)
    torch.manual_seed(1)
    seed, cotangent = harness.numbers_like(y), harness.numbers_like(x)
    if kind == "forward+backward":
        return lambda: torch.autograd.grad(function(*arguments), leaves, seed)
    seed.requires_grad_()
    (first,) = torch.autograd.grad(y, leaves[0], seed, create_graph=True)
    return lambda: torch.autograd.grad(first, (seed, leaves[0]), cotangent, retain_graph=True)


@pytest.mark.parametrize("contestant", ["fastgan", "eager", "compile", "copy"])
@pytest.mark.parametrize("case", _cases(), ids=_id)
def test_instance_norm(benchmark: Any, case: Any, contestant: str) -> None:
    shape, channels_last, dtype, kind, extra = case
    torch.manual_seed(0)
    pad = 1 if extra == "reflect pad" else 0

    def make() -> tuple[Tensor, Tensor | None]:
        x = torch.randn(shape, device=harness.DEVICE).to(dtype)
        x = x.to(memory_format=torch.channels_last) if channels_last else x
        return x, torch.randn_like(x) if extra == "residual" else None

    nbytes = dtype.itemsize * torch.Size(shape).numel()
    inputs = harness.copies(make, 2 * nbytes)
    function = _fused if contestant == "fastgan" else _eager
    if contestant == "compile":
        if kind == "double backward":
            harness.unsupported(
                operator="instance_norm_act", case=_id(case), contestant=contestant,
                reason="torch.compile does not support double backward",
            )  # fmt: skip
        if shape != (1, 256, 64, 64):
            pytest.skip("one shape is enough: each compilation takes seconds")
        function = harness.compiled(_eager)
    if contestant == "copy":
        runs: list[Callable[[], Any]] = [lambda x=x: x.clone() for x, _ in inputs]
    else:
        runs = [_run(function, kind, x, residual, pad) for x, residual in inputs]

    def check(result: Any) -> None:
        if contestant in ("fastgan", "compile"):
            for a, b in zip(_tuple(result), _tuple(_run(_eager, kind, *inputs[0], pad)()), strict=True):
                assert (a - b).norm() <= (1e-3 if dtype == torch.float32 else 3e-2) * b.norm()

    harness.measure(
        benchmark, lambda run: run(), runs, operator="instance_norm_act", case=_id(case), contestant=contestant,
        bytes_moved=2 * nbytes if contestant == "copy" else _least_bytes(inputs[0][0], kind, extra), check=check,
        operations=None if contestant == "copy" else torch.Size(shape).numel() * OPERATIONS[kind],
    )  # fmt: skip


def _tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)
