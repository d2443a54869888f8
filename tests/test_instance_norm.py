"""``instance_norm_act`` on every backend: values, gradients, second gradients, transforms, compilation, refusals.

Tolerance: twice the error that plain PyTorch makes in that dtype, both against float64.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.autograd import forward_ad, grad, gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import fastgan.functional as F
from fastgan import use_backend
from fastgan.functional import instance_norm as operator
from fastgan.kernels import dispatch, layout

fp64, fp32, fp16, bf16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
BACKENDS = [
    name
    for name in ("native", "triton")
    if dispatch.why_not(name, dispatch.Call("instance_norm_act", "cpu", fp32)) is None
]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with use_backend(request.param):
        yield request.param


class Example(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype = fp32
    channels_last: bool = False
    affine: bool = True
    activation: str = "relu"
    residual: str | None = None  # "dense", "interior" of a padded tensor, or "other" layout
    pad: int = 0


# Sizes odd, prime, 1 and two; every option with every other somewhere.
EXAMPLES = [
    Example((2, 3, 7, 5), residual="interior", pad=2),
    Example((1, 5, 13, 11), dtype=bf16, activation="leaky_relu", affine=False, pad=1),
    Example((2, 1, 2, 1), activation="none", residual="dense"),
    Example((1, 3, 31), dtype=fp16, residual="other", pad=4),
    Example((2, 2, 3, 4, 5), activation="leaky_relu", residual="interior", pad=1),
    Example((3, 17, 4, 4), dtype=fp64, activation="leaky_relu", pad=3),
    Example((2, 19, 5, 3), channels_last=True, residual="interior", pad=2),
    Example((1, 33, 6, 7), dtype=bf16, channels_last=True, activation="leaky_relu", residual="other"),
    Example((2, 2, 17), dtype=fp16, channels_last=True, affine=False, pad=16),
    Example((1, 3, 2, 3, 4), channels_last=True, activation="none", residual="dense", pad=1),
    Example((3, 5, 1, 2), dtype=fp64, channels_last=True, affine=False, residual="dense"),
]


def _layout(t: Tensor, channels_last: bool) -> Tensor:
    return t.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else t.contiguous()


def _random(shape: tuple[int, ...], channels_last: bool, scale: float = 2.0, shift: float = 3.0) -> Tensor:
    return _layout(torch.randn(shape, dtype=fp64) * scale + shift, channels_last)


class Inputs(NamedTuple):
    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
    grad: Tensor
    cotangents: tuple[Tensor | None, ...]  # of the gradients of x, weight, bias and residual


def _inputs(e: Example) -> Inputs:
    """In float64, of values that e.dtype holds."""
    channels = e.shape[1]
    padded = (*e.shape[:2], *(size + 2 * e.pad for size in e.shape[2:]))
    residual = None
    if e.residual is not None:
        border = 2 if e.residual == "interior" else 0
        residual = _random(
            (*e.shape[:2], *(size + 2 * border for size in e.shape[2:])), e.channels_last != (e.residual == "other")
        )
        for dim in range(2, len(e.shape)):
            residual = residual.narrow(dim, border, e.shape[dim])
    weight, bias, v_weight, v_bias = (torch.randn(channels, dtype=fp64) + 1 if e.affine else None for _ in range(4))
    inputs = Inputs(
        _random(e.shape, e.channels_last), weight, bias, residual, _random(padded, e.channels_last, 1, 0.5),
        (_random(e.shape, e.channels_last, 1, 0.5), v_weight, v_bias,
         None if residual is None else _random(e.shape, e.channels_last, 1, 0.5)),
    )  # fmt: skip
    return _cast(_cast(inputs, e.dtype), fp64)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Tensors of nested tuples to a dtype; strides are kept."""
    if isinstance(value, Tensor):
        return value.to(dtype)
    if isinstance(value, Inputs):
        return Inputs(*(_cast(v, dtype) for v in value))
    return tuple(_cast(v, dtype) for v in value) if isinstance(value, tuple) else value


