"""Gradient penalties: the fused norm penalty, and the critic penalties made of it."""

from __future__ import annotations

import copy
import functools
import math
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastgan
import fastgan.functional as F
import fastgan.nn
from fastgan.functional.gradient_penalty import _norm_penalty
from fastgan.models.gan import MinibatchDiscrimination
from tests.losses import BF16, F16, F32, F64, LARGE, check_penalty, tensor


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


def gradients(loss: Tensor, critic: nn.Module) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, list(critic.parameters()), materialize_grads=True)


@pytest.mark.parametrize("one_sided", [False, True])
def test_wgan_gp_is_the_published_algorithm(one_sided: bool) -> None:
    critic, (real, fake, alpha) = small_critic(), batch()
    real, fake = 4 * real, 4 * fake
    ours = F.gradient_penalty(critic, real, fake, alpha=alpha, one_sided=one_sided)
    theirs = plain_penalty(critic, real, fake, alpha, one_sided)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(gradients(ours, critic), gradients(theirs, critic), strict=True):
        torch.testing.assert_close(a, b)


# --- the operator -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_norm_penalty_of_every_dtype_and_layout(dtype: torch.dtype, layout: str) -> None:
    check_penalty("auto", tensor((3, 5, 41, 31), dtype, layout), 1.0, False)


@pytest.mark.parametrize(("target", "one_sided"), [(0.0, False), (0.0, True), (1.5, False), (1.5, True), (1e6, True)])
@pytest.mark.parametrize("shape", [(1, 1), (300, 2), (2, 1, 1, 7), (2, 3, 4099), (2, LARGE), (2, LARGE + 1)])
def test_norm_penalty_of_odd_shapes_and_targets(shape: tuple[int, ...], target: float, one_sided: bool) -> None:
    check_penalty("auto", tensor(shape, F32), target, one_sided)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("target", "one_sided"), [(1.0, False), (2.0, True), (0.0, False)])
def test_gradcheck_twice_and_forward_mode(backend: str, target: float, one_sided: bool) -> None:
    def penalty(g: Tensor) -> Tensor:
        return F.gradient_norm_penalty(g, target=target, one_sided=one_sided)

    with fastgan.use_backend(backend):
        assert torch.autograd.gradcheck(penalty, (tensor((3, 2, 2), F64, "channels_last"),), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(penalty, (tensor((3, 2, 2), F64),))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("target", "one_sided"), [(1.0, False), (1.0, True), (0.0, False)])
@pytest.mark.parametrize("dtype", [F32, F16])
def test_zero_norm_has_zero_derivatives(backend: str, target: float, one_sided: bool, dtype: torch.dtype) -> None:
    g = torch.zeros(2, 3, dtype=dtype)
    g[1] = 1.0
    g.requires_grad_()
    with fastgan.use_backend(backend):
        value = F.gradient_norm_penalty(g, target=target, one_sided=one_sided)
        (grad,) = torch.autograd.grad(value, g, create_graph=True)
        (second,) = torch.autograd.grad(grad.sum(), g)
    excess = [0.0 if one_sided else -target, 3**0.5 - target]
    torch.testing.assert_close(value, torch.tensor((excess[0] ** 2 + excess[1] ** 2) / 2))
    assert not grad[0].any()
    assert grad[1].all()
    assert second.isfinite().all()
    assert torch.equal(second[0], torch.full((3,), 1.0 if target == 0 else 0.0, dtype=dtype))


