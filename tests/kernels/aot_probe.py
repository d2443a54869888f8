"""Kernels whose compilation is known to go well or badly: they show that the ahead-of-time gate can fail.

``python -m tests.kernels.aot_probe`` prints one JSON line for each, as ``fastgan.kernels.triton.aot --json`` does.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from fastgan.kernels.triton import _launch, aot


@triton.jit
def copy(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, i < n), i < n)


@triton.jit
def hoard(x, y, n, BLOCK: tl.constexpr):
    """Keeps more than a thread's registers hold across a barrier."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, i < n).to(tl.float32)
    centred = value - tl.sum(value, 0)
    scaled = centred * tl.sum(centred * value, 0)
    tl.store(y + i, scaled * tl.sum(tl.exp(scaled), 0) + value, i < n)


def _run(kernel, n: int, offset: int, block: int, num_warps: int) -> None:
    x = torch.empty(n + offset, device="meta")[offset:]
    y = torch.empty(n, device="meta")
    _launch.launch(kernel, (triton.cdiv(n, block),), x.device, x, y, n, num_warps=num_warps, BLOCK=block)


def aot_cases() -> Iterator[aot.Case]:
    n = 1 << 20
    yield aot.Case("good", lambda: _run(copy, n, 0, 4096, 4), (aot.Budget(8 * n),))
    yield aot.Case("misaligned", lambda: _run(copy, n, 1, 4096, 4), (aot.Budget(8 * n),))
    yield aot.Case("odd length", lambda: _run(copy, n + 1, 0, 4096, 4), (aot.Budget(8 * n),))
    yield aot.Case("spilling", lambda: _run(hoard, n, 0, 65536, 4), (aot.Budget(8 * n, warps=4),))
    yield aot.Case("crowded", lambda: _run(hoard, n, 0, 16384, 4), (aot.Budget(8 * n, warps=32),))


def main() -> None:
    for case in aot_cases():
        with _launch.record(132) as launches:
            case.run()
        for launch, budget in zip(launches, case.budgets, strict=True):
            for arch in aot.ARCHITECTURES if case.name == "good" else (90,):
                print(json.dumps(dataclasses.asdict(aot._line(case.name, launch, budget, arch, {}))))


if __name__ == "__main__":
    main()
