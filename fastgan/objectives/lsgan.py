"""Least squares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastgan._ranges import check_range
from fastgan.objectives.base import Classifier, Critic, Defaults, Requirements, Terms, full


@dataclass(frozen=True, kw_only=True)
class LeastSquares(Classifier):
    r"""Mao et al. 2016, arXiv:1611.04076, equation 9 (a = 0, b = c = 1).

    .. math:: L_D = \tfrac12 E (D(x) - 1)^2 + \tfrac12 E D(y)^2, \qquad L_G = \tfrac12 E (D(y) - 1)^2

    At the optimal critic :math:`D = p / (p + q)`. ``real_label`` < 1 smooths the target of real samples for the
    critic (Salimans et al. 2016, section 3.4).
    """

    requires: ClassVar[Requirements] = Requirements(output="score")
    defaults: ClassVar[Defaults] = Defaults("Mao et al. 2016, the authors' code for DCGAN's networks")

    real_label: float = 1.0

    def __post_init__(self) -> None:
        check_range("objectives: real_label", self.real_label, above=0.5, most=1)

    def critic_loss(
        self, critic: Critic, real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None
    ) -> Terms:
        on_real, on_fake = self._judge(critic, real, fake)
        return {"real": 0.5 * (on_real - self.real_label).square().mean(), "fake": 0.5 * on_fake.square().mean()}

    def _generator_loss(self, critic: Critic, fake: Tensor) -> Terms:
        return {"adversarial": 0.5 * (full(critic(fake)) - 1).square().mean()}
