"""Autocast, where an operator's own operations must keep the dtypes they have."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

NOTHING: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()


def without_autocast(device: str) -> contextlib.AbstractContextManager[Any]:
    """Off for a scope, where it is on."""
    if not torch._C._is_any_autocast_enabled():  # quicker than the question for one device
        return NOTHING
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return NOTHING
