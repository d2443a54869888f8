"""Steps of the GAN trainer against plain ones, written separately from the papers' algorithms."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgan import objectives
from fastgan.reference.interpolate import draw_alpha
from fastgan.training.gan import GanConfig, GanTask, make_critic, resolve
from fastgan.training.gan.report import activation_bytes


def tiny(**settings: Any) -> GanConfig:
    defaults = {
        "device": "cpu", "num_threads": 0, "amp": "none", "channels_last": "off", "width_g": 8, "width_d": 8,
        "batch_size": 16, "latent_dim": 3, "steps": 10, "tensorboard": False, "progress": False, "n_samples": 4,
        "n_eval": 64,
    }  # fmt: skip
    settings = {**defaults, **settings}
    if settings.get("objective") == "sliced":  # refuses what is the critic's
        settings = {name: value for name, value in settings.items() if name not in GanConfig.CRITIC}
    return GanConfig(**settings)


class Recorded:
    """Batches that are remembered as they are given."""

    def __init__(self, task: GanTask) -> None:
        self.batches, self.seen = task.batches, []
        task.batches = self

    epoch = 0

    def __next__(self) -> Tensor:
        self.seen.append(next(self.batches).clone())
        return self.seen[-1]

    def prepare(self) -> None:
        """The next batch is taken when it is asked for."""


def plain_wgan_gp_step(
    critic: nn.Module,
    generator: nn.Module,
    adam_d: torch.optim.Optimizer,
    adam_g: torch.optim.Optimizer,
    batches: list[Tensor],
    latent: torch.Generator,
    draws: torch.Generator,
    weight: float,
) -> dict[str, float]:
    """Gulrajani et al. 2017, algorithm 1: one iteration of its outer loop, without a line of this package but α."""
    for real in batches:
        fake = generator(torch.randn(len(real), 3, generator=latent)).detach()
        on_real, on_fake = critic(real), critic(fake)
        alpha = draw_alpha(torch.randint(2**63 - 1, (1,), generator=draws), len(real)).view(-1, *[1] * (real.dim() - 1))
        x = (alpha * real + (1 - alpha) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        penalty = weight * ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()
        loss_d = on_fake.mean() - on_real.mean() + penalty
        adam_d.zero_grad()
        loss_d.backward()
        adam_d.step()
    loss_g = -critic(generator(torch.randn(len(real), 3, generator=latent))).mean()
    adam_g.zero_grad()
    loss_g.backward()
    adam_g.step()
    return {
        "critic_real": -on_real.mean().item(),
        "critic_fake": on_fake.mean().item(),
        "critic_penalty": penalty.item(),
        "critic": loss_d.item(),
        "generator": loss_g.item(),
    }


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize(
    "data", [{}, {"data": "digits", "architecture": "wgan-gp", "norm_g": "none"}], ids=["points", "digits"]
)
def test_wgan_gp_is_the_papers(data, fused):
    """Three iterations, loss by loss and weight by weight."""
    config = tiny(fused=fused, **data)
    task = GanTask(config)
    recorded = Recorded(task)
    critic, generator = copy.deepcopy(task.critic), copy.deepcopy(task.generator)
    started = [[p.detach().clone() for p in network.parameters()] for network in (critic, generator)]
    settings = task.settings
    assert (settings.lr_critic, settings.betas, settings.schedule.n) == (1e-4, (0.5, 0.9), 5)
    adam_d = torch.optim.Adam(critic.parameters(), lr=1e-4, betas=(0.5, 0.9))
    adam_g = torch.optim.Adam(generator.parameters(), lr=1e-4, betas=(0.5, 0.9))
    latent, draws = (torch.Generator().manual_seed(config.seed + k) for k in (1, 2))
    weight = 10.0 if data else 0.1
    for _ in range(3):
        recorded.seen.clear()
        losses = task.step()
        expected = plain_wgan_gp_step(critic, generator, adam_d, adam_g, recorded.seen, latent, draws, weight)
        assert len(recorded.seen) == 5
        assert list(losses) == list(expected)
        for name, value in losses.items():
            # The head's bias has gradient 0 up to rounding, of which Adam makes ± lr; differences do not know it.
            floor = 1e-5 if name in ("critic", "critic_penalty") else 15 * 1e-4
            assert value.item() == pytest.approx(expected[name], rel=1e-4, abs=floor), name
    for ours, plain, start in zip((task.critic, task.generator), (critic, generator), started, strict=True):
        apart, moved = (  # the bias of a unit that is on for every sample has gradient 0 up to rounding as well
            torch.cat([(a - b).flatten() for (name, a), b in pairs if not name.endswith("bias")]).norm().item()
            for pairs in (
                list(zip(ours.named_parameters(), plain.parameters(), strict=True)),
                list(zip(plain.named_parameters(), start, strict=True)),
            )
        )
        assert apart <= (1e-2 if fused else 1e-3) * moved


def test_wgan_is_the_papers():
    """Arjovsky et al. 2017, algorithm 1, with their code's schedule and clipping ahead of each critic step."""
    config = tiny(objective="wgan", fused=False, boost=4, boost_first=1, n_critic=2)
    task = GanTask(config)
    recorded = Recorded(task)
    critic, generator = copy.deepcopy(task.critic), copy.deepcopy(task.generator)
    rms_d = torch.optim.RMSprop(critic.parameters(), lr=5e-5)
    rms_g = torch.optim.RMSprop(generator.parameters(), lr=5e-5)
    latent = torch.Generator().manual_seed(config.seed + 1)
    for step in range(3):
        recorded.seen.clear()
        losses = task.step()
        assert len(recorded.seen) == (4 if step == 0 else 2)
        for real in recorded.seen:
            for parameter in critic.parameters():
                parameter.data.clamp_(-0.01, 0.01)
            fake = generator(torch.randn(len(real), 3, generator=latent)).detach()
            loss_d = critic(fake).mean() - critic(real).mean()
            rms_d.zero_grad()
            loss_d.backward()
            rms_d.step()
        loss_g = -critic(generator(torch.randn(16, 3, generator=latent))).mean()
        rms_g.zero_grad()
        loss_g.backward()
        rms_g.step()
        assert losses["critic"].item() == pytest.approx(loss_d.item(), abs=1e-9)
        assert losses["generator"].item() == pytest.approx(loss_g.item(), rel=1e-6)
    for ours, plain in ((task.critic, critic), (task.generator, generator)):
        for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
            assert torch.equal(a, b)


