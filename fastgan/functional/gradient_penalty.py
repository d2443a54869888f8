"""The fused penalty on per-sample gradient norms, twice differentiable, and the critic penalties made of it.

The derivation is in :mod:`fastgan.reference.gradient_penalty`; a critic's gradient is taken in
:mod:`fastgan.functional._critic`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan import reference
from fastgan.functional import _check
from fastgan.functional._autocast import NOTHING
from fastgan.functional._critic import Critic, input_gradient
from fastgan.functional._function import Fused, keep, kept_of
from fastgan.functional.interpolate import interpolate_checked
from fastgan.kernels import dispatch, layout
from fastgan.kernels.library import (
    RawOperator,
    allow_in_graph,
    apply,
    is_final,
    kernel_of,
    may_need_tangents,
)
from fastgan.reference._dtype import statistics_dtype

_NAME = "gradient_norm_penalty"


@allow_in_graph
def gradient_norm_penalty(grads: Tensor, *, target: float = 1.0, one_sided: bool = False) -> Tensor:
    r"""The mean penalty on the distance of per-sample gradient norms from a target.

    .. math:: L = \frac1N \sum_n (\|g_n\|_2 - t)^2 \quad\text{or, one-sided,}\quad
              \frac1N \sum_n \max(0, \|g_n\|_2 - t)^2

    (Gulrajani et al. 2017, arXiv:1704.00028, equation 3 and section 4.) The norm is over all of a sample's elements.

    Args:
        grads: [N, ...], at least two dimensions; float32, float64, float16 or bfloat16, any strides. Usually the
            gradient of a critic's outputs for its inputs, taken with ``create_graph=True``.
        target: t, at least 0. With 0 this is the mean squared norm.
        one_sided: penalise only norms above the target.

    Returns:
        A scalar, float32 (float64 for float64), also under autocast: squares and sums are never taken in 16 bits.

    Differentiable twice. Where a norm is 0, its gradient is 0, not NaN. Deterministic.

    Raises:
        TypeError: grads is no tensor or of a wrong dtype.
        ValueError: no samples, fewer than two dimensions, or a negative target.
    """
    penalty: Tensor = _norm_penalty(grads, target, one_sided, 1.0)
    return penalty


@allow_in_graph
def _norm_penalty(grads: Tensor, target: float, one_sided: bool, weight: float) -> Tensor:
    """``weight`` times :func:`gradient_norm_penalty`."""
    _check.floating(_NAME, "grads", grads)
    if grads.dim() < 2 or grads.numel() == 0:
        raise ValueError(f"{_NAME}: grads must be [N, ...] with at least one element, got shape {list(grads.shape)}")
    _check.number(_NAME, "target", target, 0)
    backend = dispatch.in_graph(dispatch.select(_NAME, grads), grads.numel())
    if backend == "reference":
        return weight * reference.gradient_norm_penalty(grads, target=target, one_sided=one_sided)
    dense = grads if grads.is_contiguous() else layout.dense(grads, layout.is_channels_last(grads))
    penalty: Tensor = apply(_Forward, dense, float(target), bool(one_sided), weight, backend)[0]
    return penalty


def gradient_penalty(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    *,
    weight: float = 10.0,
    target: float = 1.0,
    one_sided: bool = False,
    alpha: Tensor | None = None,
    generator: torch.Generator | None = None,
    grad_scale: float = 1.0,
    allow_batch_mixing: bool = False,
    critic_args: Sequence[Any] = (),
) -> Tensor:
    r"""The gradient penalty of WGAN-GP: ``weight`` times :func:`gradient_norm_penalty` at points between real and fake.

    .. math:: \lambda\,\frac1N\sum_n \big(\|\nabla_{\hat x} D(\hat x_n)\|_2 - t\big)^2,\qquad
              \hat x_n = \alpha_n x_n + (1 - \alpha_n) \tilde x_n

    (Gulrajani et al. 2017, arXiv:1704.00028.) ``target=0`` is the zero-centred penalty (Thanh-Tung et al. 2019,
    arXiv:1902.03984); ``one_sided=True`` leaves norms below the target alone.

    Args:
        critic: maps [N, ...] to scores of any shape [N, ...]; a module or any callable, such as
            ``lambda x: critic(x)[0]``. Several scores of one sample (a PatchGAN) are summed, so the norm is that of
            the gradient of their sum.
        real, fake: [N, ...]; both are detached, so no gradient reaches the generator. See :func:`interpolate`.
        weight, target, one_sided: see :func:`gradient_norm_penalty`; the authors use 10, 1 and False.
        alpha, generator: see :func:`interpolate`; one alpha per sample.
        grad_scale: under float16 autocast, the factor by which scores are multiplied before the inner derivative, so
            that small gradients do not underflow; the gradient is divided by it in float32. A power of two is exact.
            Positive.
        allow_batch_mixing: accept a critic with batch normalisation in training mode, or with a layer that says of
            itself that it ``mixes_samples`` (minibatch discrimination). The penalty then has no meaning per sample:
            each score depends on the whole batch. Batch normalisation is found in the modules and in what autograd
            records, so also behind a function; of scripts and compiled parts, in the modules alone.
        critic_args: what the critic is called with after the points, a conditional critic's labels, say.

    Returns:
        A scalar, at least float32. Called under ``torch.no_grad()`` or in ``torch.inference_mode()``, its value without
        a graph.

    Mixed precision: call it where the critic's other scores are computed, inside ``torch.autocast``. The critic then
    runs in low precision; the gradient's norm, the penalty and its first derivative are computed in float32. Then
    ``scaler.scale(loss).backward()`` outside, as for any loss.

    Distributed: give it the ``DistributedDataParallel`` module and add the result to the critic's loss before its one
    ``backward()``: the inner derivative is for the input only, so the gradient hooks fire once.

    ``torch.compile`` cannot trace an inner ``autograd.grad``; what it can compile is
    :func:`fastgan.training.critic_step.critic_gradients`.

    Raises:
        TypeError: a critic that is not callable or does not return a tensor, or an argument of a wrong type.
        ValueError: a critic that mixes samples, samples [N] or no samples, or what :func:`interpolate` refuses.
        RuntimeError: scores that do not depend on the input, a compiled critic, or an input gradient cut off from the
            graph, with which training would silently go on without a penalty.
    """
    operator = "gradient_penalty"
    _check_penalty(operator, real, weight, target)
    points = _points_between(operator, real, fake, alpha, generator)
    return _penalty_at(points, operator, critic, weight, target, one_sided, grad_scale, allow_batch_mixing, critic_args)


def r1_penalty(
    critic: Critic,
    real: Tensor,
    *,
    weight: float = 10.0,
    grad_scale: float = 1.0,
    allow_batch_mixing: bool = False,
    critic_args: Sequence[Any] = (),
) -> Tensor:
    r"""The R1 penalty: the mean squared gradient norm on real data.

    .. math:: \frac\gamma2\,\frac1N\sum_n \|\nabla D(x_n)\|_2^2

    (Mescheder et al. 2018, arXiv:1801.04406, equation 9; there :math:`\gamma` = 10.) ``weight`` is :math:`\gamma`;
    the other arguments, the result and the errors are those of :func:`gradient_penalty`.
    """
    operator = "r1_penalty"
    _check_penalty(operator, real, weight, 0.0)
    return _penalty_at(real, operator, critic, weight / 2, 0.0, False, grad_scale, allow_batch_mixing, critic_args)


def dragan_penalty(
    critic: Critic,
    real: Tensor,
    *,
    weight: float = 10.0,
    target: float = 1.0,
    one_sided: bool = False,
    c: float = 0.5,
    std: Tensor | None = None,
    noise: Tensor | None = None,
    alpha: Tensor | None = None,
    generator: torch.Generator | None = None,
    grad_scale: float = 1.0,
    allow_batch_mixing: bool = False,
    critic_args: Sequence[Any] = (),
) -> Tensor:
    r"""The gradient penalty of DRAGAN, around real data.

    .. math:: \lambda\,\frac1N\sum_n \big(\|\nabla D(\hat x_n)\|_2 - t\big)^2,\qquad
              \hat x_n = x_n + \alpha_n\, c\,\mathrm{std}(x)\,u_n

    with u uniform on [0, 1) and std that of the whole batch, as in the authors' code (Kodali et al. 2017,
    arXiv:1705.07215, whose equation 1 adds a normal :math:`\delta` to x; :math:`\lambda` = 10, c = 0.5).

    Args:
        noise: u, real's shape, or None to draw it.
        c: scale of the noise in standard deviations of the data.
        std: std(x), a tensor [], or None to take it of ``real``; for a batch that several processes share.

    The other arguments, the result and the errors are those of :func:`gradient_penalty`.
    """
    operator = "dragan_penalty"
    _check_penalty(operator, real, weight, target)
    _check.number(operator, "c", c)
    _check.generator(operator, generator)
    if std is not None:
        _check.floating(operator, "std", std)
        _check.same_device(operator, "std", std, "real", real)
        _check.shape(operator, "std", std, [], "of the whole batch")
    real = real.detach()
    if noise is None:
        noise = torch.rand(real.shape, dtype=real.dtype, device=real.device, generator=generator)
    else:
        _check.floating(operator, "noise", noise)
        _check.same_device(operator, "noise", noise, "real", real)
        _check.shape(operator, "noise", noise, real.shape, "real's shape")
    if alpha is not None and noise is not None and generator is not None:
        raise ValueError(f"{operator}: got noise, alpha and generator; given ones need no random numbers")
    perturbed = real + ((c * (real.std(correction=0) if std is None else std)) * noise).to(real.dtype)
    points = _points_between(operator, perturbed, real, alpha, generator if alpha is None else None)
    return _penalty_at(points, operator, critic, weight, target, one_sided, grad_scale, allow_batch_mixing, critic_args)


def _check_penalty(operator: str, real: Tensor, weight: float, target: float) -> None:
    _check.floating(operator, "real", real)
    if real.dim() < 2 or real.numel() == 0:
        raise ValueError(f"{operator}: real must be [N, ...] with at least one element, got shape {list(real.shape)}")
    _check.number(operator, "weight", weight)
    _check.number(operator, "target", target, 0)


def _points_between(
    operator: str, real: Tensor, fake: Tensor, alpha: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    with NOTHING if not torch.is_grad_enabled() else torch.no_grad():  # real and fake are constants, and so is alpha
        points: Tensor = interpolate_checked(operator, real, fake, alpha, generator)
    return points


def _penalty_at(
    points: Tensor,
    operator: str,
    critic: Critic,
    weight: float,
    target: float,
    one_sided: bool,
    grad_scale: float,
    allow_batch_mixing: bool,
    critic_args: Sequence[Any],
) -> Tensor:
    """``weight`` times the penalty on the critic's gradients at ``points``."""
    gradient = input_gradient(
        critic, points, grad_scale=grad_scale, allow_batch_mixing=allow_batch_mixing, critic_args=critic_args,
        operator=operator,
    )  # fmt: skip
    penalty: Tensor = _norm_penalty(gradient, target, one_sided, weight)
    return penalty


