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


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: int = 0) -> Tensor:
    """``torch.conv2d(x, weight, bias, padding=padding)`` of 3×3 weights.

    Winograd's way serves dense float32 tensors on the CPU, channels_last, with at least 64 channels and filters and 64
    tiles of 2×2 results, whose height and width are even, with padding 0 or 1, on x86-64 processors with AVX2; not
    under autocast, ``torch.compile``, ``torch.func``, forward mode or ``use_backend("reference")``. Everything else is
    ``torch.conv2d`` to the bit.

    Args:
        x: [N, C, H, W].
        weight: [K, C, 3, 3].
        bias: [K], or None.
        padding: zeros around x.

    Returns:
        [N, K, H + 2 padding - 2, W + 2 padding - 2]. Differentiable to any order, by the same kernels.
    """
    if not serves(x, weight, bias, padding):
        return torch.conv2d(x, weight, bias, padding=padding)
    y: Tensor = _Convolution.apply(x, weight, bias, padding)
    return y


def serves(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: int = 0) -> bool:
    """Whether Winograd's way computes :func:`conv3x3` of such tensors here."""
    if torch.compiler.is_compiling() or not _plain(x, weight, *(() if bias is None else (bias,))):
        return False
    if x.dim() != 4 or weight.dim() != 4 or (bias is not None and bias.shape != weight.shape[:1]):
        return False
    filters, channels, *sides = weight.shape
    height, width = x.size(2) + 2 * padding - 2, x.size(3) + 2 * padding - 2
    return (
        sides == [3, 3]
        and padding in (0, 1)
        and x.size(1) == channels
        and min(filters, channels) >= LEAST_CHANNELS
        and height % 2 == width % 2 == 0
        and height > 0
        and x.size(0) * height * width >= 4 * LEAST_TILES
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_autocast_enabled("cpu")
        and torch._C._get_tracing_state() is None
        and dispatch.requested_backend() in ("auto", "native")
        and _available()
    )


def _plain(*tensors: Tensor) -> bool:
    """Whether all are the float32 numbers in their memory: no fake tensors, duals, torch.func's, negative views."""
    return forward_ad._current_level < 0 and all(
        type(x) in (Tensor, torch.nn.Parameter)
        and x.is_cpu
        and x.dtype == torch.float32
        and x.layout == torch.strided
        and not x.is_neg()
        and not is_batch(x)
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        for x in tensors
    )


def _available() -> bool:
    kernels = dispatch._load("native", "winograd")
    return not isinstance(kernels, str) and kernels.FASTER


# A convolution and its two gradients are linear in either argument, and each is the others' derivative, so that these
# three are differentiable to any order. PyTorch's own take what is no plain memory (batched gradients, torch.func).


def _convolved(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    if not _plain(x, weight):
        return torch.conv2d(x, weight, padding=padding)
    y: Tensor = _Convolution.apply(x, weight, None, padding)
    return y


def _input_gradient(grad: Tensor, weight: Tensor, padding: int) -> Tensor:
    if not _plain(grad, weight):
        n, _, height, width = grad.shape
        x = grad.new_empty(()).expand(n, weight.size(1), height + 2 - 2 * padding, width + 2 - 2 * padding)
        return _plain_gradients(grad, x, weight, padding, [True, False, False])[0]
    grad_x: Tensor = _InputGradient.apply(grad, weight, padding)
    return grad_x


def _weight_gradient(grad: Tensor, x: Tensor, padding: int) -> Tensor:
    if not _plain(grad, x):
        weight = grad.new_empty(()).expand(grad.size(1), x.size(1), 3, 3)
        return _plain_gradients(grad, x, weight, padding, [False, True, False])[1]
    grad_weight: Tensor = _WeightGradient.apply(grad, x, padding)
    return grad_weight


def _plain_gradients(grad: Tensor, x: Tensor, weight: Tensor, padding: int, need: list[bool]) -> tuple[Tensor, ...]:
    """Those of x, weight and bias that are needed, by PyTorch's convolution."""
    ones = [1, 1]
    gradients: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        grad, x, weight, [weight.size(0)], ones, [padding, padding], ones, False, [0, 0], 1, need
    )
    return gradients


def _kernel(name: str, *arguments: Any) -> Tensor:
    """A kernel of images and weights, which it wants dense in channels_last."""
    dense = [
        a.contiguous(memory_format=torch.channels_last) if isinstance(a, Tensor) and a.dim() == 4 else a
        for a in arguments
    ]
    result: Tensor = getattr(dispatch.kernels("native", "winograd"), name)(*dense)
    return result


def _wanted(ctx: Any, i: int) -> bool:
    """Whether the backward pass goes on to tensor ``i`` of a Function.

    ``needs_input_grad`` is also set for a weight that requires a gradient while ``autograd.grad`` asks for x's alone,
    as gradient penalties do.
    """
    if not ctx.needs_input_grad[i]:
        return False
    try:
        wanted: bool = torch._C._will_engine_execute_node(ctx.next_functions[i][0])
    except (RuntimeError, AttributeError):  # a leaf that autograd.grad asks for; no pass of the engine; not there
        return True
    return wanted


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
        need = [_wanted(ctx, i) for i in range(3)]
        if not _plain(grad):
            return *_plain_gradients(grad, x, weight, ctx.padding, need), None
        return (
            _input_gradient(grad, weight, ctx.padding) if need[0] else None,
            _weight_gradient(grad, x, ctx.padding) if need[1] else None,
            grad.sum((0, 2, 3)) if need[2] else None,
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
            _convolved(v, weight, ctx.padding) if _wanted(ctx, 0) else None,
            _weight_gradient(grad, v, ctx.padding) if _wanted(ctx, 1) else None,
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
            _convolved(x, v, ctx.padding) if _wanted(ctx, 0) else None,
            _input_gradient(grad, v, ctx.padding) if _wanted(ctx, 1) else None,
            None,
        )
