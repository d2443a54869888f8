"""The calls that a module's own forward makes, as a ``torch.fx`` graph in which its children are opaque.

A trace sees one run. Where another run could make other calls, or change something that a graph does not hold, there is
no graph but the reason why. It shows

- before the trace, in the forward's signature;
- during it, in what is asked of the stand-ins for values, in modes that change, and in the source of every function
  that is run (``unrecorded``);
- after it, in what it has changed (``snapshot``), and in a second trace under other modes.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import operator
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastgan.nn._fuse.snapshot import Snapshot
from fastgan.nn._fuse.unrecorded import unrecorded

_GENERATED = ("torch.", "namedtuple_")  # where code without source is, that does what it seems to


def trace_own_forward(module: nn.Module) -> fx.Graph | str:
    """The graph of ``module``'s own forward with its children as opaque calls, or why it cannot be had."""
    if isinstance(module, fx.GraphModule):
        return module.graph
    if (reason := _why_not(module)) is not None:
        return reason
    before = Snapshot(module)
    try:
        with _other_modes(module):
            in_other_modes = _OwnForward().trace(module)
        graph = _OwnForward().trace(module)
    except _RefusedError as refused:
        return str(refused)
    except Exception as error:  # a trace runs the user's code on stand-ins: anything may be raised
        return f"torch.fx cannot trace its forward ({': '.join((type(error).__name__, *str(error).splitlines()[:1]))})"
    finally:
        changed = before.restore()
    if changed is not None:
        return changed
    if str(in_other_modes) != str(graph):
        return "its forward depends on the training flag, or on whether gradients or autocast are enabled"
    return graph


def _why_not(module: nn.Module) -> str | None:
    """What shows that a trace would not be ``module``'s forward before it is made."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a ScriptModule"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    parameters = inspect.signature(type(module).forward).parameters.values()
    if optional := [p.name for p in parameters if p.default is None]:
        return f"its forward may be called without {', '.join(optional)}"
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return "its forward takes any number of arguments"
    return None


class _RefusedError(Exception):
    """Why a trace would not be the forward."""


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
        if not known and (reason := unrecorded(frame.f_code)) is not None and not _handles_signal(frame):
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
