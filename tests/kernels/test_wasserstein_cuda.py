"""The CUDA kernels of the 1-D Wasserstein distance: on a device, and without one emulated and as compiled code."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import fastgan
import fastgan.functional as F
from fastgan import _C
from fastgan.kernels.dispatch import Call
from fastgan.kernels.native import _cuda_module, _wasserstein_call, _wasserstein_cuda
from fastgan.reference import wasserstein as reference
from tests.kernels import cuda_emulation

INF = math.inf
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-11, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def samples(rows: int, n: int, dtype: torch.dtype, ties: bool = False) -> Tensor:
    x = 3 * torch.randn(rows, n, dtype=torch.float64) + 5
    return (x.round() if ties else x).to(dtype)


def expected(inputs: tuple[Tensor | None, ...], p: float) -> tuple[Tensor, list[Tensor | None]]:
    """W_p^p (W_inf) and its gradients, in float64 by the reference."""
    leaves = [None if t is None else t.double().detach().requires_grad_() for t in inputs]
    value = reference.finish(*reference.cost(*leaves, p), p, False)
    grads = iter(torch.autograd.grad(value.sum(), [t for t in leaves if t is not None], materialize_grads=True))
    return value.detach(), [None if t is None else next(grads) for t in leaves]


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    """Within tolerance of the row's largest value, NaN where NaN is."""
    assert torch.equal(got.isnan(), want.isnan())
    got, want = got.double().nan_to_num(0), want.nan_to_num(0)
    allowed = tolerance * want.abs().amax(-1, keepdim=True) + 1e-12
    assert bool(((got - want).abs() <= allowed).all()), f"off by {(got - want).abs().max()} of {want.abs().max()}"


def check_forward(inputs: tuple[Tensor, Tensor, Tensor | None, Tensor | None], p: float, need: int = 15) -> None:
    """The launchers' results against the reference, as W_p^p and its gradients."""
    need &= sum(1 << i for i, t in enumerate(inputs) if t is not None)
    value, grads = expected(inputs, p)
    cost, scale, units = _wasserstein_cuda.forward(*inputs, p, need)
    power = torch.ones_like(scale) if p in (1, 2) or math.isinf(p) else scale**p
    tolerance = TOLERANCE[inputs[0].dtype] * (1 if math.isinf(p) else p)
    close(cost * power, value, min(tolerance, TOLERANCE[torch.float32] * 4))
    needed = [i for i in range(4) if need >> i & 1]
    for i, unit in zip(needed, units, strict=True):
        grad = grads[i]
        assert grad is not None
        per_row = power / scale / unit.size(-1) if i < 2 else power
        close(unit.double() * per_row.unsqueeze(-1), grad, tolerance if i < 2 else max(tolerance, 1e-10) * 4)


# --- emulated: the kernels themselves, on the CPU ----------------------------------------------------------------


