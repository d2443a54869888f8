"""How the C++ kernels read tensors through DLPack's exchange table, and what they refuse."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgan.kernels.native._tensor import _C  # which hands torch's table over


class DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("dims", ctypes.c_int32),
        ("kind", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


VIEW = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(DLTensor))


class Table(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("others", ctypes.c_void_p * 4),
        ("view", VIEW),
        ("stream", ctypes.c_void_p),
    )


NAME = b"dlpack_exchange_api"
capsule = ctypes.pythonapi.PyCapsule_New
capsule.restype, capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
pointer = ctypes.pythonapi.PyCapsule_GetPointer
pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
TORCH = torch.Tensor.__dlpack_c_exchange_api__


@contextmanager
def table(change: Callable[[DLTensor], None], major: int = 1) -> Iterator[None]:
    """torch's table, with a change made to what it says of a tensor."""
    of_torch = Table.from_address(pointer(TORCH, NAME))

    def view(tensor: Tensor, to: Any) -> int:
        failed: int = of_torch.view(tensor, to)
        change(to.contents)
        return failed

    other = Table(major, 0, of_torch.others, VIEW(view), of_torch.stream)
    try:
        _C.use_dlpack(capsule(ctypes.addressof(other), NAME, None))
        yield
    finally:
        _C.use_dlpack(TORCH)


def forward(x: Tensor, y: Tensor, weight: Tensor | None = None, mean: Tensor | None = None) -> Tensor:
    assert _C.instance_norm_forward(x, weight, None, None, y, mean, None, False, 0, 1.0, 1, 1e-5)
    return y


def test_the_offset_of_the_first_element_is_added() -> None:
    x = torch.randn(3, 2, 5)
    expected = forward(x[1:], torch.empty(2, 2, 5))

    def from_the_start(tensor: DLTensor) -> None:
        if tensor.data == x[1:].data_ptr():
            tensor.data, tensor.byte_offset = x.data_ptr(), 4 * 10

    with table(from_the_start):
        assert torch.equal(forward(x[1:], torch.empty(2, 2, 5)), expected)


@pytest.mark.parametrize("device", [1, 2, 3, 13])
def test_memory_of_other_devices_is_refused(device: int) -> None:
    def move(tensor: DLTensor) -> None:
        tensor.device_type = device

    x = torch.randn(1, 2, 5)
    with table(move):
        if device in (1, 3):  # pageable and pinned
            forward(x, torch.empty_like(x))
        else:
            with pytest.raises(ValueError, match="a C\\+\\+ kernel for the CPU got a tensor on another device"):
                forward(x, torch.empty_like(x))


def test_a_table_of_another_version_is_refused_and_the_one_before_kept() -> None:
    x = torch.randn(1, 2, 5)
    of_torch = Table.from_address(pointer(TORCH, NAME))
    for major in (0, 2):
        other = Table(major, 3, of_torch.others, VIEW(lambda tensor, to: 1), None)
        with pytest.raises(RuntimeError, match="DLPack's exchange table is not of version 1"):
            _C.use_dlpack(capsule(ctypes.addressof(other), NAME, None))
        forward(x, torch.empty_like(x))


def test_without_a_table_nothing_is_read() -> None:
    code = "import torch\nfrom fastgan import _C\n_C.instance_norm_reads(torch.ones(1, 1, 2), False)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("RuntimeError: no DLPack exchange table was handed over")


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.int16, torch.complex64, torch.float8_e5m2])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    other, right = torch.ones(1, 2, 5).to(dtype), torch.ones(1, 2, 5)
    for x, y in ((other, right), (right, other)):
        with pytest.raises(ValueError, match="none of float32, float64, float16 and bfloat16"):
            forward(x, y)


def test_what_torch_raises_is_raised() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        forward(torch.ones(1, 2, 5, device="meta"), torch.ones(1, 2, 5))


X, Y = torch.ones(4, 2, 5), torch.ones(4, 2, 5)
REFUSED = {
    "no spatial dimension": ((X[0], Y[0]), "1, 2 or 3 spatial dimensions"),
    "four spatial dimensions": ((X[..., None, None, None], Y), "1, 2 or 3 spatial dimensions"),
    "other samples": ((X, Y[:3]), "shape and dtype"),
    "other channels": ((X, Y[:, :1]), "shape and dtype"),
    "other size": ((X, Y[..., :4]), "shape and dtype"),
    "other dimensions": ((X, Y[..., None]), "shape and dtype"),
    "other dtype": ((X, Y.double()), "shape and dtype"),
    "weights of other channels": ((X, Y, torch.ones(3)), "the channels"),
    "weights of planes": ((X, Y, torch.ones(4, 2)), "the channels"),
    "means of other samples": ((X, Y, None, torch.ones(3, 2)), "samples and channels"),
    "means of other channels": ((X, Y, None, torch.ones(4, 3)), "samples and channels"),
    "means of channels": ((X, Y, None, torch.ones(2)), "samples and channels"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_shapes_that_do_not_fit_are_refused(case: str) -> None:
    arguments, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        forward(*arguments)


@pytest.mark.parametrize(
    ("mean", "total"),
    [
        (torch.ones(3), torch.ones(3)),
        (torch.ones(2, 3), torch.ones(2, 3)),
        (torch.ones(2, 3), torch.ones(2)),
        (torch.ones(2, 3), torch.ones(3).double()),
        (torch.ones(3, 2).mT, torch.ones(3)),
    ],
)
def test_sums_over_samples_that_do_not_fit_are_refused(mean: Tensor, total: Tensor) -> None:
    with pytest.raises(ValueError, match=r"dense means \[N, C\] add up to \[C\]"):
        _C.instance_norm_over_samples(mean, 4.0, total)
