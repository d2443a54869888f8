"""What a run shows of itself: samples, sheets, scores, the plan of a dry run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import fastgan.functional as F
from fastgan import objectives
from fastgan.metrics import mode_coverage
from fastgan.models.gan import LatentGenerator
from fastgan.training.gan.config import GanConfig, architecture_name
from fastgan.training.gan.data import RealData
from fastgan.training.gan.networks import make_critic, make_generator, no_critic, parameter_count
from fastgan.training.memory import kept_for_backward
from fastgan.training.recompute import recompute_activations
from fastgan.training.task import evaluating

if TYPE_CHECKING:
    from PIL import Image

    from fastgan.training.gan.trainer import GanTask


def check(config: GanConfig, data: RealData) -> None:
    """Raises ValueError if ``config`` keeps the best by a score that samples of ``data`` do not have."""
    mixture = data.points is not None and data.points.modes is not None
    known = ("sliced_w2", "modes", "high_quality") if mixture else ("sliced_w2",)
    if config.best_metric and config.best_metric not in known:
        raise ValueError(f"best_metric must be one of {', '.join(known)}, got {config.best_metric!r}")


@torch.no_grad()
def sample(generator: nn.Module, z: Tensor) -> Tensor:
    """Samples of a generator in evaluation mode; its mode is restored."""
    with evaluating(generator):
        samples: Tensor = generator(z)
    return samples


def evaluate(samples: Tensor, data: RealData, seed: int = 0) -> dict[str, float]:
    """How far samples [N, *shape] are from real ones.

    ``sliced_w2``: the sliced W_2 (over pixels, for images) to as many real samples, over 512 directions. For the
    mixtures of Gaussians also ``modes`` and ``high_quality``, see :func:`fastgan.metrics.mode_coverage`.
    """
    samples = samples.float().cpu()
    real = data.draw(len(samples), seed)
    generator = torch.Generator().manual_seed(seed)
    distance = F.sliced_wasserstein(samples.flatten(1), real.flatten(1), n_projections=512, generator=generator)
    metrics = {"sliced_w2": float(distance)}
    if data.points is not None and data.points.modes is not None:
        modes, high_quality = mode_coverage(samples, data.points.modes, data.points.deviation)
        metrics.update(modes=float(modes), high_quality=high_quality)
    return metrics


def scatter(samples: Tensor, real: Tensor, size: int = 480) -> Image.Image:
    """Points [N, 2] in orange over real ones in grey, on a square that holds the real ones."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(picture)
    limit = 1.25 * float(real.abs().max())
    for cloud, colour in ((real, (190, 190, 190)), (samples.detach().float().cpu(), (217, 95, 2))):
        pixels = (cloud.clamp(-limit, limit) * torch.tensor([1.0, -1.0]) / limit + 1) * (size - 1) / 2
        for x, y in pixels.nan_to_num(-9).tolist():
            draw.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=colour)
    return picture


def plan(task: GanTask) -> dict[str, str]:
    """What a dry run prints beside the settings."""
    settings, config = task.settings, task.config
    schedule = settings.schedule
    boosted = f", {schedule.boosted} in the first {schedule.first}" if schedule.first else ""
    boosted += f" and every {schedule.every}th" if schedule.every else ""
    counts = {name: parameter_count(network) for name, network in task.networks.items()}
    # Weights in float32, and for each trained one a gradient and the optimizer's averages (Adam 2, RMSprop 1).
    copies = 4 if settings.optimizer == "adam" else 3
    fixed = sum(4 * count * (1 if name == "average" else copies) for name, count in counts.items())
    steps = f"{schedule.n} critic step{'s' if schedule.n > 1 else ''}{boosted}, then one generator step"
    summary = {
        "authors' settings": settings.source,
        "samples": f"{list(task.data.shape)}",
        "step": steps if task.critic is not None else "one generator step",
        "parameters": ", ".join(f"{count:,} ({name})" for name, count in counts.items()),
        "memory": f"{fixed / 2**20:.1f} MiB for weights, gradients and optimizers, "
        f"{activation_bytes(task) / 2**20:.1f} MiB kept for the backward pass",
        "runs on": f"{task.device}, autocast {task.precision.amp}",
    }
    used: dict[str, object] = {
        "architecture": architecture_name(config),
        "latent_dim": task.generator.latent_dim,
        "batch_size": settings.batch_size,
        "optimizer": settings.optimizer,
        "lr_g": f"{settings.lr_generator:g}",
        "lr_decay": settings.decay,
    }
    if settings.optimizer == "adam":
        used.update(beta1=settings.betas[0], beta2=settings.betas[1])
    if task.critic is not None:
        used.update(lr_d=f"{settings.lr_critic:g}", n_critic=schedule.n)
        used.update(clip=settings.clip or "none", grad_clip=settings.grad_clip or "none")
        used.update(boost=schedule.boosted, boost_first=schedule.first, boost_every=schedule.every)
    hyper = {k: getattr(task.objective, k) for k in objectives.options(config.objective) if k != "joint"}
    used["hyper"] = " ".join(f"{k}={str(v).lower() if isinstance(v, bool) else f'{v:g}'}" for k, v in hyper.items())
    return {**summary, **{name: str(value) for name, value in used.items()}}


def activation_bytes(task: GanTask) -> int:
    """What autograd keeps of the larger of a critic and a generator step."""
    config, objective = task.config, replace(task.objective, batch=objectives.Batch())
    batch = -(-task.settings.batch_size // config.accumulate)

    def make() -> list[nn.Module]:
        critic = make_critic(config, task.objective)
        networks = [make_generator(config), *([] if critic is None else [critic])]
        for network in networks:
            if config.recompute:
                recompute_activations(network)
        return networks

    def critic_step(generator: LatentGenerator, critic: nn.Module) -> object:
        with task.precision.autocast("cpu"):
            with torch.no_grad():
                fake = generator(generator.latent(batch))
            return objective.critic_loss(critic, torch.empty_like(fake), fake)

    def generator_step(generator: LatentGenerator, critic: nn.Module | None = None) -> object:
        if critic is not None:
            critic.requires_grad_(False)
        with task.precision.autocast("cpu"):
            fake = generator(generator.latent(batch))
            return objective.generator_loss(critic or no_critic, torch.empty_like(fake), fake)

    with task.backend():
        steps = [generator_step] if task.critic is None else [generator_step, critic_step]
        return max(kept_for_backward(make, step) for step in steps)
