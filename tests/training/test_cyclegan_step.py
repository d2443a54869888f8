"""A step of the trainer against a plain one, written separately in the published order."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastgan.nn import fuse
from fastgan.nn.columns import ConvByColumns
from fastgan.nn.winograd import Conv3x3
from fastgan.training.cyclegan import CycleGan, CycleGanConfig, build_networks
from fastgan.training.cyclegan.losses import gan_loss
from fastgan.training.cyclegan.networks import skip_idle_biases
from fastgan.training.cyclegan.report import activation_bytes
from fastgan.training.pool import ImagePool

SIZE = 16


class Pairs:
    """A few random images of both domains."""

    def __init__(self, count: int = 6, channels: int = 3, size: int = SIZE) -> None:
        generator = torch.Generator().manual_seed(5)
        self.images = torch.rand(2, count, channels, size, size, generator=generator) * 2 - 1

    def __len__(self) -> int:
        return self.images.size(1)

    def sample(self, index: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        other = int(torch.randint(len(self), (), generator=generator))
        return {"A": self.images[0, index], "B": self.images[1, other]}


def tiny(**settings: Any) -> CycleGanConfig:
    defaults = {
        "dataroot": Path("none"), "netG": "resnet_1blocks", "ngf": 4, "ndf": 4, "netD": "n_layers", "n_layers_D": 1,
        "pool_size": 2, "device": "cpu", "num_threads": 0, "n_epochs": 1, "n_epochs_decay": 1, "batch_size": 2,
        "print_freq": 1, "fused": False, "init_gain": 0.3,
    }  # fmt: skip
    if settings.get("netD", "n_layers") != "n_layers":
        del defaults["n_layers_D"]
    return CycleGanConfig(**{**defaults, **settings})


class Published:
    """CycleGANModel.optimize_parameters, restated; decisions of the pools are drawn as the trainer seeds them."""

    def __init__(self, nets: dict[str, nn.Module], config: CycleGanConfig) -> None:
        self.nets, self.c = nets, config
        betas = (config.beta1, 0.999)
        self.adam_G = torch.optim.Adam([*nets["G_A"].parameters(), *nets["G_B"].parameters()], config.lr, betas)
        self.adam_D = torch.optim.Adam([*nets["D_A"].parameters(), *nets["D_B"].parameters()], config.lr, betas)
        self.stored: dict[str, list[Tensor]] = {"D_A": [], "D_B": []}
        self.coins = {
            "D_A": torch.Generator().manual_seed(config.seed),
            "D_B": torch.Generator().manual_seed(config.seed + 1),
        }
        self.alphas = torch.Generator().manual_seed(config.seed + 2)

    def criterion(self, prediction: Tensor, real: bool, judging: bool = False) -> Tensor:
        if self.c.gan_mode == "hinge" and judging:
            return torch.clamp(1 - prediction if real else 1 + prediction, min=0).mean()
        if self.c.gan_mode == "lsgan":
            return nn.MSELoss()(prediction, torch.full_like(prediction, 1.0 if real else 0.0))
        if self.c.gan_mode == "vanilla":
            return nn.BCEWithLogitsLoss()(prediction, torch.full_like(prediction, 1.0 if real else 0.0))
        return -prediction.mean() if real else prediction.mean()

    def pool(self, name: str, images: Tensor) -> Tensor:
        stored, out = self.stored[name], []
        if self.c.pool_size == 0:
            return images.detach()
        for image in images.detach().clone():
            if len(stored) < self.c.pool_size:
                stored.append(image)
                out.append(image)
            elif torch.rand((), generator=self.coins[name], dtype=torch.float64) > 0.5:
                slot = int(torch.randint(self.c.pool_size, (), generator=self.coins[name]))
                out.append(stored[slot])
                stored[slot] = image
            else:
                out.append(image)
        return torch.stack(out)

    def penalty(self, net: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        alpha = torch.rand(len(real), generator=self.alphas)[:, None, None, None]
        points = (alpha * real + (1 - alpha) * fake).requires_grad_()
        (gradient,) = torch.autograd.grad(net(points).sum(), points, create_graph=True)
        slope = gradient.flatten(1).norm(dim=1) - 1
        return (slope.clamp(min=0) if self.c.gp_one_sided else slope).square().mean() * self.c.lambda_gp

    def step(self, A: Tensor, B: Tensor) -> dict[str, Tensor]:
        G_A, G_B, D_A, D_B = (self.nets[k] for k in ("G_A", "G_B", "D_A", "D_B"))
        fake_B = G_A(A)
        rec_A = G_B(fake_B)
        fake_A = G_B(B)
        rec_B = G_A(fake_A)
        for p in [*D_A.parameters(), *D_B.parameters()]:
            p.requires_grad_(False)
        self.adam_G.zero_grad()
        out = {"idt_A": torch.zeros(()), "idt_B": torch.zeros(())}
        if self.c.lambda_identity > 0:
            out["idt_A"] = nn.L1Loss()(G_A(B), B) * self.c.lambda_B * self.c.lambda_identity
            out["idt_B"] = nn.L1Loss()(G_B(A), A) * self.c.lambda_A * self.c.lambda_identity
        out["G_A"] = self.criterion(D_A(fake_B), True)
        out["G_B"] = self.criterion(D_B(fake_A), True)
        out["cycle_A"] = nn.L1Loss()(rec_A, A) * self.c.lambda_A
        out["cycle_B"] = nn.L1Loss()(rec_B, B) * self.c.lambda_B
        (out["G_A"] + out["G_B"] + out["cycle_A"] + out["cycle_B"] + out["idt_A"] + out["idt_B"]).backward()
        self.adam_G.step()
        for p in [*D_A.parameters(), *D_B.parameters()]:
            p.requires_grad_(True)
        self.adam_D.zero_grad()
        for name, net, real, made in (("D_A", D_A, B, fake_B), ("D_B", D_B, A, fake_A)):
            fake = self.pool(name, made)
            loss = (self.criterion(net(real), True, True) + self.criterion(net(fake.detach()), False, True)) * 0.5
            if self.c.gan_mode == "wgangp":
                loss = loss + self.penalty(net, real, fake)
            loss.backward()
            out[name] = loss
        self.adam_D.step()
        return {name: value.detach() for name, value in out.items()}


def batches(count: int, rows: int = 2, channels: int = 3, size: int = SIZE) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(9)
    return [
        tuple(torch.rand(rows, channels, size, size, generator=generator) * 2 - 1 for _ in "AB")  # type: ignore[misc]
        for _ in range(count)
    ]


def pair(config: CycleGanConfig) -> tuple[CycleGan, Published]:
    """The trainer and the published step, from the same weights."""
    task = CycleGan(config, Pairs())
    torch.manual_seed(config.seed)
    plain = build_networks(config)
    for name, network in task.networks.items():
        plain[name].load_state_dict(network.state_dict())
    return task, Published(plain, config)


def weights(nets: dict[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{n}.{k}": v.detach().clone() for n, net in nets.items() for k, v in net.state_dict().items()}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gan_mode": "vanilla", "netD": "basic", "norm": "batch"},
        {"lambda_identity": 0.0, "netD": "pixel", "lambda_A": 7.0, "gan_mode": "hinge"},
        {"netG": "unet_32", "norm": "none", "lambda_B": 3.0, "pool_size": 0, "ngf": 2},
    ],
    ids=["lsgan", "vanilla", "no-identity", "unet"],
)
def test_plain_step_is_the_published_one_bit_for_bit(settings: dict[str, Any]) -> None:
    config = tiny(**settings)
    size = 32 if config.netG == "unet_32" or config.netD == "basic" else SIZE
    task, published = pair(config)
    for A, B in batches(4, size=size):
        losses, expected = task.update(A, B), published.step(A, B)
        for name, value in expected.items():
            if name in losses or config.lambda_identity > 0:
                assert losses[name] == value, name
    for (name, got), expected_weight in zip(
        weights(task.networks).items(), weights(published.nets).values(), strict=True
    ):
        assert torch.equal(got, expected_weight), name


@pytest.mark.parametrize(
    "settings",
    [
        {"fused": True},
        {"fused": True, "gan_mode": "wgangp"},
        {"fused": True, "gan_mode": "wgangp", "gp_one_sided": True, "ndf": 16},
        {"fused": True, "gan_mode": "vanilla", "netG": "unet_32", "ngf": 2},
        {"fused": False, "gan_mode": "wgangp"},
    ],
    ids=str,
)
def test_step_is_the_published_one_within_rounding(settings: dict[str, Any]) -> None:
    """First step: losses, then gradients (as Adam's first moments), no farther from float64 than twice PyTorch's.

    So of one network, and of six on the mean; of the small U-Net on the mean alone, for a single one's error is now a
    third of PyTorch's, now three times that, as processors round.
    """
    # By network, generators and discriminators, ours and PyTorch's.
    errors = torch.zeros(6, 2, 2, dtype=torch.float64)
    for seed in range(len(errors)):
        config = tiny(**settings, seed=seed)
        task, published = pair(config)
        exact = Published({name: copy.deepcopy(net).double() for name, net in published.nets.items()}, config)
        ((A, B),) = batches(1, size=32)
        losses, expected, truth = task.update(A, B), published.step(A, B), exact.step(A.double(), B.double())
        for name in expected:
            torch.testing.assert_close(losses[name].double(), truth[name], rtol=1e-5, atol=1e-6)
        l1 = sum(truth[k] for k in ("cycle_A", "cycle_B", "idt_A", "idt_B"))
        torch.testing.assert_close(losses["l1"].double(), l1, rtol=1e-5, atol=1e-6)
        for i, side in enumerate("GD"):
            true = moments(getattr(exact, f"adam_{side}"))
            scale = max(float(t.abs().max()) for t in true)
            for j, optimizer in enumerate((getattr(task, f"optimizer_{side}"), getattr(published, f"adam_{side}"))):
                found = zip(moments(optimizer), true, strict=True)
                errors[seed, i, j] = max(float((x.double() - t).abs().max()) for x, t in found) / scale
    judged = [errors.mean(0)] if "netG" in settings else [errors.mean(0), errors[0]]
    for ours, allowed in torch.cat(judged).tolist():
        assert ours <= 2 * allowed + 1e-6


def moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [optimizer.state[p]["exp_avg"] for p in optimizer.param_groups[0]["params"]]


@pytest.mark.parametrize(
    "options",
    [
        {"batched_calls": "on"},
        {"accumulate": 2},
        {"recompute": True},
        {"channels_last": "on"},
        {"accumulate": 3},
        {"compile": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("gan_mode", ["lsgan", "wgangp"])
def test_options_do_not_change_the_result(
    options: dict[str, Any], gan_mode: str, float64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64: without norms, one rounding of the weights to float32 changes what two steps give by a fifth."""
    # Inductor would take most of the tests' time; what is traced is the same.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    both = {"gan_mode": gan_mode, "batch_size": 4, "norm": "none" if "channels_last" in options else "instance"}
    plain, other = CycleGan(tiny(**both), Pairs()), CycleGan(tiny(**both, **options), Pairs())
    for A, B in batches(2, rows=4):
        expected, losses = plain.update(A, B), other.update(A, B)
        assert expected.keys() == losses.keys()
        for name in expected:
            torch.testing.assert_close(losses[name], expected[name], rtol=1e-10, atol=1e-10)
    for optimizer in ("optimizer_G", "optimizer_D"):
        theirs = getattr(plain, optimizer)
        ours = getattr(other, optimizer)
        scale = max(float(s["exp_avg"].abs().max()) for s in theirs.state.values())
        for p, q in zip(theirs.param_groups[0]["params"], ours.param_groups[0]["params"], strict=True):
            torch.testing.assert_close(
                ours.state[q]["exp_avg"], theirs.state[p]["exp_avg"], rtol=1e-8, atol=1e-9 * scale
            )


def test_pytorch_s_instance_norm_is_not_put_into_channels_last() -> None:
    """On a CPU its gradients of a batch of one are wrong there."""
    with pytest.raises(ValueError, match=r"channels_last must be auto or off .* got on: .* gradients are wrong"):
        CycleGan(tiny(channels_last="on", fused=False), Pairs())
    CycleGan(tiny(channels_last="on", fused=False, norm="batch"), Pairs())


def test_batch_norm_sees_a_part_at_a_time(caplog: pytest.LogCaptureFixture) -> None:
    """A batch whose two parts are alike gives the losses and gradients of one of them."""
    settings = {"norm": "batch", "pool_size": 0}
    whole, parts = CycleGan(tiny(**settings), Pairs()), CycleGan(tiny(**settings, batch_size=4, accumulate=2), Pairs())
    assert "batch norm (in G_A, G_B, D_A, D_B) takes mean and variance of each part of 2 samples" in caplog.text
    for A, B in batches(1):
        expected, losses = whole.update(A, B), parts.update(torch.cat([A, A]), torch.cat([B, B]))
        for name in expected:
            torch.testing.assert_close(losses[name], expected[name], rtol=1e-5, atol=1e-6)
    for a, b in ((whole.optimizer_G, parts.optimizer_G), (whole.optimizer_D, parts.optimizer_D)):
        scale = max(float(moment.abs().max()) for moment in moments(a))
        for p, q in zip(moments(a), moments(b), strict=True):
            torch.testing.assert_close(q, p, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize(
    "options", [{"norm": "batch"}, {"no_dropout": False}, {"norm": "batch", "amp": "bf16"}], ids=str
)
def test_recomputing_is_exact(options: dict[str, Any]) -> None:
    """Losses, weights and running statistics, which the second run must not count again."""
    plain, saving = (CycleGan(tiny(recompute=on, **options), Pairs()) for on in (False, True))
    for A, B in batches(2):
        torch.manual_seed(1)
        expected = plain.update(A, B)
        torch.manual_seed(1)
        losses = saving.update(A, B)
        assert all(torch.equal(losses[name], expected[name]) for name in expected)
    for name, network in plain.networks.items():
        theirs = saving.networks[name].state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "joins"),
    [
        ({"fused": True}, True), ({"fused": False}, False), ({"fused": True, "norm": "batch"}, False),
        ({"fused": True, "no_dropout": False}, False), ({"fused": True, "batched_calls": "off"}, False),
        ({"fused": False, "batched_calls": "on"}, True),
    ],
    ids=str,
)  # fmt: skip
def test_calls_are_joined_where_that_changes_nothing(settings: dict[str, Any], joins: bool) -> None:
    task = CycleGan(tiny(**settings), Pairs())
    rows: dict[str, list[int]] = {"G_A": [], "D_A": []}
    for name, seen in rows.items():
        task.networks[name].register_forward_pre_hook(lambda module, args, seen=seen: seen.append(len(args[0])))
    task.update(*batches(1, rows=2)[0])
    assert rows == ({"G_A": [4, 2], "D_A": [2, 4]} if joins else {"G_A": [2, 2, 2], "D_A": [2, 2, 2]})


