"""What the builders of both families share: checks, norm layers and weight initialisation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fastgan._ranges import check_choice

INITS = ("normal", "xavier", "kaiming", "orthogonal")


def positive(what: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{what} must be an integer of at least 1, got {value!r}")


def norm_layer(norm: str) -> Callable[[int], nn.Module]:
    """``channels -> module``: instance (no parameters), batch, layer (over C, H and W, affine per channel) or none."""
    if norm == "instance":
        return nn.InstanceNorm2d
    if norm == "batch":
        return nn.BatchNorm2d
    if norm == "layer":
        return lambda channels: nn.GroupNorm(1, channels)
    check_choice("norm", norm, ("instance", "batch", "layer", "none"))
    return lambda channels: nn.Identity()


def init_weights(
    net: nn.Module, init: str = "normal", gain: float = 0.02, *, generator: torch.Generator | None = None
) -> None:
    """Initialises every convolution and linear layer of ``net`` in place; biases become 0, batch norm N(1, gain), 0.

    Args:
        init: ``normal`` is N(0, gain) (Radford et al. 2015, arXiv:1511.06434); ``xavier`` and ``orthogonal`` take gain
            as their gain; ``kaiming`` is normal with the fan in, for ReLU, and has no gain.
        generator: of the random numbers; torch's global one by default.
    """
    check_choice("init", init, INITS)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            if init == "normal":
                nn.init.normal_(module.weight, 0.0, gain, generator=generator)
            elif init == "xavier":
                nn.init.xavier_normal_(module.weight, gain, generator=generator)
            elif init == "kaiming":
                nn.init.kaiming_normal_(module.weight, generator=generator)
            else:
                nn.init.orthogonal_(module.weight, gain, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, gain, generator=generator)
            nn.init.zeros_(module.bias)
