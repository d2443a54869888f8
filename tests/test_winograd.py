"""Winograd's 3×3 convolution: as near to the truth as PyTorch's, differentiable like it, PyTorch's where not served."""

from __future__ import annotations

import contextlib
import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import fastgan
from fastgan.functional.winograd import conv3x3, serves
from fastgan.kernels import dispatch
from fastgan.models import build_generator
from fastgan.nn import use_winograd
from fastgan.reference.winograd import winograd

pytestmark = pytest.mark.skipif(isinstance(dispatch._load("native", "winograd"), str), reason="needs the C++ kernels")


@pytest.fixture(autouse=True)
def serving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a processor on which they are not the faster ones."""
    monkeypatch.setattr(dispatch.kernels("native", "winograd"), "FASTER", (torch.float32, torch.bfloat16))


# Images, channels, filters, height, width: whole tiles and vectors; parts of tiles, and lanes left over; many images;
# tiles that are transformed in several parts; one row of tiles; the fewest channels; more of them than tiles.
SHAPES = [
    (1, 128, 128, 16, 16),
    (2, 129, 133, 18, 34),
    (11, 128, 160, 15, 10),
    (2, 144, 128, 97, 62),
    (1, 128, 128, 4, 601),
    (3, 64, 71, 10, 13),
    (1, 64, 64, 16, 16),
    (1, 1000, 515, 16, 16),
]


CENTER = 3


def draw(
    n: int, channels: int, filters: int, height: int, width: int, padding: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias and the gradient of the result, of which x and the last are of that dtype; x about CENTER."""
    x = (torch.randn(n, channels, height + 2 - 2 * padding, width + 2 - 2 * padding) + CENTER).to(
        memory_format=torch.channels_last
    )
    weight = (torch.randn(filters, channels, 3, 3) * 0.1).to(memory_format=torch.channels_last)
    grad = torch.randn(n, filters, height, width).to(memory_format=torch.channels_last)
    x, grad = x.to(dtype), grad.to(dtype)
    return x.requires_grad_(), weight.requires_grad_(), torch.randn(filters, requires_grad=True), grad


def results(
    conv: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, padding: int = 0
) -> list[Tensor]:
    y = conv(x, weight, bias, padding=padding)
    return [y, *torch.autograd.grad(y, (x, weight, bias), grad)]


@pytest.mark.parametrize("center", [0, 3])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_errors_are_those_of_pytorch(shape: tuple[int, ...], padding: int, center: float) -> None:
    arguments = draw(*shape, padding)
    arguments[0].detach().add_(center - CENTER)
    assert serves(*arguments[:2], padding=padding)
    exact = results(torch.conv2d, *(t.detach().double().requires_grad_() for t in arguments), padding)
    ours, theirs = results(conv3x3, *arguments, padding), results(torch.conv2d, *arguments, padding)
    for truth, mine, plain in zip(exact, ours, theirs, strict=True):
        assert mine.shape == plain.shape
        assert mine.stride() == plain.stride()
        for size in (lambda t: t.abs().max(), lambda t: t.norm()):
            error, allowed = (float((size(t - truth) / size(truth)).detach()) for t in (mine, plain))
            assert error <= 2 * allowed + 5e-8


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bfloat16_errs_no_more_than_pytorch(shape: tuple[int, ...], padding: int) -> None:
    """Under autocast, where weights and their gradients stay float32 as they are; and everything in bfloat16."""
    x, weight, bias, grad = draw(*shape, padding, torch.bfloat16)
    for arguments in (
        (x, weight, bias, grad),
        [t.detach().bfloat16().requires_grad_() for t in (x, weight, bias, grad)],
    ):
        whole = arguments[1].dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16, enabled=not whole):
            assert serves(*arguments[:3], padding=padding)
            ours, theirs = results(conv3x3, *arguments, padding), results(torch.conv2d, *arguments, padding)
        exact = results(torch.conv2d, *(t.detach().double().requires_grad_() for t in arguments), padding)
        for truth, mine, plain in zip(exact, ours, theirs, strict=True):
            assert (mine.shape, mine.stride(), mine.dtype) == (plain.shape, plain.stride(), plain.dtype)
            for size in (lambda t: t.abs().max(), lambda t: t.norm()):
                error, allowed = (float((size(t - truth) / size(truth)).detach()) for t in (mine, plain))
                assert error <= 1.1 * allowed


