"""Times the launch settings of the Triton instance norm around the table's choice, on a GPU.

``python -m benchmarks.sweep_instance_norm --out FILE [--seconds 240] [--only forward] [--table]`` writes one JSON line
for each setting as it is measured, so an interrupted run loses nothing, and prints the best of each workload beside the
table's choice. A setting is checked against plain PyTorch first. It is timed as the replay of a CUDA graph whose
calls take turns over buffers of three times the L2 cache, so that inputs are cold and launches cost nothing. Other
processes meanwhile compile the settings to come into Triton's cache: one process would compile for most of the time.

``--table`` derives the launch table from what was measured (``--from FILE``: from an earlier sweep, without a GPU):
for each of its constants it takes, from half, once and twice today's, what makes the workloads it governs fastest
(geometric mean), and prints the constants as they stand in
``fastgan/kernels/triton/instance_norm/launch_table.py``. Constants for which a workload's setting was not measured
stay. ``--dry-run`` makes the launches of every setting on meta tensors.

The launch table's numbers come from register counts and byte models; this sweep has not been run on a GPU yet.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import geometric_mean
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fastgan.kernels import layout
from fastgan.kernels.triton import aot
from fastgan.kernels.triton import instance_norm as kernels
from fastgan.kernels.triton._launch import record
from fastgan.kernels.triton.instance_norm import Setting, launch_table, launchers
from fastgan.reference import instance_norm as reference

# shape, channels_last, padding: the CycleGAN generator's and PatchGAN's own, small planes, and tensors past the L2.
WORKLOADS = [
    ((1, 256, 64, 64), False, 0),
    ((1, 256, 64, 64), True, 0),
    ((1, 256, 64, 64), True, 1),
    ((1, 128, 128, 128), True, 0),
    ((1, 64, 256, 256), False, 0),
    ((1, 64, 256, 256), True, 0),
    ((1, 64, 256, 256), True, 3),
    ((1, 512, 31, 31), True, 0),
    ((64, 256, 16, 16), False, 0),
    ((64, 512, 8, 8), True, 0),
    ((16, 256, 64, 64), False, 0),
    ((16, 256, 64, 64), True, 0),
    ((16, 128, 128, 128), False, 0),
    ((16, 64, 256, 256), False, 0),
    ((16, 64, 256, 256), True, 0),
    ((4, 32, 512, 512), False, 0),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the file to write")
    parser.add_argument("--from", dest="source", type=Path, help="with --table: an earlier sweep; measure nothing")
    parser.add_argument("--seconds", type=float, default=240, help="stop after this long, after the current setting")
    parser.add_argument("--only", choices=list(launch_table.RESIDENT), action="append", help="operators; default: all")
    parser.add_argument("--table", action="store_true", help="print the launch table that follows")
    parser.add_argument("--dry-run", action="store_true", help="launch everything on meta tensors, without a GPU")
    parser.add_argument("--compile", type=int, nargs=4, help=argparse.SUPPRESS)  # of compilers()
    args = parser.parse_args()
    if args.compile:
        print(compile_share(args.only or list(launch_table.RESIDENT), *args.compile))
        return
    if args.source is None and args.out is None:
        parser.error("give --out, or --from with --table")
    if args.source is None and not args.dry_run and not torch.cuda.is_available():
        raise SystemExit("a sweep needs a CUDA device")
    if args.source is None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        measure(args.out, args.only or list(launch_table.RESIDENT), args.seconds, args.dry_run)
    if args.table and not args.dry_run:
        print(table([json.loads(line) for line in (args.source or args.out).read_text().splitlines()]))


def measure(path: Path, operators: list[str], seconds: float, dry: bool) -> None:
    end = time.monotonic() + seconds
    copy = 1.0 if dry else copy_bandwidth()
    if not dry:
        print(f"{torch.cuda.get_device_name()}: a copy moves {copy / 1e12:.2f} TB/s")
    ahead: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if not dry:
        major, minor = torch.cuda.get_device_capability()
        ahead = compilers(operators, 10 * major + minor, torch.cuda.get_device_properties(0).multi_processor_count)
    with path.open("w") as out, ahead:
        for job in jobs(operators):
            rows = []
            for row in (dry_sweep if dry else sweep)(*job, copy):
                rows.append(row)
                out.write(json.dumps(row) + "\n")
                out.flush()
                if time.monotonic() > end:
                    break
            show(rows)
            if time.monotonic() > end:
                print("out of time")
                return


def jobs(operators: list[str]) -> Iterator[tuple[str, tuple[int, ...], bool, int, torch.dtype]]:
    """Workloads outside: a sweep that ends early has all operators on the first of them."""
    for shape, channels_last, pad in WORKLOADS:
        for dtype in (torch.bfloat16, torch.float32):
            for operator in operators:
                yield operator, shape, channels_last, pad, dtype


@contextlib.contextmanager
def compilers(operators: list[str], arch: int, processors: int) -> Iterator[None]:
    """While it lasts, all but two of the machine's cores compile what will be measured, ahead of it."""
    count = max((os.cpu_count() or 1) - 2, 0) if arch in aot.ARCHITECTURES else 0
    command = [sys.executable, "-m", "benchmarks.sweep_instance_norm", *(f"--only={name}" for name in operators)]
    device = (str(arch), str(processors))
    workers = [subprocess.Popen([*command, "--compile", str(k), str(count), *device]) for k in range(count)]
    try:
        yield
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def compile_share(operators: list[str], first: int, step: int, arch: int, processors: int) -> int:
    """Compiles every `step`-th setting into Triton's cache; nothing runs. How many kernels those are."""
    compiled, position = set(), 0
    for operator, shape, channels_last, pad, dtype in jobs(operators):
        n, c, *spatial = shape
        x = tensor(shape, channels_last, dtype, "meta")
        padded = tensor((n, c, *(size + 2 * pad for size in spatial)), channels_last, dtype, "meta")
        for setting in candidates(facts(operator, shape, channels_last, pad, dtype.itemsize, processors)):
            position += 1
            if position % step != first:
                continue
            with using(setting), record(processors) as launches:
                call(operator, x, padded, pad)()
            for launch in launches:
                with contextlib.suppress(Exception):  # the sweep will find it and write it down
                    compiled.add(aot.compile_launch(launch, arch).hash)
    return len(compiled)


