"""CT-GAN: a consistency term beside the gradient penalty."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

import fastgan.functional as F
from fastgan._ranges import check_range
from fastgan.objectives.base import Critic, Defaults, Requirements, Terms, forward_features, per_sample
from fastgan.objectives.wgan import WassersteinPenalty


@dataclass(frozen=True, kw_only=True)
class ConsistencyTerm(WassersteinPenalty):
    r"""Wei et al. 2018 (CT-GAN), arXiv:1803.01541, equations 4 and 5: WGAN-GP and, on real data,

    .. math:: \lambda_2 E \max\big(0, d(D(x'), D(x'')) + 0.1\,d(D_{-}(x'), D_{-}(x'')) - M'\big)

    between two passes x', x'' with different dropout; D₋ is the last hidden layer, d the squared difference (the
    mean over features), as in the authors' code. λ₂ is ``consistency``, M' ``margin``: 2 and 0 there, the paper tries
    M' up to 0.2. (The code takes M' from λ₂ times the distance, the paper before the multiplication, as here.)
    """

    requires: ClassVar[Requirements] = Requirements(independent=True, features=True, dropout=True)

    defaults: ClassVar[Defaults] = replace(
        WassersteinPenalty.defaults, source="Wei et al. 2018, the authors' code (WGAN-GP's)"
    )

    consistency: float = 2.0
    margin: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("objectives: consistency", self.consistency, least=0)
        check_range("objectives: margin", self.margin, least=0)

    def critic_loss(
        self,
        critic: Critic,
        real: Tensor,
        fake: Tensor,
        *,
        generator: torch.Generator | None = None,
        alpha: Tensor | None = None,
    ) -> Terms:
        terms = super().critic_loss(critic, real, fake, generator=generator, alpha=alpha)
        (first, first_features), (second, second_features) = (forward_features(critic, real) for _ in range(2))
        terms["consistency"] = F.consistency_term(
            per_sample(first), per_sample(second), first_features, second_features,
            weight=self.consistency, margin=self.margin,
        )  # fmt: skip
        return terms
