"""The learning-rate policies of CycleGAN's code, by its names."""

from __future__ import annotations

from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, ReduceLROnPlateau, StepLR

Policy = Literal["linear", "step", "cosine", "plateau"]


def linear_factor(epoch: int, n_epochs: int, n_epochs_decay: int, epoch_count: int = 1) -> float:
    """1 for the first ``n_epochs``, then linearly to 0 over ``n_epochs_decay``: the factor after ``epoch`` epochs,

    ``1 - max(0, epoch + epoch_count - n_epochs) / (n_epochs_decay + 1)``.
    """
    return 1.0 - max(0, epoch + epoch_count - n_epochs) / (n_epochs_decay + 1)


def make(
    optimizer: Optimizer,
    policy: Policy,
    *,
    n_epochs: int = 100,
    n_epochs_decay: int = 100,
    epoch_count: int = 1,
    lr_decay_iters: int = 50,
) -> LRScheduler:
    """A schedule to be stepped at the end of every epoch (``plateau``: with the metric to be minimised).

    ``linear``: :func:`linear_factor`. ``step``: × 0.1 every ``lr_decay_iters`` epochs. ``cosine``: to 0 over
    ``n_epochs``. ``plateau``: × 0.2 when the metric has not fallen by 1 % for more than 5 epochs.
    """
    if policy == "linear":
        return LambdaLR(optimizer, lambda epoch: linear_factor(epoch, n_epochs, n_epochs_decay, epoch_count))
    if policy == "step":
        return StepLR(optimizer, step_size=lr_decay_iters, gamma=0.1)
    if policy == "cosine":
        return CosineAnnealingLR(optimizer, T_max=n_epochs, eta_min=0)
    if policy == "plateau":
        return ReduceLROnPlateau(optimizer, mode="min", factor=0.2, threshold=0.01, patience=5)
    raise ValueError(f"lr_policy must be linear, step, cosine or plateau, got {policy!r}")


def advance(made: LRScheduler, metric: float) -> None:
    """Ends an epoch; ``metric`` is for ``plateau`` alone."""
    if isinstance(made, ReduceLROnPlateau):
        made.step(metric)
    else:
        made.step()
