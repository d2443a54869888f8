"""Checks of the losses' operators that every backend must pass; the oracle is the float64 reference."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

import fastgan
import fastgan.functional as F
from fastgan import reference

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
# Elements of which the C++ kernels write float32 and float64 past the caches.
LARGE = 2**20 + 64


def tensor(
    shape: Sequence[int],
    dtype: torch.dtype,
    layout: str = "contiguous",
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Random data off centre, in a layout, requiring grad; between guards of NaN that no kernel may read."""
    generator = torch.Generator().manual_seed(seed)
    data = (torch.randn(shape, generator=generator, dtype=F64) + 0.7).to(device, dtype)
    if layout == "channels_last":
        data = data.movedim(1, -1).contiguous()
    if layout == "sliced":
        guarded = torch.full([size + 2 for size in shape], torch.nan, dtype=dtype, device=device)
        inner = guarded[tuple(slice(1, -1) for _ in shape)]
        inner.copy_(data)
        return inner.requires_grad_()
    guarded = torch.full((data.numel() + 128,), torch.nan, dtype=dtype, device=device)
    inner = guarded[64:-64].view(data.shape)
    inner.copy_(data)
    return (inner.movedim(-1, 1) if layout == "channels_last" else inner).requires_grad_()


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fills uninitialised memory with NaN, so that an element that a kernel leaves out shows."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def assert_as_good(ours: Tensor, theirs: Tensor, exact: Tensor) -> None:
    """Our error is at most twice the error of PyTorch in the same dtype, plus 1e-6 of the largest value."""
    assert ours.shape == exact.shape
    ours, theirs = ours.detach().double(), theirs.detach().double()
    exact = exact.detach()
    limit = 2 * (theirs - exact).abs().max() + 1e-6 * exact.abs().max() + 1e-12
    assert (ours - exact).abs().max() <= limit


def check_l1(backend: str, cases: Sequence[tuple[Tensor, Tensor, float]]) -> None:
    """Value and gradients of one weighted_l1 over ``cases``."""
    leaves = [t for a, b, _ in cases for t in (a, b) if t.requires_grad]
    with fastgan.use_backend(backend), poisoned():
        value = F.weighted_l1(cases)
        grads = torch.autograd.grad(value, leaves)
        again = torch.autograd.grad(F.weighted_l1(cases), leaves)
    wide = [(a.double(), b.double(), w) for a, b, w in cases]
    exact = reference.weighted_l1(wide)
    assert value.dtype == (F64 if F64 in {t.dtype for t in leaves} else F32)
    assert_as_good(value, reference.weighted_l1(cases), exact)
    one = torch.ones((), dtype=F64, device=value.device)
    oracle = iter(t for pair in reference.l1.gradients(one, wide) for t in pair)
    expected: dict[int, Tensor] = {}
    for a, b, _ in cases:
        for t in (a, b):
            expected[id(t)] = expected.get(id(t), torch.zeros_like(value)) + next(oracle)
    for leaf, grad, repeated in zip(leaves, grads, again, strict=True):
        assert grad.dtype == leaf.dtype
        torch.testing.assert_close(grad, expected[id(leaf)].to(leaf.dtype))
        assert torch.equal(grad, repeated)


def check_interpolate(backend: str, real: Tensor, fake: Tensor, alpha: Tensor) -> None:
    """Value, layout, gradients and double backward of interpolate."""
    dtype = torch.promote_types(real.dtype, fake.dtype)
    inputs = (real, fake, alpha)
    cotangent = tensor(real.shape, dtype, seed=9, device=real.device).detach()

    def run(function: Callable[..., Tensor], arguments: Sequence[Tensor]) -> list[Tensor]:
        y = function(*arguments)
        grad = cotangent.to(y.dtype).requires_grad_()
        first = torch.autograd.grad(y, arguments, grad, create_graph=True)
        u = [
            tensor(g.shape, x.dtype, seed=5 + k, device=g.device).detach().to(g.dtype)
            for k, (g, x) in enumerate(zip(first, inputs, strict=True))
        ]
        return [y, *first, *torch.autograd.grad(first, (grad, *arguments), u)]

    with fastgan.use_backend(backend), poisoned():
        ours = run(F.interpolate, inputs)
    theirs = run(lambda r, f, a: reference.interpolate(r.to(dtype), f.to(dtype), a), inputs)
    exact = run(reference.interpolate, [t.detach().double().requires_grad_() for t in inputs])
    assert ours[0].dtype == dtype
    assert ours[0].stride() == torch.empty_like(real).stride()
    for grad, leaf in zip(ours[1:4], inputs, strict=True):
        assert grad.dtype == leaf.dtype
    for a, b, c in zip(ours, theirs, exact, strict=True):
        assert_as_good(a, b, c)


def check_penalty(backend: str, grads: Tensor, target: float, one_sided: bool) -> None:
    """Value, gradient and double backward of gradient_norm_penalty."""
    u = tensor(grads.shape, grads.dtype, seed=9, device=grads.device).detach()

    def run(function: Callable[..., Tensor], g: Tensor) -> list[Tensor]:
        scale = torch.tensor(1.5, dtype=F64 if g.dtype == F64 else F32, device=g.device, requires_grad=True)
        value = function(g, target=target, one_sided=one_sided)
        (grad,) = torch.autograd.grad(value, g, scale, create_graph=True)
        return [value, grad, *torch.autograd.grad(grad, (scale, g), u.to(g.dtype))]

    with fastgan.use_backend(backend), poisoned():
        ours = run(F.gradient_norm_penalty, grads)
        again = run(F.gradient_norm_penalty, grads)
    theirs = run(reference.gradient_norm_penalty, grads)
    exact = run(reference.gradient_norm_penalty, grads.detach().double().requires_grad_())
    assert ours[0].dtype == (F64 if grads.dtype == F64 else F32)
    for a, b, c, repeated in zip(ours, theirs, exact, again, strict=True):
        assert_as_good(a, b, c)
        assert torch.equal(a, repeated)
