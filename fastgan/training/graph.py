"""A training step as a CUDA graph: recorded once, then replayed with one launch.

At batch 1 a GAN's step is thousands of small kernels, whose launches take the host longer than the device needs to run
them. A graph replays them all, on the same addresses: so a step that is to be recorded reads its inputs from buffers
that stay, updates weights, moments, averages, pools and scales in place, takes the learning rate from a tensor, and
never asks the device for a value. :class:`StepGraph` sees to the buffers and the learning rates; the rest is up to the
step. All but the recording itself also happens on the CPU, where a "replay" calls the step again on the same buffers:
what a step must keep to is tested there.

Warm-up: a recording may not allocate what a first call allocates (moments, workspaces, compiled kernels). The first
calls are therefore made without a graph, on the stream that records later. They are steps of the run like any other, so
nothing has to be undone. Recording executes nothing and is followed by the first replay. From then on its memory is the
graph's, and a step that runs as usual needs its own beside it: so of graphs that share memory none is recorded before
all have warmed up.

Random numbers: a replay draws from the device's default generator, and from those that are named, what a call would
draw. Gradients live in the graph's memory: a step clears them when its optimizer has used them.

See "CUDA Graphs" in PyTorch's notes on CUDA semantics.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fastgan.training import distributed

if TYPE_CHECKING:
    from fastgan.training.task import RunConfig

logger = logging.getLogger("fastgan")
Step = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def wants_graph(config: RunConfig, device: torch.device, obstacles: Mapping[str, bool]) -> bool:
    """Whether a trainer's steps are to be recorded, as ``config.cuda_graph`` says.

    Args:
        config: of the run.
        device: where it trains.
        obstacles: what the trainer itself has against it, and whether that is so.

    Raises:
        ValueError: ``on``, and something prevents it; the message says what.
    """
    if config.cuda_graph == "off":
        return False
    reasons = {
        f"there is no CUDA graph on device {device}": device.type != "cuda",
        f"{distributed.size()} processes wait for each other in a step": distributed.size() > 1,
        "fp16 without fused asks the device whether to step": config.amp == "fp16" and not config.fused,
        **obstacles,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found and config.cuda_graph == "on":
        raise ValueError(f"cuda_graph cannot be on: {'; '.join(found)}")
    return not found


class StepGraph:
    """A step that is called with new inputs and returns its losses.

    Inputs of other shapes or types than the first ones' (an epoch's last batch) go through the step without the graph,
    unless they are larger: then the first ones were the exception, as where a run is continued before such a batch.

    Args:
        step: takes inputs by name, all on the device, and returns scalars, the same ones each time. See the module for
            what it may do.
        device: where it runs.
        optimizers: those that it steps. Their learning rates may change between calls.
        generators: of the device, from which it draws, beside the default one.
        warmup: how many calls precede the recording.
        share: a graph whose memory this one may use too: the two are never replayed at once, and the results of one do
            not outlive a replay of the other. One that is recorded already does not wait for the other's warm-up.
        required: a step that cannot be recorded raises RuntimeError; otherwise it is run without a graph from then on,
            and a warning says why.
        forget: makes the host forget a step that ended halfway, before the step is called again; see
            :meth:`fastgan.training.precision.Precision.forget`.
    """

    def __init__(
        self,
        step: Step,
        device: torch.device,
        optimizers: Sequence[Optimizer],
        *,
        generators: Sequence[torch.Generator] = (),
        warmup: int = 3,
        share: StepGraph | None = None,
        required: bool = True,
        forget: Callable[[], None] | None = None,
    ) -> None:
        self._step = step
        self._forget = forget
        self._device = device
        self._rates: _Rates = share._rates if share is not None else _Rates(device)
        self._optimizers = optimizers
        self._generators = generators
        self._warmup = warmup
        self._required = required
        self._cuda = device.type == "cuda"
        # Warm-up, recording and graphs that share memory all use one stream.
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None
        if share is not None:
            self._stream, self._pool = share._stream, share._pool
        elif self._cuda:
            self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
        self._sharing: list[StepGraph] = [] if share is None else share._sharing
        self._sharing.append(self)
        self._inputs: dict[str, Tensor] = {}
        self._graph: torch.cuda.CUDAGraph | None = None
        self._names: tuple[str, ...] = ()
        self._values = torch.empty(0)
        self._calls = 0
        self._failed = False

    @property
    def recorded(self) -> bool:
        """Whether calls replay a graph by now."""
        return self._graph is not None

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A step on ``inputs``, which may be anywhere; the losses are the caller's to keep."""
        self._rates.follow(self._optimizers)
        if self._inputs and _elements(inputs) > _elements(self._inputs):
            self.reset()
        if not self._inputs:
            self._inputs = {name: torch.empty_like(value, device=self._device) for name, value in inputs.items()}
        if not self._fits(inputs):
            return self._call({name: v.to(self._device, non_blocking=True) for name, v in inputs.items()})
        for name, buffer in self._inputs.items():
            buffer.copy_(inputs[name], non_blocking=True)
        self._calls += 1
        warm = self._calls > self._warmup and all(graph._calls >= graph._warmup for graph in self._sharing)
        if not self._cuda or self._failed or not warm:
            return self._call(self._inputs)
        # Not where the error is caught: it holds what the recording made.
        if self._graph is None and not self._try_to_record():
            return self._call(self._inputs)
        assert self._graph is not None
        self._graph.replay()
        return dict(zip(self._names, self._values.clone().unbind(), strict=True))

    def reset(self) -> None:
        """Forgets the recording, and those that share its memory: something that it writes to was replaced, as loading
        a checkpoint does."""
        # A pool that no graph uses any more cannot be used again while anything lies in it: the next one is new.
        pool = torch.cuda.graph_pool_handle() if self._stream is not None else None
        for graph in self._sharing:
            graph._graph, graph._calls, graph._inputs, graph._pool = None, 0, {}, pool
            graph._values = torch.empty(0)

    def _fits(self, inputs: Mapping[str, Tensor]) -> bool:
        def kind(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
            return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}

        return kind(inputs) == kind(self._inputs)

    def _call(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        try:
            return self._call_on_stream(inputs)
        except torch.OutOfMemoryError:
            if any(graph.recorded for graph in self._sharing):
                logger.error("this step ran beside the memory of a CUDA graph; --cuda_graph off does without")
            raise

    def _call_on_stream(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._stream is None:
            with self._rates.used_by(self._optimizers):
                return self._step(inputs)
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), self._rates.used_by(self._optimizers):
            losses = self._step(inputs)
        current.wait_stream(self._stream)
        return losses

    def _try_to_record(self) -> bool:
        try:
            self._record()
        except RuntimeError as error:
            # The end of a recording that an error broke off raises another, which only says so.
            first = f" (after: {error.__context__})" if error.__context__ is not None else ""
            message = f"the step cannot be recorded (--cuda_graph off does without): {error}{first}"
            if self._required:
                raise RuntimeError(message) from error
            logger.warning("%s; going on without a CUDA graph", message)
            self._abandon()
            return False
        return True

    def _abandon(self) -> None:
        """Undoes what a recording that failed has left behind, and makes it the last, also of those that share its
        memory: the generators get other states below, and a graph would go on with those that it knows, and draw what
        others have drawn."""
        for graph in self._sharing:
            graph._failed, graph._graph, graph._values = True, None, torch.empty(0)
        for optimizer in self._optimizers:  # gradients that were only recorded
            optimizer.zero_grad(set_to_none=True)
        if self._forget is not None:
            self._forget()
        # A generator waits for the end of the recording that it is part of, and refuses to draw outside: its copy does
        # not. A recording executes nothing, so the numbers go on where they were.
        for generator in (*torch.cuda.default_generators, *self._generators):
            generator.graphsafe_set_state(generator.clone_state())

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        gc.collect()  # what earlier steps left in reference cycles must not be freed while recording
        # Other threads (a loader's that pins memory) may go on; they do not touch what is recorded.
        recording = torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        # The stream, too, on the outside: a recording that fails to end does not restore the one that was current.
        stream = torch.cuda.stream(self._stream)
        begun = False
        try:
            with torch.cuda.device(self._device), self._rates.used_by(self._optimizers), stream, recording:
                begun = True
                losses = self._step(self._inputs)
                self._values = torch.stack([loss.detach().float() for loss in losses.values()])
        except RuntimeError:
            if begun:
                self._give_back_memory_of(graph)
            raise
        self._graph, self._names = graph, tuple(losses)

    def _give_back_memory_of(self, graph: torch.cuda.CUDAGraph) -> None:
        """Does for a recording that was broken off what its end and the graph's destructor would have done."""
        try:
            graph.pool()
        except RuntimeError:  # the recording did not end
            index = self._device.index if self._device.index is not None else torch.cuda.current_device()
            # While the allocator believes that something is recorded, it does not free what other streams have used.
            with contextlib.suppress(RuntimeError):  # it has been told already
                torch._C._cuda_endAllocateToPool(index, self._pool)
            torch._C._cuda_releasePool(index, self._pool)


def _elements(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


class _Rates:
    """Learning rates as tensors on the device. The optimizers' own stay numbers, which schedules and checkpoints see;
    the tensors take their place while a step runs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._values: dict[int, tuple[float, Tensor]] = {}  # by parameter group

    def follow(self, optimizers: Sequence[Optimizer]) -> None:
        """Brings the tensors up to date; nothing waits for the device."""
        for group in self._groups(optimizers):
            known = self._values.get(id(group))
            rate = float(group["lr"])
            if known is None:
                # On the CPU the optimizer reads the number, of which float64 keeps every bit.
                dtype = torch.float64 if self._device.type == "cpu" else torch.float32
                self._values[id(group)] = rate, torch.full((), rate, dtype=dtype, device=self._device)
            elif known[0] != rate:
                self._values[id(group)] = rate, known[1].fill_(rate)

    @contextlib.contextmanager
    def used_by(self, optimizers: Sequence[Optimizer]) -> Iterator[None]:
        """While this lasts, the optimizers read the tensors and can be recorded."""
        groups = list(self._groups(optimizers))
        saved = [(group["lr"], group.get("capturable")) for group in groups]
        for group in groups:
            group["lr"] = self._values[id(group)][1]
            if self._device.type == "cuda":
                group["capturable"] = True
        if self._device.type == "cuda":
            _steps_to_device(optimizers)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
                yield
        finally:
            for group, (rate, capturable) in zip(groups, saved, strict=True):
                group["lr"] = rate
                if capturable is not None:
                    group["capturable"] = capturable

    def _groups(self, optimizers: Sequence[Optimizer]) -> Iterator[dict[str, Any]]:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                if self._device.type == "cuda" or group.get("fused"):  # others turn a tensor into a number
                    yield group


def _steps_to_device(optimizers: Sequence[Optimizer]) -> None:
    """Moves step counts that were made, or saved, without a graph to their parameters."""
    for optimizer in optimizers:
        for parameter, values in optimizer.state.items():
            step = values.get("step")
            if isinstance(step, Tensor) and step.device != parameter.device:
                values["step"] = step.to(parameter.device, torch.float32)
