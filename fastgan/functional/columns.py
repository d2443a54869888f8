r"""Convolutions with few filters on the CPU, column by column of their weights.

A convolution's time is that of its filters rounded up to a vector, so that the three filters of a generator's last
layer take as long as sixteen. With x of C channels and weights w [K, C, R, S],

.. math::
    z_{n,\,kS+s} = x_n * w_{k,\,:,\,:,\,s}, \qquad
    y_{n,k,i,j} = b_k + \sum_s z_{n,\,kS+s,\,i,\,j+s} :

a convolution with KS filters one column wide, in which less of a vector is idle, and a sum of shifted results.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgan.functional._convolution import Geometry, faster_dtypes, may_serve, own_gradients, wanted
from fastgan.kernels.library import apply

MOST_FILTERS = 4
LEAST_COLUMNS = 3
LEAST_CHANNELS = 8
LEAST_PIXELS = 128  # of all results


def conv_by_columns(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: tuple[int, int] = (0, 0)) -> Tensor:
    """``torch.conv2d(x, weight, bias, padding=padding)`` of few filters.

    Columns serve dense float32 tensors on the CPU, x in channels_last, with at most 4 filters of at least 3 columns and
    8 channels, and results of at least 128 pixels in all, on x86-64 processors with AVX2; not under autocast,
    ``torch.compile``, ``torch.func``, forward mode, dispatch modes or ``use_backend("reference")``. Everything else is
    ``torch.conv2d`` to the bit.

    Args:
        x: [N, C, H, W].
        weight: [K, C, R, S].
        bias: [K], or None.
        padding: zeros above and below x, and on its left and right.

    Returns:
        [N, K, H + 2 padding[0] - R + 1, W + 2 padding[1] - S + 1]. Derivatives of any order are PyTorch's, but for
        the gradient of the weights where it is not to be differentiated again, which is a kernel's.
    """
    if not serves(x, weight, bias, padding):
        return torch.conv2d(x, weight, bias, padding=padding)
    y: Tensor = apply(_Convolution, x, weight, bias, padding)
    return y


def serves(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: tuple[int, int] = (0, 0)) -> bool:
    """Whether columns compute :func:`conv_by_columns` of such tensors here."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if not may_serve(*tensors) or weight.dim() != 4 or (bias is not None and bias.shape != weight.shape[:1]):
        return False
    filters, channels, rows, columns = weight.shape
    height, width = x.size(2) + 2 * padding[0] - rows + 1, x.size(3) + 2 * padding[1] - columns + 1
    return (
        {t.dtype for t in tensors} == {torch.float32}
        and not torch.is_autocast_enabled("cpu")
        and filters <= MOST_FILTERS
        and columns >= LEAST_COLUMNS
        and x.size(1) == channels >= LEAST_CHANNELS
        and min(filters, rows, height, width) >= 1
        and x.size(0) * height * width >= LEAST_PIXELS
        and torch.float32 in faster_dtypes()
    )


class _Convolution(torch.autograd.Function):
    """The gradient of x is PyTorch's, and quick; that of the weights is our kernel's: by columns it would err more."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        columns = weight.permute(0, 3, 1, 2).flatten(0, 1).unsqueeze(3).contiguous(memory_format=torch.channels_last)
        shifted = _shifted(torch.conv2d(x, columns, padding=padding), weight.size(3))
        n, height, width, filters, _ = shifted.shape
        y = torch.empty(
            (n, filters, height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
        )  # a view could not be changed in place
        pixels = torch.sum(shifted, -1, out=y.permute(0, 2, 3, 1))
        if bias is not None:
            pixels.add_(bias)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.padding = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need = [wanted(ctx, i) for i in range(3)]
        return *own_gradients(grad, x, weight, Geometry(padding=ctx.padding), need), None


def _shifted(z: Tensor, columns: int) -> Tensor:
    """The view [N, H, W, K, S] of z [N, K S, H, W + S - 1] that has z[kS + s, i, j + s] at (i, j, k, s)."""
    n, channels, height, width = z.shape
    of_image, of_channel, of_row, of_pixel = z.stride()
    sizes = (n, height, width - columns + 1, channels // columns, columns)
    return z.as_strided(sizes, (of_image, of_row, of_pixel, columns * of_channel, of_channel + of_pixel))
