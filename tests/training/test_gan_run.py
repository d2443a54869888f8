"""Runs of the GAN trainer: exact resume, every option, bad input, sheets, samples, the command line."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastgan import cli
from fastgan.data import DataError, ImageTensor, resident
from fastgan.data.resident import ResidentImages
from fastgan.kernels import dispatch
from fastgan.metrics import MetricUnavailableError, inception
from fastgan.models.gan import MinibatchDiscrimination
from fastgan.training import checkpoint, distributed, gan, sampling
from fastgan.training.batches import Shuffled
from fastgan.training.checkpoint import CheckpointError
from fastgan.training.gan import GanConfig, GanTask
from fastgan.training.gan import data as gan_data
from fastgan.training.gan.data import RealData
from fastgan.training.log import read_stats
from fastgan.training.loop import RunError
from tests.training.test_gan_step import tiny


def run(folder: Path, **settings: Any) -> Path:
    defaults = {"checkpoints_dir": folder, "steps": 6, "print_freq": 1, "display_freq": 0, "save_latest_freq": 0}
    gan.train(tiny(**{**defaults, **settings}))
    return folder / "gan"


def state(folder: Path) -> tuple[str, dict[str, Tensor]]:
    """A run's newest checkpoint but for its settings and clock, as JSON and tensors."""
    tree = checkpoint.read(checkpoint.locate(folder))
    document, tensors = checkpoint.flatten({k: tree[k] for k in ("step", "state", "random")})
    return json.dumps(document, sort_keys=True), tensors


def losses(folder: Path) -> list[dict[str, Any]]:
    volatile = ("seconds", "images_per_second")
    return [{k: v for k, v in line.items() if k not in volatile} for line in read_stats(folder / "stats.jsonl")]


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(10):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return str(folder)


RESUMED = {
    "wgan-gp, average, decay": {"ema": 0.9, "lr_decay": "linear", "n_critic": 2},
    "wgan": {"objective": "wgan", "boost": 3, "boost_first": 2, "boost_every": 4, "n_critic": 1},
    "ct-gan, dropout": {"objective": "ct-gan", "n_critic": 1},
    "sliced": {"objective": "sliced", "data": "swissroll"},
    "dcgan, batch norm, digits over an epoch": {
        "objective": "non-saturating", "data": "digits", "architecture": "dcgan", "batch_size": 512, "dequantize": True,
    },
    "folder, fp16": {"objective": "hinge", "data": "pictures", "image_size": 8, "flip": True, "batch_size": 4,
                     "architecture": "sngan", "amp": "fp16"},
}  # fmt: skip


@pytest.mark.parametrize("case", RESUMED)
def test_resume_is_exact(case, tmp_path, pictures):
    """Six steps at once, and three, a new process's state, three: the same losses and state, bit for bit."""
    settings = {**RESUMED[case]}
    if settings.get("data") == "pictures":
        settings["data"] = pictures
    whole = run(tmp_path / "whole", **settings)
    run(tmp_path / "parts", max_steps=3, **settings)
    torch.manual_seed(99)
    parts = run(tmp_path / "parts", continue_train=True, **settings)
    assert losses(whole) == losses(parts)
    assert len(losses(whole)) == 6
    (document, tensors), (other_document, other_tensors) = state(whole), state(parts)
    assert document == other_document
    assert tensors.keys() == other_tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, other_tensors[name]), name


def test_where_images_are_kept_changes_nothing(tmp_path, pictures):
    settings = {**RESUMED["folder, fp16"], "data": pictures, "amp": "none"}
    runs = [run(tmp_path / cache, cache=cache, **settings) for cache in ("off", "on", "device")]
    assert losses(runs[0]) == losses(runs[1]) == losses(runs[2])
    assert isinstance(GanTask(tiny(**settings, cache="device")).batches.loader.source, ResidentImages)