def test_non_saturating_step_is_goodfellows_bit_for_bit():
    config = tiny(objective="non-saturating", fused=False, data="digits", architecture="dcgan")
    task = GanTask(config)
    recorded = Recorded(task)
    critic, generator = copy.deepcopy(task.critic), copy.deepcopy(task.generator)
    adam_d = torch.optim.Adam(critic.parameters(), lr=2e-4, betas=(0.5, 0.999))
    adam_g = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    latent = torch.Generator().manual_seed(config.seed + 1)
    softplus = nn.functional.softplus
    for _ in range(3):
        losses = task.step()
        with torch.no_grad():
            fake = generator(torch.randn(16, 3, generator=latent))
        on_real, on_fake = critic(recorded.seen.pop()), critic(fake)
        loss_d = softplus(-on_real).mean() + softplus(on_fake).mean()
        adam_d.zero_grad()
        loss_d.backward()
        adam_d.step()
        loss_g = softplus(-critic(generator(torch.randn(16, 3, generator=latent)))).mean()
        adam_g.zero_grad()
        loss_g.backward()
        adam_g.step()
        assert losses["critic"].item() == loss_d.item()
        assert losses["generator"].item() == loss_g.item()
    for ours, plain in ((task.critic, critic), (task.generator, generator)):
        for (name, a), b in zip(ours.state_dict().items(), plain.state_dict().values(), strict=True):
            assert torch.equal(a, b), name  # batch norm's running statistics too


