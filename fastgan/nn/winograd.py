"""Lets the 3×3 convolutions of a model that already exists run as :func:`fastgan.functional.winograd.conv3x3`."""

from __future__ import annotations

from torch import Tensor, nn

from fastgan.functional.winograd import LEAST_CHANNELS, conv3x3


class Conv3x3(nn.Conv2d):
    """An ``nn.Conv2d`` of 3×3 weights without stride, padding, dilation and groups."""

    def forward(self, input: Tensor) -> Tensor:
        return conv3x3(input, self.weight, self.bias)


def use_winograd(model: nn.Module) -> list[str]:
    """Makes every such ``nn.Conv2d`` of at least 64 channels in ``model`` a :class:`Conv3x3`, in place.

    Parameters, ``state_dict`` and hooks stay. Left alone are subclasses of ``nn.Conv2d``.

    Returns:
        The names of the convolutions.
    """
    names = []
    for name, module in model.named_modules():
        if (
            type(module) is nn.Conv2d
            and module.kernel_size == (3, 3)
            and module.stride == module.dilation == (1, 1)
            and module.padding in ((0, 0), 0, "valid")
            and module.groups == 1
            and min(module.in_channels, module.out_channels) >= LEAST_CHANNELS
        ):
            module.__class__ = Conv3x3
            names.append(name)
    return names
