"""What a function does that a trace does not record, or records as it was once: read from its source."""

from __future__ import annotations

import ast
import functools
from types import CodeType

from fastgan.nn._fuse.source import is_users, tree_of

_ASK = {"type", "callable", "id", "hasattr", "getattr", "vars", "dir"}
_ACT = {"next", "setattr", "delattr", "exec", "eval", "open", "input", "print"}


@functools.lru_cache(maxsize=4096)
def unrecorded(code: CodeType) -> str | None:
    """What ``code`` does that a trace would lose or keep as it was, if anything."""
    if not is_users(code):
        return None
    tree = tree_of(code)
    if tree is None:
        return f"the source of {code.co_name}, which its forward calls, cannot be read"
    nodes = list(ast.walk(tree))
    # What may be a value of the forward. The module itself is none.
    local = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    local = (local | {node.arg for node in nodes if isinstance(node, ast.arg)}) - {"self"}
    return next((f"its forward {reason}" for node in nodes if (reason := _lost(node, local)) is not None), None)


def _lost(node: ast.AST, local: set[str]) -> str | None:
    """What of ``node`` is not in a trace."""
    of_values = lambda part: any(isinstance(n, ast.Name) and n.id in local for n in ast.walk(part))
    if isinstance(node, ast.Compare) and any(isinstance(op, (ast.Is, ast.IsNot)) for op in node.ops):
        return "asks which object a value is" if of_values(node) else None
    if isinstance(node, ast.Call) and _name(node.func) in _ASK and any(map(of_values, node.args[:1])):
        return "asks for the types of values"
    if isinstance(node, ast.Match):
        return "asks for the types of values"
    if getattr(node, "handlers", None):
        return "handles exceptions"
    if isinstance(node, ast.Name) and node.id in _ACT - local:
        return f"calls {node.id}"
    if isinstance(node, ast.Global):
        return f"sets {', '.join(node.names)}"
    if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
        return f"sets {node.attr}"
    if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load) and _root(node) not in local:
        return f"sets an item of {ast.unparse(node.value)}"
    if isinstance(node, ast.Expr) and isinstance(call := node.value, ast.Call) and _root(call) not in local:
        in_place = isinstance(call.func, ast.Attribute) and call.func.attr.endswith("_")
        return None if in_place else f"calls {ast.unparse(call.func)} for its effect"
    return None


def _name(node: ast.AST) -> str | None:
    return node.id if isinstance(node, ast.Name) else None


def _root(node: ast.AST) -> str | None:
    """``x`` of ``x.y[0].z()``."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return _name(node)
