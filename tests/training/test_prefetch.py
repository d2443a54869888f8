"""Batches prepared ahead: the same ones, and states of those that were given out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastgan.data import DataError
from fastgan.training.loader import Loader
from fastgan.training.prefetch import Prefetcher
from tests.training.test_parts import Damaged, Indices

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def prefetcher(device: str, ahead: bool | None = True, placed: list[int] | None = None) -> Prefetcher:
    def place(batch: Tensor) -> dict[str, Tensor]:
        if placed is not None:
            placed.append(len(batch))
        return {"x": batch.to(device, non_blocking=True) * 2}

    loader = Loader(Indices(10), 4, seed=5, pin_memory=device == "cuda")
    return Prefetcher(loader, place, torch.device(device), ahead=ahead)


@pytest.mark.parametrize("device", DEVICES)
def test_prepared_batches_are_the_loaders_and_resume(device: str) -> None:
    plain = Loader(Indices(10), 4, seed=5)
    ours = prefetcher(device)
    states = []
    for k in range(8):
        expected, made = next(plain), next(ours)
        assert torch.equal(made["x"].cpu(), 2 * expected)
        if k % 3:  # not always asked to prepare
            ours.prepare()
            ours.prepare()
        assert (ours.epoch, ours.batch) == (plain.epoch, plain.batch)
        assert ours.state_dict() == plain.state_dict()
        states.append(ours.state_dict())
    for k in (1, 2, 4):
        ours.load_state_dict(states[k])
        again, fresh = Loader(Indices(10), 4, seed=5), prefetcher(device)
        again.load_state_dict(states[k])
        fresh.load_state_dict(states[k])
        expected = 2 * next(again)
        assert torch.equal(next(ours)["x"].cpu(), expected)
        assert torch.equal(next(fresh)["x"].cpu(), expected)


def test_what_is_wrong_with_a_batch_is_said_when_it_is_asked_for() -> None:
    """A step prepares the next batch when it has done its own work."""
    ours = Prefetcher(
        Loader(Damaged(4), 2, seed=0, shuffle=False), lambda batch: batch, torch.device("cpu"), ahead=True
    )
    next(ours)
    ours.prepare()
    assert ours.batch == 1
    with pytest.raises(DataError):
        next(ours)


def test_prepares_one_batch_and_only_on_a_gpu() -> None:
    placed: list[int] = []
    ours = prefetcher("cpu", placed=placed)
    for _ in range(3):
        ours.prepare()
    assert placed == [4]
    next(ours)
    assert placed == [4]
    lazy = prefetcher("cpu", None, placed)
    lazy.prepare()
    assert placed == [4]