def _eager(x: Tensor, weight: Any, bias: Any, residual: Any, e: Example) -> Tensor:
    z = nnf.instance_norm(x, weight=weight, bias=bias)
    z = z if residual is None else z + residual
    z = {"none": lambda t: t, "relu": nnf.relu, "leaky_relu": lambda t: nnf.leaky_relu(t, 0.2)}[e.activation](z)
    return nnf.pad(z, (e.pad,) * 2 * (x.dim() - 2), mode="reflect") if e.pad else z


def _fused(x: Tensor, weight: Any, bias: Any, residual: Any, e: Example) -> Tensor:
    return F.instance_norm_act(x, weight, bias, residual=residual, activation=e.activation, reflect_pad=e.pad)


def _derivatives(function: Callable[..., Tensor], inputs: Inputs, e: Example) -> dict[str, Tensor]:
    """The result, its gradients, and the gradients of those."""
    names = ("x", "weight", "bias", "residual")
    leaves = {n: v.detach().requires_grad_() for n, v in zip(names, inputs[:4], strict=True) if v is not None}
    y = function(*(leaves.get(n) for n in names), e)
    seed = inputs.grad.detach().requires_grad_()
    first = grad(y, list(leaves.values()), seed, create_graph=True)
    result = {"y": y, **{f"d{n}": g for n, g in zip(leaves, first, strict=True)}}
    cotangents = [v for v in inputs.cotangents if v is not None]
    seconds = {n: leaves[n] for n in ("x", "weight") if n in leaves}
    second = grad(first, [seed, *seconds.values()], cotangents, allow_unused=True)
    for n, g in zip(("grad", *seconds), second, strict=True):
        result[f"d2{n}"] = torch.zeros(()) if g is None else g
    return {n: t.detach() for n, t in result.items()}


def _error(a: Tensor, exact: Tensor) -> float:
    return (a.double() - exact).abs().max().item()


@pytest.mark.parametrize("e", EXAMPLES, ids=str)
def test_values_gradients_and_second_gradients(backend: str, e: Example) -> None:
    if backend == "triton" and e.dtype in (fp64, bf16):
        pytest.skip("Triton serves no float64, and its interpreter truncates bfloat16")
    inputs = _inputs(e)
    exact = _derivatives(_eager, inputs, e)
    plain = _derivatives(_eager, _cast(inputs, e.dtype), e)
    fused = _derivatives(_fused, _cast(inputs, e.dtype), e)
    for name, value in exact.items():
        scale = value.abs().max().item()
        assert fused[name].dtype == e.dtype or value.dim() == 0
        assert _error(fused[name], value) <= 2 * _error(plain[name], value) + 4 * torch.finfo(fp32).eps * scale + (
            1e-12 if e.dtype == fp64 else 1e-6
        ), name
    for name in ("y", "dx", "d2x", "d2grad"):
        assert layout.is_dense(fused[name], e.channels_last), name
    again = _derivatives(_fused, _cast(inputs, e.dtype), e)
    assert all(torch.equal(again[name], fused[name]) for name in fused)


@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu"])
def test_gradcheck_and_gradgradcheck(activation: str) -> None:
    for shape, pad, channels_last in [((2, 3, 5), 2, False), ((1, 2, 3, 4), 1, True), ((1, 2, 2, 3, 2), 1, False)]:
        inputs = [_random(shape, channels_last), torch.randn(shape[1], dtype=fp64), torch.randn(shape[1], dtype=fp64)]
        inputs = [t.requires_grad_() for t in (*inputs, _random(shape, channels_last))]

        def function(x: Tensor, w: Tensor, b: Tensor, r: Tensor, pad: int = pad) -> Tensor:
            return F.instance_norm_act(x, w, b, residual=r, activation=activation, reflect_pad=pad)

        with use_backend("native"):
            assert gradcheck(function, inputs, fast_mode=True, check_forward_ad=True)
            assert gradgradcheck(function, inputs, fast_mode=True)


def test_an_empty_batch(backend: str) -> None:
    e = Example((0, 3, 4, 5), residual="dense", pad=1)
    result = _derivatives(_fused, _cast(_inputs(e), fp32), e)
    assert result["y"].shape == (0, 3, 6, 7)
    assert result["dx"].shape == result["d2x"].shape == e.shape
    assert torch.equal(result["dweight"], torch.zeros(3))
    assert torch.equal(result["d2weight"], torch.zeros(3))


