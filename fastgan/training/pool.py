"""The image pool of CycleGAN (Shrivastava et al. 2017, arXiv:1612.07828, section 2.3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgan.training import distributed


class ImagePool:
    """A history of generated images, so that a discriminator does not forget what the generator used to make.

    ``query`` takes the images of a batch one by one. While the pool is filling, an image is stored and returned.
    Then, with probability 1/2, the image is returned; otherwise a random stored image is returned and the new one
    takes its place. Images stay on their device; decisions are drawn on the host, so nothing waits for the device.
    Several processes hold the same pool, fed with the joint batch.

    Args:
        size: images to hold; 0 returns every image as it is.
        seed: of the decisions.
    """

    def __init__(self, size: int = 50, seed: int = 0) -> None:
        if size < 0:
            raise ValueError(f"pool_size must be at least 0, got {size}")
        self.size = size
        self._generator = torch.Generator().manual_seed(seed)
        self._images: list[Tensor] = []

    def query(self, images: Tensor) -> Tensor:
        """[N, C, H, W] → as many images, new or from the pool; detached."""
        if self.size == 0:
            return images.detach()
        drawn = [self._exchange(image) for image in distributed.joint_rows(images)]
        return distributed.own_rows(torch.stack(drawn)).to(memory_format=_format(images))

    def _exchange(self, image: Tensor) -> Tensor:
        if len(self._images) < self.size:
            self._images.append(image.clone())
            return image
        if float(torch.rand((), generator=self._generator, dtype=torch.float64)) <= 0.5:
            return image
        slot = int(torch.randint(self.size, (), generator=self._generator))
        stored = self._images[slot].to(image)
        self._images[slot] = image.clone()
        return stored

    def state_dict(self) -> dict[str, Any]:
        return {"images": list(self._images), "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._images = state["images"][: self.size]
        self._generator.set_state(state["generator"])


def _format(images: Tensor) -> torch.memory_format:
    if images.is_contiguous() or not images.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last
