"""Data sets: folders of images, small image sets, two-dimensional toys.

Names are imported when they are first used, so that Pillow is loaded by those who read images only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastgan.data.decode import DataError, decode
    from fastgan.data.emoji import make_emoji_dataset
    from fastgan.data.images import PairedImageFolder, SingleImageFolder, UnpairedImageFolder
    from fastgan.data.points import Points
    from fastgan.data.tensors import ImageTensor, cifar10, digits, mnist
    from fastgan.data.transforms import Preprocess

_HOMES = {
    "DataError": "decode",
    "ImageTensor": "tensors",
    "PairedImageFolder": "images",
    "Points": "points",
    "Preprocess": "transforms",
    "SingleImageFolder": "images",
    "UnpairedImageFolder": "images",
    "cifar10": "tensors",
    "decode": "decode",
    "digits": "tensors",
    "make_emoji_dataset": "emoji",
    "mnist": "tensors",
}

__all__ = [
    "DataError",
    "ImageTensor",
    "PairedImageFolder",
    "Points",
    "Preprocess",
    "SingleImageFolder",
    "UnpairedImageFolder",
    "cifar10",
    "decode",
    "digits",
    "make_emoji_dataset",
    "mnist",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastgan.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fastgan.data.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
