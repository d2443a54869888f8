"""interpolate alone, with the weights given: every pass, beside torch.lerp, the published formula and torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastgan.functional as F
from benchmarks.harness import DEVICE, close, compiled, copies, measure, passes, unsupported

SHAPE = (64, 3, 64, 64)
# real, fake and the points; their gradients; the same again, of linear maps
PASSES = {"forward": 3, "forward + backward": 6, "double backward": 3}


def eager(real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
    return torch.lerp(fake, real, alpha.to(real.dtype).view(-1, *(1,) * (real.dim() - 1)))


def published(real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
    """As the papers' formula reads, and most ports with it."""
    a = alpha.to(real.dtype).view(-1, *(1,) * (real.dim() - 1))
    return a * real + (1 - a) * fake


@pytest.mark.parametrize("contestant", ["fastgan", "eager", "published", "compile"])
@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, torch.float32) for kind in PASSES), ("forward", torch.bfloat16)], ids=str
)
def test_interpolate(benchmark: Any, kind: str, dtype: torch.dtype, contestant: str) -> None:
    name = f"{list(SHAPE)} {str(dtype)[6:]}, {kind}"
    if contestant == "compile" and kind == "double backward":
        unsupported(
            operator="interpolate", case=name, contestant=contestant,
            reason="torch.compile does not support double backward",
        )  # fmt: skip
    function = {"fastgan": F.interpolate, "published": published}.get(contestant, eager)
    function = compiled(function) if contestant == "compile" else function
    torch.manual_seed(0)
    alpha = torch.rand(SHAPE[0], device=DEVICE)
    one = dtype.itemsize * torch.Size(SHAPE).numel()
    inputs = copies(lambda: [torch.randn(SHAPE, device=DEVICE).to(dtype) for _ in range(2)], 2 * one)

    def run_of(function: Any, images: list[Tensor]) -> Any:
        return passes(lambda real, fake: function(real, fake, alpha), images, kind)

    def check(result: tuple[Tensor, ...]) -> None:
        close(result, run_of(eager, inputs[0])(), 1e-5 if dtype == torch.float32 else 1e-2)

    measure(
        benchmark, lambda run: run(), [run_of(function, images) for images in inputs], operator="interpolate",
        case=name, contestant=contestant, bytes_moved=PASSES[kind] * one,
        operations=PASSES[kind] * one / dtype.itemsize, check=check,
    )  # fmt: skip
