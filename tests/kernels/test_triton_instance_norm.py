"""The Triton kernels of instance norm against the formulas in float64: in the interpreter, or on a GPU if there is one.

Tolerance: twice the error that the same formulas make in plain PyTorch in that dtype.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import fastgan.functional as F
from fastgan import use_backend
from fastgan.kernels import layout
from fastgan.kernels.dispatch import Call
from fastgan.kernels.triton import _launch
from fastgan.kernels.triton import instance_norm as kernels
from fastgan.kernels.triton.instance_norm import Setting, launch_table, launchers
from fastgan.reference import instance_norm as reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []
GUARD = 64
fp32, fp16, bf16 = torch.float32, torch.float16, torch.bfloat16


class Example(NamedTuple):
    """setting: planes, elements and splits of a tile; residual: None, "dense" or "interior" of a padded tensor."""

    shape: tuple[int, ...]
    setting: tuple[int, int, int]
    channels_last: bool = False
    dtype: torch.dtype = fp32
    activation: str = "relu"
    affine: bool = True
    residual: str | None = None
    pad: int = 0


EXAMPLES = [
    # resident, one plane to a program
    Example((2, 3, 16, 16), (1, 256, 0), residual="interior"),
    Example((1, 2, 7, 9), (1, 64, 0), dtype=bf16, activation="leaky_relu", affine=False, pad=2),
    Example((1, 3, 67), (1, 128, 0), dtype=fp16, activation="none", residual="dense", pad=3),
    # grouped: the last program's planes are not all there
    Example((3, 5, 3, 3), (4, 16, 0), activation="leaky_relu", residual="dense", pad=2),
    Example((3, 5, 2, 1), (8, 2, 0), dtype=bf16, activation="none"),
    Example((2, 3, 2, 3, 4), (4, 32, 0), dtype=fp16, residual="interior", pad=1),
    # resident, channels last: whole and ragged blocks of channels
    Example((2, 8, 8, 4), (8, 32, 0), channels_last=True, dtype=bf16, affine=False),
    Example((2, 5, 7, 5), (4, 64, 0), channels_last=True, activation="leaky_relu", residual="interior", pad=2),
    Example((2, 6, 11), (4, 16, 0), channels_last=True, dtype=fp16, activation="none", pad=10),
    Example((1, 3, 2, 3, 4), (4, 32, 0), channels_last=True, residual="interior", pad=1),
    # looped: one program for a plane
    Example((2, 2, 16, 32), (1, 256, 1), activation="leaky_relu", residual="dense"),
    Example((1, 2, 11, 13), (1, 128, 1), dtype=bf16, residual="interior", pad=1),
    Example((1, 5, 9, 8), (4, 64, 1), channels_last=True, activation="none", pad=2),
    # split: whole, ragged and empty pieces
    Example((1, 2, 16, 32), (1, 128, 4), activation="leaky_relu", residual="interior"),
    Example((1, 3, 11, 13), (1, 64, 4), dtype=bf16, residual="dense", pad=1),
    Example((1, 2, 31), (1, 16, 8), dtype=fp16, activation="none", affine=False, residual="interior", pad=4),
    Example((1, 1, 3, 5, 7), (1, 64, 2), activation="leaky_relu", affine=False, pad=1),
    Example((2, 5, 9, 8), (4, 32, 4), channels_last=True, residual="interior", pad=3),
    Example((1, 16, 16, 16), (16, 64, 2), channels_last=True, dtype=bf16, activation="leaky_relu", residual="dense"),
    Example((1, 3, 2, 3, 5), (2, 16, 2), channels_last=True, dtype=fp16, affine=False, activation="none", pad=1),
]


def _force(monkeypatch: pytest.MonkeyPatch, setting: tuple[int, int, int]) -> None:
    monkeypatch.setattr(launch_table, "setting", lambda *_: Setting(*setting, 4))
    launchers.plan_of.cache_clear()


@pytest.fixture(autouse=True)
def _plans() -> Iterator[None]:
    """Plans made of forced settings are not left behind."""
    yield
    launchers.plan_of.cache_clear()


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What kernels allocate is full of NaN and lies between two guards, which must be NaN afterwards."""
    allocated: list[Tensor] = []
    empty = torch.empty

    def poisoned_strided(sizes: Any, strides: Any, dtype: torch.dtype = fp32, device: Any = None) -> Tensor:
        n = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        buffer = empty(n + 2 * GUARD, dtype=dtype, device=device).fill_(math.nan)
        allocated.append(buffer)
        return buffer.as_strided(sizes, strides, GUARD)

    def poisoned(*shape: Any, dtype: torch.dtype = fp32, device: Any = None) -> Tensor:
        sizes = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        strides = [math.prod(sizes[k + 1 :]) for k in range(len(sizes))]
        return poisoned_strided(sizes, strides, dtype, device)

    def poisoned_like(x: Tensor) -> Tensor:
        return poisoned_strided(x.shape, x.stride(), x.dtype, x.device)

    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(torch, "empty_strided", poisoned_strided)
    monkeypatch.setattr(torch, "empty_like", poisoned_like)
    yield
    assert allocated
    for buffer in allocated:
        assert buffer[:GUARD].isnan().all()
        assert buffer[-GUARD:].isnan().all()


