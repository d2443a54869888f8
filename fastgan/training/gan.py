"""The trainer of the GAN family: one step is some critic steps, then a generator step.

Algorithm 1 of Goodfellow et al. 2014, Arjovsky et al. 2017 and Gulrajani et al. 2017, for any objective of
:mod:`fastgan.objectives`::

    for each generator step:
        n_critic times:
            clamp the critic's weights (wgan)
            take real samples; draw z and generate fakes, without a graph through the generator
            critic loss, backward, critic step
        freeze the critic; draw z, generate; generator loss, backward, generator step; average the weights (EMA)
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

import fastgan.functional as F
from fastgan import objectives
from fastgan.data import points, tensors
from fastgan.data.images import SingleImageFolder
from fastgan.data.points import Points
from fastgan.data.resident import ResidentImages, on_device
from fastgan.data.tensors import ImageTensor
from fastgan.data.transforms import Preprocess
from fastgan.kernels.dispatch import use_backend
from fastgan.metrics import mode_coverage
from fastgan.models.gan import LatentGenerator, MinibatchDiscrimination, build_critic, build_gan_generator
from fastgan.objectives import Defaults, Objective
from fastgan.objectives.base import draw_alpha
from fastgan.objectives.dragan import RegretAnalytic
from fastgan.objectives.sliced import Sliced
from fastgan.objectives.wgan import WassersteinPenalty
from fastgan.training import distributed, random, sheet
from fastgan.training.batches import Batches, Fresh, Loaded, Shuffled
from fastgan.training.critic_step import CriticLosses, assign_gradients, critic_gradients
from fastgan.training.ema import Ema
from fastgan.training.graph import StepGraph, wants_graph
from fastgan.training.loop import Outcome, fit
from fastgan.training.memory import kept_for_backward
from fastgan.training.precision import Cache, Precision
from fastgan.training.task import RunConfig, Stateful, Task

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class GanConfig(RunConfig):
    """Settings of the GAN trainer. None means the authors' value for the objective (``fastgan.objectives``)."""

    name: str = "gan"
    """The run's name: its files are in checkpoints_dir/name."""
    objective: str = "wgan-gp"
    """gan, non-saturating, lsgan, hinge, sngan, wgan, wgan-gp, wgan-gp-one-sided, ct-gan, dragan,
    fgan-{kl,reverse-kl,pearson,hellinger,js,gan}, ebgan, loss-sensitive or sliced."""
    hyper: tuple[str, ...] = ()
    """Hyper-parameters of the objective, as name=value: weight=5 real_label=0.9 feature_matching=true …"""
    data: str = "8gaussians"
    """8gaussians, 25gaussians, swissroll, digits, mnist:DIR, cifar10:DIR (binary version), or a folder of images."""
    image_size: int | None = None
    """Height and width to which a folder's images are resized, or MNIST's padded; 32 by default."""
    channels: Literal[1, 3, 4] = 3
    """Of the images of a folder: grey, colour, or colour and transparency."""
    flip: bool = False
    """Mirror a folder's images with probability ½."""
    cache: Cache = "auto"
    """Decode and scale a folder's images once and keep them in memory (on), or on the device, to be mirrored there
    (device); auto: in memory; on a GPU, there if they take less than a tenth of its memory."""
    architecture: str | None = None
    """mlp, dcgan, wgan-gp, resnet or sngan; by default mlp for points and digits, sngan for that objective on images,
    else dcgan."""
    latent_dim: int | None = None
    """Dimensions of z; 2 for points, 128 for images."""
    width_g: int | None = None
    """Width of the generator."""
    width_d: int | None = None
    """Width of the critic."""
    norm_g: str | None = None
    """batch, instance, layer or none, in the generator."""
    norm_d: str | None = None
    """The same in the critic."""
    dropout: float | None = None
    """In the critic; 0.5 for ct-gan, else 0."""
    minibatch: int = 0
    """Kernels of minibatch discrimination in the critic (Salimans et al. 2016); 0: none."""
    code_dim: int | None = None
    """Size of an autoencoding critic's code; ebgan: 128, or half of what a smaller sample has."""
    batch_size: int | None = None
    """Samples of one process in each critic and each generator step."""
    steps: int = 20000
    """Generator steps."""
    n_critic: int | None = None
    """Critic steps before each generator step."""
    boost: int | None = None
    """Critic steps before each of the first boost_first generator steps and every boost_every-th; wgan: 100."""
    boost_first: int | None = None
    """See boost; wgan: 25."""
    boost_every: int | None = None
    """See boost; wgan: 500. 0: never."""
    optimizer: Literal["adam", "rmsprop"] | None = None
    """Of both networks."""
    lr_d: float | None = None
    """Learning rate of the critic."""
    lr_g: float | None = None
    """Learning rate of the generator; another than lr_d is TTUR (Heusel et al. 2017)."""
    beta1: float | None = None
    """Adam's."""
    beta2: float | None = None
    """Adam's."""
    clip: float | None = None
    """Clamp the critic's weights to ±clip before each of its steps; 0: do not."""
    grad_clip: float | None = None
    """Limit the norm of the critic's whole gradient to this; fgan-kl, -reverse-kl and -hellinger: 1; 0: do not."""
    lr_decay: Literal["none", "linear"] | None = None
    """Learning rates stay, or fall linearly to 0 over the run."""
    accumulate: int = 1
    """Split a step's batch into so many parts to save memory; a penalty draws its points for each part."""
    compile: bool = False
    """Take the critic's losses and gradients as one graph through torch.compile (wgan-gp and wgan-gp-one-sided)."""
    ema: float = 0.0
    """Decay of the generator's average, which sheets, samples and evaluations then use; 0: none."""
    n_samples: int = 64
    """Images on a sheet; 16 times as many points."""
    n_eval: int = 2048
    """Samples that an evaluation compares with as many real ones."""

    FREE: ClassVar[frozenset[str]] = RunConfig.FREE | {"n_samples", "n_eval", "cache"}