@pytest.mark.parametrize("name", ["wgan-gp", "wgan-gp-one-sided"])
def test_the_step_that_compiles_computes_the_same(name, monkeypatch):
    """Loss by loss and weight by weight, from the same random numbers."""
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append(options) or function)
    plain, compiled = GanTask(tiny(objective=name)), GanTask(tiny(objective=name, compile=True))
    assert asked == [{}, {}, {"fullgraph": True, "dynamic": False}]  # networks, the critic's gradients
    for _ in range(3):
        expected = plain.step()
        losses = compiled.step()
        assert list(losses) == list(expected)
        for key, value in losses.items():
            assert value.item() == pytest.approx(expected[key].item(), rel=1e-4, abs=1.5e-3), key
    apart = torch.cat([
        (a - b).abs().flatten()
        for (key, a), b in zip(plain.critic.named_parameters(), compiled.critic.parameters(), strict=True)
        if key != "head.bias"
    ])  # fmt: skip
    assert (apart > 1e-5).double().mean() < 0.02


def steps_of_both(one, other):
    """The losses of two steps of each task, from the same random states."""
    state = torch.get_rng_state()
    for _ in range(2):
        torch.set_rng_state(state)
        expected = one.step()
        torch.set_rng_state(state)
        losses = other.step()
        state = torch.get_rng_state()
        yield expected, losses


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "dragan"},
        {"objective": "ct-gan", "n_critic": 2},
        {"objective": "wgan-gp", "accumulate": 2, "n_critic": 1},
        {"objective": "lsgan", "hyper": ("feature_matching=true",), "fused": False},
        {"objective": "sliced"},
    ],
    ids=str,
)
def test_compiled_networks_compute_the_same(settings, monkeypatch):
    """Also where the penalty, and the features, take the critic uncompiled."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    plain, compiled = GanTask(tiny(**settings)), GanTask(tiny(**settings, compile=True))
    passes = []
    for label, network in compiled.networks.items():
        network.register_forward_pre_hook(lambda *_, label=label: passes.append((label, torch.compiler.is_compiling())))
    for expected, losses in steps_of_both(plain, compiled):
        assert list(losses) == list(expected)
        for key, value in losses.items():
            assert value.item() == pytest.approx(expected[key].item(), rel=1e-4, abs=1e-6), key
    assert {label for label, traced in passes if traced} == set(compiled.networks)


RECOMPUTED = {
    "dcgan, batch norm, average": {"objective": "lsgan", "data": "digits", "architecture": "dcgan", "ema": 0.9},
    "spectral norm, not joint": {"objective": "sngan", "data": "digits", "architecture": "sngan", "fused": False},
    "resnet, penalty, bf16": {"data": "digits", "architecture": "resnet", "amp": "bf16"},
    "dropout, penalty": {"objective": "ct-gan", "data": "digits", "architecture": "dcgan"},
    "autoencoder": {"objective": "ebgan", "data": "digits", "architecture": "dcgan"},
    "minibatch discrimination": {"objective": "gan", "data": "digits", "architecture": "dcgan", "minibatch": 3},
    "sliced": {"objective": "sliced", "data": "digits", "architecture": "dcgan"},
}


LESS = {"minibatch discrimination": 1.0, "sliced": 1.0}  # what is not of a chain of layers is most of these


@pytest.mark.parametrize("case", RECOMPUTED)
def test_recomputing_changes_no_bit_and_keeps_less(case):
    """Losses, weights, running statistics and singular vectors; the dry run's figure and what autograd keeps."""
    settings = {"n_critic": 2, **RECOMPUTED[case]}
    plain, saving = GanTask(tiny(**settings)), GanTask(tiny(**settings, recompute=True))
    for expected, losses in steps_of_both(plain, saving):
        assert list(losses) == list(expected)
        assert all(torch.equal(losses[key], expected[key]) for key in losses)
    for name, network in plain.networks.items():
        for (key, a), b in zip(network.state_dict().items(), saving.networks[name].state_dict().values(), strict=True):
            assert torch.equal(a, b), (name, key)
    assert activation_bytes(saving) < LESS.get(case, 0.8) * activation_bytes(plain)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_memory_estimate_of_a_run_on_a_gpu_is_in_its_precision(amp):
    """It is found on the CPU, where the GPU's autocast would change nothing."""
    settings = {"objective": "hinge", "data": "digits", "architecture": "dcgan"}
    full, half = GanTask(tiny(**settings)), GanTask(tiny(**settings, amp=amp))
    estimate = activation_bytes(half)
    assert estimate < 0.8 * activation_bytes(full)
    half.precision.device = torch.device("cuda")
    assert activation_bytes(half) == estimate


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "hinge", "fused": False},
        {"objective": "wgan-gp", "hyper": ("weight=3",), "n_critic": 2},
        {"objective": "wgan-gp-one-sided", "fused": False},
        {"objective": "ct-gan", "dropout": 1e-9, "hyper": ("margin=0.1",)},
        {"objective": "ebgan", "hyper": ("pulling_away=0",), "data": "digits"},
    ],
    ids=str,
)
def test_a_batch_in_parts_gives_the_same_losses(settings):
    """Three parts of 16 samples: 6, 6 and 4."""
    whole, parts = GanTask(tiny(**settings)), GanTask(tiny(**settings, accumulate=3))
    seen = []
    parts.critic.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    for k in range(3):
        expected, losses = whole.step(), parts.step()
        assert list(losses) == list(expected)
        for name, value in losses.items():
            assert value.item() == pytest.approx(expected[name].item(), rel=1e-3, abs=1e-5 if k == 0 else 1e-3), name
    assert max(seen) < 16 or settings["objective"] != "hinge"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accumulate": 17}, "between 1 and batch_size 16, that of the whole step, got 17"),
        ({"objective": "sliced"}, "'sliced' looks at the batch as a whole"),
        ({"objective": "ebgan"}, "'ebgan' with pulling_away looks at the batch as a whole"),
        ({"objective": "dragan"}, "'dragan' looks at the batch as a whole"),
        ({"objective": "lsgan", "hyper": ("feature_matching=true",)}, "'lsgan' with feature_matching looks at"),
        ({"objective": "gan", "minibatch": 3}, "minibatch 3 compares the samples of a batch; recompute, or a smaller"),
    ],
    ids=str,
)
def test_a_batch_that_has_no_parts_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GanTask(tiny(**{"accumulate": 2, **settings}))


