"""Batches whose order and randomness are functions of the seed and the position alone.

So the position (epoch, batch) is all that a resumed run needs, and neither the number of worker processes nor
prefetching changes what is loaded.
"""

from __future__ import annotations

import atexit
import signal
import weakref
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from fastgan.data import DataError
from fastgan.training import distributed

_Key = tuple[int, int]  # index, seed


class Source(Protocol):
    """A data set: ``sample`` gives item ``index``, drawing whatever is random about it from ``generator``.

    None asks for the item without chance (central crop, no mirror).
    """

    def __len__(self) -> int: ...

    def sample(self, index: int, generator: torch.Generator | None) -> Any: ...


def too_large(batch_size: int, items: int) -> str:
    """What is wrong with batches of which the data do not fill one."""
    processes = f" of each of {distributed.size()} processes" if distributed.size() > 1 else ""
    return f"batch_size{processes} must be at most {items // distributed.size()} for {items} items, got {batch_size}"


class Loader:
    """Endless batches of ``source``, shuffled anew each epoch.

    Args:
        source: see :class:`Source`; items are collated as by ``torch.utils.data.default_collate``.
        batch_size: rows of one process. The joint batches of all processes cut the epoch's order into consecutive
            pieces; the last one is shorter, cut to a multiple of the number of processes.
        seed: of the order and of the items' randomness.
        shuffle: whether to shuffle; else items come in their order.
        drop_last: whether to leave out a last, shorter batch.
        workers: processes that load ahead; 0 loads in this one.
        pin_memory: pin batches for fast copies to a GPU.

    ``epoch`` counts the epochs that are complete; it rises when an epoch's last batch is taken.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = False,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        if len(source) == 0:
            raise ValueError("the data set is empty")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.source = source
        self._sampler = _Order(len(source), batch_size, seed, shuffle, drop_last)
        if self._sampler.batches_per_epoch == 0:
            raise ValueError(too_large(batch_size, len(source)))
        self.batch_size = batch_size
        self.epoch = 0
        self.batch = 0
        self._workers = workers
        self._pin_memory = pin_memory
        self._iterator: Iterator[Any] | None = None

    @property
    def batches_per_epoch(self) -> int:
        return self._sampler.batches_per_epoch

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Any:
        if self._iterator is None:
            self._sampler.start = (self.epoch, self.batch)
            self._iterator = iter(
                DataLoader(
                    _Items(self.source),
                    batch_sampler=self._sampler,
                    num_workers=self._workers,
                    pin_memory=self._pin_memory,
                    collate_fn=_collated,
                    worker_init_fn=_outlive_signals,
                    generator=torch.Generator(),  # else it draws from the global one
                )
            )
            atexit.register(_end_workers, weakref.ref(self._iterator))  # of a loader that nobody closes
        try:
            batch = next(self._iterator)
        except RuntimeError as error:  # of a worker's, the message is that of its whole stack
            if "shared memory" not in str(error):
                raise
            self.close()
            raise RuntimeError(
                "the processes that load images found too little shared memory (/dev/shm) for their batches: "
                "give them more (docker run --shm-size), or load in the main process (num_threads 0)"
            ) from error
        if isinstance(batch, DataError):
            self.close()  # who asks again is not given the batch behind it
            raise batch
        self.batch += 1
        if self.batch == self.batches_per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0
        return batch

    def close(self) -> None:
        """Ends the worker processes; the next batch starts them again."""
        if self._iterator is not None:
            _end_workers(weakref.ref(self._iterator))
        self._iterator = None

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "batch": self.batch, "batches_per_epoch": self.batches_per_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.close()
        self.epoch, self.batch = state["epoch"], state["batch"]
        if state["batches_per_epoch"] != self.batches_per_epoch:
            self.batch = 0  # the data, the batch or the processes changed, as the user allowed: begin the epoch again


class _Order(Sampler[list[_Key]]):
    def __init__(self, length: int, batch_size: int, seed: int, shuffle: bool, drop_last: bool) -> None:
        self.length, self.batch_size, self.seed, self.shuffle = length, batch_size, seed, shuffle
        self.start = (0, 0)
        self.processes, self.rank = distributed.size(), distributed.rank()
        joint = batch_size * self.processes
        full, rest = divmod(length, joint)
        self.batches_per_epoch = full + (0 if drop_last or rest < self.processes else 1)

    def __iter__(self) -> Iterator[list[_Key]]:
        epoch, batch = self.start
        while True:
            generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
            order = torch.randperm(self.length, generator=generator) if self.shuffle else torch.arange(self.length)
            indices = order.tolist()
            for k in range(batch, self.batches_per_epoch):
                joint = indices[k * self.batch_size * self.processes : (k + 1) * self.batch_size * self.processes]
                own = len(joint) // self.processes
                rows = joint[self.rank * own : (self.rank + 1) * own]
                yield [(index, _mix(self.seed, epoch, index)) for index in rows]
            epoch, batch = epoch + 1, 0


class _Items(Dataset[Any]):
    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, key: _Key) -> Any:
        index, seed = key
        try:
            return self.source.sample(index, torch.Generator().manual_seed(seed))
        except DataError as error:  # raised by the loader: of a worker's, the message would be that of its whole stack
            return error


def _collated(items: list[Any]) -> Any:
    """The batch of ``items``, or what was wrong with one of them."""
    return next((item for item in items if isinstance(item, DataError)), None) or default_collate(items)


def _mix(*numbers: int) -> int:
    """A seed from several numbers (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state ^ number) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1  # a positive int64


def _end_workers(iterator: weakref.ref[Iterator[Any]]) -> None:
    """Ends the worker processes of a loader, whoever still refers to its iterator (a traceback, say).

    An interpreter that ends sends each of them one SIGTERM, which they outlive, and waits.
    """
    end = getattr(iterator(), "_shutdown_workers", None)  # there is none without workers
    if end is not None:
        end()


def _outlive_signals(worker: int) -> None:
    """A signal to a group (Ctrl-C, a closed terminal, a scheduler's SIGTERM) reaches the workers, too, which the main
    process needs to finish its step: it ends them then, for which they heed the second SIGTERM."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
