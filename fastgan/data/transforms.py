"""Resizing, cropping and flipping, as CycleGAN's official code offers them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fastgan.data.decode import DataError

PREPROCESS = ("resize_and_crop", "crop", "scale_width", "scale_width_and_crop", "none")
Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
"""[H, W, C] with values in [0, 255]; float32 comes of 16-bit files and has one channel."""


@dataclass(frozen=True)
class Preprocess:
    """From a decoded picture to a tensor with values in [−1, 1]. Resizing is bicubic and antialiased.

    Args:
        mode: ``resize_and_crop``: to load_size × load_size, then a random crop of crop_size × crop_size;
            ``crop``: the crop alone;
            ``scale_width``: to a width of load_size, and a height that keeps the aspect but is at least crop_size;
            ``scale_width_and_crop``: that, then the crop;
            ``none``: as it is.
            Where no crop follows, sides become multiples of ``multiple``.
        load_size, crop_size: in pixels.
        flip: whether to mirror horizontally with probability ½.
        multiple: of which the networks need height and width to be: the generator's ``size_multiple``.
        least: height and width that the networks need: the generator's ``least_size``.

    It has two parts: :meth:`prepare` does what is the same each time, whose result can be kept, and :meth:`finish` what
    is drawn anew: crop and mirror.
    """

    mode: str = "resize_and_crop"
    load_size: int = 286
    crop_size: int = 256
    flip: bool = True
    multiple: int = 4
    least: int = 1

    def __post_init__(self) -> None:
        if self.mode not in PREPROCESS:
            raise ValueError(f"preprocess must be one of {', '.join(PREPROCESS)}, got {self.mode!r}")
        for name in ("load_size", "crop_size", "multiple", "least"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.crops and self.mode != "crop" and self.load_size < self.crop_size:
            raise ValueError(
                f"load_size must be at least crop_size with preprocess {self.mode}, "
                f"got load_size {self.load_size} < crop_size {self.crop_size}"
            )
        name, side = ("crop_size", self.crop_size) if self.crops else ("load_size", self.load_size)
        if self.mode != "none" and side % self.multiple:
            raise ValueError(f"{name} must be a multiple of {self.multiple}, which the generator needs, got {side}")

    @property
    def crops(self) -> bool:
        return "crop" in self.mode

    def for_testing(self) -> Preprocess:
        """The same without chance, as the official test options are: no mirror, and resized straight to crop_size."""
        load_size = self.crop_size if self.mode == "resize_and_crop" else self.load_size
        return replace(self, flip=False, load_size=load_size)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) after :meth:`prepare` of a picture of this size."""
        if self.mode == "resize_and_crop":
            return self.load_size, self.load_size
        if self.mode == "crop":
            return width, height
        if self.mode != "none":
            height = int(max(self.load_size * height / width, self.crop_size)) if width != self.load_size else height
            width, height = self.load_size, max(height, self.crop_size)
            if self.crops:
                return width, height
        m = self.multiple
        return max(round(width / m), 1) * m, max(round(height / m), 1) * m

    def check(self, width: int, height: int, path: Path) -> None:
        """Raises DataError if a picture of this size is smaller than the crop, or too small for the networks."""
        width, height = self.size(width, height)
        if not self.crops and min(width, height) < self.least:
            raise DataError(
                f"{path}: would be {width}×{height} pixels with preprocess {self.mode}, and the networks need "
                f"{self.least} a side at least; scale it up, or leave it out"
            )
        if self.crops and (width < self.crop_size or height < self.crop_size):
            raise DataError(
                f"{path}: is {width}×{height} pixels, smaller than the crop of {self.crop_size}×{self.crop_size}; "
                "use preprocess resize_and_crop or scale_width_and_crop, or a smaller crop_size"
            )

    def prepare(self, image: Image.Image) -> Pixels:
        """A decoded picture, resized: [H, W, C]."""
        size = self.size(*image.size)
        if image.size != size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8:
            pixels = pixels.clip(0, 255)  # bicubic interpolation overshoots; Pillow clips 8-bit pictures by itself
        return pixels if pixels.ndim == 3 else pixels[..., None]

    def cropped(self, height: int, width: int) -> tuple[int, int]:
        """The height and width of prepared pixels of these after the crop."""
        return (self.crop_size, self.crop_size) if self.crops else (height, width)

    def draw(self, height: int, width: int, generator: torch.Generator | None) -> tuple[int, int, bool]:
        """Where to crop prepared pixels, from the top and from the left, and whether to mirror them then.

        Without a generator the crop is central and nothing is mirrored.
        """
        h, w = self.cropped(height, width)
        if generator is None:
            return (height - h) // 2, (width - w) // 2, False
        top = left = 0
        if self.crops:
            top, left = _draw(height - h + 1, generator), _draw(width - w + 1, generator)
        return top, left, self.flip and bool(_draw(2, generator))

    @staticmethod
    def scale(values: Tensor) -> Tensor:
        """Values in [0, 255] → [−1, 1], in place."""
        return values.div_(255).sub_(0.5).div_(0.5)  # the official code's order: the same values to the bit

    def finish(self, pixels: Pixels, channels: int, generator: torch.Generator | None) -> Tensor:
        """Crop, mirror and scale prepared pixels as :meth:`draw` says: float32 [channels, H, W] in [−1, 1]."""
        height, width = pixels.shape[:2]
        top, left, mirrored = self.draw(height, width, generator)
        h, w = self.cropped(height, width)
        pixels = pixels[top : top + h, left : left + w]
        if mirrored:
            pixels = pixels[:, ::-1]
        x = self.scale(torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C")).float())
        if x.size(0) == channels:
            return x
        x = x.expand(min(channels, 3), -1, -1)  # 16-bit grey
        return torch.cat([x, torch.ones_like(x[:1])]) if channels == 4 else x.contiguous()


def _draw(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=generator))
