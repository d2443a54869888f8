r"""Convolutions with a stride, and transposed ones, on the CPU, with a gradient of the weights of our own.

For every place (r, s) in the window of a convolution with strides t and zeros p around its input, that gradient is a
product of two matrices,

.. math::
    \frac{\partial L}{\partial w_{k,c,r,s}}
    = \sum_{n,i,j} g_{n,k,i,j}\, x_{n,c,\; i t - p + r,\; j t - p + s},

and in a transposed convolution the same with x and the gradient g of the result in each other's place. PyTorch's own
takes one to three times as long, the more the larger the images are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastgan.functional._convolution import Geometry, faster_dtypes, may_serve, own_gradients, wanted
from fastgan.kernels.library import apply

LEAST_CHANNELS = 64
LEAST_PIXELS = 1024  # of the smaller of an image and its result, but for the edges; below, PyTorch's is as quick


def conv_strided(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (2, 2),
    padding: tuple[int, int] = (0, 0),
) -> Tensor:
    """``torch.conv2d(x, weight, bias, stride, padding)``, to the bit; only the gradient of the weights is ours.

    It serves dense float32 tensors on the CPU, x in channels_last, with strides above 1, at least 64 channels and
    filters, and results of about 1024 pixels an image or more, on x86-64 processors with AVX2; not under autocast,
    ``torch.compile``, ``torch.func``, forward mode, dispatch modes or ``use_backend("reference")``, and not where the
    gradient is to be differentiated again.

    Args:
        x: [N, C, H, W].
        weight: [K, C, R, S].
        bias: [K], or None.
        stride: of rows and columns.
        padding: zeros above and below x, and on its left and right.

    Returns:
        [N, K, (H + 2 padding[0] - R) // stride[0] + 1, (W + 2 padding[1] - S) // stride[1] + 1].
    """
    return _convolution(x, weight, bias, Geometry(stride, padding))


def conv_transposed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (2, 2),
    padding: tuple[int, int] = (0, 0),
    output_padding: tuple[int, int] = (0, 0),
) -> Tensor:
    """``torch.conv_transpose2d(x, weight, bias, stride, padding, output_padding)`` in the way of
    :func:`conv_strided`.

    Args:
        x: [N, C, H, W].
        weight: [C, K, R, S].
        bias: [K], or None.
        stride: of rows and columns.
        padding: rows and columns of the result that are left out at each edge.
        output_padding: rows and columns that are added at its lower and right edge.

    Returns:
        [N, K, (H - 1) stride[0] - 2 padding[0] + R + output_padding[0], …].
    """
    return _convolution(x, weight, bias, Geometry(stride, padding, True, output_padding))


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    if not serves(x, weight, bias, geometry):
        return _plain(x, weight, bias, geometry)
    y: Tensor = apply(_Convolution, x, weight, bias, geometry)
    return y


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    stride, padding, transposed, output_padding = geometry
    if transposed:
        return torch.conv_transpose2d(x, weight, bias, stride, padding, output_padding)
    return torch.conv2d(x, weight, bias, stride, padding)


def serves(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> bool:
    """Whether the gradient of the weights of such a convolution is ours."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if not may_serve(*tensors) or weight.dim() != 4 or min(geometry.stride) < 2:
        return False
    pixels = x.size(2) * x.size(3)
    return (
        {t.dtype for t in tensors} == {torch.float32}
        and not torch.is_autocast_enabled("cpu")
        and min(weight.shape[:2]) >= LEAST_CHANNELS
        and x.size(0) > 0
        and (pixels if geometry.transposed else pixels // math.prod(geometry.stride)) >= LEAST_PIXELS
        and torch.float32 in faster_dtypes()
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        return _plain(x, weight, bias, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.geometry = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return *own_gradients(grad, x, weight, ctx.geometry, [wanted(ctx, i) for i in range(3)]), None
