"""What a trace may change, as it was before: what a module holds, and the states of random generators."""

from __future__ import annotations

import operator
import pickle
import random
from collections import deque
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily


class Snapshot:
    """What can be reached from ``module``, and the states of random generators, at this moment."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.held = _held_by(module)
        self.random_states = _random_states()

    def restore(self) -> str | None:
        """Puts everything back; says what the module's forward had changed, if anything."""
        makes_tensors = any(name.startswith("_tensor_constant") for name in vars(self.module))
        changed = _restore(self.held)
        draws = _random_states() != self.random_states
        _set_random_states(self.random_states)
        if draws:
            return "its forward draws random numbers that a trace would keep"
        if changed:
            return "its forward makes tensors of its own" if makes_tensors else "its forward changes what it holds"
        return None


_RandomStates = tuple[bytes, object, bytes]  # of PyTorch's CPU generator, of Python, of NumPy


def _random_states() -> _RandomStates:
    with unset_fake_temporarily():  # a model on tensors without memory, too, has these
        drawn = torch.get_rng_state().numpy().tobytes()
    return drawn, random.getstate(), pickle.dumps(np.random.get_state())  # noqa: NPY002


def _set_random_states(states: _RandomStates) -> None:
    with unset_fake_temporarily():
        torch.set_rng_state(torch.frombuffer(bytearray(states[0]), dtype=torch.uint8))
    random.setstate(states[1])  # type: ignore[arg-type]
    np.random.set_state(pickle.loads(states[2]))  # noqa: NPY002


def _held_by(module: nn.Module) -> list[tuple[Any, list[Any]]]:
    """Every dict, list, set and deque that can be reached from ``module``, attributes included, and what it holds."""
    found: list[tuple[Any, list[Any]]] = []
    seen: set[int] = set()
    todo: list[Any] = [module]
    while todo:
        value = todo.pop()
        if id(value) in seen or isinstance(value, (type, ModuleType)):
            continue
        seen.add(id(value))
        if isinstance(value, (dict, list, set, deque)):
            found.append((value, _contents(value)))
        if isinstance(value, (dict, list, set, deque, tuple, frozenset)):
            todo += _contents(value)
        if isinstance(attributes := getattr(value, "__dict__", None), dict):
            todo.append(attributes)
    return found


def _contents(value: Any) -> list[Any]:
    return [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)


def _restore(before: list[tuple[Any, list[Any]]]) -> bool:
    """Puts back what :func:`_held_by` found; whether anything was another."""
    changed = False
    for value, held in before:
        now = _contents(value)
        if len(now) == len(held) and all(map(operator.is_, now, held)):
            continue
        changed = True
        value.clear()
        if isinstance(value, dict):
            value.update(zip(held[: len(held) // 2], held[len(held) // 2 :], strict=True))
        else:
            (value.update if isinstance(value, set) else value.extend)(held)
    return changed
