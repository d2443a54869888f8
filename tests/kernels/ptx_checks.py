"""Tests that need :mod:`tests.kernels.ptx_device`; ``test_ptx`` runs them, in a process of their own.

``FASTGAN_PTX=90 python -m pytest tests/kernels/ptx_checks.py``. That a wrong kernel is found; the launch table's own
choices on data that begins anywhere; other architectures; offsets of more than 31 bits, compiled.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels import layout
from fastgan.kernels.triton import _launch
from tests.kernels import ptx, ptx_device
from tests.kernels import test_triton_instance_norm as norm
from tests.kernels.test_triton_instance_norm import Example, bf16, fp16

# --- kernels with one mistake each ----------------------------------------------------------------------------------


@triton.jit
def _copy(x, y, n, stride, MISTAKE: tl.constexpr):
    """y = x, of n elements, 128 to a program, x strided; then the sum of a program's, too."""
    i = tl.program_id(0) * 128 + tl.arange(0, 128)
    mask = i < (n + 1 if MISTAKE == "mask" else n)
    offset = i * stride if MISTAKE == "32 bits" else i.to(tl.int64) * stride
    value = tl.load(x + (2 * offset if MISTAKE == "stride" else offset), mask, other=0)
    if MISTAKE == "alignment":
        value += tl.load(x + tl.multiple_of(n - 128, 4) + tl.arange(0, 128))
    if MISTAKE == "unwritten":
        value += tl.load(y + i, mask, other=0)
    if MISTAKE == "unknown":
        tl.atomic_add(y + i, value, mask)
    tl.store(y + (i // 2 if MISTAKE == "twice" else i), value + tl.sum(value) * 0, mask)


@pytest.mark.parametrize(
    ("mistake", "found"),
    [
        ("", None),
        ("mask", "outside of every tensor by 1 threads.*ptx_checks.py"),
        ("stride", "outside of every tensor"),
        ("alignment", "not aligned to its 16 bytes"),
        ("unwritten", "nothing has written"),
        ("twice", "two values written to one place"),
        ("unknown", "unknown instruction @%p.* atom.global"),
        ("barrier", "another warp has (written|read) since the last barrier"),
    ],
)
def test_a_mistake_is_found(mistake: str, found: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    n, launch = 333, ptx.launch
    x, y = torch.randn(n), torch.empty(n)

    def without_barriers(text: str, *rest: Any) -> None:
        launch(re.sub(r"bar\.sync\s+0;", "", text), *rest)

    if mistake == "barrier":
        monkeypatch.setattr(ptx, "launch", without_barriers)
    run = lambda: _copy[(triton.cdiv(n, 128),)](
        x, y, n, x.stride(0), mistake, num_warps=1 if mistake == "alignment" else 4
    )
    if found is None:
        run()
        assert torch.equal(x, y)
    else:
        with pytest.raises(ptx.PtxError, match=found):
            run()


def test_an_offset_of_32_bits_is_found() -> None:
    pages = torch.from_numpy(np.zeros(2**32, np.uint8))  # of which nearly none is touched
    x, y = pages[:: 2**30], torch.empty(4, dtype=torch.uint8)
    x.copy_(torch.arange(4))
    _copy[(1,)](x, y, 4, x.stride(0), "", num_warps=4)
    assert torch.equal(x, y)
    with pytest.raises(ptx.PtxError, match="outside of every tensor"):
        _copy[(1,)](x, y, 4, x.stride(0), "32 bits", num_warps=4)


# --- the instance norm ----------------------------------------------------------------------------------------------


def _check(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    if example.setting[0]:
        norm._force(monkeypatch, example.setting)
    else:
        norm.launchers.plan_of.cache_clear()
    inputs = norm._inputs(example)
    norm._check(norm._all(norm.kernels, example, inputs), *norm._expected(example, inputs))


@pytest.mark.parametrize(
    ("example", "guard"),
    [
        (Example((5, 7, 9, 7), (0, 0, 0), dtype=bf16, residual="interior", pad=1), 65),
        (Example((2, 24, 8, 9), (0, 0, 0), True, bf16, "leaky_relu", residual="dense"), 68),
        (Example((1, 3, 96, 97), (0, 0, 0), dtype=fp16, affine=False), 67),
    ],
    ids=["grouped", "resident", "split"],
)
def test_the_table_s_choice_on_misaligned_data(example: Example, guard: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm, "GUARD", guard)
    monkeypatch.setattr(_launch, "_INTERPRETED_MULTIPROCESSORS", 4)
    _check(example, monkeypatch)


@pytest.mark.parametrize("arch", [80, 100])
def test_another_architecture(arch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ptx_device._device.arch
    ptx_device.compile_for(arch)
    try:
        _check(Example((2, 8, 9, 7), (8, 32, 2), True, bf16, "leaky_relu", pad=1), monkeypatch)
    finally:
        ptx_device.compile_for(before)


@pytest.mark.parametrize(("channels_last", "setting"), [(True, (4, 256, 0)), (False, (1, 256, 1))])
def test_more_than_2_to_the_31_elements(
    channels_last: bool, setting: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first and the last programs, on tensors whose other pages are never touched."""
    norm._force(monkeypatch, setting)
    monkeypatch.setattr(ptx_device._order, "shuffle", lambda starts: starts.__delitem__(slice(1, -1)))
    sample = (4, 16, 16) if channels_last else (1, 32, 32)
    n = 2**31 // 1024 + 2

    def huge() -> Tensor:
        return layout.empty((n, *sample), channels_last, dtype=fp16, device=torch.device("cpu"))

    example = Example((1, *sample), setting, channels_last, fp16)
    small, (x, grad, u) = norm._inputs(example), (huge() for _ in range(3))
    for whole, part in ((x, small.x), (grad, small.grad), (u, small.u)):
        whole[:1] = whole[-1:] = part
    got = norm._all(norm.kernels, example, small._replace(x=x, grad=grad, u=u))
    exact, _ = norm._expected(example, small)
    for name, value in got.items():
        for end in (value[:1], value[-1:]):
            torch.testing.assert_close(end.double(), exact[name], rtol=1e-2, atol=1e-2)
