"""The one place where tensors become addresses for ``fastgan._C``."""

from __future__ import annotations

import torch  # first: its OpenMP runtime then serves fastgan._C too
from torch import Tensor

from fastgan import _C

DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}

__all__ = ["DTYPES", "_C", "address", "threads"]


def address(t: Tensor | None) -> int:
    """The address of ``t``'s first element; 0 for None."""
    return 0 if t is None else t.data_ptr()


def threads() -> int:
    """How many threads a kernel may use."""
    return torch.get_num_threads()
