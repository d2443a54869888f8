"""3×3 convolutions by Winograd's minimal filtering, in C++ (csrc/cpu/winograd.cpp).

The formulas: :mod:`fastgan.reference.winograd`. Images are float32 or bfloat16, all of a call alike, weights and biases
float32, on the CPU; images and weights are dense in channels_last; padding is 0 or 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.kernels.native._tensor import _C, CPU, DTYPES, address, threads

# The images of which these are faster than PyTorch's convolution. With vectors of 16 bytes they are not, and AMX
# multiplies bfloat16 16 times as fast as float32.
FASTER: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
if getattr(torch.cpu, "_is_amx_tile_supported", lambda: True)():  # private: taken to be there if nobody can say
    FASTER = (torch.float32,)
if _C.cpu_isa() == "baseline":
    FASTER = ()


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """conv2d(x, weight, bias, padding=padding), [N, K, H, W]."""
    n, channels, height, width = x.shape
    y = _empty(x.dtype, n, weight.size(0), height + 2 * padding - 2, width + 2 * padding - 2)
    _C.winograd_forward(
        x.data_ptr(), weight.data_ptr(), address(bias), y.data_ptr(), *_sizes(y, channels), padding, threads()
    )
    return y


def input_gradient(grad: Tensor, weight: Tensor, padding: int) -> Tensor:
    """The gradient of x, from that of the result."""
    n, _, height, width = grad.shape
    grad_x = _empty(grad.dtype, n, weight.size(1), height + 2 - 2 * padding, width + 2 - 2 * padding)
    _C.winograd_input_gradient(
        grad.data_ptr(), weight.data_ptr(), grad_x.data_ptr(), *_sizes(grad, weight.size(1)), padding, threads()
    )
    return grad_x


def weight_gradient(grad: Tensor, x: Tensor, padding: int) -> Tensor:
    """The gradient of the weight, from that of the result."""
    grad_weight = _empty(torch.float32, grad.size(1), x.size(1), 3, 3)
    _C.winograd_weight_gradient(
        grad.data_ptr(), x.data_ptr(), grad_weight.data_ptr(), *_sizes(grad, x.size(1)), padding, threads()
    )
    return grad_weight


def _sizes(y: Tensor, channels: int) -> tuple[int, ...]:
    n, filters, height, width = y.shape
    return DTYPES[y.dtype], n, height, width, channels, filters


def _empty(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=CPU, memory_format=torch.channels_last)
