"""What a method takes apart of the modules that it reads: a child by name, and how many levels of it.

Whatever gives a module is followed, through names, loops, lists and functions, to what becomes of it. Called as a whole
(``self.model(x)``) or only asked for something (``len(self.model)``), it stays whole. Every other use takes it apart,
also one that is not known.
"""

from __future__ import annotations

import ast
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import nn

_ASK = {"len", "isinstance", "hasattr", "type", "id", "bool", "print", "repr", "str"}
_CALL_WHOLE = {"checkpoint", "data_parallel"}
# Methods and functions that give the children, and in which part of each item: the 1 of (name, child).
_CONTENTS = dict.fromkeys(("children", "modules", "values", "_modules", "__iter__"))
_CONTENTS |= dict.fromkeys(("named_children", "named_modules", "items"), 1)
_HAND_ON = dict.fromkeys(("list", "tuple", "iter", "reversed", "sorted", "dict"))
_HAND_ON |= {"enumerate": 1, "zip": 0}
_TAKE_ONE = {"next", "getattr", "get", "__getitem__"}
_AT_ANY_DEPTH = {"modules", "named_modules", "get_submodule"}
_OF_EVERY_MODULE = {name for name in dir(nn.Sequential) if not name.startswith("_")} | set(vars(nn.Sequential()))
_OF_EVERY_MODULE |= {"weight", "bias", "__class__"}
_OF_EVERY_MODULE -= {*_CONTENTS, *_TAKE_ONE, *_AT_ANY_DEPTH, "pop"}
# Where a value goes no further: it is compared, printed, deleted, or only whether it is true counts.
_ENDS = (ast.Expr, ast.Compare, ast.UnaryOp, ast.If, ast.IfExp, ast.While, ast.Assert, ast.Delete, ast.FormattedValue)
_MANY = 8  # levels, or parts within parts: more are not told apart


class Apart(NamedTuple):
    """What a method takes apart: a child ``name`` of its module, "" for that itself, and ``levels`` below it.

    slot: if given, only where something there has a child of this name.
    """

    name: str
    levels: float
    slot: str | None


@dataclass(frozen=True)
class _Value:
    """An expression that gives something of a module.

    depth: how many levels below the module. A list of modules is where the module is that has them as children:
        ``model.children()`` at 0 like ``model``, ``model[1]`` at 1, ``[model]`` at -1.
    parts: where in each item it is, if items have parts: (1,) for ``enumerate(model)``; the last is looked at first.
    itself: whether it is the method's own module, which may be returned and given to a function.
    child: where it came by an attribute that may be a child's name, what a use of it takes apart: levels and slot as in
        :class:`Apart`.
    """

    node: ast.AST
    depth: float = 0
    parts: tuple[int, ...] = ()
    itself: bool = False
    child: tuple[float, str | None] | None = None

    def at(self, node: ast.AST, down: float = 0, part: int | None = None, itself: bool = False) -> _Value:
        """What ``node`` gives, so many levels further down."""
        depth = self.depth + down
        depth = math.inf if depth > _MANY else max(depth, -_MANY)
        parts = self.parts if part is None else (*self.parts, part)[-_MANY:]
        return replace(self, node=node, depth=depth, parts=parts, itself=itself)

    def called(self) -> Iterator[float]:
        """How many levels are taken apart when this is called."""
        if self.depth > 0:
            yield self.depth - 1


