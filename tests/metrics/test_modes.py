"""Mode coverage on samples whose answer is known."""

from __future__ import annotations

import pytest
import torch

from fastgan.data.points import Points
from fastgan.metrics import mode_coverage


@pytest.mark.parametrize("name", ["8gaussians", "25gaussians"])
def test_real_samples_cover_every_mode(name):
    points = Points(name)
    modes, high_quality = mode_coverage(points.sample(5000), points.modes, points.deviation)
    assert modes == len(points.modes)
    assert high_quality == pytest.approx(1 - torch.tensor(-4.5).exp().item(), abs=0.01)  # within 3 σ in the plane


def test_counts_by_hand():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    samples = torch.tensor([[0.0, 0.0], [0.2, 0.2], [10.0, 2.9], [0.0, 6.9], [100.0, 0.0]])
    assert mode_coverage(samples, centres, 1.0) == (2, 0.6)
    assert mode_coverage(samples, centres, 1.0, within=0.1) == (1, 0.2)
    assert mode_coverage(samples, centres, 1.1) == (3, 0.8)
    assert mode_coverage(torch.full((4, 2), torch.nan), centres, 1.0) == (0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distances_far_from_the_origin(dtype):
    centres = 1e4 + 4.0 * torch.arange(30.0).unsqueeze(1).expand(30, 2)  # cdist decides by more than 25
    inside, outside = torch.tensor([0.25, 0.0]), torch.tensor([0.0, 0.5])
    samples = torch.cat([(centres + inside).repeat(3, 1), centres + outside])
    assert mode_coverage(samples.to(dtype), centres.to(dtype), 0.125) == (30, 0.75)


def test_errors():
    centres = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"samples must be \[N, d\].*got \[0, 2\]"):
        mode_coverage(torch.zeros(0, 2), centres, 1.0)
    with pytest.raises(ValueError, match=r"got \[4, 3\] and \[3, 2\]"):
        mode_coverage(torch.zeros(4, 3), centres, 1.0)
    with pytest.raises(ValueError, match="std must be positive, got 0"):
        mode_coverage(torch.zeros(4, 2), centres, 0.0)
