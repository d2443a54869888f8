"""Which modules of a model have children that a method may call one by one: read from the source, if there is any."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator

from torch import nn

_ASK = {"len", "isinstance", "hasattr", "type", "id", "bool", "print", "repr", "str"}
_CALL_WHOLE = {"checkpoint", "data_parallel"}
# By function or method: what gives the children, in which part of each item, and what gives one child.
_CONTENTS: dict[str, int | None] = {"children": None, "modules": None, "values": None, "_modules": None}
_CONTENTS |= {"named_children": 1, "named_modules": 1, "items": 1}
_HAND_ON = {"list": None, "tuple": None, "iter": None, "reversed": None, "sorted": None, "enumerate": 1, "zip": 0}
_TAKE_ONE = {"next", "getattr", "get_submodule"}
_OF_EVERY_MODULE = {*dir(nn.Sequential), *vars(nn.Sequential()), "weight", "bias"} - set(_CONTENTS) - _TAKE_ONE

# What is taken apart: "self", "self.x" or another's ".x", and what it holds, so many levels down; if by an attribute,
# then only where a child has this name.
_Apart = tuple[str, int, str | None]


def called_in_pieces(model: nn.Module) -> set[nn.Module]:
    """Every module in ``model`` with which a method does more than call it, or ask it for what every module has.

    That may be to call its children one by one, or to hand it to somebody who does.
    """
    classes = {type(module) for module in model.modules()}
    apart_of = {cls: {apart for m in _methods(cls) for apart in _Method(m).taken_apart()} for cls in classes}
    of_others = {apart for of_class in apart_of.values() for apart in of_class if apart[0].startswith(".")}
    found: set[nn.Module] = set()
    for owner in model.modules():
        for name, level, slot in apart_of[type(owner)] | of_others:
            module = owner if name == "self" else owner._modules.get(name.split(".")[1])
            if module is not None and (slot is None or slot in module._modules):
                found.update(_down_to(module, level))
    return found


def _down_to(module: nn.Module, level: int) -> Iterator[nn.Module]:
    yield module
    if level:
        for child in module.children():
            yield from _down_to(child, level - 1)


def methods_that_read(cls: type[nn.Module], attribute: str) -> int:
    """How many methods of ``cls`` read ``self.attribute``."""
    methods = {method.name: method for method in reversed(list(_methods(cls)))}  # of one name, the one that is called
    reads = lambda node: isinstance(node, ast.Attribute) and node.attr == attribute and _is_self(node.value)
    return sum(any(map(reads, ast.walk(method))) for method in methods.values())


def _methods(cls: type[nn.Module]) -> Iterator[ast.FunctionDef]:
    """The methods of ``cls`` and its bases, if there is source."""
    for base in cls.__mro__:
        if base.__module__.startswith("torch.") or not issubclass(base, nn.Module):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue
        methods = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
        yield from (method for method in methods if method.name != "__init__")


class _Method:
    """Follows every child that a method reads to where it is called, asked for something or taken apart."""

    def __init__(self, method: ast.FunctionDef) -> None:
        self.parents = {child: node for node in ast.walk(method) for child in ast.iter_child_nodes(node)}

    def taken_apart(self) -> Iterator[_Apart]:
        for node in self.parents:
            if isinstance(node, ast.Attribute):
                name = f"self.{node.attr}" if _is_self(node.value) else f".{node.attr}"
                yield from ((name, level, None) for level in self._levels(node))
                if node.attr not in _OF_EVERY_MODULE and any(True for _ in self._levels(node, 1)):
                    base = node.value  # of which the attribute may be a child
                    if isinstance(base, ast.Attribute):
                        yield f"self.{base.attr}" if _is_self(base.value) else f".{base.attr}", 0, node.attr
                    elif _is_self(base):
                        yield "self", 0, node.attr
            elif _is_self(node):
                yield from (("self", level, None) for level in self._levels(node, handed=False))

    def _levels(
        self,
        node: ast.AST,
        depth: int = 0,
        parts: tuple[int, ...] = (),
        names: frozenset[str] = frozenset(),
        handed: bool = True,
    ) -> Iterator[int]:
        """How many levels down the value of ``node`` is taken apart, which is itself from ``depth`` levels down.

        parts: where in what ``node`` gives it is. names: which have been followed. handed: whether to be given to a
        function, or returned, counts.
        """
        while True:
            parent = self.parents.get(node)
            if isinstance(parent, ast.Attribute):
                if parent.attr not in _CONTENTS and parent.attr not in _TAKE_ONE:
                    if depth and parent.attr not in _OF_EVERY_MODULE:
                        yield depth
                    return
                part, depth = _CONTENTS.get(parent.attr), depth + (parent.attr in _TAKE_ONE)
                call = self.parents.get(parent)
                node = call if isinstance(call, ast.Call) and call.func is parent else parent
                parts = parts if part is None else (*parts, part)
            elif isinstance(parent, ast.Subscript) and parent.value is node:
                if isinstance(parent.slice, ast.Slice):
                    yield depth
                else:
                    depth += 1
                node = parent
            elif isinstance(parent, ast.Call):
                called = _last_name(parent.func)
                if parent.func is node or (called not in _HAND_ON and called not in _TAKE_ONE):
                    if parent.func is node or called in _CALL_WHOLE:
                        depth -= 1
                    elif called in _ASK or not handed:
                        return
                    if depth >= 0:
                        yield depth
                    return
                part = parent.args.index(node) if called == "zip" and node in parent.args else _HAND_ON.get(called)
                node, depth = parent, depth + (called in _TAKE_ONE)
                parts = parts if part is None else (*parts, part)
            elif isinstance(parent, (ast.List, ast.Tuple, ast.Set, ast.Dict, ast.ListComp, ast.GeneratorExp)):
                node, depth = parent, depth - 1
            elif isinstance(parent, (ast.For, ast.comprehension)) and parent.iter is node:
                yield from self._named(parent.target, depth + 1, parts, names, handed)
                return
            elif isinstance(parent, (ast.Assign, ast.NamedExpr, ast.AnnAssign)):
                for target in parent.targets if isinstance(parent, ast.Assign) else [parent.target]:
                    yield from self._named(target, depth, parts, names, handed)
                return
            elif isinstance(parent, (ast.keyword, ast.Starred, ast.BoolOp)) or (
                isinstance(parent, ast.IfExp) and parent.test is not node
            ):
                node = parent
            else:  # tested, compared, returned, deleted
                if isinstance(parent, (ast.Return, ast.Yield)) and handed and depth >= 0:
                    yield depth
                return

    def _named(
        self, target: ast.AST, depth: int, parts: tuple[int, ...], names: frozenset[str], handed: bool
    ) -> Iterator[int]:
        """What becomes of a value that ``target``, or a part of it, is a name of."""
        while parts and isinstance(target, ast.Tuple) and parts[-1] < len(target.elts):
            target, parts = target.elts[parts[-1]], parts[:-1]
        if isinstance(target, (ast.Attribute, ast.Subscript)):  # who knows
            if handed and depth >= 0:
                yield depth
            return
        new = {node.id for node in ast.walk(target) if isinstance(node, ast.Name)} - names
        for node in self.parents:
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in new:
                yield from self._levels(node, depth, parts, names | new, handed)


def _last_name(function: ast.AST) -> str | None:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else None


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"
