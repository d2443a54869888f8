"""A small task that has everything a checkpoint must hold, for the tests of the loop."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from fastgan.training import distributed, random, schedule
from fastgan.training.ema import Ema
from fastgan.training.loader import Loader
from fastgan.training.loop import fit
from fastgan.training.pool import ImagePool
from fastgan.training.random import Generator
from fastgan.training.task import RunConfig, Task


@dataclass(frozen=True)
class ToyConfig(RunConfig):
    lr: float = 0.05
    batch_size: int = 2
    amp: str = "none"
    interrupt_at: int = 0
    interrupt_by: int = signal.SIGINT
    kill_at: int = 0
    poison_at: int = 0

    FREE = RunConfig.FREE | {"interrupt_at", "interrupt_by", "kill_at", "poison_at"}


class Numbers:
    """Items: an index and noise drawn for it."""

    def __len__(self) -> int:
        return 7

    def sample(self, index: int, generator: torch.Generator) -> Tensor:
        return index + torch.randn(3, 4, 4, generator=generator)


class Toy(Task):
    def __init__(self, config: ToyConfig) -> None:
        self.config = config
        random.seed_all(config.seed)
        self.net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Dropout(0.5), nn.Conv2d(3, 3, 1))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=config.lr)
        self.schedule = schedule.make(self.optimizer, "linear", n_epochs=2, n_epochs_decay=3)
        self.pool = ImagePool(3, seed=config.seed)
        self.ema = Ema(self.net, 0.9)
        self.noise = Generator(config.seed)
        self.loader = Loader(Numbers(), config.batch_size, seed=config.seed, workers=config.num_threads)
        self.networks = {"net": self.net}
        self.stateful = {
            "optimizer": self.optimizer, "schedule": self.schedule, "pool": self.pool, "ema": self.ema,
            "noise": self.noise, "loader": self.loader,
        }  # fmt: skip
        self.total_steps = 5 * self.loader.batches_per_epoch
        self.items_per_step = config.batch_size
        self.taken = 0

    @property
    def epoch(self) -> int:
        return self.loader.epoch

    def total_after(self, step: int) -> int:
        return step + (5 - self.epoch) * self.loader.batches_per_epoch - self.loader.batch

    def step(self) -> dict[str, Tensor]:
        epoch, x = self.epoch, next(self.loader)
        self.taken += 1
        if self.taken == self.config.poison_at:
            self.net[2].weight.data[0, 0] = float("nan")
        y = self.net(x + torch.randn(x.shape, generator=self.noise.generator))
        loss = (self.pool.query(y) + y).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.ema.update()
        if self.epoch > epoch:
            self.schedule.step()
        if self.taken == self.config.interrupt_at:
            os.kill(os.getpid(), self.config.interrupt_by)
        if self.taken == self.config.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"loss": loss.detach(), "twice": 2 * loss.detach()}

    def sheet(self) -> Image.Image:
        return Image.new("RGB", (4, 4))

    def evaluate(self) -> dict[str, float]:
        distance = float(abs(self.taken - 9))
        return {"distance": distance, "farther": distance + 1, "psnr": float(self.taken)}

    def close(self) -> None:
        self.loader.close()


def quiet(folder: Path, **settings: object) -> ToyConfig:
    """Settings that log every step and show nothing."""
    defaults = {
        "checkpoints_dir": folder, "print_freq": 1, "display_freq": 0, "save_latest_freq": 4, "device": "cpu",
        "num_threads": 0, "progress": False, "tensorboard": False,
    }  # fmt: skip
    return ToyConfig(**{**defaults, **settings})  # type: ignore[arg-type]


def die_while_writing(step: int) -> None:
    """Has this process killed when the checkpoint of ``step`` is written but not yet in its place."""
    replace = os.replace

    def die(source: Path, target: Path) -> None:
        if Path(target).name == f"step-{step:08d}.safetensors":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = die  # type: ignore[assignment]


if __name__ == "__main__":  # python -m tests.training.toy FOLDER step|write STEP: dies there
    folder, kill_at = Path(sys.argv[1]), int(sys.argv[3])
    if sys.argv[2] == "write":
        die_while_writing(kill_at)
        kill_at = 0
    torch.set_num_threads(1)  # as the tests do: sums on more threads round otherwise
    config = quiet(folder, kill_at=kill_at)
    with distributed.session(torch.device("cpu")):
        fit(Toy(config))
