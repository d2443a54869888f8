"""The operators as modules, like ``torch.nn``."""

from fastgan.nn.losses import CycleLoss, GradientPenalty

__all__ = ["CycleLoss", "GradientPenalty"]
