"""The fake device finds what it is there to find. Run with the plugin, by tests/test_fake_cuda.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "asks",
    [
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: torch.zeros(3).to("cuda"),
        lambda x: x.add_(torch.tensor([1.0, 2.0, 3.0], device="cuda")),
        lambda x: torch.zeros(3).copy_(x),
    ],
)  # fmt: skip
def test_what_waits_for_the_device_is_found(asks: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises(RuntimeError, match=r"waits for the device|nonzero"):
        asks(torch.ones(3, device="cuda"))


def test_what_does_not_wait_passes() -> None:
    weight = torch.nn.Linear(3, 3, device="cuda").weight
    x = torch.randn(2, 3).to("cuda", non_blocking=True)
    loss = torch.where(x > 0, x @ weight.mT, 1.0).square().mean()
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.device == weight.device == torch.device("cuda", 0)


def test_tensors_of_two_devices_do_not_meet() -> None:
    with pytest.raises(RuntimeError, match="two devices"):
        torch.ones(3, device="cuda") + torch.ones(3)


def test_a_recording_copies_nothing_from_the_host() -> None:
    with torch.cuda.graph(torch.cuda.CUDAGraph()), pytest.raises(RuntimeError, match="waits for the device"):
        torch.zeros(3).to("cuda", non_blocking=True)
