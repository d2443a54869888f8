"""The weights' gradient of strided and transposed convolutions: as near to the truth as PyTorch's; the rest is its."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fastgan
from fastgan.functional import strided
from fastgan.functional._convolution import Geometry
from fastgan.functional.strided import conv_strided, conv_transposed
from fastgan.kernels import dispatch
from fastgan.models import build_discriminator, build_generator
from fastgan.nn import fuse, use_cpu_convolutions, use_strided
from fastgan.nn.strided import StridedConv, TransposedConv

pytestmark = pytest.mark.skipif(isinstance(dispatch._load("native", "winograd"), str), reason="needs the extension")


@pytest.fixture(autouse=True)
def serving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a processor without AVX2."""
    monkeypatch.setattr(dispatch.kernels("native", "winograd"), "FASTER", (torch.float32, torch.bfloat16))


# Images, channels, height and width; filters, rows and columns; the rest.
SHAPES = [
    ((1, 64, 64, 64), (128, 3, 3), Geometry((2, 2), (1, 1))),
    ((2, 64, 71, 67), (65, 3, 3), Geometry((2, 2), (1, 1))),
    ((1, 70, 460, 9), (64, 4, 4), Geometry((2, 2), (1, 1))),
    ((1, 64, 31, 402), (96, 2, 5), Geometry((3, 2), (0, 2))),
    ((2, 80, 520, 8), (64, 1, 1), Geometry((2, 2))),
    ((1, 128, 32, 32), (64, 3, 3), Geometry((2, 2), (1, 1), True, (1, 1))),
    ((2, 64, 33, 35), (72, 4, 4), Geometry((2, 2), (1, 1), True)),
    ((1, 67, 2, 700), (64, 2, 5), Geometry((3, 2), (0, 2), True, (2, 1))),
]


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    if geometry.transposed:
        return torch.conv_transpose2d(x, weight, bias, geometry.stride, geometry.padding, geometry.output_padding)
    return torch.conv2d(x, weight, bias, geometry.stride, geometry.padding)


def ours(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    stride, padding, transposed, output_padding = geometry
    if transposed:
        return conv_transposed(x, weight, bias, stride, padding, output_padding)
    return conv_strided(x, weight, bias, stride, padding)


def draw(
    images: tuple[int, ...], filters: tuple[int, ...], geometry: Geometry, center: float = 3.0
) -> tuple[Tensor, Tensor, Tensor]:
    """x about ``center``, weight, bias."""
    torch.manual_seed(0)
    x = (torch.randn(images) + center).contiguous(memory_format=torch.channels_last)
    channels = (images[1], filters[0]) if geometry.transposed else (filters[0], images[1])
    weight = (torch.randn(*channels, *filters[1:]) * 0.1).contiguous(memory_format=torch.channels_last)
    return x.requires_grad_(), weight.requires_grad_(), torch.randn(filters[0], requires_grad=True)


def gradients(conv: Callable[..., Tensor], tensors: tuple[Tensor, ...], geometry: Geometry) -> tuple[Tensor, ...]:
    """The result, and its gradients."""
    y = conv(*tensors, geometry)
    torch.manual_seed(1)
    grad = (torch.randn(y.shape) + 0.5).to(y)
    return y.detach(), *torch.autograd.grad(y, tensors, grad)


@pytest.mark.parametrize("center", [0.0, 3.0])
@pytest.mark.parametrize(("images", "filters", "geometry"), SHAPES, ids=str)
def test_errors_are_below_pytorch_s(
    images: tuple[int, ...], filters: tuple[int, ...], geometry: Geometry, center: float
) -> None:
    tensors = draw(images, filters, geometry, center)
    assert strided.serves(*tensors, geometry)
    exact = gradients(plain, tuple(t.detach().double().requires_grad_() for t in tensors), geometry)
    mine, theirs = (gradients(conv, tensors, geometry) for conv in (ours, plain))
    assert torch.equal(mine[0], theirs[0])
    assert torch.equal(mine[1], theirs[1])
    for k in (2, 3):
        assert mine[k].shape == theirs[k].shape
        assert mine[k].stride() == theirs[k].stride()
        for size in (lambda t: t.abs().max(), lambda t: t.norm()):
            error, allowed = (float(size(t - exact[k]) / size(exact[k])) for t in (mine[k], theirs[k]))
            assert error <= 1.2 * allowed + 1e-8
    assert not torch.equal(mine[2], theirs[2])


@pytest.mark.parametrize(("images", "filters", "geometry"), SHAPES[1::4], ids=str)
def test_threads_change_no_bit(images: tuple[int, ...], filters: tuple[int, ...], geometry: Geometry) -> None:
    tensors = draw(images, filters, geometry)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            found.append(gradients(ours, tensors, geometry)[2])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in itertools.pairwise(found))


