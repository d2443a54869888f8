"""The running losses, and a watch for the first one that is not finite, without waiting for the device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastgan.training import distributed


@dataclass
class _Group:
    total: Tensor  # [losses]
    count: int
    first_bad: Tensor  # [losses], the first step at which each was not finite, else -1


@dataclass(frozen=True)
class Bad:
    """What was found first that is not finite."""

    step: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} is not finite, first at step {self.step}"


class Meter:
    """Means of the losses since the last :meth:`flush`, accumulated on their device."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, ...], _Group] = {}

    @torch.no_grad()
    def add(self, step: int, losses: Mapping[str, Tensor]) -> None:
        """Takes the losses of a step, in the order in which they were computed.

        Raises:
            TypeError: one is no tensor of one number.
        """
        if not losses:
            return
        for name, loss in losses.items():
            if not isinstance(loss, Tensor) or loss.dim() > 0:
                got = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
                raise TypeError(f"step() must return scalar tensors, got {got} as loss {name!r}")
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        names = tuple(losses)
        group = self._groups.get(names)
        if group is None:
            group = self._groups[names] = _Group(
                torch.zeros_like(values), 0, torch.full_like(values, -1, dtype=torch.int64)
            )
        group.total += values
        group.count += 1
        group.first_bad = torch.where((group.first_bad < 0) & ~values.isfinite(), step, group.first_bad)

    def flush(self) -> tuple[dict[str, float], Bad | None]:
        """The means over steps and processes, and the first loss of any that was not finite, if there is one. Waits
        for the device."""
        totals: dict[str, float] = {}
        counts: dict[str, int] = {}
        bad: Bad | None = None
        for names, group in self._groups.items():
            for name, total in zip(names, distributed.mean(group.total).tolist(), strict=True):
                totals[name] = totals.get(name, 0.0) + total
                counts[name] = counts.get(name, 0) + group.count
            for name, step in zip(names, group.first_bad.tolist(), strict=True):
                if step >= 0 and (bad is None or step < bad.step):
                    bad = Bad(step, f"loss {name}")
        self._groups.clear()
        if not all(map(math.isfinite, totals.values())):  # in every process, if in one
            bad = min(filter(None, distributed.gather(bad)), key=lambda each: each.step, default=None)
        return {name: total / counts[name] for name, total in totals.items()}, bad


def not_finite(networks: Mapping[str, nn.Module], *, gradients: bool = True) -> list[str]:
    """Parameters, their gradients and buffers that are not finite now, by name, in the networks' order."""
    names = []
    for label, network in networks.items():
        for name, parameter in network.named_parameters():
            if not parameter.isfinite().all():
                names.append(f"{label}.{name}")
            if gradients and parameter.grad is not None and not parameter.grad.isfinite().all():
                names.append(f"{label}.{name}.grad")
        names += [f"{label}.{name}" for name, buffer in network.named_buffers() if not buffer.isfinite().all()]
    return names


def listed(names: list[str]) -> str:
    """The first three of them, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
