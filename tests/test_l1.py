"""weighted_l1 and cycle_loss through the C++ kernels, and as functions."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

import fastgan
import fastgan.functional as F
from fastgan import nn, reference
from fastgan.kernels import dispatch
from tests.losses import BF16, F16, F32, F64, LARGE, check_l1, tensor

native = pytest.mark.skipif(
    fastgan.kernels.dispatch.why_not("native", fastgan.kernels.dispatch.Call("weighted_l1", "cpu", F32)) is not None,
    reason="the native extension is not built",
)


@native
@pytest.mark.parametrize(
    ("a", "b"), [(F32, F32), (F64, F64), (F16, F16), (BF16, BF16), (F32, BF16), (F16, F32), (F16, BF16), (F64, F32)]
)
def test_value_and_gradients_of_every_dtype(a: torch.dtype, b: torch.dtype) -> None:
    shapes = [(1,), (63,), (64, 2), (3, 5, 7, 11), (4097,), (2, 3, 41, 43), (LARGE,)]
    check_l1("native", [(tensor(s, a, seed=k), tensor(s, b, seed=k + 20), k - 1.5) for k, s in enumerate(shapes)])


@native
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_layouts_of_a_pair_may_differ(layout: str) -> None:
    a, b = tensor((2, 3, 7, 5), F32, layout), tensor((2, 3, 7, 5), F32, "channels_last", seed=1)
    check_l1("native", [(a, b, 2.0), (b.detach(), a, 3.0), (a.detach().expand(2, 3, 7, 5), b, 1.0)])


@native
def test_gradient_has_the_layout_of_what_wants_it() -> None:
    rec = tensor((2, 3, 7, 5), F32, "channels_last")
    (grad,) = torch.autograd.grad(F.weighted_l1([(tensor((2, 3, 7, 5), F32).detach(), rec, 1.0)]), rec)
    assert grad.is_contiguous(memory_format=torch.channels_last)


@native
def test_shared_tensors_and_equal_elements() -> None:
    a, b = tensor((33,), F32), tensor((33,), F32, seed=1)
    with torch.no_grad():
        b[::2] = a[::2]
    check_l1("native", [(a, b, 1.0), (b, a, 2.0), (a, a, 5.0)])
    (grad,) = torch.autograd.grad(F.weighted_l1([(a, b, 1.0)]), a)
    assert not grad[::2].any()
    assert grad[1::2].all()


@native
def test_value_does_not_depend_on_the_number_of_threads() -> None:
    pairs = [(tensor((1 << 17,), F32), tensor((1 << 17,), F32, seed=1), 1.0)]
    threads = torch.get_num_threads()
    values = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        values.append(F.weighted_l1(pairs).item())
    torch.set_num_threads(threads)
    assert len(set(values)) == 1


@native
def test_nan_and_infinity_show() -> None:
    a, b = tensor((70,), F32), tensor((70,), F32, seed=1).detach()
    with torch.no_grad():
        a[3], a[66] = torch.inf, torch.nan
    ours = torch.autograd.grad(F.weighted_l1([(a, b, 1.0)]), a)[0]
    theirs = torch.autograd.grad((a - b).abs().mean(), a)[0]
    assert F.weighted_l1([(a, b, 1.0)]).isnan()
    assert torch.equal(ours, theirs)


@native
def test_every_instruction_set_gives_the_reference() -> None:
    code = (
        "from tests.losses import *; import fastgan._C as c; print(c.cpu_isa())\n"
        "for dtype in (F32, F64, F16, BF16):\n"
        "    sizes = (5, 64, 4200, LARGE)\n"
        "    check_l1('native', [(tensor((s,), dtype), tensor((s,), dtype, seed=1), 2.0) for s in sizes])\n"
        "    for s in ((2, 3), (3, 4133), (3, LARGE // 2)):\n"
        "        x, y = tensor(s, dtype), tensor(s, dtype, seed=1)\n"
        "        check_penalty('native', x, 1.0, False)\n"
        "        check_interpolate('native', x, y, tensor((s[0],), F32, seed=2))\n"
    )
    sets = ("baseline", "avx2", "avx512")  # this process runs the best one, which may be avx512_bf16
    for k, isa in enumerate(sets):
        environment = {**os.environ, "FASTGAN_CPU_ISA": isa}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() in sets[: k + 1]


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_gradcheck_twice_and_forward_mode(backend: str) -> None:
    def loss(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return F.weighted_l1([(a, b, 3.0), (b, c, -1.5)])

    inputs = (tensor((2, 3, 2), F64, "channels_last"), tensor((2, 3, 2), F64, seed=1), tensor((2, 3, 2), F64, seed=2))
    with fastgan.use_backend(backend):
        assert torch.autograd.gradcheck(loss, inputs, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(loss, inputs)


@native
@pytest.mark.parametrize("dtype", [F32, F16])
def test_gradients_of_the_forward_pass_are_those_of_a_backward_pass(dtype: torch.dtype) -> None:
    """Bitwise; given away once, since whoever gets them may write into them; made anew where 1 is not what comes in."""
    a, b, c = (tensor((2, 3, 70, 31), dtype, "channels_last", seed=k) for k in range(3))
    value = F.weighted_l1([(a, b, 3.0), (c, a.detach(), -1.5)])
    first = torch.autograd.grad(value, (a, b, c), retain_graph=True)
    kept = [grad.clone() for grad in first]
    for grad, leaf in zip(first, (a, b, c), strict=True):
        assert grad.stride() == leaf.stride()
        grad.fill_(torch.nan)
    for k in range(2):
        assert all(map(torch.equal, torch.autograd.grad(value, (a, b, c), retain_graph=True), kept)), k
    doubled = torch.autograd.grad(2 * F.weighted_l1([(a, b, 3.0), (c, a.detach(), -1.5)]), (a, b, c))
    for grad, unit in zip(doubled, kept, strict=True):
        torch.testing.assert_close(grad, 2 * unit)
    only = torch.autograd.grad(F.weighted_l1([(a, b, 3.0)]), b)[0]
    assert torch.equal(only, kept[1])


@native
def test_third_derivative_raises() -> None:
    a, b = tensor((4,), F64), tensor((4,), F64, seed=1)
    scale = torch.ones((), dtype=F64, requires_grad=True)
    u = torch.ones(4, dtype=F64, requires_grad=True)
    (grad,) = torch.autograd.grad(F.weighted_l1([(a, b, 1.0)]), a, scale, create_graph=True)
    (grad_scale,) = torch.autograd.grad(grad, scale, u, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivative"):
        grad_scale.backward()


@native
@pytest.mark.parametrize("kernels", [True, False])
def test_compiled_and_functional_derivatives(kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    if kernels:
        monkeypatch.setattr(dispatch, "_FEW", 0)
    a, b = tensor((2, 3, 4, 4), F32), tensor((2, 3, 4, 4), BF16, "channels_last", seed=1)

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return F.weighted_l1([(a, b, 3.0), (b, a.detach(), 1.0)]) ** 2

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        torch.autograd.grad(compiled(a, b), (a, b)), torch.autograd.grad(loss(a, b), (a, b)),
        **({"rtol": 0, "atol": 0} if kernels else {}),
    )  # fmt: skip

    def curvature(a: Tensor) -> Tensor:
        return torch.func.grad(lambda a: torch.func.grad(loss)(a, b.detach()).square().sum())(a)

    with fastgan.use_backend("reference"):
        expected = curvature(a.detach())
    torch.testing.assert_close(curvature(a.detach()), expected)


@native
def test_opcheck() -> None:
    a, b = tensor((5,), F32).detach(), tensor((5,), F32, seed=1).detach()
    arguments = ([a, b], [2.0], [1024], F32, "native")
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.fastgan.weighted_l1_forward.default, arguments, test_utils=checks)
    _, signs = torch.ops.fastgan.weighted_l1_forward(*arguments)
    one = torch.ones(())
    torch.library.opcheck(
        torch.ops.fastgan.weighted_l1_backward.default,
        (one, signs, [5], [2.0], [1024], [0, -1], "native"),
        test_utils=checks,
    )
    torch.library.opcheck(
        torch.ops.fastgan.weighted_l1_directional.default,
        ([a, None], signs, [5], [2.0], [1024], F32, "native"),
        test_utils=checks,
    )


def test_autocast_mixes_dtypes_and_gives_float32() -> None:
    layer = torch.nn.Linear(8, 8)
    x = tensor((4, 8), F32).detach()
    with torch.autocast("cpu", torch.bfloat16):
        rec = layer(x)
        loss = F.weighted_l1([(rec, x, 10.0)])
    assert rec.dtype == BF16
    assert loss.dtype == F32
    torch.testing.assert_close(loss, 10 * (rec.float() - x).abs().mean())
    loss.backward()
    assert layer.weight.grad is not None


def test_cycle_loss_is_the_published_formula() -> None:
    a, b = [tensor((1, 3, 8, 8), F32, seed=k) for k in (0, 1)], [tensor((1, 3, 6, 4), F32, seed=k) for k in (2, 3)]
    l1 = torch.nn.functional.l1_loss
    torch.testing.assert_close(F.cycle_loss(*a, *b), 10 * l1(*a) + 10 * l1(*b))
    torch.testing.assert_close(nn.CycleLoss(3.0, 0.5)(*a, *b), 3 * l1(*a) + 0.5 * l1(*b))


def test_pairs_may_be_any_iterable() -> None:
    pairs = [(tensor((5,), F32), tensor((5,), F32, seed=1), 2.0)]
    assert torch.equal(F.weighted_l1(iter(pairs)), F.weighted_l1(pairs))


def test_overflow_is_infinity() -> None:
    a = torch.full((2,), 1e38, requires_grad=True)
    value = F.weighted_l1([(a, torch.zeros(2), 10.0)])
    assert value.item() == float("inf")
    torch.testing.assert_close(torch.autograd.grad(value, a)[0], torch.full((2,), 5.0))


@pytest.mark.parametrize("kernels", [True, False])
def test_a_changing_weight_compiles_twice_at_most(kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for a number, once for any number."""
    compiled = 0
    if kernels:
        monkeypatch.setattr(dispatch, "_FEW", 0)

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        nonlocal compiled
        compiled += 1
        return graph

    torch._dynamo.reset()
    loss = torch.compile(lambda a, w: F.weighted_l1([(a, a.cos(), w), (a, a.sin(), 2.0)]), backend=backend)
    for weight in (1.0, 0.5, 0.25, 0.125):
        a = tensor((5,), F32).requires_grad_()
        value, expected = loss(a, weight), F.weighted_l1([(a, a.cos(), weight), (a, a.sin(), 2.0)])
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(*(torch.autograd.grad(v, a)[0] for v in (value, expected)))
    assert compiled <= 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rec_b": torch.ones(4)}, ValueError, r"rec_b and real_b must have one shape, got \[4\] and \[3\]"),
        ({"real_a": None}, TypeError, "real_a must be a Tensor, got NoneType"),
        ({"weight_b": float("nan")}, ValueError, "weight_b must be a finite number, got nan"),
    ],
)
def test_cycle_loss_names_its_own_arguments(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {name: torch.ones(3) for name in ("rec_a", "real_a", "rec_b", "real_b")} | change
    with pytest.raises(error, match=f"^cycle_loss: {message}"):
        F.cycle_loss(**arguments)


def test_cycle_loss_module_checks_its_weights() -> None:
    with pytest.raises(TypeError, match="CycleLoss: weight_b must be a number, got '10'"):
        nn.CycleLoss(weight_b="10")


def test_inference_needs_no_signs() -> None:
    a, b = tensor((5,), F32), tensor((5,), F32, seed=1)
    with torch.no_grad():
        value = F.weighted_l1([(a, b, 1.0)])
    assert not value.requires_grad
    torch.testing.assert_close(value, reference.weighted_l1([(a, b, 1.0)]).detach())


@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        ([], ValueError, "at least one"),
        (None, TypeError, r"pairs must be \(a, b, weight\) each, got None"),
        (torch.ones(2, 3), TypeError, r"pairs must be \(a, b, weight\) each, got Tensor"),
        ([3], TypeError, r"pairs\[0\] must be \(a, b, weight\), got 3"),
        ([torch.ones(3)], TypeError, r"pairs\[0\] must be \(a, b, weight\), got Tensor"),
        ([(torch.ones(3), torch.ones(3))], ValueError, "got 2 items"),
        ([(torch.ones(3), torch.ones(4), 1.0)], ValueError, r"\[3\] and \[4\]"),
        ([(torch.ones(0, 3), torch.ones(0, 3), 1.0)], ValueError, r"is empty \(shape \[0, 3\]\)"),
        ([(torch.ones(3), 1.0, 1.0)], TypeError, "b must be a Tensor, got float"),
        ([(torch.ones(3), torch.ones(3, dtype=torch.int64), 1.0)], TypeError, "got torch.int64"),
        ([(torch.ones(3), torch.ones(3, device="meta"), 1.0)], ValueError, "device cpu, got meta"),
        ([(torch.ones(3), torch.ones(3), float("nan"))], ValueError, "finite number, got nan"),
        ([(torch.ones(3), torch.ones(3), torch.ones(()))], TypeError, "weight must be a number, got Tensor"),
    ],
)
def test_errors(pairs: list[tuple[Tensor, Tensor, float]], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        F.weighted_l1(pairs)
