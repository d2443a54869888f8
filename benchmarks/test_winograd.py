"""3×3 convolutions of CycleGAN's residual blocks on the CPU: Winograd's way beside PyTorch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.harness import DEVICE, close, copies, measure
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
