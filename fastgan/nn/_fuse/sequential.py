"""nn.Sequentials: what is plain to see in them, and those that hand a residual to their last module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from fastgan.nn.instance_norm import _InstanceNormAct


def is_sequential(module: nn.Module) -> bool:
    """Whether a call of ``module`` is a call of each of its modules, in order."""
    return (
        isinstance(module, nn.Sequential)
        and type(module).forward in (nn.Sequential.forward, NormLast.forward)
        and not has_own_call(module)
    )


def has_own_call(module: nn.Module) -> bool:
    """Whether a call of ``module`` is more, or other, than its class's forward."""
    own = type(module).__call__ is not nn.Module.__call__ and not isinstance(module, fx.GraphModule)
    return own or "forward" in vars(module)


def is_hooked(module: nn.Module) -> bool:
    """Whether something is called beside the forward of ``module``'s class, or in its place."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks) or has_own_call(module)


def working(sequential: nn.Module) -> dict[str, nn.Module]:
    """The modules that do anything, by their slots."""
    return {slot: m for slot, m in sequential._modules.items() if m is not None and type(m) is not nn.Identity}


def last_module(sequential: nn.Module) -> nn.Module | None:
    """The last module that does anything."""
    return next((m for m in reversed(sequential._modules.values()) if type(m) is not nn.Identity), None)


def drop(sequential: nn.Module, slot: str) -> None:
    """Puts an Identity in the place of a module whose work a norm has taken over."""
    sequential._modules[slot] = nn.Identity().train(sequential.training)


class NormLast(nn.Sequential):
    """An nn.Sequential that hands a residual, and what else to do, to its last module: a norm, or one of its kind."""

    def forward(self, input: Tensor, residual: Tensor | None = None, **following: Any) -> Tensor:
        if residual is None and not following:
            output: Tensor = super().forward(input)
            return output
        last = last_module(self)
        for module in self._modules.values():
            assert module is not None
            input = module(input, residual, **following) if module is last else module(input)
        return input

    def _get_name(self) -> str:
        return "Sequential" if type(self) is NormLast else super()._get_name()


def accept_following(called: nn.Module | None) -> None:
    """Lets an nn.Sequential hand what a norm at its end is to do more to that norm."""
    while called is not None and not isinstance(called, _InstanceNormAct):
        if not isinstance(called, NormLast):
            called.__class__ = _norm_last(type(called))
        called = last_module(called)


_norms_last: dict[type[nn.Module], type[nn.Module]] = {nn.Sequential: NormLast}


def _norm_last(cls: type[nn.Module]) -> type[nn.Module]:
    """:class:`NormLast` for nn.Sequential or a subclass of it."""

    def reduce(self: nn.Module, protocol: Any) -> Any:
        reduced: Any = cls.__reduce_ex__(self, protocol)
        return _new_norm_last, (cls,), *reduced[2:]

    if cls not in _norms_last:
        body = {"__reduce_ex__": reduce, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
        _norms_last[cls] = type(cls.__name__, (NormLast, cls), body)
    return _norms_last[cls]


def _new_norm_last(cls: type[nn.Module]) -> nn.Module:
    """What a pickled module begins as."""
    new = _norm_last(cls)
    return new.__new__(new)