def test_a_changed_objective_is_refused_with_a_diff(tmp_path):
    run(tmp_path, max_steps=1)
    with pytest.raises(RunError, match=r"hyper: \[\] -> \['weight=3'\]"):
        run(tmp_path, continue_train=True, hyper=("weight=3",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "rmsprop"}, "does not fit optimizer_g: it holds another kind of optimizer than RMSprop"),
        ({"ema": 0.5}, "does not fit: of networks, it lacks average$"),
    ],
)
def test_a_changed_run_that_cannot_go_on_says_so(change, message, tmp_path):
    run(tmp_path, max_steps=1)
    with pytest.raises(CheckpointError, match=message):
        run(tmp_path, continue_train=True, allow_config_change=True, **change)


@pytest.mark.parametrize(("before", "after"), [("none", "linear"), ("linear", "none")])
def test_a_run_goes_on_with_another_decay(before, after, tmp_path):
    """At the rates that it would have there had it had that decay all along."""
    whole = run(tmp_path / "whole", lr_decay=after)
    run(tmp_path / "parts", lr_decay=before, max_steps=3)
    with pytest.raises(RunError, match=rf"lr_decay: '{before}' -> '{after}'"):
        run(tmp_path / "parts", lr_decay=after, continue_train=True)
    parts = run(tmp_path / "parts", lr_decay=after, continue_train=True, allow_config_change=True)
    rates = [[(line["lr_g"], line["lr_d"]) for line in losses(folder)] for folder in (whole, parts)]
    assert len(rates[0]) == 6
    assert rates[1][3:] == rates[0][3:]
    assert rates[1][2] != rates[0][2]


# --- options ------------------------------------------------------------------------------------------------------


def trace(**settings: Any) -> list[float]:
    """The losses of two steps and the sum of all weights."""
    task = GanTask(tiny(**{"n_critic": 1, **settings}))
    values = [value.item() for _ in range(2) for value in task.step().values()]
    return [*values, sum(p.double().abs().sum().item() for n in task.networks.values() for p in n.parameters())]


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({}, {"objective": "wgan-gp-one-sided"}),
        ({}, {"hyper": ("weight=7",)}),
        ({"objective": "gan"}, {"hyper": ("real_label=0.9",)}),
        ({"objective": "lsgan"}, {"hyper": ("feature_matching=true",)}),
        ({"objective": "fgan-js"}, {"hyper": ("alternative=true",)}),
        ({"objective": "ebgan"}, {"hyper": ("margin=0.5",)}),
        ({"objective": "ebgan"}, {"hyper": ("pulling_away=0",)}),
        ({"objective": "ebgan"}, {"code_dim": 2}),
        ({"objective": "sliced"}, {"hyper": ("n_projections=8",)}),
        ({"objective": "sliced"}, {"hyper": ("p=1",)}),
        ({"objective": "loss-sensitive"}, {"hyper": ("margin=0.5",)}),
        ({"objective": "dragan"}, {"hyper": ("spread=0.1",)}),
        ({"objective": "ct-gan"}, {"hyper": ("consistency=9",)}),
        ({"objective": "ct-gan"}, {"dropout": 0.1}),
        ({}, {"data": "25gaussians"}),
        ({"data": "digits"}, {"architecture": "dcgan"}),
        ({"data": "digits"}, {"dequantize": True}),
        ({}, {"latent_dim": 5}),
        ({}, {"width_g": 16}),
        ({}, {"width_d": 16}),
        ({}, {"norm_g": "batch"}),
        ({}, {"norm_d": "layer"}),
        ({}, {"batch_size": 8}),
        ({}, {"n_critic": 2}),
        ({}, {"boost": 3, "boost_first": 1}),
        ({}, {"boost": 3, "boost_every": 2}),
        ({}, {"optimizer": "rmsprop"}),
        ({}, {"lr_d": 1e-3}),
        ({}, {"lr_g": 1e-3}),
        ({}, {"beta1": 0.9}),
        ({}, {"beta2": 0.5}),
        ({}, {"clip": 0.05}),
        ({"objective": "wgan"}, {"clip": 0.0}),
        ({}, {"lr_decay": "linear"}),
        ({}, {"ema": 0.5}),
        ({"objective": "gan"}, {"minibatch": 3}),
        ({}, {"seed": 1}),
        ({}, {"amp": "bf16"}),
    ],
    ids=str,
)
def test_every_option_does_something(base, change):
    assert trace(**base) == trace(**base)
    assert trace(**base, **change) != trace(**base)


