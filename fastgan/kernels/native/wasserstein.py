"""Exact 1-D Wasserstein on the CPU: the launchers of csrc/cpu/wasserstein.cpp; CUDA calls go on to _wasserstein_cuda.

Contract of every backend: :func:`forward` gives the cost of d/D and the scale D [...] in float64, and the unit
gradients of the inputs whose bits are set in ``need``. For samples that is n times the gradient of the cost for d/D, as
:func:`samples_unit` says; for weights the gradient of the cost, as :func:`weights_unit` says. :func:`second` gives what
the backward pass sends on to the samples. Formulas: :mod:`fastgan.reference.wasserstein`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.kernels.dispatch import Call
from fastgan.kernels.native import _wasserstein_call, _wasserstein_cuda
from fastgan.kernels.native._tensor import _C, DTYPES, address, empty, threads
from fastgan.kernels.native._wasserstein_call import rows_of, side


def supports(call: Call) -> str | None:
    """None if the call is served (on the CPU nearly every one is), else the reason why not."""
    if call.device == "cuda":
        return _wasserstein_cuda.supports(call)
    if call.device != "cpu":
        return f"the native kernels run on the CPU and on CUDA, not on {call.device!r}"
    if "long_rows" in call.facts:
        return "indices are 32-bit: a row must have fewer than 2^31 samples"
    return None


def samples_unit(
    x: Tensor, y: Tensor, x_weights: Tensor | None, y_weights: Tensor | None, p: float
) -> tuple[torch.dtype, int]:
    """What the samples' unit gradients are made of: their dtype, and how many samples [..., n] an element has.

    An element is one sample's, of its dtype. But where the unit gradients are -1, 0 and 1, the CPU kernels keep words
    of 16 samples: which of them are positive, a bit each, and in the upper half which are negative. There a row that is
    NaN has a scale of NaN, which makes its gradients NaN.
    """
    equal = p == 1 and x.size(-1) == y.size(-1) and x_weights is None and y_weights is None
    return (torch.int32, 16) if equal and x.device.type == "cpu" else (x.dtype, 1)


def weights_unit(weights: Tensor | None) -> torch.dtype:
    """The dtype of weights in the kernels, and of their unit gradients: on the CPU floats are not widened."""
    narrow = weights is not None and weights.dtype != torch.float64 and weights.device.type == "cpu"
    return torch.float32 if narrow else torch.float64


def forward(
    x: Tensor, y: Tensor, x_weights: Tensor | None, y_weights: Tensor | None, p: float, need: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(cost, scale, the needed unit gradients of x, y, x_weights, y_weights)."""
    if x.is_cuda:
        return _wasserstein_cuda.forward(x, y, x_weights, y_weights, p, need)
    if not need and x_weights is None and y_weights is None:
        return *_costs(x, y, p), []
    samples = samples_unit(x, y, x_weights, y_weights, p)
    weights = weights_unit(x_weights), weights_unit(y_weights)
    return _wasserstein_call.forward(_run, x, y, x_weights, y_weights, p, need, *samples, weights)


def _costs(x: Tensor, y: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """The usual forward pass, in half the time that naming every absent result takes."""
    cost = empty(x.shape[:-1], torch.float64)
    scale = torch.empty_like(cost)
    x, y = rows_of(x), rows_of(y)
    _C.wasserstein_costs(
        x.data_ptr(), x.stride(0), x.size(1), y.data_ptr(), y.stride(0), y.size(1), x.size(0), DTYPES[x.dtype], p,
        cost.data_ptr(), scale.data_ptr(), threads(),
    )  # fmt: skip
    return cost, scale


def mean_root(x: Tensor, y: Tensor, p: float) -> Tensor:
    """The p-th root of the mean of W_p^p over the last leading dimension; of float32 or float64, p is 1 or 2."""
    together = x.size(-2)
    value = empty(x.shape[:-2], x.dtype)
    x, y = rows_of(x), rows_of(y)
    _C.wasserstein_means(
        x.data_ptr(), x.stride(0), x.size(1), y.data_ptr(), y.stride(0), y.size(1), x.size(0), together,
        DTYPES[x.dtype], p, value.data_ptr(), threads(),
    )  # fmt: skip
    return value


def second(
    vx: Tensor | None,
    vy: Tensor | None,
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    scale: Tensor,
    p: float,
) -> tuple[Tensor, Tensor]:
    """Gradients for x and y of <vx, gradient of x> + <vy, gradient of y>, where grad is the cost's cotangent."""
    run = _wasserstein_cuda.run if x.is_cuda else _run
    return _wasserstein_call.second(run, vx, vy, grad, x, y, x_weights, y_weights, scale, p)


def scale_signs(signs: Tensor, factor: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """The samples' gradients [..., n]: words of signs times a float64 factor [...] for each row."""
    grad = empty((*signs.shape[:-1], n), dtype)
    signs = signs.contiguous()
    _scale_signs((signs, None), factor, None, (grad, None))
    return grad


def sign_gradients(
    x_signs: Tensor | None, y_signs: Tensor | None, grad: Tensor, scale: Tensor, n: int, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """The samples' gradients [..., n] where ``grad`` [...] is the cost's: grad / scale / n times words of signs.

    None for a side whose signs are None.
    """
    gx, gy = (None if signs is None else empty((*scale.shape, n), dtype) for signs in (x_signs, y_signs))
    _scale_signs((x_signs, y_signs), grad, scale, (gx, gy))
    return gx, gy


def _scale_signs(
    signs: tuple[Tensor | None, Tensor | None],
    factor: Tensor,
    scale: Tensor | None,
    grads: tuple[Tensor | None, Tensor | None],
) -> None:
    factor = factor if factor.dim() == 1 else factor.reshape(-1)
    like = grads[0] if grads[0] is not None else grads[1]
    assert like is not None
    _C.wasserstein_scale_signs(
        address(signs[0]), address(signs[1]), factor.data_ptr(), factor.stride(0), DTYPES[factor.dtype], address(scale),
        factor.numel(), like.size(-1), DTYPES[like.dtype], address(grads[0]), address(grads[1]), threads(),
    )  # fmt: skip


def _run(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    p: float,
    x_results: tuple[Tensor | None, Tensor | None, Tensor | None],
    y_results: tuple[Tensor | None, Tensor | None, Tensor | None],
    cost: Tensor | None,
    scale: Tensor,
    grad: Tensor | None,
) -> None:
    # The rows must live until the kernel has run: they may be copies.
    x, y = rows_of(x), rows_of(y)
    a, b = (None if w is None else rows_of(w.to(weights_unit(w))) for w in (x_weights, y_weights))
    _C.wasserstein(
        side(x, a, *x_results), side(y, b, *y_results), x.size(0), DTYPES[x.dtype], p,
        address(cost), scale.data_ptr(), address(grad), threads(),
    )  # fmt: skip
