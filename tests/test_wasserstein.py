"""Exact 1-D Wasserstein: values, gradients, plan and potentials against independent solvers and closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import linprog
from torch import Tensor

import fastgan
import fastgan.functional as F
from fastgan.kernels import dispatch
from fastgan.reference import wasserstein as reference

ORDERS = (1.0, 1.5, 2.0, 3.0, math.inf)


def transport_cost(x: Any, y: Any, a: Any, b: Any, p: float) -> float:
    """W_p^p by linear programming over all plans, which knows nothing of order."""
    n, m = len(x), len(y)
    a, b = np.asarray(a, float) / np.sum(a), np.asarray(b, float) / np.sum(b)
    cost = np.abs(np.subtract.outer(x, y)) ** p
    rows = np.kron(np.eye(n), np.ones(m))
    columns = np.kron(np.ones(n), np.eye(m))
    solution = linprog(cost.ravel(), A_eq=np.vstack((rows, columns)), b_eq=np.concatenate((a, b)), bounds=(0, None))
    return float(solution.fun)


def grads(value: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value.sum(), inputs)


# --- values -------------------------------------------------------------------------------------------------------


def test_known_values() -> None:
    def w(*args: list[float]) -> float:
        return float(F.wasserstein_1d(*(torch.tensor(a, dtype=torch.float64) for a in args)))

    assert w([0, 1, 3], [5, 6, 8]) == 5
    assert w([0, 1], [0, 1], [3, 1], [2, 2]) == 0.25
    assert w([3.4, 3.9, 7.5, 7.8], [4.5, 1.4], [1.4, 0.9, 3.1, 7.2], [3.2, 3.5]) == pytest.approx(
        4.0781331438047861, abs=1e-15
    )


@pytest.mark.parametrize("p", [1.0, 2.0, 2.5])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 5), (4, 4), (5, 3), (6, 4)])
def test_linear_programming(n: int, m: int, p: float) -> None:
    rng = np.random.default_rng(n * 10 + m)
    x, y = rng.integers(-3, 4, n) / 2, rng.normal(size=m)
    a, b = rng.integers(0, 4, n) + (np.arange(n) == 0), rng.random(m)
    tx, ty, ta, tb = (torch.tensor(v, dtype=torch.float64) for v in (x, y, a, b))
    assert float(F.wasserstein_1d(tx, ty, p=p, root=False)) == pytest.approx(
        transport_cost(x, y, np.ones(n), np.ones(m), p), abs=1e-9
    )
    expected = transport_cost(x, y, a, b, p)
    assert float(F.wasserstein_1d(tx, ty, ta, tb, p=p, root=False)) == pytest.approx(expected, abs=1e-9)
    assert float(F.wasserstein_1d(tx, ty, ta, tb, p=p)) == pytest.approx(expected ** (1 / p), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [*range(1, 71), 112, 187, 263, 401, 512, 513])
def test_every_small_size(n: int, dtype: torch.dtype) -> None:
    x = torch.randn(19, n, dtype=dtype).requires_grad_()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    for m in (n, n % 13 + 1, max(1, 70 - n // 2)):
        y = torch.randn(19, m, dtype=dtype).mul(2).round_().div(2).requires_grad_()
        for p in (1.0, 2.0):
            actual = F.wasserstein_1d(x, y, p=p, root=False)
            expected = reference.wasserstein_1d(x.double(), y.double(), p=p, root=False)
            torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)
            for g, e in zip(grads(actual, x, y), grads(expected, x, y), strict=True):
                torch.testing.assert_close(g, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("n", "m"), [(1_000_000, 1_000_000), (1_000_000, 700_001), (65_537, 65_539), (1, 300_000)])
def test_large_rows_against_scipy(n: int, m: int) -> None:
    # n m is past 2^31, and POT's cumulative float32 weights are 1,000 % off in the second case.
    x, y = torch.randn(n), torch.randn(m) * 2 + 0.3
    expected = stats.wasserstein_distance(x.double().numpy(), y.double().numpy())
    assert float(F.wasserstein_1d(x, y)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_random_sizes_against_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, m = (int(k) for k in np.exp(rng.uniform(math.log(2), math.log(1e6 if seed else 2e4), 2)))
    x, y, a, b = rng.normal(size=n), rng.normal(0.5, 2, m), rng.random(n), rng.random(m) ** 4
    tensors = [torch.from_numpy(t) for t in (x, y, a, b)]
    assert float(F.wasserstein_1d(*tensors)) == pytest.approx(stats.wasserstein_distance(x, y, a, b), rel=1e-9)
    assert float(F.wasserstein_1d(*tensors[:2])) == pytest.approx(stats.wasserstein_distance(x, y), rel=1e-9)


@pytest.mark.parametrize(("rows", "n", "m"), [(3, 5000, 4000), (40, 130, 257), (200, 30, 30)])
def test_weighted_against_scipy_and_pot(rows: int, n: int, m: int) -> None:
    x, y = torch.randn(rows, n, dtype=torch.float64), torch.randn(rows, m, dtype=torch.float64) + 0.5
    a, b = torch.rand(rows, n, dtype=torch.float64), torch.rand(rows, m, dtype=torch.float64).square()
    a[:, ::7] = 0
    actual = F.wasserstein_1d(x, y, a, b)
    for i in range(min(rows, 10)):
        assert float(actual[i]) == pytest.approx(stats.wasserstein_distance(x[i], y[i], a[i], b[i]), rel=1e-12)
    squared = F.wasserstein_1d(x, y, a, b, p=2, root=False)
    pot = ot.wasserstein_1d(x.T, y.T, (a / a.sum(1, keepdim=True)).T, (b / b.sum(1, keepdim=True)).T, p=2)
    torch.testing.assert_close(squared, pot, rtol=1e-10, atol=0)


def test_closed_forms() -> None:
    x = torch.randn(50, 301, dtype=torch.float64)
    for p in ORDERS:
        shifted = F.wasserstein_1d(x, x[:, torch.randperm(301)] + 1.25, p=p)
        torch.testing.assert_close(shifted, torch.full((50,), 1.25, dtype=torch.float64))
    scaled = F.wasserstein_1d(x, 3 * x, p=2)
    torch.testing.assert_close(scaled, 2 * x.square().mean(1).sqrt())
    # Quantiles of two Gaussians: W_2^2 = (difference of means)^2 + (difference of deviations)^2.
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    q = torch.special.ndtri(u)
    assert float(F.wasserstein_1d(q, 1.5 + 2 * q, p=2)) == pytest.approx(math.sqrt(1.5**2 + 1), rel=1e-4)
    # A Dirac: the mean absolute deviation.
    torch.testing.assert_close(F.wasserstein_1d(x, x.new_zeros(50, 1)), x.abs().mean(1))


def test_infinite_order_is_the_limit() -> None:
    x, y = torch.randn(9, 40, dtype=torch.float64), torch.randn(9, 25, dtype=torch.float64)
    limit = F.wasserstein_1d(x, y, p=2000.0)
    torch.testing.assert_close(F.wasserstein_1d(x, y, p=math.inf), limit, rtol=1e-2, atol=0)
    assert torch.equal(F.wasserstein_1d(x, y, p=math.inf), F.wasserstein_1d(x, y, p=math.inf, root=False))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_scales_neither_overflow_nor_vanish(scale: float) -> None:
    x, y = torch.randn(4, 33), torch.randn(4, 33)
    for p in (1.0, 1.5, 3.0, 50.0):
        base = F.wasserstein_1d(x, y, p=p)
        big = (x * scale).requires_grad_()
        value = F.wasserstein_1d(big, y * scale, p=p)
        torch.testing.assert_close(value / scale, base, rtol=1e-5, atol=0)
        (g,) = grads(value, big)
        # W is homogeneous: <x, dW/dx> + <y, dW/dy> = W; and shifting x alone by W_1's sign moves it by at most 1.
        assert g.isfinite().all()
        assert g.abs().sum() > 0


finite = st.floats(-1e6, 1e6, width=32)
masses = st.one_of(st.sampled_from([0.0, 1.0, 2.0, 1e-30, 1e30]), st.floats(0, 10, width=32))


@st.composite
def weighted_pair(draw: st.DrawFn) -> tuple[list[float], ...]:
    sides: list[list[float]] = []
    for _ in range(2):
        values = draw(st.lists(st.one_of(finite, st.sampled_from([-1.0, 0.0, 1.0])), min_size=1, max_size=6))
        weights = draw(st.lists(masses, min_size=len(values), max_size=len(values)))
        weights[0] = weights[0] or 1.0
        sides += [values, weights]
    return tuple(sides)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(weighted_pair())
def test_any_input_against_scipy(sides: tuple[list[float], ...]) -> None:
    x, a, y, b = sides
    expected = stats.wasserstein_distance(x, y, a, b)
    tx, ta, ty, tb = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in sides)
    value = F.wasserstein_1d(tx, ty, ta, tb)
    size = max(map(abs, x + y))
    assert float(value.detach()) == pytest.approx(expected, rel=1e-9, abs=1e-12 * size)
    # Euler: W_1 is homogeneous of degree 1 in the samples and of degree 0 in either side's weights.
    gx, gy, ga, gb = grads(value, tx, ty, ta, tb)
    assert float((gx * tx.detach()).sum() + (gy * ty.detach()).sum()) == pytest.approx(
        float(value.detach()), rel=1e-9, abs=1e-9 * size
    )
    assert abs(float((ga * ta.detach()).sum())) <= 1e-9 * size
    assert abs(float((gb * tb.detach()).sum())) <= 1e-9 * size
    plan_is_optimal(tx.detach(), ty.detach(), ta.detach(), tb.detach())


@settings(derandomize=True, deadline=None, max_examples=100)
@given(weighted_pair())
def test_axioms_and_invariances(sides: tuple[list[float], ...]) -> None:
    x, a, y, b = (torch.tensor(v, dtype=torch.float64) for v in sides)
    size = float(torch.cat((x, y)).abs().max())
    for p in (1.0, 2.0):
        w = F.wasserstein_1d(x, y, a, b, p=p)
        close = lambda other, most=size: torch.testing.assert_close(other, w, rtol=1e-7, atol=1e-6 * most)  # noqa: B023
        assert float(w) >= 0
        assert float(F.wasserstein_1d(x, x, a, a, p=p)) == 0
        close(F.wasserstein_1d(y, x, b, a, p=p))
        close(F.wasserstein_1d(x.flip(0), y, a.flip(0), b, p=p))
        close(F.wasserstein_1d(-x, -y, a, b, p=p))
        close(F.wasserstein_1d(x + 3, y + 3, a, b, p=p), size + 3)
        close(F.wasserstein_1d(x, y, a * 4, b / 4, p=p))
        close(F.wasserstein_1d(torch.cat((x, x)), y, torch.cat((a, a)), b, p=p))
        z = torch.linspace(-1, 1, 4, dtype=torch.float64)
        via = F.wasserstein_1d(x, z, a, p=p) + F.wasserstein_1d(z, y, None, b, p=p)
        assert float(w) <= float(via) * (1 + 1e-9) + 1e-6 * size


# --- plan and potentials ------------------------------------------------------------------------------------------


def plan_is_optimal(x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, p: float = 1.0) -> None:
    i, j, mass = F.wasserstein_1d_plan(x, y, a, b)
    n, m = x.size(-1), y.size(-1)
    assert i.shape == j.shape == mass.shape == (*x.shape[:-1], n + m - 1)
    assert (mass >= 0).all()
    a = torch.ones_like(x) if a is None else a.expand(x.shape)
    b = torch.ones_like(y) if b is None else b.expand(y.shape)
    for side, weights in ((i, a), (j, b)):
        marginal = torch.zeros_like(weights).scatter_add_(-1, side, mass)
        torch.testing.assert_close(marginal, weights / weights.sum(-1, keepdim=True), rtol=1e-9, atol=1e-12)
    paid = (mass * (x.gather(-1, i) - y.gather(-1, j)).abs() ** p).sum(-1)
    size = float(torch.cat((x, y), -1).abs().max()) ** p
    torch.testing.assert_close(paid, F.wasserstein_1d(x, y, a, b, p=p, root=False), rtol=1e-9, atol=1e-12 * size)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 7), (6, 4), (5, 12), (1, 9)])
def test_plan(n: int, m: int) -> None:
    x, y = torch.randn(2, 3, n, dtype=torch.float64), torch.randn(2, 3, m, dtype=torch.float64)
    plan_is_optimal(x, y, None, None, 2.0)
    plan_is_optimal(x, y, torch.rand(n, dtype=torch.float64), torch.rand(3, m, dtype=torch.float64), 2.0)
    _, _, mass = F.wasserstein_1d_plan(x, y)
    assert int((mass > 0).sum(-1).max()) == n + m - math.gcd(n, m)


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "m"), [(2, 2), (6, 4), (7, 7), (1, 3)])
def test_potentials_are_feasible_and_optimal(n: int, m: int, weighted: bool, p: float) -> None:
    x = torch.randint(-4, 5, (30, n)).double()
    y = torch.randn(30, m, dtype=torch.float64)
    # Small integers, zeros among them: many cuts of both sides coincide.
    a = torch.randint(0, 3, (30, n)).double() if weighted else torch.ones(30, n, dtype=torch.float64)
    b = torch.randint(0, 3, (30, m)).double() if weighted else torch.ones(30, m, dtype=torch.float64)
    a[:, 0] += 1
    b[:, -1] += 1
    f, g = F.wasserstein_1d_potentials(x, y, a, b, p=p)
    cost = (x.unsqueeze(2) - y.unsqueeze(1)).abs() ** p
    assert float((f.unsqueeze(2) + g.unsqueeze(1) - cost).max()) <= 1e-10
    primal = F.wasserstein_1d(x, y, a, b, p=p, root=False)
    first = (f * a / a.sum(1, keepdim=True)).sum(1)
    second = (g * b / b.sum(1, keepdim=True)).sum(1)
    torch.testing.assert_close(first + second, primal, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-10)


# --- gradients ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (6, 6), (5, 4)])
def test_gradcheck(n: int, m: int, p: float, root: bool) -> None:
    x = torch.randn(2, n, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, m, dtype=torch.float64, requires_grad=True)
    a = torch.rand(n, dtype=torch.float64).add_(0.1).requires_grad_()
    b = torch.rand(2, m, dtype=torch.float64).add_(0.1).requires_grad_()

    def plain(x: Tensor, y: Tensor) -> Tensor:
        return F.wasserstein_1d(x, y, p=p, root=root)

    def weighted(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return F.wasserstein_1d(x, y, a, b, p=p, root=root)

    assert torch.autograd.gradcheck(plain, (x, y))
    assert torch.autograd.gradgradcheck(plain, (x, y))
    assert torch.autograd.gradcheck(weighted, (x, y, a, b))
    assert torch.autograd.gradgradcheck(weighted, (x, y, a, b))
    assert torch.autograd.gradgradcheck(lambda x, y: weighted(x, y, a.detach(), b.detach()), (x, y))


def test_derivatives_at_equal_samples() -> None:
    x = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([2.0, 0.5, 0.0], dtype=torch.float64, requires_grad=True)
    for p, curvature in ((1.0, 0.0), (2.0, 2.0), (1.5, 0.0), (3.0, 0.0)):
        gx, gy = torch.autograd.grad(F.wasserstein_1d(x, y, p=p, root=False), (x, y), create_graph=True)
        assert gx[0] == gx[2] == gy[0] == gy[2] == 0
        second = torch.autograd.grad(gx[0] + 0 * gy[0], x, materialize_grads=True)[0] if p > 1 else torch.zeros(3)
        assert second[0] == pytest.approx(curvature / 3)
    for p in ORDERS:
        value = F.wasserstein_1d(x, x.detach().flip(0), p=p)
        assert value == 0
        assert torch.equal(grads(value, x)[0], torch.zeros(3, dtype=torch.float64))


def test_ties_are_matched_in_index_order() -> None:
    x = torch.tensor([1.0, 1.0, -0.0, 0.0], requires_grad=True)
    y = torch.tensor([2.0, 0.0, -1.0, 1.0])
    (g,) = grads(F.wasserstein_1d(x, y, root=False), x)
    assert g.tolist() == [0, -0.25, 0.25, 0]


@pytest.mark.parametrize("p", [1.0, math.inf])
@pytest.mark.parametrize("weighted", [False, True])
def test_second_derivatives_that_vanish_are_zeros(p: float, weighted: bool) -> None:
    x, y = torch.randn(3, 7, requires_grad=True), torch.randn(3, 7, requires_grad=True)
    value = F.wasserstein_1d(x, y, torch.rand(7) if weighted else None, p=p)
    grads = torch.autograd.grad(value.sum(), (x, y), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in grads), (x, y))
    assert all(torch.equal(h, torch.zeros(3, 7)) for h in second)


def test_gradients_of_weights_alone() -> None:
    """No sample wants one, and equal counts without weights would have signs."""
    x, y, a = torch.randn(5, 8), torch.randn(5, 8), torch.rand(8, requires_grad=True)
    double = a.detach().double().requires_grad_()
    expected = torch.autograd.grad(reference.wasserstein_1d(x.double(), y.double(), double).sum(), double)[0]
    torch.testing.assert_close(torch.autograd.grad(F.wasserstein_1d(x, y, a).sum(), a)[0], expected.float())


def test_third_derivative_raises_or_is_right() -> None:
    x, y = torch.randn(5, dtype=torch.float64, requires_grad=True), torch.randn(5, dtype=torch.float64)
    (g,) = torch.autograd.grad(F.wasserstein_1d(x, y, p=3, root=False), x, create_graph=True)
    (h,) = torch.autograd.grad(g.sum(), x, create_graph=True)
    if dispatch.select("wasserstein_1d", x) != "reference":
        with pytest.raises(NotImplementedError, match="third derivative"):
            h.sum().backward()
    with fastgan.use_backend("reference"):
        assert torch.autograd.gradgradcheck(
            lambda x: torch.autograd.grad(F.wasserstein_1d(x, y, p=3, root=False), x, create_graph=True)[0], x
        )


def test_transforms() -> None:
    x, y = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    f = lambda x, y: F.wasserstein_1d(x, y, p=2.0).sum()
    gx = torch.func.grad(f)(x, y)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(f(leaf, y), leaf, create_graph=True)
    torch.testing.assert_close(gx, expected.detach())
    nested = torch.func.grad(lambda x: torch.func.grad(f)(x, y).square().sum())(x)
    (second,) = torch.autograd.grad(expected.square().sum(), leaf)
    torch.testing.assert_close(nested, second)
    torch.testing.assert_close(torch.func.vmap(F.wasserstein_1d)(x, y), F.wasserstein_1d(x, y))
    torch.testing.assert_close(
        torch.func.vmap(torch.func.grad(f), in_dims=(0, None))(x, y[0]), torch.func.grad(f)(x, y[0].expand(4, 5))
    )
    direction = torch.randn_like(x)
    _, tangent = torch.func.jvp(lambda x: f(x, y), (x,), (direction,))
    torch.testing.assert_close(tangent, (gx * direction).sum())


@pytest.mark.parametrize("weighted", [False, True])
def test_compiled_double_backward(weighted: bool) -> None:
    x, y = torch.randn(4, 6), torch.randn(4, 5)
    a = torch.rand(4, 6) if weighted else None

    def penalty(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: F.wasserstein_1d(x, y, a, p=2.0).sum())(x).square().sum()

    expected = torch.func.grad(penalty)(x)
    compiled = torch.compile(torch.func.grad(penalty), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    forward = torch.compile(lambda x: F.wasserstein_1d(x, y, a), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(forward(x), F.wasserstein_1d(x, y, a))


def test_potentials_compile_for_orders_that_change() -> None:
    x, y = torch.randn(3, 7), torch.randn(3, 5)
    torch._dynamo.reset()
    compiled = torch.compile(lambda p: F.wasserstein_1d_potentials(x, y, p=p)[0], fullgraph=True, backend="eager")
    for p in (2.0, 3.0, 1.5):
        torch.testing.assert_close(compiled(p), F.wasserstein_1d_potentials(x, y, p=p)[0])


@pytest.mark.parametrize("weighted", [False, True])
def test_compiles_for_sizes_that_change(weighted: bool) -> None:
    def loss(x: Tensor, y: Tensor, a: Tensor | None) -> Tensor:
        return F.wasserstein_1d(x, y, a, p=2.0).sum() + F.sliced_wasserstein(x, y, projections=torch.eye(x.size(-1)))

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for n, m in ((5, 6), (8, 9), (4, 11)):
        x, y = torch.randn(m, n, requires_grad=True), torch.randn(m, n)
        a = torch.rand(m, n) if weighted else None
        torch.testing.assert_close(compiled(x, y, a), loss(x, y, a))
        (got,) = torch.autograd.grad(compiled(x, y, a), x)
        torch.testing.assert_close(got, torch.autograd.grad(loss(x, y, a), x)[0])


# --- dtypes, shapes, special values, errors ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("n", "m"), [(37, 37), (100, 64), (3000, 3000)])
def test_precision(dtype: torch.dtype, n: int, m: int) -> None:
    x, y = (torch.randn(7, n) + 3).to(dtype).requires_grad_(), torch.randn(7, m).mul(2).to(dtype).requires_grad_()
    a = torch.rand(7, n).to(dtype).requires_grad_()
    for weights in (None, a):
        for p in (1.0, 2.0):
            inputs = (x, y) if weights is None else (x, y, a)
            actual = F.wasserstein_1d(x, y, weights, p=p)
            assert actual.dtype == dtype
            doubles = [t.detach().double().requires_grad_() for t in inputs]
            expected = reference.wasserstein_1d(*doubles, p=p)
            # One rounding of the exact result.
            unit = torch.finfo(dtype).eps
            torch.testing.assert_close(actual.double(), expected, rtol=2 * unit, atol=0)
            for g, e in zip(grads(actual, *inputs), grads(expected, *doubles), strict=True):
                torch.testing.assert_close(
                    g.double(), e, rtol=4 * unit, atol=4 * unit * float(e.abs().max()) + torch.finfo(dtype).tiny
                )


def test_half_precision_keeps_gradients_of_many_samples() -> None:
    # Each is 1/n = 1.5e-5, subnormal in float16; the loss scale must be able to rescue it.
    x, y = torch.randn(65536).half().requires_grad_(), torch.randn(65536).half() + 9
    (g,) = grads(F.wasserstein_1d(x, y).float() * 16384, x)
    assert torch.equal(g, torch.full_like(g, -0.25))


@pytest.mark.parametrize(
    ("p", "n", "spread", "weighted"),
    [(math.inf, 65537, 1, False), (2.0, 101, 60000, False), (1.0, 65537, 1, True), (3.0, 60013, 1, True)],
)
def test_half_precision_gradients_do_not_overflow(p: float, n: int, spread: float, weighted: bool) -> None:
    x, y = torch.rand(2, n).mul(spread).half(), torch.rand(2, 67).mul(-spread).half()
    x[:, 5] = spread
    w = torch.ones(2, n)
    w[:, 5] = 1e9  # nearly all the mass: n times its gradient is n times its slope
    inputs = [t.requires_grad_() for t in (x, y)]
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    actual = F.wasserstein_1d(*inputs, w if weighted else None, p=p)
    expected = reference.wasserstein_1d(*doubles, w if weighted else None, p=p)
    assert actual.dtype == torch.float16
    unit = torch.finfo(torch.float16).eps
    torch.testing.assert_close(actual.double(), expected, rtol=unit, atol=0)
    for g, e in zip(grads(actual, *inputs), grads(expected, *doubles), strict=True):
        assert g.dtype == torch.float16
        torch.testing.assert_close(g.double(), e, rtol=2 * unit, atol=2 * torch.finfo(torch.float16).tiny)


def test_integers_are_promoted() -> None:
    x, y = torch.tensor([0, 1, 3]), torch.tensor([5, 6, 9], dtype=torch.int16)
    value = F.wasserstein_1d(x, y, torch.tensor([1, 1, 2]))
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(stats.wasserstein_distance([0, 1, 3], [5, 6, 9], [1, 1, 2]))
    assert F.wasserstein_1d(x, y.double()).dtype == torch.float64


def test_shapes_and_strides() -> None:
    x, y = torch.randn(2, 1, 3, 8), torch.randn(5, 1, 6)
    w = torch.rand(3, 8)
    value = F.wasserstein_1d(x, y, w)
    assert value.shape == (2, 5, 3)
    for i, j, k in ((0, 0, 0), (1, 4, 2), (0, 3, 1)):
        torch.testing.assert_close(value[i, j, k], F.wasserstein_1d(x[i, 0, k], y[j, 0], w[k]))
    leaf = torch.randn(8, requires_grad=True)
    many = torch.randn(50, 8)
    (g,) = grads(F.wasserstein_1d(leaf, many), leaf)
    copies = leaf.detach().repeat(50, 1).requires_grad_()
    torch.testing.assert_close(g, grads(F.wasserstein_1d(copies, many), copies)[0].sum(0))
    sliced = torch.randn(9, 40)[:, 3:35:2]
    assert torch.equal(F.wasserstein_1d(sliced, sliced.t()[:, :1].t() * 2), F.wasserstein_1d(
        sliced.contiguous(), sliced[:1].contiguous() * 2))  # fmt: skip
    assert F.wasserstein_1d(torch.randn(0, 4), torch.randn(0, 3)).shape == (0,)
    assert F.wasserstein_1d(torch.randn(4), torch.randn(3)).shape == ()


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n", [4, 2000])
def test_nan_and_infinity(n: int, weighted: bool, p: float) -> None:
    x, y = torch.randn(7, n), torch.randn(7, n)
    x[0, 2] = math.nan
    x[1, 1], y[1, 3] = math.inf, math.inf
    x[2, 0] = -math.inf
    y[3, 3] = math.inf
    y[4, 1] = -math.nan
    x[5, 0], y[5, 0] = math.inf, -math.inf
    weights = torch.rand(n) + 0.1 if weighted else None
    if weighted:
        weights[2] = 0  # a NaN counts even without mass
    x.requires_grad_()
    value = F.wasserstein_1d(x, y, weights, weights, p=p)
    assert value[[0, 4]].isnan().all()
    assert (value[[2, 3, 5]] == math.inf).all()
    assert value[6].isfinite()
    if not weighted:  # with weights the masses at infinity may differ
        assert value[1].isfinite()
        kept = F.wasserstein_1d(x[1, x[1] < math.inf], y[1, y[1] < math.inf], p=1.0)
        if p == 1:
            torch.testing.assert_close(value[1], kept * (n - 1) / n)
    (g,) = grads(value, x)
    assert g[0].isnan().all()
    assert g[6].isfinite().all()
    if p == 1 and not weighted:
        assert g[[1, 2, 3, 5]].isfinite().all()


def test_deterministic_and_inputs_untouched() -> None:
    x, y, a = torch.randn(3, 3000, requires_grad=True), torch.randn(3, 1777), torch.rand(3000, requires_grad=True)
    copies = [t.detach().clone() for t in (x, y, a)]
    first = grads(F.wasserstein_1d(x, y, a, p=1.5), x, a)
    for _ in range(3):
        again = grads(F.wasserstein_1d(x, y, a, p=1.5), x, a)
        assert all(torch.equal(s, t) for s, t in zip(first, again, strict=True))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        other = grads(F.wasserstein_1d(x, y, a, p=1.5), x, a)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(s, t) for s, t in zip(first, other, strict=True))
    assert all(torch.equal(t, c) for t, c in zip((x, y, a), copies, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(3, 0)}, ValueError, "at least one sample"),
        ({"x": torch.tensor(1.0)}, ValueError, "at least one sample"),
        ({"x": torch.zeros(3, 2, dtype=torch.complex64)}, TypeError, "must be real"),
        ({"y": [1.0, 2.0]}, TypeError, "y must be a Tensor, got list"),
        ({"x": torch.zeros(3, 2).to_sparse()}, TypeError, "x must be a dense tensor, got layout torch.sparse_coo"),
        ({"y": torch.zeros(4, 2)}, ValueError, "leading shapes"),
        ({"y": torch.zeros(3, 2, device="meta")}, ValueError, "device"),
        ({"p": 0.5}, ValueError, "p must be"),
        ({"p": math.nan}, ValueError, "p must be"),
        ({"x_weights": torch.tensor([1.0, -1e-9])}, ValueError, "x_weights must be non-negative"),
        ({"y_weights": torch.zeros(3, 2)}, ValueError, "y_weights must be non-negative"),
        ({"x_weights": torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])}, ValueError, "positive, finite sum"),
        ({"x_weights": torch.tensor([1.0, math.inf])}, ValueError, "finite"),
        ({"y_weights": torch.tensor([1.0, math.nan])}, ValueError, "y_weights"),
        ({"x_weights": torch.ones(3)}, ValueError, "must broadcast to x's shape"),
        ({"x_weights": torch.ones(2, 3, 2)}, ValueError, "must broadcast to x's shape"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"x": torch.zeros(3, 2), "y": torch.zeros(3, 2), "p": 1.0} | change
    with pytest.raises(error, match=message):
        F.wasserstein_1d(**arguments)


# --- what POT gets wrong ------------------------------------------------------------------------------------------


def test_weight_gradient_on_ties_is_feasible() -> None:
    x, y = torch.tensor([7.0, -9.0]), torch.tensor([9.0, 6.0])
    a = torch.tensor([0.5, 0.5], requires_grad=True)
    (g,) = grads(F.wasserstein_1d(x, y, a, torch.tensor([0.5, 0.5]), root=False), a)
    assert -16 <= float(g[0] - g[1]) <= -14


def test_distance_to_itself_has_zero_gradient() -> None:
    x = torch.randn(30, requires_grad=True)
    for p in ORDERS:
        value = F.wasserstein_1d(x, x.detach(), p=p)
        assert float(value.detach()) == 0
        assert torch.equal(grads(value, x)[0], torch.zeros(30))


def test_masses_are_normalised() -> None:
    x, y = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])
    assert float(F.wasserstein_1d(x, y, torch.tensor([3.0, 1.0]), torch.tensor([20.0, 20.0]))) == 0.25


def test_meta_tensors_have_no_weights_to_check() -> None:
    x, y, a = torch.empty(2, 3, device="meta"), torch.empty(2, 4, device="meta"), torch.ones(3, device="meta")
    assert F.wasserstein_1d(x, y, a, p=2).shape == (2,)
    assert [t.shape for t in F.wasserstein_1d_plan(x, y, a)] == [(2, 6)] * 3


@pytest.mark.parametrize("p", [2.0, 3.3])
def test_second_derivatives_of_a_long_row_do_not_depend_on_the_threads(p: float) -> None:
    x, y, v = torch.randn(1, 40_001), torch.randn(1, 40_001), torch.randn(1, 40_001)

    def second() -> tuple[Tensor, ...]:
        leaves = x.clone().requires_grad_(), y.clone().requires_grad_()
        grads = torch.autograd.grad(F.wasserstein_1d(*leaves, p=p).sum(), leaves, create_graph=True)
        return torch.autograd.grad(grads, leaves, (v, v.flip(-1)))

    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(second())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def tied_weights(n: int, scale: float) -> tuple[Tensor, Tensor]:
    """Equal cumulative weights, rounded differently."""
    w = torch.randint(0, 4, (3, n)).double()
    w[:, n // 2] += 1
    return w, w * scale


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("p", [3.0, 7.3, math.inf])
@pytest.mark.parametrize(("n", "scale"), [(10, 0.1), (67, 0.3), (3001, 1e-5)])
def test_rounded_cumulative_weights_move_no_mass(n: int, scale: float, p: float, backend: str) -> None:
    a, b = tied_weights(n, scale)
    x, shift = torch.randn(3, n).double() ** 3, 0.5
    with fastgan.use_backend(backend):
        assert torch.equal(F.wasserstein_1d(x, x, a, b, p=p), torch.zeros(3).double())
        torch.testing.assert_close(F.wasserstein_1d(x, x + shift, b, a, p=p), torch.full((3,), shift).double())
        # no weights, and weights of 1/n
        y = torch.randn(3, n).double()
        same = F.wasserstein_1d(x, y, torch.full((n,), 1 / n).double(), p=p)
        torch.testing.assert_close(same, F.wasserstein_1d(x, y, p=p))
        f, g = F.wasserstein_1d_potentials(x, y, a, b, p=3.0)
        other = F.wasserstein_1d_potentials(x, y, a, a, p=3.0)
        torch.testing.assert_close((f, g), other)


def test_small_masses_of_integers_are_masses() -> None:
    # one cell of mass 1 / (n (n - 1)) has the largest difference
    n = 100_000
    x, y = torch.zeros(n).double(), torch.zeros(n - 1).double()
    x[1:], y[1:] = 1, 1
    ones = torch.ones(n).double()
    assert F.wasserstein_1d(x, y, ones, ones[1:], p=math.inf) == F.wasserstein_1d(x, y, p=math.inf) == 1