def _tensor(
    shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype, scale: float = 1, shift: float = 0
) -> Tensor:
    """Random, with NaN in memory before and after it."""
    n = math.prod(shape)
    buffer = torch.full((n + 2 * GUARD,), math.nan, dtype=dtype, device=DEVICE)
    inner = buffer[GUARD : GUARD + n]
    inner.copy_(torch.randn(n, device=DEVICE) * scale + shift)
    if not channels_last:
        return inner.view(shape)
    return inner.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


def _residual(example: Example) -> Tensor | None:
    if example.residual is None:
        return None
    if example.residual == "dense":
        return _tensor(example.shape, example.channels_last, example.dtype)
    n, c, *spatial = example.shape
    outer = _tensor((n, c, *(size + 3 for size in spatial)), example.channels_last, example.dtype)
    return outer[(..., *(slice(1, 1 + size) for size in spatial))]


class Inputs(NamedTuple):
    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
    grad: Tensor
    u: Tensor
    v_residual: Tensor | None
    v_weight: Tensor | None
    v_bias: Tensor | None

    def to(self, dtype: torch.dtype) -> Inputs:
        return Inputs(*(None if t is None else t.to(dtype) for t in self))


def _inputs(example: Example) -> Inputs:
    n, c, *spatial = example.shape
    padded = (n, c, *(size + 2 * example.pad for size in spatial))
    last, dtype = example.channels_last, example.dtype
    vectors = [torch.randn(c, device=DEVICE) if example.affine else None for _ in range(4)]
    residual = _residual(example)
    inputs = Inputs(
        x=_tensor(example.shape, last, dtype, 2, 3),
        weight=vectors[0],
        bias=vectors[1],
        residual=residual,
        grad=_tensor(padded, last, dtype, 1, 0.5),
        u=_tensor(example.shape, last, dtype, 1, 0.5),
        v_residual=None if residual is None else _tensor(example.shape, last, dtype),
        v_weight=vectors[2],
        v_bias=vectors[3],
    )
    # Where the activation's argument is near 0, rounding decides whether it cuts.
    for _ in range(20 if example.activation != "none" else 0):
        near = reference.forward(*inputs.to(torch.float64)[:4], "none", 0.2, 0, 1e-5)[0].abs() < 1e-4
        if not near.any():
            break
        inputs.x[near] += 0.25
    return inputs


