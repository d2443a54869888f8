"""The operators as functions, like ``torch.nn.functional``: ``import fastgan.functional as F``."""

from fastgan.functional.gradient_penalty import (
    consistency_term,
    dragan_penalty,
    gradient_norm_penalty,
    gradient_penalty,
    r1_penalty,
)
from fastgan.functional.instance_norm import instance_norm_act
from fastgan.functional.interpolate import interpolate
from fastgan.functional.l1 import cycle_loss, weighted_l1

__all__ = [
    "consistency_term",
    "cycle_loss",
    "dragan_penalty",
    "gradient_norm_penalty",
    "gradient_penalty",
    "instance_norm_act",
    "interpolate",
    "r1_penalty",
    "weighted_l1",
]
