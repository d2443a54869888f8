"""The Triton kernels of the losses, in the interpreter or on a GPU, against the reference, random numbers included."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import fastgan
import fastgan.functional as F
from fastgan.kernels.triton import _launch, gradient_penalty, interpolate
from tests import losses
from tests.losses import BF16, F16, F32, check_interpolate, check_l1, check_penalty

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
tensor = partial(losses.tensor, device=DEVICE)
# The interpreter's bfloat16 stores truncate, so gradients of that dtype are judged where kernels are compiled.
DTYPES = [F32, F16, pytest.param(BF16, marks=[] if "FASTGAN_PTX" in os.environ else pytest.mark.gpu)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_weighted_l1(dtype: torch.dtype) -> None:
    shapes = [(1,), (257,), (3, 5, 7, 11), (4097,), (2, 3, 41, 43)]
    check_l1("triton", [(tensor(s, dtype, seed=k), tensor(s, F32, seed=k + 20), k - 1.5) for k, s in enumerate(shapes)])


def test_weighted_l1_where_one_side_wants_a_gradient() -> None:
    a, b = tensor((300,), F32, "contiguous"), tensor((300,), F32, seed=1)
    check_l1("triton", [(a, b.detach(), 1.0), (a.detach(), b, 2.0), (a.detach(), b.detach(), 3.0)])


def test_weighted_l1_twice() -> None:
    a, b = tensor((2, 3, 5, 7), F32, "channels_last"), tensor((2, 3, 5, 7), F32, seed=1)
    u, scale = tensor((2, 3, 5, 7), F32, seed=2), torch.ones((), device=DEVICE, requires_grad=True)
    results = []
    for backend in ("triton", "reference"):
        with fastgan.use_backend(backend):
            grads = torch.autograd.grad(F.weighted_l1([(a, b, 2.0), (b, a, -0.5)]), (a, b), scale, create_graph=True)
            results.append(torch.autograd.grad(grads, scale, (u, 3 * u), retain_graph=True)[0])
            results.append(torch.autograd.grad(grads[0], scale, u)[0])
    torch.testing.assert_close(results[:2], results[2:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_interpolate(dtype: torch.dtype) -> None:
    for shape, layout in [((3, 2, 5, 7), "channels_last"), ((2, 4099), "contiguous"), ((5, 2), "sliced")]:
        check_interpolate(
            "triton", tensor(shape, dtype, layout), tensor(shape, dtype, seed=1), tensor(shape[:1], F32, seed=2)
        )


def test_interpolate_draws_the_numbers_of_every_backend() -> None:
    for seed in (0, 5):
        drawn = []
        for backend in ("triton", "reference"):
            with fastgan.use_backend(backend):
                ones, generator = torch.ones(9, 2, device=DEVICE), torch.Generator(DEVICE).manual_seed(seed)
                drawn.append(F.interpolate(ones, torch.zeros_like(ones), generator=generator))
        assert torch.equal(*drawn)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("target", "one_sided"), [(1.0, False), (12.0, True), (0.0, True)])
def test_gradient_norm_penalty(dtype: torch.dtype, target: float, one_sided: bool) -> None:
    for shape, layout in [((3, 2, 5, 7), "channels_last"), ((2, 4099), "contiguous"), ((35, 2), "sliced")]:
        check_penalty("triton", tensor(shape, dtype, layout), target, one_sided)


def test_penalty_of_more_sums_than_are_added_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_penalty, "_SUMS", 32)
    for shape in [(35, 2), (2, 32 * 4096 + 5)]:
        check_penalty("triton", tensor(shape, F32), 1.0, False)


@pytest.mark.parametrize(("samples", "size", "blocks"), [(1024, 2, 1), (256, 3072, 1), (64, 12288, 1), (5000, 9, 5)])
def test_one_program_adds_the_sums_of_a_batch_in_few_blocks(samples: int, size: int, blocks: int) -> None:
    """It is alone on the device, and waits for memory for each."""
    grads, norms, one = (torch.empty(shape, device="meta") for shape in ((samples, size), (samples,), ()))
    with _launch.record(132) as launches:
        gradient_penalty.forward(grads, 1.0, False)
        gradient_penalty.double_backward(grads, one, grads, norms, 1.0, False)
    alone = [launch.constexprs for launch in launches if launch.grid == (1,)]
    _, tiles = interpolate.tiles_of(size)
    assert [-(-samples // block["BN"]) * -(-tiles // block["BT"]) for block in alone] == [blocks] * 2


def test_second_derivatives_at_tiny_norms() -> None:
    """Where the norm's cube is below float32's range, and what it divides as well."""
    check_penalty("triton", (tensor((3, 50), F32) * 1e-16).detach().requires_grad_(), 1.0, False)


def test_zero_and_nan_norms() -> None:
    g = torch.tensor([[0.0, 0.0], [1.0, torch.nan]], device=DEVICE, requires_grad=True)
    with fastgan.use_backend("triton"):
        value = F.gradient_norm_penalty(g)
        (grad,) = torch.autograd.grad(value, g, create_graph=True)
        (second,) = torch.autograd.grad(grad[0].sum(), g)
    assert value.isnan()
    assert torch.equal(grad[0], torch.zeros_like(grad[0]))
    assert grad[1].isnan().all()
    assert torch.equal(second[0], torch.zeros_like(second[0]))


@pytest.mark.skipif(DEVICE == "cuda" or "FASTGAN_PTX" in os.environ, reason="moves one program in the interpreter")
def test_the_last_elements_of_a_sample_of_more_than_2_to_the_31(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last program of each launch alone, on a sample whose other pages are never touched."""
    from triton.runtime.interpreter import interpreter_builder

    program_id, programs = interpreter_builder.create_get_program_id, 0

    def last_id(axis: int) -> Any:
        handle = program_id(axis)
        handle.data = handle.data + (programs - 1)
        return handle

    for module in (interpolate, gradient_penalty):

        def launch_one(kernel: Any, grid: tuple[int, ...], *args: Any, to: Any = module.launch, **more: Any) -> None:
            nonlocal programs
            programs = grid[0]
            to(kernel, (1,), *args, **more)

        monkeypatch.setattr(module, "launch", launch_one)
    monkeypatch.setattr(interpreter_builder, "create_get_program_id", last_id)
    tail = 300
    real, fake = (torch.empty(1, 2**31 + tail, dtype=F16) for _ in range(2))
    a, b = (tensor((tail,), F16, seed=k).detach() for k in range(2))
    real[0, -tail:], fake[0, -tail:] = a, b
    alpha = torch.full((1,), 0.25)
    out, _ = interpolate.forward(real, fake, alpha, None)
    torch.testing.assert_close(out[0, -tail:], torch.lerp(b, a, 0.25))
    grad_real, grad_fake, _ = interpolate.backward(real, None, None, alpha, True, True, False)
    torch.testing.assert_close(grad_real[0, -tail:], 0.25 * a)
    torch.testing.assert_close(grad_fake[0, -tail:], 0.75 * a)
    torch.testing.assert_close(gradient_penalty._dot(real, fake)[0, -1], a.float() @ b.float())
    grads = gradient_penalty.backward(torch.tensor(1.5), real, torch.tensor([2.0]), 1.0, False)
    torch.testing.assert_close(grads[0, -tail:], 1.5 * a)  # 1.5 * 2 (1 - 1 / 2)