def _all(module: Any, example: Example, i: Inputs, statistics: tuple[Tensor, ...] | None = None) -> dict[str, Tensor]:
    """What the three operators give, each on the same statistics."""
    act = (example.activation, 0.2, example.pad)
    y, mean, rstd = module.forward(i.x, i.weight, i.bias, i.residual, *act, 1e-5)
    results = {"y": y, "mean": mean, "rstd": rstd}
    mean, rstd, m1, m2 = statistics or (mean, rstd, None, None)
    kept = i.residual if example.activation != "none" else None
    terms = (i.grad, i.x, i.weight, i.bias, kept, mean, rstd)
    need = (True,) if module is kernels else ()
    results |= dict(zip(("grad_x", "grad_z", "m1", "m2"), module.backward(*terms, *act, *need), strict=True))
    if m1 is None:
        m1, m2 = results["m1"], results["m2"]
    second = module.double_backward(i.u, i.v_residual, i.v_weight, i.v_bias, *terms, m1, m2, *act)
    return results | dict(zip(("grad_grad", "grad_grad_x", "grad_weight"), second, strict=True))


def _expected(example: Example, inputs: Inputs) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """In float64, and in plain PyTorch in the example's dtype."""
    exact = _all(reference, example, inputs.to(torch.float64))
    return exact, _all(reference, example, inputs)


def _check(got: dict[str, Tensor], exact: dict[str, Tensor], plain: dict[str, Tensor], offset: float = 0) -> None:
    """offset: the mean in standard deviations; y is off by what the mean is."""
    for name, value in got.items():
        assert value.shape == exact[name].shape, name
        eps = torch.finfo(plain[name].dtype).eps
        scale = exact[name].abs().max().item()
        if name == "grad_weight":  # a plane's sum of terms of order 1, which may cancel
            scale = max(scale, 1, exact["grad_x"][0, 0].numel() / 4)
        if name in ("m1", "m2"):  # a plane's mean of such terms
            scale = max(scale, 0.25)
        if name == "y":
            scale += offset
        allowed = 2 * (plain[name].double() - exact[name]).abs().max().item() + 4 * eps * scale
        error = (value.double() - exact[name]).abs().max().item()
        assert error <= allowed, f"{name}: {error:.3g} > {allowed:.3g}"  # NaN fails


