"""Second derivatives, forward mode and compilation fail silently in many fused operators. Here they are right or raise.

Each trap is run on every operator and compared with the same trap in float64 on the reference backend, which PyTorch
differentiates itself.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import fastgan.functional as F
from fastgan import use_backend
from fastgan.kernels import dispatch

Operator = Callable[[Tensor, Tensor], Tensor]  # of x [2, 3, 4, 5] and a second argument [3]


def _norm(x: Tensor, w: Tensor) -> Tensor:
    return F.instance_norm_act(x, w, activation="leaky_relu", reflect_pad=1).square()


def _residual_norm(x: Tensor, w: Tensor) -> Tensor:
    return F.instance_norm_act(x.sin(), w, w, residual=x.cos()).square()


def _l1(x: Tensor, w: Tensor) -> Tensor:
    return F.weighted_l1([(x.square(), x.cos(), 2.0), (x * w.view(3, 1, 1), x, 0.5)])


def _interpolate(x: Tensor, w: Tensor) -> Tensor:
    return F.interpolate(x.square(), x.cos() * w.view(3, 1, 1), torch.tensor([0.25, 0.75], dtype=x.dtype)).square()


def _penalty(x: Tensor, w: Tensor) -> Tensor:
    return F.gradient_norm_penalty(x.square() * w.view(3, 1, 1))


def _wasserstein(x: Tensor, w: Tensor) -> Tensor:
    return F.wasserstein_1d(x.square(), x.cos() * w.view(3, 1, 1), p=2.0, root=False)


OPERATORS: list[Operator] = [_norm, _residual_norm, _l1, _interpolate, _penalty, _wasserstein]


def _first(f: Operator, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    leaves = [t.clone().requires_grad_() for t in (x, w)]
    return torch.autograd.grad(f(*leaves).sum(), leaves)


def _second(f: Operator, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    leaves = [t.clone().requires_grad_() for t in (x, w)]
    (g,) = torch.autograd.grad(f(*leaves).sum(), leaves[0], create_graph=True)
    assert g.requires_grad
    return torch.autograd.grad(g.square().sum(), leaves)


def _second_of_compiled(f: Operator, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    return _second(torch.compile(f, backend="aot_eager"), x, w)


def _nested(f: Operator, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    def penalty(x: Tensor, w: Tensor) -> Tensor:
        return torch.func.grad(lambda t: f(t, w).sum())(x).square().sum()

    result: tuple[Tensor, ...] = torch.func.grad(penalty, argnums=(0, 1))(x, w)
    return result


def _nested_compiled(f: Operator, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    return torch.compile(lambda x, w: _nested(f, x, w), backend="aot_eager", fullgraph=True)(x, w)


def _tangent(f: Operator, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    with forward_ad.dual_level():
        y = f(forward_ad.make_dual(x, x.cos()), w)
        tangent = forward_ad.unpack_dual(y).tangent
        return (torch.zeros_like(y) if tangent is None else tangent,)


def _compiled_tangent(f: Operator, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    torch._dynamo.reset()
    slope = torch.compile(lambda x, w: torch.func.jvp(lambda t: f(t, w), (x,), (x.cos(),))[1], backend="aot_eager")
    return (slope(x, w),)


def _reverse_over_forward(f: Operator, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    def slope(x: Tensor) -> Tensor:
        return torch.func.jvp(lambda t: f(t, w), (x,), (torch.ones_like(x),))[1].square().sum()

    return (torch.func.grad(slope)(x),)


def _forward_over_reverse(f: Operator, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    return (torch.func.jvp(torch.func.grad(lambda t: f(t, w).sum()), (x,), (torch.ones_like(x),))[1],)


def _third(f: Operator, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(f(leaf, w).sum(), leaf, create_graph=True)
    (h,) = torch.autograd.grad(g.square().sum(), leaf, create_graph=True)
    return torch.autograd.grad(h.square().sum(), leaf)


def _mapped(f: Operator, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    return (torch.func.vmap(f, in_dims=(0, None))(torch.stack([x, x.cos()]), w),)


def _mapped_second(f: Operator, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    return torch.func.vmap(lambda a, b: _nested(f, a, b), in_dims=(1, None))(torch.stack([x, x.cos()], 1), w)


def _mapped_weights(f: Operator, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    first = torch.func.grad(lambda a, b: f(a, b).sum(), argnums=(0, 1))
    return torch.func.vmap(first, in_dims=(None, 0))(x, torch.stack([w, 2 * w]))


def _first_of_mapped(f: Operator, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    return (torch.func.grad(lambda t: torch.func.vmap(f, (-1, None))(torch.stack([t, t.cos()], -1), w).sum())(x),)


def _jacobian(f: Operator, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    return (torch.func.jacrev(lambda t: f(t, w))(x),)


def _batches(y: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(y), torch.zeros_like(y), torch.full_like(y, -0.5)])


def _batched_gradients(f: Operator, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """PyTorch's older vmap, whose tensors have no memory either; torch.func knows nothing of it."""
    leaves = [t.clone().requires_grad_() for t in (x, w)]
    y = f(*leaves)
    first = torch.autograd.grad(y, leaves, _batches(y), is_grads_batched=True, retain_graph=True)
    (g,) = torch.autograd.grad(y.sum(), leaves[0], create_graph=True)
    return *first, *torch.autograd.grad(g, leaves, _batches(g), is_grads_batched=True)


