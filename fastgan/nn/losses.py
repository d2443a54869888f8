"""The losses and penalties as modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastgan import functional as F
from fastgan.functional import _check
from fastgan.functional._critic import Critic


class CycleLoss(nn.Module):
    r"""The cycle-consistency loss of CycleGAN: :func:`fastgan.functional.cycle_loss`.

    Args:
        weight_a, weight_b: :math:`\lambda_A, \lambda_B`.
    """

    def __init__(self, weight_a: float = 10.0, weight_b: float = 10.0) -> None:
        super().__init__()
        _check.number("CycleLoss", "weight_a", weight_a)
        _check.number("CycleLoss", "weight_b", weight_b)
        self.weight_a = weight_a
        self.weight_b = weight_b

    def forward(self, rec_a: Tensor, real_a: Tensor, rec_b: Tensor, real_b: Tensor) -> Tensor:
        """The loss of both reconstructions, a scalar."""
        return F.cycle_loss(rec_a, real_a, rec_b, real_b, weight_a=self.weight_a, weight_b=self.weight_b)

    def extra_repr(self) -> str:
        return f"weight_a={self.weight_a}, weight_b={self.weight_b}"


class GradientPenalty(nn.Module):
    r"""The gradient penalty of WGAN-GP: :func:`fastgan.functional.gradient_penalty`.

    The critic is an argument of the call, not a submodule: this module has no parameters and no state.

    Args:
        weight, target, one_sided, grad_scale, allow_batch_mixing: as there.
    """

    def __init__(
        self,
        weight: float = 10.0,
        target: float = 1.0,
        one_sided: bool = False,
        grad_scale: float = 1.0,
        allow_batch_mixing: bool = False,
    ) -> None:
        super().__init__()
        _check.number("GradientPenalty", "weight", weight)
        _check.number("GradientPenalty", "target", target, 0)
        _check.number("GradientPenalty", "grad_scale", grad_scale)
        if grad_scale <= 0:
            raise ValueError(f"GradientPenalty: grad_scale must be positive, got {grad_scale!r}")
        self.weight = weight
        self.target = target
        self.one_sided = one_sided
        self.grad_scale = grad_scale
        self.allow_batch_mixing = allow_batch_mixing

    def forward(
        self,
        critic: Critic,
        real: Tensor,
        fake: Tensor,
        alpha: Tensor | None = None,
        generator: torch.Generator | None = None,
        critic_args: Sequence[Any] = (),
    ) -> Tensor:
        """The weighted penalty, a scalar."""
        return F.gradient_penalty(
            critic,
            real,
            fake,
            weight=self.weight,
            target=self.target,
            one_sided=self.one_sided,
            alpha=alpha,
            generator=generator,
            grad_scale=self.grad_scale,
            allow_batch_mixing=self.allow_batch_mixing,
            critic_args=critic_args,
        )

    def extra_repr(self) -> str:
        return (
            f"weight={self.weight}, target={self.target}, one_sided={self.one_sided}, grad_scale={self.grad_scale}, "
            f"allow_batch_mixing={self.allow_batch_mixing}"
        )
