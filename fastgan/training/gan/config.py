"""The settings of the GAN trainer, the authors' defaults among them, and which of them fit together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from fastgan import objectives
from fastgan._ranges import check_choice, check_range
from fastgan.data import points
from fastgan.data.resident import Cache
from fastgan.models.gan import ARCHITECTURES, NORMS
from fastgan.objectives import Defaults, Objective
from fastgan.objectives.dragan import RegretAnalytic
from fastgan.training.graph import wants_graph
from fastgan.training.task import RunConfig

DATA = f"{', '.join(points.NAMES)}, digits, mnist:DIR, cifar10:DIR or a folder of images"


@dataclass(frozen=True)
class GanConfig(RunConfig):
    """Settings of the GAN trainer. None means the authors' value for the objective (``fastgan.objectives``)."""

    name: str = "gan"
    """The run's name: its files are in checkpoints_dir/name."""
    objective: str = "wgan-gp"
    """What critic and generator minimise: one of the names above."""
    hyper: tuple[str, ...] = ()
    """Hyper-parameters of the objective, as name=value: weight=5 real_label=0.9 feature_matching=true …"""
    data: str = "8gaussians"
    """8gaussians, 25gaussians, swissroll, digits, mnist:DIR, cifar10:DIR (binary version), or a folder of images."""
    image_size: int | None = None
    """Height and width to which a folder's images are resized, or MNIST's padded; 32 by default."""
    channels: Literal[1, 3, 4] = 3
    """Of the images of a folder: grey, colour, or colour and transparency."""
    flip: bool = False
    """Mirror images of a folder or of CIFAR-10 with probability ½."""
    dequantize: bool = False
    """Add noise of one grey level to digits, MNIST or CIFAR-10, as WGAN-GP's and SN-GAN's codes for ResNets do."""
    cache: Cache = "auto"
    """Keep a folder's decoded images in memory (on) or on the device; auto: below 2 GB, or a tenth of a GPU's."""
    architecture: str | None = None
    """mlp, dcgan, wgan-gp, resnet or sngan; by default mlp for points and digits, else dcgan (sngan for sngan)."""
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
    """Size of an autoencoding critic's code; ebgan: 128, or half of what a smaller sample has, but at least 32."""
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
    """Split a step's batch into so many parts to save memory; batch norm sees one part at a time."""
    recompute: bool = False
    """Keep few activations and recompute the others in the backward pass, to save memory."""
    compile: bool = False
    """torch.compile the networks, and the whole critic step of wgan-gp and wgan-gp-one-sided as one graph."""
    ema: float = 0.0
    """Decay of the generator's average, which sheets, samples and evaluations then use; 0: none."""
    n_samples: int = 64
    """Images on a sheet; 16 times as many points."""
    n_eval: int = 2048
    """Samples that an evaluation (eval_freq) compares with as many real ones."""

    # What describes the critic and its steps.
    CRITIC: ClassVar[tuple[str, ...]] = (
        "width_d", "norm_d", "dropout", "minibatch", "code_dim", "n_critic", "boost", "boost_first", "boost_every",
        "lr_d", "clip", "grad_clip",
    )  # fmt: skip
    FREE: ClassVar[frozenset[str]] = RunConfig.FREE | {"n_samples", "n_eval", "cache", "recompute"}


def architecture_name(config: GanConfig) -> str:
    """The architecture asked for, or the default for the data and the objective."""
    if config.architecture is not None:
        return config.architecture
    if config.data in points.NAMES or config.data == "digits":
        return "mlp"
    return "sngan" if config.objective == "sngan" else "dcgan"


def sample_shape(config: GanConfig) -> tuple[int, ...]:
    """The shape of a sample of ``config.data``: (2,) or (channels, height, width).

    Raises:
        ValueError: image settings for data that have none.
    """
    kind, colon, folder = config.data.partition(":")
    size = 32 if config.image_size is None else config.image_size
    check_range("image_size", size, least=1)
    fixed = {**dict.fromkeys(points.NAMES, (2,)), "digits": (1, 8, 8), "mnist": (1, size, size), "cifar10": (3, 32, 32)}
    shape = fixed.get(kind, (config.channels, size, size))
    if kind in fixed and (kind in ("mnist", "cifar10")) != bool(colon and folder):
        raise ValueError(f"data must be {DATA}, got {config.data!r}")
    of_folders, in_memory = kind not in fixed, kind in ("digits", "mnist", "cifar10")
    for name, given, used, purpose in (
        ("image_size", config.image_size is not None, kind not in points.NAMES, "images"),
        ("flip", config.flip, of_folders or kind == "cifar10", "folders of images and CIFAR-10"),
        ("dequantize", config.dequantize, in_memory, "digits, MNIST and CIFAR-10"),
        ("channels", config.channels not in (3, shape[0]), of_folders, "folders of images"),
        ("cache", config.cache != "auto", of_folders, "folders of images"),
    ):
        if given and not used:
            raise ValueError(f"{name} is for {purpose}, not for data {kind!r}")
    if config.image_size is not None and config.image_size != shape[-1]:
        raise ValueError(f"image_size must be {shape[-1]} for data {kind!r}, or left out; got {config.image_size}")
    return shape