def test_autocast_rounds_images_only() -> None:
    """float32 images become bfloat16, by which gradients pass on as float32."""
    x, weight, bias, grad = draw(1, 64, 64, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv3x3(x, weight, bias)
    assert y.dtype == torch.bfloat16
    gradients = torch.autograd.grad(y, (x, weight, bias), grad.bfloat16())
    assert [g.dtype for g in gradients] == 3 * [torch.float32]
    rounded = x.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        again = conv3x3(rounded, weight, bias)
    assert torch.equal(y, again)
    assert torch.equal(gradients[0], torch.autograd.grad(again, rounded, grad.bfloat16())[0].float())


def test_too_little_memory_is_an_error_and_the_next_call_is_served() -> None:
    _C = dispatch.kernels("native", "winograd")._C
    tensors = [t.detach() for t in draw(1, 64, 64, 16, 16)[:3]]
    expected = conv3x3(*tensors)
    with pytest.raises(MemoryError):  # of a petabyte, before any tensor is read
        _C.winograd_forward(0, 0, 0, 0, 0, 1, 1 << 12, 1 << 12, 1 << 22, 1 << 22, 0, 1)
    assert torch.equal(conv3x3(*tensors), expected)


@pytest.mark.parametrize("tile", [2, 4])
def test_the_formulas_are_a_convolution(tile: int) -> None:
    x, weight, bias = torch.randn(2, 3, 10, 6).double(), torch.randn(4, 3, 3, 3).double(), torch.randn(4).double()
    torch.testing.assert_close(winograd(x, weight, bias, tile), torch.conv2d(x, weight, bias), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_element_is_written_and_none_beyond(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias, grad = draw(2, 129, 130, 41, 62, 0, dtype)
    weight, bias = (t.detach().to(dtype).requires_grad_() for t in (weight, bias))
    expected = results(conv3x3, x, weight, bias, grad)
    empty = torch.empty
    made: list[Tensor] = []

    def guarded(*sizes: int, **options: object) -> Tensor:
        like = empty(*sizes, **options)  # type: ignore[call-overload]
        storage = torch.full((like.numel() + 128,), torch.nan, dtype=like.dtype)
        made.append(storage)
        return storage[64:-64].as_strided(like.shape, like.stride())

    monkeypatch.setattr(torch, "empty", guarded)
    again = results(conv3x3, x, weight, bias, grad)
    monkeypatch.undo()
    assert len(made) == 3
    assert all(storage[:64].isnan().all() and storage[-64:].isnan().all() for storage in made)
    for before, after in zip(expected, again, strict=True):
        assert torch.equal(before, after)  # which also says: the same each time


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_do_not_change_the_results(dtype: torch.dtype) -> None:
    arguments = [t.detach().to(dtype).requires_grad_() for t in draw(2, 129, 133, 50, 34)]
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(results(conv3x3, *arguments)[:3])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(mine, first) for more in found for mine, first in zip(more, found[0], strict=True))


def test_any_gradient_alone() -> None:
    x, weight, bias, grad = draw(1, 128, 128, 16, 16)
    whole = results(conv3x3, x, weight, bias, grad)[1:]
    for i in range(3):
        chosen = [t.detach().requires_grad_(k == i) for k, t in enumerate((x, weight, bias))]
        (alone,) = torch.autograd.grad(conv3x3(*chosen), chosen[i], grad)
        assert torch.equal(alone, whole[i])
    torch.testing.assert_close(conv3x3(x, weight), torch.conv2d(x, weight), rtol=1e-4, atol=1e-4)


def test_expanded_gradients_and_weights_of_another_format() -> None:
    x, weight, bias, _ = draw(1, 128, 128, 16, 16)
    sums = torch.autograd.grad(conv3x3(x, weight.contiguous(), bias).sum(), (x, weight, bias))
    for mine, plain in zip(
        sums, torch.autograd.grad(torch.conv2d(x, weight, bias).sum(), (x, weight, bias)), strict=True
    ):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


@pytest.mark.parametrize("padding", [0, 1])
def test_second_and_third_derivatives(padding: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By our kernels alone, and as exact as PyTorch's."""
    arguments = draw(2, 65, 70, 16, 18, padding)

    def derivatives(conv: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        x, weight, bias, grad = (t.detach().to(dtype).requires_grad_() for t in arguments)
        found = list(torch.autograd.grad(conv(x, weight, bias, padding=padding), (x, weight), grad, create_graph=True))
        for _ in range(2):
            more = torch.autograd.grad(sum(t.square().mean() for t in found), (x, weight, grad), create_graph=True)
            found = [t / t.detach().norm() for t in more]
        return [t.detach() for t in found]

    exact, theirs = derivatives(torch.conv2d, torch.float64), derivatives(torch.conv2d, torch.float32)
    monkeypatch.setattr("fastgan.functional.winograd.plain_gradients", None)
    monkeypatch.setattr(torch, "conv2d", None)
    ours = derivatives(conv3x3, torch.float32)
    for truth, mine, plain in zip(exact, ours, theirs, strict=True):
        assert (mine - truth).norm() <= 2 * (plain - truth).norm() + 1e-7 * truth.norm()


def test_second_derivatives_in_bfloat16() -> None:
    """As a gradient penalty takes them under autocast."""
    arguments = draw(2, 64, 70, 16, 18, 1, torch.bfloat16)

    def derivatives(conv: Callable[..., Tensor], dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
        x, weight, bias, grad = (t.detach().to(dtype).requires_grad_() for t in arguments)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is None):
            y = conv(x, weight, bias, padding=1)
        (slope,) = torch.autograd.grad(y, x, grad, create_graph=True)
        return torch.autograd.grad(slope, (weight, grad), x.detach() / 64)

    exact, ours, theirs = derivatives(torch.conv2d, torch.float64), derivatives(conv3x3), derivatives(torch.conv2d)
    for truth, mine, plain in zip(exact, ours, theirs, strict=True):
        assert mine.dtype == plain.dtype
        assert (mine - truth).norm() <= 1.1 * (plain - truth).norm()


def test_derivatives_that_nobody_needs_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias, grad = draw(1, 64, 64, 16, 16)
    kernels, called = dispatch.kernels("native", "winograd"), []
    for name in ("forward", "input_gradient", "weight_gradient"):
        kernel = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *a, kernel=kernel, name=name: (called.append(name), kernel(*a))[1])
    y = conv3x3(x, weight, bias)
    (grad_x,) = torch.autograd.grad(y, x, grad, create_graph=True)
    assert called == ["forward", "input_gradient"]
    torch.autograd.grad(grad_x.square().sum(), weight)
    assert called == ["forward", "input_gradient", "weight_gradient"]
    conv3x3(x, weight * 1, bias).sum().backward()  # a weight that is no leaf, and all leaves
    assert called[3:] == ["forward", "input_gradient", "weight_gradient"]
    assert None not in (x.grad, weight.grad, bias.grad)


@pytest.mark.parametrize(
    "case",
    [
        "layout",
        "double",
        "few",
        "small",
        "flat",
        "negative",
        "padding",
        "autocast",
        "reference",
        "mode",
        "vmap",
        "jvp",
        "grad",
        "compile",
    ],
)
def test_what_is_not_served_is_pytorch_s_own(case: str) -> None:
    padding = 2 if case == "padding" else 0
    x, weight, bias, _ = (t.detach() for t in draw(1, 128, 128, 16, 16))
    if case == "layout":
        x = x.contiguous()
    elif case == "double":
        x, weight, bias = x.double(), weight.double(), bias.double()
    elif case == "few":
        x, weight = x[:, :8].contiguous(memory_format=torch.channels_last), weight[:, :8]
    elif case == "small":
        x = x[:, :, :8, :8].contiguous(memory_format=torch.channels_last)
    elif case == "flat":
        x = x[:, :, :5].repeat(1, 1, 1, 8).contiguous(memory_format=torch.channels_last)
    elif case == "negative":
        x = torch._neg_view(-x)
    context = {
        "autocast": torch.autocast("cpu", torch.float16),
        "reference": fastgan.use_backend("reference"),
        "mode": FlopCounterMode(display=False),
    }
    call = {
        "vmap": lambda conv: torch.vmap(lambda t: conv(t, weight, bias))(x[None]),
        "jvp": lambda conv: torch.func.jvp(lambda t: conv(t, weight, bias), (x,), (x,)),
        "grad": lambda conv: torch.func.grad(lambda t: conv(t, weight, bias).square().sum())(x),
        "compile": lambda conv: torch.compile(lambda t: conv(t, weight, bias), backend="aot_eager", fullgraph=True)(x),
    }.get(case, lambda conv: conv(x, weight, bias, padding=padding))
    with context.get(case, contextlib.nullcontext()):
        torch.testing.assert_close(call(conv3x3), call(torch.conv2d), rtol=0, atol=0)


def test_what_traces_sees_pytorch_s() -> None:
    """Of a kernel, a recorded graph would have the memory that it wrote to, and no more."""
    x, weight, bias, grad = draw(1, 64, 64, 16, 16)

    def step(conv: Callable[..., Tensor], x: Tensor) -> list[Tensor]:
        return [t.detach() for t in results(conv, x.detach().requires_grad_(), weight, bias, grad)]

    recorded = make_fx(lambda x: step(conv3x3, x))(x.detach())
    assert all(map(torch.equal, recorded(2 * x.detach()), step(torch.conv2d, 2 * x)))
    y = conv3x3(x, weight, bias)
    with FlopCounterMode(display=False) as counter:
        y.backward(grad)
    assert counter.get_total_flops() == 2 * 2 * grad.numel() * weight[0].numel()


def test_gradients_that_are_no_plain_memory_are_pytorch_s() -> None:
    x, weight, bias, grad = draw(1, 128, 128, 16, 16)
    y, plain = conv3x3(x, weight, bias), torch.conv2d(x, weight, bias)
    negative = torch._neg_view(-grad)
    for options, cotangent in (({}, negative), ({"is_grads_batched": True}, torch.stack([grad, -grad]))):
        mine, theirs = (
            torch.autograd.grad(value, (x, weight, bias), cotangent, retain_graph=True, **options)
            for value in (y, plain)
        )
        assert all(map(torch.equal, mine, theirs))


def test_arguments_that_pytorch_refuses_are_refused() -> None:
    x, weight, bias, _ = draw(1, 128, 128, 16, 16)
    for other in (bias.double(), bias[:-1]):
        with pytest.raises(RuntimeError):
            conv3x3(x, weight, other)


def test_the_default_dtype_does_not_reach_in() -> None:
    arguments = draw(1, 128, 128, 16, 16)
    expected = results(conv3x3, *arguments)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = results(conv3x3, *arguments)
    finally:
        torch.set_default_dtype(before)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_other_instruction_sets(isa: str) -> None:
    """That of every processor has shorter vectors than PyTorch's convolution: it does not serve by itself."""
    script = (
        "import torch\n"
        "from fastgan.kernels.native import winograd\n"
        "from tests.test_winograd import conv3x3, draw, results, serves\n"
        "torch.manual_seed(0)\n"
        f"assert bool(winograd.FASTER) == {isa != 'baseline'}\n"
        "winograd.FASTER = (torch.float32, torch.bfloat16)\n"
        "for padding in (0, 1):\n"
        "    for dtype, error in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):\n"
        "        arguments = [t.detach().to(dtype).requires_grad_() for t in draw(2, 129, 133, 17, 34, padding)]\n"
        "        assert serves(*arguments[:3], padding=padding)\n"
        "        both = (results(conv, *arguments, padding) for conv in (conv3x3, torch.conv2d))\n"
        "        for mine, plain in zip(*both, strict=True):\n"
        "            torch.testing.assert_close(mine, plain, rtol=10 * error, atol=error * float(plain.abs().max()))\n"
    )
    environment = {**os.environ, "FASTGAN_CPU_ISA": isa, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_in_a_model() -> None:
    model = build_generator("resnet_2blocks", ngf=32)
    plain = copy.deepcopy(model)
    assert use_winograd(model) == [f"model.{block}.conv_block.{i}" for block in (10, 11) for i in (1, 5)]
    assert use_winograd(model) == []
    assert list(model.state_dict()) == list(plain.state_dict())
    others = nn.Sequential(
        nn.Conv2d(128, 128, 3, padding=2), nn.Conv2d(128, 128, 3, stride=2), nn.Conv2d(256, 256, 3, groups=2),
        nn.Conv2d(128, 128, 3, dilation=2), nn.Conv2d(128, 128, 4), nn.Conv2d(63, 128, 3),
    )  # fmt: skip
    assert use_winograd(others) == []
    padded = nn.Sequential(*(nn.Conv2d(128, 128, 3, padding=p) for p in (1, (1, 1), "same", "valid", (0, 0))))
    assert use_winograd(padded) == ["0", "1", "2", "3", "4"]
    x = torch.randn(1, 128, 18, 18).to(memory_format=torch.channels_last)
    for layer in padded.to(memory_format=torch.channels_last):
        plain_layer = nn.Conv2d(128, 128, 3, padding=layer.padding)
        plain_layer.load_state_dict(layer.state_dict())
        y = layer(x)
        assert type(y.grad_fn).__name__ == "_ConvolutionBackward"
        torch.testing.assert_close(y, plain_layer(x), rtol=1e-4, atol=1e-5)
    uneven = nn.Conv2d(128, 128, 3, padding=(0, 1))
    assert use_winograd(uneven) == []
    x = torch.randn(1, 3, 64, 64).to(memory_format=torch.channels_last)
    for network in (model, copy.deepcopy(model)):
        network.to(memory_format=torch.channels_last)
        torch.testing.assert_close(network(x), plain(x), rtol=1e-4, atol=1e-5)


def test_a_script_has_pytorch_s_convolution() -> None:
    model, x = (
        nn.Sequential(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3, padding="same")),
        torch.randn(1, 64, 20, 20),
    )
    expected = model(x)
    assert use_winograd(model) == ["0", "2"]
    scripted = torch.jit.script(model)
    assert torch.equal(scripted(x), expected)
    assert list(scripted.state_dict()) == list(model.state_dict())
    assert use_winograd(model) == []  # the model itself stays as it is
