"""The C++ kernels of the exact 1-D Wasserstein distance: instruction sets, kernel paths, memory they may touch."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

import fastgan
import fastgan.functional as F
from fastgan.functional import _wasserstein_autograd as operator
from fastgan.kernels import dispatch
from fastgan.reference import wasserstein as reference

native = dispatch.kernels("native", "wasserstein")

# rows, n, m: networks with a partial last group; radix sorts of one and of few rows; equal and unequal counts.
PATHS = [(19, 33, 33), (16, 100, 64), (5, 40, 3), (40, 700, 700), (17, 1200, 1000), (2, 3000, 3000), (1, 20000, 17000)]


def check_against_reference(rows: int, n: int, m: int, p: float, weighted: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(rows + n)
    # Few distinct values in half of the rows: ties.
    x = torch.randn(rows, n, generator=generator).to(dtype)
    x[::2] = (x[::2] * 4).round() / 4
    y = (torch.randn(rows, m, generator=generator) * 2 + 0.1).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weights = [torch.rand(rows, k, generator=generator, dtype=wide) if weighted else None for k in (n, m)]
    inputs = [t.requires_grad_() for t in (x, y, *weights) if t is not None]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    value = F.wasserstein_1d(*inputs, p=p)
    expected = reference.wasserstein_1d(*exact, p=p)
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6}.get(dtype, 4 * torch.finfo(dtype).eps)
    torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=tolerance)
    cotangent = torch.randn(rows, generator=generator).to(dtype)
    actual = torch.autograd.grad(value, inputs, cotangent, materialize_grads=True)
    gradients = torch.autograd.grad(expected, exact, cotangent.double(), materialize_grads=True)
    for g, e in zip(actual, gradients, strict=True):
        torch.testing.assert_close(g.double(), e, rtol=8 * tolerance, atol=8 * tolerance * float(e.abs().max()))


def check_costs_alone(p: float, sizes: Iterable[int]) -> None:
    x86 = platform.machine() in ("x86_64", "AMD64")
    for n in sizes:
        x, y = torch.randn(33, n), torch.randn(33, n) + 0.1
        x[3] = x[3].mul(2).round()  # ties, zeros of both signs
        y[3] = y[3].mul(2).round()
        x[5, n // 2], y[5, 0], x[7, -1], y[9, 0] = math.inf, math.inf, -math.inf, math.nan
        expected = reference.wasserstein_1d(x.double(), y.double(), p=p, root=False)
        cost, _, _ = native.forward(x, y, None, None, p, 0)
        with_gradients, _, _ = native.forward(x, y, None, None, p, 3)
        rtol = 1e-14 if x86 else 1e-6  # elsewhere the compiler may contract the float32 products of one of them
        torch.testing.assert_close(cost, with_gradients, rtol=rtol, atol=0, equal_nan=True)
        torch.testing.assert_close(cost, expected, rtol=2e-6, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("p", [1.0, 2.0, 2.5, math.inf])
@pytest.mark.parametrize(("rows", "n", "m"), PATHS)
def test_every_path(rows: int, n: int, m: int, p: float, weighted: bool) -> None:
    dtype = torch.float64 if (n + int(p if p < 9 else 9)) % 2 else torch.float32
    check_against_reference(rows, n, m, p, weighted, dtype)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa: str) -> None:
    code = (
        "import torch\n"
        "from fastgan import _C\n"
        "from tests.kernels.test_native_wasserstein import PATHS, check_against_reference, check_costs_alone\n"
        "print(_C.cpu_isa())\n"
        "for path in [*PATHS, *((17, n, n) for n in (1, 7, 8, 9, 16, 17, 63, 112, 300))]:\n"
        "    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):\n"
        "        check_against_reference(*path, 1.0, False, dtype)\n"
        "    check_against_reference(*path, 2.0, True, torch.float32)\n"
        "check_costs_alone(2.0, (1, 8, 9, 17, 40, 64, 100, 300))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "FASTGAN_CPU_ISA": isa, "FASTGAN_BACKEND": "native"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] in (isa, "avx2", "baseline")  # a processor may lack the one asked for


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize(("rows", "n", "m"), [(50, 23, 23), (21, 300, 300), (37, 40, 60), (16, 1037, 1037)])
def test_ties_take_gradients_in_index_order(rows: int, n: int, m: int, p: float) -> None:
    """Whether or not a group's gradients may go back through its sorting network, which is not stable."""
    x, y = torch.randn(rows, n), torch.randn(rows, m) + 0.1
    x[5], x[-1] = x[5].mul(3).round(), torch.zeros(n).where(torch.arange(n) % 2 == 0, -0.0)
    y[:, ::3] = y[:, ::3].mul(2).round()
    x[7, 1], y[7, :2] = math.inf, math.inf
    units = native.forward(x, y, None, None, p, 3)[2]
    exact = [t.double().requires_grad_() for t in (x, y)]
    expected = torch.autograd.grad(reference.wasserstein_1d(*exact, p=p, root=False).sum(), exact)
    finite = torch.arange(rows) != 7 if p > 1 else torch.arange(rows) >= 0
    for unit, grad in zip(units, expected, strict=True):
        if unit.dtype == torch.int32:
            unit = native.scale_signs(unit, torch.ones(rows, dtype=torch.float64), n, torch.float32)
        torch.testing.assert_close(unit[finite].double() / unit.size(-1), grad[finite], rtol=2e-6, atol=2e-6 / n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_signs_times_any_factor(dtype: torch.dtype) -> None:
    """-1, 0 and 1, 16 a word, times factors that may be 0, infinite or NaN, at every length of the last word."""
    factor = torch.tensor([0.5, -3.0, 0.0, -0.0, math.inf, math.nan, 7.0], dtype=torch.float64)
    for n in range(1, 50):
        signs = torch.randint(-1, 2, (len(factor), n))
        bits = torch.nn.functional.pad(signs, (0, -n % 16)).unflatten(-1, (-1, 16))
        places = 1 << torch.arange(16)
        words = ((bits > 0) * places).sum(-1) + (((bits < 0) * places).sum(-1) << 16)
        grad = native.scale_signs(words.to(torch.int32), factor, n, dtype)
        torch.testing.assert_close(grad, (signs * factor[:, None]).to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_gradients_from_signs_by_one_call(dtype: torch.dtype) -> None:
    """A backward pass that nothing records gives, to the last bit, what one gives that is recorded."""
    samples = torch.randn(2, 3, 4, 21).to(dtype)
    samples[0, 1, 2, 5] = math.nan
    cotangents = torch.randn(4, 3).to(dtype).mT, torch.tensor(0.7).to(dtype).expand(3, 4)
    for needs in ((True, True), (True, False), (False, True)):
        x, y = (t.requires_grad_(needed) for t, needed in zip(samples.unbind(), needs, strict=True))
        wanted = [t for t in (x, y) if t.requires_grad]
        value = F.wasserstein_1d(x, y)
        batch = torch.autograd.grad(value, wanted, torch.stack(cotangents), retain_graph=True, is_grads_batched=True)
        for k, cotangent in enumerate(cotangents):
            plain = torch.autograd.grad(value, wanted, cotangent, retain_graph=True)
            recorded = torch.autograd.grad(value, wanted, cotangent, create_graph=True)
            torch.testing.assert_close(plain, recorded, rtol=0, atol=0, equal_nan=True)
            torch.testing.assert_close(plain, tuple(t[k] for t in batch), rtol=0, atol=0, equal_nan=True)


def test_rows_of_nan_with_signs() -> None:
    """-1, 0 and 1 cannot say NaN: the row's scale does."""
    for rows, n in ((20, 33), (1, 5000)):
        x, y = torch.randn(rows, n).requires_grad_(), torch.randn(rows, n).requires_grad_()
        with torch.no_grad():
            x[0, 3] = -math.nan
        gx, gy = torch.autograd.grad(F.wasserstein_1d(x, y).sum(), (x, y))
        assert gx[0].isnan().all()
        assert gy[0].isnan().all()
        assert gx[1:].isfinite().all()


@pytest.mark.parametrize(("n", "m"), [(9000, 5), (5, 9000), (4096, 4096), (20_001, 12_345)])
def test_weighted_rows_of_many_chunks(n: int, m: int) -> None:
    """An atom may lie across chunks that are merged apart, and several."""
    x, y = torch.randn(n, dtype=torch.float64), torch.randn(m, dtype=torch.float64)
    a, b = torch.randint(0, 3, (n,)).double(), torch.randint(0, 3, (m,)).double()
    a[0], b[0] = 5, n
    inputs = [t.requires_grad_() for t in (x, y, a, b)]
    for p in (1.0, 2.0, 1.5):
        actual, expected = (f(*inputs, p=p, root=False) for f in (F.wasserstein_1d, reference.wasserstein_1d))
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
        for g, e in zip(*(torch.autograd.grad(v, inputs) for v in (actual, expected)), strict=True):
            torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-12 * float(e.abs().max()))


@pytest.mark.parametrize("ties", [False, True])
def test_weighted_rows_around_batches_of_the_merge(ties: bool) -> None:
    """Two halves of a row are merged side by side, 128 steps at a time; tied ends take another way to the weights."""
    for steps in (2, 3, 5, 127, 128, 129, 254, 255, 256, 257, 258, 511, 512, 513, 4095, 4096, 4097, 8193):
        for n in {1, steps // 3 + 1, steps - 1}:
            m = steps - n
            samples = torch.randn(2, n, dtype=torch.float64), torch.randn(2, m, dtype=torch.float64) + 0.1
            weights = [torch.randint(0, 4, (2, k)).double() if ties else torch.rand(2, k).double() for k in (n, m)]
            for w in weights:
                w[:, 0] = 1
            inputs = [t.requires_grad_() for t in (*samples, *weights)]
            actual, expected = (f(*inputs) for f in (F.wasserstein_1d, reference.wasserstein_1d))
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-15)
            for g, e in zip(*(torch.autograd.grad(v.sum(), inputs) for v in (actual, expected)), strict=True):
                torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-11 * float(e.abs().max()))


