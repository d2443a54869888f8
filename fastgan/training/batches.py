"""Endless real batches of the GAN trainer: fresh points, a tensor in memory, a folder of images.

Each is a function of the seed and the position alone, so that its state is small and a resumed run sees what an
uninterrupted one would. Processes share the joint batch, see :mod:`fastgan.training.distributed`.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from fastgan.data.points import Points
from fastgan.data.resident import ResidentImages
from fastgan.data.tensors import ImageTensor
from fastgan.training import distributed
from fastgan.training.loader import Loader, Source, too_large
from fastgan.training.prefetch import Prefetcher
from fastgan.training.random import Generator


class Batches(Protocol):
    """Endless real batches [N, *sample_shape]."""

    @property
    def epoch(self) -> int: ...

    def __next__(self) -> Tensor: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> None: ...

    def prepare(self) -> None:
        """Begins to bring the next batch to the device, where that takes time."""
        return

    def close(self) -> None:
        """Ends loader processes, where there are any."""
        return


class Fresh(Batches):
    """Every batch is drawn anew from a distribution in the plane. There are no epochs."""

    epoch = 0

    def __init__(self, points: Points, batch_size: int, seed: int, device: torch.device) -> None:
        self._points = points
        self._joint = batch_size * distributed.size()
        self._random = Generator(seed, device)

    def __next__(self) -> Tensor:
        return distributed.own_rows(self._points.sample(self._joint, generator=self._random.generator))

    def state_dict(self) -> dict[str, Any]:
        return self._random.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._random.load_state_dict(state)


class Shuffled(Batches):
    """Batches of images in memory, kept on ``device``; a new order each epoch, its last, short batch left out. Mirrors
    and noise are drawn for the joint batch."""

    epoch = 0

    def __init__(self, images: ImageTensor, batch_size: int, seed: int, device: torch.device) -> None:
        self._joint = batch_size * distributed.size()
        if len(images) < self._joint:
            raise ValueError(too_large(batch_size, len(images)))
        self._images, self._pixels = images, images.pixels.to(device)
        self._seed = seed
        self._random = Generator(seed, device)
        self._position = 0
        self._order: Tensor | None = None

    def __next__(self) -> Tensor:
        if self._order is None:
            generator = torch.Generator().manual_seed(self._seed + 7919 * self.epoch)
            self._order = torch.randperm(len(self._pixels), generator=generator).to(
                self._pixels.device, non_blocking=True
            )
        rows = self._order[self._position : self._position + self._joint]
        self._position += self._joint
        if self._position + self._joint > len(self._pixels):
            self.epoch, self._position, self._order = self.epoch + 1, 0, None
        drawn = self._images.draw(len(rows), self._random.generator)
        own = {name: distributed.own_rows(value) for name, value in drawn.items()}
        return self._images.apply(self._pixels[distributed.own_rows(rows)], own)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self._position, "random": self._random.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self._position, self._order = state["epoch"], state["position"], None
        if self._position + self._joint > len(self._pixels):  # of smaller batches: what is left is none of ours
            self.epoch, self._position = self.epoch + 1, 0
        if "random" in state:  # a checkpoint of before there were mirrors and noise has none
            self._random.load_state_dict(state["random"])


def loaded(
    source: Source | ResidentImages, batch_size: int, seed: int, device: torch.device, *, workers: int
) -> Prefetcher:
    """Batches of a data set that is read item by item, by worker processes, or of images that are kept on the device;
    short batches are left out."""
    kept = source.finish if isinstance(source, ResidentImages) else None
    loader = Loader(
        source,
        batch_size,
        seed=seed,
        drop_last=True,
        workers=workers if kept is None else 0,
        pin_memory=device.type == "cuda",
    )
    return Prefetcher(loader, kept or (lambda batch: batch.to(device, non_blocking=True)), device)
