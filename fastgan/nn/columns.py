"""Lets the convolutions with few filters of a model that already exists run by columns, on a CPU."""

from __future__ import annotations

from torch import Tensor, nn

from fastgan.functional.columns import LEAST_CHANNELS, LEAST_COLUMNS, MOST_FILTERS, conv_by_columns
from fastgan.nn._convolution import OwnConvolution, plain_window, replace


class ConvByColumns(OwnConvolution):
    """Of few filters, with as many zeros on the left as on the right."""

    @staticmethod
    def fits(conv: nn.Conv2d) -> bool:
        return (
            plain_window(conv)
            and conv.stride == (1, 1)
            and conv.out_channels <= MOST_FILTERS
            and conv.kernel_size[1] >= LEAST_COLUMNS
            and not isinstance(conv.padding, str)
            and conv.in_channels >= LEAST_CHANNELS
        )

    def _convolve(self, input: Tensor) -> Tensor:
        return conv_by_columns(input, self.weight, self.bias, self.padding)  # type: ignore[arg-type]


def use_columns(model: nn.Module) -> list[str]:
    """Makes every ``nn.Conv2d`` of at most 4 filters of at least 3 columns and 8 channels, without stride, dilation and
    groups, in ``model`` a :class:`ConvByColumns`, in place.

    Parameters, ``state_dict`` and hooks stay; ``torch.jit.script`` compiles PyTorch's own convolution. Left alone are
    subclasses of ``nn.Conv2d``, and padding by a word.

    Returns:
        The names of the convolutions.
    """
    return replace(model, nn.Conv2d, ConvByColumns, ConvByColumns.fits)
