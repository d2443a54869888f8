"""The floor of a training step: its convolutions and matrix products alone, forward and backward, in their order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fastgan.functional import _convolution
from fastgan.kernels import dispatch

aten = torch.ops.aten
PRODUCTS = {aten.convolution, aten.convolution_backward, aten.mm, aten.addmm, aten.bmm, aten.baddbmm}


class _Products(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any]] = []
        self._tensors: dict[Any, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in PRODUCTS:
            self._record(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    @contextlib.contextmanager
    def of_kernels(self) -> Iterator[None]:
        """Our own convolutions, which no dispatcher sees and which leave the field to a mode, are recorded too."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(_convolution, "_dispatch_modes", int))
            for stem in ("winograd", "convolution"):
                kernels = dispatch._load("native", stem)
                for name in ("forward", "input_gradient", "weight_gradient"):
                    if hasattr(kernels, name):
                        stack.enter_context(mock.patch.object(kernels, name, self._recorded(getattr(kernels, name))))
            yield

    def _recorded(self, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self._record(kernel, args, {})
            return kernel(*args)

        return call

    def _record(self, func: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self.calls.append((func, *tree_map_only(Tensor, self._like, (args, kwargs))))

    def _like(self, tensor: Tensor) -> Tensor:
        key = tensor.size(), tensor.stride(), tensor.dtype
        if key not in self._tensors:
            with torch.utils._python_dispatch._disable_current_modes():
                extent = 1 + sum((n - 1) * step for n, step in zip(*key[:2], strict=True)) if tensor.numel() else 0
                storage = torch.randn(extent, device=tensor.device).to(tensor.dtype)
                self._tensors[key] = storage.as_strided(*key[:2])  # expanded where the step's is
        return self._tensors[key]


def products(step: Callable[[], object]) -> Callable[[], int]:
    """Runs ``step`` once and returns a call that repeats its products on random tensors of the same shapes and strides.

    Tensors of one shape are one tensor, so that the floor is also free of cache misses which a step has.
    """
    with _Products() as recorded, recorded.of_kernels():
        step()
    if not recorded.calls:
        raise AssertionError("the step has no product")

    @torch.no_grad()
    def replay() -> int:
        for func, args, kwargs in recorded.calls:
            func(*args, **kwargs)
        return len(recorded.calls)

    return replay