def test_spectral_norm_counts_the_critic_s_calls(caplog):
    """Real and fake samples are judged apart, fused or not; batches in parts are another step, as a warning says."""
    settings = {"objective": "sngan", "data": "digits", "architecture": "dcgan", "ema": 0}
    plain, fused = (GanTask(tiny(**settings, fused=fused)) for fused in (False, True))
    for _ in range(3):
        for (name, expected), found in zip(plain.step().items(), fused.step().values(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3, msg=name)
    caplog.clear()
    GanTask(tiny(**settings, accumulate=2))
    assert "accumulate 2: spectral norm (in critic) takes a step of its power iteration for each part" in caplog.text


def test_a_part_of_one_sample_has_no_variance():
    settings = {"objective": "wgan-gp", "data": "digits", "architecture": "wgan-gp"}
    for change, message in (
        (
            {"batch_size": 5, "accumulate": 4},
            r"one sample, got 5 in parts of 2 \(accumulate 4\); expected",
        ),
        ({"batch_size": 1}, "batch norm .in generator. has no variance of one sample, got 1; expected"),
    ):
        with pytest.raises(ValueError, match=message):
            GanTask(tiny(**settings, **change))


def test_batch_norm_sees_a_part_at_a_time(caplog):
    """DCGAN's step in three parts of 16 samples, 6, 6 and 4, beside one that is written out; a warning tells of it."""
    settings = {"objective": "lsgan", "data": "digits", "architecture": "dcgan", "ema": 0.9}
    GanTask(tiny(**settings))
    assert not caplog.text
    task = GanTask(tiny(**settings, accumulate=3))
    assert "accumulate 3: batch norm (in critic, generator) takes mean and variance of each part of 6" in caplog.text
    networks = {"critic": task.critic, "generator": task.generator}
    plain = {name: copy.deepcopy(network).double() for name, network in networks.items()}
    critic, generator = plain.values()
    real, z = next(task.batches), torch.randn(16, 3)
    task._z = lambda n: z

    def compare(name: str, loss: Tensor) -> None:
        torch.testing.assert_close(losses[name].double(), loss, rtol=1e-4, atol=0)
        optimizer = {"critic": task.optimizer_d, "generator": task.optimizer_g}[name]
        for p, q in zip(networks[name].parameters(), plain[name].parameters(), strict=True):
            torch.testing.assert_close(optimizer.state[p]["exp_avg"].double(), 0.5 * q.grad, rtol=1e-3, atol=1e-6)
        for a, b in zip(networks[name].buffers(), plain[name].buffers(), strict=True):
            torch.testing.assert_close(a, b.to(a.dtype), rtol=1e-4, atol=1e-6)

    with torch.no_grad():
        fakes = generator(z.double()).split(6)
    parts = zip(real.double().split(6), fakes, strict=True)
    loss = sum((0.5 / 16) * ((critic(x) - 1).square() + critic(y).square()).sum() for x, y in parts)
    loss.backward()
    losses = task.critic_step(real)
    compare("critic", loss.detach())
    critic.load_state_dict(task.critic.state_dict())
    loss = sum((0.5 / 16) * (critic(generator(part)) - 1).square().sum() for part in z.double().split(6))
    loss.backward()
    losses = task.generator_step(None)
    compare("generator", loss.detach())


# --- what ports get wrong -----------------------------------------------------------------------------------------


def gradients(network: nn.Module) -> list[Tensor]:
    return [p.grad for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", ["wgan-gp", "ct-gan", "dragan", "ebgan", "lsgan"])
def test_critic_steps_know_nothing_of_the_generators_graph(name):
    task = GanTask(tiny(objective=name))
    judged = []
    task.critic.register_forward_pre_hook(lambda module, inputs: judged.append(inputs[0]))
    before = copy.deepcopy(task.generator.state_dict())
    task.critic_step(next(task.batches))
    assert gradients(task.generator) == []
    assert all(x.grad_fn is None or x.is_leaf for x in judged)
    for key, value in task.generator.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", ["wgan-gp", "ebgan", "gan"])
def test_generator_steps_leave_the_critic_alone(name):
    """Neither its weights nor their gradients, which the next critic step must not find added to its own."""
    task = GanTask(tiny(objective=name))
    task.critic_step(next(task.batches))
    weights, grads = copy.deepcopy(task.critic.state_dict()), [g.clone() for g in gradients(task.critic)]
    task.generator_step(None)
    for key, value in task.critic.state_dict().items():
        assert torch.equal(value, weights[key])
    for a, b in zip(gradients(task.critic), grads, strict=True):
        assert torch.equal(a, b)
    assert all(p.requires_grad for p in task.critic.parameters())
    assert gradients(task.generator)


def test_critic_is_thawed_when_a_generator_step_fails():
    task = GanTask(tiny())
    task.generator.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("no")))
    with pytest.raises(RuntimeError, match="no"):
        task.generator_step(None)
    assert all(p.requires_grad for p in task.critic.parameters())


