"""Autocast, loss scaling and memory format, as one choice."""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastgan.nn.convolutions import pytorch_instance_norms

Amp = Literal["auto", "none", "bf16", "fp16"]
Switch = Literal["auto", "on", "off"]


class Precision:
    """How a step computes.

    Args:
        amp: ``bf16`` or ``fp16`` (with loss scaling) autocast, or ``none``. ``auto``: bf16 on a GPU that has it.
        channels_last: ``auto``: if the networks gain by it, and on a GPU its convolutions too.
        gains: whether they do: not with PyTorch's instance norm, which undoes it.
    """

    def __init__(
        self, device: torch.device, amp: Amp = "none", channels_last: Switch = "off", *, gains: bool = False
    ) -> None:
        cuda = device.type == "cuda"
        if amp == "auto":
            # By default PyTorch also counts the GPUs before Ampere, which emulate it, slower than they compute float32.
            amp = "bf16" if cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "none"
        self.device = device
        self.amp: str = amp
        self.dtype = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
        last = channels_last == "on" or (channels_last == "auto" and gains and _convolutions_gain(device, amp))
        self.memory_format = torch.channels_last if last else torch.preserve_format
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")

    def autocast(self, device: str | None = None) -> contextlib.AbstractContextManager[Any]:
        """The context of forward passes and losses; ``device``: the type of their tensors', if that is another."""
        if self.amp == "none":
            return contextlib.nullcontext()
        return torch.autocast(device or self.device.type, self.dtype)

    def place(self, module: nn.Module) -> nn.Module:
        """Moves a module to the device and memory format.

        Raises:
            ValueError: that would have PyTorch compute wrong gradients.
        """
        if self.memory_format == torch.channels_last and self.device.type == "cpu" and pytorch_instance_norms(module):
            raise ValueError(
                "channels_last must be auto or off for networks with PyTorch's instance norm on a CPU, got on: for a "
                "batch of one its gradients are wrong in that layout. CycleGAN's norms are fastgan's with fused"
            )
        placed: nn.Module = module.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        return placed

    def batch(self, images: Tensor) -> Tensor:
        """Moves a batch to the device and, if it is [N, C, H, W], to the memory format."""
        memory_format = self.memory_format if images.dim() == 4 else torch.preserve_format
        return images.to(self.device, non_blocking=True, memory_format=memory_format)

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def unscale(self, optimizer: Optimizer) -> None:
        """Makes the gradients of ``optimizer`` those of the loss itself, before something looks at them."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> None:
        """Unscales and steps; call :meth:`update` once after the last optimizer of an iteration."""
        self.scaler.step(optimizer)

    def update(self) -> None:
        self.scaler.update()

    def forget(self) -> None:
        """Takes no notice of steps since the last :meth:`update`, of an iteration that ended halfway.

        The scale stays, and so does its tensor, which recorded steps may read.
        """
        if self.scaler.is_enabled():
            self.scaler._per_optimizer_states.clear()

    def state_dict(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.scaler.load_state_dict(state)


def _convolutions_gain(device: torch.device, amp: str) -> bool:
    """Whether a GPU's gain by channels_last: it is the layout of tensor cores, which serve float16 from Volta on,
    bfloat16 and, as TF32, float32 from Ampere on."""
    if device.type != "cuda":
        return True
    return torch.cuda.get_device_capability(device) >= ((7, 0) if amp == "fp16" else (8, 0))
