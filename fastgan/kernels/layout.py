"""Memory layouts that kernels read and write: dense, channels first or channels last, for any number of dims."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# By the number of dimensions; PyTorch has no name for [N, C, L] with channels last.
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_channels_last(x: Tensor) -> bool:
    """Whether ``x`` [N, C, *spatial] is to be treated as channels last: its channels lie next to each other.

    Where both layouts describe the same memory (one channel, or one spatial element), this is False.
    """
    if x.dim() < 3 or x.is_contiguous():
        return False
    return x.stride(1) == 1 and x.size(1) > 1


def dense(x: Tensor, channels_last: bool) -> Tensor:
    """``x`` itself if it is dense in the given layout, else a copy that is."""
    if is_dense(x, channels_last):
        return x
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x.contiguous()


def is_dense(x: Tensor, channels_last: bool) -> bool:
    """Whether ``x`` is dense in the given layout."""
    if not channels_last:
        return x.is_contiguous()
    memory_format = _CHANNELS_LAST.get(x.dim())
    if memory_format is not None:  # the same, in half the time
        return x.is_contiguous(memory_format=memory_format)
    return x.movedim(1, -1).is_contiguous()


def empty(shape: Sequence[int], channels_last: bool, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised dense tensor [N, C, *spatial] in the given layout."""
    if not channels_last:
        return torch.empty(shape, dtype=dtype, device=device)
    n, c, *spatial = shape
    # One operator, not a permutation of another's result: between convolutions, with caches cold, each takes 30 µs.
    strides, step = [1], c
    for size in reversed(spatial):
        strides.insert(1, step)
        step *= size
    return torch.empty_strided(shape, (step, *strides), dtype=dtype, device=device)


def unflatten(flat: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    """The dense tensor [N, C, *spatial] in the given layout, or of any shape, whose memory ``flat`` is."""
    if not channels_last:
        return flat.view(shape)
    n, c, *spatial = shape
    return flat.view(n, *spatial, c).movedim(-1, 1)
