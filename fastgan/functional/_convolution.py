"""When a convolution on the CPU may be computed otherwise than by PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastgan.kernels import dispatch
from fastgan.kernels.library import is_batch


def may_serve(x: Tensor, *others: Tensor) -> bool:
    """Whether ours may: plain memory, images in channels_last, no trace, and nobody asked for PyTorch's."""
    return (
        not torch.compiler.is_compiling()
        and plain(x, *others)
        and x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and torch._C._get_tracing_state() is None
        and dispatch.requested_backend() in ("auto", "native")
    )


def plain(*tensors: Tensor) -> bool:
    """Whether all are the numbers in their memory: no fake tensors, duals, torch.func's, negative views."""
    return forward_ad._current_level < 0 and all(
        type(x) in (Tensor, torch.nn.Parameter)
        and x.is_cpu
        and x.layout == torch.strided
        and not x.is_neg()
        and not is_batch(x)
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        for x in tensors
    )


def faster_dtypes() -> tuple[torch.dtype, ...]:
    """The dtypes of images of which ours is faster than PyTorch's here."""
    kernels = dispatch._load("native", "winograd")
    return () if isinstance(kernels, str) else kernels.FASTER


def wanted(ctx: Any, i: int) -> bool:
    """Whether the backward pass goes on to tensor ``i`` of a Function.

    ``needs_input_grad`` is also set for a weight that requires a gradient while ``autograd.grad`` asks for x's alone,
    as gradient penalties do.
    """
    if not ctx.needs_input_grad[i]:
        return False
    try:
        executed: bool = torch._C._will_engine_execute_node(ctx.next_functions[i][0])
    except (RuntimeError, AttributeError):  # a leaf that autograd.grad asks for; no pass of the engine; not there
        return True
    return executed


def plain_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int], need: list[bool]
) -> tuple[Any, ...]:
    """Those of x, weight and bias that are needed, by PyTorch's convolution."""
    ones = [1, 1]
    gradients: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
        grad, x, weight.to(grad.dtype), [weight.size(0)], ones, padding, ones, False, [0, 0], 1, need
    )
    return gradients[0], *(None if g is None else g.float() for g in gradients[1:])
