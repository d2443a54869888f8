"""Raw operators: kernels that torch.compile, export and fake tensors can see, with no autograd of their own.

An operator's gradients live in the ``autograd.Function``s of ``fastgan.functional``; a raw operator only computes.
Registering through ``torch.library`` costs a few microseconds per call, so plain eager tensors skip it.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch.autograd import forward_ad

from fastgan.kernels import dispatch

_library = torch.library.Library("fastgan", "DEF")
# Looked up once: between convolutions, with caches cold, each step on the way to a name counts.
_Tensor, _grad_enabled = torch.Tensor, torch.is_grad_enabled
_transforms_active = torch._C._are_functorch_transforms_active
# A tensor that has left its transform is what it wraps; autograd.Function.apply does the same.
unwrapped = torch._C._functorch.unwrap_if_dead
# What torch.autograd.grad(is_grads_batched=True) hands to a backward pass: a tensor without memory.
is_batch = torch._C._functorch.is_legacy_batchedtensor
_dispatch_modes = torch._C._len_torch_dispatch_stack
# isinstance(…, torch.Tensor) is slow, so the common types are looked up.
_TENSORS = frozenset((torch.Tensor, torch.nn.Parameter))
_NO_TENSORS = frozenset((type(None), bool, int, float, str, torch.dtype, tuple, list))


_R = TypeVar("_R")


def of_extension(name: str, otherwise: Callable[..., _R]) -> Callable[..., _R]:
    """The function ``name`` of ``fastgan._C``, or ``otherwise`` where that is not built."""
    try:
        from fastgan.kernels.native._tensor import _C
    except ImportError:
        return otherwise
    function: Callable[..., _R] = getattr(_C, name)
    return function


# What a call's arguments are, told at once: only plain tensors, of which one requires a gradient (1) or none (0).
_UNKNOWN = -1
_held: Callable[[Sequence[Any]], int] = of_extension("held", lambda arguments: _UNKNOWN)


class RawOperator:
    """A kernel under the name ``torch.ops.fastgan.<name>``.

    Args:
        schema: name, arguments (those with tensors first) and results, in the syntax of ``torch.library``.
        kernel: computes the results from plain tensors.
        fake: gives empty results of the right shapes, dtypes and strides.

    Of several results, some may be None. ``torch.library`` wants a tensor for each, and gets one without elements.
    """

    def __init__(self, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
        self.name = schema.split("(", 1)[0].strip()
        self.kernel = kernel
        _library.define(schema)
        _library.impl(self.name, _complete(kernel), "CompositeExplicitAutograd")
        torch.library.register_fake(f"fastgan::{self.name}", _complete(fake), lib=_library)
        self.overload = getattr(torch.ops.fastgan, self.name).default
        # Of the arguments, as many as may hold tensors.
        self._tensors = 1 + max(k for k, a in enumerate(self.overload._schema.arguments) if "Tensor" in str(a.type))

    def __call__(self, *args: Any) -> Any:
        if not _runs_plain(args[: self._tensors]):
            return self.overload(*args)
        try:
            return self.kernel(*args)
        except RuntimeError:
            # Asked only now, for it takes as long as all else. The dispatcher calls the kernel for each of a batch, and
            # on what a tensor is that has left its transform.
            if not _wrapped(args):
                raise
        return self.overload(*args)


def _complete(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with tensors without elements, like its first argument, for results that are None."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        results = function(*args)
        if not isinstance(results, tuple):
            return results
        return tuple(args[0].new_empty(0) if result is None else result for result in results)

    return run


def kernel_of(stem: str, function: str) -> Callable[..., Any]:
    """The ``function`` of the kernels of ``stem``, of the backend that the last argument names."""

    found: dict[str, Callable[..., Any]] = {}

    def run(*args: Any) -> Any:
        kernel = found.get(args[-1])
        if kernel is None:
            kernel = found[args[-1]] = getattr(dispatch.kernels(args[-1], stem), function)
        return kernel(*args[:-1])

    return run


def is_eager(tensors: Sequence[Any]) -> bool:
    """Whether a kernel may be called on these as they are: no transform, no tracing, no subclass of tensors."""
    if _transforms_active() or forward_ad._current_level >= 0 or _dispatch_modes():
        return False
    return _held(tensors) != _UNKNOWN or _runs_plain(tensors)


def is_final(tensors: Sequence[Any]) -> bool:
    """Whether, besides, these are no batches, and nothing that a kernel makes of them is recorded.

    Then a backward pass may look at the value of its gradient, too. False where ``fastgan._C``, which alone tells, is
    not built.
    """
    if _grad_enabled() or _transforms_active() or forward_ad._current_level >= 0 or _dispatch_modes():
        return False
    return _held(tensors) != _UNKNOWN


def _runs_plain(args: Sequence[Any]) -> bool:
    """Whether a kernel sees what PyTorch does: no mode listens, and every tensor is the numbers in its memory."""
    if _dispatch_modes():
        return False
    forward_mode = forward_ad._current_level >= 0
    if not forward_mode and _held(args) != _UNKNOWN:
        return True
    for argument in args:
        if argument is None:
            continue
        kind = type(argument)
        if kind in _TENSORS:
            # A view can be the negative of its memory, as the imaginary part of a conjugate is.
            if argument.is_neg() or (forward_mode and argument._is_zerotensor()):
                return False
        elif kind is list:
            if not _runs_plain(argument):
                return False
        elif isinstance(argument, _Tensor):
            return False
    return True


def _wrapped(args: Iterable[Any]) -> bool:
    """Whether any of these is a batch, or a tensor that has left its transform."""
    return any(
        _wrapped(a) if isinstance(a, list) else isinstance(a, _Tensor) and (is_batch(a) or unwrapped(a) is not a)
        for a in args
    )


def may_need_tangents() -> bool:
    """Whether a Function's ``jvp`` may be called. Where it is compiled, forward mode is a transform and no level."""
    return _transforms_active() or forward_ad._current_level >= 0


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply(*args)`` without its inspection of the signature, which takes longer than a small kernel.

    Where nothing is to be differentiated, as in a backward pass without ``create_graph``, only ``function.forward``.
    A function that ``keeps`` gets one argument more, see :class:`fastgan.functional._function.Fused`.
    """
    keeps = getattr(function, "keeps", False)
    if _transforms_active():
        return function.apply(*args, True) if keeps else function.apply(*args)
    forward_mode = forward_ad._current_level >= 0
    if not (forward_mode or _grad_enabled()):
        return function.forward(*args, False) if keeps else function.forward(*args)
    held = _UNKNOWN if forward_mode or _dispatch_modes() else _held(args)
    recording, plain = held == 1, held != _UNKNOWN
    if not plain:
        recording = forward_mode
        for argument in args:
            kind = type(argument)
            if kind in _NO_TENSORS:
                continue
            if kind is _Tensor and unwrapped(argument) is not argument:
                return apply(function, *[unwrapped(a) if type(a) is _Tensor else a for a in args])
            recording = recording or getattr(argument, "requires_grad", False)
        plain = not forward_mode and _runs_plain(args)
    if keeps:
        args = (*args, ([] if plain else True) if recording else False)
    return record(function, *args) if recording else function.forward(*args)


def record(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply(*args)`` where no transform is active, without its inspection of the signature."""
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]


_F = TypeVar("_F", bound=Callable[..., Any])
_in_graph: list[Callable[..., Any]] = []


def allow_in_graph(function: _F) -> _F:
    """``torch.compiler.allow_in_graph`` without its import of torch._dynamo, which would double the import time.

    The function is registered when torch._dynamo is imported, before anything can be compiled. Unregistered, nested
    ``autograd.Function``s compile to silently wrong second derivatives.
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.allow_in_graph(function)
    elif not _in_graph:
        sys.meta_path.insert(0, _RegisterWithDynamo())
    _in_graph.append(function)
    return function


class _RegisterWithDynamo(importlib.abc.MetaPathFinder):
    """Lets the import of torch._dynamo go its usual way, and registers the waiting functions after it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "torch._dynamo":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            for function in _in_graph:
                torch.compiler.allow_in_graph(function)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
