"""Two-dimensional toys, with the scales of WGAN-GP's code (Gulrajani et al. 2017, arXiv:1704.00028, figure 2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NAMES = ("8gaussians", "25gaussians", "swissroll")


class Points:
    """A distribution in the plane, scaled to a standard deviation of about 1.

    Args:
        name: ``8gaussians``: on a circle of radius √2, deviation 0.02/√2 (the code divides by 1.414);
            ``25gaussians``: a 5 × 5 grid of step 1/√2, deviation 0.05/√8;
            ``swissroll``: scikit-learn's roll seen from above, with noise 0.25, over 7.5.

    Attributes:
        modes: [k, 2] the centres of the Gaussians, in float64; None for the roll.
        deviation: of each Gaussian, along each axis.
    """

    sample_shape = (2,)

    def __init__(self, name: str) -> None:
        if name not in NAMES:
            raise ValueError(f"points must be one of {', '.join(NAMES)}, got {name!r}")
        self.name = name
        self.modes: Tensor | None = None
        self.deviation = 0.25 / 7.5
        if name == "8gaussians":
            angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
            self.modes = torch.stack([angle.cos(), angle.sin()], 1) * (2 / 1.414)
            self.deviation = 0.02 / 1.414
        elif name == "25gaussians":
            axis = torch.arange(-2, 3, dtype=torch.float64) * (2 / 2.828)
            self.modes = torch.cartesian_prod(axis, axis)
            self.deviation = 0.05 / 2.828

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """n independent draws, [n, 2].

        ``generator`` must be of ``device``, whose default is the generator's. The same seed gives the same points on
        one kind of device, not across kinds.
        """
        device = torch.device(device) if device is not None else generator.device if generator else torch.device("cpu")
        noise = torch.randn(n, 2, generator=generator, device=device, dtype=dtype) * self.deviation
        if self.modes is not None:
            which = torch.randint(len(self.modes), (n,), generator=generator, device=device)
            return self.modes.to(device, dtype, non_blocking=True)[which] + noise  # else a GPU's host waits for it
        t = 1.5 * math.pi * (1 + 2 * torch.rand(n, generator=generator, device=device, dtype=dtype))
        return torch.stack([t * t.cos(), t * t.sin()], 1) / 7.5 + noise
