"""The settings of CycleGAN, and which of them fit together."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch

from fastgan._ranges import check_range
from fastgan.data.resident import Cache
from fastgan.models.cyclegan import GENERATOR_NAMES, is_generator
from fastgan.training import schedule
from fastgan.training.graph import wants_graph
from fastgan.training.precision import Switch
from fastgan.training.task import RunConfig

GanMode = Literal["lsgan", "vanilla", "wgangp", "hinge"]
PreprocessMode = Literal["resize_and_crop", "crop", "scale_width", "scale_width_and_crop", "none"]


@dataclass(frozen=True, kw_only=True)
class CycleGanConfig(RunConfig):
    """Settings of CycleGAN. Names and defaults are those of the authors' command line."""

    name: str = "cyclegan"
    """The run's name: its files are in checkpoints_dir/name."""
    dataroot: Path
    """Folder with trainA/ and trainB/ (and testA/, testB/ for sheets and evaluation)."""
    direction: Literal["AtoB", "BtoA"] = "AtoB"
    """BtoA: the folders change places."""
    input_nc: int = 3
    """Channels of domain A: 3 for RGB, 1 for grey."""
    output_nc: int = 3
    """Channels of domain B."""
    netG: str = "resnet_9blocks"
    """resnet_9blocks, resnet_6blocks (any count), unet_128 or unet_256 (any power of two from 32)."""
    netD: Literal["basic", "n_layers", "pixel"] = "basic"
    """basic: the 70x70 PatchGAN; n_layers: a PatchGAN of n_layers_D; pixel: 1x1."""
    ngf: int = 64
    """Generator channels after the first convolution."""
    ndf: int = 64
    """Discriminator channels after the first convolution."""
    n_layers_D: int = 3
    """Strided convolutions of netD n_layers."""
    norm: Literal["instance", "batch", "none"] = "instance"
    """Normalisation of all networks."""
    no_dropout: bool = True
    """No dropout in the generators."""
    init_type: Literal["normal", "xavier", "kaiming", "orthogonal"] = "normal"
    """Initialisation of the weights."""
    init_gain: float = 0.02
    """Its scale."""
    pretrained: Path | None = None
    """Begin with the weights of an official run: a folder with latest_net_G_A.pth and so on."""
    gan_mode: GanMode = "lsgan"
    """lsgan: least squares; vanilla: cross-entropy; wgangp: Wasserstein with a gradient penalty; hinge."""
    lambda_A: float = 10.0
    """Weight of the cycle loss A -> B -> A."""
    lambda_B: float = 10.0
    """Weight of the cycle loss B -> A -> B."""
    lambda_identity: float = 0.5
    """Weight of the identity loss, in units of lambda_A and lambda_B; 0: none."""
    lambda_gp: float = 10.0
    """Weight of the gradient penalty of wgangp."""
    gp_one_sided: bool = False
    """wgangp: penalise gradient norms above 1 only."""
    pool_size: int = 50
    """Generated images that the discriminators' pools hold; 0: none."""
    n_epochs: int = 100
    """Epochs at the initial learning rate."""
    n_epochs_decay: int = 100
    """Epochs over which policy linear takes it to zero."""
    epoch_count: int = 1
    """The first epoch's number, for schedules that continue an official run."""
    lr: float = 2e-4
    """Adam's learning rate."""
    beta1: float = 0.5
    """Adam's first beta; the second is 0.999."""
    lr_policy: schedule.Policy = "linear"
    """linear, step, cosine, or plateau (of the epoch's mean cycle and identity loss)."""
    lr_decay_iters: int = 50
    """Policy step: epochs between falls of the learning rate to a tenth."""
    batch_size: int = 1
    """Pairs in a step, of each process."""
    load_size: int = 286
    """Images are scaled to this size, but with preprocess crop or none."""
    crop_size: int = 256
    """Then cropped to this size, but with preprocess none; scale_width: their least height."""
    preprocess: PreprocessMode = "resize_and_crop"
    """How images are scaled and cropped."""
    no_flip: bool = False
    """No random horizontal flips."""
    serial_batches: bool = False
    """Take A and B in their order, not at random."""
    max_dataset_size: int | None = None
    """Use only so many images of each folder."""
    cache: Cache = "auto"
    """Keep decoded images in memory (on) or on the device; auto: if resize_and_crop, below 2 GB or a GPU's tenth."""
    ema: float = 0.0
    """Decay of averaged generators, used for sheets, evaluation and translation; 0: none."""
    accumulate: int = 1
    """Split a step's batch into so many parts to save memory; batch norm sees one part at a time."""
    recompute: bool = False
    """Recompute the generators' activations in the backward pass to save memory."""
    batched_calls: Switch = "auto"
    """Join calls that share weights: G_A on [A; B], …; auto: if fused, unless norm is batch or there is dropout."""
    compile: bool = False
    """torch.compile the networks."""
    save_epoch_freq: int = 5
    """Save a checkpoint every this many epochs; 0: only as save_latest_freq says, and at the end."""

    @property
    def joins_calls(self) -> bool:
        """Whether calls that share weights are one."""
        if self.batched_calls != "auto":
            return self.batched_calls == "on"
        return self.fused and self.norm != "batch" and self.no_dropout

    @property
    def least_judged(self) -> int:
        """The least height and width of images that the discriminators can judge."""
        layers = {"basic": 3, "n_layers": self.n_layers_D}
        return 3 << layers[self.netD] if self.netD in layers else 1

    FREE = RunConfig.FREE | {"dataroot", "pretrained", "cache", "recompute"}
    REMARKS: ClassVar[dict[str, str]] = {"epoch_count": " (a run knows its epoch: give what it began with)"}


