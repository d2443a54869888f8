"""The WGAN-GP critic step, whole: sampling, critic, penalty by double backward, Adam; and all of an iteration.

Contestants: ``fastgan`` (the trainer), ``eager`` (algorithm 1 of Gulrajani et al. 2017 in plain PyTorch at its best:
``torch.lerp``, fused Adam), ``compile`` (the same losses through ``fastgan.training.critic_step`` under
``torch.compile``, the only way in which a penalty compiles, and the same Adam) and ``floor`` (fastgan's convolutions
and matrix products alone: see benchmarks/floor.py).
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks import floor, harness
from fastgan.training.critic_step import assign_gradients, critic_gradients
from fastgan.training.gan import GanConfig, GanTask

CPU_CASES: dict[str, dict[str, Any]] = {
    "toy, mlp 512, batch 256": {"data": "8gaussians"},
    "digits, wgan-gp conv 32, batch 64": {"data": "digits", "architecture": "wgan-gp", "width_d": 32, "width_g": 32},
    "32 px, resnet 64, batch 16": {
        "data": "noise", "image_size": 32, "architecture": "resnet", "batch_size": 16, "width_d": 64, "width_g": 64,
    },
}  # fmt: skip
GPU_CASES: dict[str, dict[str, Any]] = {
    "64 px, dcgan 64, batch 64": {"data": "noise", "image_size": 64, "architecture": "dcgan", "batch_size": 64},
    "32 px, resnet 128, batch 64": {"data": "noise", "image_size": 32, "architecture": "resnet", "batch_size": 64},
    "toy, mlp 512, batch 256": {"data": "8gaussians"},
}
CASES = CPU_CASES if harness.DEVICE == "cpu" else GPU_CASES


@contextlib.contextmanager
def pictures() -> Iterator[str]:
    """A folder of random pictures: what they show does not matter here."""
    with tempfile.TemporaryDirectory() as folder:
        for i in range(64):
            pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"{folder}/{i}.png")
        yield folder


@pytest.fixture(scope="module")
def noise() -> Iterator[str]:
    with pictures() as folder:
        yield folder


def task_of(case: str, noise: str, fused: bool = True, **more: Any) -> GanTask:
    settings = {**CASES[case]}
    if settings["data"] == "noise":
        settings["data"] = noise
    common = {"objective": "wgan-gp", "num_threads": 0, "amp": "none", "device": harness.DEVICE, "fused": fused}
    graph = "auto" if fused else "off"
    return GanTask(GanConfig(**{**common, "cuda_graph": graph, **settings, **more}))


class Plain:
    """Algorithm 1, lines 3 to 10, of PyTorch's own fastest parts."""

    def __init__(self, task: GanTask) -> None:
        self.critic, self.generator = copy.deepcopy(task.critic), copy.deepcopy(task.generator)
        settings = task.settings
        self.adam = torch.optim.Adam(self.critic.parameters(), lr=settings.lr_critic, betas=settings.betas, fused=True)
        self.weight = task.objective.weight
        self.latent = torch.Generator(task.device).manual_seed(task.config.seed + 1)

    def step(self, real: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            fake = self.generator(self.generator.latent(len(real), generator=self.latent))
        on_real, on_fake = self.critic(real).mean(), self.critic(fake).mean()
        alpha = torch.rand(len(real), *[1] * (real.dim() - 1), device=real.device)
        x = torch.lerp(fake, real, alpha).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(x).sum(), x, create_graph=True)
        penalty = self.weight * ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()
        self.adam.zero_grad()
        (on_fake - on_real + penalty).backward()
        self.adam.step()
        return {"critic_real": -on_real.detach(), "critic_fake": on_fake.detach(), "critic_penalty": penalty.detach()}


class Compiled(Plain):
    """The same with the losses and gradients in one compiled graph."""

    def __init__(self, task: GanTask) -> None:
        super().__init__(task)
        self.gradients = harness.compiled(critic_gradients)

    def step(self, real: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            fake = self.generator(self.generator.latent(len(real), generator=self.latent))
        alpha = torch.rand(len(real), device=real.device)
        losses, gradients = self.gradients(self.critic, real, fake, alpha, weight=self.weight)
        assign_gradients(self.critic, gradients)
        self.adam.step()
        return {"critic_real": -losses.real, "critic_fake": losses.fake, "critic_penalty": losses.penalty}


@pytest.mark.parametrize("contestant", ["fastgan", "eager", "compile", "floor"])
@pytest.mark.parametrize("case", CASES)
def test_critic_step(benchmark: Any, case: str, contestant: str, noise: str) -> None:
    names = {"operator": "wgan_gp_critic_step", "case": case, "contestant": contestant}
    expected = Plain(task_of(case, noise, fused=False))
    real = next(task_of(case, noise).batches).to(harness.DEVICE)
    if contestant == "floor":
        measure_floor(benchmark, lambda: task_of(case, noise).critic_step(real), images=len(real), **names)
        return
    reference = expected.step(real)
    task = task_of(case, noise, fused=contestant == "fastgan")
    step = task.critic_step if contestant == "fastgan" else (Plain if contestant == "eager" else Compiled)(task).step

    def check(losses: dict[str, Tensor]) -> None:
        rounding = harness.ROUNDING
        for name in ("critic_real", "critic_fake"):  # the penalty's points are each one's own
            torch.testing.assert_close(losses[name], reference[name], rtol=rounding, atol=0.1 * rounding)
        torch.testing.assert_close(losses["critic_penalty"], reference["critic_penalty"], rtol=0.3, atol=0.1)

    harness.measure(benchmark, step, [real], check=check, images=len(real), **names)


def measure_floor(benchmark: Any, step: Callable[[], object], **names: Any) -> None:
    replay = floor.products(step)
    harness.measure(benchmark, lambda _: replay(), [None], **names)


@pytest.mark.parametrize("contestant", ["fastgan", "plain", "floor"])
@pytest.mark.parametrize("case", CASES)
def test_iteration(benchmark: Any, case: str, contestant: str, noise: str) -> None:
    """Five critic steps and a generator step, with fused operators and with none."""
    task = task_of(case, noise, fused=contestant != "plain")
    names: dict[str, Any] = {"operator": "wgan_gp_iteration", "case": case, "contestant": contestant}
    names["images"] = task.settings.batch_size
    if contestant == "floor":
        measure_floor(benchmark, task.step, **names)
        return

    # From the same weights, images and weights of the interpolation. A GPU draws other ones within a CUDA graph.
    tolerance = 10 * harness.ROUNDING if harness.DEVICE == "cpu" else 0.3
    expected = task_of(case, noise, fused=False).step()

    def check(losses: dict[str, Tensor]) -> None:
        assert losses.keys() == expected.keys()
        for name, loss in losses.items():
            torch.testing.assert_close(loss, expected[name], rtol=tolerance, atol=tolerance)

    harness.measure(benchmark, lambda _: task.step(), [None], check=check, **names)
