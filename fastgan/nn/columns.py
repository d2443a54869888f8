"""Lets the convolutions with few filters of a model that already exists run by columns, on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgan.functional.columns import LEAST_CHANNELS, LEAST_COLUMNS, MOST_FILTERS, conv_by_columns
from fastgan.nn.winograd import is_plain


class ConvByColumns(nn.Conv2d):
    """An ``nn.Conv2d`` without stride, dilation and groups, with as many zeros on the left as on the right."""

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            y: Tensor = self._conv_forward(input, self.weight, self.bias)
            return y
        else:  # which a script leaves out
            return conv_by_columns(input, self.weight, self.bias, self.padding)  # type: ignore[arg-type]


def use_columns(model: nn.Module) -> list[str]:
    """Makes every such ``nn.Conv2d`` of at most 4 filters of at least 3 columns in ``model`` a :class:`ConvByColumns`.

    In place; parameters, ``state_dict`` and hooks stay; ``torch.jit.script`` compiles PyTorch's own convolution. Left
    alone are subclasses of ``nn.Conv2d``, and padding by a word.

    Returns:
        The names of the convolutions.
    """
    names = []
    for name, module in model.named_modules():
        if (
            is_plain(module)
            and module.out_channels <= MOST_FILTERS
            and module.kernel_size[1] >= LEAST_COLUMNS
            and not isinstance(module.padding, str)
            and module.in_channels >= LEAST_CHANNELS
        ):
            module.__class__ = ConvByColumns
            names.append(name)
    return names