def facts(operator: str, shape: tuple[int, ...], channels_last: bool, pad: int, itemsize: int, processors: int) -> Any:
    """The arguments of :func:`fastgan.kernels.triton.instance_norm.setting`."""
    n, c, *spatial = shape
    elements = torch.Size(spatial).numel()
    return operator, n * c, c, elements, itemsize, channels_last, pad > 0, len(shape) == 5, processors


def dry_sweep(
    operator: str, shape: tuple[int, ...], channels_last: bool, pad: int, dtype: torch.dtype, copy: float
) -> Iterator[dict[str, Any]]:
    """One row for each setting, whose launches are made on meta tensors."""
    n, c, *spatial = shape
    x = tensor(shape, channels_last, dtype, "meta")
    padded = tensor((n, c, *(size + 2 * pad for size in spatial)), channels_last, dtype, "meta")
    for setting in candidates(facts(operator, shape, channels_last, pad, dtype.itemsize, 132)):
        with using(setting), record(132) as launches:
            call(operator, x, padded, pad)()
        yield {"operator": operator, "shape": shape, "setting": setting, "launches": len(launches)}


@contextlib.contextmanager
def using(setting: Setting) -> Iterator[None]:
    """Lets the launch table choose ``setting``, whatever the call."""
    try:
        with mock.patch.object(launch_table, "setting", return_value=setting):
            launchers.plan_of.cache_clear()
            yield
    finally:
        launchers.plan_of.cache_clear()


