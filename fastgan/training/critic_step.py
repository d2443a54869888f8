r"""The critic update of WGAN-GP as a pure function, which ``torch.compile`` and CUDA graphs take whole.

The usual way, ``autograd.grad(..., create_graph=True)`` and then ``backward()``, cannot be traced: a compiled critic
raises, or (torch 2.11) silently loses the penalty's gradient. Written with nested ``torch.func.grad`` over
``functional_call`` the same derivatives are an ordinary graph::

    critic_gradients = torch.compile(fastgan.training.critic_step.critic_gradients, fullgraph=True, dynamic=False)
    losses, gradients = critic_gradients(critic, real, fake, alpha)
    assign_gradients(critic, gradients)
    optimizer.step()

``dynamic=False``, for torch 2.11 cannot differentiate a convolution twice whose sizes are symbols, as they become when
another batch has other ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastgan import functional as F
from fastgan.functional import _check
from fastgan.functional._critic import check_critic_args, refuse_recorded_batch_norm, without_batch_mixing
from fastgan.functional.interpolate import interpolate_checked

Tensors = Mapping[str, Tensor]


class CriticLosses(NamedTuple):
    """The parts of the critic's loss, scalars without a graph.

    ``loss = fake - real + penalty``; ``real - fake`` estimates the Wasserstein distance.
    """

    loss: Tensor
    real: Tensor
    fake: Tensor
    penalty: Tensor


def critic_gradients(
    critic: nn.Module,
    real: Tensor,
    fake: Tensor,
    alpha: Tensor | None = None,
    *,
    weight: float | Tensor = 10.0,
    target: float = 1.0,
    one_sided: bool = False,
    critic_args: Sequence[Any] = (),
) -> tuple[CriticLosses, dict[str, Tensor]]:
    r"""The losses of a WGAN-GP critic and their gradients for its trainable parameters.

    .. math:: L = \mathrm{mean}\,D(\tilde x) - \mathrm{mean}\,D(x) + \lambda\,\mathrm{penalty}(\hat x)

    (Gulrajani et al. 2017, arXiv:1704.00028, algorithm 1, lines 4-9), equal to what
    :func:`fastgan.functional.gradient_penalty` and ``backward()`` give in eager mode. Real and fake samples go
    through the critic in one batch, which no critic that this accepts can tell from two.

    Args:
        critic: a module whose scores do not mix samples. Buffers that its forward pass writes into, such as those of
            spectral norm's power iteration, are updated in place as by two passes, over the samples and over the
            points between them; the updates themselves are not differentiated.
        real, fake: [N, ...], one shape; no gradient reaches them.
        alpha: [N], or None to draw it; see :func:`fastgan.functional.interpolate`.
        weight, target, one_sided: see :func:`fastgan.functional.gradient_penalty`. A weight that changes from step to
            step may be a scalar tensor, for which nothing is compiled anew.
        critic_args: what the critic is called with after the samples, a conditional critic's labels, say. The row of a
            tensor [N, ...] belongs to a real sample, a fake one and the point between them; other values are handed on.

    It may be called under bfloat16 autocast. In float16 small gradients underflow, for nothing scales them here:
    :func:`fastgan.functional.gradient_penalty` and a ``GradScaler`` do.

    Returns:
        The losses, and the gradient of each parameter that requires one, by name.

    Raises:
        TypeError: a critic that is no module or does not return a tensor, or ``critic_args`` that are no tuple.
        ValueError: a critic that mixes samples, a tensor among ``critic_args`` without a row for each sample.
        TypeError, ValueError: what ``interpolate`` refuses.
    """
    if not isinstance(critic, nn.Module):
        raise TypeError(f"critic_gradients: critic must be a Module, got {type(critic).__name__}")
    if not isinstance(weight, Tensor):
        _check.number("critic_gradients", "weight", weight)
    _check.number("critic_gradients", "target", target, 0)
    check_critic_args("critic_gradients", critic_args)
    watch = without_batch_mixing("critic_gradients", critic)
    for name, samples in (("real", real), ("fake", fake)):
        _check.floating("critic_gradients", name, samples)
    real, fake = real.detach(), fake.detach()
    points = interpolate_checked("critic_gradients", real, fake, alpha, None)
    samples = torch.cat([real, fake])
    of_points = [a.detach() if isinstance(a, Tensor) else a for a in critic_args]
    of_samples = [_twice(a, real.size(0)) for a in of_points]
    # Compiled nested func.grad needs tensors that do not require grad.
    trained = {name: p.detach() for name, p in critic.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in critic.named_parameters() if not p.requires_grad}
    state = {name: b.detach() for name, b in critic.named_buffers()}

    def score(parameters: Tensors, buffers: Tensors, x: Tensor, args: list[Any]) -> tuple[Tensor, Tensors]:
        # A transform may write into what it has made, not into what it has found.
        buffers = {name: b.clone() for name, b in buffers.items()}
        with watch:
            scores: Tensor = torch.func.functional_call(critic, ({**fixed, **parameters, **buffers},), (x, *args))
        if not isinstance(scores, Tensor) or scores.dim() == 0:
            got = "a scalar" if isinstance(scores, Tensor) else type(scores).__name__
            raise TypeError(f"critic_gradients: critic must return a Tensor of scores [N, ...], got {got}")
        if not torch.compiler.is_compiling():
            refuse_recorded_batch_norm("critic_gradients", scores, args)
        return scores, buffers

    def summed(x: Tensor, parameters: Tensors, buffers: Tensors) -> tuple[Tensor, Tensors]:
        scores, buffers = score(parameters, buffers, x, of_points)
        return scores.sum(), buffers

    def loss(parameters: Tensors) -> tuple[Tensor, tuple[CriticLosses, Tensors]]:
        scores, buffers = score(parameters, state, samples, of_samples)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        mean_real, mean_fake = (half.mean() for half in scores.split(real.size(0)))
        gradient, buffers = torch.func.grad(summed, has_aux=True)(points, parameters, buffers)
        penalty = weight * F.gradient_norm_penalty(gradient, target=target, one_sided=one_sided)
        total = mean_fake - mean_real + penalty
        return total, (CriticLosses(total, mean_real, mean_fake, penalty), buffers)

    gradients, (losses, buffers) = torch.func.grad(loss, has_aux=True)(trained)
    with torch.no_grad():
        for name, buffer in critic.named_buffers():
            buffer.copy_(buffers[name])
    return losses, gradients


def _twice(argument: Any, samples: int) -> Any:
    """``argument`` for the real samples and the fake ones after them."""
    if not isinstance(argument, Tensor) or argument.dim() == 0:
        return argument
    if argument.size(0) != samples:
        raise ValueError(
            f"critic_gradients: a tensor of critic_args must be [N, ...] with N = {samples}, got {list(argument.shape)}"
        )
    return torch.cat([argument, argument])


def assign_gradients(critic: nn.Module, gradients: Mapping[str, Tensor]) -> None:
    """Makes ``gradients`` the ``.grad`` of the critic's parameters of those names, and clears all others.

    They get their parameters' strides, as from ``backward()``: fused optimizers go through both in memory's order.
    """
    for name, parameter in critic.named_parameters():
        gradient = gradients.get(name)
        if gradient is not None and gradient.stride() != parameter.stride():
            gradient = torch.empty_like(parameter, dtype=gradient.dtype).copy_(gradient)
        parameter.grad = gradient
