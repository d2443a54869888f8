"""Instance norm + activation on the CPU: the launchers of csrc/cpu/instance_norm.cpp.

The kernels take every dtype of the operator, either layout, and strided inputs whose innermost elements lie next to
each other; others are copied first. Formulas: :mod:`fastgan.reference.instance_norm`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgan.kernels import layout
from fastgan.kernels.dispatch import Call
from fastgan.kernels.native._tensor import _C, CPU, threads
from fastgan.reference._dtype import statistics_dtype

# What a negative z is multiplied by; leaky_relu has its own.
_SLOPES = {"none": 1.0, "relu": 0.0}


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
    need_statistics: bool = True,
    packed: bool = False,
) -> tuple[Tensor, Tensor | bytearray | None, Tensor | None]:
    """y [N, C, *(spatial + 2 reflect_pad)], and mean and rstd [N, C] or None.

    packed: mean and rstd lie one after the other in a bytearray, which stands for mean, and rstd is None. To make and
    to save two tensors takes longer than a small kernel.
    """
    y, channels_last = _result(x, reflect_pad)
    mean: Tensor | bytearray | None = None
    rstd = None
    shape = x.shape
    if packed:
        mean = bytearray((16 if x.dtype == torch.float64 else 8) * shape[0] * shape[1])
    elif need_statistics:
        mean = torch.empty(shape[0], shape[1], dtype=statistics_dtype(x.dtype), device=CPU)
        rstd = torch.empty_like(mean)
    call = (
        x, weight, bias, residual, y, mean, rstd,
        channels_last, reflect_pad, _SLOPES.get(activation, negative_slope), threads(), eps,
    )  # fmt: skip
    _C.instance_norm_forward(*call) or _C.instance_norm_forward(*_copied(call, x.dtype, channels_last))
    return y, mean, rstd


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor | bytearray,
    rstd: Tensor | None,
    activation: str,
    negative_slope: float,
    reflect_pad: int,
    need_grad_z: bool,
    need_sums: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(gradient of x, gradient of z, m1, m2), with m1 and m2 [N, C]; None is what is not needed.

    mean, rstd: as :func:`forward` gave them.
    """
    grad_x, channels_last = _result(x)
    grad_z = _result(x)[0] if need_grad_z else None
    m1 = m2 = None
    if need_sums:
        m1 = torch.empty(x.size(0), x.size(1), dtype=statistics_dtype(x.dtype), device=CPU)
        m2 = torch.empty_like(m1)
    call = (
        grad, x, weight, bias, residual, mean, rstd, grad_x, grad_z, m1, m2,
        channels_last, reflect_pad, _SLOPES.get(activation, negative_slope), threads(),
    )  # fmt: skip
    _C.instance_norm_backward(*call) or _C.instance_norm_backward(*_copied(call, x.dtype, channels_last))
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
    grad_grad, channels_last = _result(x, reflect_pad)
    grad_x, _ = _result(x)
    grad_weight = torch.empty_like(mean)
    call = (
        u, v_residual, v_weight, v_bias, grad, x, weight, bias, residual, mean, rstd, m1, m2,
        grad_grad, grad_x, grad_weight,
        channels_last, reflect_pad, _SLOPES.get(activation, negative_slope), threads(),
    )  # fmt: skip
    _C.instance_norm_double_backward(*call) or _C.instance_norm_double_backward(*_copied(call, x.dtype, channels_last))
    return grad_grad, grad_x, grad_weight


def over_samples(mean: Tensor, elements: int, dtype: torch.dtype) -> Tensor:
    """``elements`` times the sum over samples of a mean over planes [N, C]: a parameter's gradient [C]."""
    total = torch.empty(mean.size(1), dtype=mean.dtype, device=CPU)
    _C.instance_norm_over_samples(mean, elements, total)
    return total if dtype == mean.dtype else total.to(dtype)


def _copied(call: tuple[Any, ...], dtype: torch.dtype, channels_last: bool) -> list[Any]:
    """The arguments of a call whose kernel does not read some tensor's strides or dtype, with copies of those."""

    def readable(t: Any) -> Any:
        if not isinstance(t, Tensor):
            return t
        if t.dim() <= 2:  # [C] and [N, C]
            return t.to(statistics_dtype(dtype)).contiguous()
        return t if _C.instance_norm_reads(t, channels_last) else layout.dense(t, channels_last)

    return [readable(argument) for argument in call]


def _result(x: Tensor, pad: int = 0) -> tuple[Tensor, bool]:
    """An uninitialised tensor, ``pad`` elements larger than x on every spatial side; whether both are channels last."""
    if not pad and x.is_contiguous():
        return torch.empty_like(x), False
    channels_last = layout.is_channels_last(x)
    if not pad and layout.is_dense(x, channels_last):
        return torch.empty_like(x), channels_last
    shape = [x.size(0), x.size(1), *(size + 2 * pad for size in x.shape[2:])]
    return layout.empty(shape, channels_last, dtype=x.dtype, device=x.device), channels_last