def _forward_jacobian(f: Operator, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    return (torch.func.jacfwd(lambda t: f(x, t))(w),)


def _of_negatives(f: Operator, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """Views that are the negative of their memory, as imaginary parts of conjugates are; the incoming gradient too."""
    leaves = [torch.complex(t, -t).conj().imag.detach().requires_grad_() for t in (x, w)]
    assert leaves[0].is_neg()
    y = f(*leaves)
    return y, *torch.autograd.grad(y, leaves, torch._neg_view(-torch.ones_like(y)))


def _traced(f: Operator, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        recorded = torch.jit.trace(f, (x, w), check_trace=False)
        return (recorded(x.cos(), 2 * w),)


def _zero_tangent(f: Operator, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """A tangent without memory."""
    with forward_ad.dual_level():
        y = f(forward_ad.make_dual(x, torch._efficientzerotensor(x.shape, dtype=x.dtype)), w)
        tangent = forward_ad.unpack_dual(y).tangent
        return (torch.zeros_like(y) if tangent is None else tangent + torch.zeros_like(y),)


# What must be right; all others may also raise.
MUST = [
    _first, _second, _nested, _mapped, _mapped_second, _mapped_weights, _first_of_mapped, _jacobian, _of_negatives,
    _batched_gradients, _traced, _tangent, _zero_tangent, _forward_jacobian, _compiled_tangent,
]  # fmt: skip
MAY_RAISE = [_second_of_compiled, _nested_compiled, _reverse_over_forward, _forward_over_reverse, _third]
REFUSALS = (NotImplementedError, RuntimeError)


def _arguments() -> tuple[Tensor, Tensor]:
    # Away from the kinks of |x| and of the activation.
    return torch.randn(2, 3, 4, 5) + 0.5, torch.tensor([0.5, 1.5, -2.0])


def _exact(trap: Callable[..., tuple[Tensor, ...]], f: Operator) -> tuple[Tensor, ...]:
    eager = {_second_of_compiled: _second, _nested_compiled: _nested, _compiled_tangent: _tangent}
    plain = eager.get(trap, trap)
    with use_backend("reference"):
        return plain(f, *(t.double() for t in _arguments()))


def _compare(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-4 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("trap", MUST, ids=lambda f: f.__name__)
def test_is_right(trap: Callable[..., tuple[Tensor, ...]], operator: Operator) -> None:
    torch.manual_seed(0)
    want = _exact(trap, operator)
    torch.manual_seed(0)
    _compare(trap(operator, *_arguments()), want)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda f: f.__name__)
def test_an_empty_batch_has_empty_results(operator: Operator) -> None:
    x, w = _arguments()
    first = torch.func.grad(lambda a, b: operator(a, b).sum(), argnums=(0, 1))

    def everything(size: int) -> list[Tensor]:
        xs, ws = torch.stack([x, x])[:size].requires_grad_(), torch.stack([w, w])[:size]
        y = torch.func.vmap(operator, in_dims=(0, None))(xs, w)
        mapped = [torch.func.vmap(first, in_dims=(0, None))(xs, w), torch.func.vmap(first, in_dims=(None, 0))(x, ws)]
        return [y, *torch.autograd.grad(y.sum(), xs), *mapped[0], *mapped[1]]

    assert [(t.shape, t.dtype) for t in everything(0)] == [(t[:0].shape, t.dtype) for t in everything(2)]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("trap", MAY_RAISE, ids=lambda f: f.__name__)
def test_is_right_or_raises(
    trap: Callable[..., tuple[Tensor, ...]], operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(dispatch, "_FEW", 0)  # kernels, however small
    torch.manual_seed(0)
    want = _exact(trap, operator)
    torch.manual_seed(0)
    try:
        got = trap(operator, *_arguments())
    except REFUSALS:
        return
    _compare(got, want)


def test_inputs_are_not_written() -> None:
    """Kernels write through addresses, which no version counter sees."""
    x, w = _arguments()
    for operator in OPERATORS:
        before = x.clone(), w.clone()
        _second(operator, x, w)
        assert torch.equal(x, before[0])
        assert torch.equal(w, before[1])
