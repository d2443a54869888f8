"""What an adversarial objective is: a critic's loss, a generator's loss, and what it requires of the critic.

Notation of this package: D is the critic, one number (or one patch of numbers) for each sample; x ~ p are real
samples, y = G(z) ~ q generated ones. Losses are minimised by both sides. A loss is a dictionary of named terms whose
sum is the loss, so that each can be logged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import fastgan.functional as F

Critic = Callable[[Tensor], Tensor]
Terms = dict[str, Tensor]
Output = Literal["logit", "score", "energy", "none"]


def _same(rows: Tensor) -> Tensor:
    return rows


@dataclass(frozen=True)
class Batch:
    """How the rows that an objective sees stand to a batch that several processes share; by default they are all.

    Every process draws random numbers for the whole batch, from generators in one state, and keeps its ``own`` rows.
    ``all`` gives the rows of all processes to terms that are no means over samples, and gradients to each.
    """

    size: int = 1
    own: Callable[[Tensor], Tensor] = _same
    all: Callable[[Tensor], Tensor] = _same


@dataclass(frozen=True)
class CriticSchedule:
    """How many critic steps precede a generator step.

    ``n`` of them; ``boosted`` in the first ``first`` generator steps and in every ``every``-th (Arjovsky et al. 2017's
    code: 100 in the first 25 and every 500th). 0 switches either condition off.
    """

    n: int = 1
    boosted: int = 1
    first: int = 0
    every: int = 0

    def __call__(self, generator_step: int) -> int:
        """The number of critic steps before generator step ``generator_step`` (counted from 0)."""
        boost = generator_step < self.first or (self.every > 0 and generator_step % self.every == 0)
        return self.boosted if boost else self.n


@dataclass(frozen=True)
class Defaults:
    """The authors' training settings; ``source`` says where they stand."""

    source: str
    optimizer: Literal["adam", "rmsprop"] = "adam"
    lr_critic: float = 2e-4
    lr_generator: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    schedule: CriticSchedule = CriticSchedule()
    batch_size: int = 64
    clip: float | None = None
    """Weights of the critic are clamped to [-clip, clip] before each of its steps."""
    grad_clip: float | None = None
    """The norm of the critic's whole gradient is limited to this."""
    decay: Literal["none", "linear"] = "none"
    """Learning rates stay, or fall linearly to 0 over the run."""


DCGAN = Defaults("Radford et al. 2015 (DCGAN), section 4", batch_size=128)


