"""The learning-rate policies of CycleGAN's code, by its names."""

from __future__ import annotations

from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, ReduceLROnPlateau, StepLR

Policy = Literal["linear", "step", "cosine", "plateau"]


def linear_factor(epoch: int, n_epochs: int, n_epochs_decay: int, epoch_count: int = 1) -> float:
    """1 for the first ``n_epochs``, then linearly to 0 over ``n_epochs_decay``: the factor after ``epoch`` epochs,

    ``1 - max(0, epoch + epoch_count - n_epochs) / (n_epochs_decay + 1)``, and 0 from where that would be negative.
    """
    return max(0.0, 1.0 - max(0, epoch + epoch_count - n_epochs) / (n_epochs_decay + 1))


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
    ``n_epochs``, and up again over as many. ``plateau``: × 0.2 when the metric has not fallen by 1 % for more than 5
    epochs.
    """
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])  # of which plateau's is a part, too
    if policy == "linear":
        return LambdaLR(optimizer, lambda epoch: linear_factor(epoch, n_epochs, n_epochs_decay, epoch_count))
    if policy == "step":
        return StepLR(optimizer, step_size=lr_decay_iters, gamma=0.1)
    if policy == "cosine":
        return CosineAnnealingLR(optimizer, T_max=n_epochs, eta_min=0)
    if policy == "plateau":
        return ReduceLROnPlateau(optimizer, mode="min", factor=0.2, threshold=0.01, patience=5)
    raise ValueError(f"lr_policy must be linear, step, cosine or plateau, got {policy!r}")


def load(made: LRScheduler, state: dict[str, Any], keep_settings: bool = False) -> None:
    """Restores a schedule; ``keep_settings``: its progress alone, and the learning rates that it has there.

    What ``plateau`` has made of the rates is the optimizer's to restore.
    """
    if not keep_settings:
        made.load_state_dict(state)
        return
    vars(made).update({name: value for name, value in state.items() if name in _PROGRESS})  # of any policy
    if not isinstance(made, ReduceLROnPlateau):
        _set_rates(made)


def restart(made: LRScheduler, step: int) -> None:
    """Lets a schedule without memory of its own, which ``plateau`` has, go on after so many steps of it."""
    made.last_epoch, made._step_count = step, step + 1
    _set_rates(made)


def _set_rates(made: LRScheduler) -> None:
    if isinstance(made, LambdaLR):
        rates = [rate * factor(made.last_epoch) for rate, factor in zip(made.base_lrs, made.lr_lambdas, strict=True)]
    else:
        rates = made._get_closed_form_lr()  # type: ignore[attr-defined]
    for group, rate in zip(made.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


# What the steps of a schedule change.
_PROGRESS = frozenset(
    {
        "last_epoch",
        "_step_count",
        "_last_lr",
        "_get_lr_called_within_step",
        "best",
        "num_bad_epochs",
        "cooldown_counter",
    }
)


def advance(made: LRScheduler, metric: float) -> None:
    """Ends an epoch; ``metric`` is for ``plateau`` alone."""
    if isinstance(made, ReduceLROnPlateau):
        made.step(metric)
    else:
        made.step()
