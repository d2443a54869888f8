"""``fuse(model)``: lets one kernel do an InstanceNorm and what follows it, in a model that already exists.

Three passes. First every InstanceNorm is replaced, under its own name, by a fused module that holds the same
Parameters and does nothing more yet. Then the calls of every module's own forward are read, children before parents:
those of an ``nn.Sequential`` from its order, those of any other module from a ``torch.fx`` trace in which its children
are opaque. Where a norm's result goes only into an addition, an activation or a reflection padding, the norm takes it
over. Last, residual blocks in a row that begin with a padding hand padded tensors to each other.

In an ``nn.Sequential`` the norm itself is told what to do more. In a traced forward, it is told with each call: other
methods of that class that call the same norm get what they got before.
"""

from __future__ import annotations

import itertools
import operator
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, fx, nn

from fastgan.kernels.library import allow_in_graph, apply
from fastgan.nn._own_forward import trace_own_forward
from fastgan.nn._pieces import Methods
from fastgan.nn._rewritten import NormLast, accept_following, last_module, rewritten
from fastgan.nn.instance_norm import InstanceNormAct1d, InstanceNormAct2d, InstanceNormAct3d, _InstanceNormAct

_FUSED: dict[type[nn.Module], type[_InstanceNormAct]] = {
    nn.InstanceNorm1d: InstanceNormAct1d,
    nn.InstanceNorm2d: InstanceNormAct2d,
    nn.InstanceNorm3d: InstanceNormAct3d,
}
_PADDINGS: dict[type[nn.Module], type[_InstanceNormAct]] = {
    nn.ReflectionPad1d: InstanceNormAct1d,
    nn.ReflectionPad2d: InstanceNormAct2d,
    nn.ReflectionPad3d: InstanceNormAct3d,
}
_ADDITIONS = (operator.add, operator.iadd, torch.add)
_IN_PLACE = tuple(getattr(operator, f"i{name}") for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"))
_NORM_STATE = frozenset(("weight", "bias", "running_mean", "running_var", "num_batches_tracked"))
_STATE_DICT_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


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
    report = FusionReport()
    uses = Counter(child for module in model.modules() for child in module._modules.values())
    names = _replace_norms(model, report)
    taken: dict[_InstanceNormAct, list[str]] = {norm: ["norm"] for norm in names}
    reader = _Reader(uses, Methods(model), report)
    for name, module in reversed(list(model.named_modules())):
        if uses[module] > 1 and any(child in names for child in module.modules()):
            report.left.append((name, "what follows it: it is registered more than once"))
        if names:
            reader.take_over(name, module, taken)
    for module in list(model.modules()):
        reader.hand_over_padded(module, taken)
    reader.install()
    report.fused = [Fusion(name, " + ".join(taken[norm])) for norm, name in names.items()]
    return report


def _replace_norms(model: nn.Module, report: FusionReport) -> dict[_InstanceNormAct, str]:
    """Puts a fused module in the place of every norm that allows it; returns their names."""
    names: dict[_InstanceNormAct, str] = {}
    for prefix, parent in list(model.named_modules()):
        if getattr(parent, "original_name", "").startswith("InstanceNorm"):
            report.left.append((prefix, "it is a ScriptModule"))
        for slot, norm in parent._modules.items():
            if not isinstance(norm, nn.modules.instancenorm._InstanceNorm) or isinstance(norm, _InstanceNormAct):
                continue
            name = f"{prefix}.{slot}" if prefix else slot
            reason = _why_not(norm)
            if reason is None:
                fused = _fused_module(norm)
                parent._modules[slot] = fused
                names[fused] = name
            else:
                report.left.append((name, reason))
    if isinstance(model, nn.modules.instancenorm._InstanceNorm) and not isinstance(model, _InstanceNormAct):
        report.left.append(("", "it is itself a norm, and nothing holds it"))
    return names


def _why_not(norm: nn.Module) -> str | None:
    if type(norm) not in _FUSED:
        return f"{type(norm).__name__} is not exactly InstanceNorm1d, 2d or 3d"
    if norm.track_running_stats:
        return "track_running_stats=True: it normalises by running statistics in eval mode"
    if "forward" in vars(norm):
        return "its forward was replaced on the instance"
    if _hooked(norm) or any(vars(norm)[hooks] for hooks in _STATE_DICT_HOOKS):
        return "it has hooks"
    if norm._modules or {*norm._parameters, *norm._buffers} - _NORM_STATE:
        return "it holds more than an InstanceNorm does"
    return None


def _fused_module(norm: nn.Module) -> _InstanceNormAct:
    assert isinstance(norm, nn.modules.instancenorm._InstanceNorm)
    fused = _FUSED[type(norm)](1, activation="none")
    fused.num_features, fused.eps = norm.num_features, norm.eps  # whatever they are, as PyTorch takes them
    fused.affine = norm.affine
    fused.momentum = norm.momentum
    fused.weight, fused.bias = norm.weight, norm.bias
    return fused.train(norm.training)


class _Reader:
    """Reads the calls of forwards, and lets norms take over what follows them.

    Args:
        uses: in how many places each module is registered.
        methods: what the classes of the model do with modules, besides calling them.
    """

    def __init__(self, uses: Counter[nn.Module | None], methods: Methods, report: FusionReport) -> None:
        self.uses = uses
        self.methods = methods
        self.report = report
        self.graphs: dict[nn.Module, fx.Graph | None] = {}  # traced forwards
        self.rewritten: set[nn.Module] = set()
        self.blocks: dict[nn.Module, tuple[nn.Sequential, fx.Node]] = {}  # residual blocks: body, its call

    def take_over(self, name: str, module: nn.Module, taken: dict[_InstanceNormAct, list[str]]) -> None:
        """Lets every norm that ``module``'s forward calls, or that ends something it calls, take what follows."""
        if _is_sequential(module) and module in self.methods.in_pieces:
            if any(self._tail(child) in taken for child in module.children()):
                self.report.left.append((name, f"what follows its norms: {self.methods.in_pieces[module]}"))
        elif _is_sequential(module):
            self._sequential(module, taken)
        elif not isinstance(module, (nn.ModuleList, nn.ModuleDict)) and any(
            self._tail(child) in taken for child in _called_modules(module)
        ):
            graph = self._graph(module, name)
            if graph is not None:
                self._traced(name, module, graph, taken)

    def _sequential(self, sequential: nn.Module, taken: dict[_InstanceNormAct, list[str]]) -> None:
        slots = list(sequential._modules)
        for i, slot in enumerate(slots):
            norm = self._tail(sequential._modules[slot])
            if norm is None or norm not in taken or _is_complete(taken[norm]):
                continue
            following = [s for s in slots[i + 1 :] if type(sequential._modules[s]) is not nn.Identity]
            if following and (place := self._head(sequential, following[0])) is not None:
                holder, act = place
                activation = _activation(holder._modules[act])
                assert activation is not None
                norm.activation, norm.negative_slope = activation
                taken[norm].append(norm.activation)
                self._skip_activation(holder, act)
                following = following[1:] if holder is sequential else []
            if following and (width := _reflection(sequential._modules[following[0]], norm)):
                norm.reflect_pad = width
                taken[norm].append(f"reflect_pad({width})")
                _drop(sequential, following[0])

    def _traced(self, name: str, module: nn.Module, graph: fx.Graph, taken: dict[_InstanceNormAct, list[str]]) -> None:
        calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
        for target, times in calls.items():
            if times > 1 and self._tail(module.get_submodule(str(target))) in taken:
                of_child = f"{name}.{target}" if name else str(target)
                self.report.left.append((of_child, "what follows it: it is called more than once"))
        for node in list(graph.nodes):
            if node.op != "call_module" or calls[node.target] > 1 or len(node.args) != 1 or node.kwargs:
                continue
            called = module.get_submodule(str(node.target))
            norm = self._tail(called)
            if norm is None or norm not in taken or _is_complete(taken[norm]):
                continue
            addition = _addition(node)
            if addition is not None and _may_move(module, node, addition[0]):
                end, residual = addition
                if residual is node.args[0] and called is not norm:
                    self.blocks[module] = (called, node)  # type: ignore[assignment]
                end.replace_all_uses_with(node)
                # The residual may be computed after the norm's input: call the norm where the addition was.
                end.append(node)
                node.args = (node.args[0], residual)
                graph.erase_node(end)
                taken[norm].append("residual")
            act = None if _residual_is_written(module, node) else _only_user(node)
            if act is not None and (found := _activation_node(module, act)) is not None:
                node.kwargs = {"activation": found[0], "negative_slope": found[1]}
                taken[norm].append(found[0])
                _skip(graph, act, node)
            if (pad := _only_user(node)) is not None and (width := _reflection_node(module, pad, norm)):
                node.kwargs = {**node.kwargs, "reflect_pad": width}
                taken[norm].append(f"reflect_pad({width})")
                _skip(graph, pad, node)
            if len(node.args) > 1 or node.kwargs:
                accept_following(called)
                self.rewritten.add(module)

    def hand_over_padded(self, module: nn.Module, taken: dict[_InstanceNormAct, list[str]]) -> None:
        """Norm | block | block | … with blocks ``x + body(x)`` whose body begins with a padding: pad once, in the norm.

        The block's residual is then the interior of its padded input.
        """
        if not _is_sequential(module) or module in self.methods.in_pieces:
            return
        children = [m for m in module._modules.values() if m is not None and type(m) is not nn.Identity]
        for before, block in itertools.pairwise(children):
            norm = self._end(before)
            if block not in self.blocks or norm is None or norm not in taken or _is_padded(taken[norm]):
                continue
            body, call = self.blocks[block]
            first = next(iter(body._modules))
            width = _reflection(body._modules[first], norm)
            if not width or not self._is_called_by_its_holder_alone(block) or not _reads_input_alone(call):
                continue
            if not self._is_only_call(block, call):
                continue
            if before in self.blocks:
                _, end = self.blocks[before]
                end.kwargs = {**end.kwargs, "reflect_pad": width}
            else:
                norm.reflect_pad = width
            taken[norm].append(f"reflect_pad({width})")
            _drop(body, first)
            with call.graph.inserting_before(call):
                interior = call.graph.call_function(_interior, (call.args[0], width, norm._get_no_batch_dim() - 1))
            call.args = (call.args[0], interior)

    def install(self) -> None:
        """Gives the rewritten modules their new forwards."""
        for module in self.rewritten:
            graph = self.graphs[module]
            assert graph is not None
            graph.lint()
            if isinstance(module, fx.GraphModule):
                module.recompile()
                continue
            code = graph.python_code("self")
            module.__class__ = rewritten(type(module), code.src, code.globals)

    def _tail(self, module: nn.Module | None) -> _InstanceNormAct | None:
        """The fused norm that computes what ``module`` returns, if that is plain to see and nothing looks at it."""
        while module is not None and not _hooked(module) and self.uses[module] <= 1:
            if isinstance(module, _InstanceNormAct):
                return module
            if not _is_sequential(module):
                return None
            module = last_module(module)
        return None

    def _end(self, module: nn.Module) -> _InstanceNormAct | None:
        """:meth:`_tail`, also through residual blocks that end in their norm."""
        if module in self.blocks and not _hooked(module) and self.uses[module] <= 1:
            body, call = self.blocks[module]
            return self._tail(body) if _is_result(call) else None
        return self._tail(module)

    def _head(self, holder: nn.Module, slot: str) -> tuple[nn.Module, str] | None:
        """Where the activation sits that ``holder._modules[slot]`` applies first to its input, as (holder, slot).

        An input that is used again later must have been activated in place.
        """
        seen_again = False
        while True:
            module = holder._modules[slot]
            if module is None or _hooked(module):
                return None
            if _activation(module) is not None:
                return None if seen_again and not module.inplace else (holder, slot)
            if not self._is_called_by_its_holder_alone(module):
                return None
            if _is_sequential(module):
                if not module._modules:
                    return None
                holder, slot = module, next(iter(module._modules))
                continue
            if not any(_activation(m) is not None for m in module.modules()):
                return None
            graph = self._graph(module, None)
            inputs = [] if graph is None else [node for node in graph.nodes if node.op == "placeholder"]
            if graph is None or len(inputs) != 1 or not inputs[0].users:
                return None
            first = min(inputs[0].users, key=list(graph.nodes).index)
            if first.op != "call_module" or first.args != (inputs[0],) or "." in str(first.target):
                return None
            if _activation(module.get_submodule(str(first.target))) is None and not self._is_only_call(module, first):
                return None
            seen_again = seen_again or len(inputs[0].users) > 1
            holder, slot = module, str(first.target)

    def _skip_activation(self, holder: nn.Module, slot: str) -> None:
        """Leaves out the first call of what :meth:`_head` found: in a traced forward this call alone."""
        if _is_sequential(holder):
            _drop(holder, slot)
            return
        graph = self.graphs[holder]
        assert graph is not None
        call = next(node for node in graph.nodes if node.op == "call_module" and node.target == slot)
        _skip(graph, call, call.args[0])
        self.rewritten.add(holder)

    def _is_called_by_its_holder_alone(self, module: nn.Module) -> bool:
        """Whether what ``module`` is given may be another: nothing but the one that holds it calls it."""
        alone = self.uses[module] <= 1 and not _hooked(module) and module not in self.methods.in_pieces
        return alone and not self.methods.calls_itself(module)

    def _is_only_call(self, module: nn.Module, call: fx.Node) -> bool:
        """Whether this call in ``module``'s forward is the only one of that child, and no other method reads it."""
        calls = sum(node.op == call.op and node.target == call.target for node in call.graph.nodes)
        child = str(call.target).split(".")[0]
        return calls == 1 and (isinstance(module, fx.GraphModule) or self.methods.only_forward_reads(module, child))

    def _graph(self, module: nn.Module, name: str | None) -> fx.Graph | None:
        """The calls of ``module``'s own forward; None, and a line in the report, if they cannot be known."""
        if module not in self.graphs:
            traced = trace_own_forward(module)
            if isinstance(traced, str):
                if name is not None:
                    self.report.left.append((name, f"what follows its norms: {traced}"))
                self.graphs[module] = None
            else:
                self.graphs[module] = traced
        return self.graphs[module]


def _called_modules(module: nn.Module) -> Iterable[nn.Module]:
    """What a forward may call: children, those in lists and dicts of modules, and everything in a GraphModule."""
    if isinstance(module, fx.GraphModule):
        yield from (m for m in module.modules() if m is not module)
        return
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from _called_modules(child)
        yield child


def _is_sequential(module: nn.Module) -> bool:
    cls = type(module)
    own_forward = "forward" in vars(module) or cls.__call__ is not nn.Module.__call__
    return (
        isinstance(module, nn.Sequential)
        and cls.forward in (nn.Sequential.forward, NormLast.forward)
        and not own_forward
    )


def _drop(holder: nn.Module, slot: str) -> None:
    """Puts an Identity in the place of a module whose work a norm has taken over."""
    holder._modules[slot] = nn.Identity().train(holder.training)


def _hooked(module: nn.Module) -> bool:
    """Whether something is called beside the forward of ``module``'s class, or in its place."""
    own_call = type(module).__call__ is not nn.Module.__call__ and not isinstance(module, fx.GraphModule)
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return own_call or "forward" in vars(module) or bool(hooks)


def _is_complete(taken: list[str]) -> bool:
    """Whether a norm has taken over an activation or a padding, so that nothing but a padding can come after."""
    return any(what not in ("norm", "residual") for what in taken)


def _is_padded(taken: list[str]) -> bool:
    return taken[-1].startswith("reflect_pad")


def _skip(graph: fx.Graph, node: fx.Node, value: Any) -> None:
    node.replace_all_uses_with(value)
    graph.erase_node(node)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_result(call: fx.Node) -> bool:
    """Whether the forward returns just what ``call`` gives."""
    user = _only_user(call)
    return user is not None and user.op == "output" and user.args == (call,)


def _reads_input_alone(call: fx.Node) -> bool:
    """Whether the argument of ``call`` is the forward's input, and nothing else reads it."""
    source = call.args[0]
    return isinstance(source, fx.Node) and source.op == "placeholder" and list(source.users) == [call]


def _addition(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The addition that is ``node``'s only use, and the other summand."""
    user = _only_user(node)
    if user is None or user.kwargs or len(user.args) != 2:
        return None
    if not (user.op == "call_function" and user.target in _ADDITIONS) and not (
        user.op == "call_method" and user.target in ("add", "add_")
    ):
        return None
    if user.target in ("add_", operator.iadd) and user.args[0] is not node:
        return None  # it writes into the other summand, which others may see
    others = [arg for arg in user.args if arg is not node]
    return (user, others[0]) if len(others) == 1 and isinstance(others[0], fx.Node) else None


def _may_move(module: nn.Module, node: fx.Node, end: fx.Node) -> bool:
    """Whether ``node`` may be called in the place of ``end``: nothing comes between, or nobody else sees its input."""
    order = list(node.graph.nodes)
    if all(between.op == "get_attr" for between in order[order.index(node) + 1 : order.index(end)]):
        return True
    source = node.args[0]
    return (
        isinstance(source, fx.Node)
        and source.op == "call_module"
        and isinstance(module.get_submodule(str(source.target)), nn.modules.conv._ConvNd)
        and _only_user(source) is node
    )


def _residual_is_written(module: nn.Module, node: fx.Node) -> bool:
    """Whether something is written into the residual that ``node`` adds, after that.

    A fused activation keeps the residual for its backward pass. PyTorch keeps what comes of it, and of a sum nothing.
    """
    if len(node.args) < 2 or not isinstance(residual := node.args[1], fx.Node):
        return False
    order = list(node.graph.nodes)
    later = order[order.index(node) + 1 :]
    return any(user in later and _writes(module, user, residual) for user in residual.users)


def _writes(module: nn.Module, node: fx.Node, value: fx.Node) -> bool:
    """Whether ``node`` may write into ``value``, one of its arguments."""
    if node.op == "call_module":
        called: nn.Module | None = module.get_submodule(str(node.target))
        while called is not None and _is_sequential(called):
            called = next((m for m in called._modules.values() if type(m) is not nn.Identity), None)
        return called is not None and any(getattr(m, "inplace", False) for m in called.modules())
    if not node.args or node.args[0] is not value:
        return False
    name = str(getattr(node.target, "__name__", node.target))
    by_name = node.target in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))
    return by_name or any(flag is True for flag in (*node.args, node.kwargs.get("inplace")))  # nnf.relu(r, True)


