"""The parts of a gradient penalty, forward and backward, and a whole WGAN-GP critic step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastgan.functional as F
from benchmarks.harness import DEVICE, close, compiled, copies, measure, passes, unsupported
from fastgan.nn import InstanceNormAct2d
from fastgan.training.critic_step import critic_gradients

SHAPES = [(64, 3, 64, 64), (64, 3, 32, 32), (16, 3, 256, 256), (256, 2), (2, 2)]


def eager_parts(real: Tensor, fake: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
    """What PyTorch has for both."""
    alpha = torch.rand(real.size(0), *(1,) * (real.dim() - 1), device=real.device, dtype=real.dtype)
    points = torch.lerp(fake, real, alpha)
    return points, (grads.flatten(1).norm(2, dim=1) - 1).square().mean()


def published_parts(real: Tensor, fake: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
    """The same as the papers' formula reads, and the published ports with it."""
    alpha = torch.rand(real.size(0), *(1,) * (real.dim() - 1), device=real.device, dtype=real.dtype)
    points = alpha * real + (1 - alpha) * fake
    return points, (grads.flatten(1).norm(2, dim=1) - 1).square().mean()


def our_parts(real: Tensor, fake: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
    return F.interpolate(real, fake), F.gradient_norm_penalty(grads)


PARTS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "fastgan": our_parts,
    "eager": eager_parts,
    "published": published_parts,
    "compile": eager_parts,
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("contestant", PARTS)
def test_interpolate_and_penalty(benchmark: Any, contestant: str, shape: tuple[int, ...]) -> None:
    parts = compiled(PARTS[contestant]) if contestant == "compile" else PARTS[contestant]

    def make() -> tuple[Tensor, Tensor, Tensor]:
        real, fake, grads = (torch.randn(shape, device=DEVICE) for _ in range(3))
        return real, fake, grads.requires_grad_()

    def run(inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        points, penalty = parts(*inputs)
        return points, penalty, *torch.autograd.grad(penalty, inputs[2])

    one = 4 * torch.Size(shape).numel()
    inputs = copies(make, 3 * one)

    def check(result: tuple[Tensor, Tensor, Tensor]) -> None:
        real, fake, grads = (t.detach().double() for t in inputs[0])
        grads.requires_grad_()
        penalty = eager_parts(real, fake, grads)[1]
        torch.testing.assert_close(result[1].double(), penalty, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(result[2].double(), torch.autograd.grad(penalty, grads)[0], rtol=1e-4, atol=1e-7)
        difference = real - fake  # alpha by least squares
        alpha = ((result[0] - fake) * difference).flatten(1).sum(1) / difference.square().flatten(1).sum(1)
        torch.testing.assert_close(result[0], F.interpolate(*inputs[0][:2], alpha.float()), rtol=1e-4, atol=1e-5)

    measure(
        benchmark, run, inputs,
        operator="interpolate + gradient_norm_penalty", case=f"{list(shape)}, forward + backward",
        contestant=contestant, bytes_moved=5 * one, operations=6 * one / 4, check=check,
    )  # fmt: skip


@pytest.mark.parametrize("contestant", ["fastgan", "eager", "compile"])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("forward", torch.float32), ("double backward", torch.float32), ("forward + backward", torch.bfloat16)],
    ids=str,
)
def test_penalty(benchmark: Any, kind: str, dtype: torch.dtype, contestant: str) -> None:
    """The penalty on gradients alone: a critic step takes its double backward when it trains through the penalty."""
    shape, name = SHAPES[0], f"{list(SHAPES[0])} {str(dtype)[6:]}, {kind}"
    if contestant == "compile" and kind == "double backward":
        unsupported(
            operator="gradient_norm_penalty", case=name, contestant=contestant,
            reason="torch.compile does not support double backward",
        )  # fmt: skip
    eager = lambda grads: (grads.float().flatten(1).norm(2, dim=1) - 1).square().mean()
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    function = {"fastgan": F.gradient_norm_penalty, "eager": eager, "compile": eager}[contestant]
    function = compiled(function) if contestant == "compile" else function
    torch.manual_seed(0)
    one = dtype.itemsize * torch.Size(shape).numel()
    inputs = copies(lambda: torch.randn(shape, device=DEVICE).to(dtype), one)
    measure(
        benchmark, lambda run: run(), [passes(function, [grads], kind) for grads in inputs],
        operator="gradient_norm_penalty", case=name, contestant=contestant,
        bytes_moved=one * {"forward": 1, "forward + backward": 2, "double backward": 3}[kind],
        check=lambda result: close(result, passes(eager, [inputs[0]], kind)(), tolerance),
    )  # fmt: skip


def make_critic(fused: bool) -> nn.Module:
    """A DCGAN critic for 64 x 64 with instance norm, as WGAN-GP's authors advise against batch norm."""
    torch.manual_seed(0)
    width, layers = 64 if DEVICE == "cuda" else 16, []
    for channels_in, channels in ((3, width), (width, 2 * width), (2 * width, 4 * width), (4 * width, 8 * width)):
        layers.append(nn.Conv2d(channels_in, channels, 4, 2, 1))
        if channels_in == 3:
            layers.append(nn.LeakyReLU(0.2))
        elif fused:
            layers.append(InstanceNormAct2d(channels, affine=True, activation="leaky_relu"))
        else:
            layers += [nn.InstanceNorm2d(channels, affine=True), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4), nn.Flatten()).to(DEVICE)


