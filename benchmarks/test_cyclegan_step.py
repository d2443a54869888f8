"""CycleGAN's training step, whole: both generators and discriminators, all losses, both optimizers, the image pools.

Contestants: ``fastgan`` (the trainer at its defaults), ``fastgan bf16`` (the same under autocast), ``eager`` (the
trainer without fused operators, in NCHW, which equals the authors' sequence of calls bit for bit: see
tests/training/test_cyclegan_step.py), ``eager, fused Adam`` (the same with PyTorch's fastest optimizer), ``compile``
(eager with its networks under torch.compile; on the first case only, for it compiles for a minute), ``fastgan,
compiled`` (likewise) and ``floor`` (the convolutions of fastgan's step alone: see benchmarks/floor.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import floor, harness
from fastgan.training.cyclegan import CycleGan, CycleGanConfig

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
COMPILED: dict[str, dict[str, Any]] = {
    "compile": SETTINGS["eager"] | {"compile": True},
    "fastgan, compiled": SETTINGS["fastgan"] | {"compile": True},
}
CONTESTANTS = [(case, contestant) for case in CASES for contestant in [*SETTINGS, "floor"]]
CONTESTANTS += [(next(iter(CASES)), contestant) for contestant in COMPILED]


class Images:
    """Random images: what they show does not matter here."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return 8

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


@pytest.mark.parametrize(("case", "contestant"), CONTESTANTS)
def test_step(benchmark: Any, case: str, contestant: str) -> None:
    names: dict[str, Any] = {"operator": "cyclegan_step", "case": case, "contestant": contestant}
    names["images"] = CASES[case].get("batch_size", 1)
    if contestant == "floor":
        replay = floor.products(trainer(case, "fastgan").step)
        harness.measure(benchmark, lambda _: replay(), [None], **names)
        return
    task = trainer(case, contestant)
    expected = trainer(case, "eager").step()

    def check(losses: dict[str, Tensor]) -> None:
        tolerance = 0.05 if contestant.endswith("bf16") else 1e-3
        for name in ("G_A", "G_B", "l1", "D_A", "D_B"):
            torch.testing.assert_close(losses[name], expected[name], rtol=tolerance, atol=tolerance)

    harness.measure(benchmark, lambda _: task.step(), [None], check=check, **names)