class RealData:
    """The real samples that ``config.data`` names.

    Raises:
        ValueError, DataError: no such data, or settings that do not fit it.
    """

    def __init__(self, config: GanConfig) -> None:
        self.shape = sample_shape(config)
        kind, _, folder = config.data.partition(":")
        self.points = Points(kind) if kind in points.NAMES else None
        self._images: ImageTensor | SingleImageFolder | None = None
        if kind == "digits":
            self._images = tensors.digits()
        elif kind == "mnist":
            self._images = tensors.mnist(folder, size=self.shape[-1])
        elif kind == "cifar10":
            self._images = tensors.cifar10(folder)
        elif self.points is None:
            preprocess = Preprocess(load_size=self.shape[-1], crop_size=self.shape[-1], flip=config.flip, multiple=1)
            self._images = SingleImageFolder(
                config.data, preprocess, channels=config.channels, cache=config.cache != "off"
            )

    def batches(self, batch_size: int, config: GanConfig, device: torch.device) -> Batches:
        """Endless batches for training."""
        if self.points is not None:
            return Fresh(self.points, batch_size, config.seed, device)
        assert self._images is not None
        if isinstance(self._images, ImageTensor):
            return Shuffled(self._images, batch_size, config.seed, device)
        kept = on_device(config.cache, [self._images], device)
        source = ResidentImages(self._images, device) if kept else self._images
        return Loaded(source, batch_size, config.seed, device, workers=config.num_threads)

    def draw(self, n: int, seed: int) -> Tensor:
        """n real samples (fewer if there are no more), the same for the same seed, on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        if self.points is not None:
            return self.points.sample(n, generator=generator)
        assert self._images is not None
        chosen = torch.randperm(len(self._images), generator=generator)[:n]
        return torch.stack([self._images[i] for i in chosen.tolist()])


def sample_shape(config: GanConfig) -> tuple[int, ...]:
    """The shape of a sample of ``config.data``: (2,) or (channels, height, width).

    Raises:
        ValueError: image settings for data that have none.
    """
    kind = config.data.partition(":")[0]
    size = 32 if config.image_size is None else config.image_size
    if size < 1:
        raise ValueError(f"image_size must be at least 1, got {size}")
    fixed = {**dict.fromkeys(points.NAMES, (2,)), "digits": (1, 8, 8), "mnist": (1, size, size), "cifar10": (3, 32, 32)}
    shape = fixed.get(kind, (config.channels, size, size))
    if config.image_size is not None and config.image_size != shape[-1]:
        raise ValueError(f"image_size must be {shape[-1]} for data {kind!r}, or left out; got {config.image_size}")
    if config.flip and kind in fixed:
        raise ValueError(f"flip is for folders of images, not for data {kind!r}")
    return shape


class GanTask(Task):
    """See the module. ``networks`` are ``critic`` (none for ``sliced``), ``generator`` and, with EMA, ``average``.

    Raises:
        ValueError: settings that do not fit each other; the message names them.
    """

    def __init__(self, config: GanConfig) -> None:
        self.config: GanConfig = config
        self.device = distributed.resolve_device(config.device)
        self.objective, self.settings = resolve(config)
        self.precision = Precision(self.device, config.amp, config.channels_last)
        random.seed_all(config.seed)
        self.data = RealData(config)
        mixture = self.data.points is not None and self.data.points.modes is not None
        known = ("sliced_w2", "modes", "high_quality") if mixture else ("sliced_w2",)
        if config.best_metric and config.best_metric not in known:
            raise ValueError(f"best_metric must be one of {', '.join(known)}, got {config.best_metric!r}")
        self.generator, self.critic = make_generator(config), make_critic(config, self.objective)
        self.precision.place(self.generator)
        distributed.join_batch_norms(self.generator)
        if distributed.size() > 1:
            share = objectives.Batch(distributed.size(), distributed.own_rows, distributed.differentiable_rows)
            self.objective = replace(self.objective, batch=share)
        self.networks: dict[str, nn.Module] = {"generator": self.generator}
        self.batches = self.data.batches(self.settings.batch_size, config, self.device)
        # Every process draws z, and what an objective draws, for the joint batch; dropout is each one's own.
        self._latent = random.Generator(config.seed + 1, self.device)
        self._draws = random.Generator(config.seed + 2, self.device)
        self._clock = _Clock()
        self._trained_generator = distributed.wrap(self.generator)
        self.optimizer_g = _optimizer(self.generator, self.settings, self.settings.lr_generator, config.fused)
        self.stateful: dict[str, Stateful] = {
            "optimizer_g": self.optimizer_g,
            "batches": self.batches,
            "latent": self._latent,
            "draws": self._draws,
            "clock": self._clock,
            "precision": self.precision,
        }
        if self.critic is not None:
            if config.fused and not mixes_samples(self.critic):
                self.objective = replace(self.objective, joint=True)
            self.precision.place(self.critic)
            distributed.join_batch_norms(self.critic)
            for module in self.critic.modules():
                if isinstance(module, MinibatchDiscrimination) and distributed.size() > 1:
                    module.all = distributed.differentiable_rows
            self.networks = {"critic": self.critic, **self.networks}
            self._trained_critic = distributed.wrap(self.critic)
            self.optimizer_d = _optimizer(self.critic, self.settings, self.settings.lr_critic, config.fused)
            self.stateful["optimizer_d"] = self.optimizer_d
        self._compiled = _compiled(config) if config.compile else None
        self._schedules = []
        if self.settings.decay == "linear":
            for name, optimizer in self.optimizers().items():
                schedule = LambdaLR(optimizer, lambda step: max(0.0, 1.0 - step / config.steps))
                self._schedules.append(schedule)
                self.stateful[f"schedule_{name.removeprefix('optimizer_')}"] = schedule
        self.average: Ema | None = None
        if config.ema:
            self.average = Ema(self.generator, config.ema)
            self.networks["average"] = self.average.module
        self.total_steps = config.steps
        self.items_per_step = self.settings.batch_size
        fixed = torch.Generator(self.device).manual_seed(config.seed + 3)
        count = config.n_samples if self.data.points is None else 16 * config.n_samples
        self._fixed_z = self.generator.latent(count, generator=fixed)
        _check_accumulate(config, self.settings, self.objective, self.networks)
        self._graphed = graphs(config, self.settings, self.device)
        self._graphs: dict[str, StepGraph] = {}
        if distributed.size() > 1:
            random.seed_all(config.seed + 100 + distributed.rank())

    @property
    def epoch(self) -> int:
        return self.batches.epoch

    def close(self) -> None:
        self.batches.close()

    # --- a step ---------------------------------------------------------------------------------------------------

    def step(self) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        with _backend(self.config.fused):
            if self.critic is not None:
                for _ in range(self.settings.schedule(self._clock.step)):
                    losses = self.critic_step(next(self.batches))
                    self.batches.prepare()
            losses.update(self.generator_step(next(self.batches) if self._needs_real else None))
        self.batches.prepare()
        for schedule in self._schedules:
            schedule.step()
        self._clock.step += 1
        return losses

    def critic_step(self, real: Tensor) -> dict[str, Tensor]:
        """One critic step on a real batch; returns its losses. The generator gets no gradient."""
        return self._run("critic", self._update_critic, {"real": self.precision.batch(real)})

    def _run(
        self, side: str, update: Callable[[Mapping[str, Tensor]], dict[str, Tensor]], inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """A step of one side, through its CUDA graph if there is one."""
        if not self._graphed:
            return update(inputs)
        if side not in self._graphs:
            optimizer = self.optimizer_g if side == "generator" else self.optimizer_d
            generators = [self._latent.generator, self._draws.generator]
            share = next(iter(self._graphs.values()), None)
            required = self.config.cuda_graph == "on"
            self._graphs[side] = StepGraph(
                update, self.device, [optimizer], generators=generators, share=share, required=required
            )
        return self._graphs[side](inputs)

    def restored(self) -> None:
        for graph in self._graphs.values():
            graph.reset()

    def _spend(self, optimizer: Optimizer) -> None:
        """Frees gradients that are used, in a graph, whose memory serves the other steps then."""
        if self._graphed:
            optimizer.zero_grad(set_to_none=True)

    def _update_critic(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert self.critic is not None
        real = inputs["real"]
        if self.settings.clip:
            with torch.no_grad():
                torch._foreach_clamp_min_(list(self.critic.parameters()), -self.settings.clip)
                torch._foreach_clamp_max_(list(self.critic.parameters()), self.settings.clip)
        with self.precision.autocast():
            with torch.no_grad():
                fake = self.generator(self._z(len(real)))
            if self._compiled is not None:
                return self._compiled_critic_step(real, fake)
        self.optimizer_d.zero_grad(set_to_none=True)
        parts = []
        for some_real, some_fake in zip(*(x.chunk(self.config.accumulate) for x in (real, fake)), strict=True):
            with self.precision.autocast():
                terms = self.objective.critic_loss(
                    self._trained_critic, some_real, some_fake, generator=self._draws.generator
                )
            parts.append(self._backward("critic", terms, len(some_real) / len(real)))
        self._limit_gradient(self.critic)
        self.precision.step(self.optimizer_d)
        self._spend(self.optimizer_d)
        self.precision.update()
        return _sum(parts)

    def _backward(self, side: str, terms: dict[str, Tensor], share: float) -> dict[str, Tensor]:
        """Adds the gradients of a part's loss; returns its share of the step's losses."""
        if share == 1:
            loss = _total(terms)
            self.precision.backward(loss)
            return _named(side, terms, loss)
        return self._backward(side, {name: term * share for name, term in terms.items()}, 1)

    def _limit_gradient(self, critic: nn.Module) -> None:
        if self.settings.grad_clip:
            self.precision.unscale(self.optimizer_d)
            nn.utils.clip_grad_norm_(critic.parameters(), self.settings.grad_clip)

    def _compiled_critic_step(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        assert self.critic is not None
        assert self._compiled is not None
        objective = self.objective
        assert isinstance(objective, WassersteinPenalty)
        alpha = draw_alpha(objective.batch, real, self._draws.generator)  # what the uncompiled step draws
        losses, gradients = self._compiled(
            self.critic, real, fake, alpha, weight=objective.weight, one_sided=objective.one_sided
        )
        assign_gradients(self.critic, gradients)
        self._limit_gradient(self.critic)
        self.optimizer_d.step()
        self._spend(self.optimizer_d)
        terms = {"real": -losses.real, "fake": losses.fake, "penalty": losses.penalty}
        return _named("critic", terms, losses.loss)

    def generator_step(self, real: Tensor | None) -> dict[str, Tensor]:
        """One generator step through the frozen critic; ``real`` for the objectives that look at it."""
        inputs = {} if real is None else {"real": self.precision.batch(real)}
        return self._run("generator", self._update_generator, inputs)

    def _update_generator(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        real = inputs.get("real", torch.empty(0, device=self.device))
        z = self._z(len(real) or self.settings.batch_size)
        critic = self.critic if self.critic is not None else _no_critic
        self.optimizer_g.zero_grad(set_to_none=True)
        parts = []
        for some_z in z.chunk(self.config.accumulate):  # what looks at real samples is not split
            with self._frozen_critic(), self.precision.autocast():
                fake = self._trained_generator(some_z)
                terms = self.objective.generator_loss(critic, real, fake, generator=self._draws.generator)
            parts.append(self._backward("generator", terms, len(some_z) / len(z)))
        self.precision.step(self.optimizer_g)
        self._spend(self.optimizer_g)
        self.precision.update()
        if self.average is not None:
            self.average.update()
        return _sum(parts)

    def _z(self, n: int) -> Tensor:
        joint = self.generator.latent(n * distributed.size(), generator=self._latent.generator)
        return distributed.own_rows(joint)

    @property
    def _needs_real(self) -> bool:
        """Whether the generator's loss looks at real samples."""
        return self.critic is None or getattr(self.objective, "feature_matching", False)

    @contextlib.contextmanager
    def _frozen_critic(self) -> Iterator[None]:
        """No weight gradients for the critic: the generator's step neither computes nor leaves any."""
        if self.critic is None:
            yield
            return
        self.critic.requires_grad_(False)
        try:
            yield
        finally:
            self.critic.requires_grad_(True)

    # --- looking at it --------------------------------------------------------------------------------------------

    def sample(self, z: Tensor) -> Tensor:
        """Samples [N, *sample_shape] of the averaged generator, if there is one, in evaluation mode."""
        return sample(self.average.module if self.average is not None else self.generator, z)

    def sheet(self) -> Image.Image | None:
        samples = self.sample(self._fixed_z)
        if self.data.points is None:
            return sheet.grid(samples)
        return scatter(samples, self.data.draw(len(samples), self.config.seed + 4))

    def evaluate(self) -> dict[str, float]:
        """Sliced W_2 between as many generated and real samples; for the Gaussians, also mode coverage."""
        generator = torch.Generator(self.device).manual_seed(self.config.seed + 5)
        samples = self.sample(self.generator.latent(self.config.n_eval, generator=generator)).float()
        return evaluate(samples, self.data, self.config.seed + 6)

    def _bytes(self) -> int:
        """Of float32 weights, and for each trained one a gradient and the optimizer's averages (Adam 2, RMSprop 1)."""
        copies = 4 if self.settings.optimizer == "adam" else 3
        return sum(4 * _count(n) * (1 if name == "average" else copies) for name, n in self.networks.items())

    def _activation_bytes(self) -> int:
        """What autograd keeps of the larger of a critic and a generator step."""
        objective, batch = replace(self.objective, batch=objectives.Batch()), self.settings.batch_size

        def make() -> list[nn.Module]:
            critic = make_critic(self.config, self.objective)
            return [make_generator(self.config), *([] if critic is None else [critic])]

        def critic_step(generator: LatentGenerator, critic: nn.Module) -> object:
            with self.precision.autocast():
                with torch.no_grad():
                    fake = generator(generator.latent(batch))
                return objective.critic_loss(critic, torch.empty_like(fake), fake)

        def generator_step(generator: LatentGenerator, critic: nn.Module | None = None) -> object:
            if critic is not None:
                critic.requires_grad_(False)
            with self.precision.autocast():
                fake = generator(generator.latent(batch))
                return objective.generator_loss(critic or _no_critic, torch.empty_like(fake), fake)

        with _backend(self.config.fused):
            steps = [generator_step] if self.critic is None else [generator_step, critic_step]
            return max(kept_for_backward(make, step) for step in steps)

    def plan(self) -> dict[str, str]:
        schedule = self.settings.schedule
        boosted = f", {schedule.boosted} in the first {schedule.first}" if schedule.first else ""
        boosted += f" and every {schedule.every}th" if schedule.every else ""
        optimizer = self.settings.optimizer
        adam = f" {self.settings.betas}" if optimizer == "adam" else ""
        return {
            "objective": f"{self.config.objective}, defaults of {self.settings.source}",
            "data": f"{self.config.data}, samples {list(self.data.shape)}",
            "networks": f"{architecture_name(self.config)}, z of {self.generator.latent_dim}",
            "step": f"{schedule.n} critic steps{boosted}, then one generator step"
            if self.critic is not None
            else "one generator step",
            "parameters": ", ".join(f"{_count(network):,} ({name})" for name, network in self.networks.items()),
            "memory": f"{self._bytes() / 2**20:.1f} MiB for weights, gradients and optimizers, "
            f"{self._activation_bytes() / 2**20:.1f} MiB kept for the backward pass",
            "batch": str(self.settings.batch_size),
            "optimizer": f"{optimizer}{adam}, lr {self.settings.lr_critic:g} (critic), "
            f"{self.settings.lr_generator:g} (generator), decay {self.settings.decay}",
        }


