"""Exact 1-D Wasserstein against NumPy, torch, SciPy and POT: forward, and with the gradients of both sides."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import fastgan.functional as F
from benchmarks.harness import DEVICE, close, copies, measure, passes
from fastgan import reference

SHAPES = [(1, 1_000_000), (64, 16384), (1024, 1024), (16384, 64), (4096, 256)]
WITHOUT_POT = importlib.util.find_spec("ot") is None
UNEQUAL = [(1, 1_000_000, 700_001), (1024, 1024, 768), (4096, 256, 200)]


def comparisons(rows: int, n: int) -> float:
    """Of sorting both sides, at least."""
    return 2 * rows * n * math.log2(n)


def with_gradients(distance: Callable[..., Tensor]) -> Callable[[Any], tuple[Tensor, ...]]:
    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        value = distance(*inputs)
        return (value, *torch.autograd.grad(value.sum(), [t for t in inputs if t.requires_grad]))

    return run


def torch_sort(x: Tensor, y: Tensor) -> Tensor:
    return (x.sort(-1).values - y.sort(-1).values).abs().mean(-1)


def pot(x: Tensor, y: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
    import ot

    a, b = (None if w is None else (w / w.sum(-1, keepdim=True)).mT for w in (a, b))
    return ot.wasserstein_1d(x.mT, y.mT, a, b, p=1)


def numpy_sort(inputs: tuple[Tensor, Tensor]) -> Any:
    x, y = (t.numpy() for t in inputs)
    return np.abs(np.sort(x, -1) - np.sort(y, -1)).mean(-1)


def numpy_by_hand(inputs: tuple[Tensor, Tensor]) -> Any:
    """The distance and both gradients, as a careful user would write them."""
    x, y = (t.detach().numpy() for t in inputs)
    i, j = np.argsort(x, -1), np.argsort(y, -1)
    d = np.take_along_axis(x, i, -1) - np.take_along_axis(y, j, -1)
    slope = np.sign(d) / np.float32(x.shape[-1])
    gx, gy = np.empty_like(x), np.empty_like(y)
    np.put_along_axis(gx, i, slope, -1)
    np.put_along_axis(gy, j, -slope, -1)
    return np.abs(d).mean(-1), gx, gy


def scipy_loop(inputs: tuple[Tensor, ...]) -> Any:
    arrays = [t.detach().numpy() for t in inputs]
    return np.array([stats.wasserstein_distance(*row) for row in zip(*arrays, strict=True)])


def compare(run: Callable[[Any], Any], inputs: tuple[Tensor, ...], rtol: float = 1e-5) -> Callable[[Any], None]:
    """A check against what ``run`` finds in float64: each distance to within ``rtol``, and each gradient as a whole,
    for equal samples may be matched in either order, and POT's masses of 1e-6 are off by 2 % in float32."""
    expected, *slopes = plain(run(tuple(t.detach().double().requires_grad_(t.requires_grad) for t in inputs)))

    def check(result: Any) -> None:
        value, *gradients = plain(result)
        torch.testing.assert_close(value, expected, rtol=rtol, atol=1e-7)
        close(tuple(gradients), tuple(slopes), 3e-2)

    return check


def plain(result: Any) -> list[Tensor]:
    results = result if isinstance(result, tuple) else (result,)
    return [torch.as_tensor(each).detach().double().cpu() for each in results]


FORWARD = {"fastgan": lambda i: F.wasserstein_1d(*i), "torch": lambda i: torch_sort(*i)}
GRADIENTS = {"fastgan": with_gradients(F.wasserstein_1d), "torch": with_gradients(torch_sort)}
if DEVICE == "cpu":
    FORWARD |= {"numpy": numpy_sort, "scipy": scipy_loop}
    GRADIENTS |= {"numpy": numpy_by_hand} | ({} if WITHOUT_POT else {"pot": with_gradients(pot)})


