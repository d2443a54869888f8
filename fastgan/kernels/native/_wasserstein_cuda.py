"""Exact 1-D Wasserstein on CUDA: the launchers of csrc/cuda/wasserstein.cu.

The contract is that of :mod:`fastgan.kernels.native.wasserstein`. Everything runs on torch's current stream, and the
kernels' workspace is a tensor: a CUDA graph can capture a call. Rows of equal counts without weights take none, up to
8192 float32 or 16-bit values (4096 on devices whose blocks have less than 163 KiB of shared memory). Other calls work
on up to 2^26 values of a side at a time (or one longer row), with up to 40 bytes of workspace for each of them, 64 if
there are weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.kernels.dispatch import Call
from fastgan.kernels.native import _cuda_module
from fastgan.kernels.native._tensor import DTYPES, address

_LARGEST_HALF = 65504


def supports(call: Call) -> str | None:
    """None if the kernels serve the call, else the reason why not."""
    longest = max(call["n"], call["m"])
    if longest >= 1 << 31:
        return "indices are 32-bit: a row must have fewer than 2^31 samples"
    if call.dtype == torch.float16 and longest > _LARGEST_HALF:
        return f"n times a gradient may overflow float16 in rows of more than {_LARGEST_HALF} samples"
    loaded = _cuda_module.load()
    if isinstance(loaded, str):
        return loaded
    return _cuda_module.why_not(torch.cuda.current_device())


def forward(
    x: Tensor, y: Tensor, x_weights: Tensor | None, y_weights: Tensor | None, p: float, need: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(cost, scale, unit gradients of x, y, x_weights, y_weights)."""
    rows = x.shape[:-1]
    cost, scale = (torch.empty(rows, dtype=torch.float64, device=x.device) for _ in range(2))
    ux, uy, ua, ub = (
        torch.empty(
            (*rows, t.size(-1) if need >> i & 1 else 0), dtype=x.dtype if i < 2 else torch.float64, device=x.device
        )
        for i, t in enumerate((x, y, x, y))
    )
    _run(x, y, x_weights, y_weights, p, (ux, ua, None), (uy, ub, None), cost, scale, None)
    return cost, scale, ux, uy, ua, ub


def second(
    vx: Tensor | None,
    vy: Tensor | None,
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    scale: Tensor,
    p: float,
) -> tuple[Tensor, Tensor]:
    """Gradients for x and y of <vx, gradient of x> + <vy, gradient of y>, where grad is the cost's cotangent."""
    hx, hy = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, y))
    vx, vy = (None if v is None else v.to(x.dtype).contiguous() for v in (vx, vy))
    grad = grad.double().contiguous()
    _run(x, y, x_weights, y_weights, p, (hx, None, vx), (hy, None, vy), None, scale.contiguous(), grad)
    return hx, hy


def _run(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    p: float,
    x_results: tuple[Tensor, Tensor | None, Tensor | None],
    y_results: tuple[Tensor, Tensor | None, Tensor | None],
    cost: Tensor | None,
    scale: Tensor,
    grad: Tensor | None,
) -> None:
    module = _cuda_module.load()
    if isinstance(module, str):
        raise RuntimeError(f"wasserstein_1d: {module}")
    # The rows must live until the kernels are enqueued: they may be copies. torch reuses their memory in stream order.
    x, y = _rows(x), _rows(y)
    a = None if x_weights is None else _rows(x_weights.double())
    b = None if y_weights is None else _rows(y_weights.double())
    sides = (_side(x, a, *x_results), _side(y, b, *y_results))
    device, rows, dtype = x.get_device(), x.size(0), DTYPES[x.dtype]
    needed = module.wasserstein_workspace(device, *sides, rows, dtype, p, address(grad))
    workspace = torch.empty(needed, dtype=torch.uint8, device=x.device)
    module.wasserstein(
        device, _cuda_module.stream(x.device), *sides, rows, dtype, p,
        address(cost), scale.data_ptr(), address(grad), workspace.data_ptr(),
    )  # fmt: skip


def _rows(t: Tensor) -> Tensor:
    """t [..., n] as dense [rows, n]."""
    return t.reshape(t.shape[:-1].numel(), t.size(-1)).contiguous()


def _side(
    values: Tensor, weights: Tensor | None, grad: Tensor, grad_weights: Tensor | None, cotangent: Tensor | None
) -> tuple[int, ...]:
    """What the binding calls a side; a result without elements is not wanted."""
    return (
        values.data_ptr(), address(weights), values.size(1), values.size(1),
        grad.data_ptr() if grad.size(-1) else 0,
        0 if weights is None or grad_weights is None or grad_weights.size(-1) == 0 else grad_weights.data_ptr(),
        address(cotangent),
    )  # fmt: skip