@torch.no_grad()
def sample(generator: nn.Module, z: Tensor) -> Tensor:
    """Samples of a generator in evaluation mode; its mode is restored."""
    training = generator.training
    generator.eval()
    try:
        samples: Tensor = generator(z)
    finally:
        generator.train(training)
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


# --- settings -----------------------------------------------------------------------------------------------------


def resolve(config: GanConfig) -> tuple[Objective, Defaults]:
    """The objective, and the settings that are not None over the authors'."""
    toy = config.data in points.NAMES
    known = objectives.options(config.objective)
    hyper = {**objectives.make(config.objective).toy} if toy else {}
    if config.amp == "fp16" and "grad_scale" in known:
        hyper["grad_scale"] = 1024.0
    for text in config.hyper:
        name, _, value = text.partition("=")
        if name not in known:
            raise ValueError(f"hyper: {config.objective!r} has no {name!r}; it has {', '.join(known)}")
        hyper[name] = _parse(name, value, known[name])
    objective = objectives.make(config.objective, **hyper)
    authors = objective.settings(architecture_name(config), toy)
    given: dict[str, Any] = {
        "optimizer": config.optimizer,
        "lr_critic": config.lr_d,
        "lr_generator": config.lr_g,
        "batch_size": config.batch_size,
        "clip": config.clip,
        "grad_clip": config.grad_clip,
        "decay": config.lr_decay,
    }
    beta1, beta2 = authors.betas
    betas = (beta1 if config.beta1 is None else config.beta1, beta2 if config.beta2 is None else config.beta2)
    own = {"n": config.n_critic, "boosted": config.boost, "first": config.boost_first, "every": config.boost_every}
    schedule = replace(authors.schedule, **{k: v for k, v in own.items() if v is not None})
    settings = replace(authors, betas=betas, schedule=schedule, **{k: v for k, v in given.items() if v is not None})
    _check(config, settings)
    return objective, settings


