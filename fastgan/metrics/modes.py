"""How many modes of a mixture a generator has found, and how many of its samples lie on one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ModeCoverage(NamedTuple):
    """See :func:`mode_coverage`."""

    modes: int  # modes with at least one high-quality sample
    high_quality: float  # share of the samples that are near a mode, in [0, 1]


@torch.no_grad()
def mode_coverage(samples: Tensor, centres: Tensor, std: float, *, within: float = 3.0) -> ModeCoverage:
    """Covered modes and high-quality samples of a mixture of equal Gaussians.

    A sample is of high quality if it is within ``within`` standard deviations of the nearest centre; a mode is covered
    if a high-quality sample is nearest to it (Srivastava et al. 2017, arXiv:1705.07761, section 4.1).

    Args:
        samples: [N, d].
        centres: [K, d].
        std: standard deviation of each mode, in the samples' units.
        within: the radius in standard deviations.

    Raises:
        ValueError: shapes that do not fit, no samples, or a std that is not positive.
    """
    if samples.dim() != 2 or centres.dim() != 2 or samples.size(1) != centres.size(1) or 0 in samples.shape:
        raise ValueError(
            f"mode_coverage: samples must be [N, d] and centres [K, d], got {list(samples.shape)} and "
            f"{list(centres.shape)}"
        )
    if not std > 0:
        raise ValueError(f"mode_coverage: std must be positive, got {std}")
    # Not by |x|² + |c|² - 2 x·c, which torch.cdist prefers: far from 0, little would be left of a small distance.
    x, c = samples.double(), centres.to(samples.device).double()
    distance, nearest = torch.cdist(x, c, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    good = distance <= within * std
    return ModeCoverage(int(nearest[good].unique().numel()), float(good.double().mean()))
