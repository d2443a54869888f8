"""The device: where CUDA tensors go, and what ``torch.cuda`` says."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim.optimizer import _foreach_supported_types
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

# Operators that need a value on the host, or the size of a result that depends on values.
_ASKING = {
    "aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::masked_select",
    "aten::_unique2", "aten::unique_dim", "aten::bincount",
}  # fmt: skip
_COPIES = {"aten::_to_copy", "aten::copy_"}
_OPTIMIZERS = ("_fused_adam_", "_fused_adam_.tensor_lr")  # fake tensors know nothing of them

_recording = False
_sync_debug_mode = "default"
_meta = torch.library.Library("aten", "IMPL", "Meta")  # lasts as long as this does


def install() -> None:
    """Has this process believe in the device from here on."""
    _Device().__enter__()
    for name in _OPTIMIZERS:
        _meta.impl(name, lambda *args, **kwargs: None)
    _foreach_supported_types.append(FakeTensor)
    for name, value in _CUDA.items():
        setattr(torch.cuda, name, value)
    torch.Generator = _Generator  # type: ignore[misc]
    torch.Tensor.record_stream = lambda self, stream: None  # type: ignore[method-assign]
    torch.tensor = _tensor  # type: ignore[assignment]
    nn.Module._apply = _apply  # type: ignore[method-assign, assignment]
    from fastgan.kernels import dispatch

    why_not = dispatch.why_not
    served = {name: "native" if name == "wasserstein_1d" else "triton" for name in dispatch.OPERATORS}
    dispatch.why_not = lambda backend, call: (
        why_not(backend, call) if call.device != "cuda" else None if backend == served[call.operator] else "no kernel"
    )


class _Device(TorchDispatchMode):
    """Fakes the operators that have to do with a CUDA device, and notices those that wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self._fakes = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not any(map(_is_cuda, tree_leaves((args, kwargs)))):
            return func(*args, **kwargs)
        name = func.name()
        if name in _ASKING:
            _wait(name)
        if name == "aten::_local_scalar_dense":
            return _made_up((), args[0].dtype).item()
        fake_args, fake_kwargs = tree_map_only(Tensor, self._fake, (args, kwargs))
        with self._fakes:
            out = func(*fake_args, **fake_kwargs)
        if name in _COPIES:
            source, result = (args[1], args[0]) if name == "aten::copy_" else (args[0], out)
            non_blocking = kwargs.get("non_blocking", len(args) > 2 and args[2])
            if source.is_cuda != result.is_cuda and (_recording or not non_blocking):
                _wait(name)
            if not result.is_cuda and name == "aten::copy_":
                return result.copy_(_made_up(result.shape, result.dtype))
        if args and out is fake_args[0]:  # in place
            return args[0]
        return tree_map_only(FakeTensor, lambda t: t if t.is_cuda else _made_up(t.shape, t.dtype), out)

    def _fake(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        return self._fakes.from_tensor(tensor.detach(), static_shapes=True)


def _is_cuda(leaf: object) -> bool:
    return (isinstance(leaf, Tensor) and leaf.is_cuda) or (isinstance(leaf, torch.device) and leaf.type == "cuda")


def _made_up(shape: Any, dtype: torch.dtype) -> Tensor:
    """Values that are finite, true, and no index of anything."""
    return torch.full(shape, 1 if dtype.is_floating_point or dtype == torch.bool else -1, dtype=dtype)


def _wait(name: str) -> None:
    if _recording or _sync_debug_mode == "error":
        raise RuntimeError(f"{name} waits for the device")


# --- what PyTorch does otherwise where there is CUDA ----------------------------------------------------------------


def _tensor(data: Any, *, device: Any = None, requires_grad: bool = False, **kwargs: Any) -> Tensor:
    """PyTorch's own copies to the device where no mode sees it."""
    return _host_tensor(data, **kwargs).to(device or "cpu").requires_grad_(requires_grad)


def _apply(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """PyTorch's own keeps the parameters, which cannot become fake."""
    for child in module.children():
        child._apply(fn)
    for key, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[key] = nn.Parameter(fn(parameter.detach()), parameter.requires_grad)
    for key, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[key] = fn(buffer)
    return module


_host_tensor = torch.tensor
_HostGenerator = torch.Generator


class _Generator(_HostGenerator):
    """The host's, which says that it is the device's."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        return _HostGenerator.__new__(cls, "cpu")

    def __init__(self, device: Any = "cpu") -> None:
        self._device = torch.device(device)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 0) if self._device.type == "cuda" else self._device

    def clone_state(self) -> _Generator:
        return self

    def graphsafe_set_state(self, state: torch.Generator) -> _Generator:
        return self


class _Stream:
    def __init__(self, device: object = None) -> None: ...
    def wait_stream(self, stream: _Stream) -> None: ...
    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Stream)

    __hash__ = None  # type: ignore[assignment]


class _Graph:
    def register_generator_state(self, generator: torch.Generator) -> None:
        assert generator.device.type == "cuda"

    def replay(self) -> None: ...
    def pool(self) -> tuple[int, int]:
        return (0, 1)


@contextlib.contextmanager
def _record(graph: _Graph, **kwargs: Any) -> Iterator[None]:
    global _recording
    _recording = True
    try:
        yield
    finally:
        _recording = False


def _set_sync_debug_mode(mode: str) -> None:
    global _sync_debug_mode
    _sync_debug_mode = mode


_CUDA: dict[str, Any] = {
    "_lazy_init": lambda: None,
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "get_device_capability": lambda device=None: (9, 0),
    "get_device_properties": lambda device=None: SimpleNamespace(multi_processor_count=132, total_memory=2**37),
    "mem_get_info": lambda device=None: (2**36, 2**37),
    "is_bf16_supported": lambda including_emulation=True: True,
    "device": lambda device: contextlib.nullcontext(),
    "Stream": _Stream,
    "stream": lambda stream: contextlib.nullcontext(),
    "current_stream": lambda device=None: _Stream(),
    "synchronize": lambda device=None: None,
    "set_sync_debug_mode": _set_sync_debug_mode,
    "CUDAGraph": _Graph,
    "graph": _record,
    "graph_pool_handle": lambda: (0, 1),
    "default_generators": (),
    "manual_seed_all": lambda seed: None,
    "get_rng_state": lambda device=None: torch.get_rng_state(),
    "set_rng_state": lambda state, device=None: None,
    "get_rng_state_all": list,
    "set_rng_state_all": lambda states: None,
}
