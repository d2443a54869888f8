"""PyTorch's default device and default dtype are a program's own: no operator takes them for its tensors'."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import fastgan
import fastgan.functional as F
from fastgan.metrics import sliced_wasserstein_patches


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def results() -> list[Tensor]:
    """Of every operator: values, gradients and gradients of gradients; and of whatever draws numbers."""
    seeded = lambda: torch.Generator("cpu").manual_seed(5)
    generator = seeded()

    def draw(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu") + 1).requires_grad_()

    x, y, weight, bias, critic, mass = draw(3, 4, 6, 5), draw(3, 4, 6, 5), draw(4), draw(4), draw(120), draw(3, 120)
    rows, others = x.flatten(1), y.flatten(1)
    values = [
        F.instance_norm_act(x, weight, bias, residual=y, activation="leaky_relu", reflect_pad=1),
        F.instance_norm_act(x.to(memory_format=torch.channels_last)),
        F.weighted_l1([(x, y, 0.5), (rows, others, 2.0)]),
        F.cycle_loss(x, y, y, x),
        F.interpolate(x, y, generator=seeded()),
        F.gradient_norm_penalty(x),
        F.gradient_penalty(lambda points: points.flatten(1).square() @ critic, x, y, generator=seeded()),
        F.wasserstein_1d(rows, others),
        F.wasserstein_1d(rows, others[:, :77], mass.abs(), p=2.0),
        F.wasserstein_1d(rows, others, p=float("inf")),
        F.sliced_wasserstein(rows, others, n_projections=8, generator=seeded()),
    ]
    total = torch.stack([value.square().mean() for value in values]).sum()
    first = torch.autograd.grad(total, (x, y, weight, bias, mass), create_graph=True)
    second = torch.autograd.grad(torch.stack([grad.square().sum() for grad in first]).sum(), (x, y, weight))
    images = torch.rand(4, 3, 32, 32, generator=seeded(), dtype=torch.float32, device="cpu")
    patches = sliced_wasserstein_patches(images, images.flip(0) * 0.5, patches_per_image=8, n_projections=8)
    distances = torch.tensor(patches.distances, dtype=torch.float64, device="cpu")
    unrecorded = F.instance_norm_act(x.detach())
    return [*values, *first, *second, *F.wasserstein_1d_plan(rows, others), distances, unrecorded]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    "default",
    [lambda: torch.device("meta"), lambda: default_dtype(torch.float64), lambda: default_dtype(torch.float16)],
    ids=["meta", "float64", "float16"],
)
def test_defaults_change_nothing(
    backend: str, default: Callable[[], contextlib.AbstractContextManager[object]]
) -> None:
    with fastgan.use_backend(backend):
        expected = results()
        with default():
            found = results()
    for k, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert (a.device, a.dtype) == (b.device, b.dtype), k
        assert torch.equal(a, b), k