def _activation(module: nn.Module | None) -> tuple[str, float] | None:
    if type(module) is nn.ReLU:
        return "relu", 0.0
    if type(module) is nn.LeakyReLU:
        return "leaky_relu", float(module.negative_slope)
    return None


def _activation_node(module: nn.Module, node: fx.Node) -> tuple[str, float] | None:
    """The activation that ``node`` applies to its first argument."""
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        return None if _hooked(called) else _activation(called)
    if (node.op == "call_function" and node.target in (nnf.relu, nnf.relu_, torch.relu, torch.relu_)) or (
        node.op == "call_method" and node.target in ("relu", "relu_")
    ):
        return "relu", 0.0
    if node.op == "call_function" and node.target in (nnf.leaky_relu, nnf.leaky_relu_):
        slope = node.args[1] if len(node.args) > 1 else node.kwargs.get("negative_slope", 0.01)
        return ("leaky_relu", float(slope)) if isinstance(slope, (int, float)) else None
    return None


def _reflection(module: nn.Module | None, norm: _InstanceNormAct) -> int:
    """The width of a reflection padding that ``norm`` can write, or 0."""
    if module is None or _PADDINGS.get(type(module)) is not type(norm) or _hooked(module):
        return 0
    widths = set(module.padding)  # type: ignore[arg-type]
    return int(widths.pop()) if len(widths) == 1 and min(module.padding) > 0 else 0  # type: ignore[arg-type]


