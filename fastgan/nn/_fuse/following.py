"""What follows a norm and can be taken over by it: an addition, an activation, a reflection padding.

Each is looked for as a module, and as a node of a traced forward, where it may also be a function or a method.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as nnf
from torch import fx, nn

from fastgan.nn._fuse.sequential import is_hooked, is_sequential, working
from fastgan.nn.instance_norm import InstanceNormAct1d, InstanceNormAct2d, InstanceNormAct3d, _InstanceNormAct

# By what a node of a graph calls.
_ADDITIONS = {"call_function": (operator.add, operator.iadd, torch.add), "call_method": ("add", "add_")}
_RELUS = {"call_function": (nnf.relu, nnf.relu_, torch.relu, torch.relu_), "call_method": ("relu", "relu_")}
_LEAKY_RELUS = {"call_function": (nnf.leaky_relu, nnf.leaky_relu_)}
_PADDINGS: dict[type[nn.Module], type[_InstanceNormAct]] = {
    nn.ReflectionPad1d: InstanceNormAct1d,
    nn.ReflectionPad2d: InstanceNormAct2d,
    nn.ReflectionPad3d: InstanceNormAct3d,
}
_IN_PLACE = tuple(getattr(operator, f"i{name}") for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"))


class Activation(NamedTuple):
    name: str
    negative_slope: float


def activation(module: nn.Module | None) -> Activation | None:
    """The activation that ``module`` is, hooks aside."""
    if type(module) is nn.ReLU:
        return Activation("relu", 0.0)
    if type(module) is nn.LeakyReLU:
        return Activation("leaky_relu", float(module.negative_slope))
    return None


def following_activation(module: nn.Module, call: fx.Node) -> tuple[fx.Node, Activation] | None:
    """The activation that is the only use of ``call`` in ``module``'s forward, if the norm may do it instead."""
    node = only_user(call)
    if node is None or _residual_is_written(module, call):
        return None
    found: Activation | None = None
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        found = None if is_hooked(called) else activation(called)
    elif _is(node, _RELUS):
        found = Activation("relu", 0.0)
    elif _is(node, _LEAKY_RELUS):
        slope = node.args[1] if len(node.args) > 1 else node.kwargs.get("negative_slope", 0.01)
        found = Activation("leaky_relu", float(slope)) if isinstance(slope, (int, float)) else None
    return None if found is None else (node, found)


def padding(module: nn.Module | None, norm: _InstanceNormAct) -> int:
    """The width of the reflection padding that ``module`` is, if ``norm`` can write it; or 0."""
    if module is None or _PADDINGS.get(type(module)) is not type(norm) or is_hooked(module):
        return 0
    return _one_width([int(width) for width in module.padding])  # type: ignore[union-attr]


def following_padding(module: nn.Module, call: fx.Node, norm: _InstanceNormAct) -> tuple[fx.Node, int] | None:
    """The reflection padding that is the only use of ``call`` in ``module``'s forward, and its width."""
    node = only_user(call)
    if node is None:
        return None
    width = 0
    if node.op == "call_module":
        width = padding(module.get_submodule(str(node.target)), norm)
    elif node.op == "call_function" and node.target is nnf.pad:
        arguments = dict(zip(("input", "pad", "mode"), node.args, strict=False)) | dict(node.kwargs)
        widths = arguments.get("pad")
        if arguments.get("mode") == "reflect" and isinstance(widths, (list, tuple)) and len(widths) == 2 * dims(norm):
            width = _one_width(widths)
    return (node, width) if width else None


def _one_width(widths: Sequence[Any]) -> int:
    """The width of all sides; 0 if they differ, or cut something off."""
    equal = len(widths) > 0 and isinstance(widths[0], int) and all(width == widths[0] for width in widths)
    return max(widths[0], 0) if equal else 0


def dims(norm: _InstanceNormAct) -> int:
    """How many dimensions of an input are spatial."""
    return int(norm._get_no_batch_dim()) - 1


def following_addition(module: nn.Module, call: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The addition that is the only use of ``call`` in ``module``'s forward, and the other summand.

    The norm will be called where the addition is, as that summand may be computed after the norm's input.
    """
    node = only_user(call)
    if node is None or not _is(node, _ADDITIONS) or node.kwargs or len(node.args) != 2:
        return None
    if node.target in ("add_", operator.iadd) and node.args[0] is not call:
        return None  # it writes into the other summand, which others may see
    others = [arg for arg in node.args if arg is not call]
    if len(others) != 1 or not isinstance(others[0], fx.Node) or not _may_move(module, call, node):
        return None
    return node, others[0]


def _may_move(module: nn.Module, call: fx.Node, end: fx.Node) -> bool:
    """Whether ``call`` may be made in the place of ``end``: nothing comes between, or nobody else sees its input."""
    if all(between.op == "get_attr" for between in call.graph.nodes if call < between < end):
        return True
    source = call.args[0]
    return (
        isinstance(source, fx.Node)
        and source.op == "call_module"
        and isinstance(module.get_submodule(str(source.target)), nn.modules.conv._ConvNd)
        and only_user(source) is call
    )


def _residual_is_written(module: nn.Module, call: fx.Node) -> bool:
    """Whether something is written into the residual that ``call`` adds, after that.

    A fused activation keeps the residual for its backward pass. PyTorch keeps what comes of it, and of a sum nothing.
    """
    residual = call.args[1] if len(call.args) > 1 else None
    return isinstance(residual, fx.Node) and any(
        call < user and _writes(module, user, residual) for user in residual.users
    )


def _writes(module: nn.Module, node: fx.Node, value: fx.Node) -> bool:
    """Whether ``node`` may write into ``value``, one of its arguments."""
    if node.op == "call_module":
        called: nn.Module | None = module.get_submodule(str(node.target))
        while called is not None and is_sequential(called):
            called = next(iter(working(called).values()), None)
        return called is not None and any(getattr(m, "inplace", False) for m in called.modules())
    if not node.args or node.args[0] is not value:
        return False
    name = str(getattr(node.target, "__name__", node.target))
    by_name = node.target in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))
    return by_name or any(flag is True for flag in (*node.args, node.kwargs.get("inplace")))  # nnf.relu(r, True)


def _is(node: fx.Node, functions: Mapping[str, tuple[Any, ...]]) -> bool:
    return node.target in functions.get(node.op, ())


def only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