def test_parameters_of_another_dtype(backend: str) -> None:
    x = torch.randn(2, 3, 5, 4).to(fp16).requires_grad_()
    weight, bias = torch.randn(3, dtype=fp64, requires_grad=True), torch.randn(3, requires_grad=True)
    got = grad(F.instance_norm_act(x, weight, bias).float().square().sum(), (x, weight, bias))
    with use_backend("reference"):
        expected = grad(F.instance_norm_act(x, weight, bias).float().square().sum(), (x, weight, bias))
    for g, want in zip(got, expected, strict=True):
        assert g.dtype == want.dtype
        torch.testing.assert_close(g, want, rtol=2e-3, atol=2e-2)


def test_strided_inputs_and_gradients(backend: str) -> None:
    """Slices, transposes, expanded and misaligned tensors, and gradients in another layout."""
    base = torch.randn(3, 8, 9, 10)
    flat = torch.randn(1 + 2 * 3 * 20)
    views = [
        base[::2, 1::3], base[:, :, 1:, 2:], base.transpose(2, 3), base.movedim(1, -1)[:, :5],
        base[:1].expand(4, -1, -1, -1), flat[1:].view(2, 3, 4, 5), base[..., :1], base[:, :1].expand(-1, 3, -1, -1),
        base.to(memory_format=torch.channels_last)[:, 2:7, 1:],
    ]  # fmt: skip
    for view in views:
        x = view.detach().requires_grad_()
        y = F.instance_norm_act(x, activation="leaky_relu", reflect_pad=min(1, min(view.shape[2:]) - 1))
        dense = view.clone(memory_format=torch.contiguous_format).requires_grad_()
        with use_backend("reference"):
            want = F.instance_norm_act(dense, activation="leaky_relu", reflect_pad=min(1, min(view.shape[2:]) - 1))
        torch.testing.assert_close(y, want)
        seeds = [torch.ones(()).expand_as(y), _layout(torch.randn_like(want), True), torch.randn(y.shape)]
        for seed in seeds:
            g, w = grad(y, x, seed, retain_graph=True)[0], grad(want, dense, seed, retain_graph=True)[0]
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)


def test_extreme_values(backend: str) -> None:
    far = torch.randn(1, 2, 40, 40) + 1000
    torch.testing.assert_close(
        F.instance_norm_act(far, activation="none").double(),
        nnf.instance_norm(far.double()), rtol=1e-4, atol=1e-4,
    )  # fmt: skip
    constant = torch.tensor([0.1, -7e4, 3e-30]).view(1, 3, 1, 1).expand(1, 3, 50, 50)
    assert not F.instance_norm_act(constant, activation="none").any()
    bias = torch.tensor([1.0, -2.0, 3.0])
    assert torch.equal(F.instance_norm_act(constant, None, bias, activation="none")[0, :, 0, 0], bias)
    wide = torch.tensor([6e4, -6e4]).repeat(60).view(1, 1, 10, 12).half()
    torch.testing.assert_close(F.instance_norm_act(wide, activation="none"), wide.sign())
    for bad in (math.nan, math.inf):
        x = torch.randn(1, 2, 4, 4)
        x[0, 0, 1, 1] = bad
        y = F.instance_norm_act(x)
        assert y[0, 0].isnan().all()
        assert y[0, 1].isfinite().all()


def test_autocast(backend: str) -> None:
    x, residual = torch.randn(1, 3, 4, 4).to(bf16), torch.randn(1, 3, 4, 4)
    with torch.autocast("cpu", dtype=bf16):
        y = F.instance_norm_act(x, residual=residual)
    assert y.dtype == bf16
    with pytest.raises(TypeError, match=r"residual must have x's dtype"):
        F.instance_norm_act(x, residual=residual)


# --- transforms, compilation ----------------------------------------------------------------------------------------


