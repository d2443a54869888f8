"""The autograd functions of :func:`fastgan.functional.wasserstein_1d`, and the kernels' calls as raw operators.

The derivations are in :mod:`fastgan.reference.wasserstein`. A fused forward pass also writes the gradients of the cost
for whatever needs one ("unit gradients"), so that the backward pass is a scaling.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastgan.functional._function import Fused
from fastgan.functional._wasserstein_checks import check_masses, readable
from fastgan.kernels import dispatch
from fastgan.kernels.library import (
    RawOperator,
    allow_in_graph,
    apply,
    is_eager,
    is_final,
    kernel_of,
    may_need_tangents,
    unwrapped,
)
from fastgan.reference import wasserstein as reference

_NAME = "wasserstein_1d"


@allow_in_graph
def distance_of_checked(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    p: float,
    root: bool,
    dtype: torch.dtype,
    mean: bool = False,
) -> Tensor:
    """:func:`wasserstein_1d` of arguments that need no check, in ``dtype``: one floating dtype, one leading shape.

    With ``mean`` (p finite, ``root``) the p-th root of the mean of W_p^p over the last leading dimension.
    """
    if x.dtype == torch.float16 and _may_overflow(x, y, p):
        x, y = x.float(), y.float()
    backend = dispatch.select(_NAME, x, *_facts(x, y))
    if backend == "reference":
        check_masses(_NAME, x_weights, y_weights)
        cost, scale = reference.cost(x, y, x_weights, y_weights, p)
        if mean:
            cost, scale = reference.mean_cost(cost, scale, p)
        return reference.finish(cost, scale, p, root).to(dtype)
    need = _needs(x, y, x_weights, y_weights)
    if not need and x_weights is None and y_weights is None and is_eager((x, y)):
        cost, scale, _ = _forward.kernel(unwrapped(x), unwrapped(y), None, None, float(p), 0, backend)
        if mean:
            cost, scale = reference.mean_cost(cost, scale, p)
        return _in_dtype(_distance(cost, scale, p, root), dtype)
    value: Tensor = apply(_Forward, x, y, x_weights, y_weights, float(p), bool(root), dtype, mean, need, backend)[0]
    return value


def _facts(x: Tensor, y: Tensor) -> tuple[str, ...]:
    # A backend is chosen once for each of them, so no size, symbolic or not, may be one.
    return ("long_rows",) if x.size(-1) >= 1 << 31 or y.size(-1) >= 1 << 31 else ()


def mean_root_of_checked(x: Tensor, y: Tensor, p: float) -> Tensor | None:
    """The p-th root of the mean of W_p^p over the last leading dimension, where one call of a kernel gives it, or None.

    One gives it where nothing is differentiated, traced or transformed, for the usual p and dtypes on the CPU.
    """
    if torch.compiler.is_compiling() or type(p) not in (int, float) or p not in (1, 2):
        return None
    if not x.is_cpu or x.dtype not in (torch.float32, torch.float64) or x.shape[:-1] != y.shape[:-1]:
        return None
    if _needs(x, y) or not is_eager((x, y)):
        return None
    if dispatch.select(_NAME, x, *_facts(x, y)) != "native":
        return None
    value: Tensor = dispatch.kernels("native", "wasserstein").mean_root(unwrapped(x), unwrapped(y), float(p))
    return value


def _may_overflow(x: Tensor, y: Tensor, p: float) -> bool:
    """Whether unit gradients, n times the gradients, may leave float16's range though the gradients do not.

    They are 2 (x - y) for p = 2, else at most p n (n for p = inf), where one atom has all the mass.
    """
    return p == 2 or max(x.size(-1), y.size(-1)) * (1 if p == math.inf else p) > torch.finfo(torch.float16).max


def _needs(*inputs: Tensor | None) -> int:
    """Bit i: whether input i (x, y, x_weights, y_weights) wants a gradient."""
    if not torch.is_grad_enabled():
        return 0
    return sum([1 << i for i, t in enumerate(inputs) if t is not None and t.requires_grad])


def _batched(function: Any, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    """The vmap rule of all three Functions: every tensor has the same leading shape, so one more dim is no change."""
    moved = [
        a if not isinstance(a, Tensor)
        else a.movedim(d, 0) if d is not None
        else a.unsqueeze(0).expand(info.batch_size, *a.shape)
        for a, d in zip(args, in_dims, strict=True)
    ]  # fmt: skip
    outputs = function.apply(*moved)
    return outputs, tuple(None if o is None else 0 for o in outputs)


def _is_scaled(p: float) -> bool:
    """Whether scales may be other than 1."""
    return p not in (1, 2) and p != math.inf


def _shared(scale: Tensor, p: float) -> Tensor:
    """The scale of :func:`reference.mean_cost`."""
    return scale.amax(-1) if _is_scaled(p) else scale


def _is_rooted(p: float, root: bool) -> bool:
    """Whether the distance is a power of the cost."""
    return root and p != 1 and p != math.inf


def _distance(cost: Tensor, scale: Tensor, p: float, root: bool) -> Tensor:
    """``reference.finish``, without its care for derivatives."""
    if p == 1 or p == math.inf:
        return cost
    if not root:
        return cost if p == 2 else cost * scale**p
    return cost.sqrt() if p == 2 else cost ** (1 / p) * scale


def _in_dtype(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.float() if dtype == torch.float32 else t.to(dtype)  # float() is parsed faster


def _slope(cost: Tensor, scale: Tensor, p: float, root: bool) -> Tensor | None:
    """The derivative of the distance for the cost, 0 where a root has none; None for 1."""
    if not _is_rooted(p, root):
        return None if p == 2 or p == 1 or p == math.inf else scale**p
    if _all_positive(cost):
        slope = cost.rsqrt() / 2 if p == 2 else cost ** (1 / p - 1) / p
    else:
        zero = cost == 0
        slope = (cost.masked_fill(zero, 1.0) ** (1 / p - 1)).masked_fill(zero, 0.0) / p
    return slope if p == 2 else slope * scale


def _all_positive(cost: Tensor) -> bool:
    """Whether no cost is 0, where that can be seen for little: its powers and their derivatives then need no care."""
    if torch.compiler.is_compiling() or not cost.is_cpu or not readable(cost):
        return False
    return cost.item() != 0 if cost.numel() == 1 else bool(cost.all())  # item() is quicker


class _Forward(Fused):
    """(distance, cost, scale, unit gradients of x, y, x_weights, y_weights).

    The cost is None where the distance is no root of it, and so is a unit gradient that is not needed. With ``mean``
    distance and cost are those of the mean over the last leading dimension, and the scale is still each row's.
    """

    operator = _NAME

    @staticmethod
    def forward(
        x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None,
        p: float, root: bool, dtype: torch.dtype, mean: bool, need: int, backend: str,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        cost, scale, units = _forward(x, y, a, b, p, need, backend)
        shared = scale
        if mean:
            cost, shared = reference.mean_cost(cost, scale, p)
        value = _distance(cost, shared, p, root)
        return (
            _in_dtype(value, dtype),
            cost if _is_rooted(p, root) else None,
            scale,
            *_placed(units, need),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        x, y, a, b, ctx.p, ctx.root, ctx.dtype, ctx.mean, _, ctx.backend = inputs
        # The cost may be differentiated: the slope of a root depends on it.
        ctx.mark_non_differentiable(*[t for t in output[2:] if t is not None])
        ctx.set_materialize_grads(False)
        saved = (output[1], x, y, a, b, *output[2:])
        ctx.save_for_backward(*saved)
        if may_need_tangents():
            ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_cost: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None and grad_cost is None:
            return (None,) * 10
        cost, *saved = ctx.saved_tensors
        scale = saved[4]
        if ctx.p in (1, 2) and grad is not None and grad_cost is None:
            quick = _quick_signs(ctx, grad, *saved) if ctx.p == 1 else _quick_squares(ctx, grad, cost, *saved)
            if quick is not None:
                return quick
        if grad is not None:
            slope = _slope(cost, _shared(scale, ctx.p) if ctx.mean else scale, ctx.p, ctx.root)
            grad = grad.double() if slope is None else grad * slope
            grad_cost = grad if grad_cost is None else grad + grad_cost
        assert grad_cost is not None
        if ctx.mean:
            grad_cost = (grad_cost / scale.size(-1)).unsqueeze(-1).expand(scale.shape)
            if _is_scaled(ctx.p):
                grad_cost = grad_cost * reference.share_of_scale(scale, ctx.p)
        want = sum([1 << i for i in range(4) if ctx.needs_input_grad[i]])
        return (*apply(_Backward, grad_cost, *saved, ctx.p, want, ctx.backend), *(None,) * 6)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        cost, *saved = ctx.saved_tensors
        ones = torch.ones_like(saved[4])
        tangent = apply(_DoubleBackward, *tangents[:4], ones, *saved, ctx.p, 16, ctx.backend)[0]
        scale = saved[4]
        if ctx.mean:
            tangent, _ = reference.mean_cost(tangent, scale, ctx.p)
            scale = _shared(scale, ctx.p)
        slope = _slope(cost, scale, ctx.p, ctx.root)
        value = tangent if slope is None else tangent * slope
        return value.to(ctx.dtype), None if cost is None else tangent, None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _batched(_Forward, info, in_dims, *args)


def _quick_signs(
    ctx: Any, grad: Tensor, x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None,
    scale: Tensor, ux: Tensor | None, uy: Tensor | None, *_: Tensor | None,
) -> tuple[Tensor | None, ...] | None:  # fmt: skip
    """What :class:`_Forward` sends back where unit gradients are signs, by one call of a kernel; None elsewhere."""
    if ctx.mean or a is not None or b is not None or not is_final((grad,)):
        return None
    wanted: list[Tensor | None] = []
    for unit, needed in zip((ux, uy), ctx.needs_input_grad[:2], strict=True):
        if needed and (unit is None or unit.dtype != torch.int32):
            return None
        wanted.append(unit if needed else None)
    kernels = dispatch.kernels(ctx.backend, "wasserstein")
    return (*kernels.sign_gradients(*wanted, grad, scale, x.size(-1), x.dtype), *(None,) * 8)


def _quick_squares(
    ctx: Any, grad: Tensor, cost: Tensor | None, x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None,
    scale: Tensor, ux: Tensor | None, uy: Tensor | None, *_: Tensor | None,
) -> tuple[Tensor | None, ...] | None:  # fmt: skip
    """What :class:`_Forward` sends back for p = 2 in half the operations, where nothing is recorded; None elsewhere.

    On a few elements they are what a call takes.
    """
    if torch.is_grad_enabled() or x.dtype != ctx.dtype or ctx.dtype not in (torch.float32, torch.float64):
        return None
    if a is not None or b is not None or not is_eager((grad, x, y)) or (cost is not None and not _all_positive(cost)):
        return None
    factor = grad if cost is None else grad * cost.rsqrt()
    share = (1.0 if cost is None else 0.5) / (scale.size(-1) if ctx.mean else 1)
    grads: list[Tensor | None] = [None] * 10
    for i, (unit, n) in enumerate(((ux, x.size(-1)), (uy, y.size(-1)))):
        if ctx.needs_input_grad[i]:
            if unit is None:
                return None
            of_row = _in_dtype(factor * (share / n), ctx.dtype).unsqueeze(-1)
            grads[i] = unit * (of_row.unsqueeze(-1) if ctx.mean else of_row)
    return tuple(grads)


class _Backward(Fused):
    """grad, the cost's, times the unit gradients. want: which inputs' gradients, as bits."""

    operator = _NAME

    @staticmethod
    def forward(
        grad: Tensor, x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, scale: Tensor,
        ux: Tensor | None, uy: Tensor | None, ua: Tensor | None, ub: Tensor | None, p: float, want: int, backend: str,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        units = _units(x, y, a, b, (ux, uy, ua, ub), p, want, backend)
        return tuple([
            None if unit is None or like is None else _scaled(unit, factor, like, backend)
            for unit, factor, like in zip(units, _factors(grad, x, y, scale, p), (x, y, a, b), strict=True)
        ])  # fmt: skip

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        ctx.p, _, ctx.backend = inputs[-3:]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:-3])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(v is None for v in cotangents):
            return (None,) * 13
        want = sum(1 << i for i in range(4) if ctx.needs_input_grad[1 + i])
        if ctx.needs_input_grad[0]:
            want |= 16
        grads = apply(_DoubleBackward, *cotangents, *ctx.saved_tensors, ctx.p, want, ctx.backend)
        return (*grads, *(None,) * 8)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _batched(_Backward, info, in_dims, *args)


class _DoubleBackward(Fused):
    """Gradients of the backward pass for (grad, x, y, x_weights, y_weights), given cotangents v of its results.

    want: bits 0 to 3, which inputs' gradients; bit 4, whether grad's.
    """

    operator = _NAME

    @staticmethod
    def forward(
        vx: Tensor | None, vy: Tensor | None, va: Tensor | None, vb: Tensor | None,
        grad: Tensor, x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, scale: Tensor,
        ux: Tensor | None, uy: Tensor | None, ua: Tensor | None, ub: Tensor | None, p: float, want: int, backend: str,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        cotangents = (vx, vy, va, vb)
        weights = va is not None or vb is not None or want & 12
        if want & 15 and weights and p != math.inf:
            of_grad, grads = reference.double_backward(cotangents, grad, (x, y, a, b), p)
            return of_grad, *(g if want >> i & 1 else None for i, g in enumerate(grads))
        given = sum(1 << i for i, v in enumerate(cotangents) if v is not None and want & 16)
        units = _units(x, y, a, b, (ux, uy, ua, ub), p, given, backend)
        grad_grad = torch.zeros_like(grad) if want & 16 else None
        for unit, v, factor in zip(units, cotangents, _factors(torch.ones_like(grad), x, y, scale, p), strict=True):
            if grad_grad is not None and unit is not None and v is not None:
                if unit.dtype == torch.int32:
                    unit = _scale_signs(unit, torch.ones_like(factor), v.size(-1), v.dtype, backend)
                wide = torch.promote_types(unit.dtype, torch.float32)
                grad_grad = grad_grad + factor * _row_sums(unit.to(wide) * v)
        if not want & 3:
            return grad_grad, None, None, None, None
        if p == 1 or p == math.inf:  # zeros, not None: torch.autograd.grad would take x for unused
            hx, hy = torch.zeros_like(x), torch.zeros_like(y)
        else:
            hx, hy = _second(vx, vy, grad, x, y, a, b, scale, p, backend)
        return grad_grad, hx if want & 1 else None, hy if want & 2 else None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _batched(_DoubleBackward, info, in_dims, *args)


def _units(
    x: Tensor,
    y: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    units: tuple[Tensor | None, ...],
    p: float,
    want: int,
    backend: str,
) -> tuple[Tensor | None, ...]:
    """The wanted unit gradients; computed now if the forward pass could not know that they would be."""
    if any(want >> i & 1 and unit is None for i, unit in enumerate(units)):
        return _placed(_forward(x, y, a, b, p, want, backend)[2], want)
    return tuple([unit if want >> i & 1 else None for i, unit in enumerate(units)])


def _placed(units: list[Tensor], need: int) -> tuple[Tensor | None, ...]:
    """The unit gradients of x, y, x_weights, y_weights, None where they are not needed."""
    if not need:
        return None, None, None, None
    rest = iter(units)
    return tuple([next(rest) if need >> i & 1 else None for i in range(4)])


def _factors(grad: Tensor, x: Tensor, y: Tensor, scale: Tensor, p: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What turns unit gradients into gradients: those of the samples are per mean weight and per scale."""
    per_scale = grad if p == 2 or p == math.inf else grad / scale  # else the scale is 1
    of_x = per_scale / x.size(-1)
    return of_x, of_x if y.size(-1) == x.size(-1) else per_scale / y.size(-1), grad, grad