def _reflection_node(module: nn.Module, node: fx.Node, norm: _InstanceNormAct) -> int:
    if node.op == "call_module":
        return _reflection(module.get_submodule(str(node.target)), norm)
    if node.op != "call_function" or node.target is not nnf.pad:
        return 0
    arguments = dict(zip(("input", "pad", "mode"), node.args, strict=False)) | dict(node.kwargs)
    widths = arguments.get("pad")
    dims = {InstanceNormAct1d: 1, InstanceNormAct2d: 2, InstanceNormAct3d: 3}[type(norm)]
    if arguments.get("mode") != "reflect" or not isinstance(widths, (list, tuple)) or len(widths) != 2 * dims:
        return 0
    width = widths[0]
    return width if isinstance(width, int) and width > 0 and all(w == width for w in widths) else 0


@allow_in_graph
def _interior(x: Tensor, width: int, spatial: int) -> Tensor:
    """``x`` without ``width`` elements on both sides of its last dimensions, ``spatial`` of them, as a view."""
    if isinstance(x, fx.Proxy) or torch.jit._trace.is_tracing():  # which record PyTorch's own operators
        return _narrowed(x, width, spatial)
    view: Tensor = apply(_Interior, x, width, spatial)
    return view


def _narrowed(x: Tensor, width: int, spatial: int) -> Tensor:
    for dim in range(-spatial, 0):
        x = x.narrow(dim, width, x.size(dim) - 2 * width)
    return x


class _Interior(torch.autograd.Function):
    """One padding by zeros in the backward pass, where each dimension's narrowing would make a tensor of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, width: int, spatial: int) -> Tensor:
        return _narrowed(x, width, spatial)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
        _, ctx.width, ctx.spatial = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return nnf.pad(grad, (ctx.width,) * (2 * ctx.spatial)), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _narrowed(tangent, ctx.width, ctx.spatial)
