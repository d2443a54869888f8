"""CycleGAN's training step, whole: both generators and discriminators, all losses, both optimizers, the image pools.

Contestants: ``fastgan`` (the trainer at its defaults), ``fastgan bf16`` (the same under autocast), ``official``
(:class:`Official`: the calls of the authors' training code, one by one, with their defaults), ``eager`` (our trainer
without fused operators, in NCHW, which computes the same bit for bit: see tests/training/test_cyclegan_step.py),
``eager, fused Adam`` (the same with PyTorch's fastest optimizer), on a GPU the same in bf16 and channels_last,
``compile`` (eager with its networks under torch.compile; on the first case only, for it compiles for a minute),
``fastgan, compiled`` (likewise) and ``floor`` (the convolutions of fastgan's step alone: see benchmarks/floor.py).
"""

from __future__ import annotations

import itertools
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import floor, harness
from fastgan.training.cyclegan import CycleGan, CycleGanConfig, build_networks

CPU_CASES: dict[str, dict[str, Any]] = {
    "64 px, resnet 4 blocks, ngf 24, batch 4": {
        "netG": "resnet_4blocks", "ngf": 24, "ndf": 32, "batch_size": 4, "crop_size": 64, "load_size": 64,
    },
    "128 px, resnet_9blocks, batch 1": {"crop_size": 128, "load_size": 128},
}  # fmt: skip
GPU_CASES: dict[str, dict[str, Any]] = {"256 px, resnet_9blocks, batch 1": {}, "256 px, batch 4": {"batch_size": 4}}
CASES = CPU_CASES if harness.DEVICE == "cpu" else GPU_CASES
SETTINGS: dict[str, dict[str, Any]] = {
    "fastgan": {"fused": True, "amp": "none"},
    "fastgan bf16": {"fused": True, "amp": "bf16"},
    "eager": {"fused": False, "amp": "none", "channels_last": "off", "cuda_graph": "off"},
}
SETTINGS["eager, fused Adam"] = SETTINGS["eager"]
if harness.DEVICE == "cuda":  # all that PyTorch itself offers without compiling
    SETTINGS["eager bf16, channels_last, fused Adam"] = SETTINGS["eager"] | {"amp": "bf16", "channels_last": "on"}
COMPILED: dict[str, dict[str, Any]] = {
    "compile": SETTINGS["eager"] | {"compile": True},
    "fastgan, compiled": SETTINGS["fastgan"] | {"compile": True},
}
# The first case last: its compilation is what a session that runs late leaves out.
CONTESTANTS = [(case, contestant) for case in reversed(CASES) for contestant in [*SETTINGS, "official", "floor"]]
CONTESTANTS += [(next(iter(CASES)), contestant) for contestant in COMPILED]