def sweep(
    operator: str, shape: tuple[int, ...], channels_last: bool, pad: int, dtype: torch.dtype, copy: float
) -> Iterator[dict[str, Any]]:
    """One row for the table's choice, then one for each of its neighbours."""
    n, c, *spatial = shape
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    key = facts(operator, shape, channels_last, pad, dtype.itemsize, processors)
    chosen = launch_table.setting(*key)
    x = tensor(shape, channels_last, dtype)
    padded = tensor((n, c, *(size + 2 * pad for size in spatial)), channels_last, dtype)
    _, least = kernels.traffic(operator, x.nbytes, padded.nbytes)
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    sets = max(2, min(32, -(-3 * l2 // least)))
    fresh = ((tensor(shape, channels_last, dtype), tensor(padded.shape, channels_last, dtype)) for _ in range(sets - 1))
    inputs = [(x, padded), *fresh]
    calls = [call(operator, *pair, pad) for pair in inputs]
    expected = call(operator, x.double(), padded.double(), pad, module=reference)()
    for setting in candidates(key):
        row = {
            "operator": operator, "shape": shape, "channels_last": channels_last, "pad": pad,
            "dtype": str(dtype).removeprefix("torch."), "processors": processors, "setting": setting,
            "chosen": setting == chosen,
        }  # fmt: skip
        try:
            with using(setting):
                got = calls[0]()
                error = max(
                    ((g.double() - e).norm() / e.norm().clamp_min(1e-30)).item()
                    for g, e in zip(got, expected, strict=True)
                )
                if not error < (1e-5 if dtype == torch.float32 else 1e-2):
                    yield row | {"error": error}
                    continue
                seconds = replay(calls)
        except Exception as problem:  # a setting that the device refuses is a result too
            yield row | {"failed": repr(problem)[:200]}
            continue
        yield row | {
            "us": seconds * 1e6, "gb_per_s": least / seconds / 1e9, "copy_percent": 100 * least / seconds / copy,
            "error": error,
        }  # fmt: skip


def candidates(key: tuple[Any, ...]) -> list[Setting]:
    """What the table chooses; what it would choose with one of its numbers half or twice as large; other regimes."""
    constants: Constants = {name: dict(getattr(launch_table, name)) for name in NAMES}
    found = [launch_table.setting(*key), *(choice(changed, key) for changed in _neighbouring(constants, key[0]))]
    planes, tile, splits, warps = found[0]
    elements, channels_last = key[3], key[5]
    if not splits and elements >= 256:
        found += [Setting(planes, max(tile // s, 16), s, max(warps // s, 4)) for s in (2, 8)]
    elif splits and not channels_last:
        found += [Setting(1, t, 1, 32) for t in (4096, 16384)]
    elif splits:
        found += [Setting(planes, tile, s, warps) for s in (splits // 2, splits * 2) if s]
    return [s for s in dict.fromkeys(found) if s.planes and s.elements and 1 <= s.num_warps <= 32]


def call(operator: str, x: Tensor, padded: Tensor, pad: int, module: Any = kernels) -> Callable[[], tuple[Tensor, ...]]:
    """A call without residual or parameters, returning its results."""
    act = ("relu", 0.2, pad)
    if operator == "forward":
        return lambda: module.forward(x, None, None, None, *act, 1e-5)
    _, mean, rstd = reference.forward(x, None, None, None, *act, 1e-5)
    terms = (padded, x, None, None, None, mean, rstd)
    if operator == "backward":
        need = (False,) if module is kernels else ()

        def backward() -> tuple[Tensor, ...]:
            grad_x, _, m1, m2 = module.backward(*terms, *act, *need)
            return grad_x, m1, m2

        return backward
    _, _, m1, m2 = reference.backward(*terms, *act)
    u = layout.dense(x.flip(-1), layout.is_channels_last(x))
    return lambda: module.double_backward(u, None, None, None, *terms, m1, m2, *act)[:2]


def replay(calls: list[Callable[[], Any]]) -> float:
    """Seconds a call, the median of 20 replays of a graph that makes each of them in turn."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for run in calls:
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in calls:
            run()
    samples = []
    for _ in range(22):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        samples.append(start.elapsed_time(stop) * 1e-3 / len(calls))
    return sorted(samples[2:])[10]


def tensor(shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype, device: str = "cuda") -> Tensor:
    return layout.empty(shape, channels_last, dtype=dtype, device=torch.device(device)).normal_(0.5)


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a 1 GiB device copy."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / replay([lambda: target.copy_(source)])


# --- deriving the table -------------------------------------------------------------------------------------------

Constants = dict[str, dict[str, tuple[Any, ...]]]
NAMES = ("RESIDENT", "SPLIT", "LOOPED")


def table(rows: list[dict[str, Any]]) -> str:
    """The launch table's constants that make the measured workloads fastest, as Python, and what they gain."""
    measured: dict[tuple[Any, ...], dict[Setting, float]] = {}
    tried: dict[tuple[Any, ...], set[Setting]] = {}
    for row in rows:
        if "setting" in row:
            itemsize = getattr(torch, row["dtype"]).itemsize
            key = facts(row["operator"], row["shape"], row["channels_last"], row["pad"], itemsize, row["processors"])
            tried.setdefault(key, set()).add(Setting(*row["setting"]))
            if "us" in row:
                measured.setdefault(key, {})[Setting(*row["setting"])] = row["us"]
    # Where the sweep was interrupted amid a workload's settings, it says nothing about the others.
    measured = {key: times for key, times in measured.items() if tried[key].issuperset(candidates(key))}
    constants: Constants = {name: dict(getattr(launch_table, name)) for name in NAMES}
    lines = []
    for operator in launch_table.RESIDENT:
        workloads = {key: times for key, times in measured.items() if key[0] == operator}
        before = _score(constants, workloads)
        if before is None:
            lines.append(f"# {operator}: the table's own choice was not measured; as it was")
            continue
        best, score = constants, before
        improved = True
        while improved:
            improved = False
            for candidate in _neighbouring(best, operator):
                found = _score(candidate, workloads)
                if found is not None and found < 0.99 * score:  # less is noise
                    best, score, improved = candidate, found, True
        constants = best
        fastest = geometric_mean(min(times.values()) for times in workloads.values())
        lines.append(
            f"# {operator}: {len(workloads)} workloads, geometric mean {before:.2f} us -> {score:.2f} us; "
            f"{fastest:.2f} us with the best setting of each"
        )
    for name in NAMES:
        lines += [f"{name} = {{", *(f'    "{operator}": {entry},' for operator, entry in constants[name].items()), "}"]
    return "\n".join(lines)


def _neighbouring(constants: Constants, operator: str) -> Iterator[Constants]:
    """The tables in which one number that governs ``operator`` is half or twice as large."""
    for name in NAMES:
        entry = constants[name][operator]
        for path in _paths(entry):
            for factor in (0.5, 2):
                changed = _replaced(entry, path, factor)
                if changed is not None:
                    yield {**constants, name: {**constants[name], operator: changed}}


def _paths(entry: tuple[Any, ...]) -> Iterator[tuple[int, ...]]:
    for i, value in enumerate(entry):
        if isinstance(value, tuple):
            yield from ((i, *rest) for rest in _paths(value))
        else:
            yield (i,)


def _replaced(entry: tuple[Any, ...], path: tuple[int, ...], factor: float) -> tuple[Any, ...] | None:
    i, *rest = path
    value = _replaced(entry[i], tuple(rest), factor) if rest else int(entry[i] * factor)
    return (*entry[:i], value, *entry[i + 1 :]) if value else None


def choice(constants: Constants, key: tuple[Any, ...]) -> Setting:
    """What a table with these constants chooses."""
    with contextlib.ExitStack() as stack:
        for name, value in constants.items():
            stack.enter_context(mock.patch.object(launch_table, name, value))
        found: Setting = launch_table.setting.__wrapped__(*key)  # without its cache
    return found


def _score(constants: Constants, workloads: dict[tuple[Any, ...], dict[Setting, float]]) -> float | None:
    """The geometric mean, in microseconds, of what the table would choose; None where that was not measured."""
    times = [found.get(choice(constants, key)) for key, found in workloads.items()]
    if not times or None in times:
        return None
    return geometric_mean(time for time in times if time is not None)


def show(rows: list[dict[str, Any]]) -> None:
    timed = [row for row in rows if "us" in row]
    if not timed:
        print(rows[:1])
        return
    best = min(timed, key=lambda row: row["us"])
    line = f"{best['operator']:16s} {best['shape']!s:20s} {'last' if best['channels_last'] else 'NCHW'} "
    line += f"pad {best['pad']} {best['dtype']:8s}"
    for name, row in (("table", next((r for r in timed if r["chosen"]), None)), ("best", best)):
        if row is not None:
            line += f" | {name} {tuple(row['setting'])}: {row['us']:.1f} us, {row['copy_percent']:.0f} % of copy"
    print(line, flush=True)


if __name__ == "__main__":
    main()