def eager_step(critic: nn.Module, real: Tensor, fake: Tensor, alpha: Tensor) -> tuple[Tensor, ...]:
    """Algorithm 1 of Gulrajani et al. in plain PyTorch."""
    points = torch.lerp(fake, real, alpha.view(-1, 1, 1, 1)).requires_grad_()
    (grads,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    penalty = 10 * (grads.flatten(1).norm(2, dim=1) - 1).square().mean()
    return torch.autograd.grad(critic(fake).mean() - critic(real).mean() + penalty, list(critic.parameters()))


def our_step(critic: nn.Module, real: Tensor, fake: Tensor, alpha: Tensor) -> tuple[Tensor, ...]:
    loss = critic(fake).mean() - critic(real).mean() + F.gradient_penalty(critic, real, fake, alpha=alpha)
    return torch.autograd.grad(loss, list(critic.parameters()))


def _pure(step: Callable[..., Any], *batch: Tensor) -> tuple[Tensor, ...]:
    return tuple(step(*batch)[1].values())


@pytest.mark.parametrize("contestant", ["fastgan", "fastgan, compiled", "eager"])
def test_critic_step(benchmark: Any, contestant: str) -> None:
    critic, plain = make_critic(contestant != "eager"), make_critic(False)
    plain.load_state_dict(dict(zip(plain.state_dict(), critic.state_dict().values(), strict=True)))
    if contestant == "fastgan, compiled":
        run: Callable[..., Any] = partial(
            _pure, torch.compile(partial(critic_gradients, critic), fullgraph=True, dynamic=False)
        )
    else:
        run = partial(our_step if contestant == "fastgan" else eager_step, critic)

    samples = 64 if DEVICE == "cuda" else 8

    def make() -> tuple[Tensor, ...]:
        shape = (samples, 3, 64, 64)
        return *(torch.randn(shape, device=DEVICE) for _ in range(2)), torch.rand(samples, device=DEVICE)

    inputs = copies(make, 2 * samples * 3 * 64 * 64 * 4)

    def check(result: tuple[Tensor, ...]) -> None:
        for got, expected in zip(result, eager_step(plain, *inputs[0]), strict=True):
            scale = expected.abs().max().item()
            torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-3 * scale + 1e-3)

    measure(
        benchmark, lambda batch: run(*batch), inputs,
        operator="wgan_gp_critic_step", case=f"DCGAN 64 x 64, batch {samples}", contestant=contestant, check=check,
    )  # fmt: skip
