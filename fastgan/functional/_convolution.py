"""When a convolution on the CPU may be computed otherwise than by PyTorch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastgan.kernels import dispatch
from fastgan.kernels.library import is_batch

_dispatch_modes = torch._C._len_torch_dispatch_stack


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
    """Whether all are the numbers in their memory: no fake tensors, duals, torch.func's, negative views; and no mode
    listens, as those do that trace or count what PyTorch does."""
    return (
        not _dispatch_modes()
        and forward_ad._current_level < 0
        and all(
            type(x) in (Tensor, torch.nn.Parameter)
            and x.is_cpu
            and x.layout == torch.strided
            and not x.is_neg()
            and not is_batch(x)
            and not torch._C._functorch.is_functorch_wrapped_tensor(x)
            for x in tensors
        )
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


class Geometry(NamedTuple):
    """How a convolution moves its window over images, as PyTorch has it."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    transposed: bool = False
    output_padding: tuple[int, int] = (0, 0)


def plain_gradients(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, need: list[bool]) -> tuple[Any, ...]:
    """Those of x, weight and bias that are needed, by PyTorch's convolution."""
    stride, padding, transposed, output_padding = geometry
    gradients: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
        grad, x, weight.to(grad.dtype), [grad.size(1)], stride, padding, [1, 1], transposed, output_padding, 1, need
    )
    return gradients[0], *(None if g is None else g.float() for g in gradients[1:])


def own_gradients(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, need: list[bool]) -> tuple[Any, ...]:
    """The same of float32 images and weights, that of the weights by our kernel where nothing is to be differentiated
    again: as exact as PyTorch's, and quicker."""
    own = not torch.is_grad_enabled() and need[1] and plain(grad, x) and grad.numel() > 0
    if not own or not grad.dtype == x.dtype == torch.float32:
        return plain_gradients(grad, x, weight, geometry, need)
    grad, x = (t.contiguous(memory_format=torch.channels_last) for t in (grad, x))
    of_x = plain_gradients(grad, x, weight, geometry, [need[0], False, False])[0] if need[0] else None
    # A transposed convolution is the gradient of one that has these images for its result.
    pair = (x, grad) if geometry.transposed else (grad, x)
    kernels = dispatch.kernels("native", "convolution")
    of_weight = kernels.weight_gradient(*pair, weight.shape[2:], geometry.stride, geometry.padding)
    return of_x, of_weight, grad.sum((0, 2, 3)) if need[2] else None
