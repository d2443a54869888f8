"""The kernels that the models' training steps launch on a GPU, taken as far as the driver, and how many there are.

``python -m tests.kernels.dry_launches [--arch 90]`` runs steps on meta tensors and prints a JSON line for each kernel
that they compile, with what it takes; then, for images that change their size, how many kernels would be compiled.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

import fastgan.functional as F
from fastgan import use_backend
from fastgan.kernels.triton import _launch, aot
from fastgan.models import build_discriminator, build_generator
from fastgan.models.gan import build_critic
from fastgan.nn import fuse

META = torch.device("meta")


def images(*shape: int, dtype: torch.dtype, channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(*shape, dtype=dtype, device=META, memory_format=memory_format)


def generator_step(dtype: torch.dtype, channels_last: bool, size: int) -> None:
    """A fused generator's forward and backward pass, and the cycle and identity terms."""
    with META:
        generator = build_generator("resnet_1blocks", 3, 3, ngf=64, norm="instance", dropout=False).to(dtype)
    fuse(generator)
    real = images(1, 3, size, size, dtype=dtype, channels_last=channels_last)
    made = generator(real.requires_grad_())
    F.weighted_l1([(made, real.float(), 10.0)] * 4).backward()


def critic_step(dtype: torch.dtype, channels_last: bool, architecture: str, size: int, batch: int) -> None:
    """A critic's step with WGAN-GP's penalty: the double backward."""
    with META:
        if architecture == "basic":
            critic = build_discriminator("basic", 3, ndf=64, norm="instance")
        else:
            critic = build_critic(architecture, (3, size, size), norm="instance")
    fuse(critic.to(dtype))
    real, fake = (images(batch, 3, size, size, dtype=dtype, channels_last=channels_last) for _ in range(2))
    points = F.interpolate(real, fake).detach().requires_grad_()
    scores = critic(points)
    (gradient,) = torch.autograd.grad(scores, points, torch.ones_like(scores), create_graph=True)
    (F.gradient_norm_penalty(gradient.float()) + scores.float().mean()).backward()


def padded_block(channels_last: bool, size: int) -> None:
    """A norm between two padded tensors, forward and backward: where kernels look at an image's height and width."""
    x = images(1, 256, size, size + 4, dtype=HALF, channels_last=channels_last).requires_grad_()
    outer = images(1, 256, size + 2, size + 6, dtype=HALF, channels_last=channels_last)
    y = F.instance_norm_act(x, residual=outer[..., 1:-1, 1:-1].requires_grad_(), reflect_pad=1)
    y.backward(torch.empty_like(y))


HALF = torch.bfloat16
STEPS: dict[str, Callable[[], None]] = {
    "generator, bf16 channels_last": lambda: generator_step(HALF, True, 256),
    "PatchGAN with penalty, bf16 channels_last": lambda: critic_step(HALF, True, "basic", 256, 1),
    "DCGAN critic with penalty, bf16": lambda: critic_step(HALF, False, "dcgan", 64, 64),
}


def stems() -> list[Any]:
    return [importlib.import_module(f"fastgan.kernels.triton.{stem}") for stem in aot.STEMS]


def dry(step: Callable[[], object], arch: int) -> Iterator[tuple[_launch.Launch, Any]]:
    """The launches of a step, and their compiled kernels."""
    with _launch.record(aot.ARCHITECTURES[arch].multiprocessors) as launches, use_backend("triton"):
        step()
    for launch in launches:
        yield launch, aot.compile_launch(launch, arch)


def kernels_of(sizes: range, channels_last: bool, arch: int) -> int:
    """How many kernels :func:`padded_block` compiles for images of these sizes; none is compiled."""
    found = set()

    def note(*, key: object, fn: Any, **_: object) -> bool:
        found.add((fn.name, str(key)))
        return True

    triton.knobs.runtime.jit_cache_hook = note
    for size in sizes:
        for _ in dry(partial(padded_block, channels_last, size), arch):
            pass
    triton.knobs.runtime.jit_cache_hook = None
    return len(found)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", type=int, default=90)
    arch = parser.parse_args().arch
    for stem in stems():
        stem.unsupported_device = lambda call: None  # meta tensors, too
    seen = set()
    for name, step in STEPS.items():
        for launch, compiled in dry(step, arch):
            if compiled.hash in seen:
                continue
            seen.add(compiled.hash)
            used = aot.resources(compiled)
            fits = aot.resident_warps(aot.ARCHITECTURES[arch], used["registers"], used["shared"], launch.num_warps)
            line = {"step": name, "kernel": launch.kernel.__name__, "warps": launch.num_warps, "resident": fits, **used}
            print(json.dumps(line), flush=True)
    for channels_last in (True, False):
        few, many = (kernels_of(sizes, channels_last, arch) for sizes in (range(48, 96, 4), range(48, 240, 4)))
        print(json.dumps({"channels_last": channels_last, "of 12 sizes": few, "of 48 sizes": many}), flush=True)


if __name__ == "__main__":
    main()
