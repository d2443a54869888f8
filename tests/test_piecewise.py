"""Activations that carry no zeros back from their second derivatives: the same gradients with less work."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastgan
import fastgan.functional as F
from fastgan.functional._piecewise import activations, without_zero_gradients


def critic_of(activation: nn.Module, middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 3, 3))
    first, second, third = (copy.deepcopy(activation) for _ in range(3))
    layers = (convolutions[0], first, convolutions[1], middle, second, convolutions[2], third)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(27, 1)).double()


def loss_of(critic: nn.Module, known: bool) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    real, fake = (torch.randn(3, 2, 5, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    alpha = torch.rand(3, generator=generator, dtype=torch.float64)
    with without_zero_gradients() if known else contextlib.nullcontext():
        penalty = F.gradient_penalty(critic, real, fake, alpha=alpha)
    return critic(fake).mean() - critic(real).mean() + penalty


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[func.overloadpacket._qualified_op_name] += 1
        return func(*args, **(kwargs or {}))


def gradients(critic: nn.Module, known: bool) -> tuple[tuple[Tensor, ...], Counter[str]]:
    loss = loss_of(critic, known)
    with Operations() as operations:
        result = torch.autograd.grad(loss, list(critic.parameters()))
    return result, operations.count


@pytest.mark.parametrize("middle", [nn.Identity(), nn.Softplus(), fastgan.nn.InstanceNormAct2d(4, activation="none")])
@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.2), nn.LeakyReLU(0.1, inplace=True)], ids=str
)
def test_gradients_are_those_of_pytorch(activation: nn.Module, middle: nn.Module) -> None:
    """Also where a norm or softplus is curved: what comes from that is still carried back."""
    critic = critic_of(activation, middle)
    (ours, our_work), (theirs, their_work) = gradients(critic, True), gradients(critic, False)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    products = "aten::convolution_backward"
    if isinstance(middle, nn.Identity):
        assert our_work[products] == their_work[products] - 3
        assert our_work["aten::zeros_like"] < their_work["aten::zeros_like"] or not their_work["aten::zeros_like"]
    else:  # nothing is curved behind it
        assert our_work[products] < their_work[products]


def test_derivatives_of_every_order() -> None:
    x = torch.randn(7, dtype=torch.float64, requires_grad=True)

    def curved(x: Tensor) -> Tensor:
        with without_zero_gradients(), activations():
            return (nn.functional.leaky_relu(x**2 - 0.5, 0.3) * nn.functional.relu(x)) ** 2

    assert torch.autograd.gradcheck(curved, (x,))
    assert torch.autograd.gradgradcheck(curved, (x,))
    with without_zero_gradients(), activations():
        y = nn.functional.relu_(2 * x)
    assert torch.equal(y, nn.functional.relu(2 * x))


def test_what_it_does_not_serve_runs_as_ever() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    with without_zero_gradients(), activations():
        view = (2 * x)[:1]
        nn.functional.relu(view, inplace=True)
        assert (view >= 0).all()
        steep = nn.functional.leaky_relu(x, -0.5)
        with torch.no_grad():
            assert not nn.functional.relu(x).requires_grad
        hessian = torch.func.hessian(lambda x: nn.functional.relu(x).square().sum())(x.detach())
    assert torch.equal(steep, torch.where(x > 0, x, -0.5 * x))
    assert torch.equal(hessian.reshape(6, 6).diagonal(), 2.0 * (x.detach() > 0).flatten())
