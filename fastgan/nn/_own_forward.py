"""The calls that a module's own forward makes, as a ``torch.fx`` graph in which its children are opaque.

A trace sees one run. Where another run could make other calls, or change something that a graph does not hold, there is
no graph but the reason why. Some of this shows in what the forward does with the stand-ins for its values, the rest in
the source of all functions that it runs.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
import inspect
import operator
import pickle
import random
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from types import CodeType, FrameType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from fastgan.nn._source import is_users, tree_of

_ASK = {"type", "callable", "id", "hasattr", "getattr", "vars", "dir"}
_GENERATED = ("torch.", "namedtuple_")  # where code without source is, that does what it seems to
_ACT = {"next", "setattr", "delattr", "exec", "eval", "open", "input", "print"}


class _RefusedError(Exception):
    """Why a trace would not be the forward."""


class _Proxy(fx.Proxy):
    """Refuses questions of which a graph knows nothing, and records ``a += b``, which fx takes for ``a = a + b``."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """Asked for by isinstance."""
        if not _torch_asks():
            raise _RefusedError("its forward asks for the types of values")
        return _Proxy

    def __hash__(self) -> int:
        """Asked for by dicts and sets."""
        if not _torch_asks():
            raise _RefusedError("its forward looks up a value in a dict or a set")
        return object.__hash__(self)

    def __getattr__(self, name: str) -> fx.proxy.Attribute:
        if not hasattr(Tensor, name):
            raise _RefusedError(f"its forward asks a value for {name}, which not every tensor has")
        return _Attribute(self, name)

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


class _Attribute(_Proxy, fx.proxy.Attribute):
    pass


def _torch_asks() -> bool:
    """Whether PyTorch runs what uses a proxy."""
    asking: str = sys._getframe(2).f_globals.get("__name__", "")
    return asking.startswith("torch.")


class _OwnForward(fx.Tracer):
    proxy_buffer_attributes = True  # or a change of a buffer in place would happen now, and not be recorded

    def trace(self, *args: Any, **kwargs: Any) -> fx.Graph:
        self.modes = _modes()
        with _watched():
            return super().trace(*args, **kwargs)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _modes() != self.modes:
            raise _RefusedError("a part of its forward runs without gradients, in another autocast or in a checkpoint")
        return super().create_node(*args, **kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Has the source of every function read when it is called, and a trace refused before what it would lose.

    What interrupts the trace is none of it: garbage is collected afterwards, and handlers of signals are let through,
    as is what the first import of a module runs.
    """
    importing = 0  # modules, one within the other

    def on_call(frame: FrameType, event: str, _: object) -> None:
        nonlocal importing
        if frame.f_code.co_name == "_find_and_load" and frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            importing += (event == "call") - (event == "return")
        module = frame.f_globals.get("__name__", "")
        known = event != "call" or importing > 0 or module == __name__ or module.startswith(_GENERATED)
        if not known and (reason := _why_not(frame.f_code)) is not None and not _handles_signal(frame):
            raise _RefusedError(reason)

    before: Any = sys.getprofile()
    collects = gc.isenabled()
    gc.disable()
    sys.setprofile(on_call)
    try:
        yield
    finally:
        sys.setprofile(before if callable(before) else None)
        if hasattr(before, "enable"):  # cProfile's
            before.enable()
        if collects:
            gc.enable()


def _handles_signal(frame: FrameType | None) -> bool:
    handlers = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()} - {None}
    while frame is not None and frame.f_code not in handlers:
        frame = frame.f_back
    return frame is not None


@functools.lru_cache(maxsize=4096)
def _why_not(code: CodeType) -> str | None:
    """What ``code`` does that a trace would lose or keep as it was, if anything."""
    if not is_users(code):
        return None
    tree = tree_of(code)
    if tree is None:
        return f"the source of {code.co_name}, which its forward calls, cannot be read"
    nodes = list(ast.walk(tree))
    # What may be a value of the forward. The module itself is none.
    local = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    local = (local | {node.arg for node in nodes if isinstance(node, ast.arg)}) - {"self"}
    return next((f"its forward {reason}" for node in nodes if (reason := _lost(node, local)) is not None), None)


def _lost(node: ast.AST, local: set[str]) -> str | None:
    """What of ``node`` is not in a trace."""
    of_values = lambda part: any(isinstance(n, ast.Name) and n.id in local for n in ast.walk(part))
    if isinstance(node, ast.Compare) and any(isinstance(op, (ast.Is, ast.IsNot)) for op in node.ops):
        return "asks which object a value is" if of_values(node) else None
    if isinstance(node, ast.Call) and _name(node.func) in _ASK and any(map(of_values, node.args[:1])):
        return "asks for the types of values"
    if isinstance(node, ast.Match):
        return "asks for the types of values"
    if getattr(node, "handlers", None):
        return "handles exceptions"
    if isinstance(node, ast.Name) and node.id in _ACT - local:
        return f"calls {node.id}"
    if isinstance(node, ast.Global):
        return f"sets {', '.join(node.names)}"
    if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
        return f"sets {node.attr}"
    if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load) and _root(node) not in local:
        return f"sets an item of {ast.unparse(node.value)}"
    if isinstance(node, ast.Expr) and isinstance(call := node.value, ast.Call) and _root(call) not in local:
        in_place = isinstance(call.func, ast.Attribute) and call.func.attr.endswith("_")
        return None if in_place else f"calls {ast.unparse(call.func)} for its effect"
    return None


def _name(node: ast.AST) -> str | None:
    return node.id if isinstance(node, ast.Name) else None


def _root(node: ast.AST) -> str | None:
    """``x`` of ``x.y[0].z()``."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return _name(node)


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
    parameters = inspect.signature(forward).parameters.values()
    if optional := [p.name for p in parameters if p.default is None]:
        return f"its forward may be called without {', '.join(optional)}"
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return "its forward takes any number of arguments"
    before, random_states = _held_by(module), _random_states()
    graphs = []
    try:
        with _other_modes(module):
            graphs.append(_OwnForward().trace(module))
        graphs.append(_OwnForward().trace(module))
    except _RefusedError as reason:
        return str(reason)
    except Exception as error:  # a trace runs the user's code on stand-ins: anything may be raised
        return f"torch.fx cannot trace its forward ({': '.join((type(error).__name__, *str(error).splitlines()[:1]))})"
    finally:
        makes_tensors = any(name.startswith("_tensor_constant") for name in vars(module))
        changed = _restore(before)
        draws = _random_states() != random_states
        _set_random_states(random_states)
    if draws:
        return "its forward draws random numbers that a trace would keep"
    if changed:
        return "its forward makes tensors of its own" if makes_tensors else "its forward changes what it holds"
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
