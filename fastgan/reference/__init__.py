"""What every operator means, in plain PyTorch: the oracle of the tests, and the backend that serves everything."""

from fastgan.reference.gradient_penalty import gradient_norm_penalty
from fastgan.reference.instance_norm import instance_norm_act
from fastgan.reference.interpolate import interpolate
from fastgan.reference.l1 import weighted_l1
from fastgan.reference.wasserstein import wasserstein_1d

__all__ = ["gradient_norm_penalty", "instance_norm_act", "interpolate", "wasserstein_1d", "weighted_l1"]
