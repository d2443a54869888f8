"""The operators: each plans its launches once for shapes and strides alike, allocates its results and launches."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from fastgan.kernels import layout
from fastgan.kernels.triton._launch import INTERPRETED, launch, multiprocessors
from fastgan.kernels.triton.instance_norm import launch_table
from fastgan.kernels.triton.instance_norm.backward_kernels import backward_apply, backward_resident, backward_sums
from fastgan.kernels.triton.instance_norm.double_backward_kernels import double_apply, double_resident, double_sums
from fastgan.kernels.triton.instance_norm.forward_kernels import forward_apply, forward_moments, forward_resident

_ACTIVATIONS = {"none": 0, "relu": 1, "leaky_relu": 2}
_MOMENTS_FLAGS = ("CL", "ALIGN", "BP", "BM", "SPLITS", "num_warps")


class Plan(NamedTuple):
    """What every launch of a call on such shapes and strides shares; computed once for each."""

    setting: launch_table.Setting
    grid: tuple[int, ...]
    padded: tuple[int, ...]  # the padded tensor's shape
    planes: int
    sizes: tuple[int, ...]  # planes, channels, elements of a plane, and of a padded one
    chunks: tuple[int, ...]  # how many of a plane's elements, and of a padded plane's, a split program takes
    strides: tuple[int, ...]
    flags: dict[str, Any]
    moments_flags: dict[str, Any]  # those of them that the forward's first launch takes


@lru_cache(maxsize=4096)
def plan_of(
    operator: str,
    shape: tuple[int, ...],
    itemsize: int,
    channels_last: bool,
    residual: tuple[int, ...] | None,
    activation: str,
    pad: int,
    processors: int,
) -> Plan:
    """residual: None without one, () for one that lies in memory as x does, else its strides."""
    n, channels, *spatial = shape
    planes, elements = n * channels, math.prod(spatial)
    padded = (n, channels, *(size + 2 * pad for size in spatial))
    out_elements = math.prod(padded[2:])
    chosen = launch_table.setting(
        operator, planes, channels, elements, itemsize, channels_last, pad > 0, len(spatial) == 3, processors,
        bool(residual),
    )  # fmt: skip
    blocks = n * -(-channels // chosen.planes) if channels_last else -(-planes // chosen.planes)
    kind = 0 if residual is None else 2 if residual else 1
    sizes = (1,) * (3 - len(spatial)) + tuple(spatial)
    dims = len(spatial) if pad or kind == 2 else 1  # else elements' coordinates do not matter
    alignment_w = 1 if channels_last or dims == 1 else _alignment(sizes[2])
    if dims > 1 and not channels_last:
        sizes = _compiled_in(sizes)
    flags = {
        **dict(zip("DHW", sizes, strict=True)), "DIMS": dims, "PAD": pad, "CL": channels_last,
        "ACT": _ACTIVATIONS[activation], "RES": kind, "ALIGN": _alignment(channels if channels_last else elements),
        "ALIGN_OUT": 1 if channels_last else _alignment(out_elements),
        "ALIGN_W": alignment_w, "BP": chosen.planes, "BM": chosen.elements,
        "num_warps": chosen.num_warps,
    }  # fmt: skip
    odd = flags["ALIGN"] * itemsize < 16
    if chosen.num_warps <= 16 and (odd or ((pad or kind) and not (operator == "forward" and channels_last))):
        # Left alone, the assembler rather spills a few of these kernels' registers than use one more than lets another
        # program fit. This many let 16 warps; a gradient gathered by 27 loads takes a few more.
        volume = pad and len(spatial) == 3 and operator != "forward"
        flags["maxnreg"] = 160 if volume and chosen.num_warps <= 8 else 128
    chunks: tuple[int, ...] = ()
    if chosen.splits:
        flags["SPLITS"] = chosen.splits
        chunks = tuple(
            -(-size // (chosen.elements * chosen.splits)) * chosen.elements for size in (elements, out_elements)
        )
    return Plan(
        setting=chosen,
        grid=(blocks, chosen.splits) if chosen.splits else (blocks,),
        padded=padded,
        planes=planes,
        sizes=(planes, channels, elements, out_elements),
        chunks=chunks,
        strides=(*residual[:2], *(0,) * (5 - len(residual)), *residual[2:]) if residual else (0,) * 5,
        flags=flags,
        moments_flags={name: value for name, value in flags.items() if name in _MOMENTS_FLAGS},
    )


_sizes_compiled_in: set[tuple[int, ...]] = set()


def _compiled_in(sizes: tuple[int, ...]) -> tuple[Any, ...]:
    """Sizes that are compiled in, as far as they are few: in NCHW every element of every thread divides by them.

    A network whose images change their size would compile for ever.
    """
    if INTERPRETED or (sizes not in _sizes_compiled_in and len(_sizes_compiled_in) >= 16):
        return sizes
    _sizes_compiled_in.add(sizes)
    return tuple(map(tl.constexpr, sizes))


def _alignment(n: int) -> int:
    """The largest power of two, up to 16, that divides n."""
    return min(n & -n, 16)


def _prepare(operator: str, x: Tensor, residual: Tensor | None, activation: str, pad: int) -> tuple[Tensor, bool, Plan]:
    """x, dense in its layout; whether that is channels last; the plan."""
    last = layout.is_channels_last(x)
    strides = None if residual is None else () if layout.is_dense(residual, last) else residual.stride()
    plan = plan_of(operator, x.shape, x.element_size(), last, strides, activation, pad, multiprocessors(x.device))
    return layout.dense(x, last), last, plan


# --- the operators --------------------------------------------------------------------------------------------------


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    negative_slope: float,
    reflect_pad: int,
    eps: float,
    need_statistics: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`fastgan.reference.instance_norm.forward`.

    Statistics that nobody needs are computed all the same: no reason to compile another kernel.
    """
    if x.numel() == 0:
        return _empty(x, reflect_pad), _per_plane(x), _per_plane(x)
    x, last, plan = _prepare("forward", x, residual, activation, reflect_pad)
    y = layout.empty(plan.padded, last, dtype=x.dtype, device=x.device)
    mean, rstd = _per_plane(x), _per_plane(x)
    tensors = (x, _contiguous(weight), _contiguous(bias), residual, y, mean, rstd)
    scalars = (*plan.strides, eps, negative_slope)
    if not plan.setting.splits:
        launch(forward_resident, plan.grid, x.device, *tensors, *plan.sizes, *scalars, **plan.flags)
        return y, mean, rstd
    means = squares = None
    if plan.setting.splits > 1:
        means, squares = _pieces_of(x, plan), _pieces_of(x, plan)
        moments = (x, means, squares, *plan.sizes[:3], plan.chunks[0])
        launch(forward_moments, plan.grid, x.device, *moments, **plan.moments_flags)
    launch(
        forward_apply, plan.grid, x.device, *tensors, means, squares, *plan.sizes, *plan.chunks, *scalars, **plan.flags
    )
    return y, mean, rstd


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    activation: str,
    negative_slope: float,
    reflect_pad: int,
    need_grad_z: bool,
    need_sums: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """See :func:`fastgan.reference.instance_norm.backward`; None is what is not needed."""
    if x.numel() == 0:
        m1, m2 = (_per_plane(x), _per_plane(x)) if need_sums else (None, None)
        return _empty(x), _empty(x) if need_grad_z else None, m1, m2
    x, last, plan = _prepare("backward", x, residual, activation, reflect_pad)
    grad_x, grad_z = torch.empty_like(x), torch.empty_like(x) if need_grad_z else None
    m1, m2 = (_per_plane(x), _per_plane(x)) if need_sums else (None, None)
    tensors = (layout.dense(grad, last), x, _contiguous(weight), _contiguous(bias), residual, mean, rstd)
    scalars = (*plan.strides, negative_slope)
    results = (grad_x, grad_z, m1, m2)
    if not plan.setting.splits:
        launch(backward_resident, plan.grid, x.device, *tensors, *results, *plan.sizes, *scalars, **plan.flags)
    else:
        sums, shared = None, (*plan.sizes, plan.chunks[0], *scalars)
        if plan.setting.splits > 1:
            sums = _pieces_of(x, plan, 2)
            launch(backward_sums, plan.grid, x.device, *tensors, sums, *shared, **plan.flags)
        launch(backward_apply, plan.grid, x.device, *tensors, sums, *results, *shared, **plan.flags)
    return results