def _penalty(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """The squared norm of the gradient with respect to x, as a function of (x, weight, bias)."""

    def penalty(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        inner = torch.func.grad(lambda t: function(t, weight, bias).pow(2).sum())(x)
        return inner.square().sum()

    return penalty


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm_act(x, weight, bias, activation="leaky_relu", reflect_pad=1)


def _arguments() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, 3, 4, 5), torch.randn(3) + 1, torch.randn(3)


def test_nested_func_grad_is_the_double_backward() -> None:
    arguments = _arguments()
    x, weight, bias = (t.clone().requires_grad_() for t in arguments)
    (g,) = grad(_norm(x, weight, bias).pow(2).sum(), x, create_graph=True)
    expected = grad(g.square().sum(), (x, weight, bias))
    with use_backend("reference"):
        exact = torch.func.grad(_penalty(_norm), argnums=(0, 1, 2))(*(t.double() for t in arguments))
    eager = torch.func.grad(_penalty(_norm), argnums=(0, 1, 2))
    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
    for result in (expected, eager(*arguments), compiled(*arguments)):
        for got, want in zip(result, exact, strict=True):
            torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-3)


def test_compiles_without_graph_breaks() -> None:
    torch._dynamo.reset()

    def step(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _norm(x * 2, weight, bias).sin()

    arguments = _arguments()
    report = torch._dynamo.explain(step)(*arguments)
    assert report.graph_break_count == 0
    leaves = [t.clone().requires_grad_() for t in arguments]
    expected = grad(step(*leaves).square().sum(), leaves)
    y = torch.compile(step, fullgraph=True)(*leaves)
    torch.testing.assert_close(y, step(*leaves))
    for got, want in zip(grad(y.square().sum(), leaves), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 3, 3)
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.instance_norm_act(self.conv(x), self.weight, reflect_pad=1)


def test_exports() -> None:
    model, x = _Model(), torch.randn(1, 2, 8, 8)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_exports_for_images_of_any_size(memory_format: torch.memory_format) -> None:
    model = _Model().to(memory_format=memory_format)
    batch, height = torch.export.Dim("batch", min=1, max=8), torch.export.Dim("height", min=8, max=64)
    x = torch.randn(2, 2, 16, 12).to(memory_format=memory_format)
    program = torch.export.export(model, (x,), dynamic_shapes={"x": {0: batch, 2: height, 3: torch.export.Dim.AUTO}})
    for shape in ((1, 2, 9, 13), (3, 2, 20, 8)):
        x = torch.randn(shape).to(memory_format=memory_format)
        torch.testing.assert_close(program.module()(x), model(x))


def test_deepcopy_and_checkpoint() -> None:
    model, x = _Model(), torch.randn(1, 2, 8, 8, requires_grad=True)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    expected = grad(model(x).square().sum(), (x, model.weight))
    got = grad(checkpoint(model, x, use_reentrant=False).square().sum(), (x, model.weight))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_raw_operators_pass_opcheck() -> None:
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    plane, padded = torch.randn(2, 3).abs() + 1, torch.randn(2, 3, 6, 7)
    weight, setting = torch.randn(3), ("leaky_relu", 0.2, 1)
    ops = torch.ops.fastgan
    calls = [
        *(
            (ops.instance_norm_act_forward, (x, weight, None, x, *setting, 1e-5, need, "native"))
            for need in (True, False)
        ),
        *((ops.instance_norm_act_over_samples, (plane, 20, dtype, "native")) for dtype in (fp32, bf16)),
        *(
            (ops.instance_norm_act_backward, (padded, x, weight, None, z, plane, plane, *setting, *need, "native"))
            for z, need in ((x, (True, True)), (None, (False, False)))
        ),
        (ops.instance_norm_act_double_backward,
         (x, x, weight, None, padded, x, weight, None, x, plane, plane, plane, plane, *setting, "native")),
    ]  # fmt: skip
    for op, args in calls:
        torch.library.opcheck(op.default, args, test_utils=("test_schema", "test_faketensor"))


def test_a_residual_that_is_handed_its_gradient_leaves_it_alone() -> None:
    """With neither activation nor padding it gets the gradient that came in, and that belongs to others."""
    x, residual = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 4, 5, requires_grad=True)
    grad = torch.randn(2, 3, 4, 5)
    before = grad.clone()
    y = F.instance_norm_act(x, residual=residual, activation="none") + residual
    for times in (1, 2):
        y.backward(grad, retain_graph=True)
        torch.testing.assert_close(residual.grad, 2 * times * before)
    assert torch.equal(grad, before)