@pytest.mark.parametrize("ties", [False, True])
def test_both_gradients_of_long_weighted_rows(ties: bool) -> None:
    """Those of a sample and of its weight are scattered together from 65,536 samples on."""
    n, m = 65_537, 30_000
    x, y = torch.randn(n), torch.randn(m) + 0.1
    a, b = (torch.randint(1, 4, (k,)).float() if ties else torch.rand(k) for k in (n, m))
    inputs = [t.requires_grad_() for t in (x, y, a, b)]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    actual = torch.autograd.grad(F.wasserstein_1d(*inputs), inputs)
    for g, e in zip(actual, torch.autograd.grad(reference.wasserstein_1d(*exact), exact), strict=True):
        torch.testing.assert_close(g.double(), e, rtol=1e-5, atol=2e-6 * float(e.abs().max()))
    alone = torch.autograd.grad(F.wasserstein_1d(*inputs), inputs[2:])
    torch.testing.assert_close(alone, actual[2:], rtol=0, atol=0)


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_costs_alone_are_those_of_a_pass_with_gradients(p: float) -> None:
    """The last pass of a sort compares its blocks where they are: every size around blocks and merges of many."""
    check_costs_alone(p, [*range(1, 71), 95, 96, 97, 111, 112, 113, 127, 128, 129, 255, 256, 257, 272, 511, 512, 513])


