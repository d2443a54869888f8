"""Sliced and max-sliced Wasserstein distances: exact 1-D distances of projections onto lines."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastgan.functional import _check
from fastgan.functional._autocast import without_autocast
from fastgan.functional._wasserstein_autograd import distance_of_checked, mean_root_of_checked
from fastgan.functional._wasserstein_checks import are_plain, check_order, dtype_of
from fastgan.kernels.dispatch import requested_backend, use_backend

# Projected samples that are in memory at a time: 64 MiB in float32, a few times that in a backward pass.
_CHUNK = 1 << 24
# Directions from which the max-sliced distance climbs.
_STARTS = 8


def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    *,
    n_projections: int = 128,
    p: float = 2.0,
    projections: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The sliced p-Wasserstein distance of two point clouds, over random directions θ on the unit sphere.

    .. math:: SW_p = \Big(\frac1L \sum_{l=1}^L W_p^p(\langle x, \theta_l\rangle, \langle y, \theta_l\rangle)\Big)^{1/p}

    and the maximum over l for p = ∞ (Rabin et al. 2011; Bonneel et al. 2015).

    Args:
        x: [..., n, d] points.
        y: [..., m, d] points; the leading shapes broadcast.
        n_projections: L, when ``projections`` is None.
        p: order of the distance, in [1, inf].
        projections: [L, d] directions, used as they are (unit vectors for a sliced distance), or None to draw them.
        generator: draws the directions, on its own device.

    Returns:
        [...], in the dtype of the samples, differentiable twice; 0 has gradient 0.

    At most 2²⁴ projected samples are in memory at a time: with more, directions are handled in chunks, whose
    projections a backward pass computes again instead of keeping them.

    Raises:
        TypeError, ValueError: as :func:`wasserstein_1d`; and for points or projections of another dimension d.
    """
    name = "sliced_wasserstein"
    check_order(name, p)
    x, y = _prepare(name, x, y)
    if projections is None:
        projections = random_directions(n_projections, x, generator)
    _check_projections(name, projections, x)
    if projections.dtype != x.dtype:
        projections = projections.to(x.dtype)

    dtype, batch = x.dtype, x.shape[:-2]
    rows = math.prod(batch if batch == y.shape[:-2] else torch.broadcast_shapes(batch, y.shape[:-2]))
    chunk = max(1, _CHUNK // max(1, rows * (x.size(-2) + y.size(-2))))
    if chunk >= projections.size(0) and p != math.inf:
        x, y = _projected(x, y, projections)
        value = mean_root_of_checked(x, y, p)
        return distance_of_checked(x, y, None, None, p, True, dtype, mean=True) if value is None else value
    # Saved-tensor hooks, on which checkpointing rests, do not exist under torch.func.
    plain = torch._C._functorch.peek_interpreter_stack() is None
    keep = plain and torch.is_grad_enabled() and any(t.requires_grad for t in (x, y, projections))
    # A graph that is compiled holds the choice of a backend.
    compute = _costs if torch.compiler.is_compiling() else partial(_costs_by, requested_backend())
    costs = torch.cat(
        [
            checkpoint(compute, x, y, part, p, use_reentrant=False) if keep else compute(x, y, part, p)
            for part in projections.split(chunk)
        ],
        -1,
    )
    return (costs.amax(-1) if p == math.inf else _root(costs.mean(-1), p)).to(dtype)


def max_sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    *,
    n_projections: int = 128,
    n_steps: int = 50,
    p: float = 2.0,
    projections: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The max-sliced p-Wasserstein distance (Deshpande et al. 2019): the largest 1-D distance over directions.

    .. math:: \max_{\|\theta\| = 1} W_p(\langle x, \theta\rangle, \langle y, \theta\rangle)

    The eight best of the random directions are improved by gradient ascent on the sphere, with a step that grows after
    a success and halves after a failure. The best result is a lower bound of the maximum, attained at its direction.

    Args:
        x: [..., n, d] points.
        y: [..., m, d] points; the leading shapes broadcast.
        n_projections: directions to start from, when ``projections`` is None.
        n_steps: of ascent.
        p: order of the distance, in [1, inf).
        projections: [L, d] directions to start from, or None to draw them.
        generator: draws the directions, on its own device.

    Returns:
        [...], in the dtype of the samples. The direction is a constant to autograd, which at a maximum makes no
        difference to the first derivative.

    Raises:
        TypeError, ValueError: as :func:`sliced_wasserstein`; and for an infinite p.
    """
    name = "max_sliced_wasserstein"
    check_order(name, p)
    x, y = _prepare(name, x, y)
    if p == math.inf:
        raise ValueError(f"{name}: p must be finite, got {p}")
    _check.integer(name, "n_steps", n_steps, 0)
    if projections is None:
        projections = random_directions(n_projections, x, generator)
    _check_projections(name, projections, x)
    # The ascent differentiates, which inference mode and its tensors do not allow.
    with torch.inference_mode(False), torch.no_grad(), without_autocast(x.device.type):
        compiled = torch.compiler.is_compiling()  # which has no inference mode
        xs, ys = (t.clone() if not compiled and t.is_inference() else t.detach() for t in (x, y))
        start = nnf.normalize(projections.detach(), dim=-1).to(x.dtype)
        best, index = _distances(xs, ys, start, p).topk(min(_STARTS, start.size(0)), -1)
        theta = start[index]
        step = torch.full_like(best, 0.5)
        for _ in range(n_steps):
            slope = _slope(xs, ys, theta, p)
            slope = slope - (slope * theta).sum(-1, keepdim=True) * theta
            size = slope.norm(dim=-1, keepdim=True)
            moved = theta + step.to(theta.dtype).unsqueeze(-1) * slope / size.masked_fill(size == 0, 1.0)
            moved = moved / moved.norm(dim=-1, keepdim=True)
            value = _distances(xs, ys, moved, p)
            better = value > best
            best = torch.where(better, value, best)
            theta = torch.where(better.unsqueeze(-1), moved, theta)
            step = torch.where(better, step * 1.5, step * 0.5)
        winner = best.argmax(-1, keepdim=True).unsqueeze(-1).expand(*best.shape[:-1], 1, theta.size(-1))
        theta = theta.gather(-2, winner)
    return _distances(x, y, theta, p).squeeze(-1).to(x.dtype)


def random_directions(count: int, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """[count, d] uniform on the unit sphere, for points ``like`` [..., d]."""
    _check.integer("sliced_wasserstein", "n_projections", count, 1)
    _check.generator("sliced_wasserstein", generator)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    device = like.device if generator is None else generator.device
    # torch.compile cannot trace a generator, not even None, beside a symbolic size.
    given: dict[str, Any] = {} if generator is None else {"generator": generator}
    directions: Tensor = torch.randn(count, like.size(-1), dtype=dtype, device=device, **given)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    return directions.to(like.device)


def _prepare(name: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if are_plain(x, y) and x.dim() > 1:
        return x, y
    for what, points in (("x", x), ("y", y)):
        _check.tensor(name, what, points)
        if points.dim() < 2 or 0 in points.shape[-2:]:
            raise ValueError(f"{name}: {what} must be [..., points, dimensions], got shape {list(points.shape)}")
    _check.same_device(name, "y", y, "x", x)
    if x.size(-1) != y.size(-1):
        raise ValueError(
            f"{name}: x and y must have points of one dimension, got {x.size(-1)} ({list(x.shape)}) and "
            f"{y.size(-1)} ({list(y.shape)})"
        )
    if x.shape[:-2] != y.shape[:-2]:
        try:
            torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        except RuntimeError:
            raise ValueError(
                f"{name}: the leading shapes of x and y must broadcast, got {list(x.shape)} and {list(y.shape)}"
            ) from None
    dtype, other = dtype_of(name, "x", x), dtype_of(name, "y", y)
    if dtype != other:
        dtype = torch.promote_types(dtype, other)
    x = x if x.dtype == dtype else x.to(dtype)
    y = y if y.dtype == dtype else y.to(dtype)
    return x, y


def _check_projections(name: str, projections: Tensor, x: Tensor) -> None:
    _check.floating(name, "projections", projections)
    _check.same_device(name, "projections", projections, "x", x)
    if projections.dim() != 2 or projections.size(0) == 0 or projections.size(1) != x.size(-1):
        raise ValueError(
            f"{name}: projections must have shape [at least 1, {x.size(-1)}] (one direction a row), "
            f"got {list(projections.shape)}"
        )


def _projected(x: Tensor, y: Tensor, projections: Tensor) -> tuple[Tensor, Tensor]:
    """x and y along each direction of projections [..., L, d]: [..., L, n] and [..., L, m]."""
    with without_autocast(x.device.type):
        x, y = projections @ x.mT, projections @ y.mT
    if (x.dim() > 2 or y.dim() > 2) and x.shape[:-1] != y.shape[:-1]:
        rows = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1])
        x, y = x.expand(*rows, -1), y.expand(*rows, -1)
    return x, y


def _costs(x: Tensor, y: Tensor, projections: Tensor, p: float) -> Tensor:
    """W_p^p (W_inf) along each direction, [..., L], in float64: its range is that of a float16's p-th power too."""
    return distance_of_checked(*_projected(x, y, projections), None, None, p, False, torch.float64)


def _costs_by(backend: str, x: Tensor, y: Tensor, projections: Tensor, p: float) -> Tensor:
    """The same by one backend: a backward pass computes it again, where the forward pass's choice is not in force."""
    with use_backend(backend):
        return _costs(x, y, projections, p)


def _distances(x: Tensor, y: Tensor, projections: Tensor, p: float) -> Tensor:
    """W_p along each direction, [..., L], in float64."""
    return distance_of_checked(*_projected(x, y, projections), None, None, p, True, torch.float64)


def _slope(x: Tensor, y: Tensor, projections: Tensor, p: float) -> Tensor:
    """The gradient of each direction's distance for it, projections' shape."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        # What a compiler or a transform follows; by itself it takes several times as long.
        slope: Tensor = torch.func.grad(lambda directions: _distances(x, y, directions, p).sum())(projections)
        return slope
    with torch.enable_grad():
        projections = projections.detach().requires_grad_()
        return torch.autograd.grad(_distances(x, y, projections, p).sum(), projections)[0]


def _root(cost: Tensor, p: float) -> Tensor:
    """cost^(1/p), with derivative 0 where the cost is 0."""
    if p == 1:
        return cost
    zero = cost == 0
    rooted: Tensor = (cost.masked_fill(zero, 1.0) ** (1 / p)).masked_fill(zero, 0.0)
    return rooted
