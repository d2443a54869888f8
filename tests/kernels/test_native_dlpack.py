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

F32 = torch.float32


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


@pytest.mark.parametrize(("field", "value"), [("device_type", 2), ("device_id", 1)])
def test_tensors_of_two_devices_do_not_fit_each_other(field: str, value: int) -> None:
    x, other, parameter = torch.ones(2, 3, 4), torch.ones(2, 3, 4), torch.ones(3)

    def move(tensor: DLTensor) -> None:
        if tensor.data in (other.data_ptr(), parameter.data_ptr()):
            setattr(tensor, field, value)

    setting = (0.2, 0, 1e-5)
    assert _C.instance_norm_fits(x, parameter, parameter, other, *setting)
    with table(move):
        if field == "device_type":
            assert not _C.alike(x, other)
            assert not _C.alike(other, x)
        assert not _C.instance_norm_fits(x, None, None, other, *setting)
        assert not _C.instance_norm_fits(x, parameter, None, None, *setting)
        assert not _C.instance_norm_fits(x, None, parameter, None, *setting)


def test_a_table_of_another_version_is_refused_and_the_one_before_kept() -> None:
    x = torch.randn(1, 2, 5)
    of_torch = Table.from_address(pointer(TORCH, NAME))
    for major in (0, 2):
        other = Table(major, 3, of_torch.others, VIEW(lambda tensor, to: 1), None)
        with pytest.raises(RuntimeError, match="DLPack's exchange table is not of version 1"):
            _C.use_dlpack(capsule(ctypes.addressof(other), NAME, None))
        forward(x, torch.empty_like(x))


def test_without_a_table_nothing_is_read() -> None:
    code = (
        "import torch, importlib.util as i\n"  # importing the package would hand it over
        f"spec = i.spec_from_file_location('fastgan._C', {_C.__file__!r})\n"
        "_C = i.module_from_spec(spec)\n"
        "spec.loader.exec_module(_C)\n"
        "assert not _C.alike(torch.ones(2), torch.ones(2)) and _C.held((torch.ones(2),)) == -1\n"
        "assert not _C.instance_norm_fits(torch.ones(1, 1, 2), None, None, None, 0.2, 0, 1e-5)\n"
        "_C.instance_norm_reads(torch.ones(1, 1, 2), False)"
    )
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


