"""Lets the 3×3 convolutions of a model that already exists run as :func:`fastgan.functional.winograd.conv3x3`."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn

from fastgan.functional.winograd import LEAST_CHANNELS, conv3x3


class Conv3x3(nn.Conv2d):
    """An ``nn.Conv2d`` of 3×3 weights without stride, dilation and groups, with at most one zero around its input."""

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            y: Tensor = self._conv_forward(input, self.weight, self.bias)
            return y
        else:  # which a script leaves out
            return conv3x3(input, self.weight, self.bias, _PADDINGS[self.padding])


_PADDINGS = {(0, 0): 0, "valid": 0, (1, 1): 1, "same": 1}  # nn.Conv2d's to conv3x3's


def is_plain(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether ``module`` is an ``nn.Conv2d`` without stride, dilation and groups, with zeros around its input."""
    return (
        type(module) is nn.Conv2d
        and module.stride == module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and module.groups == 1
    )


def use_winograd(model: nn.Module) -> list[str]:
    """Makes every such ``nn.Conv2d`` of at least 64 channels in ``model`` a :class:`Conv3x3`, in place.

    Parameters, ``state_dict`` and hooks stay; ``torch.jit.script`` compiles PyTorch's own convolution. Left alone are
    subclasses of ``nn.Conv2d``.

    Returns:
        The names of the convolutions.
    """
    names = []
    for name, module in model.named_modules():
        if (
            is_plain(module)
            and module.kernel_size == (3, 3)
            and module.padding in _PADDINGS
            and min(module.in_channels, module.out_channels) >= LEAST_CHANNELS
        ):
            module.__class__ = Conv3x3
            names.append(name)
    return names
