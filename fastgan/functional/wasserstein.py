"""Exact 1-D Wasserstein distances, batched, weighted and twice differentiable; optimal plans and dual potentials."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgan.functional._wasserstein_autograd import distance_of_checked
from fastgan.functional._wasserstein_checks import check_masses, prepare, readable
from fastgan.kernels.library import allow_in_graph
from fastgan.reference import wasserstein as reference


@allow_in_graph
def wasserstein_1d(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    *,
    p: float = 1.0,
    root: bool = True,
) -> Tensor:
    r"""The exact p-Wasserstein distance between two weighted samples on the line, for every row of a batch.

    .. math:: W_p^p = \int_0^1 |F_x^{-1}(u) - F_y^{-1}(u)|^p\,du, \qquad W_\infty = \sup_u |F_x^{-1}(u) - F_y^{-1}(u)|

    (Peyré and Cuturi, Computational Optimal Transport, 2019, remark 2.30).

    Args:
        x: [..., n] samples; float32, float64, float16 or bfloat16, or integers, which are converted to PyTorch's
            default dtype. x and y are promoted to their common dtype.
        y: [..., m] samples; its leading shape broadcasts with x's.
        x_weights: non-negative masses that broadcast to x's shape, or None for equal ones. They are divided by
            their sum.
        y_weights: the same for y.
        p: order of the distance, in [1, inf].
        root: whether to return ``W_p``, else ``W_p^p``. ``W_inf`` is returned as it is.

    Returns:
        [...], in the dtype of the samples. Cumulative weights and sums are float64; differences, for p = 2 their
        squares, and sums of up to 256 of either are float32 (float64 for float64): differences beyond 1e18 for p = 2,
        1e36 for p = 1, may cost inf, and those below 1e-23 cost nothing for p = 2. For p other than 1 and 2, cumulative
        weights within 2⁻⁴⁷ of the total of each other are taken for equal. A row
        with a NaN is NaN, and so are its gradients. Infinite samples are ordered as numbers: two equal infinities cost
        nothing, any other pair with an infinity makes the distance infinite (with gradients ±1/n for p = 1, not finite
        for p > 1; weights get no gradient from infinite costs).

    Differentiable twice in the samples and the weights; a third derivative raises. Where |x - y| or the optimal plan
    is not differentiable the gradient is the subgradient that the reference states: equal samples are matched in index
    order, sgn(0) = 0, tied cumulative weights take the average of both sides, and W_p has gradient 0 where it is 0.
    Deterministic.

    Raises:
        TypeError: an argument that is no tensor, or complex.
        ValueError: no samples, leading shapes that do not broadcast, another device, p < 1, and negative, infinite,
            NaN or all-zero weights. (While a CUDA graph is captured or a program compiled, such weights make their
            row NaN instead.) On a GPU a call with weights waits for its result, to see whether they are.
    """
    name = "wasserstein_1d"
    x, y, x_weights, y_weights = prepare(name, x, y, x_weights, y_weights, p)
    value = distance_of_checked(x, y, x_weights, y_weights, p, root, x.dtype)
    # The kernels look at every weight: a row without valid ones is NaN.
    if (x_weights is not None or y_weights is not None) and readable(value) and bool(value.isnan().any()):
        check_masses(name, x_weights, y_weights)
    return value


def wasserstein_1d_plan(
    x: Tensor, y: Tensor, x_weights: Tensor | None = None, y_weights: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The optimal moving plan between two weighted samples on the line, optimal for every p at once.

    Args:
        x: [..., n] samples, as in :func:`wasserstein_1d`.
        y: [..., m] samples.
        x_weights: as in :func:`wasserstein_1d`.
        y_weights: as in :func:`wasserstein_1d`.

    Returns:
        (i, j, mass), each [..., n + m - 1]: the plan moves ``mass`` from ``x[i]`` to ``y[j]``, in ascending order of
        both. i and j are int64, mass is float64, sums to 1 in each row, and is 0 where an entry is unused. No gradient
        flows through the plan.

    Raises:
        As :func:`wasserstein_1d`.
    """
    name = "wasserstein_1d_plan"
    x, y, x_weights, y_weights = prepare(name, x, y, x_weights, y_weights, 1.0)
    check_masses(name, x_weights, y_weights)
    with torch.no_grad():
        return reference.plan(x, y, x_weights, y_weights)


def wasserstein_1d_potentials(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    *,
    p: float = 1.0,
) -> tuple[Tensor, Tensor]:
    r"""Optimal dual (Kantorovich) potentials of :math:`W_p^p` on the line.

    .. math:: W_p^p = \max_{f, g} \sum_i a_i f_i + \sum_j b_j g_j \quad\text{with}\quad f_i + g_j \le |x_i - y_j|^p

    Args:
        x: [..., n] samples, as in :func:`wasserstein_1d`.
        y: [..., m] samples.
        x_weights: as in :func:`wasserstein_1d`.
        y_weights: as in :func:`wasserstein_1d`.
        p: order of the distance, in [1, inf).

    Returns:
        f [..., n] and g [..., m] in float64. Of the constant that may move from f to g, that choice is taken which
        makes both terms of the sum equal. Where the optimal pair is not unique for another reason (tied cumulative
        weights) it is the average of two extreme ones. No gradient flows through them.

    Raises:
        As :func:`wasserstein_1d`, and ValueError for an infinite p.
    """
    name = "wasserstein_1d_potentials"
    x, y, x_weights, y_weights = prepare(name, x, y, x_weights, y_weights, p)
    if p == math.inf:
        raise ValueError(f"{name}: p must be finite, got {p}: W_inf has no such dual")
    check_masses(name, x_weights, y_weights)
    with torch.no_grad():
        return reference.potentials(x, y, x_weights, y_weights, p)
