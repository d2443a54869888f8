"""The losses of CycleGAN: what a training step differentiates.

With λ_A = ``lambda_A``, λ_B = ``lambda_B``, λ_idt = ``lambda_identity``, L1 the mean absolute difference and GAN(·, t)
:func:`gan_loss`::

    loss_G = GAN(D_A(fake_B), 1) + GAN(D_B(fake_A), 1)
           + λ_A L1(rec_A, A) + λ_B L1(rec_B, B) + λ_idt (λ_B L1(idt_A, B) + λ_A L1(idt_B, A))

    fake_B = G_A(A), rec_A = G_B(fake_B), idt_A = G_A(B)
    fake_A = G_B(B), rec_B = G_A(fake_A), idt_B = G_B(A)

    loss_D = ½ (GAN(D(real), 1) + GAN(D(fake), 0)) [+ gradient penalty, for wgangp]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

import fastgan.functional as F
from fastgan.objectives.base import added, full
from fastgan.training.cyclegan.config import CycleGanConfig, GanMode
from fastgan.training.cyclegan.networks import Network

Losses = dict[str, Tensor]
L1_TERMS = ("cycle_A", "cycle_B", "idt_A", "idt_B")


class Computed(NamedTuple):
    """A loss, ready for its backward pass."""

    total: Tensor
    losses: Losses
    """What is logged, detached."""
    images: tuple[Tensor, ...] = ()
    """What the rest of the step uses of it, detached."""


class Translations(NamedTuple):
    """What the generators make of A and B; the identity images are None where their loss has no weight."""

    fake_B: Tensor
    rec_A: Tensor
    fake_A: Tensor
    rec_B: Tensor
    idt_A: Tensor | None = None
    idt_B: Tensor | None = None


def translations(nets: Mapping[str, Network], config: CycleGanConfig, real_A: Tensor, real_B: Tensor) -> Translations:
    """All images of the generators' loss, in the published order.

    If calls are joined (``batched_calls``), those that share weights and do not wait for each other are one, for images
    of one size: norms are per sample.
    """
    G_A, G_B = nets["G_A"], nets["G_B"]
    identity = config.lambda_identity * (config.lambda_A + config.lambda_B) > 0
    if config.joins_calls and identity and real_A.shape == real_B.shape:
        fake_B, idt_A = G_A(torch.cat([real_A, real_B])).chunk(2)
        fake_A, idt_B = G_B(torch.cat([real_B, real_A])).chunk(2)
        return Translations(fake_B, G_B(fake_B), fake_A, G_A(fake_A), idt_A, idt_B)
    fake_B = G_A(real_A)
    rec_A = G_B(fake_B)
    fake_A = G_B(real_B)
    rec_B = G_A(fake_A)
    if not identity:
        return Translations(fake_B, rec_A, fake_A, rec_B)
    return Translations(fake_B, rec_A, fake_A, rec_B, G_A(real_B), G_B(real_A))


def generators_loss(
    nets: Mapping[str, Network], config: CycleGanConfig, real_A: Tensor, real_B: Tensor, *, apart: bool = True
) -> Computed:
    """loss_G of both generators, see the module; ``images`` are (fake_B, fake_A).

    Losses are named G_A, G_B, cycle_A, cycle_B, idt_A, idt_B and, for the sum of the last four, l1. The fused operator
    computes that sum alone; without ``apart``, its terms are then left out.
    """
    made = translations(nets, config, real_A, real_B)
    adversarial_A = gan_loss(nets["D_A"](made.fake_B), True, config.gan_mode)
    adversarial_B = gan_loss(nets["D_B"](made.fake_A), True, config.gan_mode)
    pairs = {"cycle_A": (made.rec_A, real_A, config.lambda_A), "cycle_B": (made.rec_B, real_B, config.lambda_B)}
    if made.idt_A is not None and made.idt_B is not None:
        pairs["idt_A"] = (made.idt_A, real_B, config.lambda_B * config.lambda_identity)
        pairs["idt_B"] = (made.idt_B, real_A, config.lambda_A * config.lambda_identity)
    losses = {"G_A": adversarial_A, "G_B": adversarial_B}
    if config.fused:
        losses["l1"] = F.weighted_l1(list(pairs.values()))
        total = adversarial_A + adversarial_B + losses["l1"]
        if apart:
            with torch.no_grad():
                losses |= {name: _l1(*pair) for name, pair in pairs.items()}
    else:
        terms = {name: _l1(*pair) for name, pair in pairs.items()}
        losses |= {**terms, "l1": added(terms.values())}
        total = added([adversarial_A, adversarial_B, *terms.values()])
    detached = {name: loss.detach() for name, loss in losses.items()}
    return Computed(total, detached, (made.fake_B.detach(), made.fake_A.detach()))


def discriminator_loss(
    name: str,
    discriminator: Network,
    network: nn.Module,
    config: CycleGanConfig,
    real: Tensor,
    fake: Tensor,
    alpha: Tensor | None = None,
    *,
    grad_scale: float = 1.0,
) -> Computed:
    """loss_D of one discriminator, see the module.

    Args:
        name: of its loss.
        discriminator: gives its scores.
        network: the same, but not compiled, for the penalty, which differentiates it twice.
        config: see :class:`CycleGanConfig`.
        real, fake: [N, C, H, W], of one shape and without a graph.
        alpha: [N], of the points between them where wgangp's penalty looks; None for the other modes.
        grad_scale: see :func:`fastgan.functional.gradient_penalty`.
    """
    together = config.joins_calls and real.shape[1:] == fake.shape[1:]  # a pool may hold images of other sizes
    fake = fake.to(real.dtype) if together or alpha is not None else fake
    if together:
        on_real, on_fake = discriminator(torch.cat([real, fake])).chunk(2)
    else:
        on_real, on_fake = discriminator(real), discriminator(fake)
    mode = config.gan_mode
    loss = (gan_loss(on_real, True, mode, judging=True) + gan_loss(on_fake, False, mode, judging=True)) * 0.5
    if alpha is not None:
        loss = loss + F.gradient_penalty(
            network,
            real,
            fake,
            weight=config.lambda_gp,
            one_sided=config.gp_one_sided,
            alpha=alpha.to(real.device, non_blocking=True),
            grad_scale=grad_scale,
        )
    return Computed(loss, {name: loss.detach()})


def gan_loss(scores: Tensor, real: bool, mode: GanMode, *, judging: bool = False) -> Tensor:
    """The loss of scores that should say "real" (or not): the authors' GANLoss, and the hinge.

    ``lsgan``: mean (D − t)², ``vanilla``: mean cross-entropy of logits with t, t = 1 for real; ``wgangp``: ∓ mean D;
    ``hinge``: mean max(0, 1 ∓ D) for the discriminators (``judging``), ∓ mean D for the generators.
    In at least float32.
    """
    scores = full(scores)
    if mode == "hinge" and judging:
        return (1 - scores if real else 1 + scores).relu().mean()
    if mode in ("wgangp", "hinge"):
        return -scores.mean() if real else scores.mean()
    target = torch.full_like(scores, float(real))
    if mode == "lsgan":
        return nnf.mse_loss(scores, target)
    return nnf.binary_cross_entropy_with_logits(scores, target)


def _l1(x: Tensor, y: Tensor, weight: float) -> Tensor:
    return nnf.l1_loss(full(x), full(y)) * weight


def weighted(parts: Sequence[Losses], shares: Sequence[float]) -> Losses:
    """The losses of a batch from those of its parts."""
    if len(parts) == 1:
        return dict(parts[0])
    return {name: added(part[name] * share for part, share in zip(parts, shares, strict=True)) for name in parts[0]}