@pytest.mark.parametrize("name", ["wgan-gp", "wgan-gp-one-sided", "ct-gan", "dragan"])
def test_a_penalised_critic_has_no_batch_norm(name):
    task = GanTask(tiny(objective=name, data="digits", architecture="dcgan"))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in task.critic.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in task.generator.modules())
    with pytest.raises(ValueError, match="norm_d batch mixes samples"):
        GanTask(tiny(objective=name, data="digits", architecture="dcgan", norm_d="batch"))
    with pytest.raises(ValueError, match="minibatch 4 mixes samples"):
        GanTask(tiny(objective=name, minibatch=4))


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["wgan-gp", "dragan", "fgan-kl", "ebgan"])
def test_mixed_precision_losses_are_computed_in_float32(name, amp):
    """The same first losses as in float32, to half precision; finite, and every weight moves."""
    settings = {"objective": name, "data": "digits", "width_d": 32, "n_critic": 1}
    exact = GanTask(tiny(**settings)).step()
    mixed = GanTask(tiny(**settings, amp=amp))
    rounded = mixed.step()
    before = copy.deepcopy(mixed.critic.state_dict())
    for _ in range(16 if amp == "fp16" else 4):  # the loss scaler skips steps until its scale fits
        rounded_later = mixed.step()
    for key, value in rounded.items():
        assert value.dtype == torch.float32
        assert rounded_later[key].isfinite()
        assert value.item() == pytest.approx(exact[key].item(), rel=0.1, abs=0.1), key
    for key, value in mixed.critic.named_parameters():
        assert key == "head.bias" or not torch.equal(value, before[key]), key


