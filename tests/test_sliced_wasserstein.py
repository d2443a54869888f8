"""Sliced and max-sliced distances, the module, and the patch metric on real photographs."""

from __future__ import annotations

import importlib
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits, load_sample_images

import fastgan
import fastgan.functional as F
from fastgan.kernels import dispatch
from fastgan.metrics import sliced_wasserstein_patches
from fastgan.nn import SlicedWasserstein

# The function of this name hides the module.
module = importlib.import_module("fastgan.functional.sliced_wasserstein")


def directions(count: int, d: int) -> torch.Tensor:
    theta = torch.randn(count, d, dtype=torch.float64)
    return theta / theta.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
def test_is_the_mean_over_directions(p: float) -> None:
    x, y, theta = torch.randn(20, 3).double(), torch.randn(15, 3).double(), directions(7, 3)
    parts = torch.stack([F.wasserstein_1d(x @ t, y @ t, p=p) for t in theta])
    expected = parts.max() if math.isinf(p) else parts.pow(p).mean() ** (1 / p)
    torch.testing.assert_close(F.sliced_wasserstein(x, y, p=p, projections=theta), expected)


def test_closed_form_of_a_shift() -> None:
    # W_2 of a cloud and its shift by s, along theta, is |<s, theta>|: its mean square over the sphere is |s|^2 / d.
    x, shift = torch.randn(40, 3).double(), torch.tensor([1.0, -2.0, 0.5]).double()
    value = F.sliced_wasserstein(x, x + shift, n_projections=20_000, generator=torch.Generator().manual_seed(1))
    assert float(value) == pytest.approx(float(shift.norm()) / math.sqrt(3), rel=0.02)
    best = F.max_sliced_wasserstein(x, x + shift, n_projections=16, generator=torch.Generator().manual_seed(1))
    assert float(best) == pytest.approx(float(shift.norm()), rel=1e-6)


def test_max_sliced_is_above_every_direction_and_differentiable() -> None:
    x, y = torch.randn(2, 30, 4).double().requires_grad_(), torch.randn(2, 25, 4).double() * 2
    theta = directions(500, 4)
    best = F.max_sliced_wasserstein(x, y, projections=theta[:50])
    costs = F.wasserstein_1d(theta @ x.mT, theta @ y.mT, p=2)
    assert (best >= costs.max(-1).values * (1 - 1e-12)).all()
    (g,) = torch.autograd.grad(best.sum(), x)
    moved = x.detach() + 1e-6 * g
    assert (F.max_sliced_wasserstein(moved, y, projections=theta[:50]) > best).all()