def _scaled(unit: Tensor, factor: Tensor, like: Tensor, backend: str) -> Tensor:
    dtype = like.dtype
    if unit.dtype == torch.int32:
        scaled: Tensor = _scale_signs(unit, factor, like.size(-1), dtype, backend)
        return scaled
    # A factor of 1 / n may be subnormal in half precision: multiply in float32.
    wide = torch.float64 if unit.dtype == torch.float64 else torch.float32
    scaled = (unit if unit.dtype == wide else unit.to(wide)) * factor.to(wide).unsqueeze(-1)
    return scaled if dtype == wide else scaled.to(dtype)


def _row_sums(t: Tensor) -> Tensor:
    """The sum over the last dimension, by whatever number of threads: PyTorch has each of them add up its own part of a
    single long row."""
    n, part = t.size(-1), 4096
    if t.numel() != n or n < 8 * part:
        return t.sum(-1)
    whole = n // part * part
    sums: Tensor = t[..., :whole].unflatten(-1, (-1, part)).sum(-1)
    return sums.sum(-1) + t[..., whole:].sum(-1)


# --- raw operators ------------------------------------------------------------------------------------------------


def _forward_fake(
    x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, p: float, need: int, backend: str
) -> tuple[Tensor, Tensor, list[Tensor]]:
    rows = x.shape[:-1]
    per_row = x.new_empty(rows, dtype=torch.float64)
    kernels = dispatch.kernels(backend, "wasserstein")
    samples, together = kernels.samples_unit(x, y, a, b, p)
    units = []
    for i, (t, w) in enumerate(((x, None), (y, None), (x, a), (y, b))):
        if need >> i & 1 and i < 2:
            units.append(x.new_empty((*rows, -(-t.size(-1) // together)), dtype=samples))
        elif need >> i & 1:
            units.append(x.new_empty(t.shape, dtype=kernels.weights_unit(w)))
    return per_row, torch.empty_like(per_row), units


def _second_fake(vx: Tensor | None, vy: Tensor | None, grad: Tensor, x: Tensor, y: Tensor, *_: Any) -> Any:
    return x.new_empty(x.shape), y.new_empty(y.shape)


_forward = RawOperator(
    "wasserstein_1d_forward(Tensor x, Tensor y, Tensor? x_weights, Tensor? y_weights, float p, int need, str backend) "
    "-> (Tensor, Tensor, Tensor[])",
    kernel_of("wasserstein", "forward"),
    _forward_fake,
)
_second = RawOperator(
    "wasserstein_1d_second(Tensor? vx, Tensor? vy, Tensor grad, Tensor x, Tensor y, Tensor? x_weights, "
    "Tensor? y_weights, Tensor scale, float p, str backend) -> (Tensor, Tensor)",
    kernel_of("wasserstein", "second"),
    _second_fake,
)
_scale_signs = RawOperator(
    "wasserstein_1d_scale_signs(Tensor signs, Tensor factor, SymInt n, ScalarType dtype, str backend) -> Tensor",
    kernel_of("wasserstein", "scale_signs"),
    lambda signs, factor, n, dtype, backend: signs.new_empty((*signs.shape[:-1], n), dtype=dtype),
)
