"""Steps of the trainers on batches that several processes share, in float64, so that only mistakes make a difference.

``torchrun … -m tests.training.joint_batch FOLDER`` writes what :func:`run` gives for every case;
tests/training/test_joint_batch.py compares it with one process on the joint batch.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from fastgan.data import DataError
from fastgan.training import checkpoint, distributed
from fastgan.training.cyclegan import CycleGan
from fastgan.training.gan import GanTask, train
from fastgan.training.loop import RunError, fit
from tests.training.test_cyclegan_step import Pairs
from tests.training.test_cyclegan_step import tiny as tiny_cyclegan
from tests.training.test_gan_step import tiny

DIGITS = {"data": "digits", "architecture": "dcgan"}
CASES: dict[str, dict[str, Any]] = {
    "penalty": {"objective": "wgan-gp", "hyper": ("weight=3",), "n_critic": 2},
    "penalty, plain": {"objective": "wgan-gp", "fused": False, "n_critic": 1},
    "noise around real data": {"objective": "dragan"},
    "codes of the batch": {"objective": "ebgan", "code_dim": 3, "hyper": ("pulling_away=5", "margin=5")},
    "mean features": {"objective": "lsgan", "hyper": ("feature_matching=true",)},
    "samples beside each other": {"objective": "non-saturating", "minibatch": 3},
    "projections": {"objective": "sliced", "hyper": ("n_projections=16",)},
    "pairs of samples": {"objective": "loss-sensitive"},
    "clipping": {"objective": "wgan", "boost_first": 0, "boost_every": 0, "n_critic": 2},
    "power iteration": {"objective": "sngan", "n_critic": 2},
    "batch norm in both": {"objective": "gan", **DIGITS, "dequantize": True},
    "batch norm recomputed": {"objective": "gan", **DIGITS, "recompute": True},
    "batch norm in the generator": {"objective": "wgan-gp", **DIGITS, "n_critic": 1, "ema": 0.5},
    "compiled whole, strided weight gradients": {"objective": "wgan-gp", **DIGITS, "n_critic": 1, "compile": True},
    "compiled, the penalty apart": {"objective": "dragan", "compile": True},
    "cyclegan, compiled": {"gan_mode": "wgangp", "pool_size": 3, "compile": True},
    "in parts": {"objective": "lsgan", "accumulate": 2},
    "penalty in parts": {"objective": "wgan-gp", "accumulate": 2, "n_critic": 2},
    "cyclegan, in parts": {"gan_mode": "wgangp", "accumulate": 2},
    "cyclegan": {"gan_mode": "wgangp", "pool_size": 3},
    "cyclegan, batch norm": {"gan_mode": "vanilla", "norm": "batch", "netD": "pixel"},
}
ROWS = 8  # of the joint batch


class _Doubles:
    """Batches in float64."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __next__(self) -> Tensor:
        batch: Tensor = next(self.batches).double()
        return batch

    def prepare(self) -> None:
        pass


def run(case: str) -> dict[str, Any]:
    """The mean losses of all processes in three steps (of one process: uncompiled), and their networks after them."""
    settings = {**CASES[case], "batch_size": ROWS // distributed.size()}
    if distributed.size() == 1:
        settings.pop("compile", None)  # what it computes does not depend on it
    losses = []
    if case.startswith("cyclegan"):
        cyclegan = CycleGan(tiny_cyclegan(**settings), Pairs())
        generator = torch.Generator().manual_seed(9)
        for _ in range(3):
            batch = torch.rand(2, ROWS, 3, 16, 16, generator=generator) * 2 - 1
            losses.append(cyclegan.update(*map(distributed.own_rows, batch)))
        networks = cyclegan.networks
    else:
        gan = GanTask(tiny(**settings))
        gan.batches = _Doubles(gan.batches)  # type: ignore[assignment]
        losses = [gan.step() for _ in range(3)]
        networks = gan.networks
    return {
        "losses": [{name: distributed.mean(value) for name, value in step.items()} for step in losses],
        "networks": {name: network.state_dict() for name, network in networks.items()},
    }


def resume(folder: Path) -> str:
    """A run with dropout at once and in parts, and the complaint about processes that were started differently."""
    settings = {"objective": "ct-gan", "n_critic": 1, "checkpoints_dir": folder, "print_freq": 1, "display_freq": 0}
    train(tiny(**settings, name="whole", steps=4))
    train(tiny(**settings, name="parts", steps=4, max_steps=2))
    torch.rand(3)
    train(tiny(**settings, name="parts", steps=4, continue_train=True))
    try:
        train(tiny(**settings, name="apart", seed=distributed.rank()))
    except RunError as error:
        return str(error)
    return ""


def averagings(trainer: str, parts: int) -> int:
    """How many times a step has DistributedDataParallel average gradients."""
    found = [0]

    def count(_, bucket):  # type: ignore[no-untyped-def] # DistributedDataParallel wants types, and not as strings
        found[0] += 1
        return allreduce_hook(None, bucket)

    settings = {"batch_size": 4, "accumulate": parts}
    if trainer == "gan":
        gan = GanTask(tiny(objective="lsgan", **settings))
        wrapped = [gan._judge, gan._generate]
    else:
        cyclegan = CycleGan(tiny_cyclegan(**settings), Pairs())
        wrapped = list(cyclegan._running.values())
    for network in wrapped:
        network.register_comm_hook(None, count)  # type: ignore[operator]
    if trainer == "gan":
        gan.step()
    else:
        cyclegan.update(torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16))
    return found[0]


