"""The fused penalty on per-sample gradient norms, twice differentiable, and the critic penalties made of it.

The derivation is in :mod:`fastgan.reference.gradient_penalty`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastgan import reference
from fastgan.functional import _check, _piecewise
from fastgan.functional._autocast import without_autocast
from fastgan.functional._function import Fused
from fastgan.functional._piecewise import NOTHING
from fastgan.functional.interpolate import interpolate_checked
from fastgan.kernels import dispatch, layout
from fastgan.kernels.library import (
    RawOperator,
    allow_in_graph,
    apply,
    is_eager,
    kernel_of,
    may_be_read,
    may_need_tangents,
)
from fastgan.reference.instance_norm import statistics_dtype

Critic = Callable[..., Tensor]
_NAME = "gradient_norm_penalty"
_NORMALISES = (
    "normalises over the batch, so each score depends on every sample and a per-sample gradient has no meaning. Use "
    "layer or instance normalisation in the critic, or pass allow_batch_mixing=True."
)
_MIXES = (
    "mixes the samples of a batch, so each score depends on every sample and a per-sample gradient has no meaning. "
    "Leave it out of the critic, or pass allow_batch_mixing=True."
)


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
def _norm_penalty(grads: Tensor, target: float, one_sided: bool, expected: float) -> Tensor:
    """:func:`gradient_norm_penalty`, told which incoming gradient its backward pass will probably get."""
    _check.tensor(_NAME, "grads", grads)
    _check.floating(_NAME, "grads", grads)
    if grads.dim() < 2 or grads.numel() == 0:
        raise ValueError(f"{_NAME}: grads must be [N, ...] with at least one element, got shape {list(grads.shape)}")
    _check.number(_NAME, "target", target, 0)
    backend = dispatch.in_graph(dispatch.select(_NAME, grads), grads.numel())
    if backend == "reference":
        return reference.gradient_norm_penalty(grads, target=target, one_sided=one_sided)
    dense = layout.dense(grads, layout.is_channels_last(grads))
    early = None
    if backend == "native" and torch.is_grad_enabled() and dense.requires_grad and is_eager((dense,)):
        early = expected if grads.dtype == torch.float64 else ctypes.c_float(expected).value  # as it will come in
    penalty: Tensor = apply(_Forward, dense, float(target), bool(one_sided), early, backend)[0]
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
            each score depends on the whole batch. A callable that is no module cannot be looked into; it is watched
            for batch normalisation alone, while it runs.
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
    arXiv:1705.07215; :math:`\lambda` = 10, c = 0.5).

    Args:
        noise: u, real's shape, or None to draw it.
        c: scale of the noise in standard deviations of the data.
        std: std(x), a scalar, or None to take it of ``real``; for a batch that several processes share.

    The other arguments, the result and the errors are those of :func:`gradient_penalty`.
    """
    operator = "dragan_penalty"
    _check_penalty(operator, real, weight, target)
    _check.number(operator, "c", c)
    real = real.detach()
    if noise is None:
        noise = torch.rand(real.shape, dtype=real.dtype, device=real.device, generator=generator)
    else:
        _check.tensor(operator, "noise", noise)
        _check.shape(operator, "noise", noise, real.shape, "real's shape")
    perturbed = real + ((c * (real.std(correction=0) if std is None else std)) * noise).to(real.dtype)
    points = _points_between(operator, perturbed, real, alpha, generator if alpha is None else None)
    return _penalty_at(points, operator, critic, weight, target, one_sided, grad_scale, allow_batch_mixing, critic_args)


def _check_penalty(operator: str, real: Tensor, weight: float, target: float) -> None:
    _check.tensor(operator, "real", real)
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
    penalty: Tensor = weight * _norm_penalty(gradient, target, one_sided, weight)
    return penalty


