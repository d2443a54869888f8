r"""f-GAN: every f-divergence by its variational bound.

Nowozin et al. 2016, arXiv:1606.00709. With T = g_f(D), g_f the output activation onto the domain of the convex
conjugate f*, equations 6 and 7:

.. math:: D_f(p, q) = \int q f(p/q) \ge F = E\,T(x) - E f^*(T(y)), \qquad L_D = -F, \qquad L_G = -E f^*(T(y))

with equality at :math:`T^* = f'(p/q)`. The paper's tables 1, 2 and 6, and the composition :math:`f^*(g_f(v))` as it
is computed here, so that no logarithm meets an exponential:

============ ============================ ===================== ======================= =====================
divergence   f(u)                         g_f(v)                f*(t)                   f*(g_f(v))
============ ============================ ===================== ======================= =====================
kl           u log u                      v                     exp(t − 1)              exp(v − 1)
reverse-kl   −log u                       −exp(−v)              −1 − log(−t)            v − 1
pearson      (u − 1)²                     v                     t²/4 + t                v²/4 + v
hellinger    (√u − 1)²                    1 − exp(−v)           t / (1 − t)             exp(v) − 1
js           u log u − (u+1) log((u+1)/2) log 2 − softplus(−v)  −log(2 − exp t)         softplus(v) − log 2
gan          u log u − (u+1) log(u+1)     −softplus(−v)         −log(1 − exp t)         softplus(v)
============ ============================ ===================== ======================= =====================

These f give KL(p‖q), KL(q‖p), ∫(p−q)²/q, ∫(√p−√q)², twice the Jensen–Shannon divergence, and twice that − log 4.

f* of Pearson's χ² is that of f on the whole line, as in the paper.

**Stability.** exp is continued by its tangent above 10: :math:`e^{10} (1 + v - 10)`. The loss is exact for every
output up to there (a density ratio of 22,000); beyond, it stays convex and its gradient stays within float16.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor

from fastgan.objectives.base import DCGAN, Critic, Defaults, Objective, Terms, full

_LARGEST = 10.0


class Divergence(NamedTuple):
    """One row of the table: both functions act on the critic's output v."""

    activation: Callable[[Tensor], Tensor]
    """g_f(v)"""
    conjugate: Callable[[Tensor], Tensor]
    """f*(g_f(v))"""
    alternative: bool = False
    """Whether the generator takes the alternative loss of section 3.2 unless told otherwise."""
    grad_clip: float | None = None
    """The critic's, see :class:`Defaults`; the paper recommends it and names no number."""


def _exp(v: Tensor) -> Tensor:
    """exp, continued by its tangent above 10."""
    below = v.clamp(max=_LARGEST)
    return below.exp() * (1 + (v - below))


DIVERGENCES: dict[str, Divergence] = {
    "kl": Divergence(lambda v: v, lambda v: _exp(v - 1), alternative=True, grad_clip=1.0),
    "reverse-kl": Divergence(lambda v: -_exp(-v), lambda v: v - 1, grad_clip=1.0),
    "pearson": Divergence(lambda v: v, lambda v: v.square() / 4 + v, alternative=True),
    "hellinger": Divergence(lambda v: 1 - _exp(-v), lambda v: _exp(v) - 1, grad_clip=1.0),
    "js": Divergence(lambda v: math.log(2) - nnf.softplus(-v), lambda v: nnf.softplus(v) - math.log(2)),
    "gan": Divergence(lambda v: -nnf.softplus(-v), lambda v: nnf.softplus(v)),
}


@dataclass(frozen=True, kw_only=True)
class FDivergence(Objective):
    r"""Nowozin et al. 2016, equation 7; the module's docstring has the table.

    With ``alternative`` the generator minimises :math:`-E\,g_f(D(y))` instead, the paper's counterpart of the
    non-saturating loss (section 3.2), which has the same stationary points. It is the default where :math:`-E f^*` is
    unsound: for ``fgan-kl`` its gradient weights every sample by :math:`e^{D(y) - 1}`, the critic's estimate of p/q, so
    that samples far from the data get none and the few that the critic rates highest get all; for ``fgan-pearson`` the
    weight is D(y)/2 + 1, which drives samples below −2 away from the data. (For the reverse KL divergence it is the
    alternative that has exponential weights, :math:`e^{-D(y)}`.)

    Where the critic's loss has an exponential, its gradient is clipped, as section 3.2 recommends: one sample that is
    magnified would otherwise fill Adam's second moments, stop the critic for hundreds of steps and let the generator
    run away from it.
    """

    defaults: ClassVar[Defaults] = replace(
        DCGAN, source="Radford et al. 2015 (DCGAN), whose networks Nowozin et al. 2016 train with Adam in section 4"
    )

    divergence: str
    alternative: bool = False

    def __post_init__(self) -> None:
        if self.divergence not in DIVERGENCES:
            raise ValueError(f"objectives: divergence must be one of {', '.join(DIVERGENCES)}, got {self.divergence!r}")

    def settings(self, architecture: str, toy: bool, large: bool = False) -> Defaults:
        return replace(self.defaults, grad_clip=DIVERGENCES[self.divergence].grad_clip)

    def critic_loss(
        self, critic: Critic, real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None
    ) -> Terms:
        activation, conjugate, *_ = DIVERGENCES[self.divergence]
        on_real, on_fake = self._judge(critic, real, fake)
        return {"real": -activation(on_real).mean(), "fake": conjugate(on_fake).mean()}

    def generator_loss(
        self, critic: Critic, real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None
    ) -> Terms:
        activation, conjugate, *_ = DIVERGENCES[self.divergence]
        output = full(critic(fake))
        return {"adversarial": -(activation(output) if self.alternative else conjugate(output)).mean()}