@pytest.mark.parametrize("dtype", [F32, torch.double, torch.half])
def test_packed_statistics_lie_one_after_the_other_and_have_one_size(dtype: torch.dtype) -> None:
    x = torch.randn(4, 2, 5, dtype=dtype)
    statistics = torch.empty(2, 4, 2, dtype=torch.double if dtype == torch.double else F32)
    packed = bytearray(statistics.nbytes)
    y, grad_x = torch.empty_like(x), torch.empty_like(x)
    none, setting = (None,) * 3, (False, 0, 1.0, 1)
    assert _C.instance_norm_forward(x, *none, y, *statistics, *setting, 1e-5)
    assert _C.instance_norm_forward(x, *none, y, packed, None, *setting, 1e-5)
    assert packed == statistics.numpy().tobytes()
    assert _C.instance_norm_backward(y, x, *none, packed, None, grad_x, *none, *setting)
    for wrong in (0, len(packed) // 2, len(packed) - 1, len(packed) + 1, 2 * len(packed)):
        with pytest.raises(ValueError, match="packed statistics have not the size that x asks for"):
            _C.instance_norm_forward(x, *none, y, bytearray(wrong), None, *setting, 1e-5)
        with pytest.raises(ValueError, match="packed statistics have not the size that x asks for"):
            _C.instance_norm_backward(y, x, *none, bytearray(wrong), None, grad_x, *none, *setting)


X = torch.ones(2, 3, 4)
ALIKE = {
    "equal in shape and dtype": (X, torch.zeros(2, 3, 4)),
    "views that begin elsewhere": (torch.ones(3, 3, 4)[1:], X),
    "strides of dimensions of one element": (torch.ones(4, 1, 3).transpose(0, 1), torch.ones(1, 4, 3)),
    "a scalar": (torch.ones(()), torch.ones(())),
    "bfloat16": (X.bfloat16(), X.bfloat16()),
    "parameters": (torch.nn.Parameter(X), X),
}
UNLIKE = {
    "other shape": (X, X[:1]),
    "other dimensions": (X, X[None]),
    "other dtype": (X, X.double()),
    "other 16 bits": (X.half(), X.bfloat16()),
    "integers": (X.int(), X.int()),
    "strided": (X.mT, X.mT),
    "expanded": (X[:, :1].expand(2, 3, 4), X),
    "channels last": (X, torch.ones(2, 4, 3).mT),
    "empty": (X[:0], X[:0]),
    "meta": (X.to("meta"), X.to("meta")),
    "sparse": (X.to_sparse(), X.to_sparse()),
    "zeros without memory": (torch._efficientzerotensor((2, 3, 4)), X),
    "no tensors": (X, 3.0),
}


def test_what_needs_no_further_check() -> None:
    for name, (a, b) in ALIKE.items():
        assert _C.alike(a, b) is _C.alike(b, a) is True, name
    for name, (a, b) in UNLIKE.items():
        assert _C.alike(a, b) is _C.alike(b, a) is False, name
    with torch._subclasses.fake_tensor.FakeTensorMode():
        fake = torch.ones(2, 3, 4)
    assert not _C.alike(fake, fake)
    seen: list[bool] = []
    torch.func.vmap(lambda x: (seen.append(_C.alike(x, x)), x)[1])(X)
    assert seen == [False]


ONE, NORMS, SIGNS, TURNED = torch.ones(()), torch.ones(2), torch.zeros(1024, dtype=torch.uint8), torch.ones(2, 4, 3).mT
SHARED = torch.ones(8).as_strided((2, 2, 2), (4, 0, 3))  # its last element lies where a dense tensor's does
PENALTY = (1.0, False)  # target, one_sided
NEED = (True, True, True)
REFUSED_BY_LOSSES = {
    "gradient_norm_penalty_forward": {
        "gaps": (X[..., :2], *PENALTY),
        "elements in one place": (SHARED, *PENALTY),
        "samples apart": (torch.ones(4, 2, 3).transpose(0, 1), *PENALTY),
        "no samples": (X[:0], *PENALTY),
    },
    "gradient_norm_penalty_backward": {
        "other norms": (ONE, X, NORMS[:1], *PENALTY),
        "norms of another dtype": (ONE, X, NORMS.double(), *PENALTY),
        "strided norms": (ONE, X, torch.ones(4)[::2], *PENALTY),
    },
    "gradient_norm_penalty_double_backward": {
        "other cotangent": (X[:, 1:], ONE, X, NORMS, *PENALTY),
        "another layout": (TURNED, ONE, X, NORMS, *PENALTY),
        "a number in 16 bits": (X, ONE.half(), X, NORMS, *PENALTY),
    },
    "interpolate_forward": {
        "other shape": (X, X[:, 1:], NORMS, None),
        "other dtype": (X, X.double(), NORMS, None),
        "another layout": (X, TURNED, NORMS, None),
        "strided alpha": (X, X, X[:, 0, 0], None),
        "neither alpha nor seed": (X, X, None, None),
    },
    "interpolate_backward": {
        "alpha of another dtype": (X, X, X, NORMS.half(), *NEED),
        "no images": (X, None, X, NORMS, *NEED),
        "other images": (X, X[:1], X, NORMS, *NEED),
    },
    "weighted_l1_forward": {
        "other shape": ([X, X[:1]], [1.0], [0], F32),
        "another layout": ([X, TURNED], [1.0], [0], F32),
        "gaps": ([X[..., :2], X[..., :2]], [1.0], [0], F32),
        "elements in one place": ([SHARED, SHARED], [1.0], [0], F32),
        "dtypes that no kernel takes together": ([X, X.double()], [1.0], [0], F32),
        "two dtypes of 16 bits": ([X.half(), X.bfloat16()], [1.0], [0], F32),
        "empty": ([X[:0], X[:0]], [1.0], [0], F32),
        "no weight": ([X, X], [], [], F32),
        "a value in 16 bits": ([X, X], [1.0], [0], torch.half),
        "few signs": ([X, X], [1.0], [512], F32),
        "many signs": ([X, X], [1.0], [2048], F32),
        "a tensor too few": ([X], [1.0], [0], F32),
    },
    "weighted_l1_backward": {
        "signs of one pair": (ONE, SIGNS, [24, 24], [1.0, 1.0], [1024, 1024], [0, -1, 0, -1]),
        "no signs": (ONE, SIGNS[:0], [24], [1.0], [0], [0, -1]),
        "signs that are no bytes": (ONE, SIGNS.int(), [24], [1.0], [1024], [0, -1]),
        "signs that have signs": (ONE, SIGNS.char(), [24], [1.0], [1024], [0, -1]),
        "strided signs": (ONE, SIGNS.repeat(2)[::2], [24], [1.0], [1024], [0, -1]),
    },
    "weighted_l1_directional": {
        "other direction": ([X[:1], None], SIGNS, [24], [1.0], [1024], F32),
        "gaps": ([torch.ones(48)[::2], None], SIGNS, [24], [1.0], [1024], F32),
        "elements in one place": ([SHARED, None], SIGNS, [8], [1.0], [1024], F32),
        "no sizes": ([X, X], SIGNS, [], [1.0], [1024], F32),
    },
}


@pytest.mark.parametrize(
    ("operator", "case"), [(name, case) for name, cases in REFUSED_BY_LOSSES.items() for case in cases]
)
def test_what_does_not_fit_is_refused_by_losses(operator: str, case: str) -> None:
    with pytest.raises(ValueError, match="a tensor has not the shape, dtype or strides that the others ask for"):
        getattr(torch.ops.fastgan, operator)(*REFUSED_BY_LOSSES[operator][case], "native")


def test_a_gradient_that_does_not_fit_is_refused_before_it_is_written() -> None:
    value = torch.full((), -1.0)
    for grad in (torch.full((2, 3, 3), -1.0), torch.full((2, 3, 4), -1.0, dtype=torch.double)):
        with pytest.raises(ValueError, match="a tensor has not"):
            _C.l1_forward(value, [X, X], [1.0], [1024], SIGNS, [None, grad], 1)
        with pytest.raises(ValueError, match="a tensor has not"):
            _C.gradient_penalty_forward(X, value, NORMS.clone(), 1.0, grad, 1.0, False, 1)
        with pytest.raises(ValueError, match="a tensor has not"):
            _C.interpolate_forward(X, X, NORMS, False, 0, grad, 1)
        assert value == -1
        assert (grad == -1).all()


def test_what_does_not_fit_is_refused_by_the_kernels_of_l1() -> None:
    """What no operator hands over."""
    value, grad = torch.ones(()), torch.full_like(X, -1.0)
    calls: list[tuple[Any, ...]] = [
        (_C.l1_forward, torch.ones(1), [X, X], [1.0], [0], SIGNS, [None, None]),
        (_C.l1_forward, value, [X, X], [1.0], [1024], SIGNS, [None]),
        (_C.l1_forward, value, [X, X], [1.0], [0], SIGNS, [grad, None]),
        (_C.l1_forward, value, [X, X], [1.0], [0], SIGNS, [None, grad]),
        (_C.l1_backward, 1.0, SIGNS, [], [1.0], [1024], [grad, None]),
        (_C.l1_backward, 1.0, SIGNS, [24], [1.0], [1024], [grad]),
    ]
    for function, *arguments in calls:
        with pytest.raises(ValueError, match="a tensor has not"):
            function(*arguments, 1)
        assert (grad == -1).all()


def test_gradients_of_l1_may_begin_at_any_address() -> None:
    """Where both would be written past the caches, which takes whole vectors at their own addresses only."""
    n = 1 << 20
    a, b, signs = torch.randn(n), torch.randn(n), torch.empty(n // 4, dtype=torch.uint8)
    aligned, shifted = torch.empty(n), torch.empty(n + 1)[1:]
    for grads in ([aligned, shifted], [shifted, aligned]):
        _C.l1_forward(torch.empty(()), [a, b], [1.0], [n // 4], signs, grads, 1)
        assert torch.equal(grads[0], (a - b).sign() / n)
        assert torch.equal(grads[1], (b - a).sign() / n)


def test_signs_do_not_depend_on_what_lay_in_their_memory() -> None:
    signs = torch.full((1024,), 255, dtype=torch.uint8)
    _C.l1_forward(torch.empty(()), [X, 2 * X], [1.0], [1024], signs, [None, None], 1)  # 24 elements of a < b
    assert signs.tolist() == [0] * 8 + [255] * 3 + [0] * 1013


def test_one_sample_may_lie_anywhere() -> None:
    one = torch.randn(3, 1, 4).transpose(0, 1)  # whose stride is that of its rows
    got = torch.ops.fastgan.gradient_norm_penalty_forward(one, *PENALTY, "native")
    torch.testing.assert_close(got[1], one.flatten().norm()[None])


PLAIN, RECORDED, UNKNOWN = 0, 1, -1
LEAF = torch.ones(2, requires_grad=True)
NEGATIVE = torch.ones(2, dtype=torch.complex64).conj().imag
HELD: dict[str, tuple[Any, int]] = {
    "no tensor": ((None, True, 3, 0.5, "relu", torch.float32, (1, 2)), PLAIN),
    "plain tensors": ((torch.ones(2), None, torch.ones(2).double()), PLAIN),
    "one that requires a gradient": ((torch.ones(2), LEAF), RECORDED),
    "one that depends on it": ((LEAF * 2, torch.ones(2)), RECORDED),
    "a parameter": ((torch.nn.Parameter(torch.ones(2)),), RECORDED),
    "a frozen parameter": ((torch.nn.Parameter(torch.ones(2), requires_grad=False),), PLAIN),
    "a list": (([torch.ones(2), torch.ones(2)], 3), PLAIN),
    "a list with one that requires a gradient": (([torch.ones(2), LEAF], torch.ones(2)), RECORDED),
    "a list with one before one without": (([LEAF], [torch.ones(2)]), RECORDED),
    "tensors in a list alone": ([torch.ones(2), LEAF], RECORDED),
    "the negative of its memory": ((torch.ones(2), NEGATIVE), UNKNOWN),
    "the negative of its memory in a list": (([NEGATIVE],), UNKNOWN),
    "a subclass": ((torch.ones(2).as_subclass(type("Mine", (Tensor,), {})),), UNKNOWN),
    "a sparse tensor": ((torch.ones(2).to_sparse(),), UNKNOWN),
    "a nested tensor": ((torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),), UNKNOWN),
    "on no device": ((torch.ones(2, device="meta"),), UNKNOWN),
    "no tuple": (torch.ones(2), UNKNOWN),
}


@pytest.mark.parametrize("case", HELD)
def test_what_arguments_hold(case: str) -> None:
    arguments, expected = HELD[case]
    assert _C.held(arguments) == expected


def test_what_a_transform_hands_on_is_unknown() -> None:
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append((_C.held((x,)), x))
        return x.sum()

    def keep(gradient: Tensor) -> None:
        look(gradient)

    torch.func.vmap(look)(torch.ones(2, 3))
    torch.func.grad(look)(torch.ones(3))
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    y.register_hook(keep)
    torch.autograd.grad(y, x, torch.ones(2, 3), is_grads_batched=True)
    assert [told for told, _ in seen] == [UNKNOWN] * 3
    assert [_C.held((wrapper,)) for _, wrapper in seen] == [UNKNOWN] * 3  # now that the transforms are over
