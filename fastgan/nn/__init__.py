"""The operators as modules, like ``torch.nn``, and :func:`fuse`, which puts them into an existing model."""

from fastgan.nn.fuse import FusionReport, fuse
from fastgan.nn.instance_norm import InstanceNormAct1d, InstanceNormAct2d, InstanceNormAct3d
from fastgan.nn.losses import CycleLoss, GradientPenalty
from fastgan.nn.wasserstein import SlicedWasserstein

__all__ = [
    "CycleLoss",
    "FusionReport",
    "GradientPenalty",
    "InstanceNormAct1d",
    "InstanceNormAct2d",
    "InstanceNormAct3d",
    "SlicedWasserstein",
    "fuse",
]
