"""Convolutions of our own in a model that already exists."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class OwnConvolution(nn.Conv2d):
    """An ``nn.Conv2d`` without stride, dilation and groups, with zeros around its input, in a way of our own.

    ``torch.jit.script`` compiles PyTorch's.
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            y: Tensor = self._conv_forward(input, self.weight, self.bias)
            return y
        else:  # which a script leaves out
            return self._convolve(input)

    def _convolve(self, input: Tensor) -> Tensor:
        raise NotImplementedError


def replace(model: nn.Module, own: type[OwnConvolution], fits: Callable[[nn.Conv2d], bool]) -> list[str]:
    """Makes every such ``nn.Conv2d`` of ``model`` that fits an ``own``, in place; gives their names."""
    names = []
    for name, module in model.named_modules():
        if (
            type(module) is nn.Conv2d
            and module.stride == module.dilation == (1, 1)
            and module.padding_mode == "zeros"
            and module.groups == 1
            and fits(module)
        ):
            module.__class__ = own
            names.append(name)
    return names
