"""The sliced Wasserstein distance as a loss module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgan.functional import _check
from fastgan.functional._wasserstein_checks import check_order
from fastgan.functional.sliced_wasserstein import sliced_wasserstein


class SlicedWasserstein(nn.Module):
    """The sliced p-Wasserstein distance of two batches of samples, along fresh random directions at every call.

    Args:
        n_projections: directions a call.
        p: order of the distance, in [1, inf].
        generator: draws the directions; PyTorch's own by default.

    Shape:
        x [n, *sample] and y [m, *sample], of any sample shape, which is flattened; the result is a scalar. See
        :func:`fastgan.functional.sliced_wasserstein` for the formula, dtypes, memory and errors.
    """

    def __init__(self, n_projections: int = 128, p: float = 2.0, generator: torch.Generator | None = None) -> None:
        super().__init__()
        _check.integer("SlicedWasserstein", "n_projections", n_projections, 1)
        check_order("SlicedWasserstein", p)
        _check.generator("SlicedWasserstein", generator)
        self.n_projections, self.p, self.generator = n_projections, p, generator

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        _check.tensor("SlicedWasserstein", "x", x)
        _check.tensor("SlicedWasserstein", "y", y)
        if x.dim() < 2 or x.shape[1:] != y.shape[1:]:
            raise ValueError(
                f"SlicedWasserstein: x and y must be [samples, *sample] with one sample shape, got {list(x.shape)} "
                f"and {list(y.shape)}"
            )
        return sliced_wasserstein(
            x.flatten(1), y.flatten(1), n_projections=self.n_projections, p=self.p, generator=self.generator
        )

    def extra_repr(self) -> str:
        return f"n_projections={self.n_projections}, p={self.p}"
