"""Fused instance norm + affine + residual + activation + reflection padding, twice differentiable.

The derivation is in :mod:`fastgan.reference.instance_norm`. Three nested Functions: each one's backward is the
forward of the next, and the last refuses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan import reference
from fastgan.functional import _check
from fastgan.functional._function import Fused, keep, kept_of, one_by_one
from fastgan.kernels import dispatch, layout
from fastgan.kernels.library import (
    RawOperator,
    allow_in_graph,
    apply,
    is_final,
    kernel_of,
    may_need_tangents,
    of_extension,
)
from fastgan.reference._dtype import statistics_dtype

ACTIVATIONS = ("none", "relu", "leaky_relu")
_NAME = "instance_norm_act"
# Whether arguments are right, told at once; where False, _check_arguments says.
_fits = of_extension("instance_norm_fits", lambda *arguments: False)


@allow_in_graph
def instance_norm_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: str = "relu",
    negative_slope: float = 0.2,
    reflect_pad: int = 0,
    eps: float = 1e-5,
) -> Tensor:
    r"""Instance normalisation, affine map, residual, activation and reflection padding in one kernel.

    .. math:: y = \mathrm{pad}\Big(\mathrm{act}\Big(\frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}}
              \, w + b + \text{residual}\Big)\Big)

    with mean and (biased) variance over the spatial dimensions of each sample and channel, as
    :class:`torch.nn.InstanceNorm2d` without running statistics (Ulyanov et al. 2016, arXiv:1607.08022).

    Args:
        x: [N, C, *spatial] with 1, 2 or 3 spatial dimensions; float32, float64, float16 or bfloat16, any strides.
        weight, bias: [C] or None; any floating dtype.
        residual: x's shape and dtype, any strides (the interior of a padded tensor, say), or None. Under autocast
            it is cast to x's dtype.
        activation: ``none``, ``relu`` or ``leaky_relu``.
        negative_slope: of ``leaky_relu``.
        reflect_pad: elements of reflection padding on both sides of every spatial dimension; less than each.
        eps: added to the variance; at least 0 (then a constant plane is 0/0, NaN; PyTorch makes it 0).

    Returns:
        [N, C, *(spatial + 2 reflect_pad)] in x's dtype and memory format. Statistics are computed in float32
        (float64 for float64), by the two-pass or Welford formula, and the result is rounded once.

    Differentiable twice in x, weight, bias and residual, also in forward mode over reverse mode
    (``torch.func.jvp`` of ``grad``, ``hessian``); a third derivative raises. Deterministic.

    Raises:
        TypeError: an argument that is no dense tensor, of a wrong dtype, or no number.
        ValueError: a wrong shape, device, activation, slope, padding or eps, or one spatial element only (its variance
            is 0).
    """
    if activation not in ACTIVATIONS or not _fits(x, weight, bias, residual, negative_slope, reflect_pad, eps):
        residual = _check_arguments(x, weight, bias, residual, activation, negative_slope, reflect_pad, eps)
    backend = dispatch.select(_NAME, x)
    if backend == "reference":
        return reference.instance_norm_act(
            x,
            weight,
            bias,
            residual=residual,
            activation=activation,
            negative_slope=negative_slope,
            reflect_pad=reflect_pad,
            eps=eps,
        )
    setting = (activation, float(negative_slope), int(reflect_pad), backend)
    y: Tensor = apply(_Forward, x, weight, bias, residual, setting, float(eps))[0]
    return y


def _check_arguments(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    negative_slope: float,
    reflect_pad: int,
    eps: float,
) -> Tensor | None:
    _check.floating(_NAME, "x", x)
    if not 3 <= x.dim() <= 5:
        raise ValueError(
            f"{_NAME}: x must be [N, C, *spatial] with 1, 2 or 3 spatial dimensions, got shape {list(x.shape)}"
        )
    spatial = x.shape[2:]
    if math.prod(spatial) <= 1:  # Size.numel() would fix a symbolic size
        raise ValueError(f"{_NAME}: x must have more than one spatial element per channel, got {list(x.shape)}")
    if weight is not None:
        _check_parameter("weight", weight, x)
    if bias is not None:
        _check_parameter("bias", bias, x)
    if residual is not None:
        _check.tensor(_NAME, "residual", residual)
        _check.same_device(_NAME, "residual", residual, "x", x)
        _check.shape(_NAME, "residual", residual, x.shape, "x's shape")
        if residual.dtype != x.dtype and torch.is_autocast_enabled(x.device.type):
            residual = residual.to(x.dtype)
        _check.same_dtype(_NAME, "residual", residual, "x", x)
    if activation not in ACTIVATIONS:
        _check.choice(_NAME, "activation", activation, ACTIVATIONS)
    _check.number(_NAME, "negative_slope", negative_slope)
    _check.number(_NAME, "eps", eps, 0)
    _check.integer(_NAME, "reflect_pad", reflect_pad)
    if reflect_pad and (reflect_pad < 0 or min(spatial) <= reflect_pad):
        raise ValueError(
            f"{_NAME}: reflect_pad must be at least 0 and less than every spatial size {list(spatial)}, "
            f"got {reflect_pad}"
        )
    return residual


def _check_parameter(name: str, parameter: Tensor, x: Tensor) -> None:
    _check.floating(_NAME, name, parameter)
    _check.same_device(_NAME, name, parameter, "x", x)
    _check.shape(_NAME, name, parameter, [x.size(1)], "one per channel")


_Setting = tuple[str, float, int, str]  # activation, negative_slope, reflect_pad, backend


def _as_samples(
    function: type[torch.autograd.Function], per_channel: bool, info: Any, in_dims: Sequence[Any], *args: Any
) -> Any:
    """The vmap rule of the three Functions: the batch becomes more samples, which no result mixes.

    per_channel: whether a tensor [C] differs over the batch, or is among the results and sums over samples. Then it
    is one call for each of the batch.
    """
    if per_channel:
        return one_by_one(function, info, in_dims, *args)
    size = info.batch_size
    samples = 0

    def folded(a: Any, d: int | None) -> Any:
        nonlocal samples
        if not isinstance(a, Tensor) or (d is None and a.dim() == 1):
            return a
        a = a.unsqueeze(0).expand(size, *a.shape) if d is None else a.movedim(d, 0)
        samples = a.size(1)
        return a.flatten(0, 1)

    results = function.apply(*map(folded, args, in_dims))
    results = tuple(None if r is None else r.unflatten(0, (size, samples)) for r in results)
    return results, tuple(None if r is None else 0 for r in results)


def _native() -> Any:
    return dispatch.kernels("native", "instance_norm")


def _unpacked(packed: bytearray, x: Tensor) -> tuple[Tensor, ...]:
    """mean and rstd [N, C], which the C++ kernels keep for themselves in one place, as others must see them."""
    shape, dtype = (2, *x.shape[:2]), statistics_dtype(x.dtype)
    return (torch.frombuffer(packed, dtype=dtype).view(shape) if packed else torch.empty(shape, dtype=dtype)).unbind(0)


class _Forward(Fused):
    operator, keeps = _NAME, True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        setting: _Setting,
        eps: float,
        kept: list[Tensor] | bool,
    ) -> tuple[Tensor, ...]:
        activation, slope, pad, backend = setting
        if type(kept) is list and backend == "native":
            y, packed, _ = _native().forward(x, weight, bias, residual, activation, slope, pad, eps, packed=True)
            kept.append(packed)
            return (y,)
        results: tuple[Tensor, ...] = _forward(
            x, weight, bias, residual, activation, slope, pad, eps, kept is not False, backend
        )
        return keep(results, 1, kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, residual, ctx.setting, _, kept = inputs
        ctx.set_materialize_grads(False)
        statistics = kept_of(ctx, output, 1, kept)
        ctx.packed, statistics = (statistics[0], ()) if len(statistics) == 1 else (None, statistics)
        # The residual is needed again only to know where the activation cuts.
        saved = (x, weight, bias, residual if ctx.setting[0] != "none" else None, *statistics)
        only_x = len(saved) == 4 and weight is bias is saved[3] is None  # 1 µs less than to save what is not there
        ctx.save_for_backward(*(saved[:1] if only_x else saved))
        if kept is True and may_need_tangents():
            ctx.save_for_forward(*saved)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _as_samples(_Forward, in_dims[1:3] != (None, None), info, in_dims, *args)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 7
        saved, need = ctx.saved_tensors, ctx.needs_input_grad[1:4]
        saved = saved if len(saved) > 1 else (*saved, None, None, None)
        if ctx.packed is None:
            grads = apply(_Backward, grad, *saved, ctx.setting, need)
        elif is_final((grad, *saved)):
            x, weight, bias, residual = saved
            grads = _Backward.forward(grad, x, weight, bias, residual, ctx.packed, None, ctx.setting, need, False)
        else:
            grads = apply(_Backward, grad, *saved, *_unpacked(ctx.packed, saved[0]), ctx.setting, need)
        return *grads[:4], None, None, None

    @staticmethod
    def jvp(
        ctx: Any,
        x_t: Tensor | None,
        weight_t: Tensor | None,
        bias_t: Tensor | None,
        residual_t: Tensor | None,
        *_: None,
    ) -> tuple[Tensor, None, None]:
        # The tangent is the transpose's transpose: the double backward's gradient for `grad`.
        x, weight, bias, residual, mean, rstd = ctx.saved_tensors
        activation, slope, pad, backend = ctx.setting
        zeros = torch.zeros(_padded(x, pad), dtype=x.dtype, device=x.device)
        plane = torch.zeros_like(mean)
        tangent = apply(
            _DoubleBackward, torch.zeros_like(x) if x_t is None else x_t, residual_t, weight_t, bias_t,
            zeros, x, weight, bias, residual, mean, rstd, plane, plane, ctx.setting,
        )[0]  # fmt: skip
        return tangent, None, None


class _Backward(Fused):
    """need: whether weight, bias and residual want a gradient. mean: rstd too, packed, where that is None."""

    operator, keeps = _NAME, True

    @staticmethod
    def forward(
        grad: Tensor,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mean: Tensor | bytearray,
        rstd: Tensor | None,
        setting: _Setting,
        need: tuple[bool, bool, bool],
        kept: list[Tensor] | bool,
    ) -> tuple[Tensor | None, ...]:
        activation, slope, pad, backend = setting
        need_weight, need_bias, need_residual = need
        recorded = kept is not False
        # Sums over planes are the gradients of weight and bias, and what a second derivative begins with.
        need_sums = recorded or need_weight or need_bias
        # With neither activation nor padding, the residual's gradient is grad itself; a Function's result is a new one.
        same = activation == "none" and pad == 0
        if rstd is None:
            kernels: tuple[Any, ...] = (_native().backward, _native().over_samples)
        else:
            kernels = (_backward, _over_samples, backend)
        backward, over_samples, *last = kernels
        grad_x, grad_z, m1, m2 = backward(
            grad, x, weight, bias, residual, mean, rstd, activation, slope, pad,
            need_residual and not same, need_sums, *last,
        )  # fmt: skip
        elements = math.prod(x.shape[2:]) if need_weight or need_bias else 0
        results = (
            grad_x,
            over_samples(m2, elements, weight.dtype, *last) if weight is not None and need_weight else None,
            over_samples(m1, elements, bias.dtype, *last) if bias is not None and need_bias else None,
            ((grad.clone() if recorded else grad) if same else grad_z) if need_residual else None,
            m1,
            m2,
        )
        return keep(results, 4, kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        grad, x, weight, bias, residual, mean, rstd, ctx.setting, need, kept = inputs
        ctx.set_materialize_grads(False)
        saved = (grad, x, weight, bias, residual, mean, rstd, *kept_of(ctx, output, 4, kept))
        ctx.save_for_backward(*saved)
        if may_need_tangents():
            ctx.need = need
            ctx.save_for_forward(*saved)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        need_weight, need_bias, _ = args[-2]
        return _as_samples(_Backward, in_dims[2:4] != (None, None) or need_weight or need_bias, info, in_dims, *args)

    @staticmethod
    def backward(
        ctx: Any, u: Tensor | None, v_w: Tensor | None, v_b: Tensor | None, v_r: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        if u is None and v_w is None and v_b is None and v_r is None:
            return (None,) * 10
        grad, x, weight, bias, residual, mean, rstd, m1, m2 = ctx.saved_tensors
        u = torch.zeros_like(x) if u is None else u
        grad_grad, grad_x, grad_weight = apply(
            _DoubleBackward, u, v_r, v_w, v_b, grad, x, weight, bias, residual, mean, rstd, m1, m2, ctx.setting
        )
        return grad_grad, grad_x, grad_weight, *(None,) * 7

    @staticmethod
    def jvp(
        ctx: Any,
        grad_t: Tensor | None,
        x_t: Tensor | None,
        weight_t: Tensor | None,
        bias_t: Tensor | None,
        residual_t: Tensor | None,
        *_: None,
    ) -> tuple[Tensor | None, ...]:
        # Linear in grad; in the others, the derivative is the Hessian of <grad, y>, which is symmetric: a double
        # backward. Of bias and residual, y is piecewise linear.
        grad, x, weight, bias, residual, mean, rstd, m1, m2 = ctx.saved_tensors
        linear = apply(
            _Backward, torch.zeros_like(grad) if grad_t is None else grad_t,
            x, weight, bias, residual, mean, rstd, ctx.setting, ctx.need,
        )  # fmt: skip
        _, curved_x, curved_weight = apply(
            _DoubleBackward, torch.zeros_like(x) if x_t is None else x_t, residual_t, weight_t, bias_t,
            grad, x, weight, bias, residual, mean, rstd, m1, m2, ctx.setting,
        )  # fmt: skip
        weight_result = None if linear[1] is None else linear[1] + curved_weight
        return linear[0] + curved_x, weight_result, linear[2], linear[3], None, None


class _DoubleBackward(Fused):
    operator = _NAME

    @staticmethod
    def forward(
        u: Tensor,
        v_r: Tensor | None,
        v_w: Tensor | None,
        v_b: Tensor | None,
        grad: Tensor,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        m1: Tensor,
        m2: Tensor,
        setting: _Setting,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        activation, slope, pad, backend = setting
        grad_grad, grad_x, plane = _double_backward(
            u, v_r, v_w, v_b, grad, x, weight, bias, residual, mean, rstd, m1, m2,
            activation, slope, pad, backend,
        )  # fmt: skip
        return grad_grad, grad_x, None if weight is None else plane.sum(0).to(weight.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        weight, bias = args[6:8]
        return _as_samples(_DoubleBackward, weight is not None or bias is not None, info, in_dims, *args)


# --- raw operators ------------------------------------------------------------------------------------------------


def _padded(x: Tensor, pad: int) -> list[int]:
    return [x.size(0), x.size(1), *(size + 2 * pad for size in x.shape[2:])]


def _empty(x: Tensor, shape: list[int]) -> Tensor:
    return layout.empty(shape, layout.is_channels_last(x), dtype=x.dtype, device=x.device)


def _fake_plane(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=statistics_dtype(x.dtype))


def _forward_fake(x: Tensor, w: Any, b: Any, residual: Any, *args: Any) -> Any:
    _, _, pad, _, need_statistics, _ = args
    y = _empty(x, _padded(x, pad))
    return (y, _fake_plane(x), _fake_plane(x)) if need_statistics else (y, None, None)


def _backward_fake(grad: Tensor, x: Tensor, *args: Any) -> Any:
    need_grad_z, need_sums, _ = args[-3:]
    grad_z = _empty(x, list(x.shape)) if need_grad_z else None
    m1, m2 = (_fake_plane(x), _fake_plane(x)) if need_sums else (None, None)
    return _empty(x, list(x.shape)), grad_z, m1, m2


def _double_backward_fake(u: Tensor, v_r: Any, v_w: Any, v_b: Any, grad: Tensor, x: Tensor, *args: Any) -> Any:
    return _empty(x, _padded(x, args[-2])), _empty(x, list(x.shape)), _fake_plane(x)


_forward = RawOperator(
    "instance_norm_act_forward(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, str activation, "
    "float negative_slope, int reflect_pad, float eps, bool need_statistics, str backend) -> (Tensor, Tensor, Tensor)",
    kernel_of("instance_norm", "forward"),
    _forward_fake,
)
_backward = RawOperator(
    "instance_norm_act_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, "
    "Tensor mean, Tensor rstd, str activation, float negative_slope, int reflect_pad, bool need_grad_z, "
    "bool need_sums, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    kernel_of("instance_norm", "backward"),
    _backward_fake,
)
_over_samples = RawOperator(
    "instance_norm_act_over_samples(Tensor mean, SymInt elements, ScalarType dtype, str backend) -> Tensor",
    kernel_of("instance_norm", "over_samples"),
    lambda mean, elements, dtype, backend: mean.new_empty(mean.size(1), dtype=dtype),
)
_double_backward = RawOperator(
    "instance_norm_act_double_backward(Tensor grad_grad_x, Tensor? grad_grad_residual, Tensor? grad_grad_weight, "
    "Tensor? grad_grad_bias, Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor mean, "
    "Tensor rstd, Tensor m1, Tensor m2, str activation, float negative_slope, int reflect_pad, str backend) "
    "-> (Tensor, Tensor, Tensor)",
    kernel_of("instance_norm", "double_backward"),
    _double_backward_fake,
)