CRITIC = {
    "width_d": 16, "norm_d": "layer", "dropout": 0.1, "minibatch": 2, "code_dim": 4, "n_critic": 2, "boost": 3,
    "boost_first": 1, "boost_every": 2, "lr_d": 1e-3, "clip": 0.1, "grad_clip": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("name", GanConfig.CRITIC)
def test_without_a_critic_its_options_are_refused(name):
    settings = {name: CRITIC[name]}
    settings |= {"boost_first": {"boost": 3}, "boost_every": {"boost": 3}, "boost": {"boost_first": 1}}.get(name, {})
    with pytest.raises(ValueError, match=r"(\w+) is the critic's, and objective 'sliced' has none"):
        GanTask(replace(tiny(objective="sliced"), **settings))


def test_small_images_are_mirrored_and_get_noise(tmp_path):
    """CIFAR-10's: each its own, whole pictures, less than one of 256 grey levels."""
    pixels = torch.randint(256, (10, 3, 32, 32), dtype=torch.uint8)
    records = torch.cat([torch.zeros(10, 1, dtype=torch.uint8), pixels.flatten(1)], 1).numpy()
    for i in range(5):
        (tmp_path / f"data_batch_{i + 1}.bin").write_bytes(records[2 * i : 2 * i + 2].tobytes())
    base = {"objective": "gan", "data": f"cifar10:{tmp_path}", "batch_size": 10, "architecture": "mlp"}
    plain, mirrored = (next(GanTask(tiny(**base, flip=flip)).batches) for flip in (False, True))
    same = [torch.equal(a, b) for a, b in zip(plain, mirrored, strict=True)]
    assert 0 < sum(same) < 10
    assert all(torch.equal(a if s else a.flip(-1), b) for s, a, b in zip(same, plain, mirrored, strict=True))
    noise = (next(GanTask(tiny(**base, dequantize=True)).batches) + 1) * 128 - (plain + 1) * 127.5
    assert -1e-3 < noise.min() < 0.01
    assert 0.99 < noise.max() < 1.001
    torch.testing.assert_close(noise.mean(), torch.tensor(0.5), atol=0.01, rtol=0)


@pytest.mark.parametrize("options", [{}, {"flip": True, "dequantize": True}])
def test_a_process_makes_its_own_rows_of_the_joint_batch(options, monkeypatch):
    """Of images in memory: the rows of the joint batch, of which it computes no others."""
    images = ImageTensor(torch.randint(256, (9, 3, 4, 4), dtype=torch.uint8), **options)
    cpu, made = torch.device("cpu"), []
    joint = Shuffled(images, 4, 0, cpu)
    whole = [next(joint) for _ in range(4)]  # of two epochs
    apply = images.apply
    monkeypatch.setattr(images, "apply", lambda pixels, drawn: made.append(len(pixels)) or apply(pixels, drawn))
    monkeypatch.setattr(distributed, "size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        own = Shuffled(images, 2, 0, cpu)
        assert all(torch.equal(next(own), batch.chunk(2)[rank]) for batch in whole)
    assert set(made) == {2}


def test_the_rest_of_an_epoch_that_larger_batches_cannot_be_made_of_is_left_out():
    """A run that is continued with more processes makes whole batches, of which each process has as many rows."""
    images = ImageTensor(torch.randint(256, (9, 3, 4, 4), dtype=torch.uint8))
    before, after = (Shuffled(images, rows, 0, torch.device("cpu")) for rows in (2, 4))
    for taken, epoch in ((2, 0), (3, 1)):
        before.epoch, before._position = 0, 2 * taken
        after.load_state_dict(before.state_dict())
        assert after.epoch == epoch
        assert [len(next(after)) for _ in range(3)] == [4, 4, 4]


def test_options_of_images(pictures):
    for change in ({"flip": True}, {"channels": 1}, {"image_size": 16}):
        base = {"objective": "gan", "data": pictures, "batch_size": 4, "image_size": 8}
        task, other = GanTask(tiny(**base)), GanTask(tiny(**{**base, **change}))
        one, two = next(task.batches), next(other.batches)
        assert one.shape != two.shape or not torch.equal(one, two), change
        task.step()
        other.step()
    assert any(
        isinstance(m, MinibatchDiscrimination) for m in GanTask(tiny(objective="gan", minibatch=2)).critic.modules()
    )


def test_a_folder_s_images_are_kept_if_they_are_few(pictures, monkeypatch):
    """auto: below 2 GB, where grey ones count as float32, which those of 16 bits become."""
    assert [resident.keeps("auto", 500, c, s) for c, s in ((1, 999), (1, 1001), (3, 1154), (3, 1155), (4, 999))] == [
        True, False, True, False, True,
    ]  # fmt: skip
    for cache, kept in (("auto", True), ("off", False), ("on", True)):
        assert bool(RealData(tiny(objective="gan", data=pictures, cache=cache))._images.cached) == kept
    monkeypatch.setattr(gan_data, "keeps", lambda cache, images, channels, side: (images, channels, side) != (10, 3, 8))
    assert not RealData(tiny(objective="gan", data=pictures, image_size=8))._images.cached


def test_fused_computes_what_plain_pytorch_does():
    for name in ("wgan-gp", "ebgan", "lsgan"):
        plain, fused = trace(objective=name, fused=False), trace(objective=name, fused=True)
        assert fused == pytest.approx(plain, rel=2e-3, abs=2e-3)


@pytest.mark.skipif(isinstance(dispatch._load("native", "winograd"), str), reason="needs the C++ kernels")
def test_residual_networks_convolve_by_winograd_and_follow_plain_ones(monkeypatch):
    """Whole WGAN-GP steps with the penalty's double backward pass."""
    kernels, called = dispatch.kernels("native", "winograd"), []
    for name in ("forward", "input_gradient", "weight_gradient"):
        kernel = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *a, kernel=kernel, name=name: (called.append(name), kernel(*a))[1])
    monkeypatch.setattr(kernels, "FASTER", (torch.float32, torch.bfloat16))
    config = {"objective": "wgan-gp", "data": "digits", "architecture": "resnet", "channels_last": "auto"}
    plain, fused = (GanTask(tiny(**config, width_g=64, width_d=64, fused=fused)) for fused in (False, True))
    for _ in range(2):
        expected = plain.step()
        assert not called
        losses = fused.step()
        assert {*called} == {"forward", "input_gradient", "weight_gradient"}
        called.clear()
        for name in expected:
            torch.testing.assert_close(losses[name], expected[name], rtol=1e-3, atol=1e-4)


def test_channels_last_changes_the_format_and_not_the_result():
    config = {"objective": "gan", "data": "digits", "architecture": "dcgan", "fused": False}
    last = GanTask(tiny(**config, channels_last="on"))
    formats = []
    last.critic.register_forward_pre_hook(
        lambda _, x: formats.append(x[0].is_contiguous(memory_format=torch.channels_last))
    )
    losses_last = last.step()
    assert all(formats)
    for name, value in GanTask(tiny(**config)).step().items():
        assert losses_last[name].item() == pytest.approx(value.item(), rel=1e-4)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
def test_pytorch_s_instance_norm_stays_out_of_channels_last(architecture: str) -> None:
    """On a CPU its gradients of a batch of one are wrong there."""
    config = {"objective": "hinge", "data": "digits", "architecture": architecture, "norm_d": "instance", "fused": True}
    assert GanTask(tiny(**config, channels_last="auto")).precision.memory_format == torch.preserve_format
    with pytest.raises(ValueError, match=r"channels_last must be auto or off .* got on: .* gradients are wrong"):
        GanTask(tiny(**config, channels_last="on"))


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hyper": ("lambda=10",)}, "'wgan-gp' has no 'lambda'; it has weight, grad_scale"),
        ({"hyper": ("weight=ten",)}, "weight must be a number, got 'ten'"),
        ({"objective": "gan", "hyper": ("feature_matching=yes",)}, "feature_matching must be true or false, got 'yes'"),
        ({"objective": "gan", "hyper": ("real_label=2",)}, r"real_label must be in \(0.5, 1\], got 2.0"),
        ({"architecture": "dcgan"}, "makes images, sample_shape must be"),
        ({"architecture": "vgg"}, "architecture must be one of 'mlp', .* got 'vgg'"),
        ({"objective": "wgangp"}, "objective must be one of .*'wgan-gp', .* got 'wgangp'"),
        ({"norm_g": "group"}, "norm_g must be one of"),
        ({"norm_d": "batch"}, "norm_d batch mixes samples, and objective 'wgan-gp' needs each judged alone"),
        ({"minibatch": 3}, "minibatch 3 mixes samples, and objective 'wgan-gp' needs each judged alone"),
        ({"name": ""}, "name must be that of a folder in checkpoints_dir, got ''"),
        ({"best_metric": "sliced_w2"}, "best_metric 'sliced_w2' needs evaluations: set eval_freq"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"n_critic": 0}, "n_critic must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\), got 1.0"),
        ({"objective": "wgan", "beta1": 0.5}, "beta1 and beta2 are Adam's, and the optimizer is rmsprop"),
        ({"objective": "ct-gan", "dropout": 0.0}, "dropout must be above 0"),
        ({"image_size": 32}, "image_size is for images, not for data '8gaussians'"),
        ({"data": "digits", "image_size": 32}, "image_size must be 8 for data 'digits', or left out; got 32"),
        ({"flip": True}, "flip is for folders of images and CIFAR-10, not for data '8gaussians'"),
        ({"data": "swissroll", "dequantize": True}, "dequantize is for digits, MNIST and CIFAR-10, not for data 'swis"),
        ({"data": "digits", "batch_size": 4000}, "batch_size must be at most 1797 for 1797 items, got 4000"),
        ({"objective": "ebgan", "minibatch": 2}, "minibatch must be at least 0, and 0 for an energy"),
        ({"norm_d": "group"}, "norm_d must be one of"),
        ({"code_dim": 4}, "code_dim is for critics that are autoencoders"),
        ({"objective": "ebgan", "code_dim": 0}, "code_dim must be at least 1, got 0"),
        ({"boost": 0}, "boost must be at least 1, got 0"),
        ({"lr_d": -1.0}, "lr_d must be at least 0, got -1.0"),
        ({"data": "pictures", "image_size": 0}, "image_size must be at least 1, got 0"),
        (
            {"eval_freq": 1, "best_metric": "fid"},
            "must be one of sliced_w2, modes, high_quality, got 'fid'",
        ),
        ({"keep": -1}, "keep must be at least 0, got -1"),
        ({"hyper": ("weight",)}, "hyper must be name=value, got 'weight'"),
        ({"objective": "wgan", "hyper": ("joint=true",)}, "'wgan' has no 'joint'; it has none"),
        ({"objective": "sliced", "hyper": ("n_projections=1.5",)}, "n_projections must be a whole number, got '1.5'"),
        ({"hyper": ("weight=-1",)}, "weight must be at least 0, got -1.0"),
        ({"data": "mnist"}, "data must be .* mnist:DIR.*, got 'mnist'"),
        ({"data": "digits:8"}, "data must be .* or a folder of images, got 'digits:8'"),
        ({"data": "digits", "channels": 4}, "channels is for folders of images, not for data 'digits'"),
        ({"boost": 3}, "set boost_first or boost_every"),
        ({"boost_first": 3}, "boost_first says which generator steps get boost critic steps: set boost"),
        ({"channels_last": "on"}, "channels_last is for convolutions, and architecture 'mlp' has none"),
        ({"save_epoch_freq": 2}, "save_epoch_freq counts epochs, and data '8gaussians' has none"),
        ({"cache": "on"}, "cache is for folders of images, not for data '8gaussians'"),
        ({"allow_config_change": True}, "allow_config_change is for a run that is continued"),
        ({"lr_g": float("nan")}, "lr_g must be positive and finite, got nan"),
        ({"latent_dim": 0}, "latent_dim must be at least 1, got 0"),
        ({"seed": 2**70}, "seed must be in"),
        ({"optimizer": "sgd"}, "optimizer must be one of 'adam', 'rmsprop', got 'sgd'"),
        ({"steps": 1e3}, "steps must be a whole number, got 1000.0"),
        ({"lr_g": True}, "lr_g must be a number, got True"),
        ({"fused": "no"}, "fused must be True or False, got 'no'"),
        ({"hyper": "weight=3"}, "hyper must be a tuple, got 'weight=3'"),
        ({"compile": True, "recompute": True}, "recompute is for networks that are not compiled"),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_errors_come_before_anything_is_written(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "runs", **settings)
    assert not (tmp_path / "runs").exists()


