"""The gradient of a convolution's weights, in C++ (csrc/cpu/weight_gradient.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.kernels.native._tensor import _C, CPU, threads


def weight_gradient(
    grad: Tensor, x: Tensor, window: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """[K, C, *window], of conv2d(x, weight, stride=stride, padding=padding), from the gradient of the result.

    x [N, C, H, W] and grad [N, K, height, width] are float32 on the CPU, dense in channels_last, and not empty.
    """
    n, filters, *size = grad.shape
    shape = (filters, x.size(1), *window)
    grad_weight = torch.empty(shape, dtype=torch.float32, device=CPU, memory_format=torch.channels_last)
    _C.convolution_weight_gradient(
        grad.data_ptr(), x.data_ptr(), grad_weight.data_ptr(), n, *size, filters, x.size(2), x.size(3), x.size(1),
        *window, *stride, *padding, threads(),
    )  # fmt: skip
    return grad_weight