def check(config: CycleGanConfig) -> None:
    """Raises ValueError if settings are out of their range or contradict each other."""
    config.check()
    at_least = {
        1: ("batch_size", "accumulate", "lr_decay_iters", "epoch_count", "input_nc", "output_nc", "ngf", "ndf",
            "n_layers_D", "load_size", "crop_size", "max_dataset_size"),
        0: ("lr", "n_epochs", "n_epochs_decay", "lambda_A", "lambda_B", "lambda_identity", "lambda_gp", "pool_size"),
    }  # fmt: skip
    for least, names in at_least.items():
        for name in names:
            if getattr(config, name) is not None:
                check_range(name, getattr(config, name), least=least)
    check_range("init_gain", config.init_gain, above=0)
    for name in ("beta1", "ema"):
        check_range(name, getattr(config, name), least=0, below=1)
    if not is_generator(config.netG):
        raise ValueError(f"netG must be {GENERATOR_NAMES}, got {config.netG!r}")
    _check_used(config)
    side = config.crop_size if "crop" in config.preprocess else config.load_size
    if config.preprocess != "none" and side < config.least_judged:
        raise ValueError(
            f"netD {config.netD} needs images of at least {config.least_judged} pixels, got {side}; "
            "use a smaller n_layers_D with netD n_layers"
        )
    if config.lambda_identity > 0 and config.input_nc != config.output_nc:
        raise ValueError(
            "the identity loss needs as many input as output channels "
            f"(got input_nc {config.input_nc}, output_nc {config.output_nc}); set lambda_identity 0"
        )
    if config.lr_policy == "cosine" and config.n_epochs < 1:
        raise ValueError("lr_policy cosine takes n_epochs to reach 0: n_epochs must be at least 1, got 0")
    if config.gan_mode == "wgangp" and config.preprocess in ("none", "scale_width"):
        raise ValueError(
            "gan_mode wgangp interpolates between images of both domains, which needs one size: preprocess must be "
            f"resize_and_crop, crop or scale_width_and_crop, got {config.preprocess}"
        )
    if config.gan_mode == "wgangp" and config.norm == "batch":
        raise ValueError("gan_mode wgangp penalises each sample's gradient: norm must be instance or none, got batch")
    if config.batched_calls == "on" and config.norm == "batch":
        raise ValueError("batched_calls changes the result of norm batch; it needs norm instance or none")
    if config.accumulate > config.batch_size:
        raise ValueError(
            f"accumulate must be between 1 and batch_size {config.batch_size}, that of the whole step, got "
            f"{config.accumulate}"
        )
    if config.n_epochs + config.n_epochs_decay < config.epoch_count:
        raise ValueError(
            f"nothing to train: epoch_count {config.epoch_count} is past n_epochs {config.n_epochs} + "
            f"n_epochs_decay {config.n_epochs_decay}"
        )


def _check_used(config: CycleGanConfig) -> None:
    """Raises ValueError if an option is set that has no effect beside the others."""
    uses: dict[tuple[str, ...], tuple[bool, str]] = {
        ("lambda_gp", "gp_one_sided"): (config.gan_mode == "wgangp", f"gan_mode wgangp, got {config.gan_mode}"),
        ("n_layers_D",): (config.netD == "n_layers", f"netD n_layers, got {config.netD}"),
        ("lambda_identity",): (
            config.lambda_A + config.lambda_B > 0 or config.lambda_identity == 0,
            "identity losses in units of lambda_A and lambda_B, which are 0",
        ),
        ("lr_decay_iters",): (config.lr_policy == "step", f"lr_policy step, got {config.lr_policy}"),
        ("init_type", "init_gain"): (config.pretrained is None, "new weights, and pretrained gives them all"),
        ("init_gain",): (
            config.init_type != "kaiming" or config.norm == "batch",
            "init_type normal, xavier and orthogonal, got kaiming, which has no gain",
        ),
        ("no_dropout",): (config.netG != "unet_32", "generators that may have dropout, and netG unet_32 has none"),
    }
    check_sizes(config.preprocess, config.given("load_size", "crop_size"))
    for names, (used, purpose) in uses.items():
        given = config.given(*names)
        if given and not used:
            raise ValueError(f"{given[0]} is for {purpose}")


def check_sizes(preprocess: PreprocessMode, given: Collection[str]) -> None:
    """Raises ValueError if one of ``given``, names of sizes that were set, is not looked at with ``preprocess``."""
    for name in {"none": ("load_size", "crop_size"), "crop": ("load_size",)}.get(preprocess, ()):
        if name in given:
            raise ValueError(f"{name} is not looked at with preprocess {preprocess}: leave it out")


def graphs(config: CycleGanConfig, device: torch.device) -> bool:
    """Whether steps are to be recorded as CUDA graphs.

    Raises:
        ValueError: ``cuda_graph`` is on, and something else prevents it; the message says what.
    """
    return wants_graph(
        config,
        device,
        {
            f"preprocess {config.preprocess} leaves images their own sizes": "crop" not in config.preprocess,
            "recompute with dropout keeps random states": config.recompute and not config.no_dropout,
        },
    )
