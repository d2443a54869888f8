"""Decoded images kept on a device, cropped and mirrored there.

A data set on the host draws where to crop and whether to mirror, cuts, scales to [−1, 1] and sends float32. Here it
sends what was drawn, four integers an image; the rest happens where the images are. Draws, and pixels to the last bit,
are those of the host's way, whatever the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastgan.data.images import SingleImageFolder, UnpairedImageFolder

Cache = Literal["auto", "on", "device", "off"]
"""Whether decoded images are kept: in memory, or on the device; see :func:`keeps` and :func:`on_device`."""


class ResidentImages:
    """The images of a folder on a device.

    ``sample(i, generator)`` is the int64 tensor [index, top, left, mirrored] that the folder's own ``sample`` would
    draw; :meth:`finish` makes images of such rows. Images must be cached by the folder, with 8 bits and of one size.

    Raises:
        ValueError: they are not; see :func:`obstacle`.
    """

    def __init__(self, folder: SingleImageFolder, device: torch.device | str) -> None:
        reason = obstacle(folder)
        if reason is not None:
            raise ValueError(f"cache cannot be device: {folder.folder}: {reason}")
        self.folder = folder
        self._pixels = torch.from_numpy(np.stack(folder.cached)).to(device)  # [images, H, W, C]
        # Values come from a table made on the host: arithmetic on another device could round otherwise.
        self._values = folder.preprocess.scale(torch.arange(256).float()).to(device)

    def __len__(self) -> int:
        return len(self.folder)

    def sample(self, index: int, generator: torch.Generator | None) -> Tensor:
        """What is drawn for image ``index``."""
        return self.folder.draw(index, generator)

    def finish(self, drawn: Tensor) -> Tensor:
        """int64 [N, 4] rows of :meth:`sample` → float32 [N, channels, H, W] in [−1, 1], on the device."""
        drawn = drawn.to(self._pixels.device, non_blocking=True)
        index, top, left, mirrored = (column[:, None] for column in drawn.unbind(1))  # [N, 1] each
        height, width = self.folder.preprocess.cropped(*self._pixels.shape[1:3])
        rows = top + torch.arange(height, device=drawn.device)
        columns = torch.arange(width, device=drawn.device)
        columns = left + torch.where(mirrored > 0, width - 1 - columns, columns)
        pixels = self._pixels[index[:, :, None], rows[:, :, None], columns[:, None, :]]  # [N, H, W, C]
        return self._values[pixels.permute(0, 3, 1, 2).int()].contiguous()


class ResidentPairs:
    """An :class:`UnpairedImageFolder` on a device: as :class:`ResidentImages`, with a dict {"A", "B"} of them."""

    def __init__(self, folders: UnpairedImageFolder, device: torch.device | str) -> None:
        self.folders = folders
        self._images = {"A": ResidentImages(folders.a, device), "B": ResidentImages(folders.b, device)}

    def __len__(self) -> int:
        return len(self.folders)

    def sample(self, index: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        """What is drawn for item ``index``."""
        return self.folders.draw(index, generator)

    def finish(self, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
        """Two images' worth of :meth:`ResidentImages.finish`."""
        return {name: images.finish(drawn[name]) for name, images in self._images.items()}


def obstacle(folder: SingleImageFolder) -> str | None:
    """Why a folder's images cannot be kept on a device, or None."""
    if not folder.cached:
        return "images are not cached"
    for i, image in enumerate(folder.cached):
        if image.dtype != "uint8":
            return f"{folder.name(i)} has 16 bits, and only images of 8 are kept there"
        if image.shape != folder.cached[0].shape:
            return f"images have different sizes ({folder.name(0)} and {folder.name(i)})"
    return None


def keeps(cache: Cache, images: int, channels: int, side: int) -> bool:
    """Whether so many decoded images of side × side pixels are to be kept in memory; ``auto``: if they surely take less
    than 2 GB. Grey ones may have 16 bits, and are float32 then."""
    if cache != "auto":
        return cache in ("on", "device")
    return images * side**2 * (4 if channels == 1 else channels) < 2 * 10**9


def on_device(cache: Cache, folders: Sequence[SingleImageFolder], device: torch.device) -> bool:
    """Whether the images of ``folders`` are to be kept on ``device``.

    That is: ``cache`` is ``device``, or ``auto``, where it is a GPU of whose memory they take less than a tenth.
    """
    if cache != "auto" or device.type != "cuda" or any(obstacle(folder) is not None for folder in folders):
        return cache == "device"
    size = sum(image.nbytes for folder in folders for image in folder.cached)
    return size * 10 < torch.cuda.get_device_properties(device).total_memory
