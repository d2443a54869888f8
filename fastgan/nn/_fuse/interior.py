"""The inside of a padded tensor: the residual of a block that is handed a padded input."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, fx

from fastgan.kernels.library import allow_in_graph, apply


@allow_in_graph
def interior(x: Tensor, width: int, spatial: int) -> Tensor:
    """``x`` without ``width`` elements on both sides of its last dimensions, ``spatial`` of them, as a view."""
    if isinstance(x, fx.Proxy) or torch.jit._trace.is_tracing():  # which record PyTorch's own operators
        return _narrowed(x, width, spatial)
    view: Tensor = apply(_Interior, x, width, spatial)
    return view


def _narrowed(x: Tensor, width: int, spatial: int) -> Tensor:
    for dim in range(-spatial, 0):
        x = x.narrow(dim, width, x.size(dim) - 2 * width)
    return x


class _Interior(torch.autograd.Function):
    """One padding by zeros in the backward pass, where each dimension's narrowing would make a tensor of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, width: int, spatial: int) -> Tensor:
        return _narrowed(x, width, spatial)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
        _, ctx.width, ctx.spatial = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return nnf.pad(grad, (ctx.width,) * (2 * ctx.spatial)), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _narrowed(tangent, ctx.width, ctx.spatial)