class _Forward(Fused):
    """``weight`` times the penalty.

    The C++ kernels compute the backward pass in the forward pass, for an incoming gradient of 1, which the terms of a
    loss usually get: it costs one more write there, while the samples are in cache, and saves a pass. The first
    backward pass takes it; for any other incoming gradient, and for ``create_graph``, it is computed as usual.
    """

    operator, keeps = _NAME, True

    @staticmethod
    def forward(
        grads: Tensor, target: float, one_sided: bool, weight: float, backend: str, kept: list[Tensor] | bool
    ) -> tuple[Tensor, ...]:
        if type(kept) is list and backend == "native":
            kernel = dispatch.kernels(backend, "gradient_penalty").forward_with_gradient
            return keep(kernel(grads, target, one_sided, weight), 1, kept)
        penalty, norms = _forward(grads, target, one_sided, backend)
        return keep((penalty if weight == 1 else penalty * weight, norms), 1, kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        grads, target, one_sided, ctx.weight, backend, kept = inputs
        norms, *ctx.early = kept_of(ctx, output, 1, kept)
        ctx.setting = target, one_sided, backend
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grads, norms)
        if may_need_tangents():
            ctx.save_for_forward(grads, norms)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 6
        early, ctx.early = ctx.early, []  # given away: no other pass may see what becomes of it
        if early and is_final((grad,)) and grad.item() == 1.0:
            return early[0], *(None,) * 5
        if ctx.weight != 1:
            grad = grad * ctx.weight
        return apply(_Backward, grad, *ctx.saved_tensors, *ctx.setting), *(None,) * 5

    @staticmethod
    def jvp(ctx: Any, grads_t: Tensor, *rest: None) -> tuple[Tensor, None]:
        grads, norms = ctx.saved_tensors
        # Through _Backward, which knows that the norms depend on grads: reverse mode over this is then right or raises.
        gradient = _Backward.apply(torch.ones_like(norms[:1]).sum(), grads, norms, *ctx.setting)
        return (gradient.to(norms.dtype) * grads_t).sum() * ctx.weight, None