def test_gradients() -> None:
    x, y, theta = torch.randn(6, 2).double().requires_grad_(), torch.randn(5, 2).double().requires_grad_(), None
    theta = directions(4, 2).requires_grad_()
    f = lambda x, y, t: F.sliced_wasserstein(x, y, projections=t)
    assert torch.autograd.gradcheck(f, (x, y, theta))
    assert torch.autograd.gradgradcheck(f, (x, y, theta))
    (g,) = torch.autograd.grad(F.sliced_wasserstein(x, x.detach(), projections=theta), x)
    assert torch.equal(g, torch.zeros_like(x))  # POT's is NaN


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, theta = torch.randn(3, 9, 4).double().requires_grad_(), torch.randn(8, 4).double(), directions(10, 4)

    def value_and_grads() -> tuple[torch.Tensor, ...]:
        value = F.sliced_wasserstein(x, y, projections=theta)
        (g,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        (h,) = torch.autograd.grad(g.square().sum(), x)
        return value, g, h

    whole = value_and_grads()
    seen = []
    costs = module._costs
    monkeypatch.setattr(module, "_CHUNK", 3 * 17 * 4)
    monkeypatch.setattr(module, "_costs", lambda x, y, part, p: seen.append(len(part)) or costs(x, y, part, p))
    for a, b in zip(whole, value_and_grads(), strict=True):
        torch.testing.assert_close(a, b)
    assert seen[:3] == [4, 4, 2]
    theta_grad = torch.func.grad(lambda x: F.sliced_wasserstein(x, y, projections=theta).sum())(x.detach())
    torch.testing.assert_close(theta_grad, whole[1])


@pytest.mark.parametrize("chosen", ["auto", "native", "reference"])
@pytest.mark.parametrize("elsewhere", [True, False])
def test_chunks_are_computed_again_by_the_backend_of_the_first_time(
    chosen: str, elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the context of the forward pass has ended; a GPU's backward pass is on another thread."""
    x, y, theta = torch.randn(9, 4).requires_grad_(), torch.randn(8, 4), directions(10, 4).float()
    monkeypatch.setattr(module, "_CHUNK", 17 * 4)
    used = []
    select = dispatch.select
    monkeypatch.setattr(dispatch, "select", lambda *args: used.append(select(*args)) or used[-1])
    with fastgan.use_backend(chosen):
        value = F.sliced_wasserstein(x, y, projections=theta)
        forward = list(used)
        if elsewhere:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(value.backward).result()
    with fastgan.use_backend("native" if chosen == "reference" else "reference"):
        if not elsewhere:
            value.backward()
    assert used == 2 * forward
    assert len(forward) == 3


def test_chunks_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, theta = torch.randn(9, 4).requires_grad_(), torch.randn(8, 4), directions(10, 4).float()

    def gradient(function: Any) -> torch.Tensor:
        return torch.autograd.grad(function(x), x)[0]

    def loss(x: torch.Tensor) -> torch.Tensor:
        return F.sliced_wasserstein(x, y, projections=theta)

    monkeypatch.setattr(module, "_CHUNK", 17 * 4)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradient(compiled), gradient(loss))


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_for_dimensions_that_change(dynamic: bool | None) -> None:
    def loss(x: torch.Tensor) -> torch.Tensor:
        return F.sliced_wasserstein(x, x + 1, n_projections=4)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for d in (5, 6, 7):
        assert 0 < compiled(torch.randn(8, d)) < math.sqrt(d) * (1 + 1e-6)  # the length of the shift


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_max_sliced_compiles_and_is_transformed(p: float) -> None:
    x, theta = torch.randn(2, 9, 4), directions(10, 4).float()

    def loss(x: torch.Tensor, p: float = p) -> torch.Tensor:
        return F.max_sliced_wasserstein(x, 2 * x, projections=theta, n_steps=3, p=p).sum()

    expected = loss(x)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, 1.5), loss(x, 1.5))
    torch.testing.assert_close(compiled(x, p), expected)
    torch.testing.assert_close(torch.vmap(loss)(x).sum(), expected)
    (gradient,) = torch.autograd.grad(loss(x.requires_grad_()), x)
    torch.testing.assert_close(torch.func.grad(loss)(x.detach()), gradient)


def test_generator_and_dtypes() -> None:
    x, y = torch.randn(12, 5), torch.randn(12, 5)
    draw = lambda: F.sliced_wasserstein(x, y, generator=torch.Generator().manual_seed(3))
    assert torch.equal(draw(), draw())
    for dtype in (torch.float16, torch.bfloat16):
        half = F.sliced_wasserstein(x.to(dtype), y.to(dtype), generator=torch.Generator().manual_seed(3))
        assert half.dtype == dtype
        torch.testing.assert_close(half.float(), draw(), rtol=10 * torch.finfo(dtype).eps, atol=0)
    assert F.sliced_wasserstein(torch.tensor([[0, 1]]), torch.tensor([[2, 3]])).dtype == torch.float32


