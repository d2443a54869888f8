"""3×3 convolutions by Winograd's minimal filtering, in C++ (csrc/cpu/winograd.cpp).

The formulas: :mod:`fastgan.reference.winograd`. Tensors are float32 on the CPU; images and weights are dense in
channels_last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.kernels.native._tensor import _C, CPU, address, threads

FASTER = _C.cpu_isa() != "baseline"  # than PyTorch's convolution; with vectors of 16 bytes it is not


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv2d(x, weight, bias), [N, K, H, W]. x: [N, C, H + 2, W + 2], H and W even; weight: [K, C, 3, 3]."""
    (n, channels, height, width), filters = x.shape, weight.size(0)
    y = _images(n, filters, height - 2, width - 2)
    _C.winograd_forward(
        x.data_ptr(), weight.data_ptr(), address(bias), y.data_ptr(), n, height - 2, width - 2, channels, filters,
        threads(),
    )  # fmt: skip
    return y


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and weight, if needed; grad: [N, K, H, W]."""
    (n, filters, height, width), channels = grad.shape, x.size(1)
    sizes = (n, height, width, channels, filters, threads())
    grad_x = grad_weight = None
    if need_x:
        grad_x = _images(*x.shape)
        _C.winograd_backward_x(grad.data_ptr(), weight.data_ptr(), grad_x.data_ptr(), *sizes)
    if need_weight:
        grad_weight = _images(*weight.shape)
        _C.winograd_backward_w(grad.data_ptr(), x.data_ptr(), grad_weight.data_ptr(), *sizes)
    return grad_x, grad_weight


def _images(n: int, channels: int, height: int, width: int) -> Tensor:
    shape = (n, channels, height, width)
    return torch.empty(shape, dtype=torch.float32, device=CPU, memory_format=torch.channels_last)
