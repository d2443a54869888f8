"""Image pool, schedules, loader, averages, sheets."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgan.data import DataError
from fastgan.training import distributed, schedule, sheet
from fastgan.training.ema import Ema
from fastgan.training.loader import Loader
from fastgan.training.pool import ImagePool
from fastgan.training.precision import Amp, Precision, Switch
from fastgan.training.random import Generator
from fastgan.training.watch import Bad, Meter, not_finite

# --- image pool ---------------------------------------------------------------------------------------------------


def published_pool(batches: list[Tensor], size: int, seed: int) -> list[Tensor]:
    """The published rule, with decisions in the published order: a coin, then a slot if it says swap."""
    generator = torch.Generator().manual_seed(seed)
    stored: list[Tensor] = []
    results = []
    for batch in batches:
        out = []
        for image in batch:
            if len(stored) < size:
                stored.append(image)
                out.append(image)
            elif torch.rand((), generator=generator, dtype=torch.float64) > 0.5:
                slot = int(torch.randint(0, size, (), generator=generator))
                out.append(stored[slot])
                stored[slot] = image
            else:
                out.append(image)
        results.append(torch.stack(out))
    return results


@pytest.mark.parametrize(("size", "batch"), [(3, 1), (5, 4), (50, 2)])
def test_pool_follows_the_published_rule(size: int, batch: int) -> None:
    batches = [torch.randn(batch, 1, 2, 2) for _ in range(40)]
    pool = ImagePool(size, seed=7)
    got = [pool.query(b) for b in batches]
    for a, b in zip(got, published_pool(batches, size, 7), strict=True):
        assert torch.equal(a, b)
    swapped = sum(not torch.equal(a, b) for a, b in zip(got, batches, strict=True))
    assert swapped > 0 or size == 50
    assert all(torch.equal(a, b) for a, b in list(zip(got, batches, strict=True))[: size // batch])


def test_pool_swaps_half_the_time() -> None:
    pool = ImagePool(10, seed=0)
    swaps = sum(float(pool.query(torch.full((1, 1, 1, 1), float(i)))) != i for i in range(2010))
    assert abs(swaps / 2000 - 0.5) < 0.04


def test_pool_of_zero_returns_the_images() -> None:
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    assert torch.equal(ImagePool(0).query(x), x)
    assert not ImagePool(0).query(x).requires_grad


def test_pool_keeps_no_graph_and_no_alias() -> None:
    pool = ImagePool(2, seed=0)
    x = torch.randn(2, 3, 4, 4, requires_grad=True).to(memory_format=torch.channels_last)
    y = pool.query(x)
    assert not y.requires_grad
    assert y.is_contiguous(memory_format=torch.channels_last)
    held = [image.clone() for image in pool.state_dict()["images"]]
    with torch.no_grad():
        x.zero_()
        y.zero_()
    assert all(torch.equal(a, b) for a, b in zip(held, pool.state_dict()["images"], strict=True))


def test_pool_state() -> None:
    batches = [torch.randn(2, 1, 2, 2) for _ in range(30)]
    pool = ImagePool(4, seed=1)
    for b in batches[:10]:
        pool.query(b)
    saved = copy.deepcopy(pool.state_dict())
    expected = [pool.query(b) for b in batches[10:]]
    again = ImagePool(4, seed=99)
    again.load_state_dict(saved)
    assert all(torch.equal(again.query(b), e) for b, e in zip(batches[10:], expected, strict=True))


# --- schedules ----------------------------------------------------------------------------------------------------


def rates(policy: str, epochs: int, metrics: list[float] | None = None, **settings: int) -> list[float]:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter], lr=2e-4)
    made = schedule.make(optimizer, policy, **settings)  # type: ignore[arg-type]
    result = []
    for epoch in range(epochs):
        result.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step(*([metrics[epoch]] if metrics else []))
    return result


def test_linear_is_the_official_formula() -> None:
    got = rates("linear", 201, n_epochs=100, n_epochs_decay=100)
    expected = [2e-4 * (1.0 - max(0, epoch + 1 - 100) / 101.0) for epoch in range(201)]
    assert got == pytest.approx(expected, rel=1e-12, abs=1e-18)
    assert got[99] == 2e-4
    assert got[100] < 2e-4
    assert got[200] == pytest.approx(0.0, abs=1e-18)


def test_linear_continues_at_epoch_count() -> None:
    assert rates("linear", 5, n_epochs=4, n_epochs_decay=4, epoch_count=3) == pytest.approx(
        rates("linear", 7, n_epochs=4, n_epochs_decay=4)[2:]
    )


def test_step_and_cosine() -> None:
    assert rates("step", 7, lr_decay_iters=3) == pytest.approx([2e-4] * 3 + [2e-5] * 3 + [2e-6])
    got = rates("cosine", 11, n_epochs=10)
    assert got[0] == 2e-4
    assert got[5] == pytest.approx(1e-4)
    assert got[10] == pytest.approx(0.0, abs=1e-15)


def test_plateau_looks_at_its_metric() -> None:
    falling = [1.0 * 0.9**i for i in range(12)]
    assert rates("plateau", 12, falling) == [2e-4] * 12
    assert rates("plateau", 9, [1.0] * 9) == pytest.approx([2e-4] * 7 + [4e-5] * 2)


def test_linear_stays_at_zero() -> None:
    assert rates("linear", 9, n_epochs=2, n_epochs_decay=3)[4:] == pytest.approx([5e-5, 0, 0, 0, 0], abs=1e-18)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            {"policy": "linear", "n_epochs": 2, "n_epochs_decay": 9},
            {"policy": "linear", "n_epochs": 1, "n_epochs_decay": 6},
        ),
        ({"policy": "step", "lr_decay_iters": 50}, {"policy": "step", "lr_decay_iters": 2}),
        ({"policy": "cosine", "n_epochs": 4}, {"policy": "cosine", "n_epochs": 20}),
        ({"policy": "step", "lr_decay_iters": 2}, {"policy": "linear", "n_epochs": 1, "n_epochs_decay": 6}),
        ({"policy": "plateau"}, {"policy": "linear", "n_epochs": 1, "n_epochs_decay": 6}),
        ({"policy": "linear"}, {"policy": "cosine", "n_epochs": 20}),
        ({"policy": "plateau"}, {"policy": "step", "lr_decay_iters": 2}),
    ],
)
def test_a_changed_schedule_goes_on_as_if_it_had_been_there_all_along(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    def made(settings: dict[str, Any]) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=2e-4)
        return optimizer, schedule.make(optimizer, **settings)

    def epochs(optimizer: torch.optim.Optimizer, own: Any, count: int) -> list[float]:
        found = []
        for _ in range(count):
            optimizer.step()
            schedule.advance(own, 0.0)
            found.append(optimizer.param_groups[0]["lr"])
        return found

    old, new, whole = made(before), made(after), made(after)
    epochs(*old, 3)
    expected = epochs(*whole, 8)
    schedule.load(new[1], old[1].state_dict(), keep_settings=True)
    assert [new[0].param_groups[0]["lr"], *epochs(*new, 5)] == pytest.approx(expected[2:], rel=1e-9)


def test_unknown_policy() -> None:
    with pytest.raises(ValueError, match="lr_policy must be linear, step, cosine or plateau, got 'cosin'"):
        rates("cosin", 1)


# --- loader -------------------------------------------------------------------------------------------------------


class Indices:
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int, generator: torch.Generator) -> Tensor:
        return torch.tensor([index, int(torch.randint(1000, (), generator=generator))])


class Damaged(Indices):
    def sample(self, index: int, generator: torch.Generator) -> Tensor:
        if index == 2:
            raise DataError("picture.png: not a readable image")
        return super().sample(index, generator)


class Crowded(Indices):
    def sample(self, index: int, generator: torch.Generator) -> Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device")


def take(loader: Loader, n: int) -> list[list[list[int]]]:
    return [next(loader).tolist() for _ in range(n)]


def test_loader_visits_every_item_once_an_epoch_in_a_new_order() -> None:
    loader = Loader(Indices(10), 4, seed=0)
    assert loader.batches_per_epoch == 3
    epochs = []
    for epoch in range(3):
        assert loader.epoch == epoch
        rows = [row for batch in take(loader, 3) for row in batch]
        assert sorted(i for i, _ in rows) == list(range(10))
        epochs.append(rows)
    assert loader.epoch == 3
    assert epochs[0] != epochs[1] != epochs[2]
    assert len({noise for rows in epochs for _, noise in rows}) > 20


def test_loader_position_is_all_it_needs() -> None:
    whole = take(Loader(Indices(10), 4, seed=5), 8)
    for n in range(7):
        first = Loader(Indices(10), 4, seed=5)
        take(first, n)
        second = Loader(Indices(10), 4, seed=5)
        second.load_state_dict(first.state_dict())
        assert take(second, 8 - n) == whole[n:]
    assert take(Loader(Indices(10), 4, seed=6), 8) != whole


def test_loader_in_order_and_without_the_rest() -> None:
    loader = Loader(Indices(5), 2, seed=0, shuffle=False, drop_last=True)
    assert [[i for i, _ in batch] for batch in take(loader, 3)] == [[0, 1], [2, 3], [0, 1]]


def test_loader_processes_outlive_signals_to_their_group() -> None:
    others = set(multiprocessing.active_children())
    loader = Loader(Indices(10), 4, seed=5, workers=2)
    batches = take(loader, 2)  # one of each
    for worker in set(multiprocessing.active_children()) - others:
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            os.kill(worker.pid, number)
    batches += take(loader, 10)
    assert batches == take(Loader(Indices(10), 4, seed=5), 12)
    loader.close()
    assert set(multiprocessing.active_children()) <= others


@pytest.mark.parametrize("end", ["", "raise ValueError"])
def test_a_script_that_closes_no_loader_ends(end: str) -> None:
    """Its workers outlive one SIGTERM, and the interpreter waits for them."""
    script = (
        "from tests.training.test_parts import *\nloader = Loader(Indices(5), 2, seed=0, workers=1)\nnext(loader)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(
        [sys.executable, "-c", script + end], capture_output=True, text=True, env=environment, timeout=300
    )
    assert ended.returncode == bool(end), ended.stderr


def test_loader_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    take(Loader(Indices(5), 2, seed=0), 4)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_wrong_with_data_is_said_without_a_worker_s_stack(workers: int) -> None:
    loader = Loader(Damaged(4), 2, seed=0, shuffle=False, workers=workers)
    next(loader)
    with pytest.raises(DataError) as raised:
        next(loader)
    assert str(raised.value) == "picture.png: not a readable image"
    with pytest.raises(DataError):  # not the batch behind it
        next(loader)
    assert (loader.epoch, loader.batch) == (0, 1)
    loader.close()


def test_too_little_shared_memory_is_said_without_a_worker_s_stack() -> None:
    others = set(multiprocessing.active_children())
    loader = Loader(Crowded(4), 2, seed=0, workers=1)
    with pytest.raises(RuntimeError, match=r"^the processes that load .* \(num_threads 0\)$"):
        next(loader)
    assert set(multiprocessing.active_children()) <= others


def test_random_numbers_go_on_after_another_kind_of_device() -> None:
    """A CUDA generator's state is 16 bytes, which a CPU's cannot take: each makes it draw others."""
    states = [torch.arange(16, dtype=torch.uint8) + i for i in range(2)]
    drawn = []
    for state in (*states, states[0]):
        generator = Generator(0)
        generator.load_state_dict({"state": state})
        drawn.append(torch.rand(4, generator=generator.generator).tolist())
    assert drawn[0] == drawn[2] != drawn[1]


def test_loader_refuses_nothing_to_load() -> None:
    with pytest.raises(ValueError, match="the data set is empty"):
        Loader(Indices(0), 2, seed=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Loader(Indices(3), 0, seed=0)
    with pytest.raises(ValueError, match="batch_size must be at most 3 for 3 items, got 4"):
        Loader(Indices(3), 4, seed=0, drop_last=True)


# --- averages, meter, sheets --------------------------------------------------------------------------------------


def test_ema_is_the_formula() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = Ema(net, 0.9)
    expected = {k: v.clone() for k, v in net.named_parameters()}
    for _ in range(3):
        with torch.no_grad():
            for name, p in net.named_parameters():
                p.add_(torch.randn_like(p))
                expected[name] = 0.9 * expected[name] + 0.1 * p
        net(torch.randn(4, 2))
        ema.update()
    for name, p in ema.module.named_parameters():
        torch.testing.assert_close(p, expected[name])
        assert not p.requires_grad
    assert torch.equal(ema.module[1].running_mean, net[1].running_mean)
    with pytest.raises(ValueError, match=r"in \[0, 1\), got 1.0"):
        Ema(net, 1.0)


def test_meter_names_the_first_bad_loss() -> None:
    meter = Meter()
    for step, (a, b) in enumerate([(1.0, 2.0), (2.0, float("inf")), (float("nan"), 1.0)], start=5):
        meter.add(step, {"a": torch.tensor(a), "b": torch.tensor(b)})
    meter.add(8, {"c": torch.tensor(3.0)})
    meter.add(9, {"c": torch.tensor(6.0), "d": torch.tensor(1.0)})  # other losses at some steps
    means, bad = meter.flush()
    assert bad is not None
    assert str(bad) == "loss b is not finite, first at step 6"
    assert (means["c"], means["d"]) == (4.5, 1.0)
    assert meter.flush() == ({}, None)
    meter.add(9, {"a": torch.tensor(1.0), "b": torch.tensor(2.0)})
    assert meter.flush() == ({"a": 1.0, "b": 2.0}, None)


@pytest.mark.parametrize(("loss", "got"), [(0.5, "float"), (torch.zeros(2), r"\[2\]")], ids=str)
def test_meter_refuses_what_is_no_scalar_tensor(loss: object, got: str) -> None:
    with pytest.raises(TypeError, match=rf"step\(\) must return scalar tensors, got {got} as loss 'b'"):
        Meter().add(1, {"a": torch.zeros(()), "b": loss})


def test_the_meter_names_what_was_not_finite_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Means are those of all processes; the first is told of, whichever it was in."""
    monkeypatch.setattr(distributed, "mean", lambda values: values + float("nan"))
    others = [Bad(5, "loss b"), Bad(3, "loss a"), None]
    monkeypatch.setattr(distributed, "gather", lambda own: [own, *others])
    meter = Meter()
    meter.add(1, {"a": torch.zeros(()), "b": torch.zeros(())})
    assert meter.flush()[1] == Bad(3, "loss a")
    meter.add(2, {"a": torch.zeros(()), "b": torch.tensor(float("inf"))})
    assert meter.flush()[1] == Bad(2, "loss b")