@pytest.mark.parametrize(
    ("dtype", "p", "shift"),
    # W_p^p is then beyond the dtype's range, or below it
    [(torch.float16, 2.0, 1000.0), (torch.float16, 2.0, 1e-4), (torch.float16, 3.0, 60.0), (torch.float32, 10.0, 1e4),
     (torch.float32, 30.0, 1e-6), (torch.float32, 100.0, 1e4)],
)  # fmt: skip
def test_powers_of_distances_may_leave_the_dtypes_range(dtype: torch.dtype, p: float, shift: float) -> None:
    x = (0.1 * shift * torch.randn(20, 4)).to(dtype).requires_grad_()
    y, theta = (x.detach().float() + shift).to(dtype), torch.eye(4)
    expected = F.sliced_wasserstein(x.detach().double(), y.double(), p=p, projections=theta)
    value = F.sliced_wasserstein(x, y, p=p, projections=theta)
    (g,) = torch.autograd.grad(value, x)
    rtol = 4 * torch.finfo(dtype).eps
    for got in (value.detach(), F.sliced_wasserstein(x.detach(), y, p=p, projections=theta)):
        torch.testing.assert_close(got.double(), expected, rtol=rtol, atol=0)
    assert float(g.double().sum()) == pytest.approx(-1, rel=20 * rtol)  # y is x's shift by as much in each direction


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 7.3])
@pytest.mark.parametrize("m", [5, 6])
def test_mean_within_the_operator(p: float, m: int) -> None:
    inputs = torch.randn(6, 2).double(), torch.randn(m, 2).double(), directions(3, 2)
    f = lambda x, y, t: F.sliced_wasserstein(x, y, p=p, projections=t)
    leaves = [t.requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(f, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, leaves)
    with fastgan.use_backend("reference"):
        expected = torch.autograd.grad(f(*leaves), leaves)
    for got, want in zip(torch.autograd.grad(f(*leaves), leaves), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_autocast_and_inference_mode() -> None:
    x, y, theta = torch.randn(9, 3), torch.randn(7, 3), torch.eye(3)
    images = torch.rand(2, 1, 3, 1, 20, 20).unbind(0)
    evaluate = lambda x, y: (
        F.sliced_wasserstein(x, y, projections=theta),
        F.max_sliced_wasserstein(x, y, projections=theta),
        torch.tensor(sliced_wasserstein_patches(*(i[:, 0] for i in images)).mean),
    )
    expected = evaluate(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        in_autocast = evaluate(x, y)
    with torch.inference_mode():
        xi, yi = x.clone(), y.clone()
        in_inference = evaluate(xi, yi)
    for got in (in_autocast, in_inference, evaluate(xi, yi)):
        assert got[0].dtype == got[1].dtype == torch.float32
        for a, b in zip(got, expected, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("function", [F.sliced_wasserstein, F.max_sliced_wasserstein])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3), torch.zeros(3)), "must be"),
        ((torch.zeros(3, 2), torch.zeros(3, 4)), "one dimension"),
        ((torch.zeros(0, 2), torch.zeros(3, 2)), "x must be"),
        ((torch.zeros(3, 4, 2), torch.zeros(2, 4, 2)), r"must broadcast, got \[3, 4, 2\] and \[2, 4, 2\]"),
    ],
)
def test_bad_points(function: Any, arguments: tuple[torch.Tensor, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=f"{function.__name__}: .*{message}"):
        function(*arguments)


@pytest.mark.parametrize("function", [F.sliced_wasserstein, F.max_sliced_wasserstein])
def test_integers_are_taken_in_the_default_dtype(function: Any) -> None:
    """Also beside half precision, whose range they may pass."""
    x, y = torch.full((3, 2), 100_000), torch.ones(3, 2)
    options = {"projections": torch.eye(2)}
    assert function(x, y.half(), **options) == function(x.float(), y, **options) > 60_000
    with pytest.raises(TypeError, match=f"{function.__name__}: y must be real, got torch.complex64"):
        function(x, y.to(torch.complex64))


def test_bad_projections() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="projections must have shape"):
        F.sliced_wasserstein(x, x, projections=torch.zeros(4, 3))
    with pytest.raises(ValueError, match="n_projections"):
        F.sliced_wasserstein(x, x, n_projections=0)
    with pytest.raises(TypeError, match=r"n_projections must be an integer, got 2\.5"):
        F.sliced_wasserstein(x, x, n_projections=2.5)
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator or None"):
        F.sliced_wasserstein(x, x, generator=3)
    for function in (F.sliced_wasserstein, F.max_sliced_wasserstein):
        with pytest.raises(ValueError, match=f"{function.__name__}: p must be"):
            function(x, x, p=0.5)
    with pytest.raises(ValueError, match="finite"):
        F.max_sliced_wasserstein(x, x, p=math.inf)
    with pytest.raises(TypeError, match=r"n_steps must be an integer, got 1\.5"):
        F.max_sliced_wasserstein(x, x, n_steps=1.5)
    with pytest.raises(ValueError, match="n_steps must be at least 0, got -1"):
        F.max_sliced_wasserstein(x, x, n_steps=-1)
    assert F.max_sliced_wasserstein(x, x + 1, projections=torch.zeros(4, 2)) == 0  # no direction at all


