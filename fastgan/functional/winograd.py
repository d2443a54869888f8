"""3×3 convolutions on the CPU by Winograd's minimal filtering: 16 multiplications where there are 36, or 36 of 144.

The derivation is in :mod:`fastgan.reference.winograd`. It is one way to compute PyTorch's convolution and not another
operator: errors are of the same size (tests/test_winograd.py), and whatever the kernels do not serve is PyTorch's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgan.functional._convolution import Geometry, faster_dtypes, may_serve, plain, plain_gradients, wanted
from fastgan.kernels import dispatch
from fastgan.kernels.library import apply

LEAST_CHANNELS = 64  # at 48, transforms cost what products save
LEAST_SIDE = 4  # of a result
LEAST_PIXELS = 256  # of all results


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: int = 0) -> Tensor:
    """``torch.conv2d(x, weight, bias, padding=padding)`` of 3×3 weights.

    Winograd's way serves dense float32 and bfloat16 tensors on the CPU, channels_last, with at least 64 channels and
    filters, results of at least 4 × 4 pixels an image and 256 in all, with padding 0 or 1, on x86-64 processors with
    AVX2 (bfloat16: without AMX, which is faster); not under ``torch.compile``, ``torch.func``, forward mode, dispatch
    modes or ``use_backend("reference")``. Everything else is ``torch.conv2d`` to the bit. Under autocast to bfloat16 x
    becomes bfloat16, and weights stay what they are.

    Args:
        x: [N, C, H, W].
        weight: [K, C, 3, 3].
        bias: [K], or None.
        padding: zeros around x.

    Returns:
        [N, K, H + 2 padding - 2, W + 2 padding - 2]. Differentiable to any order, by the same kernels.
    """
    dtype = _served_dtype(x, weight, bias, padding)
    if dtype is None:
        return torch.conv2d(x, weight, bias, padding=padding)
    y: Tensor = apply(_Convolution, x.to(dtype), weight.float(), None if bias is None else bias.float(), padding)
    return y


def serves(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: int = 0) -> bool:
    """Whether Winograd's way computes :func:`conv3x3` of such tensors here."""
    return _served_dtype(x, weight, bias, padding) is not None


def _served_dtype(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> torch.dtype | None:
    """The images' in the kernels; None where they do not serve."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if not may_serve(*tensors) or weight.dim() != 4 or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    dtypes = {t.dtype for t in tensors}
    if torch.is_autocast_enabled("cpu"):
        dtype, known = torch.get_autocast_dtype("cpu"), dtypes <= {torch.float32, torch.bfloat16}
    else:
        dtype, known = x.dtype, len(dtypes) == 1
    filters, channels, *sides = weight.shape
    height, width = x.size(2) + 2 * padding - 2, x.size(3) + 2 * padding - 2
    served = (
        known
        and sides == [3, 3]
        and padding in (0, 1)
        and x.size(1) == channels
        and min(filters, channels) >= LEAST_CHANNELS
        and min(height, width) >= LEAST_SIDE
        and x.size(0) * height * width >= LEAST_PIXELS
        and dtype in faster_dtypes()
    )
    return dtype if served else None


# A convolution and its two gradients are linear in either argument, and each is the others' derivative, so that these
# three are differentiable to any order. PyTorch's own take what is no plain memory (batched gradients, torch.func), and
# what a saved tensor's hook has given another dtype. Weights, their gradients and whatever takes a weight's place are
# float32, beside images of either dtype.


def _convolved(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    if not plain(x, weight) or weight.dtype != torch.float32:
        return torch.conv2d(x, weight.to(x.dtype), padding=padding)
    y: Tensor = apply(_Convolution, x, weight, None, padding)
    return y


def _input_gradient(grad: Tensor, weight: Tensor, padding: int) -> Tensor:
    if not plain(grad, weight) or weight.dtype != torch.float32:
        n, _, height, width = grad.shape
        x = grad.new_empty(()).expand(n, weight.size(1), height + 2 - 2 * padding, width + 2 - 2 * padding)
        grad_x: Tensor = plain_gradients(grad, x, weight, _geometry(padding), [True, False, False])[0]
        return grad_x
    grad_x = apply(_InputGradient, grad, weight, padding)
    return grad_x


def _weight_gradient(grad: Tensor, x: Tensor, padding: int) -> Tensor:
    if not plain(grad, x) or grad.dtype != x.dtype:
        weight = grad.new_empty(()).expand(grad.size(1), x.size(1), 3, 3)
        grad_weight: Tensor = plain_gradients(grad, x, weight, _geometry(padding), [False, True, False])[1]
        return grad_weight
    grad_weight = apply(_WeightGradient, grad, x, padding)
    return grad_weight


def _geometry(padding: int) -> Geometry:
    return Geometry(padding=(padding, padding))


def _kernel(name: str, *arguments: Any) -> Tensor:
    """A kernel of images and weights, which it wants dense in channels_last."""
    dense = [
        a.contiguous(memory_format=torch.channels_last) if isinstance(a, Tensor) and a.dim() == 4 else a
        for a in arguments
    ]
    result: Tensor = getattr(dispatch.kernels("native", "winograd"), name)(*dense)
    return result


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        return _kernel("forward", x, weight, None if bias is None else bias.contiguous(), padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.padding = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need = [wanted(ctx, i) for i in range(3)]
        if not plain(grad):
            return *plain_gradients(grad, x, weight, _geometry(ctx.padding), need), None
        return (
            _input_gradient(grad, weight, ctx.padding) if need[0] else None,
            _weight_gradient(grad, x, ctx.padding) if need[1] else None,
            grad.sum((0, 2, 3), dtype=torch.float32) if need[2] else None,
            None,
        )


class _InputGradient(torch.autograd.Function):
    @staticmethod
    def forward(grad: Tensor, weight: Tensor, padding: int) -> Tensor:
        return _kernel("input_gradient", grad, weight, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, weight, ctx.padding = inputs
        ctx.save_for_backward(grad, weight)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        grad, weight = ctx.saved_tensors
        return (
            _convolved(v, weight, ctx.padding) if wanted(ctx, 0) else None,
            _weight_gradient(grad, v, ctx.padding) if wanted(ctx, 1) else None,
            None,
        )


class _WeightGradient(torch.autograd.Function):
    @staticmethod
    def forward(grad: Tensor, x: Tensor, padding: int) -> Tensor:
        return _kernel("weight_gradient", grad, x, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, x, ctx.padding = inputs
        ctx.save_for_backward(grad, x)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        grad, x = ctx.saved_tensors
        return (
            _convolved(x, v, ctx.padding) if wanted(ctx, 0) else None,
            _input_gradient(grad, v, ctx.padding) if wanted(ctx, 1) else None,
            None,
        )
