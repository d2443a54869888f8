"""Which modules of a model have children that a method calls one by one: read from the source, if there is any."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator

from torch import nn


def called_in_pieces(model: nn.Module) -> set[nn.Module]:
    """Every module in ``model`` of which a method calls some children, and not all in order."""
    names_of = {cls: _names_in_pieces(cls) for cls in {type(module) for module in model.modules()}}
    of_others = {name for names in names_of.values() for name in names if name.startswith(".")}
    found = {owner for owner in model.modules() if "self" in names_of[type(owner)]}
    for owner in model.modules():
        names = names_of[type(owner)] | of_others
        children = owner._modules.items()
        found |= {child for slot, child in children if child is not None and names & {f"self.{slot}", f".{slot}"}}
    return found


def _names_in_pieces(cls: type[nn.Module]) -> set[str]:
    """Of what methods of ``cls`` call some elements, if there is source: ``self``, ``self.x``, another's ``.x``."""
    names: set[str] = set()
    for base in cls.__mro__:
        if base.__module__.startswith("torch.") or not issubclass(base, nn.Module):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue
        for method in ast.walk(tree):
            if isinstance(method, ast.FunctionDef) and method.name != "__init__":
                names = names.union(*map(_names, _taken_apart(method)))
    return names


def _taken_apart(method: ast.FunctionDef) -> Iterator[ast.expr]:
    """What ``method`` iterates over to call the elements, calls an element of, or takes a slice of."""
    nodes = list(ast.walk(method))
    called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    for node in nodes:
        if isinstance(node, (ast.For, ast.comprehension)):
            if called & {name.id for name in ast.walk(node.target) if isinstance(name, ast.Name)}:
                yield node.iter
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
            yield node.func.value
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
            yield node.value


def _names(expression: ast.expr) -> set[str]:
    """The attributes that ``expression`` reads, and ``self`` where it stands alone."""
    nodes = list(ast.walk(expression))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    names = {f"self.{node.attr}" if _is_self(node.value) else f".{node.attr}" for node in attributes}
    objects = [node.value for node in attributes]
    return names | {"self" for node in nodes if _is_self(node) and node not in objects}


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"
