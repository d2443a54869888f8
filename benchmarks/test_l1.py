"""weighted_l1 of CycleGAN's four pairs (both cycles, both identities): every pass, beside eager and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor

import fastgan.functional as F
from benchmarks.harness import DEVICE, close, compiled, copies, measure, passes, unsupported

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
SHAPES = [(1, 3, 256, 256), (4, 3, 256, 256), (1, 1, 2, 2)]
CASES = [(shape, torch.float32) for shape in SHAPES] + [
    (shape, torch.bfloat16) for shape in SHAPES[: 1 + (DEVICE == "cuda")]
]


def eager(recs: list[Tensor], reals: list[Tensor]) -> Tensor:
    """What the official code computes: one loss per pair, weighted and added."""
    return sum((nnf.l1_loss(a, b) * w for a, b, w in zip(recs, reals, WEIGHTS, strict=True)), torch.zeros(()))


def ours(recs: list[Tensor], reals: list[Tensor]) -> Tensor:
    return F.weighted_l1(list(zip(recs, reals, WEIGHTS, strict=True)))


CONTESTANTS: dict[str, Callable[..., Tensor]] = {"fastgan": ours, "eager": eager, "compile": eager}


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("contestant", CONTESTANTS)
def test_forward_backward(benchmark: Any, contestant: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    loss = compiled(CONTESTANTS[contestant]) if contestant == "compile" else CONTESTANTS[contestant]

    def make() -> tuple[list[Tensor], list[Tensor]]:
        recs, reals = ([torch.randn(shape, dtype=dtype, device=DEVICE) for _ in WEIGHTS] for _ in range(2))
        return [rec.requires_grad_() for rec in recs], reals

    def run(inputs: tuple[list[Tensor], list[Tensor]]) -> tuple[Tensor, ...]:
        value = loss(*inputs)
        return value, *torch.autograd.grad(value, inputs[0])

    one = torch.empty(shape, dtype=dtype).nbytes
    inputs = copies(make, 8 * one)

    def check(result: tuple[Tensor, ...]) -> None:
        recs, reals = ([t.detach().double().requires_grad_() for t in side] for side in inputs[0])
        exact, tolerance = eager(recs, reals), 1e-2 if dtype == torch.bfloat16 else 1e-4
        for got, expected in zip(result, (exact, *torch.autograd.grad(exact, recs)), strict=True):
            torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=1e-7)

    measure(
        benchmark, run, inputs,
        operator="weighted_l1", case=f"4 pairs {list(shape)} {str(dtype)[6:]}, forward + backward",
        contestant=contestant, bytes_moved=4 * 3 * one, operations=4 * 5 * torch.Size(shape).numel(), check=check,
    )  # fmt: skip


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("kind", ["forward", "double backward"])
def test_other_passes(benchmark: Any, kind: str, contestant: str) -> None:
    shape, name = SHAPES[0], f"4 pairs {list(SHAPES[0])} float32, {kind}"
    if contestant == "compile" and kind == "double backward":
        unsupported(
            operator="weighted_l1", case=name, contestant=contestant,
            reason="torch.compile does not support double backward",
        )  # fmt: skip
    torch.manual_seed(0)

    def make() -> tuple[list[Tensor], list[Tensor]]:
        recs, reals = ([torch.randn(shape, device=DEVICE) for _ in WEIGHTS] for _ in range(2))
        return recs, reals

    def run_of(loss: Callable[..., Tensor], inputs: tuple[list[Tensor], list[Tensor]]) -> Callable[[], Any]:
        recs, reals = inputs
        return passes(lambda *recs: loss(list(recs), reals), recs, kind)

    one = 4 * torch.Size(shape).numel()
    inputs = copies(make, 8 * one)
    loss = compiled(eager) if contestant == "compile" else CONTESTANTS[contestant]
    measure(
        benchmark, lambda run: run(), [run_of(loss, each) for each in inputs], operator="weighted_l1", case=name,
        contestant=contestant, bytes_moved=4 * 2 * one,
        check=lambda result: close(result, run_of(eager, inputs[0])(), 1e-4),
    )  # fmt: skip
