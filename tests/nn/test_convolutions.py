"""Convolutions of our own, and the layout that they want, beside PyTorch's instance norm."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgan.nn import fuse, use_cpu_convolutions
from fastgan.nn.convolutions import pytorch_instance_norms
from fastgan.nn.winograd import Conv3x3

CONVOLUTIONS = [
    nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(16, 4, 5, padding=2), nn.Conv2d(64, 64, 3, 2, 1),
    nn.ConvTranspose2d(64, 64, 3, 2, 1),
]  # fmt: skip


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


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("padding_mode", "circular"), ("stride", (3, 3)), ("dilation", (2, 2)), ("padding", (2, 3)), ("groups", 4),
        ("_conv_forward", lambda x, weight, bias: torch.conv2d(x.flip(2), weight, bias)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
def test_a_convolution_that_is_changed_is_what_it_was_changed_into(
    conv: nn.Conv2d | nn.ConvTranspose2d, change: str, value: Any, first: bool
) -> None:
    """As seamless images have it, and dilated networks: before or after the swap."""
    if change == "padding_mode" and isinstance(conv, nn.ConvTranspose2d):
        pytest.skip("PyTorch's pads with zeros alone")
    torch.manual_seed(0)
    plain, own = copy.deepcopy(conv), copy.deepcopy(conv)
    for layer in (plain, own):
        if layer is own and not first:
            assert use_cpu_convolutions(layer) == [""]
        setattr(layer, change, value)
        if change == "groups":
            layer.weight = nn.Parameter(layer.weight[:, : layer.weight.size(1) // 4].detach())
            layer.bias = None
    if first:
        use_cpu_convolutions(own)
    x = torch.randn(1, conv.in_channels, 40, 40).to(memory_format=torch.channels_last)
    torch.testing.assert_close(own(x), plain(x), rtol=1e-4, atol=1e-4)


def test_a_model_that_is_not_fused_is_warned_of() -> None:
    model = network()
    with pytest.warns(UserWarning, match=r"^1, 4: in channels_last, on a CPU, .* call fastgan.fuse\(model\) first$"):
        use_cpu_convolutions(model)
    assert pytorch_instance_norms(model) == ["1", "4"]
    fuse(model)
    assert pytorch_instance_norms(model) == []


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got int"):
        use_cpu_convolutions(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
def test_saved_tensors_that_come_back_in_another_dtype_are_refused(conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """As by PyTorch: the kernels would read past their ends."""
    layer = copy.deepcopy(conv).to(memory_format=torch.channels_last)
    assert use_cpu_convolutions(layer) == [""]
    x = torch.randn(1, conv.in_channels, 32, 32).to(memory_format=torch.channels_last).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.half(), lambda t: t):
        y = layer(x)
    with pytest.raises(RuntimeError, match="Half"):
        torch.autograd.grad(y.sum(), layer.weight, retain_graph=True)
    if isinstance(layer, Conv3x3):  # whose weights may differ from the images
        (found,) = torch.autograd.grad(y.sum(), x)
        expected = torch.nn.grad.conv2d_input(x.shape, layer.weight.half().float(), torch.ones_like(y), padding=1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    else:
        with pytest.raises(RuntimeError, match="Half"):
            torch.autograd.grad(y.sum(), x)
