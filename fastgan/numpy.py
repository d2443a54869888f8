"""The exact 1-D Wasserstein distance on NumPy arrays, by the same kernels and without copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from fastgan.functional.wasserstein import wasserstein_1d as _wasserstein_1d


def wasserstein_1d(
    x: ArrayLike,
    y: ArrayLike,
    x_weights: ArrayLike | None = None,
    y_weights: ArrayLike | None = None,
    *,
    p: float = 1.0,
    root: bool = True,
) -> Any:
    """The exact p-Wasserstein distance between two weighted samples on the line, for every row of a batch.

    Args:
        x: [..., n] samples; float16, float32 or float64, or integers, which are converted to float64.
        y: [..., m] samples; its leading shape broadcasts with x's.
        x_weights: non-negative masses that broadcast to x's shape, or None for equal ones.
        y_weights: the same for y.
        p: order of the distance, in [1, inf].
        root: whether to return ``W_p``, else ``W_p^p``.

    Returns:
        An array [...] of the samples' common dtype; a NumPy scalar for one row. Arrays are read where they lie, unless
        they have negative strides or another byte order.

    Raises:
        TypeError, ValueError: as :func:`fastgan.functional.wasserstein_1d`.
    """
    tensors = [None if a is None else _tensor(name, a) for name, a in
               (("x", x), ("y", y), ("x_weights", x_weights), ("y_weights", y_weights))]  # fmt: skip
    with torch.no_grad():
        value = _wasserstein_1d(*tensors, p=p, root=root)  # type: ignore[arg-type]
    result: NDArray[Any] = value.numpy()
    return result[()]


class _Writable:
    """The same memory, declared writable: PyTorch warns of read-only arrays, though nothing here writes to one."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def _tensor(name: str, values: ArrayLike) -> torch.Tensor:
    if np.ma.is_masked(values):
        raise TypeError(f"wasserstein_1d: {name} must not be masked: leave samples out by a weight of 0")
    array = np.asarray(values)
    if array.dtype.kind in "iub":
        array = array.astype(np.float64)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise TypeError(f"wasserstein_1d: {name} must hold float16, float32, float64 or integers, got {array.dtype}")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = np.ascontiguousarray(array)
    if not array.flags.writeable:
        array = np.asarray(_Writable(array))
    return torch.from_numpy(array)
