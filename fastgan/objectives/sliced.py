"""A generator without a critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import fastgan.functional as F
from fastgan._ranges import check_range
from fastgan.objectives.base import Critic, Defaults, Objective, Requirements, Terms


@dataclass(frozen=True, kw_only=True)
class Sliced(Objective):
    r"""Deshpande et al. 2018, arXiv:1803.11188, section 3: no critic, the generator minimises a distance.

    .. math:: L_G = SW_p^p = E_\theta W_p^p(\theta^T x, \theta^T y)

    over ``n_projections`` random directions of the flattened samples: the squared sliced Wasserstein-2 distance for
    p = 2. Each one-dimensional distance is exact. The gradient is unbiased in θ, so that few directions a step do: 128
    here, 10,000 in the authors' code.
    """

    requires: ClassVar[Requirements] = Requirements(output="none", real=True)
    defaults: ClassVar[Defaults] = Defaults(
        "Deshpande et al. 2018, the authors' swg.py", lr_critic=0.0, lr_generator=1e-4, batch_size=64
    )

    n_projections: int = 128
    p: float = 2.0

    def __post_init__(self) -> None:
        check_range("objectives: n_projections", self.n_projections, least=1)
        if not isinstance(self.n_projections, int):
            raise TypeError(f"objectives: n_projections must be an integer, got {self.n_projections!r}")
        check_range("objectives: p", self.p, least=1)

    def critic_loss(
        self, critic: Critic, real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None
    ) -> Terms:
        return {}

    def generator_loss(
        self, critic: Critic, real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None
    ) -> Terms:
        distance = F.sliced_wasserstein(
            self.batch.all(real).flatten(1),
            self.batch.all(fake).flatten(1),
            n_projections=self.n_projections,
            p=self.p,
            generator=generator,
        )
        return {"sliced_wasserstein": distance**self.p}
