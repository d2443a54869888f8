"""The calls that a module's own forward makes, as a ``torch.fx`` graph in which its children are opaque.

A trace sees one run. Where another run could make other calls, or change something that a graph does not hold, there is
no graph but the reason why.
"""

from __future__ import annotations

import contextlib
import dis
import inspect
import operator
import pickle
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily


class _Proxy(fx.Proxy):
    """Records ``a += b`` as what it is; fx itself takes it for ``a = a + b``."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """Asked for by isinstance, of which a graph knows nothing."""
        asking = sys._getframe(1).f_globals.get("__name__", "")
        if not asking.startswith("torch."):
            raise fx.proxy.TraceError("it asks for the types of values")
        return _Proxy

    def _in_place(self, function: Callable[..., Any], other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.itruediv, other)


class _OwnForward(fx.Tracer):
    proxy_buffer_attributes = True  # or a change of a buffer in place would happen now, and not be recorded

    def trace(self, *args: Any, **kwargs: Any) -> fx.Graph:
        self.modes = _modes()
        return super().trace(*args, **kwargs)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _modes() != self.modes:
            raise fx.proxy.TraceError("a part of it runs without gradients, in another autocast or in a checkpoint")
        return super().create_node(*args, **kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _modes() -> tuple[object, ...]:
    """What a trace does not record, but its operations depend on."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")),
        *(torch.get_autocast_dtype(device) for device in ("cpu", "cuda")),
        torch._C._autograd._top_saved_tensors_default_hooks(True),
    )


@contextlib.contextmanager
def _other_modes(module: nn.Module) -> Iterator[None]:
    """Other modes than usual: what a forward sets to the usual ones is a change here, and what it asks for differs.

    The training flags are the opposite in ``module`` and everything it holds.
    """
    before = [(device, torch.is_autocast_enabled(device)) for device in ("cpu", "cuda")]
    training = {m: m.training for m in module.modules()}
    try:
        for m, flag in training.items():
            m.training = not flag
        for device, enabled in before:
            torch.set_autocast_enabled(device, not enabled)
        with torch.set_grad_enabled(not torch.is_grad_enabled()):
            yield
    finally:
        for m, flag in training.items():
            m.training = flag
        for device, enabled in before:
            torch.set_autocast_enabled(device, enabled)


def trace_own_forward(module: nn.Module) -> fx.Graph | str:
    """The graph of ``module``'s own forward with its children as opaque calls, or why it cannot be had."""
    if isinstance(module, fx.GraphModule):
        return module.graph
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a ScriptModule"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    forward = type(module).forward
    if any(i.opname == "LOAD_GLOBAL" and i.argval == "type" for i in dis.get_instructions(forward)):
        return "its forward asks for the types of values"
    if optional := [p.name for p in inspect.signature(forward).parameters.values() if p.default is None]:
        return f"its forward may be called without {', '.join(optional)}"
    before, random_states = _contents(vars(module)), _random_states()
    graphs = []
    try:
        with _other_modes(module):
            graphs.append(_OwnForward().trace(module))
        graphs.append(_OwnForward().trace(module))
    except Exception as error:  # a trace runs the user's code on stand-ins: anything may be raised
        return f"torch.fx cannot trace its forward ({type(error).__name__}: {str(error).splitlines()[0]})"
    finally:
        changed = _restore(vars(module), before)
        draws = _random_states() != random_states
        _set_random_states(random_states)
    if draws:
        return "its forward draws random numbers that a trace would keep"
    if changed:
        constants = all(name.startswith("_tensor_constant") for name in changed)
        return "its forward makes tensors of its own" if constants else f"its forward sets {', '.join(sorted(changed))}"
    if str(graphs[0]) != str(graphs[1]):
        return "its forward depends on the training flag, or on whether gradients or autocast are enabled"
    return graphs[1]


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


def _contents(attributes: dict[str, Any]) -> dict[str, tuple[Any, list[Any] | None]]:
    """The values of attributes and, of those that are containers, what they hold."""

    def held(value: Any) -> list[Any] | None:
        if isinstance(value, dict):
            return [*value.keys(), *value.values()]
        return list(value) if isinstance(value, (list, set)) else None

    return {name: (value, held(value)) for name, value in attributes.items()}


def _restore(attributes: dict[str, Any], before: dict[str, tuple[Any, list[Any] | None]]) -> set[str]:
    """Gives attributes their values from before; returns the names of those that had others."""
    now = _contents(attributes)
    changed = {name for name in now.keys() | before.keys() if not _is_same(now.get(name), before.get(name))}
    for name in changed:
        if name not in before:
            del attributes[name]
            continue
        value, held = before[name]
        attributes[name] = value
        if held is not None:
            value.clear()
            if isinstance(value, dict):
                value.update(zip(held[: len(held) // 2], held[len(held) // 2 :], strict=True))
            else:
                (value.extend if isinstance(value, list) else value.update)(held)
    return changed


def _is_same(a: tuple[Any, list[Any] | None] | None, b: tuple[Any, list[Any] | None] | None) -> bool:
    if a is None or b is None or a[0] is not b[0] or a[1] is None or b[1] is None:
        return a is not None and b is not None and a[0] is b[0]
    return len(a[1]) == len(b[1]) and all(map(operator.is_, a[1], b[1]))
