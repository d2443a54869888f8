"""3×3 convolutions on the CPU by Winograd's minimal filtering: 16 multiplications where there are 36.

The derivation is in :mod:`fastgan.reference.winograd`. It is one way to compute PyTorch's convolution and not another
operator: errors are of the same size (tests/test_winograd.py), and whatever the kernels do not serve is PyTorch's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastgan.kernels import dispatch
from fastgan.kernels.library import is_batch

LEAST_CHANNELS = 64  # at 48, transforms cost what products save
LEAST_TILES = 64


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.conv2d(x, weight, bias)`` of 3×3 weights, without stride and padding.

    Winograd's way serves dense float32 tensors on the CPU, channels_last, of even height and width, with at least 64
    channels and filters and 64 tiles of 2×2 results, on x86-64 processors with AVX2; not under autocast,
    ``torch.compile``, ``torch.func``, forward mode or ``use_backend("reference")``. Everything else is
    ``torch.conv2d`` to the bit.

    Args:
        x: [N, C, H + 2, W + 2].
        weight: [K, C, 3, 3].
        bias: [K], or None.

    Returns:
        [N, K, H, W]. Differentiable to any order.
    """
    if not serves(x, weight, bias):
        return torch.conv2d(x, weight, bias)
    result: Tensor = _Winograd.apply(x, weight, bias)
    return result


def serves(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether Winograd's way computes :func:`conv3x3` of such tensors here."""
    if torch.compiler.is_compiling() or not (_plain(x) and _plain(weight) and (bias is None or _plain(bias))):
        return False
    if x.dim() != 4 or weight.dim() != 4 or (bias is not None and bias.shape != weight.shape[:1]):
        return False
    filters, channels, *sides = weight.shape
    height, width = x.size(2) - 2, x.size(3) - 2
    return (
        sides == [3, 3]
        and x.size(1) == channels
        and min(filters, channels) >= LEAST_CHANNELS
        and height % 2 == width % 2 == 0
        and height > 0
        and x.size(0) * height * width >= 4 * LEAST_TILES
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_autocast_enabled("cpu")
        and forward_ad._current_level < 0
        and torch._C._get_tracing_state() is None
        and dispatch.requested_backend() in ("auto", "native")
        and _available()
    )


def _plain(x: Tensor) -> bool:
    """Whether ``x`` is the float32 numbers in its memory: not a fake tensor, one of torch.func's, a negative view."""
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and x.is_cpu
        and x.dtype == torch.float32
        and x.layout == torch.strided
        and not x.is_neg()
        and not is_batch(x)
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def _available() -> bool:
    kernels = dispatch._load("native", "winograd")
    return not isinstance(kernels, str) and kernels.FASTER


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = dispatch.kernels("native", "winograd").forward(
            x, weight.contiguous(memory_format=torch.channels_last), None if bias is None else bias.contiguous()
        )
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.bias = inputs[0], inputs[1], inputs[2] is not None
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        # A gradient of the gradient is asked for, or the gradient is not plain memory: PyTorch's own is differentiable.
        if torch.is_grad_enabled() or not _plain(grad):
            return _plain_backward(grad, x, weight, (need_x, need_weight, need_bias))
        grad_bias = grad.sum((0, 2, 3)) if need_bias else None
        if not (need_x or need_weight):
            return None, None, grad_bias
        grad_x, grad_weight = dispatch.kernels("native", "winograd").backward(
            grad.contiguous(memory_format=torch.channels_last),
            x,
            weight.contiguous(memory_format=torch.channels_last),
            need_x,
            need_weight,
        )
        return grad_x, grad_weight, grad_bias


def _plain_backward(
    grad: Tensor, x: Tensor, weight: Tensor, need: tuple[bool, bool, bool]
) -> tuple[Tensor | None, ...]:
    ones, zeros = [1, 1], [0, 0]
    grads = torch.ops.aten.convolution_backward(
        grad, x, weight, [weight.size(0)], ones, zeros, ones, False, zeros, 1, list(need)
    )
    return tuple(g if wanted else None for g, wanted in zip(grads, need, strict=True))
