"""Fused weighted L1 distances of several pairs, twice differentiable.

The derivation is in :mod:`fastgan.reference.l1`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan import reference
from fastgan.functional import _check
from fastgan.functional._function import Fused, keep, kept_of
from fastgan.kernels import dispatch, layout
from fastgan.kernels.library import (
    RawOperator,
    allow_in_graph,
    apply,
    is_batch,
    is_final,
    kernel_of,
    may_need_tangents,
)

_NAME = "weighted_l1"
# Kernels keep the signs of a - b, two bits each, for the backward pass, in units of this many elements.
SIGN_CHUNK = 4096


@allow_in_graph
def weighted_l1(pairs: Iterable[tuple[Tensor, Tensor, float]]) -> Tensor:
    r"""The weighted sum of mean absolute differences over pairs of tensors, in one pass.

    .. math:: L = \sum_k w_k \frac1{M_k} \sum_i |a_{ki} - b_{ki}|

    where :math:`M_k` is the number of elements of pair k: ``sum(w * torch.nn.functional.l1_loss(a, b))``.

    Args:
        pairs: (a, b, weight) each. a and b: one shape, any number of dimensions, any strides, float32, float64,
            float16 or bfloat16; the two may differ in dtype and layout. Pairs may differ in shape and may share
            tensors. All on one device. weight: a finite number.

    Returns:
        A scalar; float32 whatever the inputs' 16-bit dtypes (float64 if any input is float64), accumulated in at
        least float32. Deterministic, and independent of the number of threads.

    Gradients go to every a and b that requires one; where a and b are equal the gradient is zero, as in PyTorch.
    Differentiable twice (the second derivative for a and b is zero, the one for the incoming gradient is not).

    Raises:
        TypeError: an argument that is no tensor, or of a wrong dtype.
        ValueError: no pairs, a pair of other than three items, empty tensors, shapes or devices that differ.
    """
    if isinstance(pairs, Tensor) or not isinstance(pairs, Iterable):
        raise TypeError(f"{_NAME}: pairs must be (a, b, weight) each, got {_check.described(pairs)}")
    total: Tensor = _weighted(_NAME, list(pairs))
    return total


@allow_in_graph
def _weighted(operator: str, pairs: list[tuple[Tensor, Tensor, float]]) -> Tensor:
    """:func:`weighted_l1`, whose errors begin with ``operator`` and call the tensors by its arguments' names."""
    as_they_are = _check_arguments(operator, pairs)
    tensors = [t for a, b, _ in pairs for t in (a, b)]
    dtypes = [t.dtype for t in tensors]
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    widest = dtypes.index(dtype) if dtype in dtypes else 0
    numels = [a.numel() for a in tensors[::2]]
    backend = dispatch.in_graph(dispatch.select(_NAME, tensors[widest]), sum(numels))
    if backend == "reference":
        return reference.weighted_l1(pairs)
    if not as_they_are:
        if any(isinstance(weight, torch.SymFloat) for _, _, weight in pairs):
            # The kernels take numbers: one that changes from call to call stays outside, lest each value compile anew.
            units = [weight * _weighted(operator, [(a, b, 1.0)]) for a, b, weight in pairs]
            return torch.stack(units).sum()
        tensors = [t for a, b, _ in pairs for t in _aligned(a, b)]
    recording, transformed = torch.is_grad_enabled(), torch._C._are_functorch_transforms_active()
    weights, sign_bytes = [], []
    for n, (a, b, weight) in zip(numels, pairs, strict=True):
        weights.append(float(weight))
        # Packed signs of whole chunks, two bits each, where there will be a backward pass. A transform's inner levels
        # do not show what its outer ones want.
        wanted = recording and (transformed or a.requires_grad or b.requires_grad)
        sign_bytes.append(-(-n // SIGN_CHUNK) * (SIGN_CHUNK // 4) if wanted else 0)
    setting = (numels, weights, sign_bytes, dtype, backend)
    value: Tensor = apply(_Forward, setting, *tensors)[0]
    return value


def cycle_loss(
    rec_a: Tensor, real_a: Tensor, rec_b: Tensor, real_b: Tensor, *, weight_a: float = 10.0, weight_b: float = 10.0
) -> Tensor:
    r"""The cycle-consistency loss of CycleGAN (Zhu et al. 2017, arXiv:1703.10593, equation 2), in one pass.

    .. math:: L = \lambda_A\,\mathrm{mean}|F(G(a)) - a| + \lambda_B\,\mathrm{mean}|G(F(b)) - b|

    Args:
        rec_a, real_a: reconstruction and original of domain A, one shape; see :func:`weighted_l1`.
        rec_b, real_b: those of domain B.
        weight_a, weight_b: :math:`\lambda_A, \lambda_B`; the authors use 10.

    Returns:
        A scalar as of :func:`weighted_l1`, which also takes the identity terms in the same pass. So are the errors.
    """
    total: Tensor = _weighted("cycle_loss", [(rec_a, real_a, weight_a), (rec_b, real_b, weight_b)])
    return total


@functools.cache
def _names(operator: str, k: int) -> tuple[str, str, str]:
    """What pair k of ``operator`` has for a, b and weight."""
    if operator == "cycle_loss":
        domain = "ab"[k]
        return f"rec_{domain}", f"real_{domain}", f"weight_{domain}"
    return f"pairs[{k}] a", f"pairs[{k}] b", f"pairs[{k}] weight"


def _check_arguments(operator: str, pairs: Sequence[tuple[Tensor, Tensor, float]]) -> bool:
    """Whether kernels take all tensors as they are; raises for what is no argument."""
    if len(pairs) == 0:
        raise ValueError(f"{operator}: pairs must have at least one (a, b, weight), got none")
    as_they_are = True
    for k, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)):
            raise TypeError(f"{operator}: pairs[{k}] must be (a, b, weight), got {_check.described(pair)}")
        if len(pair) != 3:
            raise ValueError(f"{operator}: pairs[{k}] must be (a, b, weight), got {len(pair)} items")
        a, b, weight = pair
        name_a, name_b, name_weight = _names(operator, k)
        as_they_are = as_they_are and _check.alike(a, b)
        if not as_they_are:
            for name, value in ((name_a, a), (name_b, b)):
                _check.floating(operator, name, value)
                _check.same_device(operator, name, value, _names(operator, 0)[0], pairs[0][0])
            if a.shape != b.shape:
                got = f"{list(a.shape)} and {list(b.shape)}"
                raise ValueError(f"{operator}: {name_a} and {name_b.split()[-1]} must have one shape, got {got}")
            if a.numel() == 0:
                raise ValueError(f"{operator}: {name_a} is empty (shape {list(a.shape)}): its mean is not defined")
        _check.number(operator, name_weight, weight)
    return as_they_are


