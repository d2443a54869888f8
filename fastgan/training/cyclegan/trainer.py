"""The trainer: one step after the other, as the authors' code takes them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import default_collate

from fastgan.data import UnpairedImageFolder
from fastgan.kernels.dispatch import use_backend
from fastgan.training import distributed, random, schedule
from fastgan.training.cyclegan import report
from fastgan.training.cyclegan.config import CycleGanConfig, check, graphs
from fastgan.training.cyclegan.data import check_batch, counts, held_out, one_item, resident, training_images
from fastgan.training.cyclegan.losses import L1_TERMS, Computed, Losses, discriminator_loss, generators_loss, weighted
from fastgan.training.cyclegan.networks import for_generators, make_optimizers, trainable_networks
from fastgan.training.ema import Ema
from fastgan.training.graph import StepGraph
from fastgan.training.loader import Loader, Source
from fastgan.training.loop import Outcome, fit
from fastgan.training.pool import ImagePool, StaticPool
from fastgan.training.precision import Precision
from fastgan.training.prefetch import Prefetcher
from fastgan.training.task import Stateful, Task, check_parts, evaluating

if TYPE_CHECKING:
    from PIL import Image


class CycleGan(Task):
    """The trainer.

    Args:
        config: see :class:`CycleGanConfig`.
        train: a source of ``{"A": [C, H, W], "B": [C, H, W]}``, float32 in [−1, 1]; :meth:`step` looks at the first
            batch, and refuses bytes and other ranges.
        test: a source of held-out items for sheets and evaluation, or None. Its first item is looked at, too, at once.
        paired: whether item i of ``test`` is one thing in both domains.

    Raises:
        TypeError, ValueError: a ``test`` of something else.
        ValueError: settings that contradict each other, or no such device.
    """

    config: CycleGanConfig

    def __init__(
        self, config: CycleGanConfig, train: Source, test: Source | None = None, *, paired: bool = False
    ) -> None:
        check(config)
        report.check(config, test, paired)
        self.config = config
        self.device = distributed.resolve_device(config.device)
        self.precision = Precision(self.device, config.amp, config.channels_last, gains=config.fused)
        random.seed_all(config.seed)
        self.networks = trainable_networks(config, self.precision)
        check_parts(self.networks, config.batch_size, config.accumulate)
        self._running = {
            name: distributed.wrap(network, compiled=config.compile) for name, network in self.networks.items()
        }
        self._nets = for_generators(self._running, config)
        self.optimizer_G, self.optimizer_D = make_optimizers(self.networks, config)
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
        self._graph: StepGraph | None = None
        if graphs(config, self.device):
            self._graph = StepGraph(
                self._update,
                self.device,
                [self.optimizer_G, self.optimizer_D],
                required=config.cuda_graph == "on",
                forget=self.precision.forget,
            )
        pool = ImagePool if self._graph is None else StaticPool
        self.pools = {name: pool(config.pool_size, config.seed + k) for k, name in enumerate(("D_A", "D_B"))}
        self._alpha = random.Generator(config.seed + 2)
        self.ema = {name: Ema(self.networks[name], config.ema) for name in ("G_A", "G_B") if config.ema}
        self.train, self._resident = train, resident(config, train, self.device)
        self._looked = isinstance(train, UnpairedImageFolder)  # whose images are what they should be
        if test is not None and not isinstance(test, UnpairedImageFolder):
            self._check_batch("test", default_collate([test.sample(0, None)]))
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
        self.test, self.paired = test, paired
        self._shown = train if test is None else test
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
        images = counts(train)
        self.facts = {"items": len(train)} if images is None else {f"images_{name}": n for name, n in images.items()}
        self._epochs = config.n_epochs + config.n_epochs_decay - config.epoch_count + 1
        self.total_steps = self._epochs * self.loader.batches_per_epoch
        self.items_per_step = config.batch_size
        # From here on each process draws its own: dropout masks differ between them.
        random.seed_all(config.seed + distributed.rank())

    @property
    def epoch(self) -> int:
        return self.loader.epoch

    def total_after(self, step: int) -> int:
        return step + max(0, self._epochs - self.loader.epoch) * self.loader.batches_per_epoch - self.loader.batch

    def step(self) -> Losses:
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

    def update(self, real_A: Tensor, real_B: Tensor, *, apart: bool = True) -> Losses:
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
        if self._graph is None:
            return self._update(inputs, apart)
        # One graph for both: a second one would warm up beside the memory of the first, and four means cost little.
        losses = self._graph(inputs)
        if apart or not self.config.fused:
            return losses
        return {name: loss for name, loss in losses.items() if name not in L1_TERMS}

    # --- the algorithm --------------------------------------------------------------------------------------------

    def _update(self, inputs: Mapping[str, Tensor], apart: bool = True) -> Losses:
        """The published step, on what was drawn for it on the host: the part that a CUDA graph holds."""
        real_A, real_B = inputs["A"], inputs["B"]

        self._freeze_discriminators(True)
        self.optimizer_G.zero_grad(set_to_none=True)
        of_generators = partial(self._generators_loss, apart=apart)
        losses, (fake_B, fake_A) = self._backward(("G_A", "G_B"), of_generators, real_A, real_B)
        self._descend(self.optimizer_G)

        self._freeze_discriminators(False)
        self.optimizer_D.zero_grad(set_to_none=True)
        for name, real, fake in (("D_A", real_B, fake_B), ("D_B", real_A, fake_A)):
            shown = self.pools[name].exchange(fake, inputs[f"pool_{name}"])
            alpha = [inputs[f"alpha_{name}"]] if self.config.gan_mode == "wgangp" else []
            of_discriminator = partial(self._discriminator_loss, name)
            losses |= self._backward((name,), of_discriminator, real, shown, *alpha)[0]
        self._descend(self.optimizer_D)

        self.precision.update()
        for ema in self.ema.values():
            ema.update()
        return losses

    def _generators_loss(self, real_A: Tensor, real_B: Tensor, *, apart: bool) -> Computed:
        return generators_loss(self._nets, self.config, real_A, real_B, apart=apart)

    def _discriminator_loss(self, name: str, real: Tensor, fake: Tensor, alpha: Tensor | None = None) -> Computed:
        scale = 1024.0 if self.precision.amp == "fp16" else 1.0
        discriminator, network = self._running[name], self.networks[name]
        return discriminator_loss(name, discriminator, network, self.config, real, fake, alpha, grad_scale=scale)

    # --- how it is run --------------------------------------------------------------------------------------------

    def _backward(
        self, names: Sequence[str], compute: Callable[..., Computed], *batch: Tensor
    ) -> tuple[Losses, list[Tensor]]:
        """Adds the gradients of ``compute(*batch)``, a mean over samples, in ``accumulate`` parts of the batch.

        ``names`` are the networks that it trains. Returns the losses and images of the whole batch.
        """
        parts = list(zip(*(each.chunk(self.config.accumulate) for each in batch), strict=True))
        shares = [len(part[0]) / len(batch[0]) for part in parts]
        losses, images = [], []
        for k, part in enumerate(parts):
            own = [] if k == len(parts) - 1 else [self._running[name] for name in names]
            with self.backend(), distributed.no_sync(*own):
                with self.precision.autocast():
                    computed = compute(*part)
                self.precision.backward(computed.total if len(parts) == 1 else computed.total * shares[k])
            losses.append(computed.losses)
            images.append(computed.images)
        whole = [torch.cat(each) if len(each) > 1 else each[0] for each in zip(*images, strict=True)]
        return weighted(losses, shares), whole

    def _descend(self, optimizer: Optimizer) -> None:
        self.precision.step(optimizer)
        if self._graph is not None:  # the memory of gradients that are used serves the rest of the graph
            optimizer.zero_grad(set_to_none=True)

    def _freeze_discriminators(self, frozen: bool) -> None:
        for name in ("D_A", "D_B"):
            self.networks[name].requires_grad_(not frozen)

    def _draw_alpha(self, count: int) -> Tensor:
        return distributed.own_rows(torch.rand(count * distributed.size(), generator=self._alpha.generator))

    def _place(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Both domains' images on the device."""
        if not self._looked:
            self._check_batch("train", batch)
            self._looked = True
        if self._resident is not None:
            batch = self._resident.finish(batch)
        return {name: self.precision.batch(batch[name]) for name in "AB"}

    def _check_batch(self, source: str, batch: object) -> None:
        channels = {"A": self.config.input_nc, "B": self.config.output_nc}
        check_batch(source, batch, channels, next(self.networks["G_A"].parameters()).dtype)

    def backend(self) -> contextlib.AbstractContextManager[None]:
        """Where operators run: plain PyTorch unless ``config.fused``."""
        return contextlib.nullcontext() if self.config.fused else use_backend("reference")

    def restored(self) -> None:
        if self._graph is not None:
            self._graph.reset()

    def close(self) -> None:
        self.loader.close()

    # --- looking at it --------------------------------------------------------------------------------------------

    def generator(self, name: str) -> nn.Module:
        """``G_A`` or ``G_B``, averaged if the run averages."""
        return self.ema[name].module if name in self.ema else self.networks[name]

    @torch.no_grad()
    def translate(self, images_A: Tensor, images_B: Tensor, *, cycle: bool = True) -> dict[str, Tensor]:
        """fake_B and fake_A of two batches, and rec_A and rec_B, with the generators in evaluation mode."""
        with evaluating(*self.networks.values()), self.backend(), self.precision.autocast():
            real_A, real_B = self.precision.batch(images_A), self.precision.batch(images_B)
            G_A, G_B = self.generator("G_A"), self.generator("G_B")
            fake_B, fake_A = G_A(real_A), G_B(real_B)
            out = {"fake_B": fake_B, "fake_A": fake_A}
            if cycle:
                out |= {"rec_A": G_B(fake_B), "rec_B": G_A(fake_A)}
        return {name: value.float() for name, value in out.items()}

    def held_out(self, limit: int | None = None) -> Iterable[tuple[Tensor, Tensor]]:
        """Items of ``test`` (else of ``train``) one by one, without chance, as batches of one."""
        items = range(len(self._shown))[:limit]
        return (one_item(self._shown, index) for index in items)

    def sheet(self, rows: int = 4) -> Image.Image | None:
        """Real, translated and reconstructed images of both domains."""
        return report.sheet_of(self, rows)

    def evaluate(self) -> dict[str, float]:
        """:func:`fastgan.training.cyclegan.report.scores_of` held-out images. All processes must call it."""
        return report.scores_of(self._shown, partial(self.translate, cycle=False), self.paired)

    def plan(self) -> dict[str, str]:
        return report.plan(self)


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


def make(config: CycleGanConfig) -> CycleGan:
    """The trainer on the folders of ``config.dataroot``, all of which are checked; nothing is written.

    Raises:
        DataError: a folder that is missing or empty, an unreadable image, one smaller than the crop.
        ValueError: settings that contradict each other.
    """
    check(config)
    images = training_images(config)
    test, paired = held_out(config)
    return CycleGan(config, images, test, paired=paired)


def train(config: CycleGanConfig) -> Outcome:
    """Trains CycleGAN on the folders of ``config.dataroot``, or continues to."""
    device = distributed.resolve_device(config.device)
    with distributed.session(device):
        # Images of one size: let cuDNN find its fastest convolutions once.
        torch.backends.cudnn.benchmark = device.type == "cuda" and "crop" in config.preprocess
        return fit(make(config))