@pytest.mark.parametrize("contestant", FORWARD)
@pytest.mark.parametrize(("rows", "n"), SHAPES)
def test_forward(benchmark: Any, rows: int, n: int, contestant: str) -> None:
    make = lambda: (torch.randn(rows, n, device=DEVICE), torch.randn(rows, n, device=DEVICE) + 0.1)
    inputs = copies(make, 8 * rows * n)
    measure(
        benchmark, FORWARD[contestant], inputs, operator="wasserstein_1d forward", case=f"{rows}x{n}",
        contestant=contestant, bytes_moved=8 * rows * n, operations=comparisons(rows, n),
        check=compare(FORWARD["torch"], inputs[0]),
    )  # fmt: skip


@pytest.mark.parametrize("contestant", GRADIENTS)
@pytest.mark.parametrize(("rows", "n"), SHAPES)
def test_with_gradients(benchmark: Any, rows: int, n: int, contestant: str) -> None:
    make = lambda: tuple((torch.randn(rows, n, device=DEVICE) + s).requires_grad_() for s in (0, 0.1))
    inputs = copies(make, 8 * rows * n)
    measure(
        benchmark, GRADIENTS[contestant], inputs, operator="wasserstein_1d with gradients", case=f"{rows}x{n}",
        contestant=contestant, bytes_moved=16 * rows * n, operations=comparisons(rows, n),
        check=compare(GRADIENTS["torch"], inputs[0], 1e-4),
    )  # fmt: skip


# In float32 POT's cumulative weights are wrong by more than the distance: with weights it is given float64.
@pytest.mark.parametrize(
    ("weighted", "contestant"), [(False, "fastgan"), (False, "pot"), (True, "fastgan"), (True, "pot, float64")]
)
@pytest.mark.parametrize(("rows", "n", "m"), UNEQUAL)
def test_unequal_counts(benchmark: Any, rows: int, n: int, m: int, weighted: bool, contestant: str) -> None:
    if contestant != "fastgan" and WITHOUT_POT:
        pytest.skip("POT is not installed")

    def make() -> tuple[Tensor, ...]:
        samples = [torch.randn(rows, n, device=DEVICE), torch.randn(rows, m, device=DEVICE) + 0.1]
        weights = [torch.rand(rows, k, device=DEVICE) for k in (n, m)] if weighted else []
        dtype = torch.float64 if contestant == "pot, float64" else torch.float32
        return tuple(t.to(dtype).requires_grad_() for t in samples + weights)

    torch.manual_seed(0)
    inputs = copies(make, 4 * rows * (n + m))
    measure(
        benchmark, with_gradients(F.wasserstein_1d if contestant == "fastgan" else pot), inputs,
        operator=f"wasserstein_1d {'weighted' if weighted else 'unequal'} with gradients", case=f"{rows}x{n},{m}",
        contestant=contestant, check=compare(with_gradients(reference.wasserstein_1d), inputs[0], 1e-4),
    )  # fmt: skip


@pytest.mark.parametrize("contestant", ["fastgan", "torch"])
@pytest.mark.parametrize(("rows", "n"), [(1024, 1024), (64, 16384)])
def test_double_backward(benchmark: Any, rows: int, n: int, contestant: str) -> None:
    """Of W_2^2: that of W_1 is zero."""

    def squared(x: Tensor, y: Tensor) -> Tensor:
        return (x.sort(-1).values - y.sort(-1).values).square().mean(-1)

    function = squared if contestant == "torch" else lambda x, y: F.wasserstein_1d(x, y, p=2.0, root=False)
    torch.manual_seed(0)
    inputs = copies(lambda: [torch.randn(rows, n, device=DEVICE) + s for s in (0, 0.1)], 8 * rows * n)
    measure(
        benchmark, lambda run: run(), [passes(function, sides, "double backward") for sides in inputs],
        operator="wasserstein_1d double backward", case=f"{rows}x{n}, p = 2", contestant=contestant,
        # Equal samples may be matched in either order, and their cotangents then differ.
        check=lambda result: close(result, passes(squared, inputs[0], "double backward")(), 3e-2),
    )  # fmt: skip
