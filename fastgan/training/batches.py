"""Endless real batches of the GAN trainer: fresh points, a tensor in memory, a folder of images.

Each is a function of the seed and the position alone, so that its state is small and a resumed run sees what an
uninterrupted one would. Processes share the joint batch, see :mod:`fastgan.training.distributed`.
"""

from __future__ import annotations

from functools import partial
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

    def close(self) -> None: ...


class Fresh:
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

    def prepare(self) -> None:
        pass

    def close(self) -> None:
        pass


class Shuffled:
    """Batches of images in memory, kept on ``device``; a new order each epoch, its last, short batch left out."""

    def __init__(self, images: ImageTensor, batch_size: int, seed: int, device: torch.device) -> None:
        self._joint = batch_size * distributed.size()
        if len(images) < self._joint:
            raise ValueError(too_large(batch_size, len(images)))
        self._pixels, self._top = images.pixels.to(device), images.top
        self._seed = seed
        self.epoch = 0
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
        pixels = self._pixels[distributed.own_rows(rows)]
        return pixels.float() * (2 / self._top) - 1

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self._position, self._order = state["epoch"], state["position"], None

    def prepare(self) -> None:
        pass

    def close(self) -> None:
        pass


class Loaded:
    """Batches of a data set that is read item by item, by worker processes, or of images that are kept on the device;
    short batches are left out."""

    def __init__(
        self, source: Source | ResidentImages, batch_size: int, seed: int, device: torch.device, *, workers: int
    ) -> None:
        kept = source.finish if isinstance(source, ResidentImages) else None
        loader = Loader(
            source,
            batch_size,
            seed=seed,
            drop_last=True,
            workers=workers if kept is None else 0,
            pin_memory=device.type == "cuda",
        )
        self._loader = Prefetcher(loader, kept or partial(_to, device=device), device)

    @property
    def epoch(self) -> int:
        return self._loader.epoch

    def __next__(self) -> Tensor:
        batch: Tensor = next(self._loader)
        return batch

    def state_dict(self) -> dict[str, Any]:
        return self._loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loader.load_state_dict(state)

    def prepare(self) -> None:
        self._loader.prepare()

    def close(self) -> None:
        self._loader.close()


def _to(batch: Tensor, device: torch.device) -> Tensor:
    return batch.to(device, non_blocking=True)
