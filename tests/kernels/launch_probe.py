"""Launches every stem's kernels twice with a driver that runs nothing, and compares what the driver was handed.

``python -m tests.kernels.launch_probe`` prints one JSON line for each kernel: how many launches were compared. The
first launch of a kind is Triton's own; later ones hand the compiled kernel its arguments themselves, and must hand over
the same. Then it launches one kernel with arguments that Triton compiles differently, each after each other: none may
get the kernel of another. The last line says how many kernels those were. It runs in a process without
TRITON_INTERPRET, since kernels must be compiled.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.compiler.compiler import LazyDict

from fastgan.kernels.triton import _launch, aot, gradient_penalty, instance_norm, interpolate, l1

HANDED: list[tuple[Any, ...]] = []


class Driver(aot._Driver):
    """Notes what it is asked to launch: the kernel, what it was compiled for, the grid and the arguments."""

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return lambda *arguments: HANDED.append((source.fn.__name__, source.hash(), *arguments))


def calls() -> list[Callable[[], object]]:
    def images(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.bfloat16).to(memory_format=torch.channels_last)

    def norm(x: Tensor, w: Tensor | None, residual: Tensor | None, pad: int) -> list[Callable[[], object]]:
        plane = torch.zeros(x.shape[:2])
        padded = images(*x.shape[:2], *(size + 2 * pad for size in x.shape[2:]))
        terms, act = (x, w, w, residual), ("leaky_relu", 0.2, pad)
        return [
            lambda: instance_norm.forward(*terms, *act, 1e-5),
            lambda: instance_norm.backward(padded, *terms, plane, plane, *act, residual is not None, False),
            lambda: instance_norm.backward(padded, *terms, plane, plane, *act, residual is not None, True),
            lambda: instance_norm.double_backward(x, residual, w, w, padded, *terms, *(plane,) * 4, *act),
        ]

    x, outer, flat = images(2, 8, 9, 9), images(2, 8, 11, 11), torch.zeros(3, 3000)
    pairs = [torch.zeros(5000 + 100 * (k // 2)) for k in range(10)]
    words, weights, numels = [2048] * 5, [1.0, 2.0, 0.5, 3.0, 1.5], [5000, 5100, 5200, 5300, 5400]
    signs, one, alpha = torch.zeros(sum(words), dtype=torch.uint8), torch.zeros(()), torch.zeros(3)
    return [
        *norm(x, None, None, 0),
        *norm(x, torch.zeros(8), outer[..., 1:-1, 1:-1], 1),
        *norm(images(1, 1, 192, 192), None, None, 0),
        lambda: l1.forward(pairs, weights, words, torch.float32),
        lambda: l1.forward([pairs[0][1:], pairs[1][1:]], [2.0], [2048], torch.float32),
        lambda: l1.backward(one, signs, numels, weights, words, [torch.float32, None] * 5),
        lambda: l1.directional(pairs, signs, numels, weights, words, torch.float32),
        lambda: interpolate.forward(flat, flat, None, torch.zeros(1, dtype=torch.int64)),
        lambda: interpolate.backward(flat, flat, flat, alpha, True, False, True),
        lambda: gradient_penalty.forward(flat, 1.0, False),
        lambda: gradient_penalty.backward(one, flat, alpha, 1.0, True),
        lambda: gradient_penalty.double_backward(flat, one, flat, alpha, 1.0, True),
    ]


def plain(argument: object) -> object:
    """What is the same in two launches: not the address of what a call allocates."""
    if isinstance(argument, Tensor):
        return argument.dtype, tuple(argument.shape), argument.stride(), argument.data_ptr() % 16
    return type(argument) if isinstance(argument, LazyDict) else argument  # what a profiler would be told


@triton.jit
def _scale_kernel(x, y, n, step, factor, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i * step, mask=i < n)
    if y is not None:
        tl.store(y + i, value * factor, mask=i < n)


def differently_specialised() -> list[tuple[tuple[Any, ...], int, int]]:
    """Arguments, block and warps of launches that Triton compiles for, each, or calls the same kernel for."""
    words, halves = torch.zeros(2048), torch.zeros(2048, dtype=torch.float16)
    n, step, factor = 33, 3, 0.5
    arguments = [
        *[
            (x, words, n, step, factor)
            for x in (words, words[1:], words[4:], words[2:], halves, halves[1:], halves[8:])
        ],
        *[(words, y, n, step, factor) for y in (words[1:], halves, None)],
        *[(words, words, count, step, factor) for count in (0, 1, 16, 48, 17, (1 << 31) + 1, 1 << 31, 1 << 40)],
        *[(words, words, n, by, factor) for by in (1, 16, -1, 17)],
        *[(words, words, n, step, by) for by in (1.0, 0.0, 16.0)],
        (words[1:], words[1:], 16, 1, factor),
    ]
    base = arguments[0]
    return [*[(each, 64, 1) for each in arguments], (base, 128, 1), (base, 64, 2)]


def never_anothers_kernel() -> int:
    """Launches every two of those in a row, and compares the second with what it is alone; returns how many kernels."""
    device = torch.device("cpu")

    def launched(*calls: tuple[tuple[Any, ...], int, int]) -> tuple[object, ...]:
        _launch._compiled.clear()
        for args, block, num_warps in calls:
            _launch.launch(_scale_kernel, (1,), device, *args, num_warps=num_warps, BLOCK=block)
        last = tuple(map(plain, HANDED[-1]))
        HANDED.clear()
        return last

    calls = differently_specialised()
    alone = [launched(call) for call in calls]
    for (first, _), (second, expected) in itertools.product(zip(calls, alone, strict=True), repeat=2):
        assert launched(first, second) == expected, f"{second} after {first}"
    return len({launch[1] for launch in alone})


def main() -> None:
    driver = Driver()
    driver.arch = 90
    triton.runtime.driver.set_active(driver)
    compared: Counter[str] = Counter()
    for call in calls():
        _launch._compiled.clear()
        call()
        first = [tuple(map(plain, launch)) for launch in HANDED]
        HANDED.clear()
        assert len(_launch._compiled) > 0
        call()
        second = [tuple(map(plain, launch)) for launch in HANDED]
        HANDED.clear()
        assert first == second, f"{first}\n{second}"
        compared.update(launch[0] for launch in first)
    for kernel, count in compared.items():
        print(json.dumps({"kernel": kernel, "launches": count}))
    print(json.dumps({"differently specialised": never_anothers_kernel()}))


if __name__ == "__main__":
    main()
