"""Which modules of a model have children that a method may call one by one: read from the source of its classes."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Iterator

from torch import nn

from fastgan.nn._fuse.source import is_users, tree_of
from fastgan.nn._fuse.taken_apart import Apart, Method

_DESCRIPTORS_IN_C = (
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)


class Methods:
    """What the methods of a model's classes do with its modules.

    ``in_pieces`` has every module with which a method may do more than call it, or ask it for what every module has;
    and why.
    """

    def __init__(self, model: nn.Module) -> None:
        self._of_class = {cls: _methods(cls) for cls in {type(module) for module in model.modules()}}
        self.in_pieces = self._find_pieces(model)

    def calls_itself(self, module: nn.Module) -> bool:
        """Whether a method of ``module`` besides its forward calls that."""
        return any(method.calls_own_forward for method in self._of_class[type(module)] or ())

    def only_forward_reads(self, module: nn.Module, child: str) -> bool:
        """Whether a child is read by the forward of ``module``, or a method that this alone reads, and nowhere else."""
        every = {method for methods in self._of_class.values() for method in methods or ()}
        name, seen = child, set[str]()
        while name not in seen:
            seen.add(name)
            own = {method for method in self._of_class[type(module)] or () if method.reads(name)}
            others = {method for method in every if method.reads(name, of_others=True)}
            if len(own) != 1 or others - own:
                return False
            name = own.pop().name
            if name == "forward":
                return True
        return False

    def _find_pieces(self, model: nn.Module) -> dict[nn.Module, str]:
        set_on = {owner: _methods_in(vars(owner).values(), bound=False) for owner in model.modules()}
        readable = [method for methods in (*self._of_class.values(), *set_on.values()) for method in methods or ()]
        of_others = {apart for method in readable for apart in method.of_others}
        found: dict[nn.Module, str] = {}
        for owner, set_on_it in set_on.items():
            own = self._of_class[type(owner)]
            if own is None or set_on_it is None:
                found |= dict.fromkeys(owner.modules(), f"the source of {type(owner).__name__} cannot be read")
                continue
            aparts = of_others.union(*(method.of_own for method in (*own, *set_on_it)))
            found |= dict.fromkeys(_pieces(owner, aparts), "its modules are called one by one")
        return found


def _pieces(owner: nn.Module, aparts: Iterable[Apart]) -> Iterator[nn.Module]:
    """The modules of ``owner`` that are taken apart."""
    for name, levels, slot in aparts:
        module = owner._modules.get(name) if name else owner
        if module is not None:
            apart = set(_down_to(module, levels))
            if slot is None or any(isinstance(m, nn.Sequential) and slot in m._modules for m in apart):
                yield from apart


def _down_to(module: nn.Module, levels: float) -> Iterator[nn.Module]:
    yield module
    if levels:
        for child in module.children():
            yield from _down_to(child, levels - 1)


def _methods(cls: type[nn.Module]) -> list[Method] | None:
    """The methods of ``cls`` and its bases that are not PyTorch's; None if the source of one cannot be read."""
    attributes = [item for base in cls.__mro__ for item in vars(base).items()]
    return _methods_in(value for name, value in attributes if name != "__init__")


def _methods_in(values: Iterable[object], bound: bool = True) -> list[Method] | None:
    found: dict[types.CodeType, bool] = {}
    for value in values:
        if _is_method(value) and not _collect(value, bound, found):
            return None
    methods = [_method(code, bound) for code, bound in found.items() if is_users(code)]
    return [m for m in methods if m is not None] if None not in methods else None


def _is_method(value: object) -> bool:
    return hasattr(type(value), "__get__") and not isinstance(value, _DESCRIPTORS_IN_C)


def _collect(value: object, bound: bool, found: dict[types.CodeType, bool]) -> bool:
    """Finds the functions behind a method, a property and what decorates them; whether there are any.

    bound: whether their first argument is the module.
    """
    if not isinstance(value, types.FunctionType):
        bound = isinstance(value, types.MethodType) or (bound and not isinstance(value, staticmethod))
        behind = [getattr(value, name, None) for name in ("__wrapped__", "__func__", "func", "fget", "fset", "fdel")]
        collected = [_collect(function, bound, found) for function in behind if function is not None]
        return any(collected)
    if value.__code__ not in found:
        found[value.__code__] = bound
        for cell in value.__closure__ or ():
            try:
                _collect(cell.cell_contents, bound, found)
            except ValueError:  # it is empty
                continue
    return True


@functools.lru_cache(maxsize=4096)
def _method(code: types.CodeType, bound: bool) -> Method | None:
    tree = tree_of(code)
    first = code.co_varnames[:1] if bound and code.co_argcount else ()
    return None if tree is None else Method(code.co_name, tree, {"self", *first})
