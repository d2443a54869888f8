"""Interpolation between real and fake samples, one alpha per sample, drawn in the kernel or given.

The derivation is in :mod:`fastgan.reference.interpolate`.
"""

from __future__ import annotations

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
    is_final,
    kernel_of,
    may_need_tangents,
    of_extension,
)
from fastgan.reference._dtype import statistics_dtype
from fastgan.reference.interpolate import draw_alpha, per_sample, sum_per_sample

_NAME = "interpolate"
# Up to so many elements torch.lerp is quicker than the kernel on the CPU, forward and backward; beyond, results are
# stored past the caches.
_LERP = 2**20
_is_lerp = of_extension("interpolate_is_lerp", lambda *_: False)


@allow_in_graph
def interpolate(
    real: Tensor, fake: Tensor, alpha: Tensor | None = None, *, generator: torch.Generator | None = None
) -> Tensor:
    r"""Random points on the lines between real and fake samples, where WGAN-GP puts its penalty.

    .. math:: \hat x_n = \alpha_n\,\mathrm{real}_n + (1 - \alpha_n)\,\mathrm{fake}_n

    (Gulrajani et al. 2017, arXiv:1704.00028, algorithm 1, lines 6-7.)

    Args:
        real: [N, ...], at least one dimension; float32, float64, float16 or bfloat16, any strides.
        fake: real's shape; any floating dtype, any strides.
        alpha: [N] or [N, 1, ..., 1], one number per sample, any floating dtype; or None to draw them uniformly from
            [0, 1).
        generator: of real's device; where alpha is drawn, a 64-bit seed comes from it (from the default generator
            if None), and :math:`\alpha_n` from the seed and n by Philox, see :mod:`fastgan.reference.interpolate`:
            the same seed gives the same numbers on every device and backend, whatever the sample size. The seed is
            drawn on the device, so a CUDA graph draws anew at each replay.

    Returns:
        real's shape and memory format, in the dtype that PyTorch promotes real's and fake's to; computed in float32
        (float64 for float64) and rounded once.

    Differentiable to any order in real, fake and alpha.

    Raises:
        TypeError: an argument that is no dense tensor, of a wrong dtype, or no generator.
        ValueError: a wrong shape or device, or alpha and a generator together.
    """
    points: Tensor = interpolate_checked(_NAME, real, fake, alpha, generator)
    return points