@pytest.mark.parametrize(("rows", "n", "m"), [(700, 64, 64), (40, 1024, 1024), (65, 300, 200), (1, 70_001, 70_001)])
@pytest.mark.parametrize("weighted", [False, True])
def test_shares_of_threads_change_no_bit(rows: int, n: int, m: int, weighted: bool) -> None:
    """Threads take rows, and parts of rows, when they get free."""
    inputs = [torch.randn(rows, n), torch.randn(rows, m) + 0.1]
    inputs = [t.requires_grad_() for t in inputs + ([torch.rand(rows, k) for k in (n, m)] if weighted else [])]
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 2, 3):
            torch.set_num_threads(count)
            value = F.wasserstein_1d(*inputs)
            found.append((value, *torch.autograd.grad(value.sum(), inputs)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


@pytest.mark.parametrize(("n", "m"), [(530_000, 530_000), (140_000, 140_000), (70_000, 70_000), (20_000, 16_384)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_threads_share_one_row(n: int, m: int, dtype: torch.dtype) -> None:
    """What they compute together waits in sorted order; ties keep the order of their indices on the way back."""
    x, y = (torch.randn(n) * 3).to(dtype), (torch.randn(m) * 3 + 0.1).to(dtype)
    x[::3] = (x[::3] * 4).round() / 4
    x[:6] = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.inf, -0.0])
    y[:4] = torch.tensor([-0.0, math.inf, -math.inf, 0.0])
    x, y = x.expand(1, n), y.expand(1, m)
    finite = [t.nan_to_num(posinf=9.0, neginf=-9.0) for t in (x, y)]
    vx, vy, grad = torch.randn(1, n).to(dtype), torch.randn(1, m).to(dtype), torch.randn(1, dtype=torch.float64)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results = [native.forward(x, y, None, None, 1.0, need) for need in (3, 1, 2)]
            results += [native.forward(*finite, None, None, p, 3) for p in (2.0, 2.5)]
            tensors = [t for cost, scale, units in results for t in (cost, scale, *units)]
            tensors += native.second(vx, vy, grad, *finite, None, None, torch.ones(1, dtype=torch.float64), 2.0)
            tensors += native.second(vx, None, grad, *finite, None, None, torch.ones(1, dtype=torch.float64), 2.0)
            found.append(tensors)
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))
    if n == m:
        assert torch.equal(
            native.scale_signs(found[0][2], torch.ones(1, dtype=torch.float64), n, dtype), signs(x, y)[0]
        )