def test_weights_are_clipped_when_the_critic_judges():
    task = GanTask(tiny(objective="wgan", n_critic=3, boost_first=0, boost_every=0))
    largest = []
    task.critic.register_forward_pre_hook(
        lambda module, _: largest.append(max(p.abs().max().item() for p in module.parameters()))
    )
    for _ in range(2):
        task.step()
    clip = torch.tensor(0.01).item()
    # Real and fake in one call: three critic steps and the generator's, which sees the last critic step's weights.
    assert [value <= clip for value in largest] == [True, True, True, False] * 2


def test_schedules_of_critic_steps():
    task = GanTask(tiny(objective="wgan", n_critic=2, boost=5, boost_first=2, boost_every=4))
    counts, recorded = [], Recorded(task)
    for _ in range(9):
        recorded.seen.clear()
        task.step()
        counts.append(len(recorded.seen))
    assert counts == [5, 5, 2, 2, 5, 2, 2, 2, 5]


def test_linear_decay_reaches_zero_at_the_end():
    task = GanTask(tiny(lr_decay="linear", steps=4, lr_d=0.4, lr_g=0.2, n_critic=1))
    rates = []
    for _ in range(4):
        rates.append([o.param_groups[0]["lr"] for o in (task.optimizer_d, task.optimizer_g)])
        task.step()
    assert rates == [pytest.approx([0.4 * f, 0.2 * f]) for f in (1, 0.75, 0.5, 0.25)]
    assert task.optimizer_d.param_groups[0]["lr"] == 0.0


@pytest.mark.parametrize("data", ["8gaussians", "digits"])
@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_every_objective_trains_on_points_and_images(name, data):
    """Finite losses; every parameter of both networks moves; the generator's average follows."""
    images = {"data": "digits", "architecture": "sngan" if name == "sngan" else "dcgan"} if data == "digits" else {}
    task = GanTask(tiny(objective=name, n_critic=1, boost_first=0, boost_every=0, ema=0.5, **images))
    before = {k: copy.deepcopy(n.state_dict()) for k, n in task.networks.items()}
    for _ in range(3):
        losses = task.step()
        assert all(loss.isfinite() and not loss.requires_grad for loss in losses.values())
    assert ("critic" in task.networks) == (name != "sliced")
    for label, network in task.networks.items():
        for key, value in network.named_parameters():
            if key != "head.bias":  # a difference of outputs, as most of these losses are, does not know it
                assert not torch.equal(value, before[label][key]), (label, key)


