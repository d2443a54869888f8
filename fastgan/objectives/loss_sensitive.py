"""The loss-sensitive GAN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastgan._ranges import check_range
from fastgan.objectives.base import Critic, Defaults, Objective, Requirements, Terms, full, per_sample


@dataclass(frozen=True, kw_only=True)
class LossSensitive(Objective):
    r"""Qi 2017, arXiv:1701.06264, section 3, as the author's lsgan.lua computes it.

    The critic is a loss function, low on real data, and real samples should be better than generated ones by a margin
    that grows with their distance:

    .. math:: L_D = \gamma E D(x) + E \max\big(0, \tau \|x - y\|_1 + D(x) - D(y)\big), \qquad L_G = E D(y)

    over pairs (x_i, y_i) of the batch. Divided by γ, it is the paper's with λ = 1/γ. The defaults of τ
    (``margin``) and γ (``real_weight``) are those of the author's code, for 64-pixel colour images; τ = 1 suits
    points in the plane.
    """

    requires: ClassVar[Requirements] = Requirements(output="score")
    defaults: ClassVar[Defaults] = Defaults("Qi 2017, the author's lsgan.lua", lr_critic=1e-4, lr_generator=1e-4)
    toy: ClassVar[dict[str, Any]] = {"margin": 1.0}

    margin: float = 2e-4
    real_weight: float = 0.0

    def __post_init__(self) -> None:
        check_range("objectives: margin", self.margin, least=0)
        check_range("objectives: real_weight", self.real_weight, least=0)

    def critic_loss(
        self, critic: Critic, real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None
    ) -> Terms:
        if real.shape != fake.shape:
            raise ValueError(
                f"objectives: loss-sensitive compares real and fake in pairs; their shapes must be equal, got "
                f"{list(real.shape)} and {list(fake.shape)}"
            )
        on_real, on_fake = self._judge(critic, real, fake)
        distance = full(real - fake).abs().flatten(1).sum(1)
        hinge = (self.margin * distance + per_sample(on_real) - per_sample(on_fake)).relu().mean()
        return {"margin": hinge, "real": self.real_weight * on_real.mean()} if self.real_weight else {"margin": hinge}

    def generator_loss(
        self, critic: Critic, real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None
    ) -> Terms:
        return {"adversarial": full(critic(fake)).mean()}
