"""Which operators a training step of the reference models calls, at which shapes and layouts, and how often.

:func:`collect` runs the models' losses on fake tensors, which have shapes and no data, and listens to the functions
that they call. What it finds is what benchmarks/test_model_calls.py measures.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import fastgan.functional as F
from benchmarks.harness import DEVICE
from fastgan import objectives
from fastgan.models.gan import build_critic
from fastgan.training.cyclegan import CycleGan, CycleGanConfig, GanMode

_penalty = sys.modules["fastgan.functional.gradient_penalty"]


@dataclass(frozen=True)
class Shape:
    """A tensor without its data."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @staticmethod
    def of(tensor: Tensor) -> Shape:
        return Shape(tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def tensor(self) -> Tensor:
        """Random data in this layout, with whatever lies between its elements."""
        span = 1 + sum((size - 1) * stride for size, stride in zip(self.sizes, self.strides, strict=True))
        return torch.randn(span, device=DEVICE, dtype=self.dtype).as_strided(self.sizes, self.strides)

    @property
    def nbytes(self) -> int:
        return torch.Size(self.sizes).numel() * self.dtype.itemsize

    def __str__(self) -> str:
        last = len(self.sizes) == 4 and self.strides[1] == 1 and self.sizes[1] > 1
        return f"{'x'.join(map(str, self.sizes))}{' channels_last' if last else ''}"


@dataclass(frozen=True)
class ModelCall:
    """One call: its tensors (None where there is none), its other arguments, and whether it is differentiated twice."""

    operator: str
    tensors: tuple[Shape | None, ...]
    settings: tuple[tuple[str, Any], ...] = ()
    twice: bool = False

    def __str__(self) -> str:
        words = [str(self.tensors[0])]
        if self.operator == "weighted_l1":
            words = [f"{len(self.tensors) // 2} pairs {words[0]}"]
        for name, value in self.settings:
            if name in ("activation", "reflect_pad") and value not in ("none", 0):
                words.append(f"pad {value}" if name == "reflect_pad" else value)
        if self.operator == "instance_norm_act" and self.tensors[3] is not None:
            words.append("residual")
        if self.twice:
            words.append("double backward")
        return f"{self.operator} {', '.join(words)}"


class _Images:
    """Not looked at."""

    def __len__(self) -> int:
        return 8

    def sample(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        raise NotImplementedError


def collect() -> dict[str, Counter[ModelCall]]:
    """step -> call -> how often."""
    found = {"CycleGAN, resnet_9blocks, 256 px, batch 1": _cyclegan("lsgan", generators=True)}
    found["CycleGAN's PatchGANs as WGAN-GP critics, 256 px, batch 1"] = _cyclegan("wgangp", generators=False)
    objective = replace(objectives.make("wgan-gp"), joint=True)
    for architecture, shape, batch in (("dcgan", (3, 64, 64), 64), ("resnet", (3, 32, 32), 64), ("mlp", (2,), 256)):
        critic = build_critic(architecture, shape, independent=True)
        with _listen() as calls:
            real, fake = (torch.zeros(batch, *shape) for _ in range(2))
            objective.critic_loss(critic, real, fake)
        found[f"WGAN-GP critic step, {architecture} {'x'.join(map(str, shape))}, batch {batch}"] = calls
    return found


def _cyclegan(gan_mode: GanMode, *, generators: bool) -> Counter[ModelCall]:
    config = CycleGanConfig(
        dataroot=Path(), num_threads=0, device="cpu", amp="none" if DEVICE == "cpu" else "bf16", channels_last="on",
        gan_mode=gan_mode,
    )  # fmt: skip
    task = CycleGan(config, _Images())
    with _listen() as calls, task.precision.autocast():
        images = torch.zeros(1, 3, 256, 256).to(memory_format=torch.channels_last)
        fakes = (images, images)
        if generators:
            fakes = task._generators_loss(images, images, apart=False).images
        for critic, fake in zip(("D_A", "D_B"), fakes, strict=True):
            alpha = torch.zeros(1) if gan_mode == "wgangp" else None
            task._discriminator_loss(critic, images, fake, alpha)
    return calls


@contextlib.contextmanager
def _listen() -> Iterator[Counter[ModelCall]]:
    """Counts the calls of the operators, on fake tensors."""
    calls: Counter[ModelCall] = Counter()
    inside = [False]  # the critic's pass within a gradient penalty

    def norm(x: Tensor, weight: Any = None, bias: Any = None, *, residual: Any = None, **settings: Any) -> None:
        tensors = tuple(None if t is None else Shape.of(t) for t in (x, weight, bias, residual))
        calls[ModelCall("instance_norm_act", tensors, tuple(sorted(settings.items())), inside[0])] += 1

    def l1(pairs: list[tuple[Tensor, Tensor, float]]) -> None:
        tensors = tuple(Shape.of(t) for a, b, _ in pairs for t in (a, b))
        calls[ModelCall("weighted_l1", tensors, (("weights", tuple(w for *_, w in pairs)),))] += 1

    def interpolate(_: str, real: Tensor, fake: Tensor, alpha: Tensor | None, *__: Any) -> None:
        tensors = (Shape.of(real), Shape.of(fake), None if alpha is None else Shape.of(alpha))
        calls[ModelCall("interpolate", tensors)] += 1

    def penalty(grads: Tensor, target: float, one_sided: bool, _: float) -> None:
        settings = (("one_sided", one_sided), ("target", target))
        calls[ModelCall("gradient_norm_penalty", (Shape.of(grads),), settings)] += 1

    def input_gradient(*args: Any, **kwargs: Any) -> Any:
        inside[0] = True
        try:
            return gradient(*args, **kwargs)
        finally:
            inside[0] = False

    gradient = _penalty.input_gradient
    with contextlib.ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(mock.patch.object(_penalty, "input_gradient", input_gradient))
        for module, name, note in (
            (F, "instance_norm_act", norm),
            (F, "weighted_l1", l1),
            (_penalty, "interpolate_checked", interpolate),
            (_penalty, "_norm_penalty", penalty),
        ):
            stack.enter_context(mock.patch.object(module, name, _noting(getattr(module, name), note)))
        yield calls


def _noting(function: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
    def noted(*args: Any, **kwargs: Any) -> Any:
        note(*args, **kwargs)
        return function(*args, **kwargs)

    return noted
