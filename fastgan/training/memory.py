"""An estimate of what autograd will keep for a backward pass, found on tensors without memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode


def kept_for_backward(make: Callable[[], Sequence[nn.Module]], run: Callable[..., object]) -> int:
    """The bytes of the storages that autograd keeps in ``run(*make())``, the modules' own parameters apart.

    Both are called where tensors have shapes and no memory; nothing is computed and no random number is drawn. They
    make their tensors on the CPU, whatever the run's device: that is the device to autocast for.
    """
    kept: dict[int, tuple[Any, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = (storage, storage.nbytes())
        return tensor

    with FakeTensorMode():
        modules = make()
        for parameter in _parameters(modules):
            keep(parameter)
        own = sum(size for _, size in kept.values())
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = run(*modules)
        del result
    return sum(size for _, size in kept.values()) - own


def _parameters(modules: Iterable[nn.Module]) -> Iterable[Tensor]:
    return (parameter for module in modules for parameter in module.parameters())
