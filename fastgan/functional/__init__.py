"""The operators as functions, like ``torch.nn.functional``: ``import fastgan.functional as F``."""

from torch import fx

from fastgan.functional.consistency import consistency_term
from fastgan.functional.gradient_penalty import (
    dragan_penalty,
    gradient_norm_penalty,
    gradient_penalty,
    r1_penalty,
)
from fastgan.functional.instance_norm import instance_norm_act
from fastgan.functional.interpolate import interpolate
from fastgan.functional.l1 import cycle_loss, weighted_l1
from fastgan.functional.sliced_wasserstein import max_sliced_wasserstein, sliced_wasserstein
from fastgan.functional.wasserstein import wasserstein_1d, wasserstein_1d_plan, wasserstein_1d_potentials

__all__ = [
    "consistency_term",
    "cycle_loss",
    "dragan_penalty",
    "gradient_norm_penalty",
    "gradient_penalty",
    "instance_norm_act",
    "interpolate",
    "max_sliced_wasserstein",
    "r1_penalty",
    "sliced_wasserstein",
    "wasserstein_1d",
    "wasserstein_1d_plan",
    "wasserstein_1d_potentials",
    "weighted_l1",
]

for _name in __all__:
    fx.wrap(_name)  # a symbolic trace records F.name(...) as one call
