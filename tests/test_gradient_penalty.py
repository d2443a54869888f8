"""Gradient penalties: the fused norm penalty, and the critic penalties made of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastgan.functional as F


def small_critic(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 1, 3, stride=2, padding=1), nn.Softplus()
    ).to(dtype)


def batch(samples: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    real = torch.randn(samples, 2, 5, 5, generator=generator, dtype=torch.float64) + 0.5
    fake = torch.randn(samples, 2, 5, 5, generator=generator, dtype=torch.float64) - 0.5
    return real, fake, torch.rand(samples, generator=generator, dtype=torch.float64)


def plain_penalty(critic: nn.Module, real: Tensor, fake: Tensor, alpha: Tensor, one_sided: bool = False) -> Tensor:
    """Algorithm 1 of Gulrajani et al., sample by sample."""
    total = torch.zeros((), dtype=real.dtype)
    for r, f, a in zip(real, fake, alpha, strict=True):
        x = (a * r + (1 - a) * f)[None].requires_grad_()
        (g,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        excess = torch.sqrt((g * g).sum()) - 1
        total = total + (excess.clamp(min=0) if one_sided else excess) ** 2
    return 10 * total / len(real)


def gradients(loss: Tensor, critic: nn.Module) -> list[Tensor]:
    return [g for g in torch.autograd.grad(loss, list(critic.parameters()), allow_unused=True) if g is not None]


@pytest.mark.parametrize("one_sided", [False, True])
def test_wgan_gp_is_the_published_algorithm(one_sided: bool) -> None:
    critic, (real, fake, alpha) = small_critic(), batch()
    real, fake = 4 * real, 4 * fake
    ours = F.gradient_penalty(critic, real, fake, alpha=alpha, one_sided=one_sided)
    theirs = plain_penalty(critic, real, fake, alpha, one_sided)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(gradients(ours, critic), gradients(theirs, critic), strict=True):
        torch.testing.assert_close(a, b)
