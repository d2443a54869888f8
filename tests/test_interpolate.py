"""interpolate through the C++ kernels, its random numbers, and its errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastgan
import fastgan.functional as F
from fastgan.kernels import dispatch
from fastgan.reference.interpolate import draw_alpha
from tests.losses import BF16, F16, F32, F64, LARGE, check_interpolate, tensor


@pytest.mark.parametrize("backend", ["auto", "native"])
@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_value_layout_and_gradients(dtype: torch.dtype, layout: str, backend: str) -> None:
    shape = (3, 5, 41, 31)
    for of_alpha in (F32, F64):
        alpha = tensor((3,), of_alpha, seed=2)
        check_interpolate(backend, tensor(shape, dtype, layout), tensor(shape, dtype, seed=1), alpha)


@pytest.mark.parametrize("backend", ["auto", "native"])
@pytest.mark.parametrize("shape", [(1,), (7,), (300, 2), (2, 1, 1, 1), (2, 3, 4097), (2, LARGE), (2, LARGE + 1)])
def test_odd_shapes_and_mixed_dtypes(shape: tuple[int, ...], backend: str) -> None:
    check_interpolate(backend, tensor(shape, F32), tensor(shape, BF16, seed=1), tensor(shape[:1], F64, seed=2))
    for dtype in (F16, F32):
        check_interpolate(backend, *(tensor(shape, dtype, seed=k) for k in range(2)), tensor(shape[:1], dtype, seed=2))


@pytest.mark.parametrize(
    ("change", "is_lerp"),
    [
        ({}, True),
        ({"dtype": F64}, True),
        ({"shape": (1024, 1025)}, False),
        ({"dtype": BF16}, False),
        ({"of_alpha": F64}, False),
        ({"layout": "channels_last", "shape": (6, 3, 4, 5)}, False),
        ({"backend": "native"}, False),
    ],
    ids=str,
)
def test_torch_lerp_serves_where_it_is_quicker(change: dict[str, Any], is_lerp: bool) -> None:
    shape, dtype = change.get("shape", (6, 5)), change.get("dtype", F32)
    real, fake = (tensor(shape, dtype, change.get("layout", "contiguous"), seed=k) for k in range(2))
    alpha = tensor(shape[:1], change.get("of_alpha", dtype), seed=2)
    with fastgan.use_backend(change.get("backend", "auto")):
        for weights in (alpha, alpha.view(-1, *[1] * (len(shape) - 1))):
            points = F.interpolate(real, fake, weights)
            assert ("Lerp" in points.grad_fn.name()) == is_lerp
            assert points.shape == real.shape


@pytest.mark.parametrize("backend", ["auto", "native", "reference"])
def test_gradcheck_twice_and_forward_mode(backend: str) -> None:
    inputs = (tensor((2, 3, 2), F64, "channels_last"), tensor((2, 3, 2), F64, seed=1), tensor((2,), F64, seed=2))
    with fastgan.use_backend(backend):
        assert torch.autograd.gradcheck(F.interpolate, inputs, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(F.interpolate, inputs)
        assert torch.autograd.gradgradcheck(F.interpolate, [tensor((3,), F64, seed=k) for k in range(3)])


def test_only_wanted_gradients_are_made() -> None:
    real, fake = tensor((2, 3), F32), tensor((2, 3), F32, seed=1).detach()
    alpha = torch.tensor([0.25, 0.5])
    F.interpolate(real, fake, alpha).sum().backward()
    torch.testing.assert_close(real.grad, alpha[:, None].expand(2, 3))


def alphas(n: int, generator: torch.Generator | None = None) -> Tensor:
    return F.interpolate(torch.ones(n, 1), torch.zeros(n, 1), generator=generator).view(n)


def test_one_alpha_per_sample_uniform_on_the_unit_interval() -> None:
    real, fake = torch.ones(20_000, 2, 3), torch.zeros(20_000, 2, 3)
    points = F.interpolate(real, fake)
    drawn = points[:, 0, 0]
    assert torch.equal(points, drawn[:, None, None].expand(20_000, 2, 3))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert drawn.unique().numel() > 19_900
    # Kolmogorov-Smirnov: the distance exceeds 1.95 / sqrt(n) with a probability of 0.001.
    steps = torch.arange(1, 20_001) / 20_000
    assert (drawn.sort().values - steps).abs().max() < 1.95 / 20_000**0.5


def test_reproducible_from_a_generator_and_alike_on_every_backend() -> None:
    draw = [alphas(50, torch.Generator().manual_seed(5)) for _ in range(2)]
    with fastgan.use_backend("reference"):
        draw.append(alphas(50, torch.Generator().manual_seed(5)))
    assert torch.equal(draw[0], draw[1])
    assert torch.equal(draw[0], draw[2])
    assert torch.equal(draw[0][:7], alphas(7, torch.Generator().manual_seed(5)))
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(alphas(50, generator), draw[0])
    assert not torch.equal(alphas(50, generator), draw[0])
    torch.manual_seed(3)
    first = alphas(50)
    torch.manual_seed(3)
    assert torch.equal(first, alphas(50))


def test_philox_is_the_published_generator() -> None:
    # Random123's known answer for key and counter 0 begins with 6627e8d5.
    assert draw_alpha(torch.tensor([0]), 1).item() == (0x6627E8D5 >> 8) * 2.0**-24


@pytest.mark.parametrize("kernels", [True, False])
def test_compiled_whole(kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    if kernels:
        monkeypatch.setattr(dispatch, "_FEW", 0)
    real, fake, alpha = tensor((2, 3), F32), tensor((2, 3), F32, seed=1), tensor((2,), F32, seed=2)
    compiled = torch.compile(lambda *args: F.interpolate(*args), fullgraph=True, backend="aot_eager")
    exact = {"rtol": 0, "atol": 0} if kernels else {}
    with fastgan.use_backend("native" if kernels else "auto"):
        expected = F.interpolate(real, fake, alpha)
    torch.testing.assert_close(compiled(real, fake, alpha), expected, **exact)
    torch.manual_seed(3)
    eager = F.interpolate(torch.ones(50, 1), torch.zeros(50, 1))
    torch.manual_seed(3)
    drawn = compiled(torch.ones(50, 1), torch.zeros(50, 1))
    assert torch.equal(drawn, eager)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert drawn.unique().numel() == 50


def test_opcheck() -> None:
    x, y, alpha = tensor((2, 3), F32).detach(), tensor((2, 3), F32, seed=1).detach(), torch.rand(2)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    op = torch.ops.fastgan.interpolate_forward.default
    torch.library.opcheck(op, (x, y, alpha, None, "native"), test_utils=checks)
    torch.library.opcheck(op, (x, y, None, torch.tensor([7]), "native"), test_utils=checks)
    op = torch.ops.fastgan.interpolate_backward.default
    torch.library.opcheck(op, (x, x, y, alpha, True, False, True, "native"), test_utils=checks)


@pytest.mark.parametrize("backend", ["auto", "native", "reference"])
def test_alpha_may_be_written_to_broadcast(backend: str) -> None:
    real, fake, alpha = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5), torch.rand(2, requires_grad=True)
    with fastgan.use_backend(backend):
        points = F.interpolate(real, fake, alpha.view(2, 1, 1, 1))
        assert torch.equal(points, F.interpolate(real, fake, alpha))
    (gradient,) = torch.autograd.grad(points.sum(), alpha)
    torch.testing.assert_close(gradient, (real - fake).sum((1, 2, 3)))


def test_no_samples() -> None:
    assert F.interpolate(torch.ones(0, 3), torch.ones(0, 3)).shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"real": 1.0}, TypeError, "real must be a Tensor"),
        ({"fake": torch.ones(2, 4)}, ValueError, r"fake must have shape \[2, 3\]"),
        ({"fake": torch.ones(2, 3, device="meta")}, ValueError, "device cpu, got meta"),
        ({"fake": torch.ones(2, 3, dtype=torch.int32)}, TypeError, "got torch.int32"),
        ({"real": torch.ones(()), "fake": torch.ones(())}, ValueError, "got a scalar"),
        ({"alpha": torch.ones(())}, ValueError, r"alpha must have shape \[2\] \(one per sample\), got \[\]"),
        ({"alpha": torch.ones(2, 1, 1, 1)}, ValueError, "one per sample"),
        ({"alpha": torch.ones(2, 3)}, ValueError, r"alpha must have shape \[2, 1\] \(one per sample\), got \[2, 3\]"),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator or None, got 3"),
        ({"alpha": torch.ones(2), "generator": torch.Generator()}, ValueError, "both alpha and generator"),
    ],
)
def test_errors(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"real": torch.ones(2, 3), "fake": torch.ones(2, 3), **change}
    with pytest.raises(error, match=message):
        F.interpolate(**arguments)