def consistency_term(
    scores: Tensor,
    scores_again: Tensor,
    features: Tensor | None = None,
    features_again: Tensor | None = None,
    *,
    weight: float = 2.0,
    margin: float = 0.0,
    feature_weight: float = 0.1,
) -> Tensor:
    r"""The consistency term of CT-GAN between two critic passes, with different dropout, over one real batch.

    .. math:: \lambda_2\,\frac1N\sum_n \max\big(0,\ d(D(x_n'), D(x_n'')) + 0.1\, d(D\_(x_n'), D\_(x_n'')) - M'\big)

    where d is the mean squared difference over a sample's elements and :math:`D\_` the layer before the last (Wei et
    al. 2018, arXiv:1803.01541, equation 4; :math:`\lambda_2` = 2, M' from 0 to 0.2).

    Args:
        scores, scores_again: [N] or [N, ...], the critic's outputs in the two passes.
        features, features_again: [N, ...], the two outputs of the layer before the last, or None to leave them out.
        weight, margin, feature_weight: :math:`\lambda_2`, M' and the 0.1 above.

    Returns:
        A scalar, at least float32. Differentiable to any order.

    Raises:
        TypeError, ValueError: an argument of a wrong type or shape, or only one of the two features.
    """
    for name, value in (("weight", weight), ("margin", margin), ("feature_weight", feature_weight)):
        _check.number("consistency_term", name, value)
    distance = _squared_distance("scores", scores, scores_again)
    if (features is None) != (features_again is None):
        raise ValueError("consistency_term: features and features_again must be given together")
    if features is not None and features_again is not None:
        of_features = _squared_distance("features", features, features_again)
        _check.shape("consistency_term", "features", features, (len(scores), *features.shape[1:]), "as many as scores")
        distance = distance + feature_weight * of_features
    return weight * (distance - margin).clamp(min=0).mean()


def input_gradient(
    critic: Critic,
    points: Tensor,
    *,
    grad_scale: float = 1.0,
    allow_batch_mixing: bool = False,
    critic_args: Sequence[Any] = (),
    operator: str = "input_gradient",
) -> Tensor:
    """The gradient of each sample's summed scores for that sample, itself differentiable for the critic's parameters.

    Args:
        points: [N, ...]; detached.
        operator: the name that errors begin with.

    Returns:
        [N, ...], points' shape, in at least float32. The other arguments and the errors are those of
        :func:`gradient_penalty`.
    """
    if not callable(critic):
        raise TypeError(f"{operator}: critic must be a module or a function, got {type(critic).__name__}")
    check_critic_args(operator, critic_args)
    _check.number(operator, "grad_scale", grad_scale)
    if grad_scale <= 0:
        raise ValueError(f"{operator}: grad_scale must be positive, got {grad_scale!r}")
    if torch.is_inference_mode_enabled():  # its tensors have no gradients
        with torch.inference_mode(False), torch.no_grad():
            return input_gradient(
                critic, points, grad_scale=grad_scale, allow_batch_mixing=allow_batch_mixing, critic_args=critic_args,
                operator=operator,
            )  # fmt: skip
    watch = NOTHING
    if not allow_batch_mixing:
        refuse_batch_mixing(operator, critic)
        if not isinstance(critic, nn.Module):
            watch = _WithoutBatchNorm(operator)
    create_graph = torch.is_grad_enabled()
    with NOTHING if create_graph else torch.enable_grad():
        points = (points.clone() if points.is_inference() else points.detach()).requires_grad_()
        with watch, _piecewise.activations():
            scores = critic(points, *critic_args)
        if not isinstance(scores, Tensor):
            raise TypeError(f"{operator}: critic must return a Tensor of scores, got {type(scores).__name__}")
        if not scores.requires_grad:
            raise RuntimeError(
                f"{operator}: the critic's scores do not depend on its input (were they detached, or computed under "
                "no_grad?)"
            )
        if create_graph and type(scores.grad_fn).__name__ == "CompiledFunctionBackward":
            raise RuntimeError(
                f"{operator}: a critic under torch.compile has no double backward. Give the network that was compiled, "
                "keep this call out of a compiled step (torch.compiler.disable), or compile "
                "fastgan.training.critic_step.critic_gradients instead. (For the value alone: torch.no_grad().)"
            )
        # Its operations have the dtypes of the forward pass.
        with without_autocast(points.device.type):
            (gradient,) = torch.autograd.grad(
                scores,
                points,
                grad_outputs=torch.full_like(scores, grad_scale),
                create_graph=create_graph,
                allow_unused=True,
            )
    if gradient is None:
        raise RuntimeError(f"{operator}: the critic's scores do not depend on its input")
    if create_graph and not gradient.requires_grad:
        raise RuntimeError(
            f"{operator}: the gradient of the critic's scores is cut off from the graph, so the penalty would train "
            "nothing. Known causes: a critic under torch.compile (compile "
            "fastgan.training.critic_step.critic_gradients instead), a layer whose backward is not "
            "differentiable, or a critic without trainable parameters (for the value alone, call this under "
            "torch.no_grad())."
        )
    if gradient.dtype in (torch.float16, torch.bfloat16):
        gradient = gradient.float()
    return gradient if grad_scale == 1.0 else gradient / grad_scale


