"""Argument checks: every message names the argument, what was got and what was expected."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def tensor(operator: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{operator}: {name} must be a Tensor, got {type(value).__name__}")


def floating(operator: str, name: str, value: Tensor) -> None:
    if value.dtype not in FLOATING:
        expected = ", ".join(str(d).removeprefix("torch.") for d in FLOATING)
        raise TypeError(f"{operator}: {name} must have a floating dtype ({expected}), got {value.dtype}")


def same_device(operator: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.device != other.device:
        raise ValueError(f"{operator}: {name} must be on {other_name}'s device {other.device}, got {value.device}")


def same_dtype(operator: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.dtype != other.dtype:
        raise TypeError(f"{operator}: {name} must have {other_name}'s dtype {other.dtype}, got {value.dtype}")


def shape(operator: str, name: str, value: Tensor, expected: Sequence[int], meaning: str) -> None:
    if value.shape != expected and tuple(value.shape) != tuple(expected):  # a torch.Size differs from every list
        raise ValueError(f"{operator}: {name} must have shape {list(expected)} ({meaning}), got {list(value.shape)}")


def choice(operator: str, name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{operator}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def not_differentiable(operator: str, what: str) -> str:
    """The message with which fused kernels refuse a derivative that they do not have."""
    return (
        f"{operator}: {what} is not supported by the fused kernels, which are differentiable twice; "
        "run it under fastgan.use_backend('reference')"
    )