def over_samples(mean: Tensor, elements: int, dtype: torch.dtype) -> Tensor:
    """``elements`` times the sum over samples of a mean over planes [N, C]: a parameter's gradient [C]."""
    return (mean.sum(0) * elements).to(dtype)


def double_backward(
    grad_grad_x: Tensor,
    grad_grad_residual: Tensor | None,
    grad_grad_weight: Tensor | None,
    grad_grad_bias: Tensor | None,
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    m1: Tensor,
    m2: Tensor,
    activation: str,
    negative_slope: float,
    reflect_pad: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`fastgan.reference.instance_norm.double_backward`."""
    if x.numel() == 0:
        return _empty(x, reflect_pad), _empty(x), _per_plane(x)
    x, last, plan = _prepare("double_backward", x, residual, activation, reflect_pad)
    grad_grad = layout.empty(plan.padded, last, dtype=x.dtype, device=x.device)
    grad_x, grad_weight = torch.empty_like(x), _per_plane(x)
    u = layout.dense(grad_grad_x, last)
    v_residual = None if grad_grad_residual is None else layout.dense(grad_grad_residual, last)
    cotangents = (v_residual, _contiguous(grad_grad_weight), _contiguous(grad_grad_bias))
    tensors = (layout.dense(grad, last), x, _contiguous(weight), _contiguous(bias), residual, mean, rstd)
    scalars = (*plan.strides, negative_slope)
    results = (grad_grad, grad_x, grad_weight)
    if not plan.setting.splits:
        launch(
            double_resident, plan.grid, x.device, u, *cotangents, *tensors, m1, m2, *results, *plan.sizes, *scalars,
            **plan.flags,
        )  # fmt: skip
        return results
    sums = None
    if plan.setting.splits > 1:
        sums = _pieces_of(x, plan, 3)
        of_pieces = (u, *tensors, m1, sums, *plan.sizes, plan.chunks[0], *scalars)
        launch(double_sums, plan.grid, x.device, *of_pieces, **plan.flags)
    launch(
        double_apply, plan.grid, x.device, u, *cotangents, *tensors, m1, m2, sums, *results, *plan.sizes,
        *plan.chunks, *scalars, **plan.flags,
    )  # fmt: skip
    return results


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _empty(x: Tensor, pad: int = 0) -> Tensor:
    """Dense, in x's layout, with x's (padded) shape."""
    shape = (*x.shape[:2], *(size + 2 * pad for size in x.shape[2:])) if pad else x.shape
    return layout.empty(shape, layout.is_channels_last(x), dtype=x.dtype, device=x.device)


def _per_plane(x: Tensor) -> Tensor:
    return torch.empty(x.size(0), x.size(1), dtype=torch.float32, device=x.device)


def _pieces_of(x: Tensor, plan: Plan, sums: int = 1) -> Tensor:
    return torch.empty(sums, plan.planes, plan.setting.splits, dtype=torch.float32, device=x.device)
