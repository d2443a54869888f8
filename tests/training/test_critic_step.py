"""The critic update as a pure function: equal to the eager double backward, and compiled whole."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastgan.functional as F
from fastgan.models.gan import ARCHITECTURES, build_critic
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


def eager(critic: nn.Module, real: Tensor, fake: Tensor, alpha: Tensor, *args: Any) -> tuple[Tensor, dict[str, Tensor]]:
    penalty = F.gradient_penalty(critic, real, fake, alpha=alpha, critic_args=args)
    loss = critic(fake, *args).mean() - critic(real, *args).mean() + penalty
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


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.classes = make_critic()[:-1], nn.Embedding(5, 32)

    def forward(self, x: Tensor, label: Tensor, scale: float) -> Tensor:
        return scale * (self.body(x) * self.classes(label)).sum(1)


@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_a_conditional_critic_gets_its_labels(backend: str | None) -> None:
    critic, args = Conditional().double(), (torch.tensor([4, 0, 2, 2]), 3.0)
    batch = [t.double() for t in make_batch()]
    step = partial(critic_gradients, critic)
    if backend is not None:
        torch._dynamo.reset()
        step = torch.compile(step, fullgraph=True, backend=backend)
    losses, gradients = step(*batch, critic_args=args)
    loss, expected = eager(critic, *batch, *args)
    torch.testing.assert_close(losses.loss, loss)
    torch.testing.assert_close(gradients, expected)


def spectral_critic() -> nn.Module:
    """One whose power iterations have far to go, and which counts its passes."""
    torch.manual_seed(4)
    spectral_norm = nn.utils.parametrizations.spectral_norm
    layers = (spectral_norm(nn.Conv2d(3, 8, 4, 2, 1)), nn.Tanh(), nn.Flatten(), spectral_norm(nn.Linear(128, 7)))
    critic = nn.Sequential(*layers, Counted(), nn.Linear(7, 1))
    with torch.no_grad():
        for name, buffer in critic.named_buffers():
            if name.endswith(("_u", "_v")):
                buffer.copy_(nn.functional.normalize(torch.randn_like(buffer), dim=0))
    return critic


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return x


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_buffers_and_power_iterations_advance_as_in_eager_passes(compiled: bool) -> None:
    expected, ours = spectral_critic(), spectral_critic()
    step = partial(critic_gradients, ours)
    if compiled:
        step = torch.compile(step, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        real, fake, alpha = make_batch()
        on_real, on_fake = expected(torch.cat([real, fake])).split(len(real))
        loss = on_fake.mean() - on_real.mean() + F.gradient_penalty(expected, real, fake, alpha=alpha)
        gradients = torch.autograd.grad(loss, list(expected.parameters()))
        losses, got = step(real, fake, alpha)
        torch.testing.assert_close(losses.loss, loss.detach())
        torch.testing.assert_close(list(got.values()), list(gradients), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(dict(ours.named_buffers()), dict(expected.named_buffers()))
    assert ours[4].passes == 4


@pytest.mark.slow
def test_compiled_whole() -> None:
    critic, batch = make_critic(), make_batch()
    compiled = torch.compile(partial(critic_gradients, critic, one_sided=False), fullgraph=True)
    losses, gradients = compiled(*batch)
    loss, expected = eager(critic, *batch)
    torch.testing.assert_close(losses.loss, loss)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_another_layout_reach_a_fused_optimizer_as_what_they_are() -> None:
    """Compiled convolutions hand out weight gradients whose strides are their own."""
    plain, other = (nn.Conv2d(3, 4, 2) for _ in range(2))
    other.load_state_dict(plain.state_dict())
    gradients = {name: torch.randn_like(p) for name, p in plain.named_parameters()}
    strange = {**gradients, "weight": gradients["weight"].permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3)}
    assert strange["weight"].stride() != gradients["weight"].stride()
    for net, given in ((plain, gradients), (other, strange)):
        optimizer = torch.optim.Adam(net.parameters(), fused=True)
        assign_gradients(net, given)
        optimizer.step()
    assert torch.equal(other.weight, plain.weight)


def test_a_weight_that_changes_compiles_once_as_a_tensor() -> None:
    compiled = 0

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        nonlocal compiled
        compiled += 1
        return graph

    torch._dynamo.reset()
    critic, batch = make_critic(), make_batch()
    step = torch.compile(lambda weight: critic_gradients(critic, *batch, weight=weight), backend=backend)
    for weight in (10.0, 5.0, 2.5):
        losses, gradients = step(torch.tensor(weight))
        expected_losses, expected = critic_gradients(critic, *batch, weight=weight)
        torch.testing.assert_close(losses, expected_losses)
        torch.testing.assert_close(gradients, expected)
    assert compiled == 1


@pytest.mark.parametrize(
    ("critic", "options", "error", "message"),
    [
        (lambda x: x, {}, TypeError, "critic must be a Module, got function"),
        (nn.LSTM(2, 2), {}, TypeError, "critic must return a Tensor of scores .*, got tuple"),
        (nn.Linear(2, 1), {"weight": "10"}, TypeError, "weight must be a number, got '10'"),
        (nn.Linear(2, 1), {"target": -1.0}, ValueError, "target must be a finite number of at least 0"),
        (nn.Linear(2, 1), {"real": [1.0]}, TypeError, "real must be a Tensor, got list"),
        (nn.Linear(2, 1), {"fake": torch.zeros(2, 2)}, ValueError, r"fake must have shape \[3, 2\]"),
        (nn.Linear(2, 1), {"alpha": torch.zeros(2)}, ValueError, r"alpha must have shape \[3\]"),
        (nn.Linear(2, 1), {"critic_args": torch.ones(3)}, TypeError, "critic_args must be a tuple .*, got Tensor"),
        (nn.Linear(2, 1), {"critic_args": (torch.ones(2),)}, ValueError, r"a tensor of .* N = 3, got \[2\]"),
    ],
)
def test_arguments(critic: nn.Module, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"critic_gradients: {message}"):
        critic_gradients(critic, **{"real": torch.ones(3, 2), "fake": torch.zeros(3, 2), **options})


class CallsBatchNorm(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(super().forward(x), None, None, training=self.training).flatten(1).sum(1)


class UsesMethods(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        first, second = super().forward(x.flatten(1)).unflatten(1, (2, 2)).split(1, dim=1)
        return (first * second).relu().sum((1, 2))


def test_critics_with_methods_that_torch_compile_cannot_trace_while_they_are_watched() -> None:
    compiles_whole(UsesMethods(3 * 8 * 8, 4), make_batch())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_critics_of_every_architecture_compile_whole(architecture: str) -> None:
    critic = build_critic(architecture, (3, 16, 16), width=8, norm="layer")
    compiles_whole(critic, (torch.randn(4, 3, 16, 16) + 0.3, torch.randn(4, 3, 16, 16), torch.rand(4)))


def compiles_whole(critic: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    compiled = torch.compile(critic_gradients, backend="eager", fullgraph=True, dynamic=False)
    for found, expected in zip(compiled(critic, *batch), critic_gradients(critic, *batch), strict=True):
        torch.testing.assert_close(found, expected)


def test_batch_norm_is_refused() -> None:
    critic = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match=r"critic_gradients: BatchNorm2d '1' .* normalisation in the critic\.$"):
        critic_gradients(critic, *make_batch())


def test_batch_norm_in_a_helper_is_refused() -> None:
    norm = lambda x: nn.functional.batch_norm(x, None, None, training=True)

    class Critic(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return norm(super().forward(x)).square().flatten(1).sum(1)

    with pytest.raises(ValueError, match="critic_gradients: the critic normalises over the batch"):
        critic_gradients(Critic(3, 4, 3), *make_batch())


def test_batch_norm_as_a_function_is_refused_compiled_or_not() -> None:
    critic = CallsBatchNorm(3, 4, 3)
    with pytest.raises(ValueError, match="critic_gradients: the critic normalises over the batch"):
        critic_gradients(critic, *make_batch())
    compiled = torch.compile(critic_gradients, backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="_NORMALISES"):  # the line that it would have raised in
        compiled(critic, *make_batch())
