"""The original game, and its non-saturating form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as nnf
from torch import Tensor

from fastgan._ranges import check_range
from fastgan.objectives.base import Classifier, Critic, Requirements, Terms, full


@dataclass(frozen=True, kw_only=True)
class Minimax(Classifier):
    r"""Goodfellow et al. 2014, arXiv:1406.2661, equation 1.

    .. math:: L_D = -E \log \sigma(D(x)) - E \log(1 - \sigma(D(y))), \qquad L_G = E \log(1 - \sigma(D(y)))

    computed from logits by softplus, :math:`-\log \sigma(v) = \mathrm{softplus}(-v)`, so that neither overflows. At
    the optimal critic :math:`-L_D = 2 JS(p, q) - \log 4`.

    ``real_label`` < 1 is one-sided label smoothing (Salimans et al. 2016, arXiv:1606.03498, section 3.4): the target
    of real samples, while that of fakes stays 0.
    """

    requires: ClassVar[Requirements] = Requirements(output="logit")

    real_label: float = 1.0

    def __post_init__(self) -> None:
        check_range("objectives: real_label", self.real_label, above=0.5, most=1)

    def critic_loss(
        self, critic: Critic, real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None
    ) -> Terms:
        on_real, on_fake = self._judge(critic, real, fake)
        positive = nnf.softplus(-on_real)
        if self.real_label < 1:  # -l log σ - (1-l) log(1-σ) = softplus(-v) + (1-l) v
            positive = positive + (1 - self.real_label) * on_real
        return {"real": positive.mean(), "fake": nnf.softplus(on_fake).mean()}

    def _generator_loss(self, critic: Critic, fake: Tensor) -> Terms:
        return {"adversarial": -nnf.softplus(full(critic(fake))).mean()}


@dataclass(frozen=True, kw_only=True)
class NonSaturating(Minimax):
    r"""Goodfellow et al. 2014, section 3: the generator minimises :math:`-E \log \sigma(D(y))`, whose gradient does
    not vanish where the critic is sure; the critic's loss is that of :class:`Minimax`."""

    def _generator_loss(self, critic: Critic, fake: Tensor) -> Terms:
        return {"adversarial": nnf.softplus(-full(critic(fake))).mean()}
