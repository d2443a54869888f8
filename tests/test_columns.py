"""Convolutions by columns: as near to the truth as PyTorch's, differentiable like them, PyTorch's where not served."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fastgan
from fastgan.functional.columns import conv_by_columns, serves
from fastgan.kernels import dispatch
from fastgan.models import build_discriminator, build_generator
from fastgan.nn import use_columns
from fastgan.nn.columns import ConvByColumns

pytestmark = pytest.mark.skipif(isinstance(dispatch._load("native", "winograd"), str), reason="needs the extension")


@pytest.fixture(autouse=True)
def serving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a processor without AVX2."""
    monkeypatch.setattr(dispatch.kernels("native", "winograd"), "FASTER", (torch.float32, torch.bfloat16))


# Images, channels, height and width; filters, rows and columns; padding.
SHAPES = [
    ((1, 64, 38, 38), (3, 7, 7), (0, 0)),
    ((2, 24, 31, 29), (3, 7, 7), (3, 3)),
    ((2, 512, 15, 15), (1, 4, 4), (1, 1)),
    ((3, 65, 17, 19), (2, 3, 3), (1, 1)),
    ((1, 8, 20, 23), (4, 1, 5), (0, 2)),
    ((5, 9, 3, 67), (1, 3, 9), (0, 1)),
    ((130, 8, 1, 3), (3, 1, 3), (0, 0)),
]


def draw(images: tuple[int, ...], filters: tuple[int, ...], center: float = 3.0) -> list[Tensor]:
    """x about ``center``, weight, bias."""
    torch.manual_seed(0)
    x = (torch.randn(images) + center).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(filters[0], images[1], *filters[1:]) * 0.1
    return [
        t.requires_grad_() for t in (x, weight.contiguous(memory_format=torch.channels_last), torch.randn(filters[0]))
    ]


def derivatives(conv: Callable[..., Tensor], tensors: list[Tensor], padding: tuple[int, int]) -> list[Tensor]:
    """The result, its gradients, and those of a sum over the gradients' squares."""
    y = conv(*tensors, padding=padding)
    torch.manual_seed(1)
    grad = torch.randn(y.shape).to(y).requires_grad_()
    first = torch.autograd.grad(y, tensors, grad, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), (*tensors[:2], grad))
    return [t.detach() for t in (y, *first, *second)]


@pytest.mark.parametrize("center", [0.0, 3.0])
@pytest.mark.parametrize(("images", "filters", "padding"), SHAPES, ids=str)
def test_errors_are_those_of_pytorch(
    images: tuple[int, ...], filters: tuple[int, ...], padding: tuple[int, int], center: float
) -> None:
    tensors = draw(images, filters, center)
    assert serves(*tensors, padding=padding)
    exact = derivatives(torch.conv2d, [t.detach().double().requires_grad_() for t in tensors], padding)
    ours, theirs = (derivatives(conv, tensors, padding) for conv in (conv_by_columns, torch.conv2d))
    for truth, mine, plain in zip(exact, ours, theirs, strict=True):
        assert mine.shape == plain.shape
        assert mine.stride() == plain.stride()
        for size in (lambda t: t.abs().max(), lambda t: t.norm()):
            error, allowed = (float(size(t - truth) / size(truth)) for t in (mine, plain))
            assert error <= 1.2 * allowed + 1e-8
    assert all(torch.equal(a, b) for a, b in zip(ours, derivatives(conv_by_columns, tensors, padding), strict=True))


def test_columns_hold_what_torch_empty_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """No result is read from what was not written."""
    before = torch.utils.deterministic.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    tensors = draw((2, 16, 20, 20), (3, 5, 5))
    expected = derivatives(conv_by_columns, tensors, (0, 0))
    try:
        torch.use_deterministic_algorithms(True)  # fills new memory with NaN
        again = derivatives(conv_by_columns, tensors, (0, 0))
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = before[0]
        torch.use_deterministic_algorithms(before[1])
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))


def test_no_gradient_is_made_that_nobody_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, calls = [], []
    kernels = dispatch.kernels("native", "convolution")
    kernel = kernels.weight_gradient
    monkeypatch.setattr(kernels, "weight_gradient", lambda *a: calls.append(len(masks)) or kernel(*a))

    plain = torch.ops.aten.convolution_backward
    monkeypatch.setattr(torch.ops.aten, "convolution_backward", lambda *a: masks.append(a[-1]) or plain(*a))
    x, weight, bias = draw((2, 16, 12, 12), (3, 5, 5))
    y = conv_by_columns(x.sin(), weight.sin(), bias)
    torch.autograd.grad(y.sum(), x, retain_graph=True)
    torch.autograd.grad(y.sum(), (x, weight), retain_graph=True)
    y.sum().backward(retain_graph=True)
    torch.autograd.grad(y.sum(), (x, weight), create_graph=True)
    assert masks == [[True, False, False]] * 3 + [[True, True, False]]
    assert calls == [2, 3]


