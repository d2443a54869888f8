"""Metrics of generated samples."""

from fastgan.metrics.sliced_wasserstein import PatchDistances, sliced_wasserstein_patches

__all__ = ["PatchDistances", "sliced_wasserstein_patches"]
