"""The Wasserstein family: clipping, two-sided and one-sided gradient penalty."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

import fastgan.functional as F
from fastgan._ranges import check_range
from fastgan.functional._piecewise import without_zero_gradients
from fastgan.objectives.base import (
    Critic,
    CriticSchedule,
    Defaults,
    Objective,
    Requirements,
    Terms,
    differentiable_twice,
    draw_alpha,
    full,
)


@dataclass(frozen=True, kw_only=True)
class Wasserstein(Objective):
    r"""Arjovsky et al. 2017, arXiv:1701.07875, equation 2 and algorithm 1.

    .. math:: L_D = E D(y) - E D(x), \qquad L_G = -E D(y)

    over critics made Lipschitz by clamping their weights to ±``defaults.clip`` before each critic step (the trainer
    does that). :math:`-L_D` is the Kantorovich–Rubinstein estimate of :math:`W_1(p, q)`, up to the Lipschitz
    constant.
    """

    defaults: ClassVar[Defaults] = Defaults(
        "Arjovsky et al. 2017, algorithm 1 and their main.py",
        optimizer="rmsprop",
        lr_critic=5e-5,
        lr_generator=5e-5,
        schedule=CriticSchedule(n=5, boosted=100, first=25, every=500),
        clip=0.01,
    )

    def critic_loss(
        self, critic: Critic, real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None
    ) -> Terms:
        on_real, on_fake = self._judge(critic, real, fake)
        return {"real": -on_real.mean(), "fake": on_fake.mean()}

    def generator_loss(
        self, critic: Critic, real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None
    ) -> Terms:
        return {"adversarial": -full(critic(fake)).mean()}


@dataclass(frozen=True, kw_only=True)
class WassersteinPenalty(Wasserstein):
    r"""Gulrajani et al. 2017 (WGAN-GP), arXiv:1704.00028, equation 3 and algorithm 1.

    :class:`Wasserstein` without clipping, plus :math:`\lambda E (\|\nabla D(\hat x)\|_2 - 1)^2` on
    :math:`\hat x = \alpha x + (1 - \alpha) y`, one α in [0, 1] for each sample, the norm over all of a sample's
    dimensions. λ is ``weight``: 10 for images, 0.1 for the paper's toys.
    """

    requires: ClassVar[Requirements] = Requirements(independent=True)
    defaults: ClassVar[Defaults] = Defaults(
        "Gulrajani et al. 2017, algorithm 1",
        lr_critic=1e-4,
        lr_generator=1e-4,
        betas=(0.0, 0.9),
        schedule=CriticSchedule(n=5),
    )
    toy: ClassVar[dict[str, Any]] = {"weight": 0.1}
    one_sided: ClassVar[bool] = False

    weight: float = 10.0
    grad_scale: float = 1.0
    """See :func:`fastgan.functional.gradient_penalty`; for float16 autocast."""

    def __post_init__(self) -> None:
        check_range("objectives: weight", self.weight, least=0)
        check_range("objectives: grad_scale", self.grad_scale, above=0)

    def settings(self, architecture: str, toy: bool, large: bool = False) -> Defaults:
        if toy:  # the authors' toy code
            return replace(self.defaults, betas=(0.5, 0.9), batch_size=256)
        if architecture == "wgan-gp":  # their CIFAR-10 code
            return replace(self.defaults, betas=(0.5, 0.9))
        if architecture == "resnet" and not large:  # appendix F and gan_cifar_resnet.py; gan_64x64.py has algorithm 1's
            return replace(self.defaults, lr_critic=2e-4, lr_generator=2e-4, decay="linear")
        return self.defaults

    def draw(self, real: Tensor, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        return {"alpha": draw_alpha(self.batch, real, generator)}

    def critic_loss(
        self,
        critic: Critic,
        real: Tensor,
        fake: Tensor,
        *,
        generator: torch.Generator | None = None,
        alpha: Tensor | None = None,
    ) -> Terms:
        """As :meth:`Objective.critic_loss`; ``alpha`` [N] gives the penalty's points, which are drawn otherwise."""
        terms = super().critic_loss(critic, real, fake)
        if alpha is None and self.batch.size > 1:  # one process leaves it to the kernel to draw the same α
            alpha = draw_alpha(self.batch, real, generator)
        with without_zero_gradients():
            terms["penalty"] = F.gradient_penalty(
                differentiable_twice(critic), real, fake, weight=self.weight, one_sided=self.one_sided, alpha=alpha,
                generator=generator if alpha is None else None, grad_scale=self.grad_scale,
            )  # fmt: skip
        return terms


@dataclass(frozen=True, kw_only=True)
class WassersteinOneSided(WassersteinPenalty):
    r"""Gulrajani et al. 2017, section 4 ("Two-sided penalty"), and Petzka et al. 2018 (WGAN-LP), arXiv:1709.08894:
    only a norm above 1 is penalised, :math:`\lambda E \max(0, \|\nabla D(\hat x)\|_2 - 1)^2`."""

    one_sided: ClassVar[bool] = True
