"""The critic update as a pure function: equal to the eager double backward, and compiled whole."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

import fastgan.functional as F
from fastgan.nn import InstanceNormAct2d
from fastgan.training.critic_step import assign_gradients, critic_gradients


def make_critic() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(8, 8, 4, 2, 1),
        InstanceNormAct2d(8, affine=True, activation="leaky_relu"),
        nn.Flatten(),
        nn.Linear(32, 1),
    )


def make_batch() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(4, 3, 8, 8) + 0.3, torch.randn(4, 3, 8, 8), torch.rand(4)


def eager(critic: nn.Module, real: Tensor, fake: Tensor, alpha: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    penalty = F.gradient_penalty(critic, real, fake, alpha=alpha)
    loss = critic(fake).mean() - critic(real).mean() + penalty
    names = [name for name, p in critic.named_parameters() if p.requires_grad]
    trained = [p for p in critic.parameters() if p.requires_grad]
    return loss.detach(), dict(zip(names, torch.autograd.grad(loss, trained), strict=True))


def test_losses_and_gradients_of_the_eager_double_backward() -> None:
    critic, batch = make_critic(), make_batch()
    critic[0].weight.requires_grad_(False)
    losses, gradients = critic_gradients(critic, *batch)
    loss, expected = eager(critic, *batch)
    torch.testing.assert_close(losses.loss, loss)
    torch.testing.assert_close(losses.fake - losses.real + losses.penalty, loss)
    assert gradients.keys() == expected.keys()
    torch.testing.assert_close(gradients, expected)
    assert not any(t.requires_grad for t in (*losses, *gradients.values()))
    assign_gradients(critic, gradients)
    assert critic[0].weight.grad is None
    assert critic[0].bias.grad is gradients["0.bias"]


@pytest.mark.slow
def test_compiled_whole() -> None:
    critic, batch = make_critic(), make_batch()
    compiled = torch.compile(partial(critic_gradients, critic, one_sided=False), fullgraph=True)
    losses, gradients = compiled(*batch)
    loss, expected = eager(critic, *batch)
    torch.testing.assert_close(losses.loss, loss)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-5)


def test_batch_norm_is_refused() -> None:
    critic = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match="critic_gradients: BatchNorm2d '1'"):
        critic_gradients(critic, *make_batch())
