"""The operators as modules, like ``torch.nn``; fuse() and use_cpu_convolutions() put them into a model."""

from fastgan.nn.columns import use_columns
from fastgan.nn.convolutions import use_cpu_convolutions
from fastgan.nn.fuse import FusionReport, fuse
from fastgan.nn.instance_norm import InstanceNormAct1d, InstanceNormAct2d, InstanceNormAct3d
from fastgan.nn.losses import CycleLoss, GradientPenalty
from fastgan.nn.strided import use_strided
from fastgan.nn.wasserstein import SlicedWasserstein
from fastgan.nn.winograd import use_winograd

__all__ = [
    "CycleLoss",
    "FusionReport",
    "GradientPenalty",
    "InstanceNormAct1d",
    "InstanceNormAct2d",
    "InstanceNormAct3d",
    "SlicedWasserstein",
    "fuse",
    "use_columns",
    "use_cpu_convolutions",
    "use_strided",
    "use_winograd",
]
