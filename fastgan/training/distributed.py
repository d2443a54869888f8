"""One process or several: torchrun's environment, DistributedDataParallel, and rows of the joint batch.

Every function also works in a single process, where it does nothing. Under torchrun, CPU tensors travel by gloo and
CUDA tensors by NCCL. ``batch_size`` is that of one process; the *joint batch* is the rows of all processes in the
order of their ranks. Whatever is random about the joint batch is drawn whole by every process from the same
generator, and each process keeps its own rows: so two processes compute what one would with twice the batch.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among all, 0 in a single process."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that logs, samples and saves."""
    return rank() == 0


def resolve_device(name: str) -> torch.device:
    """``auto``: this process's GPU if there is one, else the CPU; else the device of that name.

    Raises:
        ValueError: no such device, or none on this machine.
    """
    cuda = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if cuda else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {name!r}") from error
    if device.type == "cuda":
        if not cuda:
            raise ValueError(f"device {name!r} was asked for, but there is no CUDA device here")
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise ValueError(f"device {name!r} was asked for, but there are {torch.cuda.device_count()} CUDA devices")
    return device


@contextlib.contextmanager
def session(device: torch.device) -> Iterator[None]:
    """Joins the processes that torchrun started, if it did, and leaves them at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl")
    else:
        dist.init_process_group("gloo")
    try:
        yield
    finally:
        gc.collect()  # wrappers in reference cycles must go before the process group that they use
        dist.destroy_process_group()


def wrap(module: nn.Module) -> nn.Module:
    """``module`` in DistributedDataParallel (gradients are averaged over the processes), or itself in one process.

    Call the wrapper where the module's own parameters are trained, and the bare module everywhere else: the wrapper
    waits for gradients after each of its forward passes. Buffers are not synchronised.
    """
    if size() == 1:
        return module
    parallel: Any = nn.parallel.DistributedDataParallel
    renamed = "forward_sync_buffers" in inspect.signature(parallel).parameters  # torch 2.13
    wrapped: nn.Module = parallel(module, **{"forward_sync_buffers" if renamed else "broadcast_buffers": False})
    return wrapped


def own_rows(joint: Tensor) -> Tensor:
    """This process's rows of a tensor that every process holds for the joint batch."""
    return joint.chunk(size())[rank()] if size() > 1 else joint


def joint_rows(own: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks. Not differentiable."""
    if size() == 1:
        return own.detach()
    parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(size())]
    dist.all_gather(parts, own.detach().contiguous())
    return torch.cat(parts)


def mean(values: Tensor) -> Tensor:
    """The mean of ``values`` over all processes."""
    if size() > 1:
        values = values.clone()
        dist.all_reduce(values)
        values /= size()
    return values


def agree(value: int) -> int:
    """The greatest ``value`` of any process, so that all act alike (a signal may reach some a step early)."""
    if size() == 1:
        return value
    flag = torch.tensor(value)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return int(flag)


def gather(value: Any) -> list[Any]:
    """``value`` of every process, in the order of their ranks."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Waits for all processes."""
    if size() > 1:
        dist.all_reduce(torch.zeros(1))
