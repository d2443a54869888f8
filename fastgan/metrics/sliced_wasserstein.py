"""Sliced Wasserstein distance between local patches of two sets of images, level by level."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor

from fastgan.functional import _check
from fastgan.functional._autocast import without_autocast
from fastgan.functional.sliced_wasserstein import random_directions, sliced_wasserstein


class PatchDistances(NamedTuple):
    """Distances times 1000, from the finest level to the coarsest."""

    sizes: tuple[tuple[int, int], ...]  # height and width of each level
    distances: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.distances) / len(self.distances)


def sliced_wasserstein_patches(
    real: Tensor,
    fake: Tensor,
    *,
    min_size: int = 16,
    patches_per_image: int = 128,
    patch_size: int = 7,
    n_projections: int = 512,
    generator: torch.Generator | None = None,
) -> PatchDistances:
    """The Laplacian-pyramid sliced Wasserstein distance of Karras et al. 2018 (arXiv:1710.10196, section 5).

    Every level of an image's Laplacian pyramid holds one band of spatial frequencies. From each level of each image
    random patches are taken, each set's channels are normalised to mean 0 and standard deviation 1, and the sliced
    W_1 of the two sets of patches is reported, times 1000. Small at the coarse levels: alike in large structure; at the
    fine ones: alike in texture, edges and noise.

    Args:
        real: [N, C, H, W] images of any real dtype and range.
        fake: [M, C, H, W] images of the same size; N and M may differ.
        min_size: levels are halved while both sides stay at least this; the paper goes down to 16.
        patches_per_image: random patches of each level of each image.
        patch_size: their height and width in pixels.
        n_projections: random directions; the paper's 4 × 128.
        generator: draws patches and directions, on the CPU, the same for both sets. By default one that is seeded with
            0, so that a value can be compared with another.

    Returns:
        Sizes and distances of the levels, and their mean. Computed in float32, under autocast too, with no gradient.

    Raises:
        TypeError: images that are no tensors, or complex; a number that is no integer.
        ValueError: images of different sizes or channels, no images, or smaller than min_size or patch_size; a number
            of patches or projections, or a size, below 1.
    """
    name = "sliced_wasserstein_patches"
    for what, images in (("real", real), ("fake", fake)):
        _check.tensor(name, what, images)
        if images.is_complex():
            raise TypeError(f"{name}: {what} must be real, got {images.dtype}")
        if images.dim() != 4 or images.size(0) == 0:
            raise ValueError(f"{name}: {what} must be [N, C, H, W] with at least one image, got {list(images.shape)}")
    if real.shape[1:] != fake.shape[1:]:
        raise ValueError(
            f"{name}: real and fake must have the same [C, H, W], got {list(real.shape[1:])} and {list(fake.shape[1:])}"
        )
    for what, number in (
        ("min_size", min_size),
        ("patches_per_image", patches_per_image),
        ("patch_size", patch_size),
        ("n_projections", n_projections),
    ):
        _check.integer(name, what, number, 1)
    _check.generator(name, generator)
    least = max(min_size, patch_size, 3)
    if min(real.shape[2:]) < least:
        raise ValueError(f"{name}: images must be at least {least} × {least}, got {list(real.shape[2:])}")
    if generator is None:
        generator = torch.Generator("cpu").manual_seed(0)

    sizes, distances = [], []
    with torch.no_grad(), without_autocast(real.device.type):
        for real_band, fake_band in zip(_bands(real, least), _bands(fake, least), strict=True):
            a = _normalise(_patches(real_band, patches_per_image, patch_size, generator)).flatten(1)
            b = _normalise(_patches(fake_band, patches_per_image, patch_size, generator)).flatten(1)
            directions = random_directions(n_projections, a.cpu(), generator).to(a.device)
            distance = sliced_wasserstein(a, b, p=1.0, projections=directions)
            sizes.append((real_band.size(2), real_band.size(3)))
            distances.append(1000.0 * float(distance))
    return PatchDistances(tuple(sizes), tuple(distances))


def _bands(images: Tensor, least: int) -> list[Tensor]:
    """The Laplacian pyramid, finest level first; the last level is what is left of the image."""
    level, bands = images.float(), []
    while (min(level.shape[2:]) + 1) // 2 >= least:
        coarse = _halve(level)
        bands.append(level - _double(coarse, level.shape[2], level.shape[3]))
        level = coarse
    return [*bands, level]


def _halve(images: Tensor) -> Tensor:
    """Every second pixel of images under the 5 × 5 binomial filter (Burt and Adelson 1983), mirrored at the border."""
    for dim in (2, 3):
        sums = nnf.pad(images, (2, 2, 0, 0) if dim == 3 else (0, 0, 2, 2), mode="reflect")
        for _ in range(4):  # sums of neighbours, four times: 1, 4, 6, 4, 1
            sums = _neighbours(sums, dim)
        images = sums[(slice(None),) * dim + (slice(None, None, 2),)] / 16
    return images


def _double(images: Tensor, height: int, width: int) -> Tensor:
    """Four times the filtered image of these pixels and zeros between them: [N, C, height, width]."""
    for dim, size in ((2, height), (3, width)):
        n = images.size(dim)
        mirrored = n - 1 if size % 2 == 0 else n - 2
        sums = _neighbours(torch.cat([images.narrow(dim, i, m) for i, m in ((1, 1), (0, n), (mirrored, 1))], dim), dim)
        even = images / 2 + _neighbours(sums, dim) / 8  # 1, 6, 1
        odd = sums.narrow(dim, 1, n) / 2  # 4, 4
        images = torch.stack([even, odd], dim + 1).flatten(dim, dim + 1).narrow(dim, 0, size)
    return images


def _neighbours(images: Tensor, dim: int) -> Tensor:
    """Sums of pixels that are next to each other: one fewer."""
    n = images.size(dim) - 1
    return images.narrow(dim, 0, n) + images.narrow(dim, 1, n)


def _patches(images: Tensor, count: int, size: int, generator: torch.Generator) -> Tensor:
    """``count`` random patches of each image: [N * count, C, size, size]."""
    n, c, h, w = images.shape
    top, left = (
        torch.randint(side - size + 1, (n, count), generator=generator, device=generator.device).to(images.device)
        for side in (h, w)
    )
    window = torch.arange(size, device=images.device)
    rows = (top[..., None] + window)[:, :, None, :, None]
    columns = (left[..., None] + window)[:, :, None, None, :]
    image = torch.arange(n, device=images.device).view(n, 1, 1, 1, 1)
    channel = torch.arange(c, device=images.device).view(1, 1, c, 1, 1)
    return images[image, channel, rows, columns].flatten(0, 1)


def _normalise(patches: Tensor) -> Tensor:
    """Each channel to mean 0 and standard deviation 1 over all patches; a constant channel to 0."""
    dims = (0, 2, 3)
    patches = patches - patches.mean(dims, keepdim=True)
    deviation = patches.square().mean(dims, keepdim=True).sqrt()
    return patches / deviation.masked_fill(deviation == 0, 1.0)
