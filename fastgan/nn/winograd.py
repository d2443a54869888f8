"""Lets the 3×3 convolutions of a model that already exists run as :func:`fastgan.functional.winograd.conv3x3`."""

from __future__ import annotations

from torch import Tensor, nn

from fastgan.functional.winograd import LEAST_CHANNELS, conv3x3
from fastgan.nn._convolution import OwnConvolution, plain_window, replace


class Conv3x3(OwnConvolution):
    """Of 3×3 weights, with at most one zero around its input."""

    @staticmethod
    def fits(conv: nn.Conv2d) -> bool:
        return (
            plain_window(conv)
            and conv.stride == (1, 1)
            and conv.kernel_size == (3, 3)
            and conv.padding in _PADDINGS
            and min(conv.in_channels, conv.out_channels) >= LEAST_CHANNELS
        )

    def _convolve(self, input: Tensor) -> Tensor:
        return conv3x3(input, self.weight, self.bias, _PADDINGS[self.padding])


_PADDINGS = {(0, 0): 0, "valid": 0, (1, 1): 1, "same": 1}  # nn.Conv2d's to conv3x3's


def use_winograd(model: nn.Module) -> list[str]:
    """Makes every ``nn.Conv2d`` of 3×3 weights, without stride, dilation and groups, with at most one zero around its
    input and at least 64 channels in ``model`` a :class:`Conv3x3`, in place.

    Parameters, ``state_dict`` and hooks stay; ``torch.jit.script`` compiles PyTorch's own convolution. Left alone are
    subclasses of ``nn.Conv2d``.

    Returns:
        The names of the convolutions.
    """
    return replace(model, nn.Conv2d, Conv3x3, Conv3x3.fits)