def test_every_weight_is_written_and_nothing_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = dispatch.kernels("native", "convolution")
    for n, rows, columns, filters, channels, window, stride, padding in [
        (1, 1, 1, 1, 1, (1, 1), (1, 1), (0, 0)), (2, 3, 65, 5, 33, (2, 3), (1, 2), (1, 0)),
        (3, 2, 7, 66, 1, (3, 1), (4, 3), (2, 1)), (1, 130, 2, 9, 129, (1, 4), (1, 1), (0, 2)),
    ]:  # fmt: skip
        height = (rows - 1) * stride[0] + window[0] - 2 * padding[0]
        width = (columns - 1) * stride[1] + window[1] - 2 * padding[1]
        x = torch.randn(n, channels, height, width).contiguous(memory_format=torch.channels_last)
        grad = torch.randn(n, filters, rows, columns).contiguous(memory_format=torch.channels_last)
        size = filters * channels * window[0] * window[1]
        guarded = torch.full((size + 64,), torch.nan)
        result = guarded[32:-32].view(filters, *window, channels).permute(0, 3, 1, 2)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty", lambda *_, result=result, **__: result)
            kernels.weight_gradient(grad, x, window, stride, padding)
        exact = torch.ops.aten.convolution_backward(
            grad.double(), x.double(), torch.empty(filters, channels, *window).double(), None, stride, padding, (1, 1),
            False, (0, 0), 1, (False, True, False),
        )[1]  # fmt: skip
        torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))
        assert guarded[:32].isnan().all()
        assert guarded[-32:].isnan().all()


@pytest.mark.parametrize("geometry", [Geometry((2, 2), (1, 1)), Geometry((2, 2), (1, 1), True, (1, 1))], ids=str)
def test_derivatives_of_derivatives_are_pytorch_s(geometry: Geometry) -> None:
    tensors = draw((1, 64, 64, 64), (64, 3, 3), geometry)
    assert strided.serves(*tensors, geometry)

    x, weight, bias = tensors

    def derivatives(conv: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(conv(*tensors, geometry).square().sum(), tensors, create_graph=True)
        of_x = torch.autograd.grad(sum(g.square().sum() for g in first), x, retain_graph=True)
        return *first, *of_x, *torch.autograd.grad(first[0].square().sum(), weight)

    mine, theirs = derivatives(ours), derivatives(plain)
    assert all(torch.equal(a, b) for a, b in zip(mine[:4], theirs[:4], strict=True))
    # Through the result, which is in both factors, this is a first derivative too.
    torch.testing.assert_close(mine[4], theirs[4], rtol=1e-4, atol=1e-5 * float(theirs[4].abs().max()))


def test_only_what_is_asked_for_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = Geometry((2, 2), (1, 1))
    x, weight, bias = draw((1, 64, 64, 64), (64, 3, 3), geometry)
    kernels, calls = dispatch.kernels("native", "convolution"), []
    kernel = kernels.weight_gradient
    monkeypatch.setattr(kernels, "weight_gradient", lambda *a: calls.append(a) or kernel(*a))
    y = ours(x, weight, bias, geometry)
    torch.autograd.grad(y.sum(), x, retain_graph=True)
    torch.autograd.grad(y.sum(), bias, retain_graph=True)
    assert not calls
    y.sum().backward()
    assert len(calls) == 1
    ours(x.detach(), weight, None, geometry).sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("change", "geometry"),
    [
        (lambda x, w, b: (x.contiguous(), w, b), Geometry((2, 2), (1, 1))),
        (lambda x, w, b: (x.double(), w.double(), b.double()), Geometry((2, 2), (1, 1))),
        (lambda x, w, b: (x.bfloat16(), w.bfloat16(), b.bfloat16()), Geometry((2, 2), (1, 1))),
        (lambda x, w, b: (x, w, b), Geometry((1, 2), (1, 1))),
        (lambda x, w, b: (x, w[:63], b[:63]), Geometry((2, 2), (1, 1))),
        (lambda x, w, b: (x[:0], w, b), Geometry((2, 2), (1, 1))),
        (
            lambda x, w, b: (x[..., :62, :].contiguous(memory_format=torch.channels_last), w, b),
            Geometry((2, 2), (1, 1)),
        ),
    ],
)
def test_the_rest_is_pytorch_s(change: Callable[..., Any], geometry: Geometry) -> None:
    tensors = tuple(t.detach().requires_grad_() for t in change(*draw((1, 64, 64, 64), (64, 3, 3), geometry)))
    assert not strided.serves(*tensors, geometry)
    mine, theirs = (gradients(conv, tensors, geometry) for conv in (ours, plain))
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("geometry", [Geometry((2, 2), (1, 1)), Geometry((2, 2), (1, 1), True, (1, 1))], ids=str)
def test_modes_and_transforms_see_pytorch_s(geometry: Geometry) -> None:
    x, weight, bias = (t.detach() for t in draw((1, 64, 64, 64), (64, 3, 3), geometry))

    def gradient(conv: Callable[..., Tensor]) -> Tensor:
        w = weight.clone().requires_grad_()
        return torch.autograd.grad(conv(x, w, bias, geometry).square().sum(), w)[0]

    assert not torch.equal(gradient(ours), gradient(plain))
    with fastgan.use_backend("reference"):
        assert torch.equal(gradient(ours), gradient(plain))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gradient(ours), gradient(plain))
    with FlopCounterMode(display=False):
        assert torch.equal(gradient(ours), gradient(plain))
    loss = lambda conv: lambda w: conv(x, w, bias, geometry).square().sum()
    assert torch.equal(torch.func.grad(loss(ours))(weight), torch.func.grad(loss(plain))(weight))
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert torch.equal(gradient(compiled), gradient(plain))
    w = weight.clone().requires_grad_()
    rows = torch.randn(2, *plain(x, w, bias, geometry).shape)
    batched = [
        torch.autograd.grad(conv(x, w, bias, geometry), w, rows, is_grads_batched=True)[0] for conv in (ours, plain)
    ]
    assert torch.equal(*batched)
    with pytest.raises(RuntimeError, match="expected input"):
        ours(x, weight[:, :60] if not geometry.transposed else weight[:60], bias, geometry)


