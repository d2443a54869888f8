"""The real samples of a run: points, digits, MNIST, CIFAR-10, a folder of images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fastgan.data import DataError, points, tensors
from fastgan.data.decode import list_images
from fastgan.data.images import SingleImageFolder
from fastgan.data.points import Points
from fastgan.data.resident import ResidentImages, keeps, on_device
from fastgan.data.tensors import ImageTensor
from fastgan.data.transforms import Preprocess
from fastgan.training.batches import Batches, Fresh, Shuffled, loaded
from fastgan.training.gan.config import DATA, GanConfig, sample_shape


class RealData:
    """The real samples that ``config.data`` names.

    Raises:
        ValueError, DataError: no such data, or settings that do not fit it.
    """

    def __init__(self, config: GanConfig) -> None:
        self.shape = sample_shape(config)
        kind, _, folder = config.data.partition(":")
        self.points = Points(kind) if kind in points.NAMES else None
        self._images: ImageTensor | SingleImageFolder | None = None
        if kind == "digits":
            self._images = tensors.digits(dequantize=config.dequantize)
        elif kind == "mnist":
            self._images = tensors.mnist(folder, size=self.shape[-1], dequantize=config.dequantize)
        elif kind == "cifar10":
            self._images = tensors.cifar10(folder, flip=config.flip, dequantize=config.dequantize)
        elif self.points is None:
            if not Path(config.data).is_dir():
                raise DataError(f"data must be {DATA}, and there is no folder {config.data!r}")
            side = self.shape[-1]
            preprocess = Preprocess(load_size=side, crop_size=side, flip=config.flip, multiple=1)
            cache = keeps(config.cache, len(list_images(Path(config.data))), config.channels, side)
            self._images = SingleImageFolder(config.data, preprocess, channels=config.channels, cache=cache)

    @property
    def facts(self) -> dict[str, int]:
        """What a run must not be continued without."""
        return {} if self._images is None else {"images": len(self._images)}

    def batches(self, batch_size: int, config: GanConfig, device: torch.device) -> Batches:
        """Endless batches for training."""
        if self.points is not None:
            return Fresh(self.points, batch_size, config.seed, device)
        assert self._images is not None
        if isinstance(self._images, ImageTensor):
            return Shuffled(self._images, batch_size, config.seed, device)
        kept = on_device(config.cache, [self._images], device)
        source = ResidentImages(self._images, device) if kept else self._images
        return loaded(source, batch_size, config.seed, device, workers=config.num_threads)

    def draw(self, n: int, seed: int) -> Tensor:
        """n real samples (fewer if there are no more), the same for the same seed, on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        if self.points is not None:
            return self.points.sample(n, generator=generator)
        assert self._images is not None
        chosen = torch.randperm(len(self._images), generator=generator)[:n]
        return torch.stack([self._images[i] for i in chosen.tolist()])