def test_wide_generators_convolve_in_ways_of_their_own_and_follow_plain_ones() -> None:
    settings = {"ngf": 32, "netG": "resnet_1blocks", "crop_size": 64, "load_size": 64}
    plain, fast = (CycleGan(tiny(**settings, fused=fused), Pairs()) for fused in (False, True))
    for network, counts in (("G_A", {Conv3x3: 2, ConvByColumns: 1}), ("D_A", {ConvByColumns: 1})):
        found = [Counter(map(type, task.networks[network].modules())) for task in (plain, fast)]
        assert not counts.keys() & found[0].keys()
        assert {kind: found[1][kind] for kind in counts} == counts
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        A, B = torch.rand(2, 2, 3, 64, 64, generator=generator) * 2 - 1
        expected, losses = plain.update(A, B), fast.update(A, B)
        for name in expected:
            torch.testing.assert_close(losses[name], expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_autocast_stays_near(amp: str) -> None:
    plain, low = CycleGan(tiny(), Pairs()), CycleGan(tiny(amp=amp, fused=True), Pairs())
    for A, B in batches(3):
        expected, losses = plain.update(A, B), low.update(A, B)
        for name in expected:
            torch.testing.assert_close(losses[name].float(), expected[name], rtol=0.05, atol=0.05)
    assert all(p.isfinite().all() for net in low.networks.values() for p in net.parameters())


def test_discriminators_get_no_gradient_from_the_generator_step() -> None:
    task = CycleGan(tiny(lr=0.0), Pairs())
    ((A, B),) = batches(1)
    task.update(A, B)
    got = [p.grad.clone() for n in ("D_A", "D_B") for p in task.networks[n].parameters()]
    fake = {"D_A": task.networks["G_A"](A), "D_B": task.networks["G_B"](B)}
    expected = []
    for name, real in (("D_A", B), ("D_B", A)):
        net = task.networks[name]
        loss = 0.5 * (nnf.mse_loss(net(real), torch.ones_like(net(real))) + net(fake[name].detach()).square().mean())
        expected += torch.autograd.grad(loss, list(net.parameters()))
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_nc": 1}, "identity loss needs as many input as output channels"),
        ({"gan_mode": "wgangp", "norm": "batch"}, "norm must be instance or none, got batch"),
        ({"batched_calls": "on", "norm": "batch"}, "batched_calls changes the result of norm batch"),
        ({"accumulate": 3}, "accumulate must be between 1 and batch_size 2, that of the whole step, got 3"),
        ({"epoch_count": 5}, "nothing to train: epoch_count 5"),
        ({"device": "cuda:9"}, "cuda:9"),
        ({"netG": "resnet"}, "netG must be resnet_9blocks, .* got 'resnet'"),
        ({"netG": "unet_48"}, "netG must be resnet_9blocks, .* got 'unet_48'"),
        ({"ema": 1.5}, r"in \[0, 1\), got 1.5"),
        ({"gan_mode": "wgangp", "preprocess": "scale_width"}, "needs one size: .* got scale_width"),
        ({"gp_one_sided": True}, "gp_one_sided is for gan_mode wgangp, got lsgan"),
        ({"n_layers_D": 7}, "netD n_layers needs images of at least 384 pixels, got 256"),
        ({"epoch_count": 0}, "epoch_count must be at least 1, got 0"),
        ({"lambda_A": -1.0}, "lambda_A must be at least 0, got -1"),
        ({"lr_decay_iters": 0}, "lr_decay_iters must be at least 1, got 0"),
        ({"lr_policy": "cosine", "n_epochs": 0}, "n_epochs must be at least 1, got 0"),
        ({"beta1": 1.0}, r"beta1 must be in \[0, 1\), got 1.0"),
        ({"pool_size": -1}, "pool_size must be at least 0, got -1"),
        ({"lambda_B": float("nan")}, "lambda_B must be at least 0 and finite, got nan"),
        ({"lambda_gp": 3.0}, "lambda_gp is for gan_mode wgangp, got lsgan"),
        ({"lr": -1e-4}, "lr must be at least 0, got -0.0001"),
        ({"init_gain": 0.0}, "init_gain must be positive, got 0.0"),
        ({"ngf": 0}, "ngf must be at least 1, got 0"),
        ({"crop_size": -4}, "crop_size must be at least 1, got -4"),
        ({"seed": -1}, r"seed must be in \[0, 2\*\*62\), got -1"),
        ({"netD": "basic", "n_layers_D": 2}, "n_layers_D is for netD n_layers, got basic"),
        ({"lr_decay_iters": 9}, "lr_decay_iters is for lr_policy step, got linear"),
        ({"lambda_A": 0.0, "lambda_B": 0.0, "lambda_identity": 0.3}, "lambda_identity is for identity losses in units"),
        ({"pretrained": Path("x"), "init_gain": 0.3}, "init_gain is for new weights, and pretrained gives them all"),
        ({"init_type": "kaiming"}, "init_gain is for init_type normal, xavier and orthogonal, got kaiming"),
        ({"netG": "unet_32", "no_dropout": False}, "no_dropout is for .* and netG unet_32 has none"),
        ({"allow_config_change": True}, "allow_config_change is for a run that is continued: set continue_train"),
        ({"device": "xpu"}, "device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got 'xpu'"),
    ],
)
def test_refuses_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CycleGan(tiny(**settings), Pairs())