def resolve(config: GanConfig) -> tuple[Objective, Defaults]:
    """The objective, and the settings that are not None over the authors'."""
    config.check()
    check_choice("objective", config.objective, tuple(objectives.OBJECTIVES))
    toy = config.data in points.NAMES
    known = {name: value for name, value in objectives.options(config.objective).items() if name != "joint"}
    hyper = {**objectives.make(config.objective).toy} if toy else {}
    if config.amp == "fp16" and "grad_scale" in known:
        hyper["grad_scale"] = 1024.0
    for text in config.hyper:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"hyper must be name=value, got {text!r}")
        if name not in known:
            raise ValueError(f"hyper: {config.objective!r} has no {name!r}; it has {', '.join(known) or 'none'}")
        hyper[name] = _parse(name, value, known[name])
    objective = objectives.make(config.objective, **hyper)
    authors = objective.settings(architecture_name(config), toy, large=min(sample_shape(config)[1:], default=0) >= 64)
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
    _check(config, settings, objective)
    return objective, settings


def _check(config: GanConfig, settings: Defaults, objective: Objective) -> None:
    """Raises ValueError if a number is out of its range, or an option has no meaning beside another."""
    schedule = settings.schedule
    check_choice("architecture", architecture_name(config), tuple(ARCHITECTURES))
    for name, norm in (("norm_g", config.norm_g), ("norm_d", config.norm_d)):
        check_choice(name, norm or "none", NORMS)
    if objective.requires.independent and (config.norm_d == "batch" or config.minibatch):
        name = "norm_d batch" if config.norm_d == "batch" else f"minibatch {config.minibatch}"
        raise ValueError(f"{name} mixes samples, and objective {config.objective!r} needs each judged alone")
    at_least_one: dict[str, float | None] = {
        "steps": config.steps,
        "batch_size": settings.batch_size,
        "n_critic": schedule.n,
        "boost": schedule.boosted,
        "latent_dim": config.latent_dim,
        "width_g": config.width_g,
        "width_d": config.width_d,
        "code_dim": config.code_dim,
        "accumulate": config.accumulate,
        "n_samples": config.n_samples,
    }
    not_negative: dict[str, float | None] = {
        "boost_first": schedule.first,
        "boost_every": schedule.every,
        "minibatch": config.minibatch,
        "lr_d": settings.lr_critic,
        "clip": settings.clip,
        "grad_clip": settings.grad_clip,
    }
    below_one: dict[str, float | None] = {
        "beta1": settings.betas[0],
        "beta2": settings.betas[1],
        "dropout": config.dropout,
        "ema": config.ema,
    }
    for least, named in ((1, at_least_one), (0, not_negative)):
        for name, value in named.items():
            if value is not None:
                check_range(name, value, least=least)
    for name, value in below_one.items():
        if value is not None:
            check_range(name, value, least=0, below=1)
    check_range("lr_g", settings.lr_generator, above=0)
    check_range("n_eval", config.n_eval, least=2)
    if settings.optimizer == "rmsprop" and (config.beta1 is not None or config.beta2 is not None):
        raise ValueError("beta1 and beta2 are Adam's, and the optimizer is rmsprop")
    if config.boost is not None and not (schedule.first or schedule.every):
        raise ValueError("boost says how many critic steps some generator steps get: set boost_first or boost_every")
    if config.boost is None and (schedule.first or schedule.every) and schedule.boosted == Defaults.schedule.boosted:
        name = "boost_first" if schedule.first else "boost_every"
        raise ValueError(f"{name} says which generator steps get boost critic steps: set boost")
    of_critics = config.given(*config.CRITIC)
    if of_critics and objective.requires.output == "none":
        raise ValueError(f"{of_critics[0]} is the critic's, and objective {config.objective!r} has none")
    if config.channels_last == "on" and architecture_name(config) == "mlp":
        raise ValueError("channels_last is for convolutions, and architecture 'mlp' has none")
    if config.save_epoch_freq and config.data in points.NAMES:
        raise ValueError(f"save_epoch_freq counts epochs, and data {config.data!r} has none: set save_latest_freq")
    if config.compile and config.recompute:
        raise ValueError("recompute is for networks that are not compiled: torch.compile itself decides what to keep")


def _parse(name: str, text: str, default: object) -> object:
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(f"hyper: {name} must be true or false, got {text!r}")
        return text.lower() == "true"
    try:
        return int(text) if isinstance(default, int) else float(text)
    except ValueError:
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise ValueError(f"hyper: {name} must be {kind}, got {text!r}") from None


def graphs(config: GanConfig, settings: Defaults, device: torch.device, *, dropout: bool = False) -> bool:
    """Whether steps are to be recorded as CUDA graphs; ``dropout``: whether a network has any.

    Raises:
        ValueError: ``cuda_graph`` is on, and something else prevents it; the message says what.
    """
    obstacles = {
        "fp16 with rmsprop asks the device whether to step": config.amp == "fp16" and settings.optimizer == "rmsprop",
        "recompute with dropout keeps random states": config.recompute and dropout,
    }
    return wants_graph(config, device, obstacles)


def check_accumulate(config: GanConfig, settings: Defaults, objective: Objective) -> None:
    """Raises ValueError if the loss of a batch is no mean of its parts' losses."""
    if config.accumulate > settings.batch_size:
        raise ValueError(
            f"accumulate must be between 1 and batch_size {settings.batch_size}, that of the whole step, got "
            f"{config.accumulate}"
        )
    options = [f" with {name}" for name in ("feature_matching", "pulling_away") if getattr(objective, name, False)]
    whole = bool(options) or objective.requires.real or isinstance(objective, RegretAnalytic)
    for reason, holds in (
        (f"objective {config.objective!r}{''.join(options)} looks at the batch as a whole", whole),
        (f"minibatch {config.minibatch} compares the samples of a batch", config.minibatch > 0),
    ):
        if holds and config.accumulate > 1:
            raise ValueError(f"accumulate must be 1: {reason}; recompute, or a smaller batch_size, saves memory too")
