"""Times the launch settings of the Triton instance norm around the table's choice, on a GPU.

``python -m benchmarks.sweep_instance_norm --out FILE [--seconds 240] [--only forward]`` writes one JSON line for each
setting as it is measured, so an interrupted run loses nothing, and prints the best of each workload beside the
table's choice. A setting is checked against plain PyTorch first. It is timed as the replay of a CUDA graph whose
calls take turns over buffers of three times the L2 cache, so that inputs are cold and launches cost nothing.

The launch table's numbers come from register counts and byte models; this sweep has not been run on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgan.kernels import layout
from fastgan.kernels.triton import instance_norm as kernels
from fastgan.kernels.triton.instance_norm import Setting
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
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=240, help="stop after this long, after the current setting")
    parser.add_argument("--only", choices=list(kernels._RESIDENT), action="append", help="operators; default: all")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("a sweep needs a CUDA device")
    end = time.monotonic() + args.seconds
    copy = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}: a copy moves {copy / 1e12:.2f} TB/s")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w") as out:
        for operator in args.only or kernels._RESIDENT:
            for shape, channels_last, pad in WORKLOADS:
                for dtype in (torch.bfloat16, torch.float32):
                    rows = []
                    for row in sweep(operator, shape, channels_last, pad, dtype, copy):
                        rows.append(row)
                        out.write(json.dumps(row) + "\n")
                        out.flush()
                        if time.monotonic() > end:
                            break
                    show(rows)
                    if time.monotonic() > end:
                        print("out of time")
                        return


def sweep(
    operator: str, shape: tuple[int, ...], channels_last: bool, pad: int, dtype: torch.dtype, copy: float
) -> Iterator[dict[str, Any]]:
    """One row for the table's choice, then one for each of its neighbours."""
    n, c, *spatial = shape
    elements = torch.Size(spatial).numel()
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    table = kernels.setting
    chosen = table(operator, n * c, c, elements, dtype.itemsize, channels_last, pad > 0, len(shape) == 5, processors)
    x = tensor(shape, channels_last, dtype)
    padded = tensor((n, c, *(size + 2 * pad for size in spatial)), channels_last, dtype)
    _, least = kernels.traffic(operator, x.nbytes, padded.nbytes)
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    sets = max(2, min(32, -(-3 * l2 // least)))
    fresh = ((tensor(shape, channels_last, dtype), tensor(padded.shape, channels_last, dtype)) for _ in range(sets - 1))
    inputs = [(x, padded), *fresh]
    calls = [call(operator, *pair, pad) for pair in inputs]
    expected = call(operator, x.double(), padded.double(), pad, module=reference)()
    try:
        for setting in [chosen, *neighbours(chosen, elements, channels_last)]:
            row = {
                "operator": operator, "shape": shape, "channels_last": channels_last, "pad": pad,
                "dtype": str(dtype).removeprefix("torch."), "setting": setting, "chosen": setting == chosen,
            }  # fmt: skip
            kernels.setting = lambda *_, setting=setting: setting  # type: ignore[assignment]
            kernels._plan.cache_clear()
            try:
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
    finally:
        kernels.setting = table
        kernels._plan.cache_clear()


def neighbours(chosen: Setting, elements: int, channels_last: bool) -> list[Setting]:
    """Half and twice as many warps, planes, elements and pieces, one at a time, and the other regime."""
    planes, tile, splits, warps = chosen
    found = [Setting(planes, tile, splits, w) for w in (warps // 2, warps * 2, warps * 4)]
    if splits:
        found += [Setting(planes, tile, s, warps) for s in (splits // 2, splits * 2, splits * 4) if s]
        if not channels_last:
            found += [Setting(1, t, 1, 32) for t in (4096, 8192, 16384)]
        found += [Setting(planes, t, splits, warps) for t in (tile // 2, tile * 2, tile * 4)]
        if channels_last:
            found += [Setting(p, tile * planes // p, splits, warps) for p in (planes // 2, planes * 2) if p]
    else:
        found += [Setting(p, tile, 0, warps) for p in (planes // 2, planes * 2)]
        found += [Setting(planes, max(tile // s, 16), s, max(warps // s, 4)) for s in (2, 4, 8) if elements >= 64 * s]
    return [s for s in dict.fromkeys(found) if s.planes and s.elements and 1 <= s.num_warps <= 32 and s != chosen]


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


def tensor(shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype) -> Tensor:
    return layout.empty(shape, channels_last, dtype=dtype, device=torch.device("cuda")).normal_(0.5)


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a 1 GiB device copy."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / replay([lambda: target.copy_(source)])


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
