"""CycleGAN (Zhu et al. 2017, arXiv:1703.10593), step by step as the authors' code trains it.

One step on images A and B::

    fake_B = G_A(A), rec_A = G_B(fake_B), fake_A = G_B(B), rec_B = G_A(fake_A)
    loss_G = GAN(D_A(fake_B), 1) + GAN(D_B(fake_A), 1)
           + λ_A L1(rec_A, A) + λ_B L1(rec_B, B) + λ_idt (λ_B L1(G_A(B), B) + λ_A L1(G_B(A), A))
    one Adam step of both G, with both D frozen
    loss_D_A = ½ (GAN(D_A(B), 1) + GAN(D_A(pool(fake_B)), 0)), loss_D_B likewise
    one Adam step of both D

GAN is least squares, cross-entropy, hinge, or Wasserstein with a gradient penalty (which the authors' option lacks).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastgan.functional as F
from fastgan.data import PairedImageFolder, Preprocess, UnpairedImageFolder
from fastgan.data.decode import list_images
from fastgan.data.resident import ResidentPairs, on_device
from fastgan.kernels.dispatch import use_backend
from fastgan.metrics import PairedScores, sliced_wasserstein_patches
from fastgan.models import build_discriminator, build_generator, load_official
from fastgan.nn import fuse
from fastgan.training import distributed, random, schedule, sheet
from fastgan.training.ema import Ema
from fastgan.training.graph import StepGraph, wants_graph
from fastgan.training.loader import Loader, Source
from fastgan.training.loop import Outcome, fit
from fastgan.training.memory import kept_for_backward
from fastgan.training.pool import ImagePool, StaticPool
from fastgan.training.precision import Cache, Precision
from fastgan.training.prefetch import Prefetcher
from fastgan.training.task import RunConfig, Stateful, Task

if TYPE_CHECKING:
    from PIL import Image

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
    """Images are scaled to this size."""
    crop_size: int = 256
    """Then cropped to this size."""
    preprocess: PreprocessMode = "resize_and_crop"
    """How images are scaled and cropped."""
    no_flip: bool = False
    """No random horizontal flips."""
    serial_batches: bool = False
    """Take A and B in their order, not at random."""
    max_dataset_size: int | None = None
    """Use only so many images of each folder."""
    cache: Cache = "auto"
    """Decode and scale all images once and keep them in memory (on), or on the device, to be cropped and mirrored there
    (device); auto: if they surely take less than 2 GB; on a GPU, there if they take less than a tenth of its memory."""
    ema: float = 0.0
    """Decay of averaged generators, used for sheets, evaluation and translation; 0: none."""
    accumulate: int = 1
    """Split a step's batch into so many parts to save memory."""
    recompute: bool = False
    """Recompute the generators' activations in the backward pass to save memory."""
    batched_calls: bool = False
    """Join calls that share weights (G_A on [A; B], D on [real; fake]); the same result, as norms are per sample."""
    compile: bool = False
    """torch.compile the networks."""
    save_epoch_freq: int = 5
    """Save a checkpoint every this many epochs; 0: only as save_latest_freq says, and at the end."""

    FREE = RunConfig.FREE | {"dataroot", "pretrained", "cache"}


