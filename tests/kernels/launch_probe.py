"""Launches every stem's kernels twice with a driver that runs nothing, and compares what the driver was handed.

``python -m tests.kernels.launch_probe`` prints one JSON line for each kernel: how many launches were compared. The
first launch of a kind is Triton's own; later ones hand the compiled kernel its arguments themselves, and must hand over
the same. It runs in a process without TRITON_INTERPRET, since kernels must be compiled.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.compiler.compiler import LazyDict

from fastgan.kernels.triton import _launch, aot, gradient_penalty, instance_norm, interpolate, l1

HANDED: list[tuple[Any, ...]] = []


class Driver(aot._Driver):
    """Notes what it is asked to launch: the grid, the kernel, and its arguments."""

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return lambda *arguments: HANDED.append((source.fn.__name__, *arguments))


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


if __name__ == "__main__":
    main()
