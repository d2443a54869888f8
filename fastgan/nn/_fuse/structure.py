"""How the modules of a model call each other, as far as that is certain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from torch import fx, nn

from fastgan.nn._fuse.following import Activation, activation
from fastgan.nn._fuse.own_forward import trace_own_forward
from fastgan.nn._fuse.pieces import Methods
from fastgan.nn._fuse.sequential import is_hooked, is_sequential, last_module
from fastgan.nn.instance_norm import _InstanceNormAct


class Head(NamedTuple):
    """The activation with which something begins, and where it is: in ``slot`` of ``holder``."""

    holder: nn.Module
    slot: str
    activation: Activation


class Structure:
    """Answers what ``fuse`` asks about a model.

    ``uses`` says in how many places each module is registered, ``in_pieces`` why a module's children may be called one
    by one, for those of which that is so.
    """

    def __init__(self, model: nn.Module) -> None:
        self.uses = Counter(child for module in model.modules() for child in module._modules.values())
        self._methods = Methods(model)
        self.in_pieces = self._methods.in_pieces
        self._graphs: dict[nn.Module, fx.Graph | str] = {}

    def graph(self, module: nn.Module) -> fx.Graph | str:
        """The calls of ``module``'s own forward, one graph for all who ask; or why they cannot be known."""
        if module not in self._graphs:
            self._graphs[module] = trace_own_forward(module)
        return self._graphs[module]

    def is_private(self, module: nn.Module) -> bool:
        """Whether nobody but what calls ``module`` in its one place sees what it is given and gives."""
        return self.uses[module] <= 1 and not is_hooked(module)

    def has_one_caller(self, module: nn.Module) -> bool:
        """Whether ``module`` may be given another input: nothing but the forward of what holds it calls it."""
        return self.is_private(module) and module not in self.in_pieces and not self._methods.calls_itself(module)

    def is_only_call(self, module: nn.Module, call: fx.Node) -> bool:
        """Whether this call in ``module``'s forward is the only one of that child, and no other method reads it."""
        calls = sum(node.op == call.op and node.target == call.target for node in call.graph.nodes)
        child = str(call.target).split(".")[0]
        return calls == 1 and (isinstance(module, fx.GraphModule) or self._methods.only_forward_reads(module, child))

    def tail(self, module: nn.Module | None) -> _InstanceNormAct | None:
        """The fused norm that computes what ``module`` returns, if that is plain to see and nothing looks at it."""
        while module is not None and self.is_private(module):
            if isinstance(module, _InstanceNormAct):
                return module
            module = last_module(module) if is_sequential(module) else None
        return None

    def head(self, holder: nn.Module, slot: str, seen_again: bool = False) -> Head | None:
        """The activation that the module in ``slot`` of ``holder`` first applies to its input, if it may be left out.

        seen_again: whether that input is used again later. It must then have been activated in place.
        """
        module = holder._modules[slot]
        if module is None or is_hooked(module):
            return None
        if (found := activation(module)) is not None:
            return None if seen_again and not module.inplace else Head(holder, slot, found)
        if not self.has_one_caller(module):
            return None
        if is_sequential(module):
            first = next(iter(module._modules), None)
            return None if first is None else self.head(module, first, seen_again)
        return self._head_of_forward(module, seen_again)

    def _head_of_forward(self, module: nn.Module, seen_again: bool) -> Head | None:
        if not any(activation(m) is not None for m in module.modules()):
            return None
        graph = self.graph(module)
        inputs = [] if isinstance(graph, str) else [node for node in graph.nodes if node.op == "placeholder"]
        if len(inputs) != 1 or not inputs[0].users:
            return None
        first = min(inputs[0].users)  # the order of nodes is that of their calls
        child = str(first.target)
        if first.op != "call_module" or first.args != (inputs[0],) or "." in child:
            return None
        # Of an activation this call is left out. What begins with one loses it for all its calls.
        if activation(module.get_submodule(child)) is None and not self.is_only_call(module, first):
            return None
        return self.head(module, child, seen_again or len(inputs[0].users) > 1)


def called_modules(module: nn.Module) -> Iterable[nn.Module]:
    """What a forward may call: children, those in lists and dicts of modules, and everything in a GraphModule."""
    if isinstance(module, fx.GraphModule):
        yield from (m for m in module.modules() if m is not module)
        return
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from called_modules(child)
        yield child