@pytest.mark.parametrize("dtype", [F32, F64, F16])
@pytest.mark.parametrize("shape", [(5, 3, 41, 43), (2, 90_001), (3, 2)])
def test_gradient_of_the_forward_pass_is_that_of_a_backward_pass(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Bitwise, however samples are shared out to threads; given away once; made anew for another incoming gradient."""
    g, threads = tensor(shape, dtype), torch.get_num_threads()
    for count in (1, 3):
        torch.set_num_threads(count)
        value = F.gradient_norm_penalty(g)
        (first,) = torch.autograd.grad(value, g, retain_graph=True)
        kept = first.clone()
        first.fill_(torch.nan)
        assert torch.equal(torch.autograd.grad(value, g, retain_graph=True)[0], kept)
        (doubled,) = torch.autograd.grad(2 * F.gradient_norm_penalty(g), g)
        torch.testing.assert_close(doubled, 2 * kept)
        penalty = F.gradient_penalty(lambda x: (x * g[:1]).flatten(1).sum(1), g.detach(), g.detach(), weight=0.1)
        expected = 0.1 * F.gradient_norm_penalty(g[:1])
        torch.testing.assert_close(penalty, expected)
        if dtype != F16:  # there, the critic's own derivatives round
            ours, theirs = (torch.autograd.grad(loss, g)[0][:1] for loss in (penalty, expected))
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("incoming", [1.0, 3.0])
def test_a_weight_is_a_factor_of_the_value_and_of_every_derivative(incoming: float, backend: str) -> None:
    g, u = tensor((3, 5), F64), tensor((3, 5), F64, seed=1).detach()

    def run(penalty: Callable[[Tensor], Tensor]) -> list[Tensor]:
        value, scale = penalty(g), torch.tensor(incoming, dtype=F64, requires_grad=True)
        alone = torch.autograd.grad(value, g, scale.detach(), retain_graph=True)
        first = torch.autograd.grad(value, g, scale, create_graph=True)
        tangent = torch.func.jvp(penalty, (g.detach(),), (u,))[1]
        return [value, penalty(g.detach()), *alone, *first, *torch.autograd.grad(first, (g, scale), (u,)), tangent]

    with fastgan.use_backend(backend):
        ours = run(lambda g: _norm_penalty(g, 1.0, False, 0.1))
        expected = run(F.gradient_norm_penalty)
    for weighted, plain in zip(ours, expected, strict=True):
        torch.testing.assert_close(weighted, 0.1 * plain)


def test_float16_gradients_neither_overflow_nor_underflow() -> None:
    g = torch.stack([torch.full((64,), 300.0), torch.full((64,), 1e-4)]).half().requires_grad_()
    value = F.gradient_norm_penalty(g)
    torch.testing.assert_close(value, F.gradient_norm_penalty(g.detach().float()))
    (grad,) = torch.autograd.grad(value, g)
    assert grad[0].isfinite().all()
    assert grad[1].all()


def test_a_nan_gradient_shows() -> None:
    g = torch.tensor([[1.0, torch.nan], [1.0, 2.0]], requires_grad=True)
    value = F.gradient_norm_penalty(g, one_sided=True)
    (grad,) = torch.autograd.grad(value, g)
    assert value.isnan()
    assert grad[0].isnan().all()
    assert grad[1].isfinite().all()


def test_third_derivative_raises() -> None:
    g, u = tensor((2, 3), F64), torch.ones(2, 3, dtype=F64, requires_grad=True)
    (grad,) = torch.autograd.grad(F.gradient_norm_penalty(g), g, create_graph=True)
    (second,) = torch.autograd.grad(grad, g, u, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivative"):
        second.sum().backward()


def test_opcheck() -> None:
    g, u, one = tensor((2, 3), F32).detach(), tensor((2, 3), F32, seed=1).detach(), torch.ones(())
    ops = torch.ops.fastgan
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    _, norms = ops.gradient_norm_penalty_forward(g, 1.0, False, "native")
    for op, arguments in (
        (ops.gradient_norm_penalty_forward, (g,)),
        (ops.gradient_norm_penalty_backward, (one, g, norms)),
        (ops.gradient_norm_penalty_double_backward, (u, one, g, norms)),
    ):
        torch.library.opcheck(op.default, (*arguments, 1.0, False, "native"), test_utils=checks)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"grads": [1.0]}, TypeError, "grads must be a Tensor, got list"),
        (
            {"grads": torch.nested.nested_tensor([torch.ones(3)] * 2)},
            TypeError,
            "grads must be a dense tensor, got a nested",
        ),
        ({"grads": torch.ones(3, dtype=torch.int64)}, TypeError, "got torch.int64"),
        ({"grads": torch.ones(3)}, ValueError, r"got shape \[3\]"),
        ({"grads": torch.ones(0, 3)}, ValueError, r"got shape \[0, 3\]"),
        ({"grads": torch.ones(2, 3), "target": -1.0}, ValueError, "got -1.0"),
        ({"grads": torch.ones(2, 3), "target": "one"}, TypeError, "target must be a number, got 'one'"),
    ],
)
def test_errors(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        F.gradient_norm_penalty(**arguments)


# --- known errors of WGAN-GP ports --------------------------------------------------------------------------------


def test_one_alpha_per_sample_not_per_batch() -> None:
    seen: list[Tensor] = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.square().sum(1)

    F.gradient_penalty(critic, torch.ones(64, 3, requires_grad=True), torch.zeros(64, 3))
    assert torch.equal(seen[0], seen[0][:, :1].expand(64, 3))
    assert seen[0][:, 0].unique().numel() == 64


def test_norm_is_over_all_of_a_sample_and_nothing_else() -> None:
    weight = torch.randn(2, 3, 4, requires_grad=True)
    penalty = F.gradient_penalty(lambda x: (x * weight).sum((1, 2, 3)), torch.ones(5, 2, 3, 4), torch.zeros(5, 2, 3, 4))
    torch.testing.assert_close(penalty, 10 * (weight.norm() - 1) ** 2)


def test_no_gradient_reaches_the_generator() -> None:
    critic, (real, fake, alpha) = small_critic(), batch()
    fake.requires_grad_()
    real.requires_grad_()
    F.gradient_penalty(critic, real, fake, alpha=alpha).backward()
    assert fake.grad is None
    assert real.grad is None
    assert all(p.grad is not None for p in list(critic.parameters())[:2])


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False).eval()])
def test_batch_norm_in_the_critic_is_refused(norm: nn.Module) -> None:
    critic = nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.Flatten(), nn.LazyLinear(1))
    real = torch.randn(3, 2, 5, 5)
    critic(real)
    with pytest.raises(ValueError, match=r"BatchNorm2d '1' normalises over the batch.*allow_batch_mixing"):
        F.gradient_penalty(critic, real, real)
    assert F.gradient_penalty(critic, real, real, allow_batch_mixing=True).requires_grad


def test_minibatch_statistics_in_the_critic_are_refused() -> None:
    critic = nn.Sequential(nn.Linear(6, 4), MinibatchDiscrimination(4, 3), nn.Linear(7, 1))
    real = torch.randn(3, 6)
    with pytest.raises(ValueError, match=r"MinibatchDiscrimination '1' mixes the samples.*allow_batch_mixing"):
        F.gradient_penalty(critic, real, real)
    assert F.gradient_penalty(critic, real, real, allow_batch_mixing=True).requires_grad


@pytest.mark.parametrize("kind", ["lambda", "method", "partial"])
def test_batch_norm_in_a_critic_that_is_no_module_is_refused(kind: str) -> None:
    """The usual form of a conditional critic, or of one that returns features beside its scores."""
    critic = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
    wrapped = {"lambda": lambda x: critic(x), "method": critic.forward, "partial": functools.partial(critic)}[kind]
    real = torch.randn(3, 6)
    with pytest.raises(ValueError, match=r"gradient_penalty: the critic normalises over the batch.*allow_batch_mixing"):
        F.gradient_penalty(wrapped, real, real)
    assert F.gradient_penalty(wrapped, real, real, allow_batch_mixing=True).requires_grad
    critic.eval()
    alpha = torch.rand(3)
    torch.testing.assert_close(*(F.gradient_penalty(c, real, real + 1, alpha=alpha) for c in (wrapped, critic)))


class _Calling(nn.Module):
    """A critic that hands on to something else."""

    def __init__(self, critic: Any) -> None:
        super().__init__()
        self.hidden = [critic]

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden[0](x)


def _normalised(x: Tensor) -> Tensor:
    return nn.functional.batch_norm(x, None, None, training=True).square()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "wrap",
    [
        lambda critic, x: _Calling(critic),
        lambda critic, x: _Calling(lambda y: critic(y)),
        lambda critic, x: _Calling(lambda y: critic[2:](_normalised(critic[0](y)))),
        lambda critic, x: torch.jit.script(critic),
        lambda critic, x: torch.jit.trace(critic, x),
        lambda critic, x: nn.Sequential(torch.jit.script(critic), nn.Tanh()),
        lambda critic, x: torch.fx.symbolic_trace(critic[:1] + nn.Sequential(_Calling(_normalised)) + critic[2:]),
        lambda critic, x: torch.export.export(critic, (x,)).module(),
        lambda critic, x: lambda y: torch.utils.checkpoint.checkpoint(critic, y, use_reentrant=False),
    ],
    ids=["list", "closure", "helper", "script", "trace", "in a module", "fx", "export", "checkpoint"],
)
def test_batch_norm_is_refused_wherever_it_hides(wrap: Callable[[nn.Module, Tensor], Any]) -> None:
    real, alpha = torch.randn(3, 6), torch.rand(3)
    plain = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
    critic = wrap(plain, real)
    for _ in range(4):  # scripts are optimised after some calls
        with pytest.raises(ValueError, match=r"gradient_penalty: .*normalises over the batch.*allow_batch_mixing"):
            F.gradient_penalty(critic, real, real)
        assert F.gradient_penalty(critic, real, real + 1, alpha=alpha, allow_batch_mixing=True) > 0


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_batch_norm_in_evaluation_or_of_what_is_no_sample_is_not_refused() -> None:
    real, alpha = torch.randn(3, 6), torch.rand(3)
    plain = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)).eval()
    expected = F.gradient_penalty(plain, real, real + 1, alpha=alpha)
    for critic in (_Calling(plain), torch.jit.script(plain), torch.jit.trace(plain, real)):
        torch.testing.assert_close(F.gradient_penalty(critic, real, real + 1, alpha=alpha), expected)
    labels = _normalised(torch.randn(3, 4, requires_grad=True))
    conditional = lambda x, y: plain[2:](plain[0](x) + y)
    assert F.gradient_penalty(conditional, real, real + 1, critic_args=(labels,)) > 0


class CallsBatchNorm(nn.Module):
    """A critic that calls the function; with ``folded``, on the instances of a batch of one, as AdaIN does."""

    def __init__(self, folded: bool) -> None:
        super().__init__()
        self.conv, self.folded = nn.Conv2d(2, 4, 3), folded

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = y.reshape(1, -1, *y.shape[2:]) if self.folded else y
        return torch.tanh(nn.functional.batch_norm(z, None, None, training=self.training).view_as(y)).flatten(1).sum(1)


def test_batch_norm_as_a_function_in_a_module_is_refused() -> None:
    real, fake, alpha = batch()
    critic = CallsBatchNorm(folded=False).double()
    with pytest.raises(ValueError, match=r"gradient_penalty: the critic normalises over the batch.*allow_batch_mixing"):
        F.gradient_penalty(critic, real, fake)
    assert F.gradient_penalty(critic, real, fake, allow_batch_mixing=True).requires_grad
    critic = CallsBatchNorm(folded=True).double()
    torch.testing.assert_close(*(f(critic, real, fake, alpha) for f in (_ours, plain_penalty)))


def test_batch_norm_in_evaluation_is_a_critic_like_any_other() -> None:
    critic = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(36, 1)).double()
    real, fake, alpha = batch()
    ours, theirs = (f(critic.eval(), real, fake, alpha) for f in (_ours, plain_penalty))
    torch.testing.assert_close(ours, theirs)


def _ours(critic: nn.Module, real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
    return F.gradient_penalty(critic, real, fake, alpha=alpha)


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_penalty_is_not_computed_in_autocast(dtype: torch.dtype) -> None:
    critic = small_critic(F32)
    real, fake, alpha = (t.float() for t in batch())
    exact = F.gradient_penalty(critic, real, fake, alpha=alpha)
    with torch.autocast("cpu", dtype):
        penalty = F.gradient_penalty(critic, real, fake, alpha=alpha, grad_scale=64.0 if dtype == F16 else 1.0)
    assert penalty.dtype == F32
    torch.testing.assert_close(penalty, exact, rtol=0.03, atol=0)
    for a, b in zip(gradients(penalty, critic), gradients(exact, critic), strict=True):
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.05 * b.abs().max().item())


def test_grad_scale_keeps_small_float16_gradients() -> None:
    def critic(x: Tensor) -> Tensor:
        return (x.half() * 1e-4).flatten(1).sum(1) * (x.new_ones((), requires_grad=True) * 1e-4).half()

    real = torch.ones(2, 64)
    values = [F.gradient_penalty(critic, real, real, target=0.0, weight=1.0, grad_scale=s) for s in (1.0, 2.0**14)]
    assert values[0] == 0
    torch.testing.assert_close(values[1], torch.tensor(64e-16), rtol=0.02, atol=0)


# --- critics ------------------------------------------------------------------------------------------------------


def test_patch_critic_scores_are_summed_per_sample() -> None:
    critic, (real, fake, alpha) = small_critic(), batch()
    assert critic(real).shape == (3, 1, 3, 3)
    torch.testing.assert_close(
        F.gradient_penalty(critic, real, fake, alpha=alpha),
        F.gradient_penalty(lambda x: critic(x).flatten(1).sum(1), real, fake, alpha=alpha),
    )


class _Conditional(nn.Module):
    """A projection discriminator of points (Miyato & Koyama 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.classes = nn.Linear(4, 8), nn.Linear(8, 1), nn.Embedding(5, 8)

    def forward(self, x: Tensor, label: Tensor, scale: float = 1.0) -> Tensor:
        h = torch.tanh(self.body(x))
        return self.head(h)[:, 0] + scale * (h * self.classes(label)).sum(1)


@pytest.mark.parametrize(
    "penalty",
    [
        lambda critic, x, **options: F.gradient_penalty(critic, x, x + 1, alpha=torch.full((6,), 0.3), **options),
        lambda critic, x, **options: F.r1_penalty(critic, x, **options),
        lambda critic, x, **options: F.dragan_penalty(critic, x, noise=x, alpha=torch.full((6,), 0.3), **options),
        lambda critic, x, **options: fastgan.nn.GradientPenalty()(critic, x, x + 1, torch.full((6,), 0.3), **options),
    ],
    ids=["gradient_penalty", "r1_penalty", "dragan_penalty", "GradientPenalty"],
)
def test_a_conditional_critic_gets_its_labels(penalty: Callable[..., Tensor]) -> None:
    critic, x, label = _Conditional(), torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 4, 0])
    ours = penalty(critic, x, critic_args=(label, 2.0))
    expected = penalty(lambda points: critic(points, label, 2.0), x)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    assert gradients(ours, critic)[-1].any()
    with torch.inference_mode():
        torch.testing.assert_close(penalty(critic, x, critic_args=(label.clone(), 2.0)), ours.detach())
    with pytest.raises(TypeError, match="critic_args must be a tuple of arguments, got Tensor"):
        penalty(critic, x, critic_args=label)


