"""Exact 1-D Wasserstein on CUDA: the launchers of csrc/cuda/wasserstein.cu.

The contract is that of :mod:`fastgan.kernels.native.wasserstein`. Everything runs on torch's current stream, and the
kernels' workspace is a tensor: a CUDA graph can capture a call. Rows of equal counts without weights take none, up to
8192 float32 or 16-bit values (4096 on devices whose blocks have less than 163 KiB of shared memory, 2048 below 99 KiB).
Other calls work on up to 2^26 values of a side at a time (or one longer row), with up to 40 bytes of workspace for each
of them, 64 if there are weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.kernels.dispatch import Call
from fastgan.kernels.native import _cuda_module, _wasserstein_call
from fastgan.kernels.native._tensor import DTYPES, address
from fastgan.kernels.native._wasserstein_call import rows_of, side


def supports(call: Call) -> str | None:
    """None if the kernels serve the call, else the reason why not."""
    if "long_rows" in call.facts:
        return "indices are 32-bit: a row must have fewer than 2^31 samples"
    loaded = _cuda_module.load()
    if isinstance(loaded, str):
        return loaded
    return _cuda_module.why_not(torch.cuda.current_device())


def forward(
    x: Tensor, y: Tensor, x_weights: Tensor | None, y_weights: Tensor | None, p: float, need: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(cost, scale, the needed unit gradients of x, y, x_weights, y_weights)."""
    return _wasserstein_call.forward(run, x, y, x_weights, y_weights, p, need, x.dtype)


def run(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    p: float,
    x_results: tuple[Tensor | None, Tensor | None, Tensor | None],
    y_results: tuple[Tensor | None, Tensor | None, Tensor | None],
    cost: Tensor | None,
    scale: Tensor,
    grad: Tensor | None,
) -> None:
    """Fills in the results, or with ``grad`` the second derivative."""
    module = _cuda_module.load()
    if isinstance(module, str):
        raise RuntimeError(f"wasserstein_1d: {module}")
    # The rows must live until the kernels are enqueued: they may be copies. torch reuses their memory in stream order.
    x, y = rows_of(x).contiguous(), rows_of(y).contiguous()
    a = None if x_weights is None else rows_of(x_weights.double()).contiguous()
    b = None if y_weights is None else rows_of(y_weights.double()).contiguous()
    sides = (side(x, a, *x_results), side(y, b, *y_results))
    device, rows, dtype = x.get_device(), x.size(0), DTYPES[x.dtype]
    needed = module.wasserstein_workspace(device, *sides, rows, dtype, p, address(grad))
    workspace = torch.empty(needed, dtype=torch.uint8, device=x.device)
    module.wasserstein(
        device, _cuda_module.stream(x.device), *sides, rows, dtype, p,
        address(cost), scale.data_ptr(), address(grad), workspace.data_ptr(),
    )  # fmt: skip
