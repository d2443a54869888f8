"""L1, PSNR and SSIM against torchmetrics and closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from fastgan.metrics import PairedScores, psnr, ssim


@pytest.fixture
def images():
    x = torch.rand(5, 3, 17, 24) * 2 - 1
    return x, (x + 0.3 * torch.randn_like(x)).clamp(-1, 1)


def test_scores_match_torchmetrics(images):
    functional = pytest.importorskip("torchmetrics.functional.image")
    x, y = images
    for i in range(len(x)):
        a, b = x[i : i + 1], y[i : i + 1]
        # torchmetrics also averages over windows that reach past the border; the paper does not.
        _, full = functional.structural_similarity_index_measure(
            (a.double() + 1) * 127.5, (b.double() + 1) * 127.5, data_range=255.0, return_full_image=True
        )
        expected = full[..., 5:-5, 5:-5].mean()
        torch.testing.assert_close(ssim(x, y)[i].double(), expected, atol=1e-6, rtol=0)
        for black, scale in ((0.0, 255.0), (-10.0, 100.0)):
            own = ssim(*(black + (t + 1) / 2 * scale for t in images), data_range=scale, black=black or None)
            torch.testing.assert_close(own[i].double(), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(psnr(x, y)[i], functional.peak_signal_noise_ratio(a, b, data_range=2.0))


def test_ssim_of_flat_images_is_the_luminance_term():
    x, y = torch.full((1, 1, 12, 11), 0.5), torch.full((1, 1, 12, 11), -0.25)
    c1 = 0.02**2
    expected = (2 * 1.5 * 0.75 + c1) / (1.5**2 + 0.75**2 + c1)
    assert math.isclose(ssim(x, y).item(), expected, rel_tol=1e-5)
    assert ssim(x, x).item() == 1
    assert psnr(x, x).item() == math.inf
    assert math.isclose(psnr(x, y).item(), 10 * math.log10(4 / 0.75**2), rel_tol=1e-6)


def test_ssim_of_bright_low_contrast_images_is_accurate():
    """Variances as differences of squares lose all digits in float32 here."""
    x = 200 + 1e-2 * torch.randn(1, 1, 16, 16)
    assert abs(ssim(x, x.clone(), data_range=1e-3).item() - 1) < 1e-6


def test_scores_are_means_over_images_however_batched(images):
    x, y = images
    whole, parts = PairedScores(), PairedScores()
    whole.update(x, y)
    for i, j in ((0, 1), (1, 5)):
        parts.update(x[i:j], y[i:j])
    for name, value in whole.compute().items():
        assert math.isclose(value, parts.compute()[name], rel_tol=1e-6), name
    assert math.isclose(whole.compute()["l1"], (x - y).abs().mean().item(), rel_tol=1e-5)
    assert math.isclose(whole.compute()["ssim"], ssim(x, y).mean().item(), rel_tol=1e-6)
    small = PairedScores()
    small.update(x[..., :8, :8], y[..., :8, :8])
    assert set(small.compute()) == {"l1", "psnr"}


def test_errors(images):
    x, y = images
    with pytest.raises(ValueError, match=r"ssim: x and y must be \[N, C, H, W\] of one shape, got \[5, 3, 17"):
        ssim(x, y[:2])
    with pytest.raises(ValueError, match=r"at least 11×11 pixels.*\[5, 3, 10, 24\]"):
        ssim(x[:, :, :10], y[:, :, :10])
    with pytest.raises(ValueError, match=r"data_range must be positive, got 0"):
        psnr(x, y, data_range=0)
    with pytest.raises(TypeError, match=r"torch.uint8 images need their data_range \(255 for bytes\)"):
        psnr(x.byte(), y.byte())
    with pytest.raises(ValueError, match="no image has been counted"):
        PairedScores().compute()
