"""All of a model's convolutions at once."""

from __future__ import annotations

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
    """
    return use_winograd(model) + use_columns(model) + use_strided(model)
