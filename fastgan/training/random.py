"""The states of all random generators of a process, as tensors and numbers."""

from __future__ import annotations

import random
import zlib
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seeds the global generators of Python, NumPy and PyTorch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 -- third-party code may draw from it
    torch.manual_seed(seed)


def get_state() -> dict[str, Any]:
    """The states of the global generators."""
    version, numbers, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    return {
        "python": [version, torch.tensor(numbers, dtype=torch.int64), gauss],
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_state(state: dict[str, Any]) -> None:
    """Restores what :func:`get_state` gave. GPU states are restored where there are as many GPUs."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


class Generator:
    """A ``torch.Generator`` with a state_dict. Draw from ``.generator``; never share it between uses that may be
    skipped apart from each other."""

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.generator = torch.Generator(device).manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        saved = state["state"]
        if saved.shape == self.generator.get_state().shape:
            self.generator.set_state(saved)
        else:  # of another kind of device, whose numbers cannot be drawn here: go on with others
            self.generator.manual_seed(zlib.crc32(saved.numpy().data))
