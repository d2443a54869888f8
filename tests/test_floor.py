"""The floor of a step: what it repeats are the step's convolutions and matrix products, no more and no fewer."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from benchmarks import floor
from fastgan.functional import winograd
from fastgan.kernels import dispatch


class _Counted(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_products_of_a_step_with_a_double_backward() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 16, 1))
    x = torch.randn(2, 2, 6, 6, requires_grad=True)
    kept: list[Tensor] = []

    def step() -> None:
        (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        kept[:] = torch.autograd.grad(slope.square().sum(), list(net.parameters()), allow_unused=True)

    replay = floor.products(step)
    with _Counted() as counted:
        count = replay()
    # Forward; its backward for x; of both, what the parameters need.
    assert counted.calls[:4] == ["convolution", "addmm", "mm", "convolution_backward"]
    assert set(counted.calls) == {"convolution", "addmm", "mm", "convolution_backward"}
    assert len(counted.calls) == count >= 8
    with pytest.raises(AssertionError, match="no product"):
        floor.products(lambda: torch.ones(2) + 1)


@pytest.mark.skipif(isinstance(dispatch._load("native", "winograd"), str), reason="needs the C++ kernels")
def test_convolutions_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = (
        torch.randn(*shape).to(memory_format=torch.channels_last) for shape in ((1, 64, 18, 18), (64, 64, 3, 3))
    )
    kernels = dispatch.kernels("native", "winograd")
    monkeypatch.setattr(kernels, "FASTER", (torch.float32, torch.bfloat16))
    assert winograd.serves(x, weight)
    weight.requires_grad_()
    replay = floor.products(lambda: winograd.conv3x3(x, weight).sum().backward())
    with mock.patch.object(kernels, "forward", side_effect=AssertionError):  # a replay is of the kernels themselves
        assert replay() == 2  # forward, and the gradient of the weight