def _aligned(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a and b with dtypes that a kernel takes together, both dense in one layout.

    Where the layouts differ, the tensor that wants a gradient keeps its own, so that its gradient has it too.
    """
    if a.dtype != b.dtype:
        dtype = torch.promote_types(a.dtype, b.dtype)
        if dtype != torch.float32 or torch.float32 not in (a.dtype, b.dtype):
            a, b = a.to(dtype), b.to(dtype)
    if a.is_contiguous() and b.is_contiguous():
        return a, b
    channels_last = layout.is_channels_last(b if b.requires_grad and not a.requires_grad else a)
    return layout.dense(a, channels_last), layout.dense(b, channels_last)


# Of each pair: its elements, weight and bytes of signs (0 where they are not wanted); the result's dtype; the backend.
_Setting = tuple[list[int], list[float], list[int], torch.dtype, str]
# Of one pair: its shape, whether it is channels last, the dtypes of a and b.
_Layout = tuple[Sequence[int], bool, torch.dtype, torch.dtype]


class _Forward(Fused):
    """tensors: a and b of each pair in turn.

    Where the C++ kernels run as they are called, the gradients cost one more write in the forward pass and no pass of
    their own. They are those for an incoming gradient of 1, which the terms of a loss usually get. The first backward
    pass takes them; for any other incoming gradient, and for ``create_graph``, the signs serve.
    """

    operator, keeps = _NAME, True

    @staticmethod
    def forward(setting: _Setting, *tensors_and_kept: Any) -> tuple[Tensor, ...]:
        *tensors, kept = tensors_and_kept
        _, weights, sign_bytes, dtype, backend = setting
        if type(kept) is list and backend == "native":
            results = dispatch.kernels(backend, "l1").forward_with_gradients(tensors, weights, sign_bytes, dtype)
        else:
            results = _forward(tensors, weights, sign_bytes, dtype, backend)
        return keep(results, 1, kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.setting, *tensors, kept = inputs
        signs, *ctx.early = kept_of(ctx, output, 1, kept)
        ctx.layouts = [
            (a.shape, layout.is_channels_last(a), a.dtype, b.dtype)
            for a, b in zip(tensors[::2], tensors[1::2], strict=True)
        ]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(signs)
        if may_need_tangents():
            ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        _, *need, _ = ctx.needs_input_grad
        if grad is None:
            return (None,) * (2 + len(need))
        early, ctx.early = ctx.early, []  # given away: no other pass may see what becomes of them
        if early and is_final((grad,)) and grad.item() == 1.0:
            return None, *early, None
        return None, *apply(_Backward, grad, *ctx.saved_tensors, ctx.layouts, need, ctx.setting), None

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents_and_kept: Tensor | None) -> tuple[Tensor, None]:
        tangents = tangents_and_kept[:-1]
        _, weights, _, dtype, _ = ctx.setting
        tensors = ctx.saved_tensors
        pairs = list(zip(tensors[::2], tensors[1::2], weights, strict=True))
        directions = list(zip(tangents[::2], tangents[1::2], strict=True))
        return reference.l1.directional(pairs, directions).to(dtype), None


class _Backward(Fused):
    operator = _NAME

    @staticmethod
    def forward(
        grad: Tensor,
        signs: Tensor,
        layouts: list[_Layout],
        need: tuple[bool, ...],
        setting: _Setting,
    ) -> tuple[Tensor | None, ...]:
        numels, weights, sign_bytes, _, backend = setting
        codes = []
        for k, n in enumerate(need):
            if n and not sign_bytes[k // 2]:
                raise RuntimeError(f"{_NAME}: a gradient is asked for that the forward pass was not told of")
            codes.append(_check.FLOATING.index(layouts[k // 2][2 + k % 2]) if n else -1)
        batch = is_batch(grad)  # an operator that returns a list is not called for each of them by the dispatcher
        one = torch.ones((), dtype=grad.dtype, device=signs.device) if batch else grad
        grads = _backward(one, signs, numels, weights, sign_bytes, codes, backend)
        flat = iter([unit * grad for unit in grads] if batch else grads)
        return tuple([layout.unflatten(next(flat), *layouts[k // 2][:2]) if n else None for k, n in enumerate(need)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        grad, signs, ctx.layouts, _, ctx.setting = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(signs)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(u is None for u in directions):
            return (None,) * 5
        grad = apply(_DoubleBackward, *ctx.saved_tensors, ctx.layouts, ctx.setting, *directions)
        return grad, None, None, None, None


class _DoubleBackward(Fused):
    operator = _NAME

    @staticmethod
    def forward(
        signs: Tensor,
        layouts: list[_Layout],
        setting: _Setting,
        *directions: Tensor | None,
    ) -> Tensor:
        numels, weights, sign_bytes, dtype, backend = setting
        dense = [None if u is None else layout.dense(u, layouts[k // 2][1]) for k, u in enumerate(directions)]
        grad: Tensor = _directional(dense, signs, numels, weights, sign_bytes, dtype, backend)
        return grad


# --- raw operators ------------------------------------------------------------------------------------------------


def _forward_fake(tensors: list[Tensor], _: Any, sign_bytes: list[int], dtype: torch.dtype, *rest: Any) -> Any:
    x = tensors[0]
    return x.new_empty((), dtype=dtype), x.new_empty(sum(sign_bytes), dtype=torch.uint8)


def _backward_kernel(*args: Any) -> list[Tensor]:
    *rest, codes, backend = args
    dtypes = [None if code < 0 else _check.FLOATING[code] for code in codes]
    result: list[Tensor] = dispatch.kernels(backend, "l1").backward(*rest, dtypes)
    return result


def _backward_fake(grad: Tensor, signs: Tensor, numels: list[int], w: Any, s: Any, codes: Any, *rest: Any) -> Any:
    return [grad.new_empty(numels[k // 2], dtype=_check.FLOATING[code]) for k, code in enumerate(codes) if code >= 0]


def _directional_fake(directions: Any, signs: Tensor, n: Any, w: Any, s: Any, dtype: torch.dtype, *rest: Any) -> Any:
    return signs.new_empty((), dtype=dtype)


_forward = RawOperator(
    "weighted_l1_forward(Tensor[] tensors, float[] weights, SymInt[] sign_bytes, ScalarType dtype, str backend) "
    "-> (Tensor, Tensor)",
    kernel_of("l1", "forward"),
    _forward_fake,
)
# dtypes: of each tensor's gradient, as an index of _check.FLOATING; -1 where none is wanted.
_backward = RawOperator(
    "weighted_l1_backward(Tensor grad, Tensor signs, SymInt[] numels, float[] weights, SymInt[] sign_bytes, "
    "int[] dtypes, str backend) -> Tensor[]",
    _backward_kernel,
    _backward_fake,
)
_directional = RawOperator(
    "weighted_l1_directional(Tensor?[] directions, Tensor signs, SymInt[] numels, float[] weights, "
    "SymInt[] sign_bytes, ScalarType dtype, str backend) -> Tensor",
    kernel_of("l1", "directional"),
    _directional_fake,
)