class Method:
    """What a method takes apart, of its own module in ``of_own``, and in ``of_others`` of any module.

    Args:
        name: of the method.
        tree: its source.
        own: the names of its own module.
    """

    def __init__(self, name: str, tree: ast.AST, own: set[str]) -> None:
        self.name = name
        self.parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        self.own = own
        self.loads: defaultdict[str, list[ast.Name]] = defaultdict(list)
        for node in self.parents:
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                self.loads[node.id].append(node)
        self.calls_own_forward = name != "forward" and any(map(self._is_own_forward, self.parents))
        self.of_own: set[Apart] = set()
        self.of_others: set[Apart] = set()
        for node in self.parents:
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found = self.of_own if self._is_own(node.value) else self.of_others
                found.update(Apart(node.attr, *what) for what in self._taken_apart(_Value(node)))
            elif self._is_own(node):
                self.of_own.update(Apart("", *what) for what in self._taken_apart(_Value(node, itself=True)))

    def _is_own_forward(self, node: ast.AST) -> bool:
        """``self.forward``, ``super().forward`` or ``self(…)``."""
        if isinstance(node, ast.Attribute) and node.attr in ("forward", "__call__"):
            of = node.value
            return self._is_own(of) or (isinstance(of, ast.Call) and _last_name(of.func) == "super")
        return isinstance(node, ast.Call) and self._is_own(node.func)

    def reads(self, name: str, of_others: bool = False) -> bool:
        found = (node for node in self.parents if isinstance(node, ast.Attribute) and node.attr == name)
        return any(not (of_others and self._is_own(node.value)) for node in found)

    def _is_own(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id in self.own

    def _taken_apart(self, start: _Value) -> set[tuple[float, str | None]]:
        """What is taken apart of the module that ``start`` gives: levels and slot."""
        found, seen, todo = set(), set(), [start]
        while todo:
            value = todo.pop()
            if value not in seen:
                seen.add(value)
                for use in self._uses(value):
                    if isinstance(use, _Value):
                        todo.append(use)
                    else:
                        found.add(value.child or (use, None))
        return found

    def _uses(self, value: _Value) -> Iterator[_Value | float]:
        """What the code around ``value`` does with it: what it makes of it, or how many levels it takes apart."""
        node = value.node
        match parent := self.parents.get(node):
            case ast.Attribute():
                yield from self._attribute(value, parent)
            case ast.Call():
                yield from self._call(value, parent)
            case ast.Subscript(slice=ast.Slice()) if parent.value is node:
                yield value.depth
                yield value.at(parent)
            case ast.Subscript() if parent.value is node:
                yield value.at(parent, 1)
            case ast.Starred():
                yield value.at(parent, 1)
            case ast.List() | ast.Tuple() | ast.Set() | ast.ListComp() | ast.SetComp() | ast.GeneratorExp():
                yield value.at(parent, -1, itself=value.itself)
            case ast.For() | ast.comprehension():
                if parent.iter is node:
                    yield from self._loop(value, parent.target)
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign() | ast.NamedExpr():
                for target in parent.targets if isinstance(parent, ast.Assign) else [parent.target]:
                    yield from self._named(value, target)
                if isinstance(parent, ast.NamedExpr):
                    yield value.at(parent, itself=value.itself)
            case ast.keyword() | ast.BoolOp():
                yield value.at(parent, itself=value.itself)
            case ast.IfExp() if parent.test is not node:
                yield value.at(parent, itself=value.itself)
            case _ if not isinstance(parent, _ENDS) and not value.itself:  # returned, yielded, stored, or new
                yield math.inf

    def _attribute(self, value: _Value, parent: ast.Attribute) -> Iterator[_Value | float]:
        name = parent.attr
        if name in ("forward", "__call__"):
            yield from value.called()
        elif name in _OF_EVERY_MODULE or not isinstance(parent.ctx, ast.Load):
            return
        elif name in _CONTENTS or name in _TAKE_ONE or name in _AT_ANY_DEPTH:
            call = self.parents.get(parent)
            given = call if isinstance(call, ast.Call) and call.func is parent else parent
            down = math.inf if name in _AT_ANY_DEPTH else int(name in _TAKE_ONE)
            yield value.at(given, down, _CONTENTS.get(name))
        else:
            child = (math.inf, None) if name.startswith("__") else (value.depth, name)
            yield _Value(parent, value.at(parent, 1).depth, child=value.child or child)

    def _call(self, value: _Value, call: ast.Call) -> Iterator[_Value | float]:
        name = _last_name(call.func)
        if call.func is value.node or (name in _CALL_WHOLE and call.args[:1] == [value.node]):
            yield from value.called()
        elif name in _TAKE_ONE:
            yield value.at(call, 1, itself=value.itself)
        elif name in _HAND_ON:
            which = call.args.index(value.node) if name == "zip" and value.node in call.args else _HAND_ON[name]
            yield value.at(call, part=which)
        elif name not in _ASK and not value.itself:
            yield math.inf

    def _loop(self, value: _Value, target: ast.expr) -> Iterator[_Value | float]:
        parts = value.parts
        while parts and isinstance(target, ast.Tuple) and parts[-1] < len(target.elts):
            target, parts = target.elts[parts[-1]], parts[:-1]
        yield from self._named(replace(value, parts=parts).at(target, 1), target)

    def _named(self, value: _Value, target: ast.expr) -> Iterator[_Value | float]:
        """What becomes of ``value``, of which ``target``, or a part of it, is the name."""
        match target:
            case ast.Tuple() | ast.List():
                for element in target.elts:
                    yield from self._named(value.at(element, 1), element)
            case ast.Starred():
                yield from self._named(value.at(target, -1), target.value)
            case ast.Name():
                for node in self.loads[target.id]:
                    yield value.at(node, itself=value.itself)
            case _:  # who knows
                yield math.inf


def _last_name(function: ast.AST) -> str | None:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else None
