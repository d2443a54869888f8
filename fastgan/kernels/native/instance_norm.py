"""Instance norm + activation on the CPU: the launchers of csrc/cpu/instance_norm.cpp.

The kernels take every dtype of the operator, either layout, and strided inputs whose innermost elements lie next to
each other; others are copied first. Formulas: :mod:`fastgan.reference.instance_norm`.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from fastgan.kernels import layout
from fastgan.kernels.dispatch import Call
from fastgan.kernels.native._tensor import _C, CPU, DTYPES, address, threads
from fastgan.reference.instance_norm import statistics_dtype

_MaybeTensor = TypeVar("_MaybeTensor", Tensor, "Tensor | None")

# A strided row shorter than this costs more than a dense copy.
_SHORTEST_ROW = 8
# What a negative z is multiplied by; leaky_relu has its own.
_SLOPES = {"none": 1.0, "relu": 0.0}
# By the number of dimensions; PyTorch has no name for [N, C, L] with channels last.
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def supports(call: Call) -> str | None:
    """None: every call on the CPU is served."""
    return None if call.device == "cpu" else f"the native kernels run on the CPU, not on {call.device!r}"


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    negative_slope: float,
    reflect_pad: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """y [N, C, *(spatial + 2 reflect_pad)], and mean and rstd [N, C]."""
    channels_last = layout.is_channels_last(x)
    x = _readable(x, channels_last)
    if residual is not None:
        residual = _readable(residual, channels_last)
    y = _padded(x, reflect_pad, channels_last)
    dtype = statistics_dtype(x.dtype)
    samples, channels, *_ = x.shape
    mean = torch.empty(samples, channels, dtype=dtype, device=CPU)
    rstd = torch.empty_like(mean)
    if weight is not None or bias is not None:
        weight, bias = _vector(weight, dtype), _vector(bias, dtype)
    problem = _problem(x, weight, bias, activation, negative_slope, reflect_pad, channels_last)
    _C.instance_norm_forward(
        problem, _strided(x), _strided(residual), _strided(y), eps, mean.data_ptr(), rstd.data_ptr()
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
    """(gradient of x, gradient of z, m1, m2), with m1 and m2 [N, C]; None is what is not needed."""
    channels_last = layout.is_channels_last(x)
    grad_x = _padded(x, 0, channels_last)
    grad_z = _padded(x, 0, channels_last) if need_grad_z else None
    m1, m2 = (torch.empty_like(mean), torch.empty_like(mean)) if need_sums else (None, None)
    x, grad = _readable(x, channels_last), _readable(grad, channels_last)
    if residual is not None:
        residual = _readable(residual, channels_last)
    if weight is not None or bias is not None:
        weight, bias = _vector(weight, mean.dtype), _vector(bias, mean.dtype)
    if not (mean.is_contiguous() and rstd.is_contiguous()):
        mean, rstd = mean.contiguous(), rstd.contiguous()
    problem = _problem(x, weight, bias, activation, negative_slope, reflect_pad, channels_last)
    _C.instance_norm_backward(
        problem, _strided(grad), _strided(x), _strided(residual), mean.data_ptr(), rstd.data_ptr(),
        _strided(grad_x), _strided(grad_z), address(m1), address(m2),
    )  # fmt: skip
    return grad_x, grad_z, m1, m2


def double_backward(
    u: Tensor,
    v_residual: Tensor | None,
    v_weight: Tensor | None,
    v_bias: Tensor | None,
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
    """(gradient of grad, gradient of x, per-plane gradient of weight [N, C]) of the backward pass.

    u and v_residual [N, C, *spatial], v_weight and v_bias [C] are the cotangents of the backward pass's results.
    """
    channels_last = layout.is_channels_last(x)
    grad_grad, grad_x = _padded(x, reflect_pad, channels_last), _padded(x, 0, channels_last)
    grad_weight = torch.empty_like(mean)
    u, grad, x = _readable(u, channels_last), _readable(grad, channels_last), _readable(x, channels_last)
    v_residual, residual = _readable(v_residual, channels_last), _readable(residual, channels_last)
    v_weight, v_bias, weight, bias = (_vector(t, mean.dtype) for t in (v_weight, v_bias, weight, bias))
    mean, rstd, m1, m2 = (t.contiguous() for t in (mean, rstd, m1, m2))
    problem = _problem(x, weight, bias, activation, negative_slope, reflect_pad, channels_last)
    _C.instance_norm_double_backward(
        problem, _strided(u), _strided(v_residual), address(v_weight), address(v_bias),
        _strided(grad), _strided(x), _strided(residual),
        mean.data_ptr(), rstd.data_ptr(), m1.data_ptr(), m2.data_ptr(),
        _strided(grad_grad), _strided(grad_x), grad_weight.data_ptr(),
    )  # fmt: skip
    return grad_grad, grad_x, grad_weight


def _problem(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: str,
    negative_slope: float,
    reflect_pad: int,
    channels_last: bool,
) -> tuple[object, ...]:
    slope = _SLOPES.get(activation, negative_slope)
    return (
        DTYPES[x.dtype], channels_last, threads(), x.shape, reflect_pad, slope, address(weight), address(bias)
    )  # fmt: skip


def _strided(t: Tensor | None) -> tuple[int, tuple[int, ...]] | None:
    return None if t is None else (t.data_ptr(), t.stride())


def _readable(t: _MaybeTensor, channels_last: bool) -> _MaybeTensor:
    """``t`` itself if the kernels read its strides, else a dense copy."""
    if t is None or (not channels_last and t.is_contiguous()):
        return t
    if channels_last:
        return t if t.stride(1) == 1 else layout.dense(t, True)
    if t.stride(-1) == 1:
        if t.size(-1) >= _SHORTEST_ROW:
            return t
        packed = 1
        for size, stride in zip(reversed(t.shape[2:]), reversed(t.stride()[2:]), strict=True):
            if stride != packed:
                return t.contiguous()
            packed *= size
        return t
    return t.contiguous()


def _vector(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A per-channel parameter [C], dense and in the statistics' dtype."""
    if t is None or (t.dtype == dtype and t.is_contiguous()):
        return t
    return t.to(dtype).contiguous()


def _is_dense(x: Tensor, channels_last: bool) -> bool:
    if not channels_last:
        return x.is_contiguous()
    memory_format = _CHANNELS_LAST.get(x.dim())
    return memory_format is not None and x.is_contiguous(memory_format=memory_format)


def _padded(x: Tensor, pad: int, channels_last: bool) -> Tensor:
    """An uninitialised tensor of x's shape and layout, ``pad`` elements larger on every spatial side."""
    if not pad and _is_dense(x, channels_last):
        return torch.empty_like(x)
    shape = [x.size(0), x.size(1), *(size + 2 * pad for size in x.shape[2:])] if pad else x.shape
    return layout.empty(shape, channels_last, dtype=x.dtype, device=x.device)
