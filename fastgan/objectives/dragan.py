"""DRAGAN: a gradient penalty around real data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

import fastgan.functional as F
from fastgan._ranges import check_range
from fastgan.functional._piecewise import without_zero_gradients
from fastgan.objectives.base import Critic, Defaults, Requirements, Terms, differentiable_twice, draw_alpha
from fastgan.objectives.gan import NonSaturating


@dataclass(frozen=True, kw_only=True)
class RegretAnalytic(NonSaturating):
    r"""Kodali et al. 2017 (DRAGAN), arXiv:1705.07215, equation 1, as the authors' DRAGAN.ipynb computes it.

    :class:`NonSaturating` plus :math:`\lambda E (\|\nabla D(\hat x)\|_2 - 1)^2` at points
    :math:`\hat x = x + \alpha c\,\mathrm{std}(x)\,u`, with u uniform in [0, 1] for every element, α uniform in [0, 1]
    for every sample and std over the batch. λ is ``weight``, c is ``spread``. (The paper writes x + δ with a normal δ.)
    """

    requires: ClassVar[Requirements] = Requirements(output="logit", independent=True)
    defaults: ClassVar[Defaults] = Defaults(
        "Kodali et al. 2017, the authors' DRAGAN.ipynb",
        lr_critic=1e-4,
        lr_generator=1e-4,
        betas=(0.5, 0.9),
        batch_size=128,
    )

    weight: float = 10.0
    spread: float = 0.5
    grad_scale: float = 1.0
    """See :func:`fastgan.functional.gradient_penalty`; for float16 autocast."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("objectives: weight", self.weight, least=0)
        check_range("objectives: spread", self.spread, least=0)
        check_range("objectives: grad_scale", self.grad_scale, above=0)

    def critic_loss(
        self, critic: Critic, real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None
    ) -> Terms:
        terms = super().critic_loss(critic, real, fake)
        given: dict[str, Any] = {"generator": generator}
        if self.batch.size > 1:
            shape = (len(real) * self.batch.size, *real.shape[1:])
            noise = torch.rand(shape, dtype=real.dtype, device=real.device, generator=generator)
            given = {"noise": self.batch.own(noise), "alpha": draw_alpha(self.batch, real, generator)}
            given["std"] = self.batch.all(real).std(correction=0)
        with without_zero_gradients():
            terms["penalty"] = F.dragan_penalty(
                differentiable_twice(critic),
                real,
                weight=self.weight,
                c=self.spread,
                grad_scale=self.grad_scale,
                **given,
            )
        return terms