class _Backward(Fused):
    operator = _NAME

    @staticmethod
    def forward(grad: Tensor, grads: Tensor, norms: Tensor, target: float, one_sided: bool, backend: str) -> Tensor:
        result: Tensor = _backward(grad, grads, norms, target, one_sided, backend)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, grads, norms, *ctx.setting = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad, grads, norms)

    @staticmethod
    def backward(ctx: Any, u: Tensor | None) -> tuple[Tensor | None, ...]:
        if u is None:
            return (None,) * 6
        grad, grads, norms = ctx.saved_tensors
        u = layout.dense(u, layout.is_channels_last(grads))
        return *apply(_DoubleBackward, u, grad, grads, norms, *ctx.setting), None, None, None, None


class _DoubleBackward(Fused):
    operator = _NAME

    @staticmethod
    def forward(
        u: Tensor, grad: Tensor, grads: Tensor, norms: Tensor, target: float, one_sided: bool, backend: str
    ) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = _double_backward(u, grad, grads, norms, target, one_sided, backend)
        return result


# --- raw operators ------------------------------------------------------------------------------------------------


def _forward_fake(grads: Tensor, *_: Any) -> Any:
    dtype = statistics_dtype(grads.dtype)
    return grads.new_empty((), dtype=dtype), grads.new_empty(grads.size(0), dtype=dtype)


def _backward_fake(grad: Tensor, grads: Tensor, *_: Any) -> Any:
    return torch.empty_like(grads)


def _double_backward_fake(u: Tensor, grad: Tensor, grads: Tensor, *_: Any) -> Any:
    return torch.empty_like(grad), torch.empty_like(grads)


_forward = RawOperator(
    "gradient_norm_penalty_forward(Tensor grads, float target, bool one_sided, str backend) -> (Tensor, Tensor)",
    kernel_of("gradient_penalty", "forward"),
    _forward_fake,
)
_backward = RawOperator(
    "gradient_norm_penalty_backward(Tensor grad, Tensor grads, Tensor norms, float target, bool one_sided, "
    "str backend) -> Tensor",
    kernel_of("gradient_penalty", "backward"),
    _backward_fake,
)
_double_backward = RawOperator(
    "gradient_norm_penalty_double_backward(Tensor u, Tensor grad, Tensor grads, Tensor norms, float target, "
    "bool one_sided, str backend) -> (Tensor, Tensor)",
    kernel_of("gradient_penalty", "double_backward"),
    _double_backward_fake,
)
