"""Convolutions of our own in a model that already exists."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Conv = TypeVar("Conv", nn.Conv2d, nn.ConvTranspose2d)


class OwnConvolution(nn.Conv2d):
    """An ``nn.Conv2d`` without dilation and groups, with zeros around its input, in a way of our own.

    ``torch.jit.script`` compiles PyTorch's. It is PyTorch's, too, once it was changed into one that does not fit.
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            y: Tensor = self._conv_forward(input, self.weight, self.bias)
            return y
        else:  # which a script leaves out
            return self._convolve(input) if self.fits(self) else super().forward(input)

    @staticmethod
    def fits(conv: nn.Conv2d) -> bool:
        raise NotImplementedError

    def _convolve(self, input: Tensor) -> Tensor:
        raise NotImplementedError


def plain_window(conv: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Whether its dilation and groups are 1, zeros are around its input, and it convolves as its class does."""
    return (
        conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and conv.groups == 1
        and "_conv_forward" not in vars(conv)
    )


def replace(model: nn.Module, plain: type[Conv], own: type[Conv], fits: Callable[[Conv], bool]) -> list[str]:
    """Makes every ``plain`` that fits an ``own``, in place; gives their names."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    names = []
    for name, module in model.named_modules():
        if type(module) is plain and fits(module):
            module.__class__ = own
            names.append(name)
    return names
