"""Every objective against its formula evaluated by NumPy and SciPy, its gradients, and extreme outputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit
from torch import Tensor, nn

from fastgan import objectives
from fastgan.functional.sliced_wasserstein import random_directions

N = 23


def first_column(x: Tensor) -> Tensor:
    """A critic whose output is the sample itself."""
    return x[:, 0]


def samples(scale: float = 1.5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    real, fake = (scale * torch.randn(N, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    return real + 0.3, fake - 0.2


def critic_bce(real, fake, label=1.0):
    def cross_entropy(target, v):
        return -(target * np.log(expit(v)) + (1 - target) * np.log(1 - expit(v)))

    return cross_entropy(label, real).mean() + cross_entropy(0.0, fake).mean()


F_GENERATORS = {  # f(u) as integrand: D_f = ∫ q f(p / q)
    "kl": lambda u: u * math.log(u),
    "reverse-kl": lambda u: -math.log(u),
    "pearson": lambda u: (u - 1) ** 2,
    "hellinger": lambda u: (math.sqrt(u) - 1) ** 2,
    "js": lambda u: u * math.log(u) - (u + 1) * math.log((u + 1) / 2),
    "gan": lambda u: u * math.log(u) - (u + 1) * math.log(u + 1),
}
ACTIVATIONS = {  # Nowozin et al., table 6
    "kl": lambda v: v,
    "reverse-kl": lambda v: -np.exp(-v),
    "pearson": lambda v: v,
    "hellinger": lambda v: 1 - np.exp(-v),
    "js": lambda v: math.log(2) - np.log(1 + np.exp(-v)),
    "gan": lambda v: -np.log(1 + np.exp(-v)),
}


def conjugate(name: str, t: float) -> float:
    """f*(t) = sup_u (u t - f(u)), by a numerical search over log u (over u for χ², whose f lives on the line)."""
    f = F_GENERATORS[name]
    if name == "pearson":
        return -minimize_scalar(lambda u: f(u) - u * t).fun
    found = minimize_scalar(lambda s: f(math.exp(s)) - math.exp(s) * t, bounds=(-60, 12), options={"xatol": 1e-12})
    found = minimize_scalar(
        lambda s: f(math.exp(s)) - math.exp(s) * t,
        bracket=(found.x - 0.5, found.x, found.x + 0.5),
        options={"xtol": 1e-12},
    )
    return -found.fun


def fgan_critic(name):
    def loss(real, fake):
        return -ACTIVATIONS[name](real).mean() + np.mean([conjugate(name, t) for t in ACTIVATIONS[name](fake)])

    return loss


def fgan_generator(name):
    return lambda real, fake: -np.mean([conjugate(name, t) for t in ACTIVATIONS[name](fake)])


LINEAR = ("kl", "pearson")  # whose generators take the alternative loss, −E T(y), T = D, by default

FORMULAS = {  # name, options -> (critic loss, generator loss) from the critic's outputs, which are the samples
    ("gan", ()): (critic_bce, lambda r, f: np.log(1 - expit(f)).mean()),
    ("gan", (("real_label", 0.9),)): (lambda r, f: critic_bce(r, f, 0.9), lambda r, f: np.log(1 - expit(f)).mean()),
    ("non-saturating", ()): (critic_bce, lambda r, f: -np.log(expit(f)).mean()),
    ("non-saturating", (("real_label", 0.8),)): (
        lambda r, f: critic_bce(r, f, 0.8),
        lambda r, f: -np.log(expit(f)).mean(),
    ),
    ("lsgan", ()): (
        lambda r, f: ((r - 1) ** 2).mean() / 2 + (f**2).mean() / 2,
        lambda r, f: ((f - 1) ** 2).mean() / 2,
    ),
    ("lsgan", (("real_label", 0.9),)): (
        lambda r, f: ((r - 0.9) ** 2).mean() / 2 + (f**2).mean() / 2,
        lambda r, f: ((f - 1) ** 2).mean() / 2,
    ),
    ("hinge", ()): (
        lambda r, f: np.maximum(0, 1 - r).mean() + np.maximum(0, 1 + f).mean(),
        lambda r, f: -f.mean(),
    ),
    ("sngan", ()): (
        lambda r, f: np.maximum(0, 1 - r).mean() + np.maximum(0, 1 + f).mean(),
        lambda r, f: -f.mean(),
    ),
    ("wgan", ()): (lambda r, f: f.mean() - r.mean(), lambda r, f: -f.mean()),
    ("ebgan", (("margin", 1.3), ("pulling_away", 0.0))): (
        lambda r, f: r.mean() + np.maximum(0, 1.3 - f).mean(),
        lambda r, f: f.mean(),
    ),
    ("loss-sensitive", (("margin", 0.7), ("real_weight", 0.4))): (
        lambda r, f: 0.4 * r.mean() + np.maximum(0, 0.7 * np.abs(r - f) + r - f).mean(),
        lambda r, f: f.mean(),
    ),
    **{(f"fgan-{name}", ()): (fgan_critic(name), fgan_generator(name)) for name in F_GENERATORS if name not in LINEAR},
    **{(f"fgan-{name}", ()): (fgan_critic(name), lambda r, f: -f.mean()) for name in LINEAR},
    **{(f"fgan-{name}", (("alternative", False),)): (fgan_critic(name), fgan_generator(name)) for name in LINEAR},
    **{
        (f"fgan-{name}", (("alternative", True),)): (
            fgan_critic(name),
            lambda r, f, name=name: -ACTIVATIONS[name](f).mean(),
        )
        for name in F_GENERATORS
        if name not in LINEAR
    },
}


@pytest.mark.parametrize("case", FORMULAS, ids=lambda case: case[0] + "".join(f" {k}={v}" for k, v in case[1]))
@pytest.mark.parametrize("joint", [False, True], ids=["apart", "joint"])
def test_formula(case, joint):
    (name, options), (critic_formula, generator_formula) = case, FORMULAS[case]
    objective = objectives.make(name, **dict(options), joint=joint)
    real, fake = samples()
    arrays = real[:, 0].numpy(), fake[:, 0].numpy()
    critic_loss = sum(objective.critic_loss(first_column, real, fake).values())
    generator_loss = sum(objective.generator_loss(first_column, real, fake).values())
    assert critic_loss.item() == pytest.approx(critic_formula(*arrays), rel=1e-9, abs=1e-9)
    assert generator_loss.item() == pytest.approx(generator_formula(*arrays), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", sorted({name for name, _ in FORMULAS}))
def test_gradients(name):
    objective = objectives.make(name)
    inputs = tuple(t.requires_grad_() for t in samples())
    options = {"atol": 1e-7, "rtol": 1e-5}
    critic = lambda x: x[:, 0]
    if name == "ebgan":
        objective = objectives.make(name, pulling_away=0.0)

    def critic_loss(r, f):
        return sum(objective.critic_loss(critic, r, f).values())

    def generator_loss(f):
        return sum(objective.generator_loss(critic, inputs[0].detach(), f).values())

    assert torch.autograd.gradcheck(critic_loss, inputs, **options)
    assert torch.autograd.gradgradcheck(critic_loss, inputs, **options)
    assert torch.autograd.gradcheck(generator_loss, inputs[1:], **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [89.0, 2e4])
@pytest.mark.parametrize("name", sorted({name for name, _ in FORMULAS}))
def test_extreme_outputs(name, size, dtype):
    """No overflow, no NaN, and a critic that is wrong by far is pushed the right way in every sample."""
    objective = objectives.make(name, pulling_away=0.0) if name == "ebgan" else objectives.make(name)
    for sign in (1, -1):
        real = torch.full((5, 1), -sign * size, dtype=dtype).requires_grad_()
        fake = torch.full((5, 1), sign * size, dtype=dtype).requires_grad_()
        terms = objective.critic_loss(first_column, real, fake)
        loss = sum(terms.values())
        on_real, on_fake = torch.autograd.grad(loss, (real, fake))
        (generator,) = torch.autograd.grad(sum(objective.generator_loss(first_column, real, fake).values()), fake)
        assert loss.dtype == torch.float32
        for value in (loss, on_real, on_fake, generator):
            assert value.isfinite().all(), (name, sign, value)
        low_is_real = name in ("ebgan", "loss-sensitive")
        if sign == (-1 if low_is_real else 1) and name not in ("lsgan", "fgan-pearson"):  # fakes rated as real
            direction = -1 if low_is_real else 1
            assert (direction * on_real <= 0).all()
            assert (direction * on_fake >= 0).all()
            assert on_real.abs().sum() + on_fake.abs().sum() > 0


@pytest.mark.parametrize("name", ["fgan-kl", "fgan-reverse-kl", "fgan-hellinger"])
def test_exponentials_are_exact_where_they_matter(name):
    """The tangent starts at 10; up to there the loss is the formula's to rounding."""
    v = torch.linspace(-9.9, 9.9, 59, dtype=torch.float64)[:, None]
    loss = sum(objectives.make(name).critic_loss(first_column, v, v).values()).item()
    t = v[:, 0].numpy()
    exact = {
        "fgan-kl": (np.exp(t - 1) - t).mean(),
        "fgan-reverse-kl": (np.exp(-t) + t - 1).mean(),
        "fgan-hellinger": (np.exp(t) - 1 - (1 - np.exp(-t))).mean(),
    }[name]
    assert loss == pytest.approx(exact, rel=1e-13)
    conjugate_of = objectives.fgan.DIVERGENCES["kl"].conjugate
    below, above = conjugate_of(torch.tensor([11.0 - 1e-6, 11.0 + 1e-6], dtype=torch.float64))
    assert (above - below).item() == pytest.approx(2e-6 * math.exp(10), rel=1e-5)  # value and slope are continuous


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4).double(), nn.Linear(4, 6).double()

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.encoder(x)
        return (self.decoder(code) - x).square().mean(1), code

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x)[0]