def test_in_a_model() -> None:
    torch.manual_seed(0)
    for network, names in (
        (build_generator("resnet_1blocks", ngf=64), ["model.4", "model.7", "model.11", "model.14"]),
        (build_discriminator("basic", ndf=64), ["model.2", "model.5"]),
    ):
        fuse(network)  # PyTorch's own instance norm gives wrong gradients in channels_last
        reference = copy.deepcopy(network).to(memory_format=torch.channels_last)
        assert use_strided(network) == names
        assert use_strided(network) == []
        assert list(network.state_dict()) == list(reference.state_dict())
        network.to(memory_format=torch.channels_last)
        x = torch.randn(1, 3, 128, 128).to(memory_format=torch.channels_last)
        found = [torch.autograd.grad(net(x).square().mean(), list(net.parameters())) for net in (network, reference)]
        for mine, theirs in zip(*found, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()) + 1e-6)


def test_what_modules_are_taken() -> None:
    others = nn.Sequential(
        nn.Conv2d(64, 63, 3, 2), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 3, (2, 1)), nn.Conv1d(64, 64, 3, 2),
        nn.Conv2d(64, 64, 3, 2, dilation=2), nn.Conv2d(64, 64, 3, 2, groups=2), nn.LazyConv2d(64, 3, 2),
        nn.Conv2d(64, 64, 3, 2, 1, padding_mode="reflect"), nn.ConvTranspose2d(64, 64, 3),
        nn.ConvTranspose2d(63, 64, 3, 2), nn.ConvTranspose2d(64, 64, 3, 2, groups=2),
    )  # fmt: skip
    assert use_strided(others) == []
    taken = nn.Sequential(nn.Conv2d(64, 64, 3, 2), nn.ConvTranspose2d(64, 64, 4, 2, 1))
    x = torch.randn(1, 64, 20, 20)
    expected = taken(x)
    sized = taken[1](x, output_size=[41, 40])
    assert use_strided(taken) == ["0", "1"]
    assert list(map(type, taken)) == [StridedConv, TransposedConv]
    assert torch.equal(taken(x), expected)
    assert torch.equal(taken[1](x, output_size=[41, 40]), sized)
    scripted = torch.jit.script(taken)
    assert torch.equal(scripted(x), expected)


def test_all_ways_at_once() -> None:
    network = build_generator("resnet_1blocks", ngf=32)
    names = use_cpu_convolutions(network)
    assert len(names) == len(set(names)) == 5
    assert {type(m).__name__ for m in network.modules()} >= {
        "Conv3x3",
        "ConvByColumns",
        "StridedConv",
        "TransposedConv",
    }