def test_not_finite_names_parameters_gradients_and_buffers() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert not_finite({"D": net}) == []
    net[0].bias.data[1] = float("nan")
    net[0].weight.grad = torch.full((2, 2), float("inf"))
    net[1].running_var[0] = float("nan")
    assert not_finite({"D": net}) == ["D.0.weight.grad", "D.0.bias", "D.1.running_var"]


def test_sheet_places_images() -> None:
    images = torch.stack([torch.full((3, 4, 5), v) for v in (-1.0, 0.0, 1.0, 5.0)])
    made = sheet.grid(images, columns=2, gap=1)
    assert made.size == (2 * 6 + 1, 2 * 5 + 1)
    assert [made.getpixel(p) for p in ((1, 1), (7, 1), (1, 6), (7, 6), (0, 0))] == [
        (0, 0, 0), (128, 128, 128), (255, 255, 255), (255, 255, 255), (255, 255, 255),
    ]  # fmt: skip
    grey = sheet.table([[images[0, :1], images[2]]], ["a", "b"], scale=2)
    assert grey.size == (2 + 2 * 12, 16 + 8 + 4)


def test_each_process_of_a_node_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert distributed.resolve_device("auto") == torch.device("cuda", 0)
    assert distributed.resolve_device("cuda:2") == torch.device("cuda", 2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert distributed.resolve_device("cuda") == torch.device("cuda", 3)
    with pytest.raises(ValueError, match=r"'cuda:0' would be that of every process; leave it out"):
        distributed.resolve_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # a process that sees its own only
    assert distributed.resolve_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(ValueError, match=r"'cuda:3' was asked for, but there are 1 CUDA devices"):
        distributed.resolve_device("auto")


def test_a_run_makes_its_gpu_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    current = []

    @contextlib.contextmanager
    def device(chosen: torch.device) -> Iterator[None]:
        current.append(chosen)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    with distributed.session(torch.device("cuda", 1)):
        assert current == [torch.device("cuda", 1)]
    assert not current
    with distributed.session(torch.device("cpu")):
        assert not current


@pytest.mark.parametrize(
    ("device", "capability", "amp", "last"),
    [
        ("cuda", (9, 0), "none", True), ("cuda", (8, 0), "bf16", True), ("cuda", (7, 5), "fp16", True),
        ("cuda", (7, 5), "none", False), ("cuda", (7, 0), "bf16", False), ("cuda", (6, 1), "fp16", False),
        ("cpu", (0, 0), "none", True),
    ],
)  # fmt: skip
def test_channels_last_is_for_networks_and_devices_that_gain(
    device: str, capability: tuple[int, int], amp: Amp, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *args, **kwargs: None)

    def chosen(switch: Switch, gains: bool) -> bool:
        precision = Precision(torch.device(device), amp, switch, gains=gains)
        return precision.memory_format == torch.channels_last

    assert chosen("auto", True) == last
    assert not chosen("auto", False)
    assert chosen("on", False)
    assert not chosen("off", True)


@pytest.mark.parametrize(("major", "amp"), [(7, "none"), (8, "bf16")])
def test_autocast_is_left_to_gpus_that_do_not_emulate_it(major: int, amp: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert Precision(torch.device("cuda"), "auto").amp == amp
    assert Precision(torch.device("cpu"), "auto").amp == "none"