def signs(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """n times the gradients of the cost for p = 1, n = m: those of stable argsorts."""
    i, j = (t.double().argsort(dim=-1, stable=True) for t in (x, y))
    a, b = x.double().gather(-1, i), y.double().gather(-1, j)
    slopes = (a > b).to(x.dtype) - (a < b).to(x.dtype)
    return torch.zeros_like(x).scatter(-1, i, slopes), torch.zeros_like(y).scatter(-1, j, -slopes)


def row_pair(kind: str, n: int) -> tuple[Tensor, Tensor]:
    x, y = torch.randn(n), torch.randn(n)
    above = torch.arange(n) % 2 == 0  # half of the samples, which go above the others
    match kind:
        case "shifted":
            y += 0.1
        case "fine grid":  # equal values wherever the sign changes
            x, y = (x * 2e4).round() / 2e4, (y * 2e4).round() / 2e4
        case "coarse grid":
            x, y = (x * 30).round() / 255, (y * 30).round() / 255
        case "equal":
            x, y = torch.ones(n), torch.full((n,), 2.0)
        case "one value":  # of a tenth of x, through the middle of which the sign changes
            x[::10] = 0.5
        case "zeros and infinities":
            x[:6] = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.inf, -0.0])
            y[:6] = torch.tensor([-0.0, math.inf, -math.inf, 0.0, -math.inf, -0.0])
        case "far from zero":
            x, y = x - 300, y - 300.1
        case "outlier":
            x, y = 1 + 1e-3 * x, 1 + 1e-3 * y
            x[5], x[9], y[7] = -1e30, 1e30, -1e30
        case "in one bucket":
            x, y = 1 + 1e-3 * x.abs(), 1 + 1e-3 * y.abs()
        case "near each other":
            y = x + 1e-7 * y
        case "alternating":
            x = 4 * torch.arange(n).float()
            y = x + 1 - 2 * (torch.arange(n) % 2)
            x, y = x[torch.randperm(n)], y[torch.randperm(n)]
        case "alternating above":
            x[above] = 10 + 4 * torch.arange(n)[above].float()
            y[above] = x[above] + 1 - torch.arange(n)[above] % 4
        case "grid above":
            x[above] = 10 + (x[above] * 1000).round() / 1000
            y[above] += 10
    return x, y


KINDS = [
    "like", "shifted", "fine grid", "coarse grid", "equal", "one value", "zeros and infinities", "far from zero",
    "outlier", "in one bucket", "near each other", "alternating", "alternating above", "grid above",
]  # fmt: skip


