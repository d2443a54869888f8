"""The trainer: some critic steps, then a generator step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fastgan import objectives
from fastgan.kernels.dispatch import use_backend
from fastgan.objectives import Terms
from fastgan.objectives.base import added
from fastgan.objectives.wgan import WassersteinPenalty
from fastgan.training import distributed, random, schedule, sheet
from fastgan.training.critic_step import assign_gradients, critic_gradients
from fastgan.training.ema import Ema
from fastgan.training.gan import report
from fastgan.training.gan.config import GanConfig, architecture_name, check_accumulate, graphs, resolve
from fastgan.training.gan.data import RealData
from fastgan.training.gan.networks import is_joinable, make_critic, make_generator, make_optimizer, no_critic, trainable
from fastgan.training.graph import StepGraph
from fastgan.training.loop import Outcome, fit
from fastgan.training.precision import Precision
from fastgan.training.task import Stateful, Task, check_parts

if TYPE_CHECKING:
    from PIL import Image

Losses = dict[str, Tensor]


class GanTask(Task):
    """See the package. ``networks`` are ``critic`` (none for ``sliced``), ``generator`` and, with EMA, ``average``.

    Raises:
        ValueError: settings that do not fit each other; the message names them.
    """

    def __init__(self, config: GanConfig) -> None:
        self.config: GanConfig = config
        self.device = distributed.resolve_device(config.device)
        self.objective, self.settings = resolve(config)
        # On a CPU only residual networks gain by channels_last, in which Winograd's convolutions run.
        residual = architecture_name(config) == "resnet" and "instance" not in (config.norm_g, config.norm_d)
        gains = self.device.type == "cuda" or (config.fused and residual)
        self.precision = Precision(self.device, config.amp, config.channels_last, gains=gains)
        random.seed_all(config.seed)
        self.data = RealData(config)
        report.check(config, self.data)
        self.generator, self.critic = make_generator(config), make_critic(config, self.objective)
        trainable(self.generator, config, self.precision)
        if distributed.size() > 1:
            share = objectives.Batch(distributed.size(), distributed.own_rows, distributed.differentiable_rows)
            self.objective = replace(self.objective, batch=share)
        self.networks: dict[str, nn.Module] = {"generator": self.generator}
        self.batches = self.data.batches(self.settings.batch_size, config, self.device)
        # Every process draws z, and what an objective draws, for the joint batch; dropout is each one's own.
        self._latent = random.Generator(config.seed + 1, self.device)
        self._draws = random.Generator(config.seed + 2, self.device)
        self._clock = _Clock()
        self._generate = distributed.wrap(self.generator, compiled=config.compile)
        self.optimizer_g = make_optimizer(self.generator, self.settings, self.settings.lr_generator, config.fused)
        self.stateful: dict[str, Stateful] = {
            "optimizer_g": self.optimizer_g,
            "batches": self.batches,
            "latent": self._latent,
            "draws": self._draws,
            "clock": self._clock,
            "precision": self.precision,
        }
        if self.critic is not None:
            if config.fused and is_joinable(self.critic):
                self.objective = replace(self.objective, joint=True)
            trainable(self.critic, config, self.precision)
            self.networks = {"critic": self.critic, **self.networks}
            self._judge = distributed.wrap(self.critic, compiled=config.compile)
            self.optimizer_d = make_optimizer(self.critic, self.settings, self.settings.lr_critic, config.fused)
            self.stateful["optimizer_d"] = self.optimizer_d
        # With the penalty one graph, where neither loss scaling nor parts of a batch come between it and its gradients.
        whole = config.objective in ("wgan-gp", "wgan-gp-one-sided") and config.amp != "fp16" and config.accumulate == 1
        # Torch 2.11 cannot differentiate a convolution of symbolic sizes twice.
        step = torch.compile(critic_gradients, fullgraph=True, dynamic=False) if config.compile and whole else None
        self._compiled = step
        # What they are at is the clock's: a run may be continued with another decay.
        decaying = self.optimizers().values() if self.settings.decay == "linear" else ()
        self._schedules = [LambdaLR(each, lambda step: max(0.0, 1.0 - step / config.steps)) for each in decaying]
        self.average: Ema | None = None
        if config.ema:
            self.average = Ema(self.generator, config.ema)
            self.networks["average"] = self.average.module
        self.facts = self.data.facts
        self.total_steps = config.steps
        self.items_per_step = self.settings.batch_size
        fixed = torch.Generator(self.device).manual_seed(config.seed + 3)
        count = config.n_samples if self.data.points is None else 16 * config.n_samples
        self._fixed_z = self.generator.latent(count, generator=fixed)
        check_accumulate(config, self.settings, self.objective)
        check_parts(self.networks, self.settings.batch_size, config.accumulate)
        dropout = any(isinstance(m, nn.Dropout) for n in self.networks.values() for m in n.modules())
        self._graphed = graphs(config, self.settings, self.device, dropout=dropout)
        self._graphs: dict[str, StepGraph] = {}
        if distributed.size() > 1:
            random.seed_all(config.seed + 100 + distributed.rank())

    @property
    def epoch(self) -> int:
        return self.batches.epoch

    def step(self) -> Losses:
        losses: Losses = {}
        if self._graphed:
            self._make_graphs("generator", *(["critic"] if self.critic is not None else []))
        with self.backend():
            if self.critic is not None:
                for _ in range(self.settings.schedule(self._clock.step)):
                    losses = self.critic_step(next(self.batches))
                    self.batches.prepare()
            losses.update(self.generator_step(next(self.batches) if self._needs_real else None))
        self.batches.prepare()
        for made in self._schedules:
            made.step()
        self._clock.step += 1
        return losses

    def critic_step(self, real: Tensor) -> Losses:
        """One critic step on a real batch; returns its losses. The generator gets no gradient."""
        return self._run("critic", self._update_critic, {"real": self.precision.batch(real)})

    def generator_step(self, real: Tensor | None) -> Losses:
        """One generator step through the frozen critic; ``real`` for the objectives that look at it."""
        inputs = {} if real is None else {"real": self.precision.batch(real)}
        return self._run("generator", self._update_generator, inputs)

    # --- the algorithm --------------------------------------------------------------------------------------------

    def _update_critic(self, inputs: Mapping[str, Tensor]) -> Losses:
        """The lines of the algorithm's inner loop: clamp, generate without a graph, descend on the critic's loss."""
        real = inputs["real"]
        self._clamp_weights()
        with self.precision.autocast(), torch.no_grad():
            fake = distributed.within(self._generate)(self._z(len(real)))
        self.optimizer_d.zero_grad(set_to_none=True)
        if self._compiled is not None:
            losses = self._compiled_gradients(real, fake)
        else:
            # A part of a batch takes its rows of what is drawn for the whole; else the loss draws by itself.
            drawn = self.objective.draw(real, generator=self._draws.generator) if self.config.accumulate > 1 else {}
            terms = partial(self._critic_terms, tuple(drawn))
            losses = self._backward("critic", terms, real, fake, *drawn.values())
        self._limit_gradient()
        self._descend(self.optimizer_d)
        return losses

    def _update_generator(self, inputs: Mapping[str, Tensor]) -> Losses:
        """The line after it: generate, descend on the generator's loss through the frozen critic, average."""
        real = inputs.get("real", torch.empty(0, device=self.device))
        z = self._z(len(real) or self.settings.batch_size)
        self.optimizer_g.zero_grad(set_to_none=True)
        with self._frozen_critic():
            losses = self._backward("generator", partial(self._generator_terms, real), z)
        self._descend(self.optimizer_g)
        if self.average is not None:
            self.average.update()
        return losses

    def _critic_terms(self, names: Sequence[str], real: Tensor, fake: Tensor, *drawn: Tensor) -> Terms:
        given: dict[str, Any] = dict(zip(names, drawn, strict=True))
        return self.objective.critic_loss(self._judge, real, fake, generator=self._draws.generator, **given)

    def _generator_terms(self, real: Tensor, z: Tensor) -> Terms:
        critic = no_critic if self.critic is None else distributed.within(self._judge)
        return self.objective.generator_loss(critic, real, self._generate(z), generator=self._draws.generator)

    # --- how it is run --------------------------------------------------------------------------------------------

    def _run(self, side: str, update: Callable[[Mapping[str, Tensor]], Losses], inputs: dict[str, Tensor]) -> Losses:
        """A step of one side, through its CUDA graph if there is one."""
        if not self._graphed:
            return update(inputs)
        self._make_graphs(side)
        return self._graphs[side](inputs)

    def _make_graphs(self, *sides: str) -> None:
        """Those that are not there yet. Of those that are made at once none is recorded before all have warmed up."""
        for side in sides:
            if side not in self._graphs:
                critic = side == "critic"
                self._graphs[side] = StepGraph(
                    self._update_critic if critic else self._update_generator,
                    self.device,
                    [self.optimizer_d if critic else self.optimizer_g],
                    generators=[self._latent.generator, self._draws.generator],
                    share=next(iter(self._graphs.values()), None),
                    required=self.config.cuda_graph == "on",
                    forget=self.precision.forget,
                )

    def _backward(self, side: str, terms_of: Callable[..., Terms], *batch: Tensor) -> Losses:
        """Adds the gradients of the sum of ``terms_of(*batch)``, in ``accumulate`` parts of the batch where their loss
        is a mean over samples; returns the losses of the whole."""
        trained = self._judge if side == "critic" else self._generate
        parts = list(zip(*(each.chunk(self.config.accumulate) for each in batch), strict=True))
        losses = []
        for k, part in enumerate(parts):
            with distributed.no_sync(*([] if k == len(parts) - 1 else [trained])):
                with self.precision.autocast():
                    terms = terms_of(*part)
                share = len(part[0]) / len(batch[0])
                if share < 1:
                    terms = {name: term * share for name, term in terms.items()}
                loss = added(terms.values())
                self.precision.backward(loss)
            losses.append(_named(side, terms, loss))
        return {name: added(part[name] for part in losses) for name in losses[0]}

    def _compiled_gradients(self, real: Tensor, fake: Tensor) -> Losses:
        """The same for the critic of WGAN-GP, whose losses and gradients are one compiled graph."""
        objective = self.objective
        assert self.critic is not None
        assert self._compiled is not None
        assert isinstance(objective, WassersteinPenalty)
        drawn = objective.draw(real, generator=self._draws.generator)  # what the uncompiled step draws
        with self.precision.autocast():
            losses, gradients = self._compiled(
                self.critic, real, fake, drawn["alpha"], weight=objective.weight, one_sided=objective.one_sided
            )
        assign_gradients(self.critic, gradients)
        distributed.average_gradients(self.critic)
        terms = {"real": -losses.real, "fake": losses.fake, "penalty": losses.penalty}
        return _named("critic", terms, losses.loss)

    def _clamp_weights(self) -> None:
        if self.settings.clip:
            assert self.critic is not None
            with torch.no_grad():
                torch._foreach_clamp_min_(list(self.critic.parameters()), -self.settings.clip)
                torch._foreach_clamp_max_(list(self.critic.parameters()), self.settings.clip)

    def _limit_gradient(self) -> None:
        if self.settings.grad_clip:
            assert self.critic is not None
            self.precision.unscale(self.optimizer_d)
            nn.utils.clip_grad_norm_(self.critic.parameters(), self.settings.grad_clip)

    def _descend(self, optimizer: Optimizer) -> None:
        self.precision.step(optimizer)
        if self._graphed:  # the memory of gradients that are used serves the other steps' graphs
            optimizer.zero_grad(set_to_none=True)
        self.precision.update()

    def _z(self, n: int) -> Tensor:
        joint = self.generator.latent(n * distributed.size(), generator=self._latent.generator)
        return distributed.own_rows(joint)

    @property
    def _needs_real(self) -> bool:
        """Whether the generator's loss looks at real samples."""
        return self.objective.requires.real or getattr(self.objective, "feature_matching", False)

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

    def backend(self) -> contextlib.AbstractContextManager[Any]:
        """Where operators run: plain PyTorch unless ``config.fused``."""
        return contextlib.nullcontext() if self.config.fused else use_backend("reference")

    def restored(self) -> None:
        for made in self._schedules:
            schedule.restart(made, self._clock.step)
        for graph in self._graphs.values():
            graph.reset()

    def close(self) -> None:
        self.batches.close()

    # --- looking at it --------------------------------------------------------------------------------------------

    def sample(self, z: Tensor) -> Tensor:
        """Samples [N, *sample_shape] of the averaged generator, if there is one, in evaluation mode."""
        return report.sample(self.average.module if self.average is not None else self.generator, z)

    def sheet(self) -> Image.Image | None:
        samples = self.sample(self._fixed_z)
        if self.data.points is None:
            return sheet.grid(samples)
        return report.scatter(samples, self.data.draw(len(samples), self.config.seed + 4))

    def evaluate(self) -> dict[str, float]:
        """Sliced W_2 between as many generated and real samples; for the Gaussians, also mode coverage.

        Of several processes the main one draws and scores them; the others get no scores.
        """
        if not distributed.is_main():
            return {}
        generator = torch.Generator(self.device).manual_seed(self.config.seed + 5)
        samples = self.sample(self.generator.latent(self.config.n_eval, generator=generator)).float()
        return report.evaluate(samples, self.data, self.config.seed + 6)

    def plan(self) -> dict[str, str]:
        return report.plan(self)


def _named(side: str, terms: Terms, loss: Tensor) -> Losses:
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


def train(config: GanConfig) -> Outcome:
    """Trains a GAN, or continues to. One process, or as many as torchrun started."""
    device = distributed.resolve_device(config.device)
    with distributed.session(device):
        # Samples have one size: let cuDNN find its fastest convolutions once.
        torch.backends.cudnn.benchmark = device.type == "cuda"
        return fit(GanTask(config))