def _check(config: GanConfig, settings: Defaults) -> None:
    positive = {
        "steps": config.steps,
        "batch_size": settings.batch_size,
        "n_critic": settings.schedule.n,
        "boost": settings.schedule.boosted,
        "n_samples": config.n_samples,
        "n_eval": config.n_eval,
        "lr_g": settings.lr_generator,
    }
    for name, value in positive.items():
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
    schedule = settings.schedule
    not_negative = {"boost_first": schedule.first, "boost_every": schedule.every, "clip": settings.clip or 0}
    not_negative["grad_clip"] = settings.grad_clip or 0
    for name, value in {**not_negative, "lr_d": settings.lr_critic}.items():
        if value < 0:
            raise ValueError(f"{name} must be at least 0, got {value}")
    if not 0.0 <= config.ema < 1.0:
        raise ValueError(f"ema must be in [0, 1), got {config.ema}")
    if settings.optimizer == "rmsprop" and (config.beta1 is not None or config.beta2 is not None):
        raise ValueError("beta1 and beta2 are Adam's, and the optimizer is rmsprop")


def _parse(name: str, text: str, default: object) -> object:
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(f"hyper: {name} must be true or false, got {text!r}")
        return text.lower() == "true"
    try:
        return int(text) if isinstance(default, int) else float(text)
    except ValueError:
        raise ValueError(f"hyper: {name} must be a number, got {text!r}") from None