def test_settings_are_as_flags_make_them():
    @dataclass(frozen=True)
    class Own(GanConfig):
        _: KW_ONLY
        other: Unseen = "anything"  # noqa: F821 -- as if imported for type checkers alone

    config = Own(checkpoints_dir="runs", hyper=["weight=3"], beta1=0, steps=np.int64(5))
    assert config == Own(checkpoints_dir=Path("runs"), hyper=("weight=3",), beta1=0.0, steps=5)
    assert isinstance(config.checkpoints_dir, Path)
    assert isinstance(config.beta1, float)
    assert Own.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_missing_data(tmp_path):
    for data in (str(tmp_path / "nothing"), f"mnist:{tmp_path}", f"cifar10:{tmp_path}"):
        with pytest.raises(DataError, match=str(tmp_path)):
            run(tmp_path / "runs", data=data)
    with pytest.raises(DataError, match=r"data must be 8gaussians, .* or a folder of images, and there is no .*'9gaus"):
        run(tmp_path / "runs", data="9gaussians")
    assert not (tmp_path / "runs").exists()


# --- several processes --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_on_the_joint_batch(tmp_path):
    """From the command line: the weights of one process with twice the batch; the run refuses to go on alone."""
    settings = {
        "objective": "wgan-gp", "hyper": ("weight=10",), "steps": 3, "print_freq": 1, "display_freq": 0, "width_g": 8,
        "width_d": 8, "latent_dim": 3, "n_critic": 2, "device": "cpu", "checkpoints_dir": tmp_path,
        "eval_freq": 2, "best_metric": "sliced_w2",
    }  # fmt: skip
    gan.train(GanConfig(**settings, name="one", batch_size=32, tensorboard=False, progress=False))
    words = [f"--{k}={v}" for k, v in settings.items() if k != "hyper"] + ["--hyper", *settings["hyper"]]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "fastgan"]
    command += ["train", "gan", *words, "--name=two", "--batch_size=16", "--no-tensorboard", "--no-progress"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
    (_, one), (_, two) = state(tmp_path / "one"), state(tmp_path / "two")
    networks = [name for name in one if name.startswith("state/networks") and not name.endswith("head.bias")]
    apart = torch.cat([(one[name] - two[name]).abs().flatten() for name in networks])
    assert (apart > 2e-5).double().mean() < 0.02  # where a gradient is rounding alone, Adam still takes a step
    assert apart.max() < 2e-3
    for single, double in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        for name in ("critic", "critic_penalty") if "critic" in single else ("sliced_w2",):
            assert double[name] == pytest.approx(single[name], rel=1e-3, abs=1e-4)
    with pytest.raises(RunError, match=r"batch_size: 16 -> 32\n  processes: 2 -> 1\n"):
        gan.train(GanConfig(**settings, name="two", batch_size=32, continue_train=True, progress=False))


# --- sheets, samples, evaluation, command line --------------------------------------------------------------------


def test_sheets_samples_and_scores_of_images(tmp_path, pictures):
    settings = {"objective": "hinge", "data": pictures, "batch_size": 4, "image_size": 8, "ema": 0.5}
    folder = run(tmp_path, **settings, display_freq=3, eval_freq=3, best_metric="sliced_w2", n_samples=5)
    assert sorted(p.name for p in (folder / "sheets").iterdir()) == ["step-00000003.png", "step-00000006.png"]
    lines = [line for line in read_stats(folder / "stats.jsonl") if "sliced_w2" in line]
    assert [line["step"] for line in lines] == [3, 6]
    averaged, own = sampling.load(folder), sampling.load(folder, average=False)
    assert averaged.step == 6
    assert averaged.config == tiny(**settings, checkpoints_dir=tmp_path, steps=6, print_freq=1, display_freq=3,
                                   save_latest_freq=0, eval_freq=3, best_metric="sliced_w2", n_samples=5)  # fmt: skip
    a, b = averaged.sample(7, seed=1), own.sample(7, seed=1)
    assert a.shape == (7, 3, 8, 8)
    assert a.abs().max() <= 1
    assert not torch.equal(a, b)
    assert torch.equal(a, averaged.sample(7, seed=1))
    torch.testing.assert_close(a, averaged.sample(7, seed=1, batch_size=2))
    assert not torch.equal(a, averaged.sample(7, seed=2))
    out = tmp_path / "out" / "samples.npz"
    sampling.write(averaged, out, n=7, seed=1)
    assert np.array_equal(np.load(out)["samples"], a.numpy())
    with pytest.raises(FileExistsError, match=r"samples\.npz is there already"):
        sampling.write(averaged, out)
    with pytest.raises(ValueError, match=r"must end in \.png or \.npz, got 'samples\.jpg'"):
        sampling.write(averaged, out.with_suffix(".jpg"))
    sampling.write(averaged, str(out.with_suffix(".png")), n=4)
    with Image.open(out.with_suffix(".png")) as image:
        assert image.size == (22, 22)  # 2 × 2 images of 8 pixels, gaps of 2


def test_sampling_restores_the_mode_and_disturbs_nothing():
    task = GanTask(tiny(objective="gan", data="digits", architecture="dcgan"))
    task.step()
    before = torch.get_rng_state(), task._latent.generator.get_state()
    buffers = [b.clone() for b in task.generator.buffers()]
    scores = task.evaluate()
    assert task.evaluate() == scores
    assert task.sheet().size == (22, 22)
    assert task.generator.training
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(task._latent.generator.get_state(), before[1])
    assert all(torch.equal(a, b) for a, b in zip(task.generator.buffers(), buffers, strict=True))


def test_command_line(tmp_path, capsys):
    def fastgan(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        return ended.value.code

    flags = ["--checkpoints_dir", str(tmp_path), "--steps", "2", "--width_g", "8", "--width_d", "8", "--device", "cpu"]
    flags += ["--no-progress", "--objective", "wgan-gp", "--hyper", "weight=0.2", "--name", "toy"]
    assert fastgan("train", "gan", *flags, "--dry_run") == 0
    plan = capsys.readouterr().err
    assert "Gulrajani et al. 2017" in plan
    assert "5 critic steps" in plan
    task = GanTask(tiny(ema=0.5))
    weights = sum(p.numel() for p in [*task.critic.parameters(), *task.generator.parameters()])
    task.step()
    states = [s for o in task.optimizers().values() for v in o.state.values() for s in v.values() if s.dim()]
    held = 2 * weights + sum(s.numel() for s in states) + sum(p.numel() for p in task.average.module.parameters())
    assert task.plan()["memory"].startswith(f"{4 * held / 2**20:.1f} MiB")
    assert not (tmp_path / "toy").exists()
    assert fastgan("train", "gan", *flags) == 0
    assert (tmp_path / "toy" / "events").is_dir()
    out = tmp_path / "points.png"
    assert fastgan("sample", "--checkpoint", str(tmp_path / "toy"), "--out", str(out), "--n", "100") == 0
    with Image.open(out) as image:
        assert len(image.getcolors()) == 3  # paper, real, generated
    capsys.readouterr()
    assert fastgan("evaluate", "--checkpoint", str(tmp_path / "toy"), "--n", "256", "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    assert set(scores) == {"sliced_w2", "modes", "high_quality"}
    cli._print_scores({"a": math.nan, "b": 0.5}, as_json=True)
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"a": "nan", "b": 0.5}
    for command in (["sample", "--out", str(tmp_path / "new.png")], ["evaluate"]):
        for seed in ("-1", "99999999999999999999"):
            assert fastgan(*command, "--checkpoint", str(tmp_path / "toy"), "--seed", seed) == 1
            assert f"seed must be in [0, 2**62), got {seed}" in capsys.readouterr().err
    assert fastgan("evaluate", "--checkpoint", str(tmp_path / "toy"), "--dataroot", "x") == 1
    assert "dataroot is for runs of train cyclegan, and" in capsys.readouterr().err
    assert fastgan("sample", "--checkpoint", str(tmp_path), "--out", str(out), "--overwrite") == 1
    assert "there is no checkpoint" in capsys.readouterr().err
    assert fastgan("train", "gan", *flags, "--data", str(tmp_path / "none"), "--name", "b") == 1
    assert "fastgan: error:" in capsys.readouterr().err


def test_fid_of_images(tmp_path, pictures, capsys, monkeypatch):
    """Refused in one line without its weights or images; else all images reach it, as values in [−1, 1]."""
    folder = run(tmp_path, objective="hinge", data=pictures, batch_size=4, image_size=8, max_steps=1)
    points = run(tmp_path / "points", max_steps=1)
    for path, message in ((folder, "FID"), (points, "fid is of images")):
        with pytest.raises(SystemExit, match="1"):
            cli.main(["evaluate", "--checkpoint", str(path), "--fid", "--device", "cpu"])
        assert message in capsys.readouterr().err
    seen = []
    trained = sampling.load(str(folder), device="cpu")
    weights = tmp_path / "hub" / "checkpoints" / inception.WEIGHTS
    weights.parent.mkdir(parents=True)
    weights.write_text("hello")
    with monkeypatch.context() as patch:
        patch.setattr(inception, "find_spec", lambda name: object())
        patch.setenv("TORCH_HOME", str(tmp_path))
        patch.setattr(sampling.Trained, "sample", lambda *_: pytest.fail("sampled before it was known"))
        with pytest.raises(MetricUnavailableError, match="damaged, or not a file of weights"):
            sampling.evaluate(trained, 70, fid=True)
    network = torch.nn.Identity()
    monkeypatch.setattr(sampling, "inception_features", lambda: network)
    monkeypatch.setattr(
        sampling, "frechet_inception_distance", lambda *sides, features, device: seen.extend((*sides, features)) or 1.5
    )
    assert sampling.evaluate(trained, 70, fid=True)["fid"] == 1.5
    *sides, features = seen
    assert features is network
    real, fake = (torch.cat(list(batches)) for batches in sides)
    assert torch.equal(fake, trained.sample(70, 0))
    assert real.shape == (10, 3, 8, 8)
    assert real.abs().max() <= 1


def test_a_checkpoint_of_another_trainer_is_refused(tmp_path):
    path = tmp_path / "step-00000001.safetensors"
    checkpoint.write(path, {"step": 1, "config": {"netG": "resnet_9blocks"}, "best": None})
    with pytest.raises(checkpoint.CheckpointError, match="is no checkpoint of `fastgan train gan`"):
        sampling.load(path)


def test_configuration_survives_json():
    config = GanConfig(objective="gan", hyper=("real_label=0.9",), checkpoints_dir=Path("a/b"), ema=0.9, lr_d=1e-3)
    assert GanConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
