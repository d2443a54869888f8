"""Every operator on tensors of four elements: what a call costs apart from its work, beside plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

import fastgan.functional as F
from benchmarks.harness import DEVICE, measure

Call = Callable[..., Tensor]
_ALPHA = torch.tensor([0.25, 0.75], device=DEVICE)
_DIRECTIONS = torch.tensor([[0.6, 0.8], [0.8, -0.6]], device=DEVICE)


def _critic() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).to(DEVICE)


_CRITIC = _critic()


def _eager_interpolate(real: Tensor, fake: Tensor) -> Tensor:
    return torch.lerp(fake, real, _ALPHA.view(-1, 1))


def _eager_penalty(grads: Tensor) -> Tensor:
    return (grads.flatten(1).norm(2, dim=1) - 1).square().mean()


def _eager_gradient_penalty(real: Tensor, fake: Tensor) -> Tensor:
    points = _eager_interpolate(real, fake).requires_grad_()
    (grads,) = torch.autograd.grad(_CRITIC(points).sum(), points, create_graph=True)
    return 10 * _eager_penalty(grads)


def _eager_l1(a: Tensor, b: Tensor) -> Tensor:
    return 10 * nnf.l1_loss(a, b)


def _eager_wasserstein(x: Tensor, y: Tensor) -> Tensor:
    return (x.sort(-1).values - y.sort(-1).values).abs().mean(-1)


def _eager_sliced(x: Tensor, y: Tensor) -> Tensor:
    difference = (_DIRECTIONS @ x.mT).sort(-1).values - (_DIRECTIONS @ y.mT).sort(-1).values
    return difference.square().mean().sqrt()


PLANE, MATRIX = (1, 1, 2, 2), (2, 2)
# operator: shapes of the inputs, ours, plain PyTorch's
CALLS: dict[str, tuple[list[tuple[int, ...]], Call, Call]] = {
    "instance_norm_act": (
        [PLANE],
        lambda x: F.instance_norm_act(x, activation="leaky_relu"),
        lambda x: nnf.leaky_relu(nnf.instance_norm(x), 0.2),
    ),
    "instance_norm_act affine": (
        [PLANE, (1,), (1,)],
        lambda x, w, b: F.instance_norm_act(x, w, b, activation="leaky_relu"),
        lambda x, w, b: nnf.leaky_relu(nnf.instance_norm(x, weight=w, bias=b), 0.2),
    ),
    "weighted_l1": ([PLANE] * 2, lambda a, b: F.weighted_l1([(a, b, 10.0)]), _eager_l1),
    "cycle_loss": ([PLANE] * 4, F.cycle_loss, lambda a, b, c, d: _eager_l1(a, b) + _eager_l1(c, d)),
    "interpolate": ([MATRIX] * 2, lambda real, fake: F.interpolate(real, fake, _ALPHA), _eager_interpolate),
    "gradient_norm_penalty": ([MATRIX], F.gradient_norm_penalty, _eager_penalty),
    "gradient_penalty": (
        [MATRIX] * 2,
        lambda real, fake: F.gradient_penalty(_CRITIC, real, fake, alpha=_ALPHA),
        _eager_gradient_penalty,
    ),
    "wasserstein_1d": ([MATRIX] * 2, F.wasserstein_1d, _eager_wasserstein),
    "sliced_wasserstein": (
        [MATRIX] * 2,
        lambda x, y: F.sliced_wasserstein(x, y, projections=_DIRECTIONS),
        _eager_sliced,
    ),
}


@pytest.mark.parametrize("contestant", ["fastgan", "eager"])
@pytest.mark.parametrize("kind", ["forward", "forward+backward"])
@pytest.mark.parametrize("operator", CALLS)
def test_four_elements(benchmark: Any, operator: str, kind: str, contestant: str) -> None:
    shapes, ours, eager = CALLS[operator]
    if operator == "gradient_penalty" and kind == "forward":
        pytest.skip("its value alone is of no use")
    torch.manual_seed(0)
    inputs = [torch.randn(shape, device=DEVICE) for shape in shapes]
    leaves = list(_CRITIC.parameters())[:3] if operator == "gradient_penalty" else inputs  # no gradient for real, fake
    if kind == "forward+backward" and leaves is inputs:
        inputs = leaves = [t.requires_grad_() for t in inputs]

    def run(function: Call) -> tuple[Tensor, ...]:
        value = function(*inputs)
        if kind == "forward":
            return (value,)
        return (value, *torch.autograd.grad(value, leaves, torch.ones_like(value)))

    def check(result: tuple[Tensor, ...]) -> None:
        for got, expected in zip(result, run(eager), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)

    measure(
        benchmark, run, [ours if contestant == "fastgan" else eager],
        operator=f"{operator}, 4 elements", case=kind, contestant=contestant, check=check,
    )  # fmt: skip
