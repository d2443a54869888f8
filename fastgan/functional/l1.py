"""Fused weighted L1 distances of several pairs, twice differentiable.

The derivation is in :mod:`fastgan.reference.l1`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from fastgan import reference
from fastgan.functional import _check
from fastgan.kernels.library import allow_in_graph

_NAME = "weighted_l1"


@allow_in_graph
def weighted_l1(pairs: Sequence[tuple[Tensor, Tensor, float]]) -> Tensor:
    r"""The weighted sum of mean absolute differences over pairs of tensors, in one pass.

    .. math:: L = \sum_k w_k \frac1{M_k} \sum_i |a_{ki} - b_{ki}|

    where :math:`M_k` is the number of elements of pair k: ``sum(w * torch.nn.functional.l1_loss(a, b))``.

    Args:
        pairs: (a, b, weight) each. a and b: one shape, any number of dimensions, any strides, float32, float64,
            float16 or bfloat16; the two may differ in dtype and layout. Pairs may differ in shape and may share
            tensors. All on one device. weight: a finite number.

    Returns:
        A scalar; float32 whatever the inputs' 16-bit dtypes (float64 if any input is float64), accumulated in at
        least float32. Deterministic, and independent of the number of threads.

    Gradients go to every a and b that requires one; where a and b are equal the gradient is zero, as in PyTorch.
    Differentiable twice (the second derivative for a and b is zero, the one for the incoming gradient is not).

    Raises:
        TypeError: an argument that is no tensor, or of a wrong dtype.
        ValueError: no pairs, a pair of other than three items, empty tensors, shapes or devices that differ.
    """
    _check_arguments(pairs)
    return reference.weighted_l1(pairs)


def cycle_loss(
    rec_a: Tensor, real_a: Tensor, rec_b: Tensor, real_b: Tensor, *, weight_a: float = 10.0, weight_b: float = 10.0
) -> Tensor:
    r"""The cycle-consistency loss of CycleGAN (Zhu et al. 2017, arXiv:1703.10593, equation 2), in one pass.

    .. math:: L = \lambda_A\,\mathrm{mean}|F(G(a)) - a| + \lambda_B\,\mathrm{mean}|G(F(b)) - b|

    Args:
        rec_a, real_a: reconstruction and original of domain A, one shape; see :func:`weighted_l1`.
        rec_b, real_b: those of domain B.
        weight_a, weight_b: :math:`\lambda_A, \lambda_B`; the authors use 10.

    Returns:
        A scalar as of :func:`weighted_l1`, which also takes the identity terms in the same pass.
    """
    total: Tensor = weighted_l1([(rec_a, real_a, weight_a), (rec_b, real_b, weight_b)])
    return total


def _check_arguments(pairs: Sequence[tuple[Tensor, Tensor, float]]) -> None:
    if len(pairs) == 0:
        raise ValueError(f"{_NAME}: pairs must have at least one (a, b, weight), got none")
    for k, pair in enumerate(pairs):
        if len(pair) != 3:
            raise ValueError(f"{_NAME}: pairs[{k}] must be (a, b, weight), got {len(pair)} items")
        a, b, weight = pair
        for name, value in (("a", a), ("b", b)):
            _check.tensor(_NAME, f"pairs[{k}] {name}", value)
            _check.floating(_NAME, f"pairs[{k}] {name}", value)
            _check.same_device(_NAME, f"pairs[{k}] {name}", value, "pairs[0] a", pairs[0][0])
        if a.shape != b.shape:
            raise ValueError(
                f"{_NAME}: pairs[{k}] a and b must have one shape, got {list(a.shape)} and {list(b.shape)}"
            )
        if a.numel() == 0:
            raise ValueError(f"{_NAME}: pairs[{k}] is empty (shape {list(a.shape)}): its mean is not defined")
        if isinstance(weight, Tensor) or not math.isfinite(weight):
            raise ValueError(f"{_NAME}: pairs[{k}] weight must be a finite number, got {weight!r}")
