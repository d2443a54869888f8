"""The classes that ``fuse`` gives to modules whose forward it changes: picklable subclasses of their own."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from torch import nn

_classes: dict[tuple[Any, ...], type[nn.Module]] = {}


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


def _new_rewritten(cls: type[nn.Module], source: str, modules: dict[str, str], others: dict[str, Any]) -> nn.Module:
    """What a pickled module begins as."""
    new = rewritten(cls, source, {**others, **{k: importlib.import_module(v) for k, v in modules.items()}})
    return new.__new__(new)
