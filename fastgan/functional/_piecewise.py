"""ReLU and LeakyReLU that know that their second derivative is zero.

The backward pass of a ReLU is g -> g * [y > 0]. Differentiated again, as a gradient penalty asks, it depends on y by a
factor that is zero wherever it exists, and PyTorch fills a tensor with zeros for it and carries these zeros back
through the critic's whole forward pass: one product with the weights and one for their gradient, layer by layer, a
third of the arithmetic of a penalty. Here that gradient is left out, so that the engine has nothing to carry.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastgan.functional._autocast import NOTHING
from fastgan.kernels import dispatch
from fastgan.kernels.library import is_eager, record

_wanted: contextvars.ContextVar[bool] = contextvars.ContextVar("fastgan_without_zero_gradients", default=False)


@contextlib.contextmanager
def without_zero_gradients() -> Iterator[None]:
    """In this context, the activations of critics in penalties carry no zeros back from their second derivatives.

    All gradients are the same, except that a parameter on which nothing else depends (a bias, whose gradient in a
    penalty is zero) has None in the place of zeros: for penalties that are part of a critic's whole loss.
    """
    token = _wanted.set(True)
    try:
        yield
    finally:
        _wanted.reset(token)


def activations() -> contextlib.AbstractContextManager[Any]:
    """The context of a critic's call alone: every use of a tensor in it takes its time."""
    if not _wanted.get() or torch.compiler.is_compiling() or dispatch.requested_backend() == "reference":
        return NOTHING
    return _Activations()


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
        return record(_Activation, input, negative_slope, inplace)
    if func is nnf.relu:
        return nnf.relu(input, inplace)
    return nnf.leaky_relu(input, negative_slope, inplace)


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float, inplace: bool) -> Tensor:
        y = nnf.leaky_relu(x, slope, inplace) if slope else nnf.relu(x, inplace)
        if inplace:
            ctx.mark_dirty(x)
        ctx.slope = slope
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None]:
        if grad is None:
            return None, None, None
        y = ctx.saved_tensors[0].detach()  # grad where y is positive, slope times grad elsewhere: constant in y
        if ctx.slope:
            return torch.ops.aten.leaky_relu_backward(grad, y, ctx.slope, True), None, None
        return torch.ops.aten.threshold_backward(grad, y, 0), None, None
