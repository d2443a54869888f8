"""How every benchmark measures: the result is checked first, inputs are cold on a GPU, every sample is kept.

A benchmark is one contestant (``fastgan``, ``eager``, ``compile``, ``numpy``, …) on one case; the contestants of a case
share a pytest-benchmark group. On the CPU they are measured in turn, sample by sample (:func:`take_turns`); on a GPU,
one after another. What each found goes to its ``extra_info``, in bytes, seconds and bytes per second.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import torch._dynamo


def keep_freed_memory() -> bool:
    """Has glibc's malloc keep freed memory instead of handing it back to the kernel; False with another C library.

    By default every tensor of more than 32 MiB, and many smaller ones, is mapped anew, and its first write faults on
    each page: that would dominate large cases for all contestants alike. A training process that has run for a while,
    or uses jemalloc or tcmalloc, does not pay it.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(m_mmap_threshold, 1 << 30)) and bool(mallopt(m_trim_threshold, 2**31 - 1))


# Before any tensor is made.
MEMORY_KEPT = keep_freed_memory()
# Seconds of samples for each contestant of each case, as long as the session is in time.
BUDGET = float(os.environ.get("FASTGAN_BENCH_SECONDS", "0.2"))
# When the last case may begin, in Unix time; the contestants of a case that has begun, so many seconds later.
UNTIL = float(os.environ.get("FASTGAN_BENCH_UNTIL", time.time() + 540))
GRACE = 20.0
# Benchmarks that have not ended, this one included: conftest.py counts them.
to_come = 1
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# A whole training step must begin so many seconds earlier, and one that is compiled so many.
STEP, COMPILED_STEP = (55.0, 85.0) if DEVICE == "cpu" else (0.0, 80.0)
# Shapes stay the same: every contestant gets cuDNN's fastest convolutions.
torch.backends.cudnn.benchmark = DEVICE == "cuda"
# How far losses of the same networks may lie apart, relatively: cuDNN convolves in TF32.
ROUNDING = 1e-3 if DEVICE == "cpu" else 5e-3
# What allocates through PyTorch, and so has a peak that can be read.
_WITHOUT_TORCH = ("numpy", "scipy")
# Cases that a contestant cannot do: for the result file (conftest.py writes it).
UNSUPPORTED: list[dict[str, str]] = []
# Benchmarks for which no time was left, and those whose check or measurement failed, likewise.
LEFT_OUT: list[str] = []
FAILED: list[str] = []
ENDED = "all after the last row, for the session was ended"
# A file that gets each contestant's line as soon as it has been measured: a session that is killed leaves that.
ROWS = os.environ.get("FASTGAN_BENCH_ROWS")


