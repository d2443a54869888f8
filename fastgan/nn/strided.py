"""Lets the strided and transposed convolutions of a model that already exists run as those of
:mod:`fastgan.functional.strided`."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from fastgan.functional.strided import LEAST_CHANNELS, conv_strided, conv_transposed
from fastgan.nn._convolution import OwnConvolution, plain_window, replace


def _fits(conv: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    return (
        plain_window(conv)
        and min(conv.stride) > 1
        and not isinstance(conv.padding, str)
        and min(conv.in_channels, conv.out_channels) >= LEAST_CHANNELS
    )


class StridedConv(OwnConvolution):
    """With as many zeros on the left as on the right."""

    fits = staticmethod(_fits)

    def _convolve(self, input: Tensor) -> Tensor:
        return conv_strided(input, self.weight, self.bias, self.stride, self.padding)  # type: ignore[arg-type]


class TransposedConv(nn.ConvTranspose2d):
    """``torch.jit.script`` compiles PyTorch's. It is PyTorch's, too, once it was changed into one that does not fit."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        more = self._output_padding(input, output_size, self.stride, self.padding, self.kernel_size, 2, self.dilation)  # type: ignore[arg-type]
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            w, b = self.weight, self.bias
            return nnf.conv_transpose2d(input, w, b, self.stride, self.padding, more, self.groups, self.dilation)  # type: ignore[arg-type]
        elif not _fits(self):  # this and the rest a script leaves out
            return super().forward(input, output_size)
        else:
            return conv_transposed(input, self.weight, self.bias, self.stride, self.padding, more)  # type: ignore[arg-type]


def use_strided(model: nn.Module) -> list[str]:
    """Makes every ``nn.Conv2d`` and ``nn.ConvTranspose2d`` with a stride above 1 both ways, without dilation and groups
    and of at least 64 channels and filters, in ``model`` a :class:`StridedConv` or :class:`TransposedConv`, in place.

    Parameters, ``state_dict`` and hooks stay; ``torch.jit.script`` compiles PyTorch's own convolution. Left alone are
    subclasses of either, and padding by a word.

    Returns:
        The names of the convolutions.
    """
    return replace(model, nn.Conv2d, StridedConv, _fits) + replace(model, nn.ConvTranspose2d, TransposedConv, _fits)
