"""Lets the layer norms of a model that already exists run as one plane's instance norm for each sample."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from fastgan.functional.instance_norm import instance_norm_act
from fastgan.kernels import layout


class LayerNorm(nn.GroupNorm):
    """An ``nn.GroupNorm`` of one group: over all of a sample, affine per channel.

    PyTorch differentiates its own twice by some hundred operations; the instance norm's second derivative is fused.
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return nnf.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        else:  # which a script leaves out
            return self._forward(input)

    def _forward(self, input: Tensor) -> Tensor:
        if input[:1].numel() < 2:  # without a variance: PyTorch's bias alone, and its errors
            return nnf.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        channels_last = layout.is_channels_last(input)
        memory = input.movedim(1, -1) if channels_last else input
        y = instance_norm_act(memory.reshape(len(input), 1, -1), activation="none", eps=self.eps).view(memory.shape)
        y = y.movedim(-1, 1) if channels_last else y
        if self.weight is None:
            return y
        weight, bias = (t.view(-1, *[1] * (input.dim() - 2)) for t in (self.weight, self.bias))
        return y * weight + bias


def use_layer_norm(model: nn.Module) -> list[str]:
    """Makes every ``nn.GroupNorm(1, …)`` in ``model`` a :class:`LayerNorm`, in place; returns their names.

    Parameters, ``state_dict`` and hooks stay. Left alone are subclasses of ``nn.GroupNorm``.
    """
    names = [name for name, m in model.named_modules() if type(m) is nn.GroupNorm and m.num_groups == 1]
    for name in names:
        model.get_submodule(name).__class__ = LayerNorm
    return names
