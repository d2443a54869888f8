"""Metrics of generated samples."""

from fastgan.metrics.inception import (
    MetricUnavailableError,
    frechet_inception_distance,
    inception_features,
    inception_score,
    inception_weights,
)
from fastgan.metrics.modes import ModeCoverage, mode_coverage
from fastgan.metrics.paired import PairedScores, psnr, ssim
from fastgan.metrics.sliced_wasserstein import PatchDistances, sliced_wasserstein_patches

__all__ = [
    "MetricUnavailableError",
    "ModeCoverage",
    "PairedScores",
    "PatchDistances",
    "frechet_inception_distance",
    "inception_features",
    "inception_score",
    "inception_weights",
    "mode_coverage",
    "psnr",
    "sliced_wasserstein_patches",
    "ssim",
]
