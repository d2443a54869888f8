"""Which modules of a model have children that a method may call one by one: read from the source of its classes.

A use of a module that is not known to call it as a whole, or only to ask it for something, takes it apart.
"""

from __future__ import annotations

import ast
import functools
import math
import types
from collections.abc import Iterable, Iterator

from torch import nn

from fastgan.nn._source import is_users, tree_of

_ASK = {"len", "isinstance", "hasattr", "type", "id", "bool", "print", "repr", "str"}
_CALL_WHOLE = {"checkpoint", "data_parallel"}
# By function or method: what gives the children, in which part of each item, and what gives one child.
_CONTENTS: dict[str, int | None] = {"children": None, "modules": None, "values": None, "_modules": None}
_CONTENTS |= {"named_children": 1, "named_modules": 1, "items": 1, "__iter__": None}
_HAND_ON: dict[str, int | None] = {
    "list": None,
    "tuple": None,
    "iter": None,
    "reversed": None,
    "sorted": None,
    "dict": None,
}
_HAND_ON |= {"enumerate": 1, "zip": 0}
_TAKE_ONE = {"next", "getattr", "get", "__getitem__"}
_AT_ANY_DEPTH = {"modules", "named_modules", "get_submodule"}
_OF_EVERY_MODULE = {name for name in dir(nn.Sequential) if not name.startswith("_")} | set(vars(nn.Sequential()))
_OF_EVERY_MODULE |= {"weight", "bias", "__class__"}
_OF_EVERY_MODULE -= {*_CONTENTS, *_TAKE_ONE, *_AT_ANY_DEPTH, "pop"}
_HARMLESS = (ast.Expr, ast.Compare, ast.UnaryOp, ast.If, ast.While, ast.Assert, ast.Delete, ast.FormattedValue)
_DESCRIPTORS_IN_C = (
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)

# How many levels of a module are taken apart; if by an attribute, then only where a child has this name.
_Levels = tuple[float, str | None]


class Methods:
    """What the methods of a model's classes do with its modules."""

    def __init__(self, model: nn.Module) -> None:
        self._of_class = {cls: _methods(cls) for cls in {type(module) for module in model.modules()}}
        # Every module with which a method may do more than call it, or ask it for what every module has; and why.
        self.in_pieces = self._called_in_pieces(model)

    def reads(self, cls: type[nn.Module], name: str) -> int:
        """How many methods of ``cls`` read a child ``name``, and of other classes one that is not their own."""
        reading = {method for method in self._of_class[cls] or () if method.reads(name)}
        for methods in self._of_class.values():
            reading |= {method for method in methods or () if method.reads(name, of_others=True)}
        return len(reading)

    def _called_in_pieces(self, model: nn.Module) -> dict[nn.Module, str]:
        on_instance = {owner: _methods_in(vars(owner).values(), bound=False) for owner in model.modules()}
        all_methods = [methods or () for methods in (*self._of_class.values(), *on_instance.values())]
        of_others = {apart for methods in all_methods for method in methods for apart in method.of_others}
        found: dict[nn.Module, str] = {}
        for owner, set_on_it in on_instance.items():
            own = self._of_class[type(owner)]
            if own is None or set_on_it is None:
                found |= dict.fromkeys(owner.modules(), f"the source of {type(owner).__name__} cannot be read")
                continue
            for name, level, slot in of_others.union(*(method.apart for method in (*own, *set_on_it))):
                module = owner._modules.get(name) if name else owner
                if module is not None:
                    below = set(_down_to(module, level))
                    if slot is None or any(isinstance(m, nn.Sequential) and slot in m._modules for m in below):
                        found |= dict.fromkeys(below, "its modules are called one by one")
        return found


def _down_to(module: nn.Module, level: float) -> Iterator[nn.Module]:
    yield module
    if level:
        for child in module.children():
            yield from _down_to(child, level - 1)


def _methods(cls: type[nn.Module]) -> list[_Method] | None:
    """The methods of ``cls`` and its bases that are not PyTorch's; None if the source of one cannot be read."""
    attributes = [item for base in cls.__mro__ for item in vars(base).items()]
    return _methods_in(value for name, value in attributes if name != "__init__")


def _is_method(value: object) -> bool:
    return hasattr(type(value), "__get__") and not isinstance(value, _DESCRIPTORS_IN_C)


def _methods_in(values: Iterable[object], bound: bool = True) -> list[_Method] | None:
    found: dict[types.CodeType, bool] = {}
    for value in values:
        if _is_method(value) and not _collect(value, bound, found):
            return None
    methods = [_method(code, bound) for code, bound in found.items() if is_users(code)]
    return [m for m in methods if m is not None] if None not in methods else None


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
def _method(code: types.CodeType, bound: bool) -> _Method | None:
    tree = tree_of(code)
    return None if tree is None else _Method(tree, {"self", *code.co_varnames[: bound and code.co_argcount > 0]})