@pytest.mark.parametrize("inside", ["nothing", "dual level"])
def test_gradient_alone_is_that_of_a_graph(backend: str, inside: str) -> None:
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    residual, weight = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(3, requires_grad=True)
    y = F.instance_norm_act(x, weight, residual=residual, activation="leaky_relu", reflect_pad=1)
    for leaves in ((x,), (residual,), (x, weight, residual)):
        want = torch.autograd.grad(y, leaves, torch.ones_like(y), create_graph=True)
        with forward_ad.dual_level() if inside == "dual level" else contextlib.nullcontext():
            got = torch.autograd.grad(y, leaves, torch.ones_like(y), retain_graph=True)
        for a, b in zip(got, want, strict=True):
            assert b.requires_grad
            assert not a.requires_grad
            assert a.equal(b)


def test_forward_mode(backend: str) -> None:
    x, tangent = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    with forward_ad.dual_level():
        got = forward_ad.unpack_dual(F.instance_norm_act(forward_ad.make_dual(x, tangent), reflect_pad=1)).tangent
    with use_backend("reference"):
        _, want = torch.func.jvp(lambda t: F.instance_norm_act(t, reflect_pad=1), (x.double(),), (tangent.double(),))
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["none", "leaky_relu"])
def test_forward_mode_over_a_backward_pass(backend: str, activation: str) -> None:
    """Hessians times vectors, the fast way to them, and whole ones by ``torch.func.hessian``."""
    dtype = torch.float64 if backend == "native" else torch.float32
    x, residual = torch.randn(2, 2, 3, 4, dtype=dtype), torch.randn(2, 2, 3, 4, dtype=dtype)
    primals = (x, torch.randn(2, dtype=dtype), torch.randn(2, dtype=dtype), residual)
    tangents = tuple(torch.randn_like(p) for p in primals)

    def loss(x: Tensor, w: Tensor, b: Tensor, r: Tensor) -> Tensor:
        y = F.instance_norm_act(x, w, b, residual=r, activation=activation, reflect_pad=1)
        return (y * torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y)).exp().sum()

    def products() -> list[Tensor]:
        gradients = torch.func.grad(loss, argnums=(0, 1, 2, 3))
        some = torch.func.jvp(torch.func.grad(lambda w: loss(x, w, *primals[2:])), primals[1:2], tangents[1:2])[1]
        return [*torch.func.jvp(gradients, primals, tangents)[1], some]

    got = products()
    small = torch.func.hessian(lambda x: loss(x, *primals[1:]))(x) if backend == "native" else None
    with use_backend("reference"):
        want = products()
        if small is not None:
            torch.testing.assert_close(small, torch.func.hessian(lambda x: loss(x, *primals[1:]))(x))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-3 if dtype == torch.float32 else 1e-9, atol=1e-3 * float(b.abs().max())
        )


# --- refusals --------------------------------------------------------------------------------------------------------


