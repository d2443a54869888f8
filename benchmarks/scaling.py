"""``python -m benchmarks.scaling --out FILE``: how time grows with size, batch and threads, ours beside eager.

Contestants take turns, sample by sample, in one process; each pair's results are compared before they are timed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

import fastgan.functional as F
from benchmarks import harness

Run = Callable[[], tuple[Tensor, ...]]
SIZES = (2, 8, 32, 64, 128, 256, 512)
BATCHES = (1, 2, 4, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    all_threads = torch.get_num_threads()
    rows = []
    for operator, varied, value, threads, contestants in cases(all_threads):
        torch.set_num_threads(threads)
        row = {"operator": operator, "varied": varied, "value": value, **compare(contestants)}
        rows.append(row)
        print(f"{operator}, {varied} {value}: {row['eager']['p50'] / row['fastgan']['p50']:.2f} times as fast")
        out.write_text(json.dumps({"threads": all_threads, "rows": rows}))  # at once: it may be interrupted


def cases(all_threads: int) -> Iterator[tuple[str, str, Any, int, dict[str, Run]]]:
    for size in SIZES:
        yield "instance_norm_act", "image size", size, all_threads, norm(1, size)
        yield "weighted_l1", "image size", size, all_threads, l1(1, size)
    for n in (16, 256, 4096, 65536, 1048576):
        yield "wasserstein_1d", "samples", n, all_threads, wasserstein(1, n)
    for batch in BATCHES:
        yield "instance_norm_act", "batch", batch, all_threads, norm(batch, 64)
        yield "interpolate + penalty", "batch", batch, all_threads, penalty(batch)
        yield "wasserstein_1d", "rows", 16 * batch, all_threads, wasserstein(16 * batch, 4096)
    if harness.DEVICE == "cpu":
        for threads in sorted({1, 2, 4, 8, all_threads} & set(range(1, all_threads + 1))):
            yield "instance_norm_act", "threads", threads, threads, norm(1, 256)
            yield "interpolate + penalty", "threads", threads, threads, penalty(16)
            yield "wasserstein_1d", "threads", threads, threads, wasserstein(64, 16384)


def with_gradients(function: Callable[..., Tensor], *leaves: Tensor) -> Run:
    for leaf in leaves:
        leaf.requires_grad_()

    def run() -> tuple[Tensor, ...]:
        value = function(*leaves)
        return value.detach(), *torch.autograd.grad(value, leaves, torch.ones_like(value))

    return run


def norm(batch: int, size: int) -> dict[str, Run]:
    """64 channels, NCHW, with ReLU."""
    x = tensor(batch, 64, size, size)
    eager = lambda x: nnf.instance_norm(x).relu()
    return {"fastgan": with_gradients(F.instance_norm_act, x), "eager": with_gradients(eager, x)}


def l1(batch: int, size: int) -> dict[str, Run]:
    """CycleGAN's four pairs."""
    weights = (10.0, 10.0, 5.0, 5.0)
    real = [tensor(batch, 3, size, size) for _ in weights]
    ours = lambda *images: F.weighted_l1(list(zip(images, real, weights, strict=True)))
    eager = lambda *images: sum(
        (nnf.l1_loss(a, b) * w for a, b, w in zip(images, real, weights, strict=True)), real[0].new_zeros(())
    )
    images = [tensor(batch, 3, size, size) for _ in weights]
    return {"fastgan": with_gradients(ours, *images), "eager": with_gradients(eager, *images)}


def penalty(batch: int) -> dict[str, Run]:
    """On samples of 3 x 64 x 64; the points' weight is one value a sample, given."""
    real, fake, grads = (tensor(4 * batch, 3, 64, 64) for _ in range(3))
    alpha = torch.rand(4 * batch, device=harness.DEVICE)

    def eager(grads: Tensor) -> Tensor:
        points = torch.lerp(fake, real, alpha.view(-1, 1, 1, 1))
        return (grads.flatten(1).norm(2, dim=1) - 1).square().mean() + points[0, 0, 0, 0]

    def ours(grads: Tensor) -> Tensor:
        return F.gradient_norm_penalty(grads) + F.interpolate(real, fake, alpha)[0, 0, 0, 0]

    return {"fastgan": with_gradients(ours, grads), "eager": with_gradients(eager, grads)}


def wasserstein(rows: int, n: int) -> dict[str, Run]:
    x, y = tensor(rows, n), tensor(rows, n)
    eager = lambda x, y: (x.sort(-1).values - y.sort(-1).values).abs().mean(-1)
    return {"fastgan": with_gradients(F.wasserstein_1d, x, y), "eager": with_gradients(eager, x, y)}


def tensor(*shape: int) -> Tensor:
    return torch.randn(shape, device=harness.DEVICE)


def compare(contestants: dict[str, Run]) -> dict[str, dict[str, float]]:
    """Each contestant's 20th, 50th and 80th percentile in seconds, of samples of at least a millisecond."""
    results = [run() for run in contestants.values()]
    for ours, theirs in zip(*results, strict=True):
        # Where samples of a Wasserstein distance tie, gradients may go to either.
        assert (ours - theirs).norm() <= 1e-2 * theirs.norm() + 1e-6
    del results
    launching = 0.0
    if harness.DEVICE == "cuda":
        launching = max(min(harness.wall_seconds(run) for _ in range(3)) for run in contestants.values())
    single = max(_seconds(run, 1, launching) for run in contestants.values())
    loops = max(1, min(100, int(1e-3 / single)))
    if launching > 0:  # a sample is launched while the device waits
        loops = max(1, min(loops, int(harness.LONGEST_LAUNCH / launching)))
    rounds = max(5, min(50, int(harness.BUDGET / (len(contestants) * loops * max(single, launching)))))
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            samples[name].append(_seconds(run, loops, launching))
    return {name: harness.quantiles(taken) for name, taken in samples.items()}


def _seconds(run: Run, loops: int, launching: float) -> float:
    """Seconds of a call, of so many, each of which takes the host so long to launch."""
    calls = lambda: [run() for _ in range(loops)]
    on_gpu = harness.DEVICE == "cuda"
    return (harness.device_seconds(calls, loops * launching) if on_gpu else harness.wall_seconds(calls)) / loops


if __name__ == "__main__":
    main()