# --- networks -----------------------------------------------------------------------------------------------------


def make_generator(config: GanConfig) -> LatentGenerator:
    """The generator, drawn from the global random state."""
    return build_gan_generator(
        architecture_name(config),
        sample_shape(config),
        latent_dim=config.latent_dim,
        width=config.width_g,
        norm=config.norm_g,
    )


def make_critic(config: GanConfig, objective: Objective) -> nn.Module | None:
    """The critic that the objective requires, None for none, drawn from the global random state."""
    requires = objective.requires
    if requires.output == "none":
        return None
    if config.code_dim is not None and requires.output != "energy":
        raise ValueError(f"code_dim is for critics that are autoencoders (ebgan), not for {config.objective!r}")
    shape = sample_shape(config)
    dropout = config.dropout if config.dropout is not None else 0.5 if requires.dropout else 0.0
    if requires.dropout and not dropout:
        raise ValueError(f"objective {config.objective!r} compares two dropout passes: dropout must be above 0")
    return build_critic(
        architecture_name(config),
        shape,
        width=config.width_d,
        norm=config.norm_d,
        independent=requires.independent,
        spectral_norm=requires.spectral_norm,
        dropout=dropout,
        minibatch=config.minibatch,
        energy=requires.output == "energy",
        code_dim=min(128, max(1, math.prod(shape) // 2)) if config.code_dim is None else config.code_dim,
    )


def architecture_name(config: GanConfig) -> str:
    """The architecture asked for, or the default for the data and the objective."""
    if config.architecture is not None:
        return config.architecture
    if config.data in points.NAMES or config.data == "digits":
        return "mlp"
    return "sngan" if config.objective == "sngan" else "dcgan"


def mixes_samples(critic: nn.Module) -> bool:
    """Whether a sample's output depends on the rest of the batch."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm | MinibatchDiscrimination) for m in critic.modules())


def _compiled(config: GanConfig) -> Callable[..., tuple[CriticLosses, dict[str, Tensor]]]:
    if config.objective not in ("wgan-gp", "wgan-gp-one-sided"):
        raise ValueError(f"compile serves wgan-gp and wgan-gp-one-sided, not {config.objective!r}")
    if config.amp == "fp16" or distributed.size() > 1:
        raise ValueError("compile serves one process without fp16's loss scaling")
    return torch.compile(critic_gradients, fullgraph=True)


def graphs(config: GanConfig, settings: Defaults, device: torch.device) -> bool:
    """Whether steps are to be recorded as CUDA graphs.

    Raises:
        ValueError: ``cuda_graph`` is on, and something else prevents it; the message says what.
    """
    asks = config.amp == "fp16" and settings.optimizer == "rmsprop"
    return wants_graph(config, device, {"fp16 with rmsprop asks the device whether to step": asks})


def _optimizer(network: nn.Module, settings: Defaults, lr: float, fused: bool) -> Optimizer:
    if settings.optimizer == "rmsprop":
        return torch.optim.RMSprop(network.parameters(), lr=lr)
    # None, not False: without fused kernels the choice is PyTorch's own.
    return torch.optim.Adam(network.parameters(), lr=lr, betas=settings.betas, fused=True if fused else None)


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _no_critic(x: Tensor) -> Tensor:
    raise RuntimeError("this objective has no critic")


def _backend(fused: bool) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if fused else use_backend("reference")


def _total(terms: dict[str, Tensor]) -> Tensor:
    first, *rest = terms.values()
    for term in rest:
        first = first + term
    return first


def _sum(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: _total({str(k): part[name] for k, part in enumerate(parts)}) for name in parts[0]}


def _check_accumulate(
    config: GanConfig, settings: Defaults, objective: Objective, networks: Mapping[str, nn.Module]
) -> None:
    """Raises ValueError if a batch in parts has another loss than the batch."""
    if not 1 <= config.accumulate <= settings.batch_size:
        raise ValueError(f"accumulate must be between 1 and batch_size {settings.batch_size}, got {config.accumulate}")
    whole = isinstance(objective, Sliced | RegretAnalytic) or any(
        getattr(objective, name, False) for name in ("feature_matching", "pulling_away")
    )
    mixing = [name for name, network in networks.items() if mixes_samples(network)]
    for reason, holds in (
        (f"objective {config.objective!r} looks at the batch as a whole", whole),
        (f"the {' and the '.join(mixing)} mixes samples (batch norm or minibatch discrimination)", bool(mixing)),
        ("compile takes the critic's batch whole", config.compile),
    ):
        if holds and config.accumulate > 1:
            raise ValueError(f"accumulate must be 1: {reason}")


def _named(side: str, terms: dict[str, Tensor], loss: Tensor) -> dict[str, Tensor]:
    """Losses as they are logged: the whole, and its terms where there are several."""
    losses = {f"{side}_{name}": term.detach() for name, term in terms.items()} if len(terms) > 1 else {}
    return {**losses, side: loss.detach()}


class _Clock:
    """Counts generator steps."""

    def __init__(self) -> None:
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


# --- running ------------------------------------------------------------------------------------------------------


def train(config: GanConfig) -> Outcome:
    """Trains a GAN, or continues to. One process, or as many as torchrun started."""
    with distributed.session(distributed.resolve_device(config.device)):
        return fit(GanTask(config))