@pytest.fixture(scope="module")
def emulated_module(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    return cuda_emulation.build(tmp_path_factory.mktemp("emulation"))


@pytest.fixture
def emulated(emulated_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setattr(_cuda_module, "load", lambda: emulated_module)
    monkeypatch.setattr(_cuda_module, "stream", lambda device: 0)
    return emulated_module


F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16


@pytest.mark.slow
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(
    ("n", "m", "dtype", "p"),
    [
        (1, 1, F32, 1.0), (31, 31, F32, 3.0), (64, 64, F16, 1.0), (65, 65, F32, INF), (129, 129, BF16, 2.0),
        (257, 257, F32, 1.5), (513, 513, F32, 2.0), (1025, 1025, F16, 1.0), (2049, 2049, F32, 1.0),
        (7, 7, F64, 1.5), (600, 600, F64, INF), (8193, 8193, F32, 1.0), (8193, 8193, BF16, 2.0),
        (1, 7, F32, 1.0), (7, 1, F32, 2.0), (5, 3, F16, INF), (64, 96, F32, 3.0), (3, 700, F64, 1.0),
        (700, 3, F32, 1.5), (8193, 30, F32, 1.0),
    ],
)  # fmt: skip
def test_emulated_uniform(n: int, m: int, dtype: torch.dtype, p: float) -> None:
    rows = 5 if max(n, m) < 300 else 2
    inputs = (samples(rows, n, dtype, ties=p == 2), samples(rows, m, dtype) + 1, None, None)
    check_forward(inputs, p)
    check_forward(inputs, p, need=2)


@pytest.mark.slow
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("n", "p"), [(10, INF), (1500, 7.3)])
def test_emulated_ties_of_rounded_weights(n: int, p: float) -> None:
    a = torch.randint(0, 4, (2, n)).double()
    a[:, n // 2] += 1
    x = samples(2, n, F64)
    check_forward((x, x + 1, a, 0.3 * a), p)
    cost, _, _ = _wasserstein_cuda.forward(x, x, a, 0.3 * a, p, 0)
    assert torch.equal(cost, torch.zeros(2).double())


@pytest.mark.slow
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(
    ("n", "m", "dtype", "p"),
    [
        (1, 5, F32, 1.0), (6, 6, F32, 2.0), (33, 20, F16, 1.5), (100, 100, F64, 3.0), (70, 9, F32, INF),
        (2100, 1030, F32, 1.0), (5, 1500, F64, 1.0),
    ],
)  # fmt: skip
def test_emulated_weighted(n: int, m: int, dtype: torch.dtype, p: float) -> None:
    rows = 3
    x, y = samples(rows, n, dtype), samples(rows, m, dtype, ties=True)
    whole = torch.randint(0, 4, (rows, n)).double()
    whole[:, n // 2] += 1
    for a, b in ((whole, torch.rand(rows, m)), (None, torch.randint(1, 3, (rows, m)).double()), (whole, None)):
        check_forward((x, y, a, b), p)


@pytest.mark.slow
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("n", "kib"), [(4097, 99), (4096, 99), (4096, 64), (2048, 64), (2049, 48)])
def test_emulated_little_shared_memory(n: int, kib: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that fits on chip only on larger devices is sorted device-wide on the others."""
    inputs = (samples(2, n, torch.float32), samples(2, n, torch.float32) + 1, None, None)
    large = _wasserstein_cuda.forward(*inputs, 1.0, 3)
    monkeypatch.setenv("CUDA_EMULATION_SHARED_MEMORY", str(kib * 1024))
    check_forward(inputs, 1.0)
    small = _wasserstein_cuda.forward(*inputs, 1.0, 3)
    assert all(torch.equal(one, two) for one, two in zip(large[2], small[2], strict=True))


@pytest.mark.slow
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("n", [40, 8200])
def test_emulated_nan_and_infinities(n: int) -> None:
    x, y = samples(4, n, torch.float32), samples(4, n, torch.float32)
    x[0, 3], y[1, 5] = math.nan, -math.nan
    x[2, 1], y[2, 7], x[3, 2] = math.inf, math.inf, -math.inf
    for p in (1.0, INF):
        check_forward((x, y, None, None), p)
    bad = torch.ones(4, n)
    bad[0, 1], bad[1, 2], bad[2] = -1, math.nan, 0
    cost = _wasserstein_cuda.forward(samples(4, n, torch.float32), y, bad, None, 1.0, 0)[0]
    assert cost.isnan().tolist() == [True, True, True, False]


@pytest.mark.slow
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("n", "m", "weighted"), [(50, 50, False), (30, 40, False), (25, 60, True)])
@pytest.mark.parametrize("p", [2.0, 3.0, 1.5])
def test_emulated_second_derivative(n: int, m: int, weighted: bool, p: float) -> None:
    x, y = samples(3, n, torch.float64), samples(3, m, torch.float64) + 1
    a = torch.rand(3, n, dtype=torch.float64) if weighted else None
    vx, vy, grad = torch.randn_like(x), torch.randn_like(y), torch.rand(3, dtype=torch.float64)
    _, scale, *_ = _wasserstein_cuda.forward(x, y, a, None, p, 0)
    _, reference_scale = reference.cost(x, y, a, None, p)
    _, (hx, hy, *_) = reference.double_backward((vx, vy, None, None), grad, (x, y, a, None), p)
    same = ((reference_scale / scale) ** p).unsqueeze(-1)
    for given_x, given_y, want in ((vx, vy, (hx, hy)),):
        got = _wasserstein_call.second(_wasserstein_cuda.run, given_x, given_y, grad, x, y, a, None, scale, p)
        for mine, theirs in zip(got, want, strict=True):
            close(mine, theirs * same, 1e-9)


@pytest.mark.usefixtures("emulated")
@pytest.mark.slow
def test_emulated_results_stay_in_their_place(emulated: ModuleType) -> None:
    """No write beyond the workspace that was asked for, nor beyond the results."""
    x, y, a = samples(3, 37, torch.float32), samples(3, 53, torch.float32), torch.rand(3, 37, dtype=torch.float64)
    cost, scale = torch.empty(3, dtype=torch.float64), torch.empty(3, dtype=torch.float64)
    guarded = {name: torch.full((t.numel() + 64,), -7.0, dtype=t.dtype) for name, t in (("x", x), ("y", y), ("a", a))}
    address = {name: t[32:].data_ptr() for name, t in guarded.items()}
    sides = (
        (x.data_ptr(), 37, a.data_ptr(), 37, 37, address["x"], 0, address["a"], 0, False),
        (y.data_ptr(), 53, 0, 0, 53, address["y"], 0, 0, 0, False),
    )
    needed = emulated.wasserstein_workspace(0, *sides, 3, 0, 1.5, 0)
    workspace = torch.full((needed + 1024,), 0x5A, dtype=torch.uint8)
    start = -workspace.data_ptr() % 256 + 256
    emulated.wasserstein(0, 0, *sides, 3, 0, 1.5, cost.data_ptr(), scale.data_ptr(), 0, workspace[start:].data_ptr())
    assert bool((workspace[:start] == 0x5A).all() & (workspace[start + needed :] == 0x5A).all())
    for t in guarded.values():
        assert bool((t[:32] == -7).all() & (t[-32:] == -7).all() & (t[32:-32] != -7).all())


# --- compiled code, no device ------------------------------------------------------------------------------------


def test_supports_says_what_is_missing() -> None:
    def reason(long_rows: bool) -> str | None:
        return _wasserstein_cuda.supports(Call("wasserstein_1d", "cuda", torch.float32, ("long_rows",) * long_rows))

    assert "32-bit" in str(reason(True))
    if not _C.build_info()["cuda_built"]:
        assert "left out" in str(reason(False))
    elif not torch.cuda.is_available():
        assert "no CUDA device" in str(reason(False))
    else:
        assert reason(False) is None


def test_registers_and_spills() -> None:
    """No kernel of ours has a stack frame, which is where registers spill to, and none exceeds its budget."""
    built = sorted(Path(fastgan.__file__).parent.glob("_cuda.*.so"))
    if not built:
        pytest.skip("fastgan._cuda is not built (no nvcc)")
    tool = shutil.which("cuobjdump") or _triton_cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump (it comes with the CUDA toolkit and with Triton)")
    text = subprocess.run([tool, "-res-usage", str(built[0])], capture_output=True, text=True, check=True).stdout
    usage = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) \S+ LOCAL:(\d+)", text)
    ours = {(name, int(reg), int(stack), int(local)) for name, reg, stack, local in usage if "3cub" not in name[:9]}
    architectures = set(re.findall(r"arch = (sm_\d+)", text))
    assert len(architectures) * 30 <= len(usage), "kernels are missing from the report"
    assert [u for u in ours if "rows_kernel" in u[0]]
    assert not [u for u in ours if u[2] or u[3]]
    assert max(reg for _, reg, _, _ in ours) <= 128
    # CUB's own radix sort, as it is tuned there, keeps a few bytes on the stack for sm_100.
    assert max(int(stack) for _, _, stack, _ in usage) <= 16


def _triton_cuobjdump() -> str | None:
    triton = pytest.importorskip("triton")
    found = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(found) if found.exists() else None


# --- on a device -------------------------------------------------------------------------------------------------


def on_device(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.detach().cuda().requires_grad_() for t in tensors]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [F32, F16, BF16, F64])
@pytest.mark.parametrize(
    ("rows", "n", "m"),
    [
        (3, 1, 1), (7, 63, 63), (5, 128, 128), (9, 255, 255), (4, 512, 512), (3, 1000, 1000), (3, 2048, 2048),
        (3, 4001, 4001), (2, 8192, 8192), (3, 8193, 8193), (1, 200_003, 200_003), (1000, 40, 40), (4, 100, 257),
        (2, 9000, 17), (2, 3, 30_000),
    ],
)  # fmt: skip
def test_device_uniform(rows: int, n: int, m: int, dtype: torch.dtype) -> None:
    if dtype == torch.float16 and max(n, m) > 65504:
        return
    for p in (1.0, 2.0, 2.5, INF):
        x, y = samples(rows, n, dtype, ties=p == 2).cuda(), samples(rows, m, dtype).cuda() + 1
        check_forward((x, y, None, None), p)
        check_forward((x, y, None, None), p, need=1)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [F32, BF16, F64])
@pytest.mark.parametrize(("rows", "n", "m"), [(5, 20, 20), (3, 257, 100), (2, 3000, 5000), (1, 50_000, 70_001)])
def test_device_weighted(rows: int, n: int, m: int, dtype: torch.dtype) -> None:
    x, y = samples(rows, n, dtype).cuda(), samples(rows, m, dtype).cuda()
    a, b = torch.randint(0, 5, (rows, n)).double().cuda(), torch.rand(rows, m, dtype=torch.float64).cuda()
    a[:, 0] = 1
    for p in (1.0, 2.0, 2.5, INF):
        for weights in ((a, b), (a, None), (None, b)):
            check_forward((x, y, *weights), p)


@pytest.mark.gpu
def test_device_nan_stays_in_its_row() -> None:
    for n in (40, 1000, 9000):
        x, y = samples(3, n, torch.float32).cuda(), samples(3, n, torch.float32).cuda()
        x[1, n // 2] = math.nan
        check_forward((x, y, None, None), 1.0)


@pytest.mark.gpu
@pytest.mark.parametrize(("n", "m"), [(200, 200), (5000, 5000), (20_000, 20_000), (3000, 2000)])
def test_device_deterministic_and_native(n: int, m: int) -> None:
    with fastgan.use_backend("native"):
        results = []
        for _ in range(2):
            torch.manual_seed(1)
            x, y, a, b = on_device(samples(4, n, F32), samples(4, m, F32), torch.rand(4, n), torch.rand(4, m))
            for weights in ((None, None), (a, b)):
                F.wasserstein_1d(x, y, *weights, p=2.0).sum().backward()
            results.append((x.grad, y.grad, a.grad, b.grad))
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("n", [300, 20_000])
def test_device_double_backward(n: int) -> None:
    """Equal to the reference on the same device, first and second order, root included."""
    grads = []
    for backend in ("native", "reference"):
        torch.manual_seed(2)
        x, y = on_device(samples(2, n, F64), samples(2, n + 1, F64) + 1)
        with fastgan.use_backend(backend):
            first = torch.autograd.grad(F.wasserstein_1d(x, y, p=2.5).sum(), (x, y), create_graph=True)
            sum((g * g).sum() for g in first).backward()
        grads.append([*first, x.grad, y.grad])
    for mine, theirs in zip(*grads, strict=True):
        close(mine.detach(), theirs.detach(), 1e-8)


@pytest.mark.gpu
@pytest.mark.parametrize(("n", "m"), [(500, 500), (30_000, 30_000), (700, 900)])
def test_device_graph_capture(n: int, m: int) -> None:
    x, y = on_device(samples(4, n, F32), samples(4, m, F32))
    with fastgan.use_backend("native"):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.autograd.grad(F.wasserstein_1d(x, y, p=3.0).sum(), (x, y))
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            value = F.wasserstein_1d(x, y, p=3.0)
            grads = torch.autograd.grad(value.sum(), (x, y))
        with torch.no_grad():
            x.copy_(samples(4, n, F32))
            y.copy_(samples(4, m, F32) + 2)
        graph.replay()
        want = F.wasserstein_1d(x, y, p=3.0)
        want_grads = torch.autograd.grad(want.sum(), (x, y))
    assert torch.equal(value, want)
    assert all(torch.equal(got, expect) for got, expect in zip(grads, want_grads, strict=True))


@pytest.mark.gpu
def test_device_follows_the_current_stream() -> None:
    """Work on a side stream waits for what that stream does before it."""
    x, y = samples(64, 4096, F32).cuda(), samples(64, 4096, F32).cuda()
    with fastgan.use_backend("native"):
        want = F.wasserstein_1d(x + 1, y)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            got = F.wasserstein_1d(x + 1, y)
        torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(got, want)


@pytest.mark.gpu
def test_device_takes_bounded_memory() -> None:
    x, y = torch.rand(4096, 8192, device="cuda"), torch.rand(4096, 8192, device="cuda")
    with fastgan.use_backend("native"):
        F.wasserstein_1d(x, y)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        F.wasserstein_1d(x, y)
        assert torch.cuda.max_memory_allocated() - before < 1 << 20
