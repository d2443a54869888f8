"""Interpolation between real and fake samples, one alpha per sample, drawn in the kernel or given.

The derivation is in :mod:`fastgan.reference.interpolate`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan import reference
from fastgan.functional import _check
from fastgan.kernels.library import allow_in_graph
from fastgan.reference.interpolate import draw_alpha

_NAME = "interpolate"


@allow_in_graph
def interpolate(
    real: Tensor, fake: Tensor, alpha: Tensor | None = None, *, generator: torch.Generator | None = None
) -> Tensor:
    r"""Random points on the lines between real and fake samples, where WGAN-GP puts its penalty.

    .. math:: \hat x_n = \alpha_n\,\mathrm{real}_n + (1 - \alpha_n)\,\mathrm{fake}_n

    (Gulrajani et al. 2017, arXiv:1704.00028, algorithm 1, lines 6-7.)

    Args:
        real: [N, ...], at least one dimension; float32, float64, float16 or bfloat16, any strides.
        fake: real's shape; any floating dtype, any strides.
        alpha: [N], one number per sample, any floating dtype; or None to draw them uniformly from [0, 1).
        generator: of real's device; where alpha is drawn, a 64-bit seed comes from it (from the default generator
            if None), and :math:`\alpha_n` from the seed and n by Philox, see :mod:`fastgan.reference.interpolate`:
            the same seed gives the same numbers on every device and backend, whatever the sample size. The seed is
            drawn on the device, so a CUDA graph draws anew at each replay.

    Returns:
        real's shape and memory format, in the dtype that PyTorch promotes real's and fake's to; computed in float32
        (float64 for float64) and rounded once.

    Differentiable to any order in real, fake and alpha.

    Raises:
        TypeError: an argument that is no tensor, or of a wrong dtype.
        ValueError: a wrong shape or device, or alpha and a generator together.
    """
    real, fake = _check_arguments(real, fake, alpha, generator)
    if alpha is None:
        alpha = draw_alpha(_draw_seed(real, generator), real.size(0))
    return reference.interpolate(real, fake, alpha)


def _draw_seed(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=x.device, generator=generator)


def _check_arguments(
    real: Tensor, fake: Tensor, alpha: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    for name, value in (("real", real), ("fake", fake)):
        _check.tensor(_NAME, name, value)
        _check.floating(_NAME, name, value)
    if real.dim() == 0:
        raise ValueError(f"{_NAME}: real must be [N, ...], got a scalar")
    _check.same_device(_NAME, "fake", fake, "real", real)
    _check.shape(_NAME, "fake", fake, real.shape, "real's shape")
    if alpha is not None:
        _check.tensor(_NAME, "alpha", alpha)
        _check.floating(_NAME, "alpha", alpha)
        _check.same_device(_NAME, "alpha", alpha, "real", real)
        _check.shape(_NAME, "alpha", alpha, [real.size(0)], "one per sample")
        if generator is not None:
            raise ValueError(f"{_NAME}: got both alpha and generator; a given alpha needs no random numbers")
    dtype = torch.promote_types(real.dtype, fake.dtype)
    return real.to(dtype), fake.to(dtype)
