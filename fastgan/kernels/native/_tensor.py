"""How tensors reach ``fastgan._C``: as addresses, or, through DLPack, as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch  # first: its OpenMP runtime then serves fastgan._C too
from torch import Tensor

from fastgan import _C

# Named wherever a tensor is made: the default may be another (torch.set_default_device).
CPU = torch.device("cpu")
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}

if not hasattr(_C, "convolution_weight_gradient"):
    raise ImportError("fastgan._C was built from older sources: install the package again")
_C.cpu_isa()  # refuses an unknown FASTGAN_CPU_ISA, before any kernel runs
# For the kernels that take tensors as they are.
_C.use_dlpack(torch.Tensor.__dlpack_c_exchange_api__)
_C.use_types(torch.Tensor, torch.nn.Parameter)

# How many threads a kernel may use.
threads = torch.get_num_threads

__all__ = ["CPU", "DTYPES", "_C", "address", "empty", "scalar", "threads"]


def address(t: Tensor | None) -> int:
    """The address of ``t``'s first element; 0 for None."""
    return 0 if t is None else t.data_ptr()


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device = CPU) -> Tensor:
    """``torch.empty(shape, …)`` in half the time: sizes apart are parsed faster than a torch.Size."""
    if not shape:
        return torch.empty((), dtype=dtype, device=device)
    return torch.empty(*shape, dtype=dtype, device=device)


def scalar(dtype: torch.dtype) -> Tensor:
    """A number for a kernel to write; ``torch.empty(())`` takes half as long again."""
    return torch.empty(size=(), dtype=dtype, device=CPU)