class Images:
    """Random images: what they show does not matter here."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return 100_000  # no epoch ends while steps are measured, where the learning rate falls and a GPU is waited for

    def sample(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        images = torch.Generator().manual_seed(index)
        return {name: torch.rand(3, self.size, self.size, generator=images) * 2 - 1 for name in "AB"}


def trainer(case: str, contestant: str, **more: Any) -> CycleGan:
    settings = CASES[case] | (SETTINGS | COMPILED)[contestant] | more
    config = CycleGanConfig(dataroot=Path(), num_threads=0, device=harness.DEVICE, **settings)
    task = CycleGan(config, Images(config.crop_size))
    for optimizer in task.optimizers().values():
        for group in optimizer.param_groups:
            group["fused"] = group["fused"] or contestant.endswith("fused Adam")
    return task


class Official:
    """``optimize_parameters`` of the authors' CycleGANModel at its defaults: PyTorch's modules in NCHW, Adam as PyTorch
    makes it, targets expanded from a buffer, pools of images in lists. Their loop asks for the losses' values at every
    hundredth step only, so here they stay tensors."""

    def __init__(self, task: CycleGan) -> None:
        torch.manual_seed(task.config.seed)
        self.config, self.loader = task.config, task.loader
        self.nets = {name: network.to(harness.DEVICE) for name, network in build_networks(task.config).items()}
        for name, network in self.nets.items():
            network.load_state_dict(task.networks[name].state_dict())
        self.optimizer_G, self.optimizer_D = (
            torch.optim.Adam(
                itertools.chain(self.nets[a].parameters(), self.nets[b].parameters()), lr=2e-4, betas=(0.5, 0.999)
            )
            for a, b in (("G_A", "G_B"), ("D_A", "D_B"))
        )
        self.mse, self.l1 = torch.nn.MSELoss(), torch.nn.L1Loss()
        self.targets = {real: torch.tensor(float(real), device=harness.DEVICE) for real in (True, False)}
        self.pools: dict[str, list[Tensor]] = {"D_A": [], "D_B": []}

    def gan_loss(self, prediction: Tensor, real: bool) -> Tensor:
        return self.mse(prediction, self.targets[real].expand_as(prediction))

    def query(self, name: str, images: Tensor) -> Tensor:
        held, returned = self.pools[name], []
        for image in images:
            image = torch.unsqueeze(image.data, 0)
            if len(held) < self.config.pool_size:
                held.append(image)
                returned.append(image)
            elif random.uniform(0, 1) > 0.5:
                slot = random.randint(0, self.config.pool_size - 1)
                returned.append(held[slot].clone())
                held[slot] = image
            else:
                returned.append(image)
        return torch.cat(returned, 0)

    def step(self) -> dict[str, Tensor]:
        batch = next(self.loader)
        A, B = (batch[name].to(harness.DEVICE) for name in "AB")
        G_A, G_B, D_A, D_B = (self.nets[name] for name in ("G_A", "G_B", "D_A", "D_B"))
        fake_B = G_A(A)
        rec_A = G_B(fake_B)
        fake_A = G_B(B)
        rec_B = G_A(fake_A)
        self.require_gradients(False)
        self.optimizer_G.zero_grad()
        idt_A = self.l1(G_A(B), B) * 10.0 * 0.5
        idt_B = self.l1(G_B(A), A) * 10.0 * 0.5
        loss_A, loss_B = self.gan_loss(D_A(fake_B), True), self.gan_loss(D_B(fake_A), True)
        cycle_A, cycle_B = self.l1(rec_A, A) * 10.0, self.l1(rec_B, B) * 10.0
        (loss_A + loss_B + cycle_A + cycle_B + idt_A + idt_B).backward()
        self.optimizer_G.step()
        self.require_gradients(True)
        self.optimizer_D.zero_grad()
        losses = {"G_A": loss_A, "G_B": loss_B, "l1": cycle_A + cycle_B + idt_A + idt_B}
        for name, real, fake in (("D_A", B, fake_B), ("D_B", A, fake_A)):
            shown = self.query(name, fake)
            on_real = self.gan_loss(self.nets[name](real), True)
            on_fake = self.gan_loss(self.nets[name](shown.detach()), False)
            losses[name] = (on_real + on_fake) * 0.5
            losses[name].backward()
        self.optimizer_D.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def require_gradients(self, required: bool) -> None:
        for name in ("D_A", "D_B"):
            for parameter in self.nets[name].parameters():
                parameter.requires_grad = required


@cache
def first_losses(case: str) -> dict[str, Tensor]:
    """What the first step of every contestant must find."""
    return trainer(case, "eager").step()


@pytest.mark.parametrize(("case", "contestant"), CONTESTANTS)
def test_step(benchmark: Any, case: str, contestant: str) -> None:
    names: dict[str, Any] = {"operator": "cyclegan_step", "case": case, "contestant": contestant}
    names["images"] = CASES[case].get("batch_size", 1)
    if contestant == "floor":
        replay = floor.products(trainer(case, "fastgan").step)
        harness.measure(benchmark, lambda _: replay(), [None], **names)
        return
    task = Official(trainer(case, "eager")) if contestant == "official" else trainer(case, contestant)
    expected = first_losses(case)

    def check(losses: dict[str, Tensor]) -> None:
        tolerance = 0.05 if "bf16" in contestant else harness.ROUNDING
        for name in ("G_A", "G_B", "l1", "D_A", "D_B"):
            torch.testing.assert_close(losses[name], expected[name], rtol=tolerance, atol=tolerance)

    harness.measure(benchmark, lambda _: task.step(), [None], check=check, **names)
