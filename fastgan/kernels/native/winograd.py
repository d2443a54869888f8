"""Winograd's minimal filtering: its transforms in C++ (csrc/cpu/winograd.cpp), its products by PyTorch's ``bmm``.

The formulas: :mod:`fastgan.reference.winograd`. Tensors are float32 on the CPU; images and weights are dense in
channels_last. Transformed images V and results M are [16, tiles, channels], weights U [16, filters, channels]. Tiles
are taken in pieces, so that what lies between a transform and a product stays in a cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgan.kernels.native._tensor import _C, CPU, address, threads

_TILES = 512  # in a piece
_APART = 64  # elements between planes: addresses a power of two apart share few lines of a cache


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv2d(x, weight, bias), [N, K, H, W]. x: [N, C, H + 2, W + 2], H and W even; weight: [K, C, 3, 3]."""
    (n, _, height, width), filters = x.shape, weight.size(0)
    y = _images(n, filters, height - 2, width - 2)
    u = _transformed(weight).transpose(1, 2)
    for first, images, row, rows in _pieces(n, height // 2 - 1, width // 2 - 1):
        m = torch.bmm(_input(x, first, images, row, rows), u)
        _C.winograd_output(
            m.data_ptr(), m.stride(0), address(bias), _row(y, first, row), images, 2 * rows, width - 2, filters,
            threads(),
        )  # fmt: skip
    return y


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and weight, if needed; grad: [N, K, H, W]."""
    (n, channels, height, width), filters = x.shape, weight.size(0)
    u = _transformed(weight) if need_x else None
    grad_x = _images(n, channels, height, width) if need_x else None
    grad_u = _planes(filters, channels) if need_weight else None
    for first, images, row, rows in _pieces(n, height // 2 - 1, width // 2 - 1):
        m = _planes(images * rows * (width // 2 - 1), filters)
        _C.winograd_output_adjoint(
            _row(grad, first, row), m.data_ptr(), m.stride(0), images, 2 * rows, width - 2, filters, threads()
        )
        if grad_x is not None and u is not None:
            v = torch.bmm(m, u)
            _C.winograd_input_adjoint(
                v.data_ptr(), v.stride(0), _row(grad_x, first, row), row > 0, images, 2 * rows + 2, width, channels,
                threads(),
            )  # fmt: skip
        if grad_u is not None:
            more = first + row > 0
            torch.baddbmm(
                grad_u, m.transpose(1, 2), _input(x, first, images, row, rows), beta=1 if more else 0, out=grad_u
            )
    if grad_u is None:
        return grad_x, None
    grad_weight = _images(filters, channels, 3, 3)
    _C.winograd_weight_adjoint(
        grad_u.data_ptr(), grad_u.stride(0), grad_weight.data_ptr(), filters, channels, threads()
    )
    return grad_x, grad_weight


def _pieces(n: int, high: int, wide: int) -> Iterator[tuple[int, int, int, int]]:
    """First image and images, first row of tiles and rows: several whole images, or part of one."""
    if high * wide < _TILES:
        step = _TILES // (high * wide)
        yield from ((i, min(step, n - i), 0, high) for i in range(0, n, step))
    else:
        step = max(1, _TILES // wide)
        yield from ((i, 1, r, min(step, high - r)) for i in range(n) for r in range(0, high, step))


def _input(x: Tensor, first: int, images: int, row: int, rows: int) -> Tensor:
    channels, width = x.size(1), x.size(3)
    v = _planes(images * rows * (width // 2 - 1), channels)
    _C.winograd_input(_row(x, first, row), v.data_ptr(), v.stride(0), images, 2 * rows + 2, width, channels, threads())
    return v


def _transformed(weight: Tensor) -> Tensor:
    u = _planes(weight.size(0), weight.size(1))
    _C.winograd_weight(weight.data_ptr(), u.data_ptr(), u.stride(0), *weight.shape[:2], threads())
    return u


def _planes(rows: int, columns: int) -> Tensor:
    plane = rows * columns + _APART
    return torch.empty(16 * plane, dtype=torch.float32, device=CPU).as_strided((16, rows, columns), (plane, columns, 1))


def _images(n: int, channels: int, height: int, width: int) -> Tensor:
    shape = (n, channels, height, width)
    return torch.empty(shape, dtype=torch.float32, device=CPU, memory_format=torch.channels_last)


def _row(images: Tensor, image: int, row: int) -> int:
    """The address of a row of tiles of an image."""
    return images.data_ptr() + images.element_size() * (image * images.stride(0) + 2 * row * images.stride(2))