def test_ebgan_pulls_codes_apart():
    critic = Autoencoder()
    real, fake = torch.randn(2, 7, 6, dtype=torch.float64)
    terms = objectives.make("ebgan", pulling_away=0.3).generator_loss(critic, real, fake)
    code = critic.encoder(fake).detach().numpy()
    cosines = [
        (a @ b / np.linalg.norm(a) / np.linalg.norm(b)) ** 2
        for i, a in enumerate(code)
        for j, b in enumerate(code)
        if i != j
    ]
    assert terms["pulling_away"].item() == pytest.approx(0.3 * np.mean(cosines), rel=1e-12)
    assert terms["adversarial"].item() == pytest.approx(critic(fake).mean().item(), rel=1e-12)
    assert objectives.ebgan.pulling_away(torch.eye(3)).item() == 0.0
    assert objectives.ebgan.pulling_away(torch.ones(4, 2)).item() == pytest.approx(1.0)
    collapsed = torch.zeros(4, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(objectives.ebgan.pulling_away(collapsed), collapsed)
    assert gradient.isfinite().all()
    assert objectives.ebgan.pulling_away(torch.ones(1, 2)).item() == 0.0


class Features(nn.Module):
    """A small critic with dropout and a last hidden layer."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 5), nn.Tanh())
        self.head = nn.Linear(5, 1)
        self.double()

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return self.head(features)[:, 0], features

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x)[0]


@pytest.mark.parametrize("name", ["gan", "non-saturating", "lsgan", "hinge", "sngan", "dragan"])
def test_feature_matching(name):
    critic = Features()
    real, fake = torch.randn(2, 9, 6, dtype=torch.float64)
    fake.requires_grad_()
    objective = objectives.make(name, feature_matching=True)
    terms = objective.generator_loss(critic, real, fake)
    gap = critic.body(real).detach().numpy().mean(0) - critic.body(fake).detach().numpy().mean(0)
    assert set(terms) == {"feature_matching"}
    assert terms["feature_matching"].item() == pytest.approx((gap**2).sum(), rel=1e-12)
    assert torch.autograd.grad(terms["feature_matching"], fake)[0].abs().sum() > 0
    with pytest.raises(TypeError, match="forward_features"):
        objective.generator_loss(nn.Linear(6, 1).double(), real, fake)


def interpolated_penalty(critic, a, b, weight, seed, one_sided=False):
    """The penalty written out, from the interpolation coefficients that a generator's seed gives."""
    from fastgan.functional.interpolate import interpolate

    alpha = interpolate(torch.ones(len(a), 1), torch.zeros(len(a), 1), generator=seed).double()
    x = (alpha * a + (1 - alpha) * b).requires_grad_()
    (slope,) = torch.autograd.grad(critic(x).sum(), x)
    excess = np.linalg.norm(slope.numpy(), axis=1) - 1
    return weight * (np.maximum(0, excess) if one_sided else excess).__pow__(2).mean()


@pytest.mark.parametrize("name", ["wgan-gp", "wgan-gp-one-sided"])
def test_penalty_terms(name):
    critic = Features()
    real, fake = 3 * torch.randn(2, 9, 6, dtype=torch.float64)
    terms = objectives.make(name, weight=7.0).critic_loss(
        critic, real, fake, generator=torch.Generator().manual_seed(1)
    )
    expected = interpolated_penalty(
        critic, real, fake, 7.0, torch.Generator().manual_seed(1), one_sided=name == "wgan-gp-one-sided"
    )
    assert terms["penalty"].item() == pytest.approx(expected, rel=1e-6)
    assert terms["real"].item() == pytest.approx(-critic(real).mean().item())
    assert terms["fake"].item() == pytest.approx(critic(fake).mean().item())


def test_dragan_penalises_around_real_data():
    critic = Features()
    real, fake = torch.randn(2, 9, 6, dtype=torch.float64)
    objective = objectives.make("dragan", weight=3.0, spread=0.25)
    terms = objective.critic_loss(critic, real, fake, generator=torch.Generator().manual_seed(2))
    seed = torch.Generator().manual_seed(2)
    perturbed = real + 0.25 * real.numpy().std() * torch.rand(9, 6, generator=seed, dtype=torch.float64)
    assert terms["penalty"].item() == pytest.approx(interpolated_penalty(critic, perturbed, real, 3.0, seed), rel=1e-6)
    assert sum(v.item() for k, v in terms.items() if k != "penalty") == pytest.approx(
        critic_bce(critic(real).detach().numpy(), critic(fake).detach().numpy())
    )


def test_ct_gan_compares_two_dropout_passes():
    critic = Features(dropout=0.5)
    real, fake = torch.randn(2, 9, 6, dtype=torch.float64)
    objective = objectives.make("ct-gan", consistency=2.0, margin=0.01)
    terms = objective.critic_loss(critic, real, fake)
    assert set(terms) == {"real", "fake", "penalty", "consistency"}
    passes = []

    def recorded(x: Tensor) -> tuple[Tensor, Tensor]:
        passes.append(Features.forward_features(critic, x))
        return passes[-1]

    critic.forward_features = recorded
    terms = objective.critic_loss(critic, real, fake)
    (d1, h1), (d2, h2) = [[t.detach().numpy() for t in p] for p in passes[-2:]]
    expected = 2.0 * np.maximum(0, (d1 - d2) ** 2 + 0.1 * ((h1 - h2) ** 2).mean(1) - 0.01).mean()
    assert expected > 0
    assert terms["consistency"].item() == pytest.approx(expected, rel=1e-12)
    critic.eval()
    assert objective.critic_loss(critic, real, fake)["consistency"].item() == 0.0


def test_patch_critics():
    """A critic may give a map of outputs for each sample; the loss is the mean over everything."""
    critic = nn.Conv2d(3, 1, 4, stride=2)
    real, fake = torch.randn(2, 5, 3, 9, 11)
    for name in ("non-saturating", "lsgan", "hinge", "wgan", "loss-sensitive", "fgan-js", "gan"):
        for joint in (False, True):
            objective = objectives.make(name, joint=joint)
            assert all(t.dim() == 0 and t.isfinite() for t in objective.critic_loss(critic, real, fake).values())


def test_sliced_is_the_squared_distance_and_has_no_critic():
    real, fake = torch.randn(2, 31, 2, 3)
    fake.requires_grad_()
    objective = objectives.make("sliced", n_projections=7)
    assert objective.critic_loss(first_column, real, fake) == {}
    terms = objective.generator_loss(first_column, real, fake, generator=torch.Generator().manual_seed(5))
    directions = random_directions(7, real.flatten(1), torch.Generator().manual_seed(5)).numpy().astype(np.float64)
    project = lambda x: np.sort(x.detach().numpy().reshape(31, 6) @ directions.T, axis=0)
    assert directions.shape == (7, 6)
    assert terms["sliced_wasserstein"].item() == pytest.approx(((project(real) - project(fake)) ** 2).mean(), rel=1e-5)
    (gradient,) = torch.autograd.grad(terms["sliced_wasserstein"], fake)
    assert gradient.shape == fake.shape
    assert gradient.abs().sum() > 0
    same = objective.generator_loss(first_column, real, real.clone().requires_grad_())
    assert same["sliced_wasserstein"].item() == 0.0
