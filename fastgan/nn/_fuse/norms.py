"""InstanceNorms of a model, and the fused modules that take their places."""

from __future__ import annotations

from typing import TypeGuard

from torch import nn

from fastgan.nn._fuse.sequential import is_hooked
from fastgan.nn.instance_norm import InstanceNormAct1d, InstanceNormAct2d, InstanceNormAct3d, _InstanceNormAct

_FUSED: dict[type[nn.Module], type[_InstanceNormAct]] = {
    nn.InstanceNorm1d: InstanceNormAct1d,
    nn.InstanceNorm2d: InstanceNormAct2d,
    nn.InstanceNorm3d: InstanceNormAct3d,
}
_NORM_STATE = frozenset(("weight", "bias", "running_mean", "running_var", "num_batches_tracked"))
_STATE_DICT_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def replace_norms(model: nn.Module) -> tuple[dict[_InstanceNormAct, str], list[tuple[str, str]]]:
    """Puts a fused module in the place of every norm that allows it.

    Returns:
        The names of the fused modules; and of what was left alone, with the reason.
    """
    names: dict[_InstanceNormAct, str] = {}
    left: list[tuple[str, str]] = []
    for prefix, parent in list(model.named_modules()):
        if getattr(parent, "original_name", "").startswith("InstanceNorm"):
            left.append((prefix, "it is a ScriptModule"))
        for slot, norm in parent._modules.items():
            if _is_plain_norm(norm):
                name = f"{prefix}.{slot}" if prefix else slot
                if reason := _why_not(norm):
                    left.append((name, reason))
                else:
                    parent._modules[slot] = fused = _fused_module(norm)
                    names[fused] = name
    if _is_plain_norm(model):
        left.append(("", "it is itself a norm, and nothing holds it"))
    return names, left


def _is_plain_norm(module: nn.Module | None) -> TypeGuard[nn.modules.instancenorm._InstanceNorm]:
    return isinstance(module, nn.modules.instancenorm._InstanceNorm) and not isinstance(module, _InstanceNormAct)


def _why_not(norm: nn.modules.instancenorm._InstanceNorm) -> str | None:
    if type(norm) not in _FUSED:
        return f"{type(norm).__name__} is not exactly InstanceNorm1d, 2d or 3d"
    if norm.track_running_stats:
        return "track_running_stats=True: it normalises by running statistics in eval mode"
    if "forward" in vars(norm):
        return "its forward was replaced on the instance"
    if is_hooked(norm) or any(vars(norm)[hooks] for hooks in _STATE_DICT_HOOKS):
        return "it has hooks"
    if norm._modules or {*norm._parameters, *norm._buffers} - _NORM_STATE:
        return "it holds more than an InstanceNorm does"
    return None


def _fused_module(norm: nn.modules.instancenorm._InstanceNorm) -> _InstanceNormAct:
    fused = _FUSED[type(norm)](1, activation="none")
    fused.num_features, fused.eps = norm.num_features, norm.eps  # whatever they are, as PyTorch takes them
    fused.affine = norm.affine
    fused.momentum = norm.momentum
    fused.weight, fused.bias = norm.weight, norm.bias
    return fused.train(norm.training)
