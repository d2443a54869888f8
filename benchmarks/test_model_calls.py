"""Every norm, loss and penalty that the reference models call in a training step, as they call it.

Each case says how often a step calls it; the report adds them up to the time that a step spends in them. Eager PyTorch
gets its own best layout, NCHW: in channels_last its instance norm makes two copies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor

import fastgan.functional as F
from benchmarks import harness
from benchmarks.model_calls import ModelCall, collect

CALLS = collect()
CASES = [(step, call, count) for step, calls in CALLS.items() for call, count in calls.items()]
Results = tuple[Tensor, ...]


def eager_norm(x: Tensor, weight: Any, bias: Any, residual: Any, **settings: Any) -> Tensor:
    z = nnf.instance_norm(x, weight=weight, bias=bias, eps=settings["eps"])
    z = z if residual is None else z + residual
    if settings["activation"] == "relu":
        z = z.relu()
    elif settings["activation"] == "leaky_relu":
        z = nnf.leaky_relu(z, settings["negative_slope"])
    pad = settings["reflect_pad"]
    return nnf.pad(z, (pad,) * 4, mode="reflect") if pad else z


def our_norm(x: Tensor, weight: Any, bias: Any, residual: Any, **settings: Any) -> Tensor:
    return F.instance_norm_act(x, weight, bias, residual=residual, **settings)


def our_l1(*tensors: Tensor, weights: tuple[float, ...]) -> Tensor:
    return F.weighted_l1(list(zip(tensors[::2], tensors[1::2], weights, strict=True)))


def eager_l1(*tensors: Tensor, weights: tuple[float, ...]) -> Tensor:
    first, *rest = (nnf.l1_loss(a, b) * w for a, b, w in zip(tensors[::2], tensors[1::2], weights, strict=True))
    return sum(rest, first)


def eager_interpolate(real: Tensor, fake: Tensor, alpha: Tensor | None) -> Tensor:
    a = torch.rand(len(real), device=real.device, dtype=real.dtype) if alpha is None else alpha.to(real.dtype)
    return torch.lerp(fake, real, a.view(-1, *(1,) * (real.dim() - 1)))


def eager_penalty(grads: Tensor, target: float, one_sided: bool) -> Tensor:
    excess = grads.flatten(1).norm(2, dim=1) - target
    return (excess.clamp_min(0) if one_sided else excess).square().mean()


FUNCTIONS: dict[str, dict[str, Callable[..., Tensor]]] = {
    "instance_norm_act": {"fastgan": our_norm, "eager": eager_norm},
    "weighted_l1": {"fastgan": our_l1, "eager": eager_l1},
    "interpolate": {"fastgan": F.interpolate, "eager": eager_interpolate},
    "gradient_norm_penalty": {"fastgan": F.gradient_norm_penalty, "eager": eager_penalty},
}


def leaves(call: ModelCall, tensors: list[Tensor | None]) -> list[Tensor]:
    """What a step differentiates for: the first of each pair of L1, no input of an interpolation, else everything."""
    if call.operator == "interpolate":
        return []
    if call.operator == "weighted_l1":
        tensors = tensors[::2]
    return [t for t in tensors if t is not None]


def runner(call: ModelCall, function: Callable[..., Tensor], tensors: list[Tensor | None]) -> Callable[[], Results]:
    """What a step does with the call: forward, backward where it has one, and backward of that in a penalty."""
    settings = dict(call.settings)
    wanted = [leaf.requires_grad_() for leaf in leaves(call, tensors)]
    if not wanted:
        return lambda: (function(*tensors, **settings),)
    y = function(*tensors, **settings)
    torch.manual_seed(1)
    # The same numbers for every contestant, in its own layout.
    plain = (y.detach(), wanted[0].detach())
    seed, cotangent = (torch.empty_like(t).copy_(torch.randn(t.shape, device=t.device)) for t in plain)
    if y.dim() == 0:
        seed = torch.ones_like(y)  # losses are differentiated so
    if not call.twice:
        return lambda: torch.autograd.grad(function(*tensors, **settings), wanted, seed)
    seed.requires_grad_()

    def twice() -> Results:
        value = function(*tensors, **settings)
        (first,) = torch.autograd.grad(value, wanted[:1], seed, create_graph=True)
        return torch.autograd.grad(first, (seed, wanted[0]), cotangent)

    return twice


def traffic(call: ModelCall) -> int:
    """The least bytes of all passes."""
    first = call.tensors[0]
    assert first is not None
    if call.operator != "instance_norm_act":
        times = {"weighted_l1": 1.5 * len(call.tensors), "interpolate": 3, "gradient_norm_penalty": 2}[call.operator]
        return int(times * first.nbytes)
    pad = dict(call.settings)["reflect_pad"]
    height, width = first.sizes[2:]
    padded = first.nbytes * (height + 2 * pad) * (width + 2 * pad) // (height * width)
    extra = 0 if call.tensors[3] is None else 2 * first.nbytes
    twice = 3 * first.nbytes + 2 * padded if call.twice else 0
    return 3 * first.nbytes + 2 * padded + extra + twice


@pytest.mark.parametrize("contestant", ["fastgan", "eager"])
@pytest.mark.parametrize(("step", "call", "count"), CASES, ids=lambda value: str(value))
def test_call(benchmark: Any, step: str, call: ModelCall, count: int, contestant: str) -> None:
    def make() -> list[Tensor | None]:
        return [None if shape is None else shape.tensor() for shape in call.tensors]

    def own_layout(tensors: list[Tensor | None]) -> list[Tensor | None]:
        return [None if t is None else t.contiguous() for t in tensors] if contestant == "eager" else tensors

    torch.manual_seed(0)
    first = make()
    more = harness.copies(make, traffic(call))[1:]
    function = FUNCTIONS[call.operator][contestant]
    runs = [runner(call, function, own_layout(tensors)) for tensors in [first, *more]]

    def check(results: Results) -> None:
        if contestant == "eager" or (call.operator == "interpolate" and call.tensors[2] is None):
            return  # nothing to compare with; or points of its own
        plain = [None if t is None else t.detach() for t in first]
        expected = runner(call, FUNCTIONS[call.operator]["eager"], plain)()
        tolerance = 1e-3 if first[0] is None or first[0].dtype == torch.float32 else 3e-2
        for got, right in zip(results, expected, strict=True):
            assert (got - right).norm() <= tolerance * right.norm() + 1e-6

    harness.measure(
        benchmark, lambda run: run(), runs, operator=f"calls of {step}", case=str(call), contestant=contestant,
        bytes_moved=traffic(call), check=check, step=step, calls=count, step_calls=CALLS[step].total(),
    )  # fmt: skip
