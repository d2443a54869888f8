"""What the literature claims about these distances, made to happen: the examples behind the family."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

import fastgan.functional as F
from fastgan import objectives


def segments(theta: float, n: int = 64) -> tuple[Tensor, Tensor]:
    """Arjovsky et al. 2017, example 1: uniform samples of {0} × [0, 1] and {θ} × [0, 1]."""
    height = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return torch.stack([torch.zeros_like(height), height], 1), torch.stack([torch.full_like(height, theta), height], 1)


@pytest.mark.parametrize("theta", [-0.7, 0.0, 0.05, 2.0])
def test_parallel_segments(theta):
    """JS is log 2 for every θ ≠ 0, KL is infinite, while W = |θ|: only W tells the generator where to go."""
    real, fake = segments(theta)
    on_real = lambda x: 1 - 2 * (x[:, 0] == theta).double()  # 1 on the real segment, -1 on the other
    if theta:
        sure = objectives.make("fgan-js").critic_loss(lambda x: 1e3 * on_real(x), real, fake)
        assert -sum(sure.values()).item() / 2 == pytest.approx(math.log(2))
        kl = objectives.make("fgan-kl")
        bounds = [
            -sum(kl.critic_loss(lambda x, c=c: c * on_real(x), real, fake).values()).item()
            for c in (1.0, 10.0, 100.0, 1000.0)
        ]
        assert bounds == sorted(bounds)  # unbounded: KL(p‖q) is infinite
        assert bounds[-1] > 999
    distance = torch.cdist(real, fake)
    assert cheapest_plan(distance) == pytest.approx(abs(theta), abs=1e-9)
    assert F.wasserstein_1d(real[:, 0], fake[:, 0]).item() == pytest.approx(abs(theta))
    # The dual attains it too, by D(x) = ±x_0, which is 1-Lipschitz.
    critic = lambda x: -math.copysign(1.0, theta) * x[:, 0]
    wasserstein = objectives.make("wgan")
    assert -sum(wasserstein.critic_loss(critic, real, fake).values()).item() == pytest.approx(abs(theta))


def cheapest_plan(cost: Tensor) -> float:
    """min ⟨γ, cost⟩ over plans γ with uniform marginals, by linear programming."""
    n = len(cost)
    rows = np.kron(np.eye(n), np.ones(n))
    columns = np.kron(np.ones(n), np.eye(n))
    marginals = np.full(2 * n, 1 / n)
    found = linprog(cost.numpy().ravel(), A_eq=np.vstack([rows, columns]), b_eq=marginals, method="highs")
    return float(found.fun)


def test_earth_movers_plan_is_the_cheapest_of_all():
    x, y = torch.randn(7, dtype=torch.float64), torch.randn(7, dtype=torch.float64) + 1
    cost = (x[:, None] - y[None]).abs()
    emd = F.wasserstein_1d(x, y).item()
    assert emd == pytest.approx(cheapest_plan(cost))
    for _ in range(20):
        assert cost[torch.arange(7), torch.randperm(7)].mean().item() >= emd - 1e-12


def test_sigmoid_critic_starves_the_generator():
    """A critic that is sure of a far fake: the minimax gradient vanishes exponentially, that of the non-saturating
    and least squares losses does not, and Wasserstein's is 1 wherever the fake is."""
    gradients = {}
    for name in ("gan", "non-saturating", "lsgan", "wgan"):
        for far in (1.0, 10.0, 40.0):
            fake = torch.tensor([[-far]], dtype=torch.float64, requires_grad=True)
            loss = sum(objectives.make(name).generator_loss(lambda x: x[:, 0], fake.detach(), fake).values())
            gradients[name, far] = torch.autograd.grad(loss, fake)[0].abs().item()
    assert gradients["gan", 10.0] == pytest.approx(math.exp(-10), rel=1e-4)
    assert gradients["gan", 40.0] < 1e-17
    assert gradients["non-saturating", 40.0] == pytest.approx(1.0)
    assert gradients["lsgan", 40.0] == pytest.approx(41.0)
    assert [gradients["wgan", far] for far in (1.0, 10.0, 40.0)] == [1.0, 1.0, 1.0]


def train_critic(
    name: str, real: Tensor, fake: Tensor, steps: int, clip: float | None = None, **hyper: float
) -> nn.Module:
    critic = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    objective = objectives.make(name, **hyper)
    optimizer = (
        torch.optim.RMSprop(critic.parameters(), lr=5e-3)
        if clip
        else torch.optim.Adam(critic.parameters(), lr=5e-3, betas=(0.5, 0.9))
    )
    for _ in range(steps):
        if clip:
            with torch.no_grad():
                for parameter in critic.parameters():
                    parameter.clamp_(-clip, clip)
        optimizer.zero_grad()
        sum(objective.critic_loss(critic, real, fake).values()).backward()
        optimizer.step()
    return critic


def dual_estimate(critic: nn.Module, real: Tensor, fake: Tensor) -> float:
    """−(real + fake) of the Wasserstein loss: the Kantorovich–Rubinstein estimate."""
    with torch.no_grad():
        return -sum(objectives.make("wgan").critic_loss(critic, real, fake).values()).item()


def slope(critic: nn.Module, real: Tensor, fake: Tensor) -> float:
    """The critic's largest slope along the line, between the outermost samples."""
    both = torch.cat([real, fake])[:, 0]
    x = on_axis(torch.linspace(both.min().item(), both.max().item(), 2001)).requires_grad_()
    return torch.autograd.grad(critic(x).sum(), x)[0][:, 0].abs().max().item()


def on_axis(x: Tensor) -> Tensor:
    """[n] → [n, 2] with the second coordinate 0."""
    return torch.stack([x, torch.zeros_like(x)], 1)


def two_humps() -> tuple[Tensor, Tensor, float]:
    """Real samples on both sides of the fakes and their exact W_1.

    They lie on a line in the plane: there a critic's gradient can turn round, where on the line itself it would have
    to pass through 0, which a two-sided penalty forbids.
    """
    real = torch.cat([torch.randn(128) * 0.3 - 1, torch.randn(128) * 0.3 + 2])
    fake = torch.randn(256) * 0.5 - 0.5
    return on_axis(real), on_axis(fake), F.wasserstein_1d(real, fake).item()


@pytest.mark.parametrize("name", ["wgan-gp", "wgan-gp-one-sided"])
def test_penalised_critic_approaches_the_exact_distance(name):
    """The critic's slope settles at 1 + W/(2λ), so its dual estimate tends to W_1 from above as λ grows."""
    real, fake, exact = two_humps()
    for weight, tolerance in ((10.0, 0.16), (50.0, 0.1)):
        critic = train_critic(name, real, fake, steps=300, weight=weight)
        assert dual_estimate(critic, real, fake) == pytest.approx(exact, rel=tolerance)


def test_clipped_critic_knows_the_distance_only_up_to_its_slope():
    """Clipping bounds the slope by some K that depends on the network: the estimate is off by that factor, and even
    divided by K stays further below W_1 than a penalised critic's, because few inputs see the full slope."""
    real, fake, exact = two_humps()
    clipped = train_critic("wgan", real, fake, steps=300, clip=0.3)
    penalised = train_critic("wgan-gp", real, fake, steps=300)
    estimate, steepest = dual_estimate(clipped, real, fake), slope(clipped, real, fake)
    assert estimate > 3 * exact
    assert 0.5 * exact < estimate / steepest <= exact * (1 + 1e-4)
    assert dual_estimate(penalised, real, fake) / slope(penalised, real, fake) > estimate / steepest
