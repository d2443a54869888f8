"""Convolutions of our own, and the layout that they want, beside PyTorch's instance norm."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

from fastgan.nn import fuse, use_cpu_convolutions
from fastgan.nn.convolutions import pytorch_instance_norms


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 1, 1), nn.InstanceNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3, 1, 1),
        nn.InstanceNorm2d(64, affine=True), nn.LeakyReLU(0.2), nn.Conv2d(64, 3, 7, 1, 3),
    )  # fmt: skip


def test_a_batch_of_one_in_channels_last_has_right_gradients_once_fused() -> None:
    """PyTorch's instance norm, given a gradient in channels_last, computes one that is as large as wrong."""
    model, exact = network(), copy.deepcopy(network()).double()
    fuse(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert use_cpu_convolutions(model) == ["3", "6"]
    model.to(memory_format=torch.channels_last)
    x = torch.randn(1, 3, 20, 24)

    def gradients(net: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(net(x).square().mean(), list(net.parameters()))

    mine = gradients(model, x.contiguous(memory_format=torch.channels_last))
    for found, truth in zip(mine, gradients(exact, x.double()), strict=True):
        assert (found - truth).norm() <= 1e-4 * truth.norm() + 1e-6


def test_a_model_that_is_not_fused_is_warned_of() -> None:
    model = network()
    with pytest.warns(UserWarning, match=r"^1, 4: in channels_last, on a CPU, .* call fastgan.fuse\(model\) first$"):
        use_cpu_convolutions(model)
    assert pytorch_instance_norms(model) == ["1", "4"]
    fuse(model)
    assert pytorch_instance_norms(model) == []