@allow_in_graph
def interpolate_checked(
    operator: str, real: Tensor, fake: Tensor, alpha: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    """:func:`interpolate`, whose errors begin with ``operator``."""
    if (
        alpha is not None
        and generator is None
        and _is_lerp(real, fake, alpha, _LERP)
        and dispatch.requested_backend() == "auto"
    ):
        return torch.lerp(fake, real, alpha if alpha.dim() == real.dim() else per_sample(alpha, real))
    as_they_are = _check.alike(real, fake)
    if not as_they_are:
        _check_images(operator, real, fake)
    if real.dim() == 0:
        raise ValueError(f"{operator}: real must be [N, ...], got a scalar")
    alpha = _check_alpha(operator, real, alpha, generator)
    backend = dispatch.in_graph(dispatch.select(_NAME, real), real.numel())
    if real.dtype != fake.dtype:
        dtype = torch.promote_types(real.dtype, fake.dtype)
        real, fake = real.to(dtype), fake.to(dtype)
    if backend == "reference" or real.numel() == 0:
        if alpha is None:
            alpha = draw_alpha(_draw_seed(real, generator), real.size(0))
        return reference.interpolate(real, fake, alpha)
    if not as_they_are:
        channels_last = layout.is_channels_last(real)
        real, fake = layout.dense(real, channels_last), layout.dense(fake, channels_last)
    seed, dtype = None, statistics_dtype(real.dtype)
    if alpha is None:
        seed = _draw_seed(real, generator)
    elif alpha.dtype != dtype or not alpha.is_contiguous():
        alpha = alpha.to(dtype).contiguous()
    points: Tensor = apply(_Forward, real, fake, alpha, seed, backend)[0]
    return points


def _draw_seed(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=x.device, generator=generator)


def _check_images(operator: str, real: Tensor, fake: Tensor) -> None:
    for name, value in (("real", real), ("fake", fake)):
        _check.floating(operator, name, value)
    _check.same_device(operator, "fake", fake, "real", real)
    _check.shape(operator, "fake", fake, real.shape, "real's shape")


def _check_alpha(operator: str, real: Tensor, alpha: Tensor | None, generator: torch.Generator | None) -> Tensor | None:
    """``alpha`` as [N], if it is given."""
    _check.generator(operator, generator)
    if alpha is None:
        return None
    _check.floating(operator, "alpha", alpha)
    _check.same_device(operator, "alpha", alpha, "real", real)
    if alpha.dim() == real.dim() and alpha.dim() > 1:  # as one writes it to broadcast
        _check.shape(operator, "alpha", alpha, [real.size(0), *[1] * (real.dim() - 1)], "one per sample")
        alpha = alpha.flatten()
    _check.shape(operator, "alpha", alpha, real.shape[:1], "one per sample")
    if generator is not None:
        raise ValueError(f"{operator}: got both alpha and generator; a given alpha needs no random numbers")
    return alpha


class _Forward(Fused):
    """One of alpha and seed is None."""

    operator, keeps = _NAME, True

    @staticmethod
    def forward(
        real: Tensor,
        fake: Tensor,
        alpha: Tensor | None,
        seed: Tensor | None,
        backend: str,
        kept: list[Tensor] | bool,
    ) -> tuple[Tensor, ...]:
        if type(kept) is list:
            return keep(dispatch.kernels(backend, _NAME).forward(real, fake, alpha, seed), 1, kept)
        return keep(_forward(real, fake, alpha, seed, backend), 1, kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        real, fake, given, _, ctx.backend, kept = inputs
        ctx.channels_last = layout.is_channels_last(real)
        (drawn,) = kept_of(ctx, output, 1, kept)
        alpha = drawn if given is None else given
        ctx.set_materialize_grads(False)
        # real and fake are needed again only for alpha's gradient.
        images = (real, fake) if given is not None and given.requires_grad else (None, None)
        ctx.save_for_backward(*images, alpha)
        if may_need_tangents():
            ctx.save_for_forward(real, fake, alpha)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 6
        tensors = layout.dense(grad, ctx.channels_last), *ctx.saved_tensors
        need = ctx.needs_input_grad[:3]
        if is_final(tensors):
            grads = dispatch.kernels(ctx.backend, _NAME).backward(*tensors, *need)
        else:
            grads = apply(_Backward, *tensors, need, ctx.backend)
        return *grads, None, None, None

    @staticmethod
    def jvp(
        ctx: Any, real_t: Tensor | None, fake_t: Tensor | None, alpha_t: Tensor | None, *_: None
    ) -> tuple[Tensor, None]:
        real, fake, alpha = ctx.saved_tensors
        a = per_sample(alpha, real)
        tangent = torch.zeros_like(real)
        for factor, t in ((a, real_t), (1 - a, fake_t)):
            if t is not None:
                tangent = tangent + factor * t
        if alpha_t is not None:
            tangent = tangent + per_sample(alpha_t, real) * (real - fake)
        return tangent.to(real.dtype), None


class _Backward(Fused):
    """need: whether real, fake and alpha want a gradient. Its own backward is of any order."""

    operator = _NAME

    @staticmethod
    def forward(
        grad: Tensor,
        real: Tensor | None,
        fake: Tensor | None,
        alpha: Tensor,
        need: tuple[bool, bool, bool],
        backend: str,
    ) -> tuple[Tensor | None, ...]:
        grads: tuple[Tensor | None, ...] = _backward(grad, real, fake, alpha, *need, backend)
        return tuple([g if wanted else None for g, wanted in zip(grads, need, strict=True)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        grad, real, fake, alpha, _, ctx.backend = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad, real, fake, alpha)

    @staticmethod
    def backward(
        ctx: Any, u_real: Tensor | None, u_fake: Tensor | None, u_alpha: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        grad, real, fake, alpha = ctx.saved_tensors
        grad_grad = grad_real = grad_fake = grad_alpha = None
        if u_real is not None or u_fake is not None:
            u_r, u_f = (torch.zeros_like(grad) if u is None else u for u in (u_real, u_fake))
            if u_alpha is None:
                # The gradients are linear in grad, as the result is in the images: the same kernel serves.
                dense = (layout.dense(u, layout.is_channels_last(grad)) for u in (u_r, u_f))
                grad_grad = apply(_Forward, *dense, alpha, None, ctx.backend)[0]
            else:
                a = per_sample(alpha, grad)
                grad_grad = a * u_r.to(alpha.dtype) + (1 - a) * u_f.to(alpha.dtype)
            if ctx.needs_input_grad[3]:
                difference = u_r.to(alpha.dtype) - u_f.to(alpha.dtype)
                grad_alpha = sum_per_sample(grad.to(alpha.dtype) * difference)
        if u_alpha is not None:
            u = per_sample(u_alpha, grad)
            grad_real = (u * grad.to(alpha.dtype)).to(grad.dtype)
            grad_fake = -grad_real
            of_alpha = u * (real.to(alpha.dtype) - fake.to(alpha.dtype))
            grad_grad = of_alpha if grad_grad is None else grad_grad + of_alpha
        return None if grad_grad is None else grad_grad.to(grad.dtype), grad_real, grad_fake, grad_alpha, None, None


# --- raw operators ------------------------------------------------------------------------------------------------


def _forward_fake(real: Tensor, fake: Tensor, alpha: Any, seed: Any, *_: Any) -> Any:
    drawn = None if seed is None else real.new_empty(real.size(0), dtype=statistics_dtype(real.dtype))
    return torch.empty_like(real), drawn


def _backward_fake(
    grad: Tensor, r: Any, f: Any, alpha: Tensor, need_real: bool, need_fake: bool, need_alpha: bool, *_: Any
) -> Any:
    needs = ((grad, need_real), (grad, need_fake), (alpha, need_alpha))
    return tuple(torch.empty_like(like) if need else None for like, need in needs)


_forward = RawOperator(
    "interpolate_forward(Tensor real, Tensor fake, Tensor? alpha, Tensor? seed, str backend) -> (Tensor, Tensor)",
    kernel_of("interpolate", "forward"),
    _forward_fake,
)
_backward = RawOperator(
    "interpolate_backward(Tensor grad, Tensor? real, Tensor? fake, Tensor alpha, bool need_real, bool need_fake, "
    "bool need_alpha, str backend) -> (Tensor, Tensor, Tensor)",
    kernel_of("interpolate", "backward"),
    _backward_fake,
)
