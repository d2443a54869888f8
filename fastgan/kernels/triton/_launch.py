"""Launching Triton kernels: on the tensors' device, or onto a list, to be compiled ahead of time.

A stem's launch table calls :func:`launch` for every kernel. In :func:`record` nothing runs: the launches, with the
arguments that would specialise them, are collected from a call on meta tensors, so that what ``aot`` compiles is what
the table chooses.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from triton.compiler import CompiledKernel

from fastgan.kernels.dispatch import Call

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
# The interpreter runs one program at a time, so a launch table sees the smallest device.
_INTERPRETED_MULTIPROCESSORS = 1


@dataclass(frozen=True)
class Launch:
    """One kernel launch: what the table chose and the arguments it chose it for."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constexprs: dict[str, Any]
    num_warps: int


class _Recording:
    def __init__(self, multiprocessors: int) -> None:
        self.multiprocessors = multiprocessors
        self.launches: list[Launch] = []


_recording: _Recording | None = None


@contextlib.contextmanager
def record(multiprocessors: int) -> Iterator[list[Launch]]:
    """Collects the launches of calls on meta tensors, as a device with this many multiprocessors would get them."""
    global _recording
    _recording = _Recording(multiprocessors)
    try:
        yield _recording.launches
    finally:
        _recording = None


def launch(
    kernel: Any, grid: tuple[int, ...], device: torch.device, *args: Any, num_warps: int, **constexprs: Any
) -> None:
    """Runs ``kernel[grid](*args, **constexprs)`` on ``device`` and its current stream.

    args are tensors, None and numbers; constexprs follow them in the kernel's signature, in any order.
    """
    if _recording is not None:
        _recording.launches.append(Launch(kernel, grid, args, constexprs, num_warps))
    elif INTERPRETED:
        kernel[grid](*args, num_warps=num_warps, **constexprs)
    elif device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            _launch_compiled(kernel, grid, device, args, num_warps, constexprs)
    else:
        _launch_compiled(kernel, grid, device, args, num_warps, constexprs)


# What was launched before: the compiled kernel, and its constexprs in the order of its signature. Triton's own launch
# sorts arguments into those that specialise a kernel and those that do not, one by one, in three times the time that
# this look-up takes.
_compiled: dict[tuple[Any, ...], tuple[CompiledKernel, tuple[Any, ...]]] = {}
_MOST_COMPILED = 8192  # calls whose sizes differ; images that change their size would fill memory


def _launch_compiled(
    kernel: Any,
    grid: tuple[int, ...],
    device: torch.device,
    args: tuple[Any, ...],
    num_warps: int,
    constexprs: dict[str, Any],
) -> None:
    # Types of tensors, and whether they begin at 16 bytes; of integers the value, which may be compiled in.
    facts = [
        a if a is None or a.__class__ is int
        else float if a.__class__ is float
        else (a.dtype, a.data_ptr() % 16 == 0)
        for a in args
    ]  # fmt: skip
    key = (id(kernel), device.index, num_warps, *constexprs, *constexprs.values(), *facts)
    found = _compiled.get(key)
    if found is not None:
        compiled, rest = found
        compiled[(*grid, 1, 1)[:3]](*args, *rest)
        return
    compiled = kernel[grid](*args, num_warps=num_warps, **constexprs)
    if isinstance(compiled, CompiledKernel):
        if len(_compiled) >= _MOST_COMPILED:
            _compiled.clear()
        _compiled[key] = compiled, tuple(constexprs[name] for name in kernel.arg_names[len(args) :])


def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors a launch table has to fill."""
    if _recording is not None:
        return _recording.multiprocessors
    return _cuda_multiprocessors(device.index or 0) if device.type == "cuda" else _INTERPRETED_MULTIPROCESSORS


@cache
def _cuda_multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def unsupported_device(call: Call) -> str | None:
    """The reason why no Triton kernel serves a call on this device, or None."""
    if call.device == "cuda":
        return "Triton kernels are made for NVIDIA's GPUs, got ROCm" if torch.version.hip else _no_launcher()
    if call.device == "cpu":
        if INTERPRETED:
            return None
        return "Triton kernels run on CPU tensors only in its interpreter (TRITON_INTERPRET=1)"
    return f"Triton kernels need a CUDA device, got {call.device!r}"


@cache
def _no_launcher() -> str | None:
    """Why Triton launches nothing on this machine, or None: it builds its launcher with the machine's C compiler."""
    if INTERPRETED:
        return None
    try:
        triton.runtime.driver.active.get_current_target()
    except Exception as error:
        return f"Triton needs a C compiler and Python's headers to build its launcher ({type(error).__name__}: {error})"
    return None


def unsupported_dtype(call: Call) -> str | None:
    """The reason why no Triton kernel serves a call in this dtype, or None."""
    if call.dtype in (torch.float32, torch.float16, torch.bfloat16):
        return None
    return f"Triton kernels take float32, float16 and bfloat16, got {str(call.dtype).removeprefix('torch.')}"
