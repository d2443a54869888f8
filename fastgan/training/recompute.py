"""Activation checkpointing: a chain of layers that keeps few activations and recomputes the rest.

A layer with weights and the norms and activations that follow it are a segment. Of a segment only the input is kept;
the backward pass runs it again and differentiates it then (Chen et al. 2016, arXiv:1604.06174). What a training pass
writes (the running statistics of batch norm, the vectors of spectral norm's power iteration) is put back to what it was
for the second run, and after it to what it has become: so the gradients are those without recomputing, to the bit.

The pass of a gradient penalty is left alone. Its derivative for the input is differentiated once more and holds on to
the activations itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHAINS = ("net", "trunk", "encoder", "decoder")  # of the networks of fastgan.models.gan


def recompute_activations(network: nn.Module) -> None:
    """Makes the chains of a network of :mod:`fastgan.models.gan` recompute; names and states stay.

    Raises:
        ValueError: the network has no chain of layers.
    """
    chains = [child for name, child in network.named_children() if name in CHAINS and isinstance(child, nn.Sequential)]
    if not chains:
        raise ValueError(f"recompute: {type(network).__name__} has no chain of layers to cut into segments")
    for chain in chains:
        chain.__class__ = Recomputing


def recomputing(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """``network`` as one segment: a call that keeps its input alone."""
    random = any(isinstance(m, nn.Dropout) and m.p > 0 for m in network.modules())  # else no random state is kept
    contexts = partial(_contexts, _written(network))
    return partial(checkpoint, network, use_reentrant=False, preserve_rng_state=random, context_fn=contexts)


class Recomputing(nn.Sequential):
    """A chain of segments."""

    def forward(self, x: Tensor) -> Tensor:
        penalised = x.requires_grad and x.is_leaf  # points whose gradient is asked for
        if not torch.is_grad_enabled() or penalised:
            return super().forward(x)  # type: ignore[no-any-return, no-untyped-call]
        for segment in self._segments():
            x = recomputing(segment)(x)
        return x

    def _segments(self) -> list[nn.Sequential]:
        segments: list[list[nn.Module]] = [[]]
        for layer in self:
            if segments[-1] and any(parameter.dim() > 1 for parameter in layer.parameters()):
                segments.append([])
            segments[-1].append(layer)
        return [nn.Sequential(*layers) for layers in segments]


def _written(segment: nn.Module) -> list[Tensor]:
    """The buffers that a training pass may write into: those that are saved."""
    return [
        buffer
        for module in segment.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set
    ]


def _contexts(buffers: Sequence[Tensor]) -> tuple[Any, Any]:
    """The contexts of a segment's first run, before which this is called, and of its later ones."""
    return contextlib.nullcontext(), _AsBefore(buffers)


class _AsBefore:
    """In this context the buffers have the values of when it was made."""

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        self._buffers = buffers
        self._before = [buffer.clone() for buffer in buffers]
        self._now: list[Tensor] = []

    def __enter__(self) -> None:
        self._now = [buffer.clone() for buffer in self._buffers]
        self._put(self._before)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._put(self._now)

    def _put(self, values: Sequence[Tensor]) -> None:
        for buffer, value in zip(self._buffers, values, strict=True):
            buffer.data.copy_(value)  # as batch norm's own kernels write: no graph holds on to the old value