@pytest.mark.parametrize("size", [(1 << 17) - 1, 1 << 17, (1 << 19) - 1, 1 << 19])
@pytest.mark.parametrize("kind", KINDS)
def test_signs_of_long_rows(kind: str, size: int) -> None:
    """Around the sizes from which samples are dealt to buckets, and buckets of both sides are coupled as they are
    sorted: what a stable argsort gives, to the last bit."""
    n = size + KINDS.index(kind) % 3
    x, y = row_pair(kind, n)
    expected = signs(x, y)
    found = []
    for need in (3, 1, 2):
        cost, scale, units = native.forward(x[None], y[None], None, None, 1.0, need)
        found.append((cost, scale))
        for unit, right in zip(units, [e for k, e in enumerate(expected) if need >> k & 1], strict=True):
            assert torch.equal(native.scale_signs(unit, torch.ones(1, dtype=torch.float64), n, x.dtype)[0], right)
    cost, _, _ = native.forward(x[None], y[None], None, None, 1.0, 0)
    assert all(torch.equal(c, found[0][0]) and scale.item() == 1 for c, scale in found)
    # Without signs samples lie closer together, and a compiler (Clang 14) may add them up in another order.
    torch.testing.assert_close(found[0][0], cost, rtol=1e-7, atol=0)
    exact = reference.wasserstein_1d(x[None].double(), y[None].double())
    torch.testing.assert_close(cost, exact, rtol=5e-7, atol=0)  # less than one sample's share


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1 << 17, 1 << 19])
def test_signs_of_long_rows_of_16_bits(dtype: torch.dtype, size: int) -> None:
    n = size + 5
    x, y = torch.randn(3, n).to(dtype), (torch.randn(3, n) + torch.tensor([[0.0], [0.1], [9.0]])).to(dtype)
    _, _, units = native.forward(x, y, None, None, 1.0, 3)
    for unit, right in zip(units, signs(x, y), strict=True):
        assert torch.equal(native.scale_signs(unit, torch.ones(3, dtype=torch.float64), n, dtype), right)


@pytest.mark.parametrize("need", [0, 1, 2, 3])
def test_long_rows_beside_one_that_fits_no_buckets(need: int) -> None:
    """A row of one value is solved as shorter ones are, at its own place."""
    n = (1 << 19) + 3
    x, y = torch.randn(2, 3, n + 2)[..., 1 : n + 1].unbind()
    x[1], y[1] = 1, -0.5
    cost, scale, units = native.forward(x, y, None, None, 1.0, need)
    for row in range(3):
        alone = native.forward(x[row, None], y[row, None], None, None, 1.0, need)
        for together, expected in zip((cost, scale, *units), (*alone[:2], *alone[2]), strict=True):
            assert torch.equal(together[row], expected[0])
    torch.testing.assert_close(cost, reference.wasserstein_1d(x.double(), y.double()), rtol=2e-6, atol=0)
    torch.testing.assert_close(scale, torch.ones_like(scale))


@pytest.mark.parametrize(
    ("m", "weighted", "p"), [(0, False, 2.0), (0, False, math.inf), (-7, False, 1.0), (0, True, 1.0)]
)
def test_costs_of_long_rows_that_are_dealt_to_no_buckets(m: int, weighted: bool, p: float) -> None:
    n = (1 << 19) + 7
    x, y = torch.randn(1, n), torch.randn(1, n + m) + 0.1
    weights = (torch.rand(1, n, dtype=torch.float64), None) if weighted else (None, None)
    cost, _, _ = native.forward(x, y, *weights, p, 0)
    expected = reference.wasserstein_1d(x.double(), y.double(), *weights, p=p, root=False)
    torch.testing.assert_close(cost, expected, rtol=2e-6, atol=0)


def test_second_derivative_of_a_long_row_is_zero() -> None:
    n = (1 << 19) + 1
    x, y, vx, vy = torch.randn(4, 1, n).unbind()
    ones = torch.ones(1, dtype=torch.float64)
    for cotangent in (vy, None):
        assert not any(h.any() for h in native.second(vx, cotangent, ones, x, y, None, None, ones, 1.0))


@pytest.mark.parametrize("n", [1 << 17, 1 << 19])
def test_nan_in_a_long_row(n: int) -> None:
    x, y = torch.randn(2, n), torch.randn(2, n)
    y[1, 7] = math.nan
    assert native.forward(x, y, None, None, 1.0, 0)[0].isnan().tolist() == [False, True]
    cost, scale, units = native.forward(x, y, None, None, 1.0, 3)
    assert cost.isnan().tolist() == scale.isnan().tolist() == [False, True]
    assert all((unit[1] == 0).all() and (unit[0] != 0).any() for unit in units)