def _name(example: Example) -> str:
    planes, _, splits = example.setting
    regime = (
        "split" if splits > 1 else "looped" if splits else "grouped" if planes > 1 and not example.channels_last else ""
    )
    parts = ["x".join(map(str, example.shape)), "last" if example.channels_last else "", regime, example.activation]
    parts += [f"pad{example.pad}" if example.pad else "", example.residual or "", str(example.dtype)[6:]]
    return "-".join(filter(None, parts))


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("example", EXAMPLES, ids=_name)
def test_matches_the_formulas(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    _force(monkeypatch, example.setting)
    inputs = _inputs(example)
    before = [None if t is None else t.clone() for t in inputs]
    got = _all(kernels, example, inputs)
    _check(got, *_expected(example, inputs))
    for name in ("y", "grad_x", "grad_z", "grad_grad", "grad_grad_x"):
        assert got[name].dtype == example.dtype
        assert layout.is_dense(got[name], example.channels_last), name
    assert all(a is None or torch.equal(a, b) for a, b in zip(before, inputs, strict=True)), "an input was written to"


@pytest.mark.parametrize("setting", [(1, 256, 0), (1, 64, 1), (1, 64, 4)])
def test_cotangents_far_from_zero_cost_no_more_than_in_pytorch(
    setting: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of the weight is a difference of products of means, if they are not taken away first."""
    _force(monkeypatch, setting)
    torch.manual_seed(0)
    shape = (1, 24, 15, 17)
    x = torch.randn(shape, device=DEVICE) * 2 + 3
    grad, u = (torch.randn(shape, device=DEVICE) + 20 for _ in range(2))
    weight, act = torch.randn(24, device=DEVICE), ("none", 0.2, 0)

    def in_pytorch(dtype: torch.dtype) -> Tensor:
        a, b = (t.to(dtype).requires_grad_() for t in (x, weight))
        y = torch.nn.functional.instance_norm(a, weight=b, bias=torch.zeros_like(b))
        (first,) = torch.autograd.grad(y, a, grad.to(dtype), create_graph=True)
        return torch.autograd.grad(first, b, u.to(dtype))[0].double()

    _, mean, rstd = kernels.forward(x, weight, None, None, *act, 1e-5)
    terms = (grad, x, weight, None, None, mean, rstd)
    _, _, m1, m2 = kernels.backward(*terms, *act, False, True)
    got = kernels.double_backward(u, None, None, None, *terms, m1, m2, *act)[2].flatten().double()
    exact = in_pytorch(torch.float64)
    theirs = (in_pytorch(torch.float32) - exact).abs().mean()
    assert (got - exact).abs().mean() <= 1.2 * theirs


@pytest.mark.parametrize("setting", [(1, 256, 0), (1, 64, 4)])
def test_is_bitwise_deterministic(setting: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    _force(monkeypatch, setting)
    example = Example((1, 2, 13, 17), setting, pad=1, residual="interior")
    inputs = _inputs(example)
    first, second = (_all(kernels, example, inputs) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    i, act = inputs, (example.activation, 0.2, example.pad)
    terms = (i.grad, i.x, i.weight, i.bias, i.residual, first["mean"], first["rstd"])
    grad_x, *rest = kernels.backward(*terms, *act, False, False)
    assert torch.equal(grad_x, first["grad_x"]), "without the sums that nobody needs"
    assert rest == [None, None, None]


@pytest.mark.parametrize(
    ("example", "scale", "shift"),
    [
        (Example((1, 2, 16, 16), (1, 256, 0)), 1, 1000),
        (Example((1, 2, 16, 16), (1, 64, 4), activation="leaky_relu"), 1, -1000),
        (Example((1, 4, 16, 16), (4, 64, 1), channels_last=True), 1e-3, 1),
        (Example((1, 2, 16, 16), (1, 64, 4)), 0, 1000),
        (Example((1, 2, 16, 16), (2, 256, 0)), 0, -3),
        (Example((1, 2, 16, 16), (1, 64, 4), dtype=fp16), 1e4, 2e4),
        (Example((1, 2, 16, 16), (1, 256, 0), dtype=bf16), 1e17, 0),
    ],
    ids=["far", "far, split", "far, looped", "constant, split", "constant", "fp16's range", "bf16's range"],
)
def test_extreme_data(example: Example, scale: float, shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    _force(monkeypatch, example.setting)
    x = _tensor(example.shape, example.channels_last, example.dtype, scale, shift)
    inputs = _inputs(example)._replace(x=x)
    # Gradients are compared on the same statistics: at such offsets they depend on the mean's last bit.
    exact, plain = _expected(example, inputs)
    statistics = tuple(plain[name] for name in ("mean", "rstd", "m1", "m2"))
    got = _all(kernels, example, inputs, statistics)
    exact |= _all(reference, example, inputs.to(torch.float64), tuple(t.double() for t in statistics)) | {
        name: exact[name] for name in ("y", "mean", "rstd")
    }
    _check(got, exact, plain, abs(shift) / scale if scale else 0)


def test_nan_stays_nan_in_its_own_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    _force(monkeypatch, (2, 16, 0))
    x = torch.randn(1, 2, 4, 4, device=DEVICE)
    x[0, 0, 1, 1] = math.nan
    y = kernels.forward(x, None, None, None, "relu", 0.2, 0, 1e-5)[0]
    assert y[0, 0].isnan().all()
    assert y[0, 1].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4)])
def test_an_empty_batch_launches_nothing(shape: tuple[int, ...]) -> None:
    example = Example(shape, (1, 16, 0), pad=1)
    results = _all(kernels, example, _inputs(example._replace(affine=False)))
    assert results["y"].shape == (*shape[:2], 6, 6)
    assert all(value.numel() == 0 for value in results.values())


def test_supports_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def why(device: str, dtype: torch.dtype) -> str | None:
        return kernels.supports(Call("instance_norm_act", device, dtype))

    assert why("cuda", bf16) is None
    assert "float64" in (why("cuda", torch.float64) or "")
    assert "mps" in (why("mps", fp32) or "")
    monkeypatch.setattr(_launch, "INTERPRETED", True)
    assert why("cpu", fp32) is None
    monkeypatch.setattr(_launch, "INTERPRETED", False)
    assert "TRITON_INTERPRET=1" in (why("cpu", fp32) or "")


def test_functional_reaches_the_kernels_twice_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient penalty through the public function, with a summed (stride 0) gradient, against the reference."""
    launches: list[str] = []
    launch = launchers.launch

    def spy(kernel: Any, *args: Any, **options: Any) -> None:
        launches.append(kernel.__name__)
        launch(kernel, *args, **options)

    monkeypatch.setattr(launchers, "launch", spy)
    values = [torch.randn(2, 3, 6, 6), torch.randn(3), torch.randn(3), torch.randn(2, 3, 6, 6)]

    def penalty(backend: str, dtype: torch.dtype) -> list[Tensor]:
        x, w, b, r = leaves = [v.to(DEVICE, dtype).requires_grad_() for v in values]
        with use_backend(backend):
            y = F.instance_norm_act(x.mul(1.5), w, b, residual=r, activation="leaky_relu", reflect_pad=1)
        (g,) = torch.autograd.grad(y.sum() + y.square().sum(), x, create_graph=True)
        return [*torch.autograd.grad((g.flatten(1).norm(dim=1) - 1).square().mean() + y.sum(), leaves)]

    got, exact = penalty("triton", fp32), penalty("reference", torch.float64)
    for a, e in zip(got, exact, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-4)
    assert launches == ["forward_resident", "backward_resident", "double_resident", "backward_resident"]


# --- the launch table ---------------------------------------------------------------------------------------------


def _setting(operator: str, shape: tuple[int, ...], itemsize: int, channels_last: bool, pad: bool = False) -> Setting:
    elements = math.prod(shape[2:])
    return kernels.setting(
        operator, shape[0] * shape[1], shape[1], elements, itemsize, channels_last, pad, len(shape) == 5, 132
    )


def test_the_table_chooses_the_regime_that_moves_least() -> None:
    # A plane on chip: the CycleGAN generator's inner blocks, and its downsampling path as far as registers reach.
    assert _setting("forward", (1, 256, 64, 64), 4, False) == (1, 4096, 0, 8)
    assert _setting("backward", (1, 128, 128, 128), 2, False) == (1, 16384, 0, 16)
    # Few large planes: two waves of programs and more.
    assert _setting("forward", (1, 64, 256, 256), 2, False).splits * 64 >= 2 * 132
    # Many large planes: one program each, which holds few enough in flight for the second read to hit the cache.
    assert _setting("forward", (16, 64, 256, 256), 4, False) == (1, 8192, 1, 32)
    # Many small planes share a program.
    assert _setting("forward", (64, 512, 8, 8), 2, False).planes == 64
    assert _setting("forward", (1, 512, 4, 4), 2, False).planes == 1  # too few to share and still fill the device
    # Channels last: whole 128-byte rows where planes are cut, at least 32-byte sectors where they are not.
    assert _setting("forward", (8, 256, 64, 64), 2, True).planes == 64
    assert _setting("backward", (8, 256, 64, 64), 4, True).planes == 32
    assert _setting("forward", (8, 256, 16, 16), 2, True).planes >= 16


def test_every_setting_covers_its_plane_and_fits() -> None:
    sizes = [2, 49, 64, 1024, 4225, 65536, 10**6]
    for operator, size, channels, n, itemsize, last, pad in itertools.product(
        launch_table.RESIDENT, sizes, (1, 3, 64, 512), (1, 64), (2, 4), (False, True), (False, True)
    ):
        if last and channels == 1:
            continue
        chosen = _setting(operator, (n, channels, size), itemsize, last, pad)
        assert chosen.planes & (chosen.planes - 1) == 0
        assert chosen.elements & (chosen.elements - 1) == 0
        assert 1 <= chosen.num_warps <= 32
        assert chosen.planes * chosen.elements >= 32 or chosen.num_warps == 1
        if chosen.splits == 0:
            assert chosen.elements >= size
        elif chosen.splits == 1 and not last:
            assert chosen.planes == 1
            assert chosen.num_warps == 32 or (operator, itemsize, chosen.elements) == ("forward", 2, 8192)
        else:
            assert chosen.planes * chosen.elements <= launch_table.SPLIT[operator][pad][0]
            assert chosen.splits * chosen.elements <= 2 * max(size, chosen.elements)  # pieces are not mostly empty


@pytest.mark.parametrize(("shape", "channels_last"), [((1, 1, 190, 190), False), ((1, 4, 48, 48), True)])
def test_the_table_s_own_split(shape: tuple[int, ...], channels_last: bool) -> None:
    example = Example(shape, (0, 0, 0), channels_last)
    inputs = _inputs(example)
    with _launch.record(_launch.multiprocessors(DEVICE)) as launches:
        kernels.forward(inputs.x.to("meta"), None, None, None, "relu", 0.2, 0, 1e-5)
    assert [launch.kernel.__name__ for launch in launches] == ["forward_moments", "forward_apply"]
    _check(_all(kernels, example, inputs), *_expected(example, inputs))


# --- 64-bit offsets -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU, test_more_than_2_to_the_31_elements runs for real")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("splits", [0, 2])
def test_the_last_plane_of_more_than_2_to_the_31_elements(
    splits: int, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One program, told that it is the last of many, in tensors whose other pages are never touched."""
    from triton.runtime.interpreter import interpreter_builder

    c, size = (4, (16, 16)) if channels_last else (1, (32, 32))
    n = 2**31 // (c * math.prod(size)) + 2
    group = 4 if channels_last else 1
    setting = (group, 64, splits) if splits else (group, math.prod(size), 0)
    _force(monkeypatch, setting)
    shape = (n, c, *size)
    x = layout.empty(shape, channels_last, dtype=fp16, device=DEVICE)
    weight, bias = torch.randn(c), torch.randn(c)
    example = Example((1, c, *size), setting, channels_last, fp16)
    small = _inputs(example)._replace(weight=weight, bias=bias, v_weight=torch.randn(c), v_bias=torch.randn(c))
    grad, u = (layout.empty(shape, channels_last, dtype=fp16, device=DEVICE) for _ in range(2))
    x[-1:], grad[-1:], u[-1:] = small.x, small.grad, small.u

    launch, programs, backwards = launchers.launch, 0, False
    program_id, num_programs = interpreter_builder.create_get_program_id, interpreter_builder.create_get_num_programs

    def launch_one(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        nonlocal programs, backwards
        programs, backwards = grid[0], kernel.__name__.endswith("_apply")  # which count programs from the end
        launch(kernel, (1, *grid[1:]), *args, **options)

    def last_id(axis: int) -> Any:
        handle = program_id(axis)
        if axis == 0 and not backwards:
            handle.data = handle.data + (programs - 1)
        return handle

    def all_programs(axis: int) -> Any:
        handle = num_programs(axis)
        if axis == 0:
            handle.data = handle.data + (programs - 1)
        return handle

    monkeypatch.setattr(launchers, "launch", launch_one)
    monkeypatch.setattr(interpreter_builder, "create_get_program_id", last_id)
    monkeypatch.setattr(interpreter_builder, "create_get_num_programs", all_programs)
    act = ("relu", 0.2, 0)
    y, mean, rstd = kernels.forward(x, weight, bias, None, *act, 1e-5)
    grad_x, _, m1, m2 = kernels.backward(grad, x, weight, bias, None, mean, rstd, *act, False)
    second = kernels.double_backward(
        u, None, small.v_weight, small.v_bias, grad, x, weight, bias, None, mean, rstd, m1, m2, *act
    )
    names = ("y", "mean", "rstd", "grad_x", "m1", "m2", "grad_grad", "grad_grad_x", "grad_weight")
    exact, _ = _expected(example, small)
    for name, value in zip(names, (y, mean, rstd, grad_x, m1, m2, *second), strict=True):
        torch.testing.assert_close(value[-1:].double(), exact[name], rtol=1e-2, atol=1e-2)


# --- on a GPU -----------------------------------------------------------------------------------------------------

REAL = [
    Example((1, 256, 64, 64), (0, 0, 0)),
    Example((1, 256, 64, 64), (0, 0, 0), True, bf16, residual="interior", pad=1),
    Example((1, 64, 256, 256), (0, 0, 0), dtype=bf16, activation="leaky_relu"),
    Example((2, 64, 250, 254), (0, 0, 0), True, fp16, pad=3),
    Example((4, 512, 31, 31), (0, 0, 0), activation="leaky_relu", residual="dense"),
    Example((16, 512, 4, 4), (0, 0, 0), True, bf16),
    Example((64, 509, 7, 7), (0, 0, 0), dtype=fp16, affine=False, pad=2),
    Example((3, 67, 10007), (0, 0, 0), residual="interior", pad=1),
    Example((2, 20, 17, 30, 31), (0, 0, 0), True, bf16, "none", residual="dense", pad=1),
    Example((1, 3, 1021, 1019), (0, 0, 0), activation="leaky_relu", pad=1),
]


@pytest.mark.gpu
@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("example", REAL, ids=_name)
def test_real_sizes(example: Example) -> None:
    inputs = _inputs(example)
    first = _all(kernels, example, inputs)
    _check(first, *_expected(example, inputs))
    second = _all(kernels, example, inputs)
    assert all(torch.equal(first[name], second[name]) for name in first), "not deterministic"


@pytest.mark.gpu
@pytest.mark.parametrize("example", [REAL[1], REAL[2]], ids=_name)
def test_in_a_cuda_graph(example: Example) -> None:
    """Captured once, replayed on new data, through the public function and both of its derivatives."""
    inputs = _inputs(example)
    x = inputs.x.clone(memory_format=torch.preserve_format).requires_grad_()

    def step() -> tuple[Tensor, ...]:
        y = F.instance_norm_act(
            x, inputs.weight, inputs.bias, residual=inputs.residual, activation=example.activation,
            reflect_pad=example.pad,
        )  # fmt: skip
        (g,) = torch.autograd.grad(y, x, inputs.grad, create_graph=True)
        (h,) = torch.autograd.grad(g, x, inputs.u)
        return y.detach(), g.detach(), h

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(captured, step(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
def test_compiles_without_a_graph_break() -> None:
    x = torch.randn(2, 64, 64, 64, device=DEVICE, requires_grad=True)

    def block(x: Tensor) -> Tensor:
        return F.instance_norm_act(x * 2, activation="leaky_relu", reflect_pad=1).sigmoid()

    got = torch.compile(block, fullgraph=True)(x)
    torch.testing.assert_close(got, block(x))
    (a,), (b,) = (torch.autograd.grad(y.square().sum(), x) for y in (got, block(x)))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("channels_last", [False, True])
def test_more_than_2_to_the_31_elements(channels_last: bool) -> None:
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of device memory")
    x = layout.empty((33, 64, 1024, 1024), channels_last, dtype=fp16, device=DEVICE)
    assert x.numel() > 2**31
    x.normal_()
    y, mean, rstd = kernels.forward(x, None, None, None, "none", 0.2, 0, 1e-5)
    for n, c in ((0, 0), (32, 63)):
        plane = x[n, c].double()
        exact = (plane - plane.mean()) / plane.var(correction=0).add(1e-5).sqrt()
        torch.testing.assert_close(y[n, c].double(), exact, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(mean[n, c].double(), plane.mean(), rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_runs_on_the_tensor_s_device() -> None:
    x = torch.randn(2, 8, 16, 16, device="cuda:1")
    got = kernels.forward(x, None, None, None, "relu", 0.2, 0, 1e-5)[0]
    torch.testing.assert_close(got, reference.forward(x, None, None, None, "relu", 0.2, 0, 1e-5)[0])
