"""Shared set-up of the tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import torch

if "FASTGAN_PTX" in os.environ:
    from tests.kernels import ptx_device

    ptx_device.install(int(os.environ["FASTGAN_PTX"]))
elif not torch.cuda.is_available():
    # Triton reads this when a kernel is defined, so it must be set before any kernel module is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    if "FASTGAN_PTX" in os.environ:
        ptx_device.forget()


@pytest.fixture
def float64() -> Iterator[None]:
    """Networks and batches are made in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(autouse=True)
def _heeded_signals() -> Iterator[None]:
    """A job in the background, or under nohup, ignores signals, as do the processes that it starts."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    ignored = [number for number in usual if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, usual[number])
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
