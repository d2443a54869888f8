"""Autocast, where an operator's own operations must keep the dtypes they have."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

_NOTHING = contextlib.nullcontext()


def without_autocast(device: str) -> contextlib.AbstractContextManager[Any]:
    """Off for a scope, where it is on."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return _NOTHING
