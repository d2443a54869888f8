"""Scores of images against their ground truth: L1, PSNR and SSIM."""

from __future__ import annotations

import torch
from torch import Tensor


def psnr(x: Tensor, y: Tensor, *, data_range: float = 2.0) -> Tensor:
    r"""Peak signal-to-noise ratio of each image, in dB: [N, C, H, W] twice → [N].

    .. math:: 10 \log_{10} \frac{R^2}{\mathrm{mean}(x - y)^2}

    with R = ``data_range``, 2 for values in [−1, 1]. Equal images score ∞.
    """
    _check("psnr", x, y, data_range)
    error = (x.double() - y.double()).square().mean((1, 2, 3))
    return (10 * torch.log10(data_range**2 / error)).to(torch.float32)


def ssim(x: Tensor, y: Tensor, *, data_range: float = 2.0, black: float | None = None) -> Tensor:
    r"""Structural similarity of each image, at most 1: [N, C, H, W] twice → [N].

    .. math:: \frac{(2 \mu_x \mu_y + c_1)(2 \sigma_{xy} + c_2)}
              {(\mu_x^2 + \mu_y^2 + c_1)(\sigma_x^2 + \sigma_y^2 + c_2)}

    averaged over channels and over all windows that lie within the image, Gaussian ones of 11 × 11 pixels with
    deviation 1.5; c₁ = (0.01 R)², c₂ = (0.03 R)², R = ``data_range`` (Wang et al. 2004, IEEE Trans. Image Process. 13).
    Means are those of intensities, 0 for black: ``black``, by default −1 for a ``data_range`` of 2 (values in [−1, 1])
    and 0 for any other, is subtracted first. Computed in float64, for variances are differences of squares.

    Raises:
        ValueError: tensors of different shapes, or less than 11 pixels high or wide.
    """
    _check("ssim", x, y, data_range)
    if min(x.shape[2:]) < 11:
        raise ValueError(f"ssim: images must have at least 11×11 pixels, the window's size, got {list(x.shape)}")
    channels = x.size(1)
    line = torch.exp(torch.arange(-5, 6, dtype=torch.float64, device=x.device).square() / (-2 * 1.5**2))
    line = (line / line.sum()).expand(channels, 1, 11)

    def blur(t: Tensor) -> Tensor:
        rows = torch.nn.functional.conv2d(t, line[:, :, None], groups=channels)
        return torch.nn.functional.conv2d(rows, line[..., None], groups=channels)

    if black is None:
        black = -1.0 if data_range == 2 else 0.0
    x, y = x.double() - black, y.double() - black
    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    return similarity.mean((1, 2, 3)).to(torch.float32)


class PairedScores:
    """Mean L1, PSNR and SSIM over batches of translated images and their ground truth.

    Each image counts the same, however the batches are cut. SSIM is left out for images below 11 pixels.
    """

    def __init__(self, *, data_range: float = 2.0) -> None:
        self.data_range = data_range
        self.count = 0
        self._sums: dict[str, float] = {}

    @torch.no_grad()
    def update(self, x: Tensor, y: Tensor) -> None:
        """Counts a batch in: x and y are [N, C, H, W]."""
        _check("PairedScores", x, y, self.data_range)
        scores = {"l1": (x.double() - y.double()).abs().mean((1, 2, 3)), "psnr": psnr(x, y, data_range=self.data_range)}
        if min(x.shape[2:]) >= 11:
            scores["ssim"] = ssim(x, y, data_range=self.data_range)
        for name, score in scores.items():
            self._sums[name] = self._sums.get(name, 0.0) + score.double().sum().item()
        self.count += len(x)

    def compute(self) -> dict[str, float]:
        """{"l1", "psnr", "ssim"}: means over all images so far."""
        if not self.count:
            raise ValueError("PairedScores: no image has been counted")
        return {name: total / self.count for name, total in self._sums.items()}


def _check(what: str, x: Tensor, y: Tensor, data_range: float) -> None:
    if x.shape != y.shape or x.dim() != 4:
        raise ValueError(f"{what}: x and y must be [N, C, H, W] of one shape, got {list(x.shape)} and {list(y.shape)}")
    if not data_range > 0:
        raise ValueError(f"{what}: data_range must be positive, got {data_range}")
    for image in (x, y):
        if data_range == 2 and not image.is_floating_point():
            raise TypeError(f"{what}: {image.dtype} images need their data_range (255 for bytes), got that of [−1, 1]")