@dataclass(frozen=True)
class Requirements:
    """What an objective asks of the critic."""

    output: Output = "score"
    """``logit``: σ(D) is a probability. ``score``: any real number. ``energy``: non-negative, low for real data.
    ``none``: there is no critic."""
    independent: bool = False
    """The critic must judge each sample by itself: no batch norm, no minibatch statistics."""
    features: bool = False
    """The critic must have ``forward_features(x) -> (output, features [N, F])``: its last hidden layer (the code, for
    an autoencoder)."""
    dropout: bool = False
    """Two passes over the same data must differ: dropout in the critic, in training mode."""
    spectral_norm: bool = False
    """Every linear map of the critic must be spectrally normalised."""
    real: bool = False
    """The generator's loss looks at real samples: a batch of its own is taken for it."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One row of the table. Fields of the subclasses are the objective's hyper-parameters."""

    requires: ClassVar[Requirements] = Requirements()
    defaults: ClassVar[Defaults] = DCGAN
    toy: ClassVar[dict[str, Any]] = {}
    """Hyper-parameters for two-dimensional toys, where they differ from those for images."""

    joint: bool = False
    """Judge real and fake in one call of the critic: fewer, larger kernels and the same result, unless the critic
    mixes samples, or changes with each call as spectral norm does."""
    batch: Batch = Batch()
    """See :class:`Batch`; a trainer of several processes sets it."""

    def settings(self, architecture: str, toy: bool, large: bool = False) -> Defaults:
        """The authors' settings for an architecture (a name of ``fastgan.models``), ``large`` from 64 pixels on, or
        for a two-dimensional toy."""
        return self.defaults

    def draw(self, real: Tensor, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """What :meth:`critic_loss` would draw for a batch, [N, ...] by the names of its arguments that take it: for a
        batch in parts, each of which gets its rows."""
        return {}

    def critic_loss(
        self, critic: Critic, real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None
    ) -> Terms:
        """The terms of the critic's loss.

        Args:
            critic: [N, ...] -> [N, ...]; one tensor of scores: ``lambda x: critic(x, labels)`` for a conditional
                critic, a sum over critics for several scales.
            real, fake: samples of one shape [N, ...]. ``fake`` is a constant here: sample it under
                ``torch.no_grad()`` or detach it.
            generator: draws what the objective draws at random (a penalty's interpolation).
        """
        raise NotImplementedError

    def generator_loss(
        self, critic: Critic, real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None
    ) -> Terms:
        """The terms of the generator's loss; ``fake`` carries the generator's graph."""
        raise NotImplementedError

    def _judge(self, critic: Critic, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        if not self.joint:
            return full(critic(real)), full(critic(fake))
        real_output, fake_output = full(critic(torch.cat([real, fake]))).split([len(real), len(fake)])
        return real_output, fake_output


@dataclass(frozen=True, kw_only=True)
class Classifier(Objective):
    """An objective whose critic tells real from fake; the generator may match its features instead.

    With ``feature_matching`` the generator minimises :math:`\\|E f(x) - E f(G(z))\\|_2^2`, f the critic's last hidden
    layer (Salimans et al. 2016, arXiv:1606.03498, section 3.1), instead of its own loss.
    """

    feature_matching: bool = False

    def generator_loss(
        self, critic: Critic, real: Tensor, fake: Tensor, *, generator: torch.Generator | None = None
    ) -> Terms:
        if not self.feature_matching:
            return self._generator_loss(critic, fake)
        with torch.no_grad():
            target = self.batch.all(full(forward_features(critic, real)[1])).mean(0)
        matched = self.batch.all(full(forward_features(critic, fake)[1])).mean(0)
        return {"feature_matching": (target - matched).square().sum()}

    def _generator_loss(self, critic: Critic, fake: Tensor) -> Terms:
        raise NotImplementedError


def differentiable_twice(critic: Critic) -> Critic:
    """The network that ``torch.compile`` wrapped, for a gradient penalty: what it compiled has no second derivative.

    DistributedDataParallel around it still averages the gradients: it waits for those of the other passes.
    """
    inner = critic.module if isinstance(critic, DistributedDataParallel) else critic
    compiled: Critic | None = getattr(inner, "_orig_mod", None)
    return critic if compiled is None else compiled


def draw_alpha(batch: Batch, real: Tensor, generator: torch.Generator | None) -> Tensor:
    """The α of a gradient penalty, [N]: this process's of those that one process would draw for the whole batch."""
    one = torch.ones(len(real) * batch.size, device=real.device)
    return batch.own(F.interpolate(one, torch.zeros_like(one), generator=generator))


def forward_features(critic: Critic, x: Tensor) -> tuple[Tensor, Tensor]:
    """The critic's output and the features [N, F] of its last hidden layer, from one pass."""
    critic = differentiable_twice(critic)
    critic = critic.module if isinstance(critic, DistributedDataParallel) else critic
    method = getattr(critic, "forward_features", None)
    if method is None:
        raise TypeError(
            f"objectives: this one needs a critic with forward_features(x) -> (output, features [N, F]); "
            f"{type(critic).__name__} has none"
        )
    result = method(x)
    if not (isinstance(result, tuple) and len(result) == 2 and all(isinstance(t, Tensor) for t in result)):
        raise TypeError(
            f"objectives: forward_features must return (output, features [N, F]), got {type(result).__name__} "
            f"from {type(critic).__name__}"
        )
    output, features = result
    return output, features.flatten(1)


def full(t: Tensor) -> Tensor:
    """What a critic gave, in float32 if it is of half precision: losses are computed in at least that."""
    if not isinstance(t, Tensor):
        raise TypeError(f"objectives: critic must return a Tensor of scores, got {type(t).__name__}")
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def added(terms: Iterable[Tensor]) -> Tensor:
    """The sum of scalars, from left to right."""
    total, *rest = terms
    for term in rest:
        total = total + term
    return total


def per_sample(output: Tensor) -> Tensor:
    """[N, ...] -> [N]: the mean over what a critic gives for one sample."""
    return output.flatten(1).mean(1) if output.dim() > 1 else output