def test_a_result_can_be_changed_in_place() -> None:
    """As by ``nn.ReLU(inplace=True)``."""
    tensors = draw((2, 16, 12, 12), (3, 5, 5))
    found = []
    for conv in (conv_by_columns, torch.conv2d):
        y = conv(*tensors)
        assert not y._is_view()
        found.append(torch.autograd.grad(y.relu_().square().sum(), tensors))
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


def test_several_gradients_at_once() -> None:
    x, weight, bias = draw((2, 16, 12, 12), (3, 5, 5))
    rows = torch.randn(4, 2, 3, 8, 8)
    batched, one_by_one = [
        torch.autograd.grad(conv(x, weight, bias), (x, weight), rows, is_grads_batched=True)
        for conv in (conv_by_columns, torch.conv2d)
    ]
    for mine, plain in zip(batched, one_by_one, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


@pytest.mark.parametrize(
    "change",
    [
        lambda x, w, b: (x.contiguous(), w, b),
        lambda x, w, b: (x.double(), w.double(), b.double()),
        lambda x, w, b: (x.bfloat16(), w.bfloat16(), b.bfloat16()),
        lambda x, w, b: (x, w[..., :2], b),
        lambda x, w, b: (x, w.repeat(2, 1, 1, 1), b.repeat(2)),
        lambda x, w, b: (x[:, :7].contiguous(memory_format=torch.channels_last), w[:, :7], b),
        lambda x, w, b: (x[..., :8, :8].contiguous(memory_format=torch.channels_last), w, b),
    ],
)
def test_the_rest_is_pytorch_s(change: Callable[..., Any]) -> None:
    tensors = change(*(t.detach() for t in draw((2, 16, 20, 20), (3, 7, 7))))
    assert not serves(*tensors)
    assert torch.equal(conv_by_columns(*tensors), torch.conv2d(*tensors))


def test_modes_and_transforms_see_pytorch_s() -> None:
    x, weight, bias = (t.detach() for t in draw((2, 16, 20, 20), (3, 7, 7)))
    expected = torch.conv2d(x, weight, bias)
    assert not torch.equal(conv_by_columns(x, weight, bias), expected)
    with fastgan.use_backend("reference"):
        assert torch.equal(conv_by_columns(x, weight, bias), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv_by_columns(x, weight, bias), torch.conv2d(x, weight, bias))
    with FlopCounterMode(display=False):
        assert torch.equal(conv_by_columns(x, weight, bias), expected)
    loss = lambda conv: lambda w: conv(x, w, bias).square().sum()
    assert torch.equal(torch.func.grad(loss(conv_by_columns))(weight), torch.func.grad(loss(torch.conv2d))(weight))
    torch._dynamo.reset()
    compiled = torch.compile(conv_by_columns, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, weight, bias), expected)
    assert torch.equal(
        torch.jit.trace(conv_by_columns, (x, weight, bias), check_trace=False)(x, weight, bias), expected
    )
    with pytest.raises(RuntimeError, match="expected input"):
        conv_by_columns(x, weight[:, :8], bias)


def test_in_a_model() -> None:
    for network, names in (
        (build_generator("resnet_2blocks", ngf=8), ["model.19"]),
        (build_discriminator("basic", ndf=8), ["model.11"]),
    ):
        plain = copy.deepcopy(network)
        assert use_columns(network) == names
        assert use_columns(network) == []
        assert list(network.state_dict()) == list(plain.state_dict())
        network.to(memory_format=torch.channels_last)
        x = torch.randn(1, 3, 128, 128).to(memory_format=torch.channels_last)
        y = network(x)
        torch.testing.assert_close(y, plain(x), rtol=1e-4, atol=1e-5)
        assert not torch.equal(y, plain(x))


def test_what_modules_are_taken() -> None:
    others = nn.Sequential(
        nn.Conv2d(16, 5, 7), nn.Conv2d(16, 3, (7, 2)), nn.Conv2d(16, 3, 7, stride=2), nn.Conv2d(16, 3, 3, dilation=2),
        nn.Conv2d(16, 4, 3, groups=2), nn.Conv2d(7, 3, 7), nn.Conv2d(16, 3, 7, padding="same"),
        nn.Conv2d(16, 3, 7, padding=3, padding_mode="reflect"),
    )  # fmt: skip
    assert use_columns(others) == []
    taken = nn.Sequential(nn.Conv2d(16, 3, 7, padding=(3, 2)), nn.Conv2d(8, 1, (1, 3), bias=False))
    assert use_columns(taken) == ["0", "1"]
    assert all(type(layer) is ConvByColumns for layer in taken)
    expected = taken[0](x := torch.randn(1, 16, 20, 20))
    assert torch.equal(torch.jit.script(taken[0])(x), expected)
