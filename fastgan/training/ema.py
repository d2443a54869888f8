"""An exponential moving average of a network's parameters."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class Ema:
    """``module`` is a frozen copy whose parameters follow ``source``'s: p ← decay · p + (1 − decay) · p_source.

    Buffers are copied. The copy is in evaluation mode.
    """

    def __init__(self, source: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"the decay of an average must be in [0, 1), got {decay}")
        self.decay = decay
        self._source = source
        self.module = copy.deepcopy(source).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self) -> None:
        """Follows the source by one step."""
        torch._foreach_lerp_(list(self.module.parameters()), list(self._source.parameters()), 1.0 - self.decay)
        for ours, theirs in zip(self.module.buffers(), self._source.buffers(), strict=True):
            ours.copy_(theirs)

    def state_dict(self) -> dict[str, Any]:
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state)
