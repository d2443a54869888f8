"""Convolutions on the CPU beside PyTorch's: 3×3 of CycleGAN's residual blocks by Winograd, few filters by columns, and
strided and transposed ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.harness import DEVICE, close, copies, measure, passes
from fastgan.functional.columns import conv_by_columns
from fastgan.functional.strided import conv_strided, conv_transposed
from fastgan.functional.winograd import conv3x3

# Images, channels, height and width of the result, and dtype of the images.
CASES = [
    (4, 64, 32, torch.float32),
    (1, 128, 32, torch.float32),
    (1, 256, 32, torch.float32),
    (1, 256, 64, torch.float32),
    (1, 256, 32, torch.bfloat16),
]
PASSES = {"forward": 1, "forward + backward": 3}


@pytest.mark.skipif(DEVICE != "cpu", reason="cuDNN chooses by itself")
@pytest.mark.parametrize("contestant", ["fastgan", "eager"])
@pytest.mark.parametrize("kind", PASSES)
@pytest.mark.parametrize(("n", "channels", "side", "dtype"), CASES, ids=str)
def test_conv3x3(
    benchmark: Any, n: int, channels: int, side: int, dtype: torch.dtype, kind: str, contestant: str
) -> None:
    torch.manual_seed(0)

    def make() -> list[Tensor]:
        x = torch.randn(n, channels, side + 2, side + 2).to(dtype, memory_format=torch.channels_last)
        weight = (torch.randn(channels, channels, 3, 3) * 0.02).to(dtype, memory_format=torch.channels_last)
        return [x.requires_grad_(), weight.requires_grad_(), torch.zeros(channels, dtype=dtype, requires_grad=True)]

    grad = torch.randn(n, channels, side, side).to(dtype, memory_format=torch.channels_last)

    def run(conv: Any, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        if kind == "forward":
            with torch.no_grad():
                return (conv(*tensors),)
        y = conv(*tensors)
        return (y, *torch.autograd.grad(y, tensors, grad))

    inputs = copies(make, dtype.itemsize * n * channels * (side + 2) ** 2)
    function = {"fastgan": conv3x3, "eager": torch.conv2d}[contestant]
    measure(
        benchmark, lambda tensors: run(function, tensors), inputs, operator="conv3x3",
        case=f"{[n, channels, side, side]} {str(dtype)[6:]}, {kind}", contestant=contestant,
        operations=PASSES[kind] * 18 * n * channels**2 * side**2,
        check=lambda result: close(result, run(torch.conv2d, inputs[0]), 1e-4 if dtype == torch.float32 else 2e-2),
    )  # fmt: skip


# Images, channels, filters, side of the kernel and of the result: a generator's last layer, and a PatchGAN's.
FEW = [(1, 64, 3, 7, 128), (1, 512, 1, 4, 30)]


@pytest.mark.skipif(DEVICE != "cpu", reason="cuDNN chooses by itself")
@pytest.mark.parametrize("contestant", ["fastgan", "eager"])
@pytest.mark.parametrize("kind", PASSES)
@pytest.mark.parametrize(("n", "channels", "filters", "kernel", "side"), FEW)
def test_few_filters(
    benchmark: Any, n: int, channels: int, filters: int, kernel: int, side: int, kind: str, contestant: str
) -> None:
    torch.manual_seed(0)
    x, weight = (
        torch.randn(shape).to(memory_format=torch.channels_last).requires_grad_()
        for shape in ((n, channels, side + kernel - 1, side + kernel - 1), (filters, channels, kernel, kernel))
    )
    run_of = lambda conv: passes(conv, [x, weight, torch.zeros(filters)], kind)
    function = {"fastgan": conv_by_columns, "eager": torch.conv2d}[contestant]
    measure(
        benchmark, lambda run: run(), [run_of(function)], operator="conv_by_columns",
        case=f"{[n, channels, side, side]} to {filters}, {kernel} x {kernel}, {kind}", contestant=contestant,
        operations=PASSES[kind] * 2 * kernel**2 * n * channels * filters * side**2,
        check=lambda result: close(result, run_of(torch.conv2d)(), 1e-4),
    )  # fmt: skip


# Channels, filters, side of the smaller image: CycleGAN's down- and upsampling at 256 pixels, and at 128.
STRIDED = [(64, 128, 128), (128, 256, 64), (64, 128, 64)]


@pytest.mark.skipif(DEVICE != "cpu", reason="cuDNN chooses by itself")
@pytest.mark.parametrize("contestant", ["fastgan", "eager"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("few", "many", "side"), STRIDED)
def test_strided(benchmark: Any, few: int, many: int, side: int, transposed: bool, contestant: str) -> None:
    torch.manual_seed(0)
    images = (1, many, side, side) if transposed else (1, few, 2 * side, 2 * side)
    x, weight = (
        torch.randn(shape).to(memory_format=torch.channels_last).requires_grad_()
        for shape in (images, (many, few, 3, 3))
    )
    geometry: tuple[Any, ...] = ((2, 2), (1, 1), (1, 1)) if transposed else ((2, 2), (1, 1))
    functions = (conv_transposed, torch.conv_transpose2d) if transposed else (conv_strided, torch.conv2d)
    ours, theirs = (
        passes(lambda *tensors, conv=conv: conv(*tensors, None, *geometry), [x, weight], "forward + backward")
        for conv in functions
    )
    measure(
        benchmark, lambda run: run(), [ours if contestant == "fastgan" else theirs],
        operator="conv_transposed" if transposed else "conv_strided",
        case=f"{[*images]} to {few if transposed else many}, 3 x 3, stride 2, forward + backward",
        contestant=contestant, operations=3 * 18 * few * many * side**2,
        check=lambda result: close(result, theirs(), 1e-4),
    )  # fmt: skip
