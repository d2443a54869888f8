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

    A query has two parts: :meth:`decide` draws, and :meth:`exchange` moves images as it says.

    Args:
        size: images to hold; 0 returns every image as it is.
        seed: of the decisions.
    """

    def __init__(self, size: int = 50, seed: int = 0) -> None:
        if size < 0:
            raise ValueError(f"pool_size must be at least 0, got {size}")
        self.size = size
        self._generator = torch.Generator().manual_seed(seed)
        self._held = 0  # by the decisions drawn so far
        self._images: list[Tensor] = []

    def query(self, images: Tensor) -> Tensor:
        """[N, C, H, W] → as many images, new or from the pool; detached."""
        return self.exchange(images, self.decide(len(images)))

    def decide(self, count: int) -> Tensor:
        """What happens to the next ``count`` images of every process: int64 [2, joint count], on the CPU.

        Row 0 says what to return: s < size is the image that is in slot s before this query, size + i is image i of
        the joint batch. Row 1 says in which slot to store the image; ``size`` is nowhere.
        """
        count *= distributed.size()
        sources, targets = [self.size + i for i in range(count)], [self.size] * count
        stored: dict[int, int] = {}  # which image of this batch is in a slot now
        for i in range(count if self.size else 0):
            if self._held < self.size:
                slot, self._held = self._held, self._held + 1
            elif float(torch.rand((), generator=self._generator, dtype=torch.float64)) <= 0.5:
                continue
            else:
                slot = int(torch.randint(self.size, (), generator=self._generator))
                sources[i] = self.size + stored[slot] if slot in stored else slot
            if slot in stored:
                targets[stored[slot]] = self.size
            targets[i], stored[slot] = slot, i
        return torch.tensor([sources, targets])

    def exchange(self, images: Tensor, decisions: Tensor) -> Tensor:
        """Does with ``images`` what :meth:`decide` drew."""
        if self.size == 0:
            return images.detach()
        rows = distributed.joint_rows(images)
        sources, targets = decisions.tolist()
        drawn = [self._images[s].to(images) if s < self.size else rows[s - self.size] for s in sources]
        made = distributed.own_rows(torch.stack(drawn)).to(memory_format=_format(images))
        self._images += [rows.new_empty(0)] * (self._held - len(self._images))
        for row, slot in zip(rows, targets, strict=True):
            if slot < self.size:
                self._images[slot] = row.clone()
        return made

    def state_dict(self) -> dict[str, Any]:
        return {"images": list(self._images), "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._images = state["images"][: self.size]
        self._held = len(self._images)
        self._generator.set_state(state["generator"])


class StaticPool(ImagePool):
    """An :class:`ImagePool` in one block of memory, whose exchange a CUDA graph can hold: ``decisions`` are read on the
    images' device. It is for one process and images of one size; what it returns and saves is the same."""

    def __init__(self, size: int = 50, seed: int = 0) -> None:
        super().__init__(size, seed)
        self._block: Tensor | None = None  # [size + 1, C, H, W]; the last is for images that are not kept

    def exchange(self, images: Tensor, decisions: Tensor) -> Tensor:
        images = images.detach()
        if self.size == 0:
            return images
        if self._block is None:
            self._block = torch.zeros_like(images[:1].expand(self.size + 1, -1, -1, -1), memory_format=_format(images))
            for slot, image in enumerate(self._images):
                self._block[slot].copy_(image)
            self._images.clear()
        sources, targets = decisions
        old = self._block.index_select(0, sources.clamp(max=self.size))
        new = images.index_select(0, (sources - self.size).clamp(min=0))
        made = torch.where((sources < self.size).view(-1, 1, 1, 1), old.to(new.dtype), new)
        self._block.index_copy_(0, targets, images.to(self._block.dtype))
        return made.to(memory_format=_format(images))

    def state_dict(self) -> dict[str, Any]:
        images = self._images if self._block is None else list(self._block[: self._held])
        return {"images": images, "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._block = None


def _format(images: Tensor) -> torch.memory_format:
    if images.is_contiguous() or not images.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last
