"""Exact 1-D Wasserstein distances, batched, weighted and twice differentiable; optimal plans and dual potentials.

The derivations are in :mod:`fastgan.reference.wasserstein`. A fused forward pass also writes the gradients of the cost
for whatever needs one ("unit gradients"), so that the backward pass is a scaling.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastgan.functional import _check
from fastgan.functional._function import Fused
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
def wasserstein_1d(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    *,
    p: float = 1.0,
    root: bool = True,
) -> Tensor:
    r"""The exact p-Wasserstein distance between two weighted samples on the line, for every row of a batch.

    .. math:: W_p^p = \int_0^1 |F_x^{-1}(u) - F_y^{-1}(u)|^p\,du, \qquad W_\infty = \sup_u |F_x^{-1}(u) - F_y^{-1}(u)|

    (Peyré and Cuturi, Computational Optimal Transport, 2019, remark 2.30).

    Args:
        x: [..., n] samples; float32, float64, float16 or bfloat16, or integers, which are converted to PyTorch's
            default dtype. x and y are promoted to their common dtype.
        y: [..., m] samples; its leading shape broadcasts with x's.
        x_weights: non-negative masses that broadcast to x's shape, or None for equal ones. They are divided by
            their sum.
        y_weights: the same for y.
        p: order of the distance, in [1, inf].
        root: whether to return ``W_p``, else ``W_p^p``. ``W_inf`` is returned as it is.

    Returns:
        [...], in the dtype of the samples. Cumulative weights and sums are float64; differences, for p = 2 their
        squares, and sums of up to 256 of either are float32 (float64 for float64): differences beyond 1e18 for p = 2,
        1e36 for p = 1, may cost inf, and those below 1e-23 cost nothing for p = 2. For p other than 1 and 2, cumulative
        weights within 2⁻⁴⁷ of the total of each other are taken for equal. A row
        with a NaN is NaN, and so are its gradients. Infinite samples are ordered as numbers: two equal infinities cost
        nothing, any other pair with an infinity makes the distance infinite (with gradients ±1/n for p = 1, not finite
        for p > 1; weights get no gradient from infinite costs).

    Differentiable twice in the samples and the weights; a third derivative raises. Where |x - y| or the optimal plan
    is not differentiable the gradient is the subgradient that the reference states: equal samples are matched in index
    order, sgn(0) = 0, tied cumulative weights take the average of both sides, and W_p has gradient 0 where it is 0.
    Deterministic.

    Raises:
        TypeError: an argument that is no tensor, or complex.
        ValueError: no samples, leading shapes that do not broadcast, another device, p < 1, and negative, infinite,
            NaN or all-zero weights. (While a CUDA graph is captured or a program compiled, such weights make their
            row NaN instead.) On a GPU a call with weights waits for its result, to see whether they are.
    """
    x, y, x_weights, y_weights = _prepare(_NAME, x, y, x_weights, y_weights, p)
    value = distance_of_checked(x, y, x_weights, y_weights, p, root, x.dtype)
    # The kernels look at every weight: a row without valid ones is NaN.
    if (x_weights is not None or y_weights is not None) and _readable(value) and bool(value.isnan().any()):
        _check_masses(_NAME, x_weights, y_weights)
    return value


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
        _check_masses(_NAME, x_weights, y_weights)
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


def wasserstein_1d_plan(
    x: Tensor, y: Tensor, x_weights: Tensor | None = None, y_weights: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The optimal moving plan between two weighted samples on the line, optimal for every p at once.

    Args:
        x: [..., n] samples, as in :func:`wasserstein_1d`.
        y: [..., m] samples.
        x_weights: as in :func:`wasserstein_1d`.
        y_weights: as in :func:`wasserstein_1d`.

    Returns:
        (i, j, mass), each [..., n + m - 1]: the plan moves ``mass`` from ``x[i]`` to ``y[j]``, in ascending order of
        both. i and j are int64, mass is float64, sums to 1 in each row, and is 0 where an entry is unused. No gradient
        flows through the plan.

    Raises:
        As :func:`wasserstein_1d`.
    """
    name = "wasserstein_1d_plan"
    x, y, x_weights, y_weights = _prepare(name, x, y, x_weights, y_weights, 1.0)
    _check_masses(name, x_weights, y_weights)
    with torch.no_grad():
        return reference.plan(x, y, x_weights, y_weights)


def wasserstein_1d_potentials(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    *,
    p: float = 1.0,
) -> tuple[Tensor, Tensor]:
    r"""Optimal dual (Kantorovich) potentials of :math:`W_p^p` on the line.

    .. math:: W_p^p = \max_{f, g} \sum_i a_i f_i + \sum_j b_j g_j \quad\text{with}\quad f_i + g_j \le |x_i - y_j|^p

    Args:
        x: [..., n] samples, as in :func:`wasserstein_1d`.
        y: [..., m] samples.
        x_weights: as in :func:`wasserstein_1d`.
        y_weights: as in :func:`wasserstein_1d`.
        p: order of the distance, in [1, inf).

    Returns:
        f [..., n] and g [..., m] in float64. Of the constant that may move from f to g, that choice is taken which
        makes both terms of the sum equal. Where the optimal pair is not unique for another reason (tied cumulative
        weights) it is the average of two extreme ones. No gradient flows through them.

    Raises:
        As :func:`wasserstein_1d`, and ValueError for an infinite p.
    """
    name = "wasserstein_1d_potentials"
    x, y, x_weights, y_weights = _prepare(name, x, y, x_weights, y_weights, p)
    if p == math.inf:
        raise ValueError(f"{name}: p must be finite, got {p}: W_inf has no such dual")
    _check_masses(name, x_weights, y_weights)
    with torch.no_grad():
        return reference.potentials(x, y, x_weights, y_weights, p)


