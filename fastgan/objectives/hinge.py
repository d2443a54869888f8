"""The hinge loss, alone and with spectral normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastgan.objectives.base import Classifier, Critic, CriticSchedule, Defaults, Requirements, Terms, full


@dataclass(frozen=True, kw_only=True)
class Hinge(Classifier):
    r"""Lim & Ye 2017, arXiv:1705.02894; Miyato et al. 2018, equations 16 and 17.

    .. math:: L_D = E \max(0, 1 - D(x)) + E \max(0, 1 + D(y)), \qquad L_G = -E D(y)

    Where the critic is optimal, :math:`L_D = 2 - 2\,TV(p, q)` with the total variation in [0, 1].
    """

    defaults: ClassVar[Defaults] = Defaults(
        "Zhang et al. 2018 (SAGAN), section 4 and their code",
        lr_critic=4e-4,
        lr_generator=1e-4,
        betas=(0.0, 0.9),
        batch_size=256,
    )

    def critic_loss(
        self, critic: Critic, real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None
    ) -> Terms:
        on_real, on_fake = self._judge(critic, real, fake)
        return {"real": (1 - on_real).relu().mean(), "fake": (1 + on_fake).relu().mean()}

    def _generator_loss(self, critic: Critic, fake: Tensor) -> Terms:
        return {"adversarial": -full(critic(fake)).mean()}


@dataclass(frozen=True, kw_only=True)
class SpectralNormHinge(Hinge):
    """Miyato et al. 2018 (SN-GAN), arXiv:1802.05957: :class:`Hinge` with a spectral norm (their equation 8) on every
    layer of the critic, which the critic must bring (``torch.nn.utils.parametrizations.spectral_norm``)."""

    requires: ClassVar[Requirements] = Requirements(spectral_norm=True)
    defaults: ClassVar[Defaults] = Defaults(
        "Miyato et al. 2018, section 4.1", betas=(0.0, 0.9), schedule=CriticSchedule(n=5)
    )