def test_module_moves_samples_onto_digits() -> None:
    digits = torch.tensor(load_digits().data[:200], dtype=torch.float32) / 16
    samples = torch.rand(200, 64).requires_grad_()
    loss = SlicedWasserstein(64, generator=torch.Generator().manual_seed(0))
    assert "n_projections=64, p=2.0" in repr(loss)
    optimizer = torch.optim.Adam([samples], lr=0.05)
    first = float(loss(samples.view(-1, 1, 8, 8), digits.view(-1, 1, 8, 8)).detach())
    for _ in range(60):
        optimizer.zero_grad()
        loss(samples, digits).backward()
        optimizer.step()
    assert float(loss(samples, digits).detach()) < 0.2 * first
    with pytest.raises(ValueError, match="one sample shape"):
        loss(samples, digits[:, :5])
    with pytest.raises(ValueError, match="n_projections"):
        SlicedWasserstein(0)
    with pytest.raises(TypeError, match=r"SlicedWasserstein: n_projections must be an integer, got 2\.5"):
        SlicedWasserstein(2.5)
    with pytest.raises(ValueError, match="SlicedWasserstein: p must be a number"):
        SlicedWasserstein(p="2")
    with pytest.raises(TypeError, match="SlicedWasserstein: y must be a Tensor, got list"):
        loss(samples, [1.0])


# --- the patch metric ---------------------------------------------------------------------------------------------


def photograph_crops(count: int, seed: int) -> torch.Tensor:
    images = [torch.tensor(i).permute(2, 0, 1).float() for i in load_sample_images().images]
    generator = torch.Generator().manual_seed(seed)
    crops = []
    for k in range(count):
        image = images[k % 2]
        top, left = (int(torch.randint(image.size(d) - 64, (), generator=generator)) for d in (1, 2))
        crops.append(image[:, top : top + 64, left : left + 64])
    return torch.stack(crops)


def test_patch_metric_on_photographs() -> None:
    real, other = photograph_crops(24, 0), photograph_crops(24, 1)
    same = sliced_wasserstein_patches(real, other, n_projections=64)
    assert same.sizes == ((64, 64), (32, 32), (16, 16))
    assert same.mean == pytest.approx(sum(same.distances) / 3)
    blurred = torch.nn.functional.avg_pool2d(other, 3, 1, 1)
    blurred = torch.nn.functional.avg_pool2d(blurred, 3, 1, 1)
    noisy = other + 25 * torch.randn(other.shape)
    worse = sliced_wasserstein_patches(real, noisy, n_projections=64)
    # Noise is in the finest band; the coarse ones hardly see it.
    assert worse.distances[0] > 3 * same.distances[0]
    assert worse.distances[2] < 1.5 * same.distances[2]
    assert sliced_wasserstein_patches(real, blurred, n_projections=64).distances[0] > same.distances[0]
    grey = photograph_crops(24, 1).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert sliced_wasserstein_patches(real, grey, n_projections=64).mean > same.mean
    assert sliced_wasserstein_patches(real, other, n_projections=64) == same


def test_pyramid_reconstructs_the_image() -> None:
    from fastgan.metrics import sliced_wasserstein as metric

    images = photograph_crops(2, 3)[:, :, :61, :50]
    bands = metric._bands(images, 16)
    assert [tuple(b.shape[2:]) for b in bands] == [(61, 50), (31, 25)]
    image = bands[-1]
    for band in reversed(bands[:-1]):
        image = band + metric._double(image, band.shape[2], band.shape[3])
    torch.testing.assert_close(image, images, rtol=0, atol=1e-3)
    # A constant is kept to the bit, and has no detail; a linear ramp is kept away from the border.
    flat = torch.full((1, 1, 33, 34), 0.3217)
    assert [float(band.abs().max()) for band in metric._bands(flat, 16)] == [0.0, float(flat.max())]
    ramp = torch.arange(32.0).expand(1, 1, 32, 32)
    torch.testing.assert_close(metric._halve(ramp)[..., 1:-1], ramp[..., ::2, 2:-2:2])


