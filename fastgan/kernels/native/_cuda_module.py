"""``fastgan._cuda``, loaded where there is a CUDA device, or the reason why it cannot be."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

import torch

from fastgan import _C


@cache
def load() -> ModuleType | str:
    """The module, or why there is none."""
    info = _C.build_info()
    if not info["cuda_built"]:
        return f"the CUDA part of fastgan was {info['cuda']}"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    try:
        return importlib.import_module("fastgan._cuda")
    except ImportError as error:
        return f"fastgan._cuda cannot be loaded: {error}"


@cache
def why_not(device: int) -> str | None:
    """None if the kernels run on this device, else the reason why not."""
    module = load()
    if isinstance(module, str):
        return module
    reason = module.why_not(device)
    if not reason:
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return f"fastgan._cuda ({_C.build_info()['cuda']}) does not run on this sm_{major}{minor} device: {reason}"


def stream(device: torch.device) -> int:
    """The address of torch's current stream."""
    return torch.cuda.current_stream(device).cuda_stream
