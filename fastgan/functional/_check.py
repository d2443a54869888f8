"""Argument checks: every message names the argument, what was got and what was expected."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from fastgan._ranges import check_choice
from fastgan.kernels.library import of_extension

# Whether both are contiguous tensors on the CPU, of one shape and floating dtype, not empty: in 0.2 µs. Without
# fastgan._C each tensor is checked by itself.
alike: Callable[[object, object], bool] = of_extension("alike", lambda a, b: False)

_strided = torch.strided
FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def tensor(operator: str, name: str, value: object) -> None:
    if type(value) is not Tensor and not isinstance(value, Tensor):  # isinstance takes longer
        raise TypeError(f"{operator}: {name} must be a Tensor, got {type(value).__name__}")
    if value.layout is not _strided:
        raise TypeError(f"{operator}: {name} must be a dense tensor, got layout {value.layout}")
    if value.is_nested:  # strided, by its own account
        raise TypeError(f"{operator}: {name} must be a dense tensor, got a nested one")


def number(operator: str, name: str, value: Any, least: float = -math.inf) -> None:
    if type(value) is float and least <= value < math.inf and value != -math.inf:
        return
    if not is_number(value):
        raise TypeError(f"{operator}: {name} must be a number, got {described(value)}")
    if not least <= value < math.inf or value == -math.inf:  # NaN fails every comparison
        bound = "" if least == -math.inf else f" of at least {least:g}"
        raise ValueError(f"{operator}: {name} must be a finite number{bound}, got {value!r}")


def is_number(value: object) -> bool:
    """Of a kind that tensors calculate with as a float: Python's, NumPy's or a compiled program's."""
    kinds: tuple[type[Any], ...] = (Real, torch.SymFloat, torch.SymInt)
    return isinstance(value, kinds) and not isinstance(value, (bool, Fraction))


def integer(operator: str, name: str, value: Any, least: int | None = None) -> None:
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, (Integral, torch.SymInt))):
        raise TypeError(f"{operator}: {name} must be an integer, got {described(value)}")
    if least is not None and value < least:
        raise ValueError(f"{operator}: {name} must be at least {least}, got {value}")


def generator(operator: str, value: object) -> None:
    if not (value is None or isinstance(value, torch._C.Generator)):
        raise TypeError(f"{operator}: generator must be a torch.Generator or None, got {described(value)}")


def floating(operator: str, name: str, value: Tensor) -> None:
    """A dense tensor of a floating dtype."""
    tensor(operator, name, value)
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
    check_choice(f"{operator}: {name}", value, choices)


def described(value: object) -> str:
    return type(value).__name__ if isinstance(value, Tensor) else repr(value)
