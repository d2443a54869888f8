"""A device for Triton that is no GPU: launches compile for one, and :mod:`tests.kernels.ptx` runs the PTX.

``FASTGAN_PTX=90 python -m pytest tests/kernels/test_triton_losses.py`` runs tests of the Triton kernels so, compiled
for sm_90. What ``torch.empty`` and its like allocate may then not be read before a kernel has written it. No file of
Triton's cache is read or written.
"""

from __future__ import annotations

import atexit
import math
import random
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor
from triton.backends.nvidia.compiler import CUDABackend

from fastgan.kernels.triton import _launch, aot
from tests.kernels import ptx

_fresh: list[tuple[Tensor, np.ndarray[Any, Any]]] = []  # and for each byte whether it is unwritten
_order = random.Random(0)


class Device(aot._Driver):
    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, ...]:
        return binary, (binary.decode(), shared), 0, 0, 1024  # module, function, registers, spills, most threads

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        kinds = list(source.signature.values())

        def launch(gx: int, gy: int, gz: int, stream: int, function: tuple[str, int], *arguments: Any) -> None:
            self._launch(gx, gy, gz)
            text, shared = function
            given = [a for a, kind in zip(arguments[-len(kinds) :], kinds, strict=True) if kind != "constexpr"]
            unwritten = [(t.data_ptr(), flags) for t, flags in _fresh]
            memory = ptx.Memory([extent(a) for a in given if isinstance(a, Tensor)], unwritten)
            values = [memory.address(a.data_ptr()) if isinstance(a, Tensor) else a or 0 for a in given]
            values += [0] * (len(ptx.parse(text).parameters) - len(values))  # Triton's own scratch memory
            ptx.launch(text, values, memory, (gx, gy, gz), shared, _order.shuffle)

        return launch


_device = Device()


def extent(t: Tensor) -> ptx.Extent:
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size() * (t.numel() > 0)


def install(arch: int) -> None:
    """From now on kernels of this process run here, on CPU tensors. To be called before their modules are imported."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    triton.knobs.cache.dir = folder.name
    CUDABackend.make_cubin = lambda self, text, *_: text.encode()  # a launch's binary is the PTX itself
    triton.runtime.driver.set_active(_device)
    _launch.unsupported_device = lambda call: None
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (Tensor, "new_empty")):
        setattr(owner, name, _poisoning(getattr(owner, name)))
    compile_for(arch)


def compile_for(arch: int) -> None:
    """Compiles what is launched from now on for compute capability arch / 10."""
    _device.arch = arch
    _launch._compiled.clear()


def forget() -> None:
    """Lets go of the memory of earlier calls."""
    _fresh.clear()


def _poisoning(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def poisoned(*args: Any, **options: Any) -> Tensor:
        t = allocate(*args, **options)
        if t.device.type == "cpu" and 0 < t.nbytes < 2**28:  # of more than that no page may be touched
            t.fill_(math.nan if t.is_floating_point() else 0x5A)
            _fresh.append((t, np.ones(t.nbytes, bool)))  # whose memory is then nobody else's
        return t

    return poisoned