def test_refuses_a_third_derivative() -> None:
    x = torch.randn(1, 2, 3, 4, dtype=fp64, requires_grad=True)
    (first,) = grad(F.instance_norm_act(x).pow(3).sum(), x, create_graph=True)
    (second,) = grad(first.pow(2).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivative is not supported"):
        second.pow(2).sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x must be a Tensor, got list"),
        ({"x": torch.ones(1, 3, 4, 4, dtype=torch.int32)}, TypeError, "x must have a floating dtype"),
        ({"x": torch.ones(1, 3, 4, 4, dtype=torch.complex64)}, TypeError, "x must have a floating dtype"),
        ({"x": torch.ones(3, 4)}, ValueError, r"1, 2 or 3 spatial dimensions, got shape \[3, 4\]"),
        ({"x": torch.ones(1, 3, 2, 2, 2, 2)}, ValueError, "1, 2 or 3 spatial dimensions"),
        ({"x": torch.ones(2, 3, 1, 1)}, ValueError, "more than one spatial element"),
        ({"weight": torch.ones(4)}, ValueError, r"weight must have shape \[3\]"),
        ({"weight": torch.ones(3, dtype=torch.int64)}, TypeError, "weight must have a floating dtype"),
        ({"bias": torch.ones(1, 3)}, ValueError, r"bias must have shape \[3\]"),
        ({"bias": torch.ones(3, device="meta")}, ValueError, "bias must be on x's device"),
        ({"weight": torch.ones(3, 1)}, ValueError, r"weight must have shape \[3\]"),
        ({"residual": torch.ones(2, 3, 4, 4)}, ValueError, r"residual must have shape \[1, 3, 4, 4\]"),
        ({"residual": torch.ones(1, 3, 4, 4, 2)}, ValueError, r"residual must have shape \[1, 3, 4, 4\]"),
        ({"residual": torch.ones(3, 4, 4)}, ValueError, r"residual must have shape \[1, 3, 4, 4\]"),
        ({"residual": torch.ones(1, 3, 4, 5)}, ValueError, r"residual must have shape \[1, 3, 4, 4\]"),
        ({"residual": torch.ones(1, 3, 4, 4).half()}, TypeError, "residual must have x's dtype"),
        ({"residual": torch.ones(1, 3, 4, 4).half(), "x": torch.ones(1, 3, 4, 4).bfloat16()}, TypeError, "x's dtype"),
        ({"activation": "gelu"}, ValueError, "activation must be one of .*got 'gelu'"),
        ({"reflect_pad": 4}, ValueError, "reflect_pad must be at least 0 and less than every spatial size"),
        ({"reflect_pad": -1}, ValueError, "got -1"),
        ({"reflect_pad": 2**70}, ValueError, f"got {2**70}"),
        ({"reflect_pad": (1, 1)}, TypeError, r"reflect_pad must be an integer, got \(1, 1\)"),
        ({"reflect_pad": 1.5}, TypeError, "reflect_pad must be an integer, got 1.5"),
        ({"eps": -1e-5}, ValueError, "eps must be a finite number of at least 0, got -1e-05"),
        ({"eps": float("nan")}, ValueError, "eps must be a finite number of at least 0, got nan"),
        ({"eps": math.inf}, ValueError, "eps must be a finite number of at least 0, got inf"),
        ({"eps": torch.ones(())}, TypeError, "eps must be a number, got Tensor"),
        ({"negative_slope": "a"}, TypeError, "negative_slope must be a number, got 'a'"),
        ({"negative_slope": float("-inf")}, ValueError, "negative_slope must be a finite number, got -inf"),
        ({"x": torch.ones(1, 3, 4, 4).to_sparse()}, TypeError, "x must be a dense tensor, got layout torch.sparse_coo"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"x": torch.ones(1, 3, 4, 4)} | change
    with pytest.raises(error, match=message):
        F.instance_norm_act(arguments.pop("x"), **arguments)


@pytest.mark.skipif("native" not in BACKENDS, reason="fastgan._C is not built")
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"x": torch.ones(2, 3, 5)},
        {"x": torch.ones(0, 3, 5, 1, 2, dtype=fp64)},
        {"x": torch.ones(1, 3, 4, 4).bfloat16()[..., ::2, 1:]},
        {"weight": torch.nn.Parameter(torch.ones(3).half()), "bias": torch.ones(6)[::2]},
        {"residual": torch.ones(1, 1, 4, 4).expand(1, 3, 4, 4), "reflect_pad": 3, "negative_slope": -1.0, "eps": 0.0},
    ],
)
def test_what_is_right_is_told_at_once(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    monkeypatch.setattr(operator, "_check_arguments", lambda *_: pytest.fail("told argument by argument"))
    arguments: dict[str, Any] = {"x": torch.ones(1, 3, 4, 4)} | change
    F.instance_norm_act(arguments.pop("x"), **arguments)


def test_the_operator_checks_before_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "_forward", lambda *_: pytest.fail("computed"))
    with pytest.raises(ValueError, match="reflect_pad"):
        F.instance_norm_act(torch.ones(1, 3, 4, 4), reflect_pad=9)
