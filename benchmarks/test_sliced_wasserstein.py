"""Sliced W_2 of point clouds along given directions, beside torch.sort and POT: forward, and with both gradients."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastgan.functional as F
from benchmarks.harness import DEVICE, close, copies, measure, passes

# points in the generator's batch, their dimension, directions
CASES = [(256, 2, 128), (512, 192, 256), (64, 3072, 512)]


def torch_sort(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    x, y = ((directions @ points.mT).sort(-1).values for points in (x, y))  # rows sort faster than columns
    return (x - y).square().mean().sqrt()


def pot(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    import ot

    distance: Tensor = ot.sliced_wasserstein_distance(x, y, projections=directions.mT, p=2)
    return distance


def ours(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    return F.sliced_wasserstein(x, y, projections=directions)


CONTESTANTS: dict[str, Callable[..., Tensor]] = {"fastgan": ours, "torch": torch_sort}
if importlib.util.find_spec("ot") is not None:
    CONTESTANTS["pot"] = pot


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("kind", ["forward", "forward + backward"])
@pytest.mark.parametrize(("n", "d", "count"), CASES)
def test_sliced_wasserstein(benchmark: Any, n: int, d: int, count: int, kind: str, contestant: str) -> None:
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(count, d, device=DEVICE), dim=1)
    inputs = copies(lambda: [torch.randn(n, d, device=DEVICE) + s for s in (0, 0.1)], 8 * n * d)

    def run_of(function: Callable[..., Tensor], clouds: list[Tensor]) -> Any:
        return passes(lambda x, y: function(x, y, directions), clouds, kind)

    measure(
        benchmark, lambda run: run(), [run_of(CONTESTANTS[contestant], clouds) for clouds in inputs],
        operator="sliced_wasserstein", case=f"{n} points of {d}, {count} directions, {kind}", contestant=contestant,
        check=lambda result: close(result, run_of(torch_sort, inputs[0])(), 1e-3),
    )  # fmt: skip