# --- checks -------------------------------------------------------------------------------------------------------


def _prepare(
    name: str, x: Tensor, y: Tensor, x_weights: Tensor | None, y_weights: Tensor | None, p: float
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The checked arguments, of one dtype, samples and weights expanded to one leading shape."""
    check_order(name, p)
    if x_weights is None and y_weights is None and are_plain(x, y):
        return x, y, None, None
    for what, samples in (("x", x), ("y", y)):
        _check.tensor(name, what, samples)
        if samples.dim() == 0 or samples.size(-1) == 0:
            raise ValueError(
                f"{name}: {what} must hold at least one sample in its last dimension, got shape {list(samples.shape)}"
            )
    _check.same_device(name, "y", y, "x", x)
    dtype, other = dtype_of(name, "x", x), dtype_of(name, "y", y)
    if dtype != other:
        dtype = torch.promote_types(dtype, other)
    x_weights = _prepare_weights(name, "x_weights", x_weights, "x", x)
    y_weights = _prepare_weights(name, "y_weights", y_weights, "y", y)
    if x.shape != y.shape and x.shape[:-1] != y.shape[:-1]:
        try:
            rows = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1])
        except RuntimeError:
            raise ValueError(
                f"{name}: the leading shapes of x and y must broadcast, got {list(x.shape)} and {list(y.shape)}"
            ) from None
        x, y = x.expand(*rows, -1), y.expand(*rows, -1)
    if x_weights is not None:
        x_weights = x_weights.expand(x.shape)
    if y_weights is not None:
        y_weights = y_weights.expand(y.shape)
    x = x if x.dtype == dtype else x.to(dtype)
    y = y if y.dtype == dtype else y.to(dtype)
    return x, y, x_weights, y_weights


def check_order(name: str, p: Any) -> None:
    # A compiled program's own number may be symbolic; the kernels fix it.
    if type(p) is float and p >= 1:
        return
    if not _check.is_number(p) or not p >= 1:
        raise ValueError(f"{name}: p must be a number in [1, inf], got {p!r}")


def are_plain(x: Tensor, y: Tensor) -> bool:
    """Whether x and y are so alike, and so usual, that there is nothing to check: the most frequent call."""
    return (
        type(x) is Tensor
        and type(y) is Tensor
        and x.is_cpu
        and y.is_cpu
        and x.layout is y.layout is torch.strided
        and x.dtype == y.dtype
        and x.dtype in _check.FLOATING
        and x.dim() > 0
        and x.shape == y.shape
        and x.numel() > 0
    )


def dtype_of(name: str, what: str, value: Tensor) -> torch.dtype:
    """The floating dtype in which ``value`` is taken: its own, or for integers the default one."""
    dtype = value.dtype
    if dtype.is_complex:
        raise TypeError(f"{name}: {what} must be real, got {dtype}")
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    elif dtype not in _check.FLOATING:
        _check.floating(name, what, value)
    return dtype


def _prepare_weights(name: str, what: str, weights: Tensor | None, of: str, samples: Tensor) -> Tensor | None:
    if weights is None:
        return None
    _check.tensor(name, what, weights)
    _check.same_device(name, what, weights, of, samples)
    dtype = dtype_of(name, what, weights)
    try:
        fits = torch.broadcast_shapes(weights.shape, samples.shape) == samples.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name}: {what} must broadcast to {of}'s shape {list(samples.shape)}, got {list(weights.shape)}"
        )
    return weights.to(torch.float64 if not weights.dtype.is_floating_point else dtype)


def _check_masses(name: str, *weights: Tensor | None) -> None:
    for what, w in zip(("x_weights", "y_weights"), weights, strict=True):
        if w is None or not _readable(w):
            continue
        total = w.detach().sum(-1, dtype=torch.float64)
        # A NaN fails the comparisons; a negative weight may hide in a positive total.
        if not bool(((total > 0) & (total < math.inf)).all() & (w.numel() == 0 or w.detach().min() >= 0)):
            least = float(w.detach().min())
            raise ValueError(
                f"{name}: {what} must be non-negative with a positive, finite sum in every row, got a least weight of "
                f"{least} and sums from {float(total.min())} to {float(total.max())}"
            )


def _readable(t: Tensor) -> bool:
    """Whether the values may be looked at: not while a program is traced, transformed or captured."""
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    if type(t) not in (Tensor, torch.nn.Parameter):
        return False
    return not (t.is_meta or (t.is_cuda and torch.cuda.is_current_stream_capturing()))


# --- autograd -----------------------------------------------------------------------------------------------------


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
    if torch.compiler.is_compiling() or not cost.is_cpu or not _readable(cost):
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