@pytest.mark.parametrize("name", ["wgan-gp", "ct-gan", "ebgan", "sliced"])
def test_memory_estimate_is_what_autograd_keeps(name):
    """The dry run's figure, found on tensors without memory, against the storages of real steps."""
    data = {"data": "digits", "architecture": "dcgan"}
    task, sizes = GanTask(tiny(objective=name, **data)), []
    weights = {p.untyped_storage().data_ptr() for net in task.networks.values() for p in net.parameters()}
    before = torch.get_rng_state()
    estimate = activation_bytes(task)
    assert torch.equal(torch.get_rng_state(), before)
    for step in (task.generator_step, task.critic_step)[: len(task.optimizers())]:
        kept: dict[int, tuple[Any, int]] = {}

        def keep(tensor, kept=kept):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = (storage, storage.nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            step(next(task.batches))
        sizes.append(sum(size for pointer, (_, size) in kept.items() if pointer not in weights))
    assert estimate == pytest.approx(max(sizes), rel=0.05)
    if name == "wgan-gp":
        halves = GanTask(tiny(objective=name, **data, norm_g="layer", accumulate=2))
        assert activation_bytes(halves) == pytest.approx(estimate / 2, rel=0.1)


def test_published_settings_reach_the_optimizers():
    for name, data, expected in (
        ("wgan-gp", {"data": "digits", "architecture": "resnet"}, (2e-4, 2e-4, (0.0, 0.9), "linear")),
        ("ebgan", {}, (1e-3, 1e-3, (0.5, 0.999), "none")),
        ("ebgan", {"data": "digits", "architecture": "dcgan"}, (2e-4, 2e-4, (0.5, 0.999), "none")),
        ("wgan-gp", {"data": "digits", "architecture": "wgan-gp"}, (1e-4, 1e-4, (0.5, 0.9), "none")),
        ("wgan-gp", {"data": "digits"}, (1e-4, 1e-4, (0.0, 0.9), "none")),
        ("hinge", {}, (4e-4, 1e-4, (0.0, 0.9), "none")),
        ("hinge", {"lr_d": 1e-2, "beta2": 0.99}, (1e-2, 1e-4, (0.0, 0.99), "none")),
    ):
        task = GanTask(tiny(objective=name, **data))
        group_d, group_g = task.optimizer_d.param_groups[0], task.optimizer_g.param_groups[0]
        rates = group_d.get("initial_lr", group_d["lr"]), group_g.get("initial_lr", group_g["lr"])
        assert (*rates, group_d["betas"], task.settings.decay) == expected
        assert group_g["betas"] == expected[2]
    assert resolve(GanConfig(objective="wgan-gp"))[1].batch_size == 256
    assert resolve(GanConfig(objective="wgan-gp"))[0].weight == 0.1
    assert resolve(GanConfig(objective="ebgan"))[0].margin == 0.3
    assert (
        make_critic(GanConfig(objective="ebgan"), resolve(GanConfig(objective="ebgan"))[0]).encoder[-1].weight.size(0)
        == 32
    )
    large = GanConfig(objective="wgan-gp", data="somewhere", image_size=64, architecture="resnet")
    settings = resolve(large)[1]  # the authors' 64-pixel code has algorithm 1's settings, that for CIFAR-10 its own
    assert (settings.lr_critic, settings.betas, settings.decay) == (1e-4, (0.0, 0.9), "none")
    assert resolve(GanConfig(objective="wgan-gp", data="digits"))[0].weight == 10.0
    assert resolve(GanConfig(objective="wgan-gp", hyper=("weight=3",)))[0].weight == 3.0
    assert isinstance(GanTask(tiny(objective="wgan")).optimizer_d, torch.optim.RMSprop)


def test_the_critics_gradient_is_limited():
    """To the norm that is asked for, before the optimizer sees it; 0 leaves it alone."""
    norms = {}
    for limit in (0.0, 1e-3):
        task = GanTask(tiny(objective="fgan-kl", grad_clip=limit))
        seen = []
        task.optimizer_d.register_step_pre_hook(
            lambda *_, task=task, seen=seen: seen.append(
                torch.cat([p.grad.flatten() for p in task.critic.parameters()]).norm().item()
            )
        )
        task.critic_step(next(task.batches))
        norms[limit] = seen[0]
    assert norms[0.0] > 1e-2
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-3)
    with pytest.raises(ValueError, match="grad_clip must be at least 0"):
        GanTask(tiny(objective="fgan-kl", grad_clip=-1.0))