def interrupted(folder: Path) -> list[int]:
    """When and by which signal a run ended of which one process got it in its second step."""
    task = GanTask(tiny(objective="sliced", steps=9, checkpoints_dir=folder, name="interrupted", display_freq=0))
    whole, taken = task.step, []

    def step() -> dict[str, Tensor]:
        taken.append(1)
        if len(taken) == 2 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return whole()

    task.step = step  # type: ignore[method-assign]
    outcome = fit(task)
    return [outcome.step, outcome.signal, len(taken)]


def best(folder: Path) -> list[int]:
    """The steps of a run's checkpoints whose processes measure a last digit apart: each alone knows another best."""
    config = tiny(
        objective="sliced", steps=3, checkpoints_dir=folder, name="best", display_freq=0, save_latest_freq=0, keep=0,
        eval_freq=1, best_metric="sliced_w2",
    )  # fmt: skip
    task = GanTask(config)
    measured = iter([(2.0, 2.0), (1.9, 2.1), (2.0, 1.9)])
    task.evaluate = lambda: {"sliced_w2": next(measured)[distributed.rank()]}  # type: ignore[method-assign]
    fit(task)
    return checkpoint.Checkpoints(config.folder / "checkpoints").steps()


class _Recorded(Pairs):
    """Knows which items were read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[int] = []

    def sample(self, index: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        self.read.append(index)
        return super().sample(index, generator)


def shared() -> list[int]:
    """Whether an evaluation gives scores, and which held-out items it reads."""
    test = _Recorded()
    task = CycleGan(tiny_cyclegan(), Pairs(), test)
    test.read.clear()  # of the look at the first item
    return [bool(task.evaluate()), *test.read]


class _Unreadable(Pairs):
    """The second item, which is the second process's, cannot be read."""

    def sample(self, index: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        if index == 1:
            raise DataError("1.png: cannot be read")
        return super().sample(index, generator)


def unreadable() -> str:
    """The error of an evaluation."""
    try:
        CycleGan(tiny_cyclegan(), Pairs(), _Unreadable()).evaluate()
    except DataError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.compile = functools.partial(torch.compile, backend="aot_eager")  # traced as usual, without Inductor's minutes
    with distributed.session(torch.device("cpu")):
        for case in CASES:
            result = run(case)
            checkpoint.write(Path(sys.argv[1]) / f"{case} {distributed.rank()}", result)
        torch.set_default_dtype(torch.float32)
        found: dict[str, Any] = {f"{t} {n}": averagings(t, n) for t in ("gan", "cyclegan") for n in (1, 2)}
        found["interrupted"] = interrupted(Path(sys.argv[1]))
        found["best"] = best(Path(sys.argv[1]))
        found["shared"] = shared()
        found["unreadable"] = unreadable()
        Path(sys.argv[1], f"found {distributed.rank()}").write_text(json.dumps(found))
        Path(sys.argv[1], f"complaint {distributed.rank()}").write_text(resume(Path(sys.argv[1])))
