"""The energy-based GAN."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as nnf
from torch import Tensor

from fastgan._ranges import check_range
from fastgan.objectives.base import DCGAN, Critic, Defaults, Objective, Requirements, Terms, forward_features, full


@dataclass(frozen=True, kw_only=True)
class EnergyBased(Objective):
    r"""Zhao et al. 2016 (EBGAN), arXiv:1609.03126, equations 1 and 2, and section 2.4.

    .. math:: L_D = E D(x) + E \max(0, m - D(y)), \qquad L_G = E D(y) + w\,PT(S)

    with D the reconstruction error of an autoencoder. PT is the pulling-away term of the batch's codes S, the mean
    squared cosine between any two of them, against collapse (their EBGAN-PT, with w = 0.1).

    The margin m is in units of D. The paper's D is the norm of the error (equation 13), with a margin of 10 for MNIST;
    the critics of :mod:`fastgan.models` give the mean squared error over a sample's elements, with values in [-1, 1],
    for which 1 is the error of a blank picture of black and white pixels. On points, whose deviation is 1, 0.3 leaves
    fewer modes out.
    """

    requires: ClassVar[Requirements] = Requirements(output="energy", features=True)
    defaults: ClassVar[Defaults] = replace(
        DCGAN, source="Radford et al. 2015 (DCGAN), with which Zhao et al. 2016 compare in section 4.3"
    )
    toy: ClassVar[dict[str, Any]] = {"margin": 0.3}

    margin: float = 1.0
    pulling_away: float = 0.1

    def __post_init__(self) -> None:
        check_range("objectives: margin", self.margin, above=0)
        check_range("objectives: pulling_away", self.pulling_away, least=0)

    def settings(self, architecture: str, toy: bool, large: bool = False) -> Defaults:
        if architecture == "mlp":
            source = "Zhao et al. 2016, section 4.1; betas and batch of DCGAN"
            return replace(self.defaults, source=source, lr_critic=1e-3, lr_generator=1e-3)
        return self.defaults

    def critic_loss(
        self, critic: Critic, real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None
    ) -> Terms:
        on_real, on_fake = self._judge(critic, real, fake)
        return {"real": on_real.mean(), "fake": (self.margin - on_fake).relu().mean()}

    def generator_loss(
        self, critic: Critic, real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None
    ) -> Terms:
        if not self.pulling_away:
            return {"adversarial": full(critic(fake)).mean()}
        energy, code = forward_features(critic, fake)
        pulling = self.pulling_away * pulling_away(self.batch.all(full(code)))
        return {"adversarial": full(energy).mean(), "pulling_away": pulling}


def pulling_away(code: Tensor) -> Tensor:
    r"""The pulling-away term (Zhao et al. 2016, section 2.4; equation 14 of its first version), in [0, 1].

    .. math:: PT(S) = \frac{1}{N (N-1)} \sum_i \sum_{j \ne i} \Big(\frac{S_i^T S_j}{\|S_i\| \|S_j\|}\Big)^2

    ``code`` is [N, F]. A row of zeros is orthogonal to every other; 0 for N = 1.
    """
    n = len(code)
    with torch.autocast(code.device.type, enabled=False):
        direction = nnf.normalize(code, dim=1)
        squares = (direction @ direction.T).square()
    return (squares.sum() - squares.diagonal().sum()) / max(n * (n - 1), 1)
