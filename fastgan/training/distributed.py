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
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {name!r}")
    if device.type == "cuda":
        if not cuda:
            raise ValueError(f"device {name!r} was asked for, but there is no CUDA device here")
        count = torch.cuda.device_count()
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        elif int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1 and count > 1:
            raise ValueError(f"device {name!r} would be that of every process; leave it out, or give 'cuda'")
        if device.index >= count:
            raise ValueError(f"device 'cuda:{device.index}' was asked for, but there are {count} CUDA devices")
    return device


@contextlib.contextmanager
def session(device: torch.device) -> Iterator[None]:
    """Joins the processes that torchrun started, if it did, and leaves them at the end.

    ``device`` is the current one meanwhile: pinned memory, say, names none, and would take memory of the first GPU.
    """
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
            yield
            return
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        try:
            yield
        finally:
            gc.collect()  # wrappers in reference cycles must go before the process group that they use
            dist.destroy_process_group()


def wrap(module: nn.Module, *, compiled: bool = False) -> nn.Module:
    """``module``, compiled if asked for, in DistributedDataParallel, which averages gradients over several processes.

    Call the wrapper where the module's own parameters are trained, and the bare module everywhere else: the wrapper
    waits for gradients after each of its forward passes. Buffers are not synchronised.

    The compiled module is inside: Dynamo then cuts its graph at the wrapper's buckets, whose gradients travel while the
    backward pass goes on.
    """
    if compiled:
        _leave_sums_uncompiled()
        module = torch.compile(module)  # type: ignore[assignment]
    if size() == 1:
        return module
    parallel: Any = nn.parallel.DistributedDataParallel
    renamed = "forward_sync_buffers" in inspect.signature(parallel).parameters  # torch 2.13
    wrapped: nn.Module = parallel(module, **{"forward_sync_buffers" if renamed else "broadcast_buffers": False})
    return wrapped


def within(network: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel, which waits for gradients after each of its passes."""
    inner: nn.Module = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
    return inner


def average_gradients(module: nn.Module) -> None:
    """Averages the gradients of ``module`` over all processes, where its wrapper saw nothing of the backward pass."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    if size() == 1 or not gradients:
        return
    joint = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(joint)
    joint /= size()
    for gradient, part in zip(gradients, joint.split([each.numel() for each in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def no_sync(*networks: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """While this lasts, gradients of networks that :func:`wrap` gave stay this process's own: they are averaged with
    those of the next passes. For all parts of a batch but the last, forward and backward."""
    stack = contextlib.ExitStack()
    for network in networks:
        if isinstance(network, nn.parallel.DistributedDataParallel):
            stack.enter_context(network.no_sync())
    return stack


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


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient. Differentiable to any order."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total: Tensor = _Sum.apply(grads[0])  # type: ignore[no-untyped-call]
        return total


def differentiable_rows(own: Tensor) -> Tensor:
    """The rows of all processes, like :func:`joint_rows`; a row's gradient is the sum of those of all processes.

    Under DistributedDataParallel, which averages, that makes the gradients those of the mean of the processes' losses.
    """
    if size() == 1:
        return own
    before, after = (own.new_zeros(n * len(own), *own.shape[1:]) for n in (rank(), size() - 1 - rank()))
    rows: Tensor = _Sum.apply(torch.cat([before, own, after]))  # type: ignore[no-untyped-call]
    return rows


def _sum(x: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(x)  # type: ignore[no-untyped-call]
    return total


def _leave_sums_uncompiled() -> None:
    """What torch 2.11 makes of an all-reduce inside a compiled network is wrong, without an error."""
    global _sum
    if not hasattr(_sum, "_torchdynamo_disable"):
        _sum = torch.compiler.disable(_sum)


class _JointBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the joint batch, of which every process has as many rows."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        dims = [d for d in range(x.dim()) if d != 1]
        mean = _sum(x.mean(dims, keepdim=True)) / size()
        centred = x - mean
        variance = _sum(centred.square().mean(dims, keepdim=True)) / size()
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            count = x.numel() // x.size(1) * size()
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean.flatten(), self.momentum)
                self.running_var.lerp_(variance.flatten() * (count / max(count - 1, 1)), self.momentum)
        y = centred * (variance + self.eps).rsqrt()
        if self.affine:
            shape = [1, -1, *[1] * (x.dim() - 2)]
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype, memory_format=torch.preserve_format)


def join_batch_norms(module: nn.Module) -> None:
    """Lets batch norms inside ``module`` take their statistics over the joint batch; their state keeps its names.

    On GPUs this is torch's SyncBatchNorm, which does not run on CPUs.
    """
    if size() == 1:
        return
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                on_gpu = any(t.is_cuda for t in [*child.parameters(), *child.buffers()])
                if on_gpu:
                    setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
                else:
                    child.__class__ = _JointBatchNorm


def mean(values: Tensor) -> Tensor:
    """The mean of ``values`` over all processes."""
    if size() > 1:
        values = values.clone()
        dist.all_reduce(values)
        values /= size()
    return values


class Agreement:
    """The greatest value of any process, so that all act alike on what reaches some of them a step early (a signal).

    Nothing waits: a call hands in a value, which travels while the process goes on, and gives what was agreed on at the
    call before, 0 at first. A single process's value counts at once. Every process must call it equally often.
    """

    def __init__(self) -> None:
        self._travelling: tuple[dist.Work, Tensor] | None = None

    def __call__(self, value: int) -> int:
        if size() == 1:
            return value
        agreed = self._arrived()
        flag = torch.tensor(value)
        self._travelling = dist.all_reduce(flag, dist.ReduceOp.MAX, async_op=True), flag
        return agreed

    def settle(self, value: int) -> int:
        """What all values since the last call and ``value`` come to; this one waits."""
        return max(self(value), self._arrived())

    def _arrived(self) -> int:
        if self._travelling is None:
            return 0
        (work, flag), self._travelling = self._travelling, None
        work.wait()
        return int(flag)


def gather(value: Any) -> list[Any]:
    """``value`` of every process, in the order of their ranks."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def gather_at_main(value: Any) -> list[Any]:
    """``value`` of every process, in the order of their ranks, in the main process; nothing in the others."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size() if is_main() else []
    dist.gather_object(value, values or None, dst=0)
    return values


def barrier() -> None:
    """Waits for all processes."""
    if size() > 1:
        dist.all_reduce(torch.zeros(1))
