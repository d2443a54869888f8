"""All of a model's convolutions at once."""

from __future__ import annotations

import warnings

from torch import nn

from fastgan.nn.columns import use_columns
from fastgan.nn.strided import use_strided
from fastgan.nn.winograd import use_winograd


def use_cpu_convolutions(model: nn.Module) -> list[str]:
    """:func:`use_winograd`, :func:`use_columns` and :func:`use_strided`: what is quicker than PyTorch's on a CPU.

    They serve a model in channels_last: ``model.to(memory_format=torch.channels_last)``. On a GPU its convolutions stay
    PyTorch's.

    Returns:
        The names of the convolutions.

    Raises:
        TypeError: ``model`` is no module.

    Warns:
        UserWarning: the model has PyTorch's instance norms; see :func:`pytorch_instance_norms`.
    """
    names = use_winograd(model) + use_columns(model) + use_strided(model)
    if norms := pytorch_instance_norms(model):
        warnings.warn(
            f"{', '.join(norms[:3])}{' …' if norms[3:] else ''}: in channels_last, on a CPU, PyTorch's instance norm "
            "gets the gradients of a batch of one wrong: call fastgan.fuse(model) first",
            stacklevel=2,
        )
    return names


def pytorch_instance_norms(model: nn.Module) -> list[str]:
    """The names of the ``nn.InstanceNorm2d`` and ``3d`` in ``model`` that are PyTorch's own.

    On a CPU, PyTorch 2.11 to 2.15 compute the gradient of a batch of one wrong, without a word, where that of the
    result is in channels_last, as a convolution in channels_last gives it.
    """
    own = (nn.InstanceNorm2d, nn.InstanceNorm3d)
    return [name for name, module in model.named_modules() if type(module) in own]
