"""The operators as functions, like ``torch.nn.functional``: ``import fastgan.functional as F``."""

from fastgan.functional.instance_norm import instance_norm_act

__all__ = ["instance_norm_act"]