class CycleGan(Task):
    """The trainer.

    Args:
        config: see :class:`CycleGanConfig`.
        train: a source of ``{"A": [C, H, W], "B": [C, H, W]}`` in [−1, 1].
        test: a source of held-out pairs for sheets and, when ``paired``, for evaluation; or None.
        paired: whether item i of ``test`` is one thing in both domains.

    Raises:
        ValueError: settings that contradict each other, or no such device.
    """

    config: CycleGanConfig

    def __init__(
        self, config: CycleGanConfig, train: Source, test: Source | None = None, *, paired: bool = False
    ) -> None:
        check(config)
        if config.eval_freq and test is None:
            raise ValueError(f"eval_freq evaluates held-out images: {config.dataroot} has no testA and testB")
        known = [f"{name}_{domain}" for name in (*(("l1", "psnr", "ssim") if paired else ()), "swd") for domain in "BA"]
        if config.best_metric and config.best_metric not in known:
            why = "" if paired else " (the files of testA and testB have other names, so they are no pairs)"
            raise ValueError(f"best_metric must be one of {', '.join(known)}{why}, got {config.best_metric!r}")
        self.config = config
        self.device = distributed.resolve_device(config.device)
        self.precision = Precision(self.device, config.amp, config.channels_last, fused=config.fused)
        random.seed_all(config.seed)
        self.networks = build_networks(config)
        if config.pretrained is not None:
            for name, network in self.networks.items():
                load_official(network, config.pretrained / f"latest_net_{name}.pth")
        for network in self.networks.values():
            if config.fused:
                fuse(network)
            self.precision.place(network)
            distributed.join_batch_norms(network)
        self._run = {name: _prepare(network, config.compile) for name, network in self.networks.items()}
        betas = (config.beta1, 0.999)
        self.optimizer_G, self.optimizer_D = (
            torch.optim.Adam(
                itertools.chain(self.networks[a].parameters(), self.networks[b].parameters()),
                lr=config.lr,
                betas=betas,
                fused=True if config.fused else None,  # None: PyTorch's own choice
            )
            for a, b in (("G_A", "G_B"), ("D_A", "D_B"))
        )
        self.schedules = [
            schedule.make(
                optimizer,
                config.lr_policy,
                n_epochs=config.n_epochs,
                n_epochs_decay=config.n_epochs_decay,
                epoch_count=config.epoch_count,
                lr_decay_iters=config.lr_decay_iters,
            )
            for optimizer in (self.optimizer_G, self.optimizer_D)
        ]
        self._graphed = graphs(config, self.device)
        pool = StaticPool if self._graphed else ImagePool
        self.pools = {name: pool(config.pool_size, config.seed + k) for k, name in enumerate(("D_A", "D_B"))}
        self._alpha = random.Generator(config.seed + 2)
        self.ema = {name: Ema(self.networks[name], config.ema) for name in ("G_A", "G_B") if config.ema}
        self._train, self._resident = train, resident(config, train, self.device)
        self.loader = Prefetcher(
            Loader(
                train if self._resident is None else self._resident,
                config.batch_size,
                seed=config.seed,
                shuffle=not config.serial_batches,
                workers=config.num_threads if self._resident is None else 0,  # four numbers an image
                pin_memory=self.device.type == "cuda",
            ),
            self._place,
            self.device,
        )
        self._test, self.paired = test, paired
        self._graphs: dict[bool, StepGraph] = {}
        self._epoch_l1 = _Mean()
        self.stateful: dict[str, Stateful] = {
            "G": self.optimizer_G,
            "D": self.optimizer_D,
            "schedule_G": self.schedules[0],
            "schedule_D": self.schedules[1],
            "pool_D_A": self.pools["D_A"],
            "pool_D_B": self.pools["D_B"],
            "alpha": self._alpha,
            "loader": self.loader,
            "precision": self.precision,
            "epoch_l1": self._epoch_l1,
            **{f"ema_{name}": ema for name, ema in self.ema.items()},
        }
        epochs = config.n_epochs + config.n_epochs_decay - config.epoch_count + 1
        self.total_steps = epochs * self.loader.batches_per_epoch
        self.items_per_step = config.batch_size
        # From here on each process draws its own: dropout masks differ between them.
        random.seed_all(config.seed + distributed.rank())

    @property
    def epoch(self) -> int:
        return self.loader.epoch

    # --- the algorithm --------------------------------------------------------------------------------------------

    def step(self) -> dict[str, Tensor]:
        epoch = self.loader.epoch
        batch = next(self.loader)
        done = self.loader.epoch * self.loader.batches_per_epoch + self.loader.batch
        losses = self.update(batch["A"], batch["B"], apart=done % self.config.print_freq == 0)
        self._epoch_l1.add(losses["l1"])
        if self.loader.epoch > epoch:
            metric = self._epoch_l1.take()
            for each in self.schedules:
                schedule.advance(each, metric)
        self.loader.prepare()
        return losses

    def _place(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Both domains' images on the device."""
        if self._resident is not None:
            batch = self._resident.finish(batch)
        return {name: self.precision.batch(batch[name]) for name in "AB"}

    def update(self, real_A: Tensor, real_B: Tensor, *, apart: bool = True) -> dict[str, Tensor]:
        """One step on [N, C, H, W] images in [−1, 1]: updates all networks, returns the losses.

        Losses have the authors' names: D_A, G_A, cycle_A, idt_A and those of B, and "l1" for the sum of the cycle and
        identity terms. The fused operator computes that sum alone; without ``apart`` its terms are left out.
        """
        inputs = {"A": real_A, "B": real_B}
        for name, pool in self.pools.items():  # D_A's numbers, then D_B's
            inputs[f"pool_{name}"] = pool.decide(len(real_A))
        if self.config.gan_mode == "wgangp":
            for name in self.pools:
                inputs[f"alpha_{name}"] = self._draw_alpha(len(real_A))
        if not self._graphed:
            return self._update(inputs, apart)
        if apart not in self._graphs:
            self._graphs[apart] = StepGraph(
                partial(self._update, apart=apart),
                self.device,
                [self.optimizer_G, self.optimizer_D],
                share=next(iter(self._graphs.values()), None),
                required=self.config.cuda_graph == "on",
            )
        return self._graphs[apart](inputs)

    def restored(self) -> None:
        for graph in self._graphs.values():
            graph.reset()

    def _update(self, inputs: Mapping[str, Tensor], apart: bool) -> dict[str, Tensor]:
        """:meth:`update` with all that is drawn for it on the host: the part that a graph holds."""
        real_A, real_B = inputs["A"], inputs["B"]
        parts = list(zip(real_A.chunk(self.config.accumulate), real_B.chunk(self.config.accumulate), strict=True))
        shares = [len(a) / len(real_A) for a, _ in parts]

        self._freeze_discriminators(True)
        self.optimizer_G.zero_grad(set_to_none=True)
        results = []
        for k, (a, b) in enumerate(parts):
            with self._backend(), self._sync(("G_A", "G_B"), k == len(parts) - 1):
                with self.precision.autocast():
                    total, losses, fakes = self._generator_losses(a, b, apart)
                self.precision.backward(total if len(parts) == 1 else total * shares[k])
            results.append((losses, fakes))
        self.precision.step(self.optimizer_G)
        self._spend(self.optimizer_G)
        mean = _weighted([losses for losses, _ in results], shares)
        fake_B = torch.cat([fakes[0] for _, fakes in results]) if len(parts) > 1 else results[0][1][0]
        fake_A = torch.cat([fakes[1] for _, fakes in results]) if len(parts) > 1 else results[0][1][1]
        del results

        self._freeze_discriminators(False)
        self.optimizer_D.zero_grad(set_to_none=True)
        for name, reals, fake in (
            ("D_A", [b for _, b in parts], fake_B),
            ("D_B", [a for a, _ in parts], fake_A),
        ):
            rows = [len(real) for real in reals]
            fakes = self.pools[name].exchange(fake, inputs[f"pool_{name}"]).split(rows)
            alphas = inputs[f"alpha_{name}"].split(rows) if self.config.gan_mode == "wgangp" else [None] * len(rows)
            terms = []
            for k, (real, generated, alpha) in enumerate(zip(reals, fakes, alphas, strict=True)):
                with self._backend(), self._sync((name,), k == len(reals) - 1):
                    with self.precision.autocast():
                        loss = self._discriminator_loss(name, real, generated, alpha)
                    self.precision.backward(loss if len(reals) == 1 else loss * shares[k])
                terms.append({name: loss.detach()})
            mean.update(_weighted(terms, shares))
        self.precision.step(self.optimizer_D)
        self._spend(self.optimizer_D)
        self.precision.update()
        for ema in self.ema.values():
            ema.update()
        return mean

    def _spend(self, optimizer: torch.optim.Optimizer) -> None:
        """Frees gradients that are used, in a graph, whose memory serves the rest of the step then."""
        if self._graphed:
            optimizer.zero_grad(set_to_none=True)

    def _generator_losses(
        self, real_A: Tensor, real_B: Tensor, apart: bool
    ) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, Tensor]]:
        """The generators' loss, its terms, and (fake_B, fake_A)."""
        config = self.config
        identity = config.lambda_identity > 0
        idt_A = idt_B = None
        if config.batched_calls and identity:
            fake_B, idt_A = self._generate("G_A", torch.cat([real_A, real_B])).chunk(2)
            fake_A, idt_B = self._generate("G_B", torch.cat([real_B, real_A])).chunk(2)
            rec_A, rec_B = self._generate("G_B", fake_B), self._generate("G_A", fake_A)
        else:
            fake_B = self._generate("G_A", real_A)
            rec_A = self._generate("G_B", fake_B)
            fake_A = self._generate("G_B", real_B)
            rec_B = self._generate("G_A", fake_A)
            if identity:
                idt_A, idt_B = self._generate("G_A", real_B), self._generate("G_B", real_A)
        adversarial_A = gan_loss(self._judge("D_A", fake_B), True, config.gan_mode)
        adversarial_B = gan_loss(self._judge("D_B", fake_A), True, config.gan_mode)
        pairs = {"cycle_A": (rec_A, real_A, config.lambda_A), "cycle_B": (rec_B, real_B, config.lambda_B)}
        if idt_A is not None and idt_B is not None:
            pairs["idt_A"] = (idt_A, real_B, config.lambda_B * config.lambda_identity)
            pairs["idt_B"] = (idt_B, real_A, config.lambda_A * config.lambda_identity)
        losses = {"G_A": adversarial_A, "G_B": adversarial_B}
        if config.fused:
            l1 = F.weighted_l1(list(pairs.values()))
            total = adversarial_A + adversarial_B + l1
            if apart:
                with torch.no_grad():
                    losses |= {name: _l1(*pair) for name, pair in pairs.items()}
        else:
            terms = {name: _l1(*pair) for name, pair in pairs.items()}
            l1 = _sum(list(terms.values()))
            total = _sum([adversarial_A, adversarial_B, *terms.values()])
            losses |= terms
        losses["l1"] = l1
        losses = {name: loss.detach() for name, loss in losses.items()}
        return total, losses, (fake_B.detach(), fake_A.detach())

    def _discriminator_loss(self, name: str, real: Tensor, fake: Tensor, alpha: Tensor | None) -> Tensor:
        """½ (GAN(D(real), 1) + GAN(D(fake), 0)), plus the penalty of wgangp."""
        config = self.config
        if config.batched_calls:
            on_real, on_fake = self._run[name](torch.cat([real, fake.to(real.dtype)])).chunk(2)
        else:
            on_real, on_fake = self._run[name](real), self._run[name](fake)
        mode = config.gan_mode
        loss = (gan_loss(on_real, True, mode, judging=True) + gan_loss(on_fake, False, mode, judging=True)) * 0.5
        if alpha is not None:
            loss = loss + F.gradient_penalty(
                self.networks[name],
                real,
                fake.to(real.dtype),
                weight=config.lambda_gp,
                one_sided=config.gp_one_sided,
                alpha=alpha.to(real.device, non_blocking=True),
                grad_scale=1024.0 if self.precision.amp == "fp16" else 1.0,
            )
        return loss

    def _generate(self, name: str, images: Tensor) -> Tensor:
        if self.config.recompute:
            # Nothing but dropout is random in a generator, and no random state can be kept in a CUDA graph.
            draws = not self.config.no_dropout
            result: Tensor = checkpoint(self._run[name], images, use_reentrant=False, preserve_rng_state=draws)
        else:
            result = self._run[name](images)
        return result

    def _judge(self, name: str, images: Tensor) -> Tensor:
        """The frozen discriminator's scores. Not through DistributedDataParallel, which would wait for gradients."""
        run = self._run[name]
        scores: Tensor = (run.module if isinstance(run, nn.parallel.DistributedDataParallel) else run)(images)
        return scores

    def _freeze_discriminators(self, frozen: bool) -> None:
        for name in ("D_A", "D_B"):
            self.networks[name].requires_grad_(not frozen)

    def _draw_alpha(self, count: int) -> Tensor:
        return distributed.own_rows(torch.rand(count * distributed.size(), generator=self._alpha.generator))

    def _backend(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.config.fused else use_backend("reference")

    def _sync(self, names: Sequence[str], last: bool) -> contextlib.AbstractContextManager[Any]:
        """Lets processes average gradients at the last part of a batch only."""
        stack = contextlib.ExitStack()
        if not last:
            for name in names:
                run = self._run[name]
                if isinstance(run, nn.parallel.DistributedDataParallel):
                    stack.enter_context(run.no_sync())
        return stack

    # --- looking at it --------------------------------------------------------------------------------------------

    def generator(self, name: str) -> nn.Module:
        """``G_A`` or ``G_B``, averaged if the run averages."""
        return self.ema[name].module if name in self.ema else self.networks[name]

    @torch.no_grad()
    def translate(self, images_A: Tensor, images_B: Tensor, *, cycle: bool = True) -> dict[str, Tensor]:
        """fake_B and fake_A of two batches, and rec_A and rec_B, with the generators in evaluation mode."""
        with _evaluating(self.networks.values()), self._backend(), self.precision.autocast():
            real_A, real_B = self.precision.batch(images_A), self.precision.batch(images_B)
            g_A, g_B = self.generator("G_A"), self.generator("G_B")
            fake_B, fake_A = g_A(real_A), g_B(real_B)
            out = {"fake_B": fake_B, "fake_A": fake_A}
            if cycle:
                out |= {"rec_A": g_B(fake_B), "rec_B": g_A(fake_A)}
        return {name: value.float() for name, value in out.items()}

    def held_out(self, limit: int | None = None) -> Iterable[tuple[Tensor, Tensor]]:
        """Items of ``test`` (else of ``train``) one by one, without chance, as batches of one."""
        source = self._train if self._test is None else self._test
        for index in range(min(len(source), limit or len(source))):
            item = source.sample(index, None)
            yield item["A"][None], item["B"][None]

    def sheet(self, rows: int = 4) -> Image.Image | None:
        """Real, translated and reconstructed images of both domains."""
        lines = []
        for real_A, real_B in self.held_out(rows):
            made = self.translate(real_A, real_B)
            line = [real_A, made["fake_B"], made["rec_A"], real_B, made["fake_A"], made["rec_B"]]
            lines.append([_rgb(image[0].cpu()) for image in line])
        titles = ["A", "G_A(A)", "G_B(G_A(A))", "B", "G_B(B)", "G_A(G_B(B))"]
        return sheet.table(lines, titles) if lines else None

    def evaluate(self) -> dict[str, float]:
        """:func:`scores` of held-out images: "…_B" of G_A(A) beside B, "…_A" of G_B(B) beside A."""
        real: dict[str, list[Tensor]] = {"B": [], "A": []}
        fake: dict[str, list[Tensor]] = {"B": [], "A": []}
        for real_A, real_B in self.held_out():
            made = self.translate(real_A, real_B, cycle=False)
            for domain, image in (("A", real_A), ("B", real_B)):
                real[domain].append(image[0])
                fake[domain].append(made[f"fake_{domain}"][0].cpu())
        return {f"{k}_{d}": v for d in real for k, v in scores(real[d], fake[d], self.paired).items()}

    def plan(self) -> dict[str, str]:
        config, loader = self.config, self.loader
        side = config.crop_size if "crop" in config.preprocess else config.load_size
        weights = {name: sum(p.numel() for p in network.parameters()) for name, network in self.networks.items()}
        # Weights, gradients and Adam's two moments, in float32; the averages; the pools.
        fixed = 16 * sum(weights.values()) + 4 * sum(weights[name] for name in self.ema)
        pools = 2 * config.pool_size * 4 * config.output_nc * side**2
        activations = self._activation_bytes(side)
        return {
            "networks": ", ".join(f"{name} {count / 1e6:.3f} M" for name, count in weights.items()),
            "steps": f"{self.total_steps} ({loader.batches_per_epoch} an epoch, {len(self._train)} items)",
            "joint batch": f"{config.batch_size} x {distributed.size()} processes, {side} x {side} pixels",
            "runs on": f"{self.device}, autocast {self.precision.amp}, {self.precision.memory_format}",
            "weights, gradients, moments": _mib(fixed),
            "image pools": _mib(pools),
            "kept for the backward pass": _mib(activations),
            "memory, about": _mib(fixed + pools + activations),
        }

    def _activation_bytes(self, side: int) -> int:
        """What autograd keeps of the generators' loss, which keeps most of a step."""
        config = self.config

        def make() -> list[nn.Module]:
            networks = build_networks(config)
            for network in networks.values():
                if config.fused:
                    fuse(network)
            return list(networks.values())

        def run(*networks: nn.Module) -> object:
            rows = -(-config.batch_size // config.accumulate)
            real_A, real_B = (torch.empty(rows, c, side, side) for c in (config.input_nc, config.output_nc))
            own, self._run = self._run, dict(zip(self.networks, networks, strict=True))
            try:
                with self._backend(), self.precision.autocast():
                    return self._generator_losses(real_A, real_B, False)
            finally:
                self._run = own

        return kept_for_backward(make, run)

    def close(self) -> None:
        self.loader.close()


# --- parts --------------------------------------------------------------------------------------------------------


def gan_loss(scores: Tensor, real: bool, mode: GanMode, *, judging: bool = False) -> Tensor:
    """The loss of scores that should say "real" (or not): the authors' GANLoss, and the hinge.

    ``lsgan``: mean (D − t)², ``vanilla``: mean cross-entropy of logits with t, t = 1 for real; ``wgangp``: ∓ mean D;
    ``hinge``: mean max(0, 1 ∓ D) for the discriminators (``judging``), ∓ mean D for the generators.
    """
    if mode == "hinge" and judging:
        return (1 - scores if real else 1 + scores).relu().mean()
    if mode in ("wgangp", "hinge"):
        return -scores.mean() if real else scores.mean()
    target = torch.full_like(scores, float(real))
    if mode == "lsgan":
        return nnf.mse_loss(scores, target)
    return nnf.binary_cross_entropy_with_logits(scores, target)


def scores(real: list[Tensor], fake: list[Tensor], paired: bool) -> dict[str, float]:
    """l1, psnr and ssim if ``fake[i]`` should be ``real[i]``; swd, the sliced Wasserstein distance of patches of
    :func:`fastgan.metrics.sliced_wasserstein_patches`, if all images have one size of at least 16 pixels."""
    found: dict[str, float] = {}
    if paired:
        pairs = PairedScores()
        for x, y in zip(fake, real, strict=True):
            pairs.update(x[None], y[None])
        found |= pairs.compute()
    if len({image.shape for image in real + fake}) == 1 and min(real[0].shape[1:]) >= 16:
        found["swd"] = sliced_wasserstein_patches(torch.stack(real), torch.stack(fake)).mean
    return found


def build_networks(config: CycleGanConfig) -> dict[str, nn.Module]:
    """G_A (A → B), G_B (B → A), D_A (judges B), D_B (judges A), initialised from the global generator in this order."""

    def generator(inputs: int, outputs: int) -> nn.Module:
        return build_generator(
            config.netG,
            inputs,
            outputs,
            ngf=config.ngf,
            norm=config.norm,
            dropout=not config.no_dropout,
            init=config.init_type,
            init_gain=config.init_gain,
        )

    def discriminator(inputs: int) -> nn.Module:
        return build_discriminator(
            config.netD,
            inputs,
            ndf=config.ndf,
            n_layers=config.n_layers_D,
            norm=config.norm,
            init=config.init_type,
            init_gain=config.init_gain,
        )

    a, b = config.input_nc, config.output_nc
    return {"G_A": generator(a, b), "G_B": generator(b, a), "D_A": discriminator(b), "D_B": discriminator(a)}


def check(config: CycleGanConfig) -> None:
    """Raises ValueError if settings are out of their range or contradict each other."""
    least = {
        "batch_size": 1, "accumulate": 1, "lr_decay_iters": 1, "epoch_count": 1, "n_epochs": 0, "n_epochs_decay": 0,
        "lr": 0, "lambda_A": 0, "lambda_B": 0, "lambda_identity": 0, "lambda_gp": 0,
    }  # fmt: skip
    for name, value in least.items():
        if getattr(config, name) < value:
            raise ValueError(f"{name} must be at least {value}, got {getattr(config, name)}")
    if not 0 <= config.beta1 < 1:
        raise ValueError(f"beta1 must be in [0, 1), got {config.beta1}")
    side = config.crop_size if "crop" in config.preprocess else config.load_size
    layers = {"basic": 3, "n_layers": config.n_layers_D, "pixel": 0}[config.netD]
    if layers and config.preprocess != "none" and side >> layers < 3:
        raise ValueError(
            f"netD {config.netD} of {layers} layers needs images of at least {3 << layers} pixels, got {side}; "
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
    if config.gp_one_sided and config.gan_mode != "wgangp":
        raise ValueError(f"gp_one_sided is for gan_mode wgangp, got {config.gan_mode}")
    if config.gan_mode == "wgangp" and config.norm == "batch":
        raise ValueError("gan_mode wgangp penalises each sample's gradient: norm must be instance or none, got batch")
    for option, used in (
        ("batched_calls", config.batched_calls),
        ("accumulate", config.accumulate > 1),
        ("recompute", config.recompute),
    ):
        if used and config.norm == "batch":
            raise ValueError(f"{option} changes the result of norm batch; it needs norm instance or none")
    if not 1 <= config.accumulate <= config.batch_size:
        raise ValueError(f"accumulate must be between 1 and batch_size {config.batch_size}, got {config.accumulate}")
    if config.preprocess == "none" and config.batch_size > 1:
        raise ValueError(f"preprocess none keeps images' own sizes: batch_size must be 1, got {config.batch_size}")
    if config.n_epochs + config.n_epochs_decay < config.epoch_count:
        raise ValueError(
            f"nothing to train: epoch_count {config.epoch_count} is past n_epochs {config.n_epochs} + "
            f"n_epochs_decay {config.n_epochs_decay}"
        )


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


def _prepare(network: nn.Module, compiled: bool) -> nn.Module:
    run = torch.compile(network) if compiled else network
    return distributed.wrap(run)  # type: ignore[arg-type]


class _Mean:
    """A mean that stays on the device, with a state."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._count = 0

    def add(self, value: Tensor) -> None:
        value = value.detach()
        self._total = value.double() if self._total is None else self._total.to(value.device) + value
        self._count += 1

    def take(self) -> float:
        """The mean over steps and processes since the last time."""
        if self._total is None:
            return float("nan")
        mean = float(distributed.mean(self._total / self._count))
        self._total, self._count = None, 0
        return mean

    def state_dict(self) -> dict[str, Any]:
        total = None if self._total is None else distributed.mean(self._total)
        return {"total": total, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._total, self._count = state["total"], state["count"]


def _l1(x: Tensor, y: Tensor, weight: float) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    return nnf.l1_loss(x.to(dtype), y.to(dtype)) * weight


def _sum(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _weighted(parts: list[dict[str, Tensor]], shares: list[float]) -> dict[str, Tensor]:
    if len(parts) == 1:
        return dict(parts[0])
    return {name: _sum([part[name] * share for part, share in zip(parts, shares, strict=True)]) for name in parts[0]}


@contextlib.contextmanager
def _evaluating(networks: Iterable[nn.Module]) -> Any:
    networks = list(networks)
    modes = [network.training for network in networks]
    try:
        for network in networks:
            network.eval()
        yield
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)


def _mib(size: float) -> str:
    return f"{size / 2**20:.0f} MiB"


def _rgb(image: Tensor) -> Tensor:
    return image.expand(3, -1, -1) if image.size(0) == 1 else image


def size_multiple(config: CycleGanConfig) -> int:
    """What the height and width of the generators' images must be a multiple of."""
    with torch.device("meta"):
        multiple: int = build_networks(config)["G_A"].size_multiple  # type: ignore[assignment]
    return multiple


def make(config: CycleGanConfig) -> CycleGan:
    """The trainer on the folders of ``config.dataroot``, all of which are checked; nothing is written.

    Raises:
        DataError: a folder that is missing or empty, an unreadable image, one smaller than the crop.
        ValueError: settings that contradict each other.
    """
    check(config)
    train = UnpairedImageFolder(
        config.dataroot,
        _preprocess(config),
        serial_batches=config.serial_batches,
        cache=_caches(config),
        **_folders(config),
    )
    test, paired = held_out(config)
    return CycleGan(config, train, test, paired=paired)


def held_out(config: CycleGanConfig) -> tuple[UnpairedImageFolder | PairedImageFolder | None, bool]:
    """testA and testB, if they are there, and whether their files have the same names: then they are pairs."""
    folders = [config.dataroot / "testA", config.dataroot / "testB"]
    if not all(folder.is_dir() for folder in folders):
        return None, False
    rule, names = _preprocess(config).for_testing(), [[path.stem for path in list_images(f)] for f in folders]
    if names[0] == names[1]:
        return PairedImageFolder(config.dataroot, rule, phase="test", **_folders(config)), True
    return UnpairedImageFolder(config.dataroot, rule, phase="test", serial_batches=True, **_folders(config)), False


def _preprocess(config: CycleGanConfig) -> Preprocess:
    return Preprocess(config.preprocess, config.load_size, config.crop_size, not config.no_flip, size_multiple(config))


def _folders(config: CycleGanConfig) -> dict[str, Any]:
    return {
        "channels_a": config.input_nc,
        "channels_b": config.output_nc,
        "direction": config.direction,
        "max_dataset_size": config.max_dataset_size,
    }


def _caches(config: CycleGanConfig) -> bool:
    """Whether decoded images are to be kept; ``auto``: when they surely take less than 2 GB."""
    if config.cache != "auto":
        return config.cache in ("on", "device")
    if config.preprocess != "resize_and_crop":
        return False
    images = sum(
        min(sum(1 for _ in (config.dataroot / f).rglob("*")), config.max_dataset_size or 10**9)
        for f in ("trainA", "trainB")
        if (config.dataroot / f).is_dir()
    )
    return images * config.load_size**2 * max(config.input_nc, config.output_nc) < 2 * 10**9


def resident(config: CycleGanConfig, train: Source, device: torch.device) -> ResidentPairs | None:
    """``train`` on the device, if ``config.cache`` wants its images there.

    Raises:
        ValueError: it does, and they cannot be; the message says why.
    """
    if config.cache == "device" and not isinstance(train, UnpairedImageFolder):
        raise ValueError(f"cache device serves folders of images, not {type(train).__name__}")
    if not isinstance(train, UnpairedImageFolder) or not on_device(config.cache, [train.a, train.b], device):
        return None
    return ResidentPairs(train, device)


def train(config: CycleGanConfig) -> Outcome:
    """Trains CycleGAN on the folders of ``config.dataroot``, or continues to."""
    device = distributed.resolve_device(config.device)
    with distributed.session(device):
        # Images of one size: let cuDNN find its fastest convolutions once.
        torch.backends.cudnn.benchmark = device.type == "cuda" and "crop" in config.preprocess
        return fit(make(config))
