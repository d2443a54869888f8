"""What is particular to the C++ kernels: instruction sets, threads, the memory they touch, 64-bit indices."""

from __future__ import annotations

import math
import mmap
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgan.kernels import layout
from fastgan.kernels.native import instance_norm as kernels
from fastgan.reference import instance_norm as reference

GUARD = 64
NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Linux; named from Python 3.13 on
fp64, fp32, fp16, bf16 = torch.float64, torch.float32, torch.float16, torch.bfloat16


def _guarded(shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype) -> Tensor:
    """Random, off centre, between NaN."""
    n = math.prod(shape)
    buffer = torch.full((n + 2 * GUARD + 1,), math.nan, dtype=dtype)
    inner = buffer[GUARD + 1 : GUARD + 1 + n]  # misaligned
    inner.copy_(torch.randn(n, dtype=fp64) * 2 + 3)
    return inner.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1) if channels_last else inner.view(shape)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the launchers allocate is NaN and lies between guards, which must be NaN afterwards."""
    allocated: list[Tensor] = []
    empty = torch.empty

    def guarded(*shape: Any, **options: Any) -> Tensor:
        shape = shape[0] if len(shape) == 1 else shape
        n = math.prod(shape)
        allocated.append(empty(n + 2 * GUARD, **options).fill_(math.nan))
        return allocated[-1][GUARD : GUARD + n].view(tuple(shape))

    def strided(shape: Any, strides: Any, **options: Any) -> Tensor:  # dense in some order
        return guarded((math.prod(shape),), **options).as_strided(shape, strides, GUARD)

    monkeypatch.setattr(torch, "empty", guarded)
    monkeypatch.setattr(torch, "empty_like", lambda t: strided(t.shape, t.stride(), dtype=t.dtype))
    monkeypatch.setattr(torch, "empty_strided", strided)
    yield
    assert len(allocated) >= 3
    for buffer in allocated:
        assert buffer[:GUARD].isnan().all()
        assert buffer[-GUARD:].isnan().all()
        assert not buffer[GUARD:-GUARD].isnan().any()


# shape, channels last, padding, dtype: tails of every length, several chunks and slabs, one and many rows.
CASES = [
    ((2, 3, 9, 7), False, 2, fp32),
    ((1, 2, 200, 191), False, 1, fp32),
    ((1, 1, 131072), False, 0, bf16),
    ((3, 40, 2, 2), False, 0, fp16),
    ((3, 7, 3, 3), False, 0, fp32),
    ((1, 37, 8, 8), False, 0, fp32),
    ((5, 5, 2, 4, 4), False, 0, fp64),
    ((2, 9, 5), False, 0, bf16),
    ((1, 1, 7, 9), False, 0, bf16),
    ((1, 19, 90, 85), True, 3, fp32),
    ((2, 70, 33, 31), True, 0, bf16),
    ((1, 3, 5, 6, 7), True, 2, fp64),
    ((2, 2, 9, 8, 10), False, 1, fp16),
    # Blocks of several planes, and of one.
    ((2, 19, 31, 31), False, 1, fp32),
    ((3, 9, 33, 31), False, 0, bf16),
    ((1, 5, 64, 66), False, 3, fp32),
    # Large enough to be written past the caches.
    ((1, 13, 512, 129), False, 0, fp32),
    ((2, 16, 161, 160), True, 0, fp32),
    ((4, 64, 60, 61), True, 2, fp32),
    ((4, 205, 31, 33), False, 2, fp32),
    ((1, 420, 32, 64), False, 1, fp32),
    ((3, 148, 6, 17, 19), False, 1, fp32),
    ((1, 5, 6, 170, 160), False, 3, fp32),
]


def _all(shape: tuple[int, ...], channels_last: bool, pad: int, dtype: torch.dtype) -> list[Tensor]:
    """Every result of the three passes, with every option on."""
    stats = reference.statistics_dtype(dtype)
    padded = (*shape[:2], *(size + 2 * pad for size in shape[2:]))
    x, residual, u, v_residual = (_guarded(shape, channels_last, dtype) for _ in range(4))
    grad = _guarded(padded, channels_last, dtype)
    weight, bias, v_weight, v_bias = (torch.randn(shape[1], dtype=stats) for _ in range(4))
    setting = ("leaky_relu", 0.2, pad)
    y, mean, rstd = kernels.forward(x, weight, bias, residual, *setting, 1e-5)
    back = kernels.backward(grad, x, weight, bias, residual, mean, rstd, *setting, True)
    double = kernels.double_backward(
        u, v_residual, v_weight, v_bias, grad, x, weight, bias, residual, mean, rstd, *back[2:], *setting
    )
    exact = [t.double() for t in (x, weight, bias, residual, mean, rstd)]
    want = [*reference.forward(*exact[:4], *setting, 1e-5)]
    back_want = reference.backward(grad.double(), *exact, *setting)
    want += back_want
    want += reference.double_backward(
        *(t.double() for t in (u, v_residual, v_weight, v_bias, grad)), *exact, *back_want[2:], *setting
    )
    got = [y, mean, rstd, *back, *double]
    for name, a, b in zip(("y", "mean", "rstd", "grad_x", "grad_z", "m1", "m2", "grad_grad", "grad_x", "grad_w"),
                          got, want, strict=True):  # fmt: skip
        eps = torch.finfo(a.dtype).eps
        # grad_w is a difference of sums over the plane, so its error goes with the number of terms.
        terms = 4 * eps * math.prod(shape[2:]) if name == "grad_w" else 0.0
        assert (a - b).abs().max() <= (16 * eps if a.dim() > 2 else 64 * eps) * b.abs().max() + terms, name
    return got


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_touches_its_memory_only(case: tuple[Any, ...]) -> None:
    _all(*case)


def _digest() -> list[str]:
    """The bits of every result, to compare between numbers of threads."""
    digest = []
    for case in CASES:
        torch.manual_seed(0)
        digest += [t.contiguous().view(torch.uint8).numpy().tobytes().hex()[:4096] for t in _all(*case)]
    return digest


def test_does_not_depend_on_the_number_of_threads() -> None:
    threads = torch.get_num_threads()
    try:
        digests = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            digests.append(_digest())
    finally:
        torch.set_num_threads(threads)
    assert digests[0] == digests[1] == digests[2]


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "avx512_bf16"])
def test_every_instruction_set(isa: str) -> None:
    """In a process of its own, on one thread; a set that this processor lacks falls back to what it has."""
    code = "from tests.kernels import test_native_instance_norm as t\nt._digest()"
    environment = {**os.environ, "FASTGAN_CPU_ISA": isa, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_tensor_that_does_not_fit_is_refused() -> None:
    """Before a kernel follows its address, as any caller of torch.ops.fastgan may get it wrong."""
    x, plane = torch.randn(2, 3, 4, 5), torch.ones(2, 3)
    good = {"grad": x, "weight": torch.ones(3), "mean": plane}
    for name, wrong in (
        ("grad", x[:, :, 1:]), ("grad", x.double()), ("grad", x[0]),
        ("weight", torch.ones(2)), ("mean", torch.ones(3, 2)),
    ):  # fmt: skip
        grad, weight, mean = (good | {name: wrong}).values()
        with pytest.raises(ValueError, match="a tensor has not"):
            torch.ops.fastgan.instance_norm_act_backward(
                grad, x, weight, None, None, mean, plane, "relu", 0.0, 0, False, True, "native"
            )


def test_tensors_are_taken_in_any_dense_or_strided_form() -> None:
    """What the kernels do not read is copied: expanded, transposed and 16-bit tensors, and rows of one element."""
    x = torch.randn(3, 4, 5, 6)
    forms = [x, x.mT.contiguous().mT, x.to(memory_format=torch.channels_last), torch.stack((x, x), -1)[..., 0]]
    forms.append(torch.cat((x, x), 3)[..., :6])
    weight = torch.randn(8)[::2]
    parameters = (weight, weight.contiguous(), weight.bfloat16().float().bfloat16())
    want = [kernels.forward(x, w.float().contiguous(), None, x, "relu", 0.0, 1, 1e-5)[0] for w in parameters]
    for form in forms:
        for w, y in zip(parameters, want, strict=True):
            torch.testing.assert_close(kernels.forward(form, w, None, form, "relu", 0.0, 1, 1e-5)[0], y)
    column = torch.randn(2, 3, 7, 2)[..., :1]
    y = kernels.forward(column, None, None, None, "none", 1.0, 0, 1e-5)[0]
    torch.testing.assert_close(y, kernels.forward(column.contiguous(), None, None, None, "none", 1.0, 0, 1e-5)[0])
    ones = torch.ones(()).expand(2, 3, 7, 1)
    got = kernels.backward(ones, column, None, None, None, *(torch.ones(2, 3),) * 2, "none", 1.0, 0, False)
    dense = kernels.backward(
        ones.contiguous(), column, None, None, None, *(torch.ones(2, 3),) * 2, "none", 1.0, 0, False
    )
    assert torch.equal(got[0], dense[0])


@pytest.mark.parametrize("gaps", ["samples", "planes"])
@pytest.mark.parametrize("shape", [(3, 5, 2, 2), (1, 19, 3, 3), (2, 3, 5, 7)])
def test_any_tensor_may_have_gaps(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], gaps: str) -> None:
    """One of them at a time, between samples or planes: where none has, planes are taken as one run of elements."""
    n, c, h, w = shape
    inputs = [torch.randn(shape) for _ in range(5)]
    weight, bias, v_weight, v_bias = (torch.randn(c) for _ in range(4))
    setting = ("leaky_relu", 0.2, 0)
    dense = kernels._result

    def gapped(t: Tensor) -> Tensor:
        if gaps == "samples":
            return torch.full((n, c + 1, h, w), math.nan)[:, :c].copy_(t)
        return torch.full((n, c, h + 1, w), math.nan)[:, :, :h].copy_(t)

    def results(read: int | None = None, written: int | None = None) -> list[Tensor]:
        x, residual, grad, u, v_residual = (gapped(t) if k == read else t for k, t in enumerate(inputs))
        made: list[Tensor] = []

        def result(*arguments: Any) -> tuple[Tensor, bool]:
            y, channels_last = dense(*arguments)
            made.append(gapped(y.fill_(math.nan)) if len(made) == written else y)
            return made[-1], channels_last

        monkeypatch.setattr(kernels, "_result", result)
        y, mean, rstd = kernels.forward(x, weight, bias, residual, *setting, 1e-5)
        back = kernels.backward(grad, x, weight, bias, residual, mean, rstd, *setting, True)
        double = kernels.double_backward(
            u, v_residual, v_weight, v_bias, grad, x, weight, bias, residual, mean, rstd, *back[2:], *setting
        )
        if written is not None:
            whole = made[written]._base
            assert whole is not None
            assert whole.isnan().sum() == whole.numel() - n * c * h * w
        return [y, mean, rstd, *back, *double]

    want = results()
    for k in range(5):  # as many are read as written: y, grad_x, grad_z, grad_grad and grad_x
        for got in (results(read=k), results(written=k)):
            for a, b in zip(got, want, strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("far", ["n", "c", "h"])
def test_indices_are_64_bit(monkeypatch: pytest.MonkeyPatch, channels_last: bool, far: str) -> None:
    """Samples, channels or rows 2^31 + 5 elements apart, in memory of which only the touched pages exist."""
    if channels_last and far == "c":
        pytest.skip("channels lie next to each other")
    shape, distance = (2, 2, 2, 24), 2**31 + 5
    strides = {
        "n": 96,
        "c": 1 if channels_last else 48,
        "h": 48 if channels_last else 24,
        "w": 2 if channels_last else 1,
    }
    strides[far] = distance

    def sparse(*_: Any, **__: Any) -> Tensor:
        memory = mmap.mmap(-1, 2 * (2 * distance + 256), flags=mmap.MAP_PRIVATE | NORESERVE)
        flat = torch.frombuffer(memory, dtype=bf16)
        return flat.as_strided(shape, tuple(strides.values()))

    x = sparse()
    x.copy_(torch.randn(shape))
    grad = sparse()
    grad.copy_(torch.randn(shape))
    near, near_grad = (layout.dense(t, channels_last) for t in (x, grad))
    want = kernels.forward(near, None, None, near, "relu", 0.0, 0, 1e-5)
    want_back = kernels.backward(near_grad, near, None, None, near, *want[1:], "relu", 0.0, 0, True)
    want_double = kernels.double_backward(
        near, near, None, None, near_grad, near, None, None, near, *want[1:], *want_back[2:], "relu", 0.0, 0
    )
    monkeypatch.setattr(kernels, "_result", lambda *_: (sparse(), channels_last))
    got = kernels.forward(x, None, None, x, "relu", 0.0, 0, 1e-5)
    back = kernels.backward(grad, x, None, None, x, *got[1:], "relu", 0.0, 0, True)
    double = kernels.double_backward(x, x, None, None, grad, x, None, None, x, *got[1:], *back[2:], "relu", 0.0, 0)
    for a, b in zip((*got, *back, *double), (*want, *want_back, *want_double), strict=True):
        torch.testing.assert_close(a, b)  # rows far apart are added up in another order


def test_padding_is_read_and_written_beyond_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, padded, distance = (1, 1, 3, 20), (1, 1, 7, 24), 2**31 + 5

    def sparse(sizes: tuple[int, ...]) -> Tensor:
        memory = mmap.mmap(-1, 2 * (sizes[2] * distance + 64), flags=mmap.MAP_PRIVATE | NORESERVE)
        return torch.frombuffer(memory, dtype=bf16).as_strided(sizes, (0, 0, distance, 1))

    x, near_grad = torch.randn(shape).to(bf16), torch.randn(padded).to(bf16)
    grad = sparse(padded)
    grad.copy_(near_grad)
    want = kernels.forward(x, None, None, None, "relu", 0.0, 2, 1e-5)
    want_back = kernels.backward(near_grad, x, None, None, None, *want[1:], "relu", 0.0, 2, True)
    back = kernels.backward(grad, x, None, None, None, *want[1:], "relu", 0.0, 2, True)
    monkeypatch.setattr(kernels, "_result", lambda *_: (sparse(padded), False))
    y = kernels.forward(x, None, None, None, "relu", 0.0, 2, 1e-5)[0]
    assert torch.equal(y, want[0])
    for a, b in zip(back, want_back, strict=True):
        assert torch.equal(a, b)
