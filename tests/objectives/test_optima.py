"""Each critic's optimum where it has a closed form: two Gaussians, two densities on a grid."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from fastgan import objectives

# Real samples are N(0, 1), generated ones N(0.5, 1.1²).
P, Q = stats.norm(0.0, 1.0), stats.norm(0.5, 1.1)
QUANTILES = (np.arange(200_000) + 0.5) / 200_000
REAL = torch.from_numpy(P.ppf(QUANTILES))[:, None]  # means over these are integrals over p, to 1e-4
FAKE = torch.from_numpy(Q.ppf(QUANTILES))[:, None]


def log_ratio(x: Tensor) -> Tensor:
    """log p(x) / q(x) [N]."""
    x = x[:, 0]
    return -(x**2) / 2 + ((x - 0.5) / 1.1) ** 2 / 2 + math.log(1.1)


def integral(f) -> float:
    return integrate.quad(lambda x: f(P.pdf(x), Q.pdf(x)), -12, 12, epsabs=1e-12, limit=200)[0]


JS = integral(lambda p, q: p * math.log(2 * p / (p + q)) + q * math.log(2 * q / (p + q))) / 2
DIVERGENCES = {  # closed forms for Gaussians, or an integral
    "fgan-kl": math.log(1.1) + (1 + 0.5**2) / (2 * 1.1**2) - 0.5,
    "fgan-reverse-kl": -math.log(1.1) + (1.1**2 + 0.5**2) / 2 - 0.5,
    "fgan-pearson": integral(lambda p, q: (p - q) ** 2 / q),
    "fgan-hellinger": 2 * (1 - math.sqrt(2 * 1.1 / (1 + 1.1**2)) * math.exp(-(0.5**2) / (4 * (1 + 1.1**2)))),
    "fgan-js": 2 * JS,
    "fgan-gan": 2 * JS - math.log(4),
    "gan": 2 * JS - math.log(4),
    "lsgan": -integral(lambda p, q: p * q / (2 * (p + q))),  # ½ ∫ pq/(p+q) is the least critic loss
    "hinge": integral(lambda p, q: abs(p - q)) - 2,  # 2 TV - 2
}
OPTIMAL = {  # the critic's output at the optimum, from log p/q: for f-GAN g_f^-1(f'(p/q))
    "fgan-kl": lambda s: 1 + s,
    "fgan-reverse-kl": lambda s: s,
    "fgan-pearson": lambda s: 2 * (s.exp() - 1),
    "fgan-hellinger": lambda s: s / 2,
    "fgan-js": lambda s: s,
    "fgan-gan": lambda s: s,
    "gan": lambda s: s,
    "lsgan": lambda s: s.sigmoid(),
    "hinge": lambda s: s.sign(),
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_bound_reaches_the_divergence(name):
    """−L_D at the optimal critic is the divergence; any other critic gives less."""
    objective = objectives.make(name)

    def bound(critic) -> float:
        return -sum(objective.critic_loss(critic, REAL, FAKE).values()).item()

    best = lambda x: OPTIMAL[name](log_ratio(x))
    assert bound(best) == pytest.approx(DIVERGENCES[name], abs=3e-4)
    for wrong in (
        lambda x: best(x) + 0.1,
        lambda x: best(x) - 0.1,
        lambda x: 0.9 * best(x),
        lambda x: best(x) + 0.1 * torch.sin(3 * x[:, 0]),
        lambda x: best(x + 0.2),
    ):
        assert bound(wrong) < bound(best)


def test_energies_reach_the_overlap():
    """Of energies in [0, m] the best are m where q > p, else 0: L_D = m ∫ min(p, q) = m (1 − TV), m where p = q."""
    margin = 1.7
    objective = objectives.make("ebgan", margin=margin)

    def loss(energy) -> float:
        return sum(objective.critic_loss(energy, REAL, FAKE).values()).item()

    best = lambda x: margin * (log_ratio(x) < 0).to(x)
    assert loss(best) == pytest.approx(margin * integral(min), abs=3e-4)
    for wrong in (
        lambda x: best(x) + 0.1,
        lambda x: 0.9 * best(x),
        lambda x: best(x + 0.2),
        lambda x: margin * (-log_ratio(x)).sigmoid(),
    ):
        assert loss(wrong) > loss(best)
    same = sum(objective.critic_loss(best, REAL, REAL).values()).item()
    assert same == pytest.approx(margin, abs=1e-9)


@pytest.mark.parametrize("name", ["fgan-kl", "fgan-reverse-kl", "fgan-hellinger", "fgan-js", "fgan-gan", "gan"])
def test_training_a_critic_reaches_the_divergence(name):
    """The optimum is a quadratic polynomial for these: fitted from zero by the loss alone, it attains the bound."""
    objective = objectives.make(name)
    real, fake = REAL[::50], FAKE[::50]
    coefficients = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def critic(x: Tensor) -> Tensor:
        return torch.cat([torch.ones_like(x), x, x * x], 1) @ coefficients

    optimizer = torch.optim.LBFGS([coefficients], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum(objective.critic_loss(critic, real, fake).values())
        loss.backward()
        return loss

    optimizer.step(closure)
    assert -closure().item() == pytest.approx(DIVERGENCES[name], abs=3e-3)
    learnt = critic(REAL).detach()
    assert (learnt - OPTIMAL[name](log_ratio(REAL))).abs().mean() < 0.05


def test_generator_gradients_point_to_the_data():
    """At the optimal critic the generator's step moves the fakes' mean towards that of the data."""
    for name in (*DIVERGENCES, "non-saturating"):
        if name in ("hinge",):  # its optimal critic is piecewise constant
            continue
        objective = objectives.make(name)
        best = OPTIMAL["gan" if name == "non-saturating" else name]
        fake = FAKE.clone().requires_grad_()
        loss = sum(objective.generator_loss(lambda x, best=best: best(log_ratio(x)), REAL, fake).values())
        (gradient,) = torch.autograd.grad(loss, fake)
        # Real is N(0, 1), fake N(0.5, 1.1²): samples shrink towards 0, so descent has a negative dot product with x.
        assert (gradient * fake.detach()).sum() > 0, name