# rows, n, weighted, need, bytes of workspace for each sample of the row (both sides) that csrc/cpu/wasserstein.h states
MEMORY = [
    (1, 4_000_000, False, 0, 8), (1, 3_000_000, False, 3, 16), (1, 2_000_000, True, 15, 48),
    (64, 32768, False, 0, 64), (64, 8192, False, 3, 320 + 170), (32, 32768, False, 3, 320 + 230),
]  # fmt: skip


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(("rows", "n", "weighted", "need", "allowed"), MEMORY)
def test_workspace_is_bounded(rows: int, n: int, weighted: bool, need: int, allowed: int) -> None:
    code = f"""
import torch
from fastgan.functional import _wasserstein_autograd as operator

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

torch.set_num_threads(1)
x, y = torch.randn({rows}, {n}), torch.randn({rows}, {n})
weights = [torch.rand({rows}, {n}, dtype=torch.float64) if {weighted} else None for _ in range(2)]
operator._forward(x[:, :99], y[:, :99], None, None, 1.0, {need & 3}, "native")
with open("/proc/self/clear_refs", "w") as f:
    f.write("5")
before = status("VmRSS:")
cost, scale, units = operator._forward(x, y, *weights, 1.0, {need}, "native")
print(status("VmHWM:") - before - sum(t.nbytes for t in (cost, scale, *units)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    used = int(done.stdout)
    assert used <= allowed * 2 * n + (4 << 20), f"{used / 2 / n:.1f} bytes a sample"


@pytest.mark.parametrize("p", [2.0, 2.5])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("rows", "n", "m"), [(3, 20, 20), (18, 60, 45), (2, 5000, 5000), (1, 5000, 300)])
def test_second_derivative(rows: int, n: int, m: int, weighted: bool, p: float) -> None:
    x, y = torch.randn(rows, n, dtype=torch.float64), torch.randn(rows, m, dtype=torch.float64)
    a, b = (torch.rand(rows, k, dtype=torch.float64) if weighted else None for k in (n, m))
    vx, vy, grad = torch.randn_like(x), torch.randn_like(y), torch.randn(rows, dtype=torch.float64)
    _, scale, *_ = native.forward(x, y, a, b, p, 0)
    hx, hy = native.second(vx, vy, grad, x, y, a, b, scale, p)
    _, (ex, ey, *_) = reference.double_backward((vx, vy, None, None), grad, (x, y, a, b), p)
    torch.testing.assert_close(hx, ex, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(hy, ey, rtol=1e-9, atol=1e-12)
    hx, hy = native.second(vx, None, grad, x, y, a, b, scale, p)
    _, (ex, ey, *_) = reference.double_backward((vx, None, None, None), grad, (x, y, a, b), p)
    torch.testing.assert_close(hx, ex, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(hy, ey, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize(("rows", "n", "m"), [*PATHS[:6], (3, 49, 49)])
def test_reads_and_writes_only_its_own(rows: int, n: int, m: int, dtype: torch.dtype) -> None:
    guard = 64

    def guarded(size: int) -> tuple[Tensor, Tensor]:
        whole = torch.full((guard + rows * (size + 3) + guard,), math.nan, dtype=dtype)
        rows_of = whole[guard : guard + rows * (size + 3)].view(rows, size + 3)[:, :size]
        return whole, rows_of.copy_(torch.randn(rows, size))

    (whole_x, x), (whole_y, y) = guarded(n), guarded(m)
    before = whole_x.clone(), whole_y.clone()
    expected = native.forward(x.contiguous(), y.contiguous(), None, None, 1.0, 3)
    actual = native.forward(x, y, None, None, 1.0, 3)
    for got, want in zip((*actual[:2], *actual[2]), (*expected[:2], *expected[2]), strict=True):
        assert torch.equal(got, want)
    assert not actual[0].isnan().any()  # a NaN of the guards would be in the sum
    assert torch.equal(whole_x, before[0]) or torch.equal(whole_x.nan_to_num(0), before[0].nan_to_num(0))
    assert torch.equal(whole_y.nan_to_num(0), before[1].nan_to_num(0))


def test_every_element_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def poisoned(*args: object, **kwargs: object) -> Tensor:
        t: Tensor = empty(*args, **kwargs)  # type: ignore[call-overload]
        return t.fill_(math.nan if t.is_floating_point() else 99)

    monkeypatch.setattr(torch, "empty", poisoned)
    for rows, n, m in PATHS:
        x, y = torch.randn(rows, n), torch.randn(rows, m)
        a = torch.rand(rows, n)
        for p in (1.0, 2.5, math.inf):
            for result in (native.forward(x, y, None, None, p, 3), native.forward(x, y, a, None, p, 7)):
                assert not any((t.isnan() | (t == 99)).any() for t in (*result[:2], *result[2]))


def test_units_that_are_not_needed_are_not_made() -> None:
    x, y = torch.randn(20, 50), torch.randn(20, 50)
    everything = native.forward(x, y, None, None, 1.0, 3)
    assert everything[2][0].dtype == torch.int32  # 16 samples a word: -1, 0 and 1 are all there is
    assert everything[2][0].shape == (20, 4)
    for need in (0, 1, 2):
        cost, _, units = native.forward(x, y, None, None, 1.0, need)
        assert torch.equal(cost, everything[0])
        needed = [unit for bit, unit in enumerate(everything[2]) if need >> bit & 1]
        assert all(torch.equal(unit, expected) for unit, expected in zip(units, needed, strict=True))


@pytest.mark.parametrize("need", [0, 1, 15])
def test_opcheck(need: int) -> None:
    x, y = torch.randn(3, 5), torch.randn(3, 4)
    a, b = torch.rand(3, 5), torch.rand(3, 4)
    weights = (a, b) if need == 15 else (None, None)
    torch.library.opcheck(operator._forward.overload, (x, y, *weights, 1.5, need, "native"))
    scale = torch.ones(3, dtype=torch.float64)
    arguments = (torch.randn(3, 5), None, scale, x, y, *weights, scale, 2.0, "native")
    torch.library.opcheck(operator._second.overload, arguments)


def test_serves_every_call_on_the_cpu() -> None:
    x = torch.randn(3, 5)
    with fastgan.use_backend("native"):
        assert F.wasserstein_1d(x, x).shape == (3,)
        with pytest.raises(fastgan.BackendError, match="CPU"):
            F.wasserstein_1d(x.to("meta"), x.to("meta"))


def test_rows_that_share_memory() -> None:
    x, y = torch.randn(7), torch.randn(400, 9)
    shared = F.wasserstein_1d(x, y, torch.rand(1))
    assert torch.equal(shared, F.wasserstein_1d(x.repeat(400, 1), y, torch.ones(400, 7)))


def test_bad_weights_make_nan_rows_where_they_cannot_be_seen() -> None:
    x, y, a = torch.randn(3, 5), torch.randn(3, 5), torch.rand(3, 5)
    a[1, 2] = -1
    cost, _, (ux,) = native.forward(x, y, a, None, 1.0, 1)
    assert cost.isnan().tolist() == [False, True, False]
    assert ux.isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [1.0, 2.0, 2.5])
@pytest.mark.parametrize(("n", "m"), [(37, 50), (4096, 301), (4096, 4097)])
def test_one_side_alone_is_the_same_to_the_last_bit(n: int, m: int, p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(3, n, dtype=dtype) + 1, torch.randn(3, m, dtype=dtype)
    for weights in ((None, None), (torch.rand(3, n), torch.randint(1, 4, (3, m)).double())):
        cost, scale, (gx, gy) = native.forward(x, y, *weights, p, 0b11)
        for need, expected in ((0b01, gx), (0b10, gy)):
            alone = native.forward(x, y, *weights, p, need)
            assert torch.equal(alone[0], cost)
            assert torch.equal(alone[1], scale)
            assert torch.equal(alone[2][0], expected)


LONG_ROWS = {
    "buckets": lambda x: x,
    "signs and magnitudes": lambda x: x.exp() * x.cos().sign(),
    "a bucket with half of all": torch.relu,
    "all in one bucket": lambda x: 1 + 1e-4 * x.abs().clamp(max=9),
    "alike": torch.ones_like,
    "low bits alike, many ties": lambda x: x.half().float(),
    "infinite": lambda x: x.masked_fill(x > 3, math.inf),
}


@pytest.mark.parametrize("kind", LONG_ROWS)
@pytest.mark.parametrize("n", [131072, 160001])
def test_long_rows_are_sorted_stably(n: int, kind: str) -> None:
    """The gradient of the squared distance has every sample's partner in it."""
    x, y = LONG_ROWS[kind](torch.randn(n)), torch.randn(n)
    inputs = [x.clone().requires_grad_(), y.clone().requires_grad_()]
    value = F.wasserstein_1d(*inputs, p=2.0, root=False)
    xs, ys = (t.double().sort(stable=True) for t in (x, y))
    difference = xs.values - ys.values
    torch.testing.assert_close(value.double(), difference.square().mean(), rtol=1e-5, atol=0)
    if kind == "infinite":
        return
    for gradient, at, sign in zip(torch.autograd.grad(value, inputs), (xs.indices, ys.indices), (1, -1), strict=True):
        expected = torch.empty_like(difference).scatter_(0, at, sign * 2 * difference / n)
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-10)
