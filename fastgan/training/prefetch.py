"""Batches on the device one step ahead of their use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from fastgan.data import DataError
from fastgan.training.loader import Loader


class Prefetcher:
    """A loader whose batches are placed on the device.

    :meth:`prepare`, called when a step is launched, takes the next batch from the loader and has it copied on a stream
    of its own, while the device still computes. ``epoch``, ``batch`` and the state are those of the batches that were
    given out; one that is only prepared is loaded again after a restart.

    Args:
        loader: of batches on the host, pinned for a GPU.
        place: brings a batch to the device without waiting for it.
        device: where to.
        ahead: whether to prepare at all; by default on a GPU.
    """

    def __init__(
        self, loader: Loader, place: Callable[[Any], Any], device: torch.device, *, ahead: bool | None = None
    ) -> None:
        self.loader = loader
        self._place = place
        self._device = device
        self._ahead = device.type == "cuda" if ahead is None else ahead
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._prepared: tuple[Any, dict[str, Any]] | None = None  # a batch, and the loader's state before it

    def __next__(self) -> Any:
        if self._prepared is None:
            return self._place(next(self.loader))
        (batch, _), self._prepared = self._prepared, None
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for tensor in tree_leaves(batch):
                if isinstance(tensor, torch.Tensor) and tensor.is_cuda:
                    tensor.record_stream(current)
        return batch

    def prepare(self) -> None:
        """Begins to bring the next batch."""
        if not self._ahead or self._prepared is not None:
            return
        before = self.loader.state_dict()
        try:
            host = next(self.loader)
        except DataError:  # raised again when it is asked for, by a step that has not begun then
            return
        if self._stream is None:
            self._prepared = self._place(host), before
            return
        with torch.cuda.stream(self._stream):
            self._prepared = self._place(host), before

    @property
    def epoch(self) -> int:
        return int(self.state_dict()["epoch"])

    @property
    def batch(self) -> int:
        return int(self.state_dict()["batch"])

    @property
    def batches_per_epoch(self) -> int:
        return self.loader.batches_per_epoch

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict() if self._prepared is None else self._prepared[1]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._prepared = None
        self.loader.load_state_dict(state)

    def close(self) -> None:
        """Ends the loader's processes."""
        self.loader.close()