class _Method:
    """Follows every child that a method reads to where it is called, asked for something or taken apart.

    ``apart`` and ``of_others`` say what is taken apart, as (name, levels, slot): a child of that name, "" for the
    method's own module; in ``of_others`` of any module.
    """

    def __init__(self, tree: ast.AST, own: set[str]) -> None:
        self.parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        self.own = own
        self.apart: set[tuple[str, float, str | None]] = set()
        self.of_others: set[tuple[str, float, str | None]] = set()
        for node in self.parents:
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                where = self.apart if self._is_own(node.value) else self.of_others
                where.update((node.attr, *levels) for levels in self._levels(node))
            elif self._is_own(node):
                self.apart.update(("", *levels) for levels in self._levels(node, itself=True))

    def reads(self, name: str, of_others: bool = False) -> bool:
        found = (node for node in self.parents if isinstance(node, ast.Attribute) and node.attr == name)
        return any(not (of_others and self._is_own(node.value)) for node in found)

    def _is_own(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id in self.own

    def _levels(
        self,
        node: ast.AST,
        depth: float = 0,
        parts: tuple[int, ...] = (),
        names: frozenset[str] = frozenset(),
        itself: bool = False,
    ) -> Iterator[_Levels]:
        """How many levels down the value of ``node`` is taken apart, which is itself from ``depth`` levels down.

        parts: where in what ``node`` gives it is. names: which have been followed. itself: whether it is the method's
        own module, which may be returned and given to a function.
        """
        while True:
            parent = self.parents.get(node)
            if isinstance(parent, ast.Attribute):
                call = self.parents.get(parent)
                if parent.attr in ("forward", "__call__"):
                    if depth > 0:
                        yield depth - 1, None
                    return
                if parent.attr in _OF_EVERY_MODULE or not isinstance(parent.ctx, ast.Load):
                    return
                if parent.attr in _CONTENTS or parent.attr in _TAKE_ONE or parent.attr in _AT_ANY_DEPTH:
                    part, itself = _CONTENTS.get(parent.attr), False
                    depth = math.inf if parent.attr in _AT_ANY_DEPTH else depth + (parent.attr in _TAKE_ONE)
                    node = call if isinstance(call, ast.Call) and call.func is parent else parent
                    parts = parts if part is None else (*parts, part)
                    continue
                if any(True for _ in self._levels(parent, depth + 1)):
                    yield (math.inf, None) if parent.attr.startswith("__") else (depth, parent.attr)
                return
            elif isinstance(parent, ast.Subscript) and parent.value is node:
                if isinstance(parent.slice, ast.Slice):
                    yield depth, None
                else:
                    depth += 1
                node, itself = parent, False
            elif isinstance(parent, ast.Call):
                called = _last_name(parent.func)
                if parent.func is node or (called in _CALL_WHOLE and parent.args[:1] == [node]):
                    if depth > 0:
                        yield depth - 1, None
                    return
                if called in _ASK:
                    return
                if called not in _HAND_ON and called not in _TAKE_ONE:
                    if not itself:
                        yield math.inf, None
                    return
                part = parent.args.index(node) if called == "zip" and node in parent.args else _HAND_ON.get(called)
                itself = itself and called in _TAKE_ONE
                node, depth = parent, depth + (called in _TAKE_ONE)
                parts = parts if part is None else (*parts, part)
            elif isinstance(parent, ast.Starred):
                node, depth, itself = parent, depth + 1, False
            elif isinstance(parent, (ast.List, ast.Tuple, ast.Set, ast.ListComp, ast.SetComp, ast.GeneratorExp)):
                node, depth = parent, depth - 1
            elif isinstance(parent, (ast.For, ast.comprehension)):
                target: ast.AST = parent.target
                while parts and isinstance(target, ast.Tuple) and parts[-1] < len(target.elts):
                    target, parts = target.elts[parts[-1]], parts[:-1]
                if parent.iter is node:
                    yield from self._named(target, depth + 1, parts, names)
                return
            elif isinstance(parent, (ast.Assign, ast.NamedExpr, ast.AnnAssign, ast.AugAssign)):
                for target in parent.targets if isinstance(parent, ast.Assign) else [parent.target]:
                    yield from self._named(target, depth, parts, names, itself)
                if not isinstance(parent, ast.NamedExpr):
                    return
                node = parent
            elif isinstance(parent, (ast.keyword, ast.BoolOp)) or (
                isinstance(parent, ast.IfExp) and parent.test is not node
            ):
                node = parent
            else:  # returned, yielded, stored, or something new
                if not isinstance(parent, (*_HARMLESS, ast.IfExp)) and not itself:
                    yield math.inf, None
                return

    def _named(
        self, target: ast.AST, depth: float, parts: tuple[int, ...], names: frozenset[str], itself: bool = False
    ) -> Iterator[_Levels]:
        """What becomes of a value that ``target``, or a part of it, is a name of."""
        if isinstance(target, (ast.Tuple, ast.List)):
            for element in target.elts:
                yield from self._named(element, depth + 1, parts, names)
        elif isinstance(target, ast.Starred):
            yield from self._named(target.value, depth - 1, parts, names)
        elif not isinstance(target, ast.Name):  # who knows
            yield math.inf, None
        elif target.id not in names:
            for node in self.parents:
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id == target.id:
                    yield from self._levels(node, depth, parts, names | {target.id}, itself)


def _last_name(function: ast.AST) -> str | None:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else None
