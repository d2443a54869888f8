"""Adversarial objectives: one table from name to objective.

objective = objectives.make("wgan-gp", weight=10.0)
terms = objective.critic_loss(critic, real, fake)      # {"real": …, "fake": …, "penalty": …}
sum(terms.values()).backward()
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from fastgan.objectives.base import Batch, CriticSchedule, Defaults, Objective, Requirements, Terms
from fastgan.objectives.ct_gan import ConsistencyTerm
from fastgan.objectives.dragan import RegretAnalytic
from fastgan.objectives.ebgan import EnergyBased
from fastgan.objectives.fgan import DIVERGENCES, FDivergence
from fastgan.objectives.gan import Minimax, NonSaturating
from fastgan.objectives.hinge import Hinge, SpectralNormHinge
from fastgan.objectives.loss_sensitive import LossSensitive
from fastgan.objectives.lsgan import LeastSquares
from fastgan.objectives.sliced import Sliced
from fastgan.objectives.wgan import Wasserstein, WassersteinOneSided, WassersteinPenalty

__all__ = ["OBJECTIVES", "Batch", "CriticSchedule", "Defaults", "Objective", "Requirements", "Terms", "make", "options"]

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "gan": Minimax,
    "non-saturating": NonSaturating,
    "lsgan": LeastSquares,
    "hinge": Hinge,
    "sngan": SpectralNormHinge,
    "wgan": Wasserstein,
    "wgan-gp": WassersteinPenalty,
    "wgan-gp-one-sided": WassersteinOneSided,
    "ct-gan": ConsistencyTerm,
    "dragan": RegretAnalytic,
    **{
        f"fgan-{name}": functools.partial(FDivergence, divergence=name, alternative=row.alternative)
        for name, row in DIVERGENCES.items()
    },
    "ebgan": EnergyBased,
    "loss-sensitive": LossSensitive,
    "sliced": Sliced,
}
"""Name to a callable that makes the objective from its hyper-parameters."""


def make(name: str, **hyper_parameters: Any) -> Objective:
    """The objective called ``name``, with the published hyper-parameters where none are given.

    Raises:
        ValueError: an unknown name or hyper-parameter, or a value out of its range; the message lists what there is.
        TypeError: a value of a wrong type.
    """
    known = options(name)
    for key, value in hyper_parameters.items():
        if key not in known:
            raise ValueError(f"objectives: {name!r} has no option {key!r}; it has {', '.join(known)}")
        if isinstance(known[key], bool) and not isinstance(value, bool):
            raise TypeError(f"objectives: {key} must be True or False, got {value!r}")
    return OBJECTIVES[name](**hyper_parameters)


def options(name: str) -> dict[str, Any]:
    """The hyper-parameters of the objective called ``name`` and their defaults."""
    if name not in OBJECTIVES:
        raise ValueError(f"objectives: name must be one of {', '.join(OBJECTIVES)}, got {name!r}")
    prototype = OBJECTIVES[name]()
    fixed = {"divergence", "batch"}
    return {f.name: getattr(prototype, f.name) for f in dataclasses.fields(prototype) if f.name not in fixed}