class _Fallbacks(logging.Handler):
    """Keeps what fastgan says when no kernel of ours serves an operator: such a figure is not one of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "falls back" in (message := record.getMessage()):
            self.messages.append(message)


FALLBACKS = _Fallbacks()
logging.getLogger("fastgan").addHandler(FALLBACKS)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` at its defaults, with static shapes, and whole: after a graph break it would in part be eager.
    What was compiled before is forgotten: a function compiled for eight shapes would not be for the next one."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False, fullgraph=True)


def copies(make: Callable[[], Any], bytes_each: int) -> list[Any]:
    """As many sets of inputs as make a GPU's L2 cold when they are used in turn; one on the CPU."""
    if DEVICE == "cpu":
        return [make()]
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    return [make() for _ in range(max(2, min(64, -(-3 * l2 // max(bytes_each, 1)))))]


def unsupported(*, operator: str, case: str, contestant: str, reason: str) -> NoReturn:
    """Skips a benchmark that ``contestant`` cannot do; the report says so in its cell."""
    UNSUPPORTED.append({"operator": operator, "case": case, "contestant": contestant, "reason": reason})
    pytest.skip(reason)


def measure(
    benchmark: Any,
    run: Callable[[Any], Any],
    inputs: list[Any],
    *,
    operator: str,
    case: str,
    contestant: str,
    bytes_moved: int | None = None,
    operations: float | None = None,
    check: Callable[[Any], None] | None = None,
    **facts: Any,
) -> None:
    """Measures ``run(inputs[i])`` under the group ``operator case``.

    Args:
        benchmark: the fixture of pytest-benchmark.
        inputs: sets of inputs, used in turn (see :func:`copies`).
        bytes_moved: what the operation must at least read and write: gives GB/s, the percentage of the bandwidth of a
            large copy measured on the same device, and the floor, the time of those bytes at that bandwidth.
        operations: its arithmetic operations (or comparisons), for the roofline.
        check: gets the first result and raises if it is wrong. No speed of a wrong answer.
        facts: more for the result file.
    """
    result = run(inputs[0])
    if check is not None:
        check(result)
    del result
    benchmark.group = f"{operator} | {case}"
    benchmark.extra_info.update(operator=operator, case=case, contestant=contestant, **facts)
    if operations is not None:
        benchmark.extra_info["operations"] = operations
    turn = _turns(inputs)
    call = lambda: run(next(turn))
    if DEVICE == "cuda":
        _add_bandwidth(benchmark.extra_info, bytes_moved, _measure_cuda(benchmark, call))
        _keep(benchmark)
    else:
        _begin_cpu(benchmark, call, bytes_moved)


def budget() -> float:
    """Seconds of samples for a contestant: of the time left, half is for the samples of those to come."""
    return min(BUDGET, 0.5 * max(UNTIL - time.time(), 0.0) / to_come)


def passes(function: Callable[..., Any], leaves: list[torch.Tensor], kind: str) -> Callable[[], tuple[Any, ...]]:
    """``function(*leaves)`` in one of its passes; every contestant gets the same cotangents.

    Args:
        kind: ``forward``; ``forward + backward``; or ``double backward``, of a backward pass that was already made.
            What a result does not depend on has a gradient of zero.
    """
    if kind == "forward":
        return lambda: (function(*leaves),)
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    y = function(*leaves)
    torch.manual_seed(1)
    # A loss is differentiated with a gradient of 1.
    seed = numbers_like(y) if y.dim() else torch.ones_like(y.detach())
    if kind == "forward + backward":
        return lambda: torch.autograd.grad(function(*leaves), leaves, seed)
    seed.requires_grad_()
    first = torch.autograd.grad(y, leaves, seed, create_graph=True)
    cotangents = [numbers_like(each) for each in first]
    wanted = (seed, *leaves)
    return lambda: torch.autograd.grad(first, wanted, cotangents, retain_graph=True, materialize_grads=True)


def numbers_like(t: torch.Tensor) -> torch.Tensor:
    """The same normal numbers for every contestant, in its own layout."""
    return torch.empty_like(t.detach()).copy_(torch.randn(t.shape, device=t.device))


def close(got: tuple[Any, ...], right: tuple[Any, ...], tolerance: float) -> None:
    """Raises unless each result is within ``tolerance`` of the right one, relative to the size of the whole."""
    for a, b in zip(got, right, strict=True):
        apart = (a.double() - b.double()).norm()
        if not apart <= tolerance * b.double().norm() + 1e-6:
            raise AssertionError(f"wrong by {apart:.3g} of {b.double().norm():.3g}")


def device_name() -> str:
    return torch.cuda.get_device_name() if DEVICE == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def environment() -> dict[str, Any]:
    """What a figure depends on. Measures the device's two ceilings if no benchmark has yet."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("triton", "numpy", "scipy", "pot"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    return {
        "device": device_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "versions": versions,
        "freed_memory_kept": MEMORY_KEPT,
        "copy_bytes_per_s": copy_bandwidth(),
        "operations_per_s": peak_arithmetic(),
        "load": os.getloadavg()[0],
        "fallbacks": FALLBACKS.messages,
    }


def quantiles(samples: list[float]) -> dict[str, float]:
    """The 20th, 50th and 80th percentile."""
    ordered = sorted(samples)
    return {f"p{q}": ordered[round(q / 100 * (len(ordered) - 1))] for q in (20, 50, 80)}


@cache
def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a large copy: 1 GiB on a GPU, 256 MiB on the CPU with all its threads."""
    source = torch.randn(2**28 if DEVICE == "cuda" else 2**26, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source))


@cache
def peak_arithmetic() -> float:
    """Operations per second of a large matrix product: bfloat16 on a GPU, float32 on the CPU with all its threads."""
    size, dtype = (8192, torch.bfloat16) if DEVICE == "cuda" else (1536, torch.float32)
    a, b = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _best(lambda: a @ b)


def peak_bytes(call: Callable[[], Any]) -> int:
    """How much more memory PyTorch's allocator held at most during ``call``, on the CPU."""
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        call()
    events = (e for e in profile.kineto_results.events() if e.name() == "[memory]")
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


LONGEST_LAUNCH = 0.013  # seconds of launches for which the device is made to wait


def device_seconds(call: Callable[[], Any], launching: float = 0) -> float:
    """Device time of one call, whose launches take the host so many seconds, up to LONGEST_LAUNCH."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    # The device waits while the host runs ahead, so that launches do not show as device time.
    wait = 1e-4 + 1.5 * min(launching, LONGEST_LAUNCH)
    torch.cuda._sleep(int(2e9 * wait))  # cycles, of about half a nanosecond
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3


def wall_seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _best(call: Callable[[], Any]) -> float:
    """Seconds of a call on the device undisturbed: the 20th percentile of 20."""
    clock = device_seconds if DEVICE == "cuda" else wall_seconds
    call()
    return quantiles([clock(call) for _ in range(20)])["p20"]


def _keep(benchmark: Any) -> None:
    """Adds what was measured to ROWS, as pytest-benchmark writes it at the end; the environment stands first."""
    if ROWS is None or benchmark.stats is None:
        return
    path = Path(ROWS)
    entries: list[Any] = [] if path.exists() else [{"environment": environment()}]
    entries.append({"extra_info": benchmark.extra_info, "stats": {"data": benchmark.stats.stats.data}})
    with path.open("a") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)


def _turns(inputs: list[Any]) -> Iterator[Any]:
    while True:
        yield from inputs


def _add_bandwidth(facts: dict[str, Any], nbytes: int | None, seconds: float) -> None:
    if nbytes is not None:
        floor = nbytes / copy_bandwidth()
        facts.update(bytes=nbytes, gb_per_s=nbytes / seconds / 1e9, copy_percent=100 * floor / seconds, floor=floor)


@dataclass
class _Contestant:
    benchmark: Any
    call: Callable[[], Any]
    seconds: float  # a call's, roughly
    loops: int  # calls in a sample
    rounds: int
    bytes_moved: int | None


_waiting: list[_Contestant] = []  # the contestants of a case, on the CPU, until all are there


def _begin_cpu(benchmark: Any, call: Callable[[], Any], bytes_moved: int | None) -> None:
    info = benchmark.extra_info

    def second() -> None:
        if info["contestant"] in _WITHOUT_TORCH:
            call()
        else:
            info["peak_bytes"] = peak_bytes(call)

    # Calls that take seconds are not made once more than is needed: this one, after the check, warms up and says how
    # long they take as well.
    single = wall_seconds(lambda: benchmark.pedantic(second, rounds=1))
    if single < 0.5:  # the profiler's part of it may be large
        single = max(min(wall_seconds(call) for _ in range(3)), 1e-9)
    loops, rounds = plan(single, budget())
    if rounds < plan(single, BUDGET)[1]:
        info["late"] = True
    if benchmark.stats is not None:  # None with --benchmark-disable
        benchmark.stats.iterations = loops
        _waiting.append(_Contestant(benchmark, call, single, loops, rounds, bytes_moved))


def plan(single: float, seconds: float) -> tuple[int, int]:
    """How many calls of ``single`` seconds make a sample on the CPU, and how many samples fit into ``seconds``; a few
    are taken in any case."""
    loops = max(1, int(2e-3 / single))
    if seconds < BUDGET or (single > 0.5 and math.isfinite(UNTIL)):
        least = 3
    else:
        least = 5 if single > 0.05 else 9
    return loops, max(least, min(200, int(seconds / (single * loops))))


def take_turns() -> None:
    """Measures the contestants of a case on the CPU, sample by sample in turn, so that all of them see the machine's
    slow moments alike; conftest.py calls it after the last one.

    Each contestant's samples, many or few, are spread evenly over the whole time. What the others left in the caches,
    and threads that fell asleep meanwhile, are dealt with by a call before each sample. When the session's time is up,
    whoever has a sample makes do with what there is."""
    contestants = [*_waiting]
    _waiting.clear()
    for each in contestants:
        each.benchmark.stats.stats = type(each.benchmark.stats.stats)()
    turns = sorted(((k + 0.5) / each.rounds, i) for i, each in enumerate(contestants) for k in range(each.rounds))
    for _, i in turns:
        each = contestants[i]
        if time.time() > UNTIL + GRACE and each.benchmark.stats.stats.data:
            each.benchmark.extra_info["late"] = True
            continue
        if each.seconds < 0.05:
            each.call()
        start = time.perf_counter()
        for _ in range(each.loops):
            each.call()
        each.benchmark.stats.update(time.perf_counter() - start)
    for each in contestants:
        _add_bandwidth(each.benchmark.extra_info, each.bytes_moved, float(each.benchmark.stats.stats.median))
        _keep(each.benchmark)


def _measure_cuda(benchmark: Any, call: Callable[[], Any]) -> float:
    for _ in range(5):
        call()
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - held
    # A replayed graph allocates nothing: its memory shows in what the allocator has reserved for all there is.
    benchmark.extra_info["reserved_bytes"] = torch.cuda.memory_reserved()
    launching = min(wall_seconds(call) for _ in range(3))
    samples: list[float] = []
    end_at = time.perf_counter() + budget()
    while len(samples) < 20 or (time.perf_counter() < end_at and len(samples) < 500):
        samples.append(device_seconds(call, launching))
    found = quantiles(samples)
    benchmark.extra_info.update({f"device_{name}": value for name, value in found.items()}, peak_bytes=peak)
    benchmark.pedantic(lambda: (call(), torch.cuda.synchronize()), rounds=10, warmup_rounds=1)
    return found["p50"]