class _Detaching(torch.autograd.Function):
    """What a layer does whose backward is not differentiable, and a critic compiled by torch 2.11."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return (2 * grad).detach()


def test_detached_gradient_is_refused() -> None:
    real = torch.randn(3, 2)
    weight = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"cut off from the graph.*torch\.compile"):
        F.gradient_penalty(lambda x: _Detaching.apply(x * weight.detach()).sum(1), real, real)
    with torch.no_grad():
        assert F.gradient_penalty(lambda x: _Detaching.apply(x * weight).sum(1), real, real) > 0


def test_compiled_critic_does_not_train_without_a_penalty() -> None:
    critic, (real, fake, _) = small_critic(), batch()
    compiled = torch.compile(critic, backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"gradient_penalty: .*(torch\.compile)"):
        F.gradient_penalty(compiled, real, fake)
    with torch.no_grad():
        alpha = torch.rand(3, dtype=F64)
        torch.testing.assert_close(*(F.gradient_penalty(c, real, fake, alpha=alpha) for c in (compiled, critic)))


def test_in_a_compiled_step_it_is_right() -> None:
    """Run between the compiled parts, or refused; never with another gradient."""
    critic, (real, fake, alpha) = small_critic(), batch()

    def step(real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
        return critic(fake).mean() - critic(real).mean() + F.gradient_penalty(critic, real, fake, alpha=alpha)

    expected = gradients(step(real, fake, alpha), critic)
    torch._dynamo.reset()
    try:
        loss = torch.compile(step, backend="aot_eager")(real, fake, alpha)
    except RuntimeError:
        return
    torch.testing.assert_close(gradients(loss, critic), expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"real": [1.0]}, TypeError, "real must be a Tensor, got list"),
        ({"weight": None}, TypeError, "weight must be a number, got None"),
        ({"weight": True}, TypeError, "weight must be a number, got True"),
        ({"target": Fraction(1, 2)}, TypeError, r"target must be a number, got Fraction\(1, 2\)"),
        ({"weight": float("inf")}, ValueError, "weight must be a finite number, got inf"),
        ({"target": -1.0}, ValueError, "target must be a finite number of at least 0, got -1.0"),
        ({"grad_scale": 0.0}, ValueError, "grad_scale must be positive, got 0.0"),
        ({"grad_scale": "2"}, TypeError, "grad_scale must be a number, got '2'"),
        ({"fake": torch.ones(3, 3)}, ValueError, r"fake must have shape \[2, 3\] \(real's shape\), got \[3, 3\]"),
        ({"real": torch.ones(2, 3, dtype=torch.uint8)}, TypeError, "real must have a floating dtype"),
        ({"real": torch.ones(0, 3)}, ValueError, r"real must be \[N, ...\] with at least one element"),
        ({"real": torch.ones(3)}, ValueError, r"real must be \[N, ...\].*got shape \[3\]"),
    ],
)
def test_penalty_arguments(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"real": torch.ones(2, 3), "fake": torch.ones(2, 3), **change}
    with pytest.raises(error, match=f"gradient_penalty: {message}"):
        F.gradient_penalty(torch.nn.Linear(3, 1), **arguments)


@pytest.mark.parametrize(
    ("critic", "error", "message"),
    [
        (lambda x: (x.sum(1), x), TypeError, "must return a Tensor of scores, got tuple"),
        (lambda x: x.detach().sum(1), RuntimeError, "do not depend on its input"),
        (lambda x: torch.ones(2, requires_grad=True) * 2, RuntimeError, "do not depend on its input"),
    ],
)
def test_critics_that_have_no_gradient(critic: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"gradient_penalty: .*{message}"):
        F.gradient_penalty(critic, torch.ones(2, 3), torch.ones(2, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: F.gradient_penalty(None, x, x), TypeError, "critic must be a module or a function, got NoneType"),
        (lambda x: F.r1_penalty(nn.Linear(3, 1), x.numpy()), TypeError, "real must be a Tensor, got ndarray"),
        (lambda x: F.r1_penalty(nn.Linear(3, 1), x, weight=None), TypeError, "weight must be a number, got None"),
        (lambda x: F.r1_penalty(nn.Linear(3, 1), x[:0]), ValueError, "r1_penalty: real must be"),
        (lambda x: F.dragan_penalty(nn.Linear(3, 1), x.int()), TypeError, "dragan_penalty: real must have a floating"),
        (lambda x: F.dragan_penalty(nn.Linear(3, 1), x, c=float("nan")), ValueError, "c must be a finite number"),
        (lambda x: F.dragan_penalty(nn.Linear(3, 1), x, noise=x[:, :1]), ValueError, r"noise must have shape \[2, 3\]"),
        (lambda x: F.dragan_penalty(nn.Linear(3, 1), x, noise=x.int()), TypeError, "noise must have a floating dtype"),
        (
            lambda x: F.dragan_penalty(nn.Linear(3, 1), x, noise=x, alpha=x[:, 0], generator=torch.Generator()),
            ValueError,
            "got noise, alpha and generator",
        ),
        (lambda x: fastgan.nn.GradientPenalty(grad_scale=-1.0), ValueError, "grad_scale must be positive, got -1.0"),
        (lambda x: F.dragan_penalty(nn.Linear(3, 1), x, std=2.0), TypeError, "std must be a Tensor, got float"),
        (
            lambda x: F.dragan_penalty(nn.Linear(3, 1), x, std=x),
            ValueError,
            r"std must have shape \[\] .*got",
        ),
        (lambda x: F.dragan_penalty(nn.Linear(3, 1), x, generator=1), TypeError, "dragan_penalty: generator must be a"),
        (lambda x: F.consistency_term(x, x, margin="0"), TypeError, "margin must be a number"),
        (lambda x: F.consistency_term(x, x, x[:1], x[:1]), ValueError, r"features must have shape \[2, 3\]"),
        (lambda x: fastgan.nn.GradientPenalty(weight="10"), TypeError, "weight must be a number, got '10'"),
    ],
)
def test_arguments_of_the_variants(call: Callable[[Tensor], Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(torch.ones(2, 3))


def test_in_inference_mode() -> None:
    """Its value, as under no_grad; tensors made there serve elsewhere."""
    critic, (real, fake, alpha) = small_critic(), batch()
    expected = F.gradient_penalty(critic, real, fake, alpha=alpha), F.r1_penalty(critic, real)
    with torch.inference_mode():
        real, fake = real.clone(), fake.clone()
        values = F.gradient_penalty(critic, real, fake, alpha=alpha), F.r1_penalty(critic, real)
    torch.testing.assert_close(values, tuple(t.detach() for t in expected))
    trained = F.gradient_penalty(critic, real, fake, alpha=alpha), F.r1_penalty(critic, real)
    for ours, theirs in zip(trained, expected, strict=True):
        torch.testing.assert_close(gradients(ours, critic), gradients(theirs, critic))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("options", [{}, {"one_sided": True}, {"target": 0.0}], ids=str)
def test_nan_is_not_taken_for_zero(options: dict[str, float], backend: str) -> None:
    g = torch.tensor([[float("nan"), 1.0], [3.0, 4.0]], requires_grad=True)
    with fastgan.use_backend(backend):
        penalty = F.gradient_norm_penalty(g, **options)
        (gradient,) = torch.autograd.grad(penalty, g)
    assert penalty.isnan()
    assert gradient[0, 0].isnan()
    assert gradient[1].isfinite().all()


def test_overflow_is_infinity() -> None:
    """A sum of squares beyond float32 while its parts are not: plain PyTorch has infinity too."""
    g = torch.full((1, 8192), 2.5e17, requires_grad=True)
    penalty = F.gradient_norm_penalty(g)
    assert penalty.item() == math.inf
    (gradient,) = torch.autograd.grad(penalty, g)
    torch.testing.assert_close(gradient, 2 * g.detach())


def test_value_without_a_graph() -> None:
    critic, (real, fake, alpha) = small_critic(), batch()
    with torch.no_grad():
        value = F.gradient_penalty(critic, real, fake, alpha=alpha)
    assert not value.requires_grad
    torch.testing.assert_close(value, plain_penalty(critic, real, fake, alpha).detach())


def test_module() -> None:
    critic, (real, fake, alpha) = small_critic(), batch()
    module = fastgan.nn.GradientPenalty(weight=5.0, target=2.0, one_sided=True)
    expected = F.gradient_penalty(critic, real, fake, weight=5.0, target=2.0, one_sided=True, alpha=alpha)
    torch.testing.assert_close(module(critic, real, fake, alpha), expected)
    assert not list(module.parameters())


def test_norms_of_the_package_inside_the_critic() -> None:
    """The fused norm's double backward, through the penalty, against plain PyTorch."""
    fused = nn.Sequential(
        nn.Conv2d(2, 4, 3), fastgan.nn.InstanceNormAct2d(4, affine=True, activation="leaky_relu"), nn.Conv2d(4, 1, 2)
    ).double()
    plain = nn.Sequential(
        copy.deepcopy(fused[0]), nn.InstanceNorm2d(4, affine=True).double(), nn.LeakyReLU(0.2), copy.deepcopy(fused[2])
    )
    real, fake, alpha = batch()
    for a, b in zip(
        gradients(F.gradient_penalty(fused, real, fake, alpha=alpha), fused),
        gradients(F.gradient_penalty(plain, real, fake, alpha=alpha), plain),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


# --- mixed precision and distributed training ---------------------------------------------------------------------


def test_recipe_with_grad_scaler() -> None:
    """Two critic steps: the losses under autocast, the scaled backward outside it. Scaling changes nothing."""
    real, fake, alpha = (t.float() for t in batch())
    weights = []
    for scale in (1.0, 256.0):
        critic = small_critic(F32)
        optimizer = torch.optim.SGD(critic.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for _ in range(2):
            optimizer.zero_grad()
            with torch.autocast("cpu", BF16):
                loss = critic(fake).mean() - critic(real).mean()
                loss = loss.float() + F.gradient_penalty(critic, real, fake, alpha=alpha)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        weights.append([p.detach() for p in critic.parameters()])
    assert not torch.equal(weights[0][0], small_critic(F32)[0].weight)
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def _distributed_gradients(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    critic, (real, fake, alpha) = small_critic(), batch(4)
    parallel = nn.parallel.DistributedDataParallel(critic)
    mine = slice(2 * rank, 2 * rank + 2)
    loss = parallel(fake[mine]).mean() - parallel(real[mine]).mean()
    (loss + F.gradient_penalty(parallel, real[mine], fake[mine], alpha=alpha[mine])).backward()
    if rank == 0:
        torch.save([p.grad for p in critic.parameters()], store + ".gradients")
    torch.distributed.barrier()
    del parallel, loss  # what uses the process group must go before it
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(os.name != "posix" or not torch.distributed.is_available(), reason="needs gloo")
def test_distributed_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    torch.multiprocessing.spawn(_distributed_gradients, (store,), nprocs=2)
    critic, (real, fake, alpha) = small_critic(), batch(4)
    loss = critic(fake).mean() - critic(real).mean() + F.gradient_penalty(critic, real, fake, alpha=alpha)
    expected = torch.autograd.grad(loss, list(critic.parameters()))
    torch.testing.assert_close(torch.load(store + ".gradients"), list(expected))


# --- variants -----------------------------------------------------------------------------------------------------


def test_r1_is_half_gamma_times_the_mean_squared_norm_on_real_data() -> None:
    critic, (real, _, _) = small_critic(), batch()
    x = real.clone().requires_grad_()
    (g,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    expected = 3.0 / 2 * g.square().sum((1, 2, 3)).mean()
    ours = F.r1_penalty(critic, real, weight=3.0)
    torch.testing.assert_close(ours, expected)
    for a, b in zip(gradients(ours, critic), gradients(expected, critic), strict=True):
        torch.testing.assert_close(a, b)


def test_dragan_perturbs_real_data_by_the_authors_rule() -> None:
    critic, (real, _, alpha) = small_critic(), batch()
    noise = torch.rand(real.shape, dtype=F64)
    ours = F.dragan_penalty(critic, real, noise=noise, alpha=alpha)
    torch.testing.assert_close(ours, plain_penalty(critic, real + 0.5 * real.std(correction=0) * noise, real, alpha))
    drawn = [F.dragan_penalty(critic, real, generator=torch.Generator().manual_seed(4)) for _ in range(2)]
    assert torch.equal(*drawn)
    assert drawn[0] != F.dragan_penalty(critic, real, c=0.1, generator=torch.Generator().manual_seed(4))


def test_consistency_term() -> None:
    scores, again = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.5, 5.0])
    assert F.consistency_term(scores, again, margin=0.3).item() == pytest.approx(2 * (0 + 0 + 3.7) / 3)
    features, features_again = torch.zeros(3, 4), torch.ones(3, 4) * 2
    value = F.consistency_term(scores, again, features, features_again, margin=0.2, weight=1.0)
    assert value.item() == pytest.approx((0.2 + 0.45 + 4.2) / 3)
    with pytest.raises(ValueError, match="together"):
        F.consistency_term(scores, again, features)
    with pytest.raises(ValueError, match=r"scores_again must have shape \[3\]"):
        F.consistency_term(scores, again[:2])