class _Made:
    """Items that a function makes of a pair in [−1, 1]."""

    def __init__(self, make: Callable[[dict[str, Tensor]], Any]) -> None:
        self.make, self.pairs = make, Pairs()

    def __len__(self) -> int:
        return len(self.pairs)

    def sample(self, index: int, generator: torch.Generator | None) -> Any:
        return self.make(self.pairs.sample(index, generator))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda item: item | {"B": (127.5 * item["B"] + 127.5).byte()}, r"train: B .*, got torch.uint8 \[3, 16, 16\]"),
        (lambda item: item | {"A": 127.5 * item["A"] + 127.5}, r"train: A .* in \[−1, 1\], got values from .* to 25\d"),
        (lambda item: item | {"B": item["B"] / 0}, r"train: B .*, got values from (-inf|nan) to (inf|nan)"),
        (lambda item: item | {"A": item["A"].double()}, r"train: A .* torch.float32 .*, got torch.float64"),
        (
            lambda item: item | {"A": item["A"][:1]},
            r"train: A of an item must be .*\[3, H, W\] .*, got .*\[1, 16, 16\]",
        ),
        (lambda item: item | {"A": "a file"}, "train: A of an item must be .*, got list"),
        (lambda item: {"A": item["A"]}, r"train: an item must be a dict of 'A' and 'B', got a dict of \['A'\]"),
        (lambda item: tuple(item.values()), "train: an item must be a dict of 'A' and 'B', got list"),
    ],
)
def test_images_that_are_not_in_range_are_refused(make: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    task = CycleGan(tiny(), _Made(make))
    with pytest.raises((TypeError, ValueError), match=message):
        task.step()
    with pytest.raises((TypeError, ValueError), match=message.replace("train", "test")):
        CycleGan(tiny(), Pairs(), _Made(make))


def test_no_held_out_items_are_refused() -> None:
    with pytest.raises(ValueError, match="test: the data set is empty"):
        CycleGan(tiny(), Pairs(), Pairs(count=0))


def test_images_in_0_1_are_warned_of_once(recwarn: pytest.WarningsRecorder) -> None:
    images = _Made(lambda item: item | {"B": (item["B"] + 1) / 2})
    task = CycleGan(tiny(), images, images)
    task.step()
    task.step()
    task.evaluate()
    found = [str(warning.message) for warning in recwarn if "give 2 x - 1" in str(warning.message)]
    for source, message in zip(("test", "train"), found, strict=True):
        assert re.match(rf"{source}: B of an item .* in \[−1, 1\], got values from 0\..* to (1|0\.9\d*) ", message)


def test_held_out_items_may_be_arrays() -> None:
    """As those of ``train`` may: both are collated."""
    arrays = _Made(lambda item: {name: image.numpy() for name, image in item.items()})
    task = CycleGan(tiny(), arrays, arrays)
    assert task.step()["G_A"].isfinite()
    assert task.evaluate()["swd_B"] > 0
    assert task.sheet() is not None


def test_grey_to_colour() -> None:
    config = dataclasses.replace(tiny(input_nc=1, lambda_identity=0.0))
    task = CycleGan(config, Pairs())
    ((A, B),) = batches(1)
    assert torch.isfinite(task.update(A[:, :1], B)["G_A"])
    made = task.translate(A[:, :1], B)
    assert made["fake_B"].shape == B.shape
    assert made["fake_A"].shape == A[:, :1].shape


@pytest.mark.parametrize("settings", [{"fused": True}, {"fused": False, "batch_size": 4, "accumulate": 2}], ids=str)
def test_memory_estimate_is_what_autograd_keeps(settings: dict[str, Any]) -> None:
    """The dry run's figure, found on tensors without memory, against the storages of a real pass."""
    task = CycleGan(tiny(**settings), Pairs())
    kept: dict[int, tuple[Any, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage, storage.nbytes())
        return tensor

    rows = task.config.batch_size // task.config.accumulate
    ((A, B),) = batches(1, rows)
    if task.config.fused:
        A, B = task.precision.batch(A), task.precision.batch(B)
    weights = {p.untyped_storage().data_ptr() for net in task.networks.values() for p in net.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), task.backend():
        task._generators_loss(A, B, apart=False)
    real = sum(size for pointer, (_, size) in kept.items() if pointer not in weights)
    assert activation_bytes(task, SIZE, SIZE) == pytest.approx(real, rel=0.05)
    task.precision.amp, task.precision.dtype, task.precision.device = "bf16", torch.bfloat16, torch.device("cuda")
    assert activation_bytes(task, SIZE, SIZE) < 0.8 * real


def test_pool_decisions_are_drawn_on_the_host() -> None:
    """What the pool waits for is its own generator's numbers on the CPU, never an image."""
    pool = ImagePool(1, seed=0)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        images = mode.from_tensor(torch.zeros(2, 3, 4, 4))
    for _ in range(20):  # an image without memory has no value that could be waited for
        assert pool.query(images).shape == images.shape


@pytest.mark.parametrize("netG", ["resnet_1blocks", "unet_32"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_bias_ahead_of_an_instance_norm_may_be_skipped(netG: str, fused: bool) -> None:
    """As the trainer does on a GPU: the same images, the same gradients of all else, the same state_dict."""
    for name, network in build_networks(tiny(netG=netG)).items():
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        skipping = copy.deepcopy(network)
        skip_idle_biases(skipping)
        idle = {key for key, parameter in skipping.named_parameters() if not parameter.requires_grad}
        if fused:
            fuse(skipping)
        x = torch.randn(2, 3, 32, 32)
        expected, got = network.eval()(x), skipping.eval()(x)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        for y in (expected, got):
            y.square().sum().backward()
        theirs = dict(network.named_parameters())
        largest = max(float(parameter.grad.abs().max()) for parameter in theirs.values())
        convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        assert 0 < len(idle) < len(convolutions), name
        for key, parameter in skipping.named_parameters():
            expected_grad = torch.zeros_like(parameter) if key in idle else parameter.grad
            assert (parameter.grad is None) == (key in idle)
            torch.testing.assert_close(theirs[key].grad, expected_grad, rtol=1e-3, atol=1e-5 * largest)
        network.load_state_dict(skipping.state_dict())
        skipping.load_state_dict(network.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), skipping.parameters(), strict=True))


@pytest.mark.parametrize("judging", [True, False])
@pytest.mark.parametrize("mode", ["lsgan", "vanilla", "wgangp", "hinge"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_low_precision_scores_are_not_rounded_to_it(dtype: torch.dtype, mode: Any, judging: bool) -> None:
    scores = (torch.randn(2, 1, 30, 30) + 0.3).to(dtype)
    for real in (True, False):
        got, expected = (gan_loss(s, real, mode, judging=judging) for s in (scores, scores.double()))
        torch.testing.assert_close(got, expected, check_dtype=False, rtol=1e-5, atol=1e-6)
