"""``fuse(model)``: lets one kernel do an InstanceNorm and what follows it, in a model that already exists.

Its parts are in ``_fuse/``, named here in brackets.

1. Every InstanceNorm is replaced, under its own name, by a fused module that holds the same Parameters and does nothing
   more yet (``norms``).
2. The calls of every module's own forward are read, children before parents (``structure``): those of an
   ``nn.Sequential`` from its order (``sequential``), those of any other module from a ``torch.fx`` trace in which its
   children are opaque (``own_forward``). Where a norm's result goes only into an addition, an activation or a
   reflection padding (``following``), the norm takes it over; not from a module that a method calls besides
   (``pieces``).
3. Residual blocks in a row that begin with a padding hand padded tensors to each other (``interior``).
4. Modules whose traced forward is another now get it, in a subclass of their class (``rewritten``).

In an ``nn.Sequential`` the norm itself is told what to do more. In a traced forward, it is told with each call: other
methods of that class that call the same norm get what they got before.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import fx, nn

from fastgan.nn._fuse.following import (
    dims,
    following_activation,
    following_addition,
    following_padding,
    only_user,
    padding,
)
from fastgan.nn._fuse.interior import interior
from fastgan.nn._fuse.norms import replace_norms
from fastgan.nn._fuse.rewritten import rewritten
from fastgan.nn._fuse.sequential import accept_following, drop, is_sequential, working
from fastgan.nn._fuse.structure import Structure, called_modules
from fastgan.nn.instance_norm import _InstanceNormAct


@dataclass(frozen=True)
class Fusion:
    """One norm that was replaced, and what its kernel does now: ``norm + relu + reflect_pad(1)``."""

    name: str
    what: str


@dataclass
class FusionReport:
    """What :func:`fuse` did, and what it left alone and why."""

    fused: list[Fusion] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"fused {len(self.fused)} instance norms; {len(self.left)} places left alone"]
        lines += [f"  {fusion.name}: {fusion.what}" for fusion in self.fused]
        lines += [f"  {name or '(the model)'}: left alone: {reason}" for name, reason in self.left]
        return "\n".join(lines)


def fuse(model: nn.Module) -> FusionReport:
    """Replaces the InstanceNorm1d/2d/3d of ``model`` by fused modules, in place.

    A norm takes over what follows it, where the structure shows that nothing else sees the value between: the addition
    of a residual, a ReLU or LeakyReLU (module or function, in place or not, also when it is the first module of what
    comes next, as in a U-Net), and a reflection padding of equal width on all sides. Residual blocks in a row that
    begin with a padding (CycleGAN's) hand padded tensors to each other. A norm with nothing to take over is replaced
    too, as the fused norm keeps channels_last.

    What stays: parameters, ``state_dict`` keys in both directions, training and eval behaviour, outputs and gradients
    within rounding, hooks. Left alone, and reported: norms with running statistics, subclasses, modules with hooks,
    norms called and an ``nn.Sequential`` registered more than once, an ``nn.Sequential`` whose modules a method may
    call one by one, forwards that ``torch.fx`` cannot trace or would trace to something else, or whose source cannot be
    read. A norm that is registered more than once becomes a module in each place, with the same Parameters.

    A module whose forward had to be rewritten gets a subclass of its class: attributes and globals that its old forward
    read as Python values are fixed.

    Args:
        model: any module, also a ``torch.fx.GraphModule``. A bare InstanceNorm is left alone: nothing holds it.

    Returns:
        A :class:`FusionReport`; ``print`` it.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fuse: model must be a torch.nn.Module, got {type(model).__name__}")
    names, left = replace_norms(model)
    fuser = _Fuser(Structure(model), names, left)
    for name, module in reversed(list(model.named_modules())):
        fuser.take_over(name, module)
    for module in list(model.modules()):
        fuser.hand_over_padded(module)
    fuser.install()
    return FusionReport([Fusion(name, " + ".join(fuser.taken[norm])) for norm, name in names.items()], left)


class _Block(NamedTuple):
    """A residual block's body, and its call in the block's forward."""

    body: nn.Module
    call: fx.Node


class _Fuser:
    """Lets norms take over what follows them.

    Args:
        structure: of a model whose norms have been replaced.
        norms: those that took their places.
        left: gets what is left alone, and why.
    """

    def __init__(self, structure: Structure, norms: Iterable[_InstanceNormAct], left: list[tuple[str, str]]) -> None:
        self.structure = structure
        self.taken = {norm: ["norm"] for norm in norms}  # what each norm does, in this order
        self.left = left
        self.blocks: dict[nn.Module, _Block] = {}
        self.changed: set[nn.Module] = set()  # those whose traced forward is another now

    def take_over(self, name: str, module: nn.Module) -> None:
        """Lets every norm that ``module``'s forward calls, or that ends something it calls, take what follows."""
        if self.structure.uses[module] > 1 and any(child in self.taken for child in module.modules()):
            self.left.append((name, "what follows it: it is registered more than once"))
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)) or not any(
            self.structure.tail(child) in self.taken for child in called_modules(module)
        ):
            return
        if not is_sequential(module):
            graph = self.structure.graph(module)
            if isinstance(graph, fx.Graph):
                self._take_over_in_forward(name, module, graph)
            else:
                self.left.append((name, f"what follows its norms: {graph}"))
        elif module in self.structure.in_pieces:
            self.left.append((name, f"what follows its norms: {self.structure.in_pieces[module]}"))
        else:
            self._take_over_in_sequential(module)

    def _take_over_in_sequential(self, sequential: nn.Module) -> None:
        slots = list(sequential._modules)
        for i, slot in enumerate(slots):
            norm = self._open_tail(sequential._modules[slot])
            if norm is None:
                continue
            at_work = working(sequential)
            following = [s for s in slots[i + 1 :] if s in at_work]
            if following and (head := self.structure.head(sequential, following[0])):
                norm.activation, norm.negative_slope = head.activation
                self.taken[norm].append(norm.activation)
                self._leave_out(head.holder, head.slot)
                following = following[1:] if head.holder is sequential else []
            if following and (width := padding(sequential._modules[following[0]], norm)):
                norm.reflect_pad = width
                self.taken[norm].append(f"reflect_pad({width})")
                drop(sequential, following[0])

    def _take_over_in_forward(self, name: str, module: nn.Module, graph: fx.Graph) -> None:
        calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
        for target, times in calls.items():
            if times > 1 and self.structure.tail(module.get_submodule(str(target))) in self.taken:
                of_child = f"{name}.{target}" if name else str(target)
                self.left.append((of_child, "what follows it: it is called more than once"))
        for call in list(graph.nodes):
            if call.op != "call_module" or calls[call.target] > 1 or len(call.args) != 1 or call.kwargs:
                continue
            called = module.get_submodule(str(call.target))
            norm = self._open_tail(called)
            if norm is None:
                continue
            if added := following_addition(module, call):
                end, residual = added
                if residual is call.args[0] and called is not norm:
                    self.blocks[module] = _Block(called, call)
                end.append(call)
                call.args = (call.args[0], residual)
                self.taken[norm].append("residual")
                _skip(end, call)
            if activated := following_activation(module, call):
                act, (kind, negative_slope) = activated
                call.kwargs = {"activation": kind, "negative_slope": negative_slope}
                self.taken[norm].append(kind)
                _skip(act, call)
            if padded := following_padding(module, call, norm):
                pad, width = padded
                call.kwargs = {**call.kwargs, "reflect_pad": width}
                self.taken[norm].append(f"reflect_pad({width})")
                _skip(pad, call)
            if len(call.args) > 1 or call.kwargs:
                accept_following(called)
                self.changed.add(module)

    def _open_tail(self, module: nn.Module | None) -> _InstanceNormAct | None:
        """The norm that ends ``module``, if it may take over what follows that."""
        norm = self.structure.tail(module)
        return norm if norm in self.taken and set(self.taken[norm]) <= {"norm", "residual"} else None

    def _leave_out(self, holder: nn.Module, slot: str) -> None:
        """Leaves out the first call of a module: in a traced forward this call alone."""
        if is_sequential(holder):
            drop(holder, slot)
            return
        graph = self.structure.graph(holder)
        assert isinstance(graph, fx.Graph)
        call = next(node for node in graph.nodes if node.op == "call_module" and node.target == slot)
        _skip(call, call.args[0])
        self.changed.add(holder)

    def hand_over_padded(self, sequential: nn.Module) -> None:
        """Norm | block | block | … with blocks ``x + body(x)`` whose body begins with a padding: pad once, in the norm.

        The block's residual is then the interior of its padded input.
        """
        if not is_sequential(sequential) or sequential in self.structure.in_pieces:
            return
        for before, block in itertools.pairwise(working(sequential).values()):
            norm = self._end(before)
            width = 0 if norm is None else self._padding_of_body(block, norm)
            if norm is None or not width:
                continue
            if before in self.blocks:
                end = self.blocks[before].call
                end.kwargs = {**end.kwargs, "reflect_pad": width}
            else:
                norm.reflect_pad = width
            self.taken[norm].append(f"reflect_pad({width})")
            body, call = self.blocks[block]
            drop(body, next(iter(body._modules)))
            with call.graph.inserting_before(call):
                inside = call.graph.call_function(interior, (call.args[0], width, dims(norm)))
            call.args = (call.args[0], inside)

    def _end(self, module: nn.Module) -> _InstanceNormAct | None:
        """The norm that ends ``module``, also a residual block, if it pads nothing yet."""
        end = module
        if module in self.blocks:
            body, call = self.blocks[module]
            if not self.structure.is_private(module) or not _is_result(call):
                return None
            end = body
        norm = self.structure.tail(end)
        return norm if norm in self.taken and not self.taken[norm][-1].startswith("reflect_pad") else None

    def _padding_of_body(self, block: nn.Module, norm: _InstanceNormAct) -> int:
        """The width of the padding with which a residual block's body begins, if ``norm`` may do it before; or 0."""
        if block not in self.blocks:
            return 0
        body, call = self.blocks[block]
        may = self.structure.has_one_caller(block) and self.structure.is_only_call(block, call)
        return padding(body._modules[next(iter(body._modules))], norm) if may and _reads_input_alone(call) else 0

    def install(self) -> None:
        """Gives the changed modules their new forwards."""
        for module in self.changed:
            graph = self.structure.graph(module)
            assert isinstance(graph, fx.Graph)
            graph.lint()
            if isinstance(module, fx.GraphModule):
                module.recompile()
            else:
                code = graph.python_code("self")
                module.__class__ = rewritten(type(module), code.src, code.globals)


def _skip(node: fx.Node, value: Any) -> None:
    """Lets all who use ``node`` use ``value`` instead."""
    node.replace_all_uses_with(value)
    node.graph.erase_node(node)


def _is_result(call: fx.Node) -> bool:
    """Whether the forward returns just what ``call`` gives."""
    user = only_user(call)
    return user is not None and user.op == "output" and user.args == (call,)


def _reads_input_alone(call: fx.Node) -> bool:
    """Whether the argument of ``call`` is the forward's input, and nothing else reads it."""
    source = call.args[0]
    return isinstance(source, fx.Node) and source.op == "placeholder" and list(source.users) == [call]
