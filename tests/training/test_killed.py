"""Both trainers, killed by SIGKILL in a step and while a checkpoint is written, continue as if nothing had happened."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastgan.training import checkpoint, cyclegan, gan
from fastgan.training.log import read_stats
from fastgan.training.loop import Task
from tests.training.test_cyclegan_step import tiny as tiny_cyclegan
from tests.training.test_gan_step import tiny as tiny_gan
from tests.training.toy import die_while_writing

STEPS = 8
RUN = {"print_freq": 1, "display_freq": 0, "save_latest_freq": 3, "tensorboard": False, "progress": False}


def train(trainer: str, folder: Path, **settings: Any) -> Path:
    settings = {**RUN, "checkpoints_dir": folder, "name": "run", **settings}
    if trainer == "gan":
        data = {"objective": "dragan", "data": "digits", "architecture": "dcgan", "ema": 0.9, "n_critic": 2}
        return gan.train(tiny_gan(**data, **{"steps": STEPS, **settings})).folder
    data = {"dataroot": folder.parent / "pictures", "load_size": 18, "crop_size": 16, "gan_mode": "wgangp", "ema": 0.9}
    return cyclegan.train(
        tiny_cyclegan(**data, **{"fused": True, "max_steps": STEPS, "n_epochs": 5, **settings})
    ).folder


def die(trainer: str, folder: Path, where: str, step: int) -> None:
    """In a process of its own: trains until SIGKILL."""
    torch.set_num_threads(1)
    if where == "write":
        die_while_writing(step)
    else:
        kind: type[Task] = gan.GanTask if trainer == "gan" else cyclegan.CycleGan
        whole, taken = kind.step, []

        def some(task: Task) -> dict[str, torch.Tensor]:
            taken.append(1)
            if len(taken) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(task)

        kind.step = some  # type: ignore[method-assign]
    train(trainer, folder)


def state(folder: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    tree = checkpoint.read(checkpoint.locate(folder))
    lines = read_stats(folder / "stats.jsonl")
    volatile = ("seconds", "images_per_second")
    kept = [{k: v for k, v in line.items() if k not in volatile} for line in lines]
    return kept, checkpoint.flatten([tree["state"], tree["random"]])[1]


@pytest.mark.parametrize("trainer", ["cyclegan", "gan"])
def test_killed_runs_continue_exactly(trainer: str, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    for i in range(5):
        for domain in "AB":
            path = tmp_path / "pictures" / f"train{domain}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(numbers.integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(path)
    lines, expected = state(train(trainer, tmp_path / "whole"))
    assert len(lines) == STEPS
    for where, step, left in (("step", 5, [3]), ("write", 6, [3])):
        folder = tmp_path / where
        killed = multiprocessing.get_context("spawn").Process(target=die, args=(trainer, folder, where, step))
        killed.start()
        killed.join(300)
        killed.kill()  # had it hung
        assert killed.exitcode == -signal.SIGKILL
        assert checkpoint.Checkpoints(folder / "run" / "checkpoints").steps() == left
        again, got = state(train(trainer, folder, continue_train=True))
        assert again == lines
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name]) for name in got)