def check_critic_args(operator: str, critic_args: Sequence[Any]) -> None:
    if not isinstance(critic_args, (tuple, list)):  # a tensor would be taken apart into its rows
        raise TypeError(f"{operator}: critic_args must be a tuple of arguments, got {type(critic_args).__name__}")


class _WithoutBatchNorm(TorchFunctionMode):
    """Refuses batch normalisation in the call of a critic that is no module, which cannot be looked into before."""

    def __init__(self, operator: str) -> None:
        super().__init__()
        self.operator = operator

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is nnf.batch_norm and (args[5] if len(args) > 5 else kwargs.get("training", False)):
            raise ValueError(f"{self.operator}: the critic {_NORMALISES}")
        return func(*args, **kwargs)


def refuse_batch_mixing(operator: str, critic: Critic) -> None:
    """Raises ValueError, beginning with ``operator``, if ``critic`` is a module whose scores depend on the whole batch.

    Those are batch normalisation in training mode, and any layer with an attribute ``mixes_samples`` that is true.
    """
    if not isinstance(critic, nn.Module):
        return
    modules = [critic]
    for module in modules:  # which grows: this is asked in every step, and modules() takes five times as long
        reason = _mixing(module)
        if reason is not None:
            name = next(name for name, other in critic.named_modules() if other is module)
            raise ValueError(f"{operator}: {type(module).__name__} {name!r} {reason}")
        modules += [child for child in module._modules.values() if child is not None]


def _mixing(module: nn.Module) -> str | None:
    """How ``module`` by itself mixes samples, or None."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
        return _NORMALISES
    # getattr alone is slow for a module without the attribute.
    if ("mixes_samples" in module.__dict__ or hasattr(type(module), "mixes_samples")) and module.mixes_samples:
        return _MIXES
    return None


def _squared_distance(name: str, x: Tensor, y: Tensor) -> Tensor:
    for label, value in ((name, x), (f"{name}_again", y)):
        _check.tensor("consistency_term", label, value)
        _check.floating("consistency_term", label, value)
    _check.shape("consistency_term", f"{name}_again", y, x.shape, f"{name}'s shape")
    if x.dim() == 0 or x.numel() == 0:
        raise ValueError(f"consistency_term: {name} must be [N, ...] with at least one element, got {list(x.shape)}")
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    return (x.to(dtype) - y.to(dtype)).square().reshape(x.size(0), -1).mean(1)


class _Forward(Fused):
    """early: an incoming gradient for which the backward pass is computed in the forward pass, or None.

    It costs one more write there, while the samples are in cache, and saves a pass. The first backward pass takes it
    if that is what comes in; for any other incoming gradient, and for ``create_graph``, it is computed as usual.
    """

    operator = _NAME

    @staticmethod
    def forward(grads: Tensor, target: float, one_sided: bool, early: float | None, backend: str) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...]
        if early is None:
            result = _forward(grads, target, one_sided, backend)
        else:
            kernel = dispatch.kernels(backend, "gradient_penalty").forward_with_gradient
            result = kernel(grads, target, one_sided, early)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        grads, target, one_sided, early, backend = inputs
        _, norms, *gradient = output
        ctx.setting = target, one_sided, backend
        ctx.mark_non_differentiable(norms, *gradient)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grads, norms)
        ctx.early = (early, gradient[0]) if gradient else None
        if may_need_tangents():
            ctx.save_for_forward(grads, norms)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 5
        early, ctx.early = ctx.early, None  # given away: no other pass may see what becomes of it
        if early is not None and may_be_read(grad):
            expected, gradient = early
            if float(grad) == expected:
                return gradient, None, None, None, None
        return apply(_Backward, grad, *ctx.saved_tensors, *ctx.setting), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, grads_t: Tensor, *rest: None) -> tuple[Tensor, None]:
        grads, norms = ctx.saved_tensors
        # Through _Backward, which knows that the norms depend on grads: reverse mode over this is then right or raises.
        gradient = _Backward.apply(torch.ones_like(norms[:1]).sum(), grads, norms, *ctx.setting)
        return (gradient.to(norms.dtype) * grads_t).sum(), None


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
