"""ReLU and LeakyReLU that know that their second derivative is zero.

The backward pass of a ReLU is g -> g * [y > 0]. Differentiated again, as a gradient penalty asks, it depends on y by a
factor that is zero wherever it exists, and PyTorch fills a tensor with zeros for it and carries these zeros back
through the critic's whole forward pass: one product with the weights and one for their gradient, layer by layer, a
third of the arithmetic of a penalty. Here that gradient is left out, so that the engine has nothing to carry.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastgan.kernels import dispatch
from fastgan.kernels.library import is_eager


def without_zero_gradients() -> contextlib.AbstractContextManager[Any]:
    """In this context, activations of what runs in eager mode carry no zeros back from their second derivatives.

    All gradients are the same, except that a parameter on which nothing else depends (a bias, whose gradient in a
    penalty is zero) has None in the place of zeros: for penalties that are part of a critic's whole loss.
    """
    reference = dispatch.requested_backend() == "reference" or torch.compiler.is_compiling()
    return contextlib.nullcontext() if reference else _Activations()


class _Activations(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is nnf.relu:
            return _activation(func, *args, negative_slope=0.0, **kwargs)
        if func is nnf.leaky_relu:
            return _activation(func, *args, **kwargs)
        return func(*args, **kwargs)


def _activation(func: Callable[..., Any], input: Tensor, *, negative_slope: float, inplace: bool) -> Any:
    plain = input.requires_grad and torch.is_grad_enabled() and is_eager((input,))
    if plain and negative_slope >= 0 and not (inplace and input._is_view()):
        return _Activation.apply(input, negative_slope, inplace)
    if func is nnf.relu:
        return nnf.relu(input, inplace)
    return nnf.leaky_relu(input, negative_slope, inplace)


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, slope: float, inplace: bool) -> Tensor:
        return nnf.leaky_relu(x, slope, inplace) if slope else nnf.relu(x, inplace)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, bool], output: Tensor) -> None:
        x, ctx.slope, inplace = inputs
        if inplace:
            ctx.mark_dirty(x)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None]:
        return None if grad is None else _Mask.apply(grad, *ctx.saved_tensors, ctx.slope), None, None


class _Mask(torch.autograd.Function):
    """grad where the output y is positive, slope times grad elsewhere: linear in grad, piecewise constant in y."""

    @staticmethod
    def forward(grad: Tensor, y: Tensor, slope: float) -> Tensor:
        masked: Tensor
        if slope:
            masked = torch.ops.aten.leaky_relu_backward(grad, y, slope, True)
        else:
            masked = torch.ops.aten.threshold_backward(grad, y, 0)
        return masked

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        _, y, ctx.slope = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None]:
        return None if grad is None else _Mask.apply(grad, *ctx.saved_tensors, ctx.slope), None, None
