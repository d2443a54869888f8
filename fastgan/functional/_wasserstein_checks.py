"""Checks of the arguments of :func:`fastgan.functional.wasserstein_1d` and its relatives, and their common form."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastgan.functional import _check


def prepare(
    name: str, x: Tensor, y: Tensor, x_weights: Tensor | None, y_weights: Tensor | None, p: float
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The checked arguments, of one dtype, samples and weights expanded to one leading shape."""
    check_order(name, p)
    if x_weights is None and y_weights is None and are_plain(x, y):
        return x, y, None, None
    for what, samples in (("x", x), ("y", y)):
        _check.tensor(name, what, samples)
        if samples.dim() == 0 or samples.size(-1) == 0:
            raise ValueError(
                f"{name}: {what} must hold at least one sample in its last dimension, got shape {list(samples.shape)}"
            )
    _check.same_device(name, "y", y, "x", x)
    dtype, other = dtype_of(name, "x", x), dtype_of(name, "y", y)
    if dtype != other:
        dtype = torch.promote_types(dtype, other)
    x_weights = _weights(name, "x_weights", x_weights, "x", x)
    y_weights = _weights(name, "y_weights", y_weights, "y", y)
    if x.shape != y.shape and x.shape[:-1] != y.shape[:-1]:
        try:
            rows = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1])
        except RuntimeError:
            raise ValueError(
                f"{name}: the leading shapes of x and y must broadcast, got {list(x.shape)} and {list(y.shape)}"
            ) from None
        x, y = x.expand(*rows, -1), y.expand(*rows, -1)
    if x_weights is not None:
        x_weights = x_weights.expand(x.shape)
    if y_weights is not None:
        y_weights = y_weights.expand(y.shape)
    x = x if x.dtype == dtype else x.to(dtype)
    y = y if y.dtype == dtype else y.to(dtype)
    return x, y, x_weights, y_weights


def check_order(name: str, p: Any) -> None:
    # A compiled program's own number may be symbolic; the kernels fix it.
    if type(p) is float and p >= 1:
        return
    if not _check.is_number(p) or not p >= 1:
        raise ValueError(f"{name}: p must be a number in [1, inf], got {p!r}")


def are_plain(x: Tensor, y: Tensor) -> bool:
    """Whether x and y are so alike, and so usual, that there is nothing to check: the most frequent call."""
    return (
        type(x) is Tensor
        and type(y) is Tensor
        and x.is_cpu
        and y.is_cpu
        and x.layout is y.layout is torch.strided
        and x.dtype == y.dtype
        and x.dtype in _check.FLOATING
        and x.dim() > 0
        and x.shape == y.shape
        and x.numel() > 0
    )


def dtype_of(name: str, what: str, value: Tensor) -> torch.dtype:
    """The floating dtype in which ``value`` is taken: its own, or for integers the default one."""
    dtype = value.dtype
    if dtype.is_complex:
        raise TypeError(f"{name}: {what} must be real, got {dtype}")
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    elif dtype not in _check.FLOATING:
        _check.floating(name, what, value)
    return dtype


def _weights(name: str, what: str, weights: Tensor | None, of: str, samples: Tensor) -> Tensor | None:
    if weights is None:
        return None
    _check.tensor(name, what, weights)
    _check.same_device(name, what, weights, of, samples)
    dtype = dtype_of(name, what, weights)
    try:
        fits = torch.broadcast_shapes(weights.shape, samples.shape) == samples.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name}: {what} must broadcast to {of}'s shape {list(samples.shape)}, got {list(weights.shape)}"
        )
    return weights.to(torch.float64 if not weights.dtype.is_floating_point else dtype)


def check_masses(name: str, *weights: Tensor | None) -> None:
    for what, w in zip(("x_weights", "y_weights"), weights, strict=True):
        if w is None or not readable(w):
            continue
        total = w.detach().sum(-1, dtype=torch.float64)
        # A NaN fails the comparisons; a negative weight may hide in a positive total.
        if not bool(((total > 0) & (total < math.inf)).all() & (w.numel() == 0 or w.detach().min() >= 0)):
            least = float(w.detach().min())
            raise ValueError(
                f"{name}: {what} must be non-negative with a positive, finite sum in every row, got a least weight of "
                f"{least} and sums from {float(total.min())} to {float(total.max())}"
            )


def readable(t: Tensor) -> bool:
    """Whether the values may be looked at: not while a program is traced, transformed or captured."""
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    if type(t) not in (Tensor, torch.nn.Parameter):
        return False
    return not (t.is_meta or (t.is_cuda and torch.cuda.is_current_stream_capturing()))
