"""Metrics of generated samples."""

from fastgan.metrics.modes import ModeCoverage, mode_coverage
from fastgan.metrics.sliced_wasserstein import PatchDistances, sliced_wasserstein_patches

__all__ = ["ModeCoverage", "PatchDistances", "mode_coverage", "sliced_wasserstein_patches"]