@pytest.mark.parametrize("size", [(16, 16), (17, 16), (16, 23), (61, 51)])
def test_filters_of_the_pyramid(size: tuple[int, int]) -> None:
    """Burt and Adelson's filter, mirrored at the border; upwards after zeros between the pixels, times 4."""
    from fastgan.metrics import sliced_wasserstein as metric

    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=torch.float64) / 16

    def smooth(images: torch.Tensor) -> torch.Tensor:
        mirrored = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="reflect").double()
        return torch.nn.functional.conv2d(mirrored, taps.outer(taps).expand(3, 1, 5, 5), groups=3)

    images = 100 + torch.randn(2, 3, *size)
    half = metric._halve(images)
    torch.testing.assert_close(half, smooth(images)[..., ::2, ::2].float())
    spread = torch.zeros_like(images)
    spread[..., ::2, ::2] = half
    torch.testing.assert_close(metric._double(half, *size), 4 * smooth(spread).float())


def test_patches_are_cut_from_the_image() -> None:
    from fastgan.metrics import sliced_wasserstein as metric

    image = torch.arange(20.0 * 24).view(1, 1, 20, 24) + torch.tensor([0.0, 1000.0]).view(2, 1, 1, 1)
    patches = metric._patches(image, 50, 7, torch.Generator().manual_seed(0))
    assert patches.shape == (100, 1, 7, 7)
    offsets = torch.arange(7.0)[:, None] * 24 + torch.arange(7.0)
    assert torch.equal(patches[:, 0] - patches[:, 0, :1, :1], offsets.expand(100, 7, 7))
    assert (patches[:50, 0] < 480).all()
    assert (patches[50:, 0] >= 1000).all()
    normal = metric._normalise(patches)
    torch.testing.assert_close(normal.mean(), torch.tensor(0.0), rtol=0, atol=1e-5)
    torch.testing.assert_close(normal.square().mean(), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("real", "fake", "message"),
    [
        ((2, 3, 32, 32), (2, 3, 32, 30), "same"),
        ((0, 3, 32, 32), (2, 3, 32, 32), "at least one image"),
        ((2, 3, 12, 32), (2, 3, 12, 32), "at least 16"),
    ],
)
def test_bad_images(real: tuple[int, ...], fake: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sliced_wasserstein_patches(torch.zeros(real), torch.zeros(fake))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"fake": [1.0]}, TypeError, "fake must be a Tensor, got list"),
        ({"real": torch.zeros(2, 3, 32, 32, dtype=torch.complex64)}, TypeError, "real must be real"),
        ({"patches_per_image": 0}, ValueError, "patches_per_image must be at least 1, got 0"),
        ({"patch_size": 2.5}, TypeError, "patch_size must be an integer"),
        ({"n_projections": 0}, ValueError, "sliced_wasserstein_patches: n_projections must be at least 1"),
        ({"generator": 3}, TypeError, "generator must be a"),
    ],
)
def test_bad_patch_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    images = torch.zeros(2, 3, 32, 32)
    with pytest.raises(error, match=message):
        sliced_wasserstein_patches(**{"real": images, "fake": images, **change})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("p", [1, 1.0, 2.0, 2.5, math.inf])
@pytest.mark.parametrize("batch", [(), (3,), (2, 0), (2, 3)])
def test_value_without_gradients_is_the_same(batch: tuple[int, ...], p: float, dtype: torch.dtype) -> None:
    """Without gradients a kernel takes the mean, too."""
    x, y = torch.randn(*batch, 7, 3).to(dtype), torch.randn(*batch, 7, 3).to(dtype)
    projections = directions(5, 3).to(dtype)
    value = F.sliced_wasserstein(x, y, p=p, projections=projections)
    recorded = F.sliced_wasserstein(x.requires_grad_(), y, p=p, projections=projections)
    assert (value.requires_grad, recorded.requires_grad) == (False, True)
    assert value.dtype == recorded.dtype
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(value, recorded.detach(), rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        assert torch.equal(F.sliced_wasserstein(x, y, p=p, projections=projections), value)
        same = F.sliced_wasserstein(x, x, p=p, projections=projections)
    assert torch.equal(same, torch.zeros_like(same))


def test_nan_without_gradients() -> None:
    x, y = torch.randn(2, 7, 3), torch.randn(2, 7, 3)
    x[1, 2, 0] = math.nan
    assert F.sliced_wasserstein(x, y, projections=directions(4, 3).float()).isnan().tolist() == [False, True]
