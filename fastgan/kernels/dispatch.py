"""Which backend serves a call, and why another did not.

Every operator has a module of its stem under ``fastgan.kernels.native`` and/or ``fastgan.kernels.triton``. Such a
module has ``supports(call) -> str | None``: None when it serves the call, else the reason why not. The reference
backend (``fastgan.reference``, plain PyTorch) serves everything.

A backend is chosen once, in the forward pass, and handed down to the backward passes: autograd may run those on
threads that do not see this context.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch

BACKENDS = ("auto", "triton", "native", "reference")
_ORDER = {"cuda": ("triton", "native"), "cpu": ("native",)}
# What each operator's kernels are called: operator name -> stem of its modules.
OPERATORS = {
    "instance_norm_act": "instance_norm",
    "weighted_l1": "l1",
    "interpolate": "interpolate",
    "gradient_norm_penalty": "gradient_penalty",
    "wasserstein_1d": "wasserstein",
}

logger = logging.getLogger("fastgan")
_dispatch_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state
_tracing_context = torch._guards.TracingContext.try_get
_requested: contextvars.ContextVar[str | None] = contextvars.ContextVar("fastgan_backend", default=None)
_fallback_logged: set[str] = set()
_selected: dict[tuple[Any, ...], str] = {}  # by what a Call holds: a plain tuple is quicker to look up
_FEW = 2**19  # elements, up to which a compiled loop and the calls that it saves are faster than a kernel
# The dictionary behind os.environ, which os.environ.get takes ten times as long to look into.
_environment, _variable = os.environ._data, os.environ.encodekey("FASTGAN_BACKEND")  # type: ignore[attr-defined]


class BackendError(RuntimeError):
    """An explicitly chosen backend cannot serve a call."""


@dataclass(frozen=True)
class Call:
    """What a backend must know of a call to say whether it serves it."""

    operator: str
    device: str  # "cpu", "cuda", ...
    dtype: torch.dtype
    facts: tuple[str, ...] = ()  # further facts that are true of it, by operator: "long_rows", ...
    requested: str = "auto"


def requested_backend() -> str:
    """The backend in force: that of the innermost :class:`use_backend`, else FASTGAN_BACKEND, else ``auto``."""
    name = _requested.get()
    if name is not None:
        return name
    if _variable not in _environment:
        return "auto"
    name = os.environ["FASTGAN_BACKEND"]
    if name not in BACKENDS:
        raise BackendError(f"FASTGAN_BACKEND must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Chooses the backend of every operator called in the context.

    Args:
        name: ``auto`` (the fastest that serves the call, and a logged reason once per operator when only the
            reference does), ``triton``, ``native`` or ``reference``. An explicit choice that cannot serve a call
            raises :class:`BackendError` and says why.

    The choice is read when an operator's forward pass runs (under ``torch.compile``: when it is traced) and holds
    for its backward passes. ``torch.jit.trace`` and ``torch.onnx.export`` record the reference.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    token = _requested.set(name)
    try:
        yield
    finally:
        _requested.reset(token)


def select(operator: str, x: torch.Tensor, *facts: str) -> str:
    """The name of the backend that serves this call of ``operator`` on a tensor like ``x``."""
    if _tracing_state() is not None:
        return _recorded(operator, "torch.jit.trace")
    if _dispatch_modes() and _exports_onnx():
        return _recorded(operator, "torch.onnx.export")
    requested = _requested.get()
    if requested is None:
        requested = requested_backend() if _variable in _environment else "auto"
    key = (operator, "cpu" if x.is_cpu else x.device.type, x.dtype, facts, requested)
    chosen = _selected.get(key)
    if chosen is None:
        chosen = _selected[key] = _choose(Call(*key))
    return chosen


def in_graph(backend: str, elements: int) -> str:
    """``backend``, or the reference where a graph is compiled for the CPU and a kernel has few ``elements``.

    A compiled graph calls our operators through torch.library, one by one, in 20 to 50 µs each; inductor makes one loop
    of plain PyTorch and what is around it.
    """
    if not _dispatch_modes() or backend != "native":  # whatever traces a graph is a mode
        return backend
    return "reference" if elements < _FEW and _is_compiled() and requested_backend() == "auto" else backend


def _is_compiled() -> bool:
    # Before torch 2.13 the first is false in a function that is marked allow_in_graph.
    return torch.compiler.is_compiling() or _tracing_context() is not None


def _exports_onnx() -> bool:
    onnx = sys.modules.get("torch.onnx")
    return onnx is not None and onnx.is_in_onnx_export()


def _recorded(operator: str, by: str) -> str:
    """The backend under tools that record PyTorch's operators alone: not what a kernel wrote."""
    requested = requested_backend()
    if requested in ("auto", "reference"):
        return "reference"
    raise BackendError(f"backend {requested!r} cannot serve {operator}: {by} records PyTorch's operators alone")


def order(device: str) -> tuple[str, ...]:
    """The backends that ``auto`` tries for a device type, best first."""
    return (*_ORDER.get(device, ()), "reference")


def _choose(call: Call) -> str:
    if call.requested == "reference":
        return "reference"
    if call.requested != "auto":
        reason = why_not(call.requested, call)
        if reason is not None:
            raise BackendError(f"backend {call.requested!r} cannot serve {call.operator}: {reason}")
        return call.requested
    reasons = []
    for name in order(call.device)[:-1]:
        reason = why_not(name, call)
        if reason is None:
            return name
        reasons.append(f"{name}: {reason}")
    if call.operator not in _fallback_logged:
        _fallback_logged.add(call.operator)
        logger.warning(
            "%s falls back to plain PyTorch on %s (%s)",
            call.operator,
            call.device,
            "; ".join(reasons) or f"no fused kernels for device {call.device!r}",
        )
    return "reference"


def why_not(backend: str, call: Call) -> str | None:
    """None when ``backend`` serves ``call``, else the reason why not."""
    if backend == "reference":
        return None
    stem = OPERATORS[call.operator]
    loaded = _load(backend, stem)
    if isinstance(loaded, str):
        return loaded
    reason: str | None = loaded.supports(call)
    return reason


@cache
def kernels(backend: str, stem: str) -> ModuleType:
    """The module ``fastgan.kernels.<backend>.<stem>``; :class:`BackendError` if it cannot be loaded."""
    loaded = _load(backend, stem)
    if isinstance(loaded, str):
        raise BackendError(f"backend {backend!r} cannot serve {stem}: {loaded}")
    return loaded


@cache
def _load(backend: str, stem: str) -> ModuleType | str:
    name = f"fastgan.kernels.{backend}.{stem}"
    if importlib.util.find_spec(name) is None:
        return f"there is no {backend} kernel of this operator"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        return f"{type(error).__name__}: {error}"
