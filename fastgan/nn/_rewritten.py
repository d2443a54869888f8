"""The classes that ``fuse`` gives to modules whose forward it changes: picklable subclasses of their own."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from fastgan.nn.instance_norm import _InstanceNormAct


class NormLast(nn.Sequential):
    """An nn.Sequential that hands a residual, and what else to do, to its last module: a norm, or one of its kind."""

    def forward(self, input: Tensor, residual: Tensor | None = None, **following: Any) -> Tensor:
        if residual is None and not following:
            output: Tensor = super().forward(input)
            return output
        last = last_module(self)
        for module in self._modules.values():
            assert module is not None
            input = module(input, residual, **following) if module is last else module(input)
        return input

    def _get_name(self) -> str:
        return "Sequential" if type(self) is NormLast else super()._get_name()


_norms_last: dict[type[nn.Module], type[nn.Module]] = {nn.Sequential: NormLast}


def _norm_last(cls: type[nn.Module]) -> type[nn.Module]:
    """:class:`NormLast` for nn.Sequential or a subclass of it."""

    def reduce(self: nn.Module, protocol: Any) -> Any:
        reduced: Any = cls.__reduce_ex__(self, protocol)
        return _new_norm_last, (cls,), *reduced[2:]

    if cls not in _norms_last:
        body = {"__reduce_ex__": reduce, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
        _norms_last[cls] = type(cls.__name__, (NormLast, cls), body)
    return _norms_last[cls]


def _new_norm_last(cls: type[nn.Module]) -> nn.Module:
    """What a pickled module begins as."""
    new = _norm_last(cls)
    return new.__new__(new)


def last_module(sequential: nn.Module) -> nn.Module | None:
    """The last module that does anything."""
    return next((m for m in reversed(sequential._modules.values()) if type(m) is not nn.Identity), None)


def accept_following(called: nn.Module | None) -> None:
    """Lets an nn.Sequential hand what a norm at its end is to do more to that norm."""
    while called is not None and not isinstance(called, _InstanceNormAct):
        if not isinstance(called, NormLast):
            called.__class__ = _norm_last(type(called))
        called = last_module(called)


def rewritten(cls: type[nn.Module], source: str, names: dict[str, Any]) -> type[nn.Module]:
    """``cls`` with the forward that ``source`` defines; the same class for the same arguments."""
    # Functions and modules are the same again after pickling; inf, nan and annotations are equal only.
    ids = (
        (name, str(value) if isinstance(value, (float, str)) else id(value)) for name, value in sorted(names.items())
    )
    key = (cls, source, *ids)
    if key not in _classes:
        namespace = dict(names)
        exec(source, namespace)

        def reduce(self: nn.Module, protocol: Any) -> Any:
            reduced: Any = cls.__reduce_ex__(self, protocol)
            # Modules cannot be pickled; their names can.
            modules = {k: v.__name__ for k, v in names.items() if isinstance(v, ModuleType)}
            others = {k: v for k, v in names.items() if k not in modules}
            return _new_rewritten, (cls, source, modules, others), *reduced[2:]

        body = {"forward": namespace["forward"], "__reduce_ex__": reduce, "__doc__": cls.__doc__}
        new = type(cls.__name__, (cls,), {**body, "__module__": cls.__module__, "__qualname__": cls.__qualname__})
        _classes[key] = new
    return _classes[key]


_classes: dict[tuple[Any, ...], type[nn.Module]] = {}


def _new_rewritten(cls: type[nn.Module], source: str, modules: dict[str, str], others: dict[str, Any]) -> nn.Module:
    """What a pickled module begins as."""
    new = rewritten(cls, source, {**others, **{k: importlib.import_module(v) for k, v in modules.items()}})
    return new.__new__(new)
