"""CycleGAN on folders: errors before anything is written, exact resume, inference, the command line."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import os
import signal
import subprocess
import sys
import unittest.mock
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastgan import cli
from fastgan.data import DataError
from fastgan.metrics import inception
from fastgan.models import read_official
from fastgan.training import checkpoint, cyclegan, inference, loop
from fastgan.training.cyclegan import CycleGanConfig
from fastgan.training.gan import GanConfig
from fastgan.training.log import read_stats
from fastgan.training.prefetch import Prefetcher
from fastgan.training.task import RunConfig

TINY = {
    "netG": "resnet_1blocks", "ngf": 4, "ndf": 4, "netD": "n_layers", "n_layers_D": 1, "pool_size": 2, "load_size": 20,
    "crop_size": 16, "n_epochs": 2, "n_epochs_decay": 1, "batch_size": 2, "device": "cpu", "num_threads": 0,
    "print_freq": 1, "display_freq": 0, "save_latest_freq": 4, "save_epoch_freq": 0, "tensorboard": False,
    "progress": False,
}  # fmt: skip


def draw(path: Path, seed: int, size: tuple[int, int] = (24, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for folder, count in (("trainA", 5), ("trainB", 7), ("testA", 2), ("testB", 2)):
        for i in range(count):
            draw(root / folder / f"{i}.png", seed=hash_of(folder, i))
    return root


def hash_of(folder: str, i: int) -> int:
    return sum(map(ord, folder)) * 100 + i


def settings(data: Path, **changes: Any) -> CycleGanConfig:
    return CycleGanConfig(**{**TINY, "dataroot": data, "checkpoints_dir": data.parent / "runs", **changes})


def lines(config: CycleGanConfig) -> list[dict[str, Any]]:
    volatile = ("seconds", "images_per_second")
    return [{k: v for k, v in x.items() if k not in volatile} for x in read_stats(config.folder / "stats.jsonl")]


def assert_same_run(a: CycleGanConfig, b: CycleGanConfig) -> None:
    assert lines(a) == lines(b)
    left, right = (checkpoint.read(checkpoint.locate(c.folder)) for c in (a, b))
    (_, mine), (_, theirs) = (checkpoint.flatten([t["state"], t["random"]]) for t in (left, right))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(
    "changes",
    [
        {"fused": False},
        {"fused": True, "ema": 0.9, "no_dropout": False, "lr_policy": "plateau", "print_freq": 3},
        {"gan_mode": "wgangp", "amp": "fp16"},
    ],
    ids=["plain", "everything", "penalty"],
)
def test_resume_is_exact(data: Path, changes: dict[str, Any]) -> None:
    whole = settings(data, name="whole", **changes)
    assert cyclegan.train(whole).step == 12  # 7 items, batches of 2, 3 epochs
    cyclegan.train(settings(data, name="parts", max_steps=6, **changes))
    parts = settings(data, name="parts", continue_train=True, **changes)
    cyclegan.train(parts)
    assert_same_run(whole, parts)


def test_images_on_the_device_and_batches_ahead_change_nothing(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also over a restart, with a batch prepared that the step has not seen."""
    whole = settings(data, name="whole", save_latest_freq=2, cache="off")
    cyclegan.train(whole)
    monkeypatch.setattr(cyclegan.trainer, "Prefetcher", functools.partial(Prefetcher, ahead=True))
    parts = settings(data, name="parts", max_steps=5, cache="device")
    assert cyclegan.make(parts)._resident is not None
    cyclegan.train(parts)
    parts = settings(data, name="parts", continue_train=True, cache="on")
    cyclegan.train(parts)
    assert_same_run(whole, parts)


def test_learning_rate_and_names_of_losses(data: Path) -> None:
    config = settings(data, lr=1e-3, print_freq=2)
    cyclegan.train(config)
    got = lines(config)
    assert {"G_A", "G_B", "D_A", "D_B", "cycle_A", "cycle_B", "idt_A", "idt_B", "l1"} < set(got[0])
    terms = sum(got[-1][k] for k in ("cycle_A", "cycle_B", "idt_A", "idt_B"))
    assert terms == pytest.approx(got[-1]["l1"], rel=0.5)
    assert [x["lr_G"] for x in got][::2] == pytest.approx([1e-3, 1e-3, 0.5e-3])
    assert got[-1]["lr_G"] == pytest.approx(0.5e-3)


def test_evaluates_pairs_and_keeps_the_best(data: Path) -> None:
    config = settings(data, eval_freq=3, best_metric="l1_B", display_freq=6)
    cyclegan.train(config)
    scores = {x["step"]: x["l1_B"] for x in lines(config) if "l1_B" in x}
    assert list(scores) == [3, 6, 9, 12]
    best = checkpoint.locate(config.folder, "best")
    assert best.name == f"step-{min(scores, key=scores.__getitem__):08d}.safetensors"
    # The score is what a separate evaluation of that checkpoint's generator finds.
    translator = inference.load_translator(config.folder, which="best", device="cpu", fused=False)
    errors = []
    for i in range(2):
        a, b = (
            torch.from_numpy(np.asarray(Image.open(data / f"test{x}" / f"{i}.png").resize((16, 16), 3)).copy())
            for x in "AB"
        )
        a, b = (x.permute(2, 0, 1).float() / 127.5 - 1 for x in (a, b))
        errors.append(float((translator(a[None])[0] - b).abs().mean()))
    assert sum(errors) / 2 == pytest.approx(min(scores.values()), rel=1e-4)
    sheets = sorted((config.folder / "sheets").iterdir())
    assert [p.name for p in sheets] == ["step-00000006.png", "step-00000012.png"]
    assert Image.open(sheets[0]).size == (6 * 18 + 2, 16 + 2 * 18 + 2)


def test_evaluates_without_pairs(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "testB" / "0.png").rename(data / "testB" / "x.png")
    config = settings(data, eval_freq=3, best_metric="swd_B")
    cyclegan.train(config)
    found = [{k: v for k, v in line.items() if k.startswith(("swd", "l1_"))} for line in lines(config)]
    assert [set(values) for values in found if values] == [{"swd_A", "swd_B"}] * 4
    best = checkpoint.read(checkpoint.locate(config.folder, "best"))["step"]
    assert best == 3 * (1 + int(np.argmin([values["swd_B"] for values in found if values])))
    with pytest.raises(ValueError, match=r"best_metric must be one of swd_B, swd_A \(the files .* got 'l1_B'"):
        cyclegan.train(settings(data, name="b", eval_freq=3, best_metric="l1_B"))
    for path in (data / "testA").iterdir():
        path.unlink()
    (data / "testA").rmdir()
    with pytest.raises(ValueError, match=r"eval_freq evaluates held-out images: .* has no testA and testB"):
        cyclegan.train(settings(data, name="c", eval_freq=3))


def test_scores_files_of_one_name_but_other_sizes_as_no_pairs(data: Path) -> None:
    draw(data / "testB" / "0.png", 3, (20, 28))
    for preprocess, paired in (("resize_and_crop", True), ("scale_width", False)):
        config = settings(data, name=preprocess, preprocess=preprocess, batch_size=1, load_size=20, max_steps=1)
        cyclegan.train(dataclasses.replace(config, eval_freq=1))
        found = {name.split("_")[0] for name in lines(config)[-1]}
        assert {"l1", "psnr", "ssim"} & found == ({"l1", "psnr", "ssim"} if paired else set())
    assert cyclegan.held_out(config)[1] is False
    with pytest.raises(ValueError, match=r"best_metric must be one of none \(the files .* names or sizes.*swd needs"):
        cyclegan.make(dataclasses.replace(config, eval_freq=1, best_metric="l1_B"))


def test_best_metrics_of_patches_need_images_of_one_size(data: Path) -> None:
    draw(data / "testB" / "0.png", 3, (20, 28))
    with pytest.raises(
        ValueError, match=r"one of none .*swd needs images of one size, of at least 16 pixels\), got 'swd"
    ):
        cyclegan.make(settings(data, preprocess="scale_width", batch_size=1, eval_freq=1, best_metric="swd_B"))


def test_each_test_image_is_scored_once(data: Path) -> None:
    """Items are as many as the larger folder has, and the smaller one's images come again."""
    for i in range(2, 5):
        draw(data / "testB" / f"{i}.png", i)
    images, paired = cyclegan.held_out(settings(data))
    assert not paired
    seen: list[list[torch.Tensor]] = []

    def fid(real: Any, fake: Any) -> float:
        seen.append([torch.cat(list(each)) for each in (real, fake)])
        return 0.0

    translate = lambda a, b: {"fake_B": a / 2, "fake_A": b / 2}
    cyclegan.scores_of(images, translate, False, fid=fid)
    (real_B, fake_B), (real_A, fake_A) = seen
    assert [len(each) for each in (real_A, real_B)] == [2, 5]
    assert torch.equal(fake_B, real_A / 2)
    assert torch.equal(fake_A, real_B / 2)
    config = settings(data, eval_freq=1, max_steps=1)
    cyclegan.train(config)
    logged = {name: value for name, value in lines(config)[-1].items() if name.startswith("swd")}
    again = inference.evaluate(config.folder, device="cpu")
    assert again == pytest.approx(logged, rel=1e-4)


def test_a_run_keeps_its_epochs(data: Path) -> None:
    """Also with other batches, or other images; both only if told."""
    cyclegan.train(settings(data, max_steps=5))  # of 3 epochs of 4
    with pytest.raises(loop.RunError, match="batch_size: 2 -> 1"):
        cyclegan.train(settings(data, continue_train=True, batch_size=1))
    draw(data / "trainB" / "7.png", 3)
    with pytest.raises(loop.RunError, match="images_B: 7 -> 8"):
        cyclegan.train(settings(data, continue_train=True))
    more = settings(data, continue_train=True, batch_size=1, allow_config_change=True)
    assert cyclegan.train(more).step == 5 + 2 * 8
    assert [line["epoch"] for line in lines(more) if line["step"] in (5, 12, 13, 21)] == [1, 1, 2, 3]
    assert lines(more)[-1]["lr_G"] > 0


def test_batches_need_images_of_one_size(data: Path) -> None:
    """Also the joint batch of several processes, whose pools exchange images."""
    options = {"preprocess": "none", "load_size": 286, "crop_size": 256, "max_steps": 1}
    cyclegan.train(settings(data, **options))  # a batch of 2: all files have one size
    draw(data / "trainB" / "4.png", 3, (20, 28))
    with pytest.raises(
        DataError, match=r"trainB: 0 has 24×20 and 4 20×28 pixels with preprocess none: batch_size must"
    ):
        cyclegan.make(settings(data, **options))
    one = settings(data, batch_size=1, **options)
    assert len(cyclegan.make(one).train) == 7
    with unittest.mock.patch("fastgan.training.distributed.size", return_value=2), pytest.raises(DataError):
        cyclegan.make(one)


def test_images_too_small_for_the_discriminators_are_named(data: Path) -> None:
    changes = {"preprocess": "none", "batch_size": 1, "load_size": 286, "crop_size": 256}
    with pytest.raises(DataError, match=r"trainA/0\.png: would be 24×20 pixels .* networks need 24 a side at least"):
        cyclegan.make(settings(data, **changes, n_layers_D=3))
    cyclegan.make(settings(data, **changes, netD="pixel", n_layers_D=3))


def test_joined_calls_take_images_of_several_sizes_apart(data: Path) -> None:
    """Of A and B, and of the pool."""
    for i in range(4):
        draw(data / "trainB" / f"{i}.png", 3, (20, 28))
    options = {"preprocess": "none", "load_size": 286, "crop_size": 256, "batch_size": 1, "max_steps": 6}
    for name, joined in (("apart", "off"), ("joined", "on")):
        cyclegan.train(settings(data, name=name, batched_calls=joined, **options))
    apart, joined = (lines(settings(data, name=name)) for name in ("apart", "joined"))
    for expected, got in zip(apart, joined, strict=True):
        assert got == pytest.approx(expected, rel=1e-3)


def break_missing(root: Path) -> None:
    for path in (root / "trainB").iterdir():
        path.unlink()
    (root / "trainB").rmdir()


def break_empty(root: Path) -> None:
    for path in (root / "trainB").iterdir():
        path.unlink()


def break_corrupt(root: Path) -> None:
    path = root / "trainA" / "3.png"
    path.write_bytes(path.read_bytes()[:200])


def break_small(root: Path) -> None:
    draw(root / "trainB" / "2.png", 1, (10, 12))


@pytest.mark.parametrize(
    ("damage", "changes", "message"),
    [
        (break_missing, {}, r"trainB.*no such folder"),
        (break_empty, {}, r"trainB.*holds no image"),
        (break_corrupt, {}, r"3\.png.*not a readable image"),
        (break_small, {"preprocess": "crop", "load_size": 286}, r"2\.png.*10×12.*smaller than the crop"),
        (break_small, {"preprocess": "scale_width"}, r"trainB: 0 has 20×16 and 2 20×24 pixels .* batch_size must be 1"),
        (lambda root: None, {"crop_size": 18, "load_size": 18}, r"multiple of 4.*got 18"),
        (lambda root: None, {"device": "cuda"}, r"no CUDA device"),
        (lambda root: None, {"pretrained": Path("nowhere")}, r"latest_net_G_A.pth: no such checkpoint"),
    ],
    ids=["missing", "empty", "corrupt", "small", "sizes", "multiple", "device", "pretrained"],
)
def test_bad_input_is_one_clear_error_and_writes_nothing(
    data: Path, damage: Any, changes: dict[str, Any], message: str
) -> None:
    if torch.cuda.is_available() and "device" in changes:
        pytest.skip("there is a GPU")
    damage(data)
    with pytest.raises(ValueError, match=message):
        cyclegan.train(settings(data, **changes))
    assert not (data.parent / "runs").exists()


def test_checkpoint_of_other_networks_is_refused(data: Path) -> None:
    cyclegan.train(settings(data, max_steps=1))
    with pytest.raises(loop.RunError, match=r"ngf: 4 -> 6"):
        cyclegan.train(settings(data, continue_train=True, ngf=6))
    with pytest.raises(checkpoint.CheckpointError, match=r"does not fit G_A: .*size mismatch.* \(and 14 more\)$"):
        cyclegan.train(settings(data, continue_train=True, ngf=6, allow_config_change=True))
    with pytest.raises(loop.RunError, match=r"epoch_count: 1 -> 2 \(a run knows its epoch: give what it began with\)"):
        cyclegan.train(settings(data, continue_train=True, epoch_count=2))


def test_export_and_begin_from_official_weights(data: Path, tmp_path: Path) -> None:
    config = settings(data, max_steps=2, ema=0.5)
    cyclegan.train(config)
    written = inference.export_official(config.folder, tmp_path / "official")
    assert [p.name for p in written] == [f"latest_net_{n}.pth" for n in ("G_A", "G_B", "D_A", "D_B")]
    tree = checkpoint.read(checkpoint.locate(config.folder))
    averaged = tree["state"]["stateful"]["ema_G_A"]
    assert all(torch.equal(v, averaged[k]) for k, v in read_official(written[0]).items())
    assert inference.load_config(checkpoint.locate(config.folder)) == config
    again = cyclegan.make(settings(data, pretrained=tmp_path / "official"))
    assert all(torch.equal(v, averaged[k]) for k, v in again.networks["G_A"].state_dict().items())
    x = torch.rand(1, 3, 16, 20) * 2 - 1
    for direction, file in (("AtoB", written[0]), ("BtoA", written[1])):
        ours = inference.load_translator(config.folder, direction, device="cpu")
        assert torch.equal(inference.load_translator(file, device="cpu")(x), ours(x))
        assert torch.equal(inference.load_translator(tmp_path / "official", direction, device="cpu")(x), ours(x))
    kept = written[3].read_bytes()
    with pytest.raises(FileExistsError, match=r"latest_net_G_A\.pth is there already.*--overwrite"):
        inference.export_official(config.folder, tmp_path / "official")
    assert inference.export_official(config.folder, tmp_path / "official", overwrite=True) == written
    assert written[3].read_bytes() == kept
    assert len(list((tmp_path / "official").iterdir())) == 4
    exported = inference.export_official(config.folder, config.folder)
    cyclegan.train(dataclasses.replace(config, continue_train=True, max_steps=4))
    latest = inference.load_translator(config.folder, device="cpu")  # of the run, which has gone on
    assert not torch.equal(latest(x), inference.load_translator(exported[0], device="cpu")(x))


def test_translate(data: Path, tmp_path: Path) -> None:
    config = settings(data, max_steps=1)
    cyclegan.train(config)
    translator = inference.load_translator(str(config.folder), "BtoA", device="cpu")
    draw(data / "odd" / "deep" / "x.jpg", 4, (30, 21))
    for channels, mode in ((1, "L"), (3, "RGB"), (4, "RGBA")):
        picture = inference._pixels(torch.linspace(-1, 1, channels * 2)[:, None, None].reshape(channels, 1, 2))
        assert (picture.mode, picture.size) == (mode, (2, 1))
    assert picture.getpixel((1, 0)) == (36, 109, 182, 255)
    out = tmp_path / "out"
    made = inference.translate(translator, data / "odd", out)
    assert made == [out / "deep" / "x.png"]
    assert Image.open(made[0]).size == (32, 20)  # rounded to multiples of 4
    with pytest.raises(DataError, match=r"x\.png: there already.*--overwrite"):
        inference.translate(translator, data / "odd", out)
    inference.translate(translator, str(data / "odd"), str(out), overwrite=True)
    with pytest.raises(ValueError, match="crop_size is not looked at with preprocess none: leave it out"):
        inference.translate(translator, data / "odd", tmp_path / "none", crop_size=256)
    file = checkpoint.locate(config.folder)
    with pytest.raises(checkpoint.CheckpointError, match=r"which best is for a run's folder, and .* is one checkpoint"):
        inference.load_translator(file, which="best")
    inference.export_official(str(config.folder), str(tmp_path / "official"))
    with pytest.raises(checkpoint.CheckpointError, match=r"direction BtoA is for runs.*G_A\.pth is one generator"):
        inference.load_translator(tmp_path / "official" / "latest_net_G_A.pth", "BtoA")
    draw(data / "small" / "a.png", 5)
    draw(data / "small" / "b.png", 5, (20, 5))
    message = r"b\.png: would be 20×4 pixels with preprocess none, and the networks need 8 a side at least"
    for source in ("small", "small/b.png"):
        with pytest.raises(DataError, match=message):
            inference.translate(translator, data / source, tmp_path / "small")
    assert not (tmp_path / "small").exists()
    draw(data / "odd" / "deep" / "x.png", 5)
    with pytest.raises(DataError, match=r"odd: several images are called deep/x, but for their extension"):
        inference.translate(translator, data / "odd", tmp_path / "twice")
    one = inference.translate(translator, data / "testA" / "0.png", tmp_path / "one")
    assert one == [tmp_path / "one" / "0.png"]
    pixels = torch.from_numpy(np.asarray(Image.open(data / "testA" / "0.png")).copy()).permute(2, 0, 1).float()
    expected = (translator(pixels[None] / 127.5 - 1)[0] + 1) * 127.5
    got = torch.from_numpy(np.asarray(Image.open(one[0])).copy()).permute(2, 0, 1).float()
    assert float((got - expected).abs().max()) <= 0.51


# --- several processes --------------------------------------------------------------------------------------------


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            "-m",
            "fastgan",
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def flags(config: CycleGanConfig, **changes: Any) -> list[str]:
    words = []
    for name, value in {
        **TINY,
        "dataroot": config.dataroot,
        "checkpoints_dir": config.checkpoints_dir,
        **changes,
    }.items():
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{name}")
        else:
            words += [f"--{name}", str(value)]
    return words


@pytest.mark.slow
@pytest.mark.parametrize(("gan_mode", "held_out"), [("lsgan", "AB"), ("wgangp", "B")])
def test_two_processes_equal_one_with_the_joint_batch(data: Path, gan_mode: str, held_out: str) -> None:
    """Losses, pools and penalty included, and scores of images that do not divide: three pairs; or two and three."""
    draw(data / "trainB" / "7.png", seed=1)  # 8 items: the joint batches are whole
    for domain in held_out:
        draw(data / f"test{domain}" / "2.png", seed=2)
    changes = {"gan_mode": gan_mode, "fused": False, "init_gain": 0.3, "max_steps": 3, "save_latest_freq": 2}
    changes |= {"eval_freq": 3, "best_metric": "swd_B"}
    one = settings(data, name="one", **{**changes, "batch_size": 4})
    cyclegan.train(one)
    two = settings(data, name="two", **changes)
    result = torchrun("train", "cyclegan", *flags(two, name="two", **changes))
    assert result.returncode == 0, result.stderr
    assert {"swd_A", "swd_B"} <= lines(two)[-1].keys()
    assert ("ssim_A" in lines(two)[-1]) == (held_out == "AB")
    for single, double in zip(lines(one), lines(two), strict=True):
        assert single.keys() == double.keys()
        for name, value in single.items():
            assert double[name] == pytest.approx(value, rel=2e-3, abs=2e-4), (name, single["step"])
    mine, theirs = (checkpoint.read(checkpoint.locate(c.folder))["state"] for c in (one, two))
    for name in ("pool_D_A", "pool_D_B"):
        for a, b in zip(mine["stateful"][name]["images"], theirs["stateful"][name]["images"], strict=True):
            torch.testing.assert_close(b, a, rtol=2e-3, atol=2e-3)
        assert torch.equal(mine["stateful"][name]["generator"], theirs["stateful"][name]["generator"])


# --- the command line ---------------------------------------------------------------------------------------------


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    return int(stopped.value.code or 0)


def test_command_line(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = settings(data)
    words = flags(config, lambda_identity=0.1)
    words[words.index("--load_size")] = "--load-size"  # dashes do as well
    assert run("train", "cyclegan", *words, "--max_steps", "2", "--gpu_ids", "-1", "--model", "cycle_gan") == 0
    saved = json.loads((config.folder / "config.json").read_text())
    assert (saved["lambda_identity"], saved["load_size"], saved["device"]) == (0.1, 20, "cpu")
    out = data.parent / "out"
    assert run("translate", "--checkpoint", str(config.folder), "--input", str(data / "testA"), "--out", str(out)) == 0
    assert sorted(p.name for p in out.iterdir()) == ["0.png", "1.png"]
    assert run("export", "--checkpoint", str(config.folder), "--out", str(out / "official")) == 0
    capsys.readouterr()
    assert run("train", "cyclegan", *words) == 1
    assert "fastgan: error: " in (error := capsys.readouterr().err)
    assert "--continue_train" in error
    assert "Traceback" not in error


def test_ctrl_c_saves_and_exits_with_130(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = settings(data, name="whole"), settings(data, name="broken")
    cyclegan.train(whole)
    step = cyclegan.CycleGan.step

    def interrupted(task: cyclegan.CycleGan) -> dict[str, torch.Tensor]:
        losses = step(task)
        if task.loader.batch == 3 and task.epoch == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return losses

    monkeypatch.setattr(cyclegan.CycleGan, "step", interrupted)
    assert run("train", "cyclegan", *flags(broken, name="broken")) == 130
    monkeypatch.undo()
    assert checkpoint.locate(broken.folder).name == "step-00000003.safetensors"
    assert run("train", "cyclegan", *flags(broken, name="broken"), "--continue_train") == 0
    assert_same_run(whole, broken)


def test_evaluate(data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(data, eval_freq=2, max_steps=2)
    cyclegan.train(config)
    capsys.readouterr()
    assert run("evaluate", "--checkpoint", str(config.folder), "--json", "--device", "cpu") == 0
    scores = json.loads(capsys.readouterr().out)
    assert set(scores) == {f"{name}_{domain}" for name in ("l1", "psnr", "ssim", "swd") for domain in "AB"}
    logged = lines(config)[-1]
    assert {k: v for k, v in scores.items() if "swd" not in k} == pytest.approx(
        {k: logged[k] for k in scores if "swd" not in k}, rel=1e-5
    )
    capsys.readouterr()
    official = inference.export_official(config.folder, data.parent / "official")[0]
    assert run("evaluate", "--checkpoint", str(official)) == 1
    assert "latest_net_G_A.pth is one network of the official code" in capsys.readouterr().err
    for name, value in (("n", "2048"), ("seed", "0")):
        assert run("evaluate", "--checkpoint", str(config.folder), f"--{name}", value) == 1
        assert f"{name} is for runs of train gan, and" in capsys.readouterr().err
    assert run("evaluate", "--checkpoint", str(config.folder), "--fid") == 1
    assert "FID" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"):
            patch.setitem(sys.modules, name, None)
        weights = data / "weights.pth"
        torch.save({}, weights)
        patch.setattr(inception, "inception_weights", lambda *_: weights)
        with pytest.raises(inception.MetricUnavailableError, match="torch-fidelity cannot be imported"):
            inference.evaluate(config.folder, fid=True, progress=lambda *_: pytest.fail("translated before"))
    with monkeypatch.context() as patch:
        sides: list[Any] = []
        network = torch.nn.Identity()
        patch.setattr(inference, "inception_features", lambda: network)
        patch.setattr(
            inference,
            "frechet_inception_distance",
            lambda *images, features, device: sides.append((*images, features, device)) or 1.5,
        )
        assert inference.evaluate(str(config.folder), str(data), device="cpu", fid=True)["fid_A"] == 1.5
    (real, fake, features, device), _ = sides
    assert features is network
    assert device == torch.device("cpu")
    assert len(real) == len(fake) == len(list((data / "testA").iterdir()))
    assert {k: logged[k] for k in ("swd_A", "swd_B")} == pytest.approx({k: scores[k] for k in ("swd_A", "swd_B")})
    for path in (data / "testB").iterdir():
        path.unlink()
    assert run("evaluate", "--checkpoint", str(config.folder)) == 1
    assert "holds no image" in capsys.readouterr().err
    data.rename(data.with_name("moved"))
    assert run("evaluate", "--checkpoint", str(config.folder)) == 1
    assert "data: no such folder; name another (--dataroot)" in capsys.readouterr().err


def test_dry_run_prints_and_writes_nothing(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = settings(data)
    assert run("train", "cyclegan", *flags(config), "--dry_run") == 0
    text = capsys.readouterr().err
    assert "G_A 0.0" in text
    assert "12 (4 an epoch, 7 items)" in text
    assert "MiB" in text
    assert not config.folder.exists()


def test_help_and_wrong_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)
    assert run("train", "cyclegan", "--help") == 0
    text = capsys.readouterr().out
    assert all(flag in text for flag in ("--dataroot", "--lambda_A", "--n_epochs_decay", "--fused"))
    # A line break within a setting's description would be one in the help, wherever the terminal's lines end.
    for config in (RunConfig, CycleGanConfig, GanConfig):
        body = ast.parse(inspect.getsource(config)).body[0].body[1:]
        texts = [node.value.value for node in body if isinstance(node, ast.Expr)]
        assert len(texts) > 15
        assert not [text for text in texts if "\n" in text]
    assert run("train", "cycelgan") == 2
    assert "did you mean 'train cyclegan'" in capsys.readouterr().err
    assert run("test", "--dataroot", "x") == 2
    assert "did you mean 'translate' or 'evaluate'?" in capsys.readouterr().err
    assert run("train", "cyclegan") == 2  # no dataroot
    assert run("train", "cyclegan", "--dataroot", "x", "--lambda_C", "3") == 2
    assert run("train", "cyclegan", "--dataroot", "x", "--model", "pix2pix") == 1
    assert "must be cycle_gan" in capsys.readouterr().err


def test_help_on_a_terminal_without_unicode() -> None:
    """As under a locale of another encoding, whose Python refuses to print what it lacks."""
    for words in ([], ["train", "gan", "--help"]):
        command = [sys.executable, "-m", "fastgan", *words]
        done = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert "fastgan" in done.stdout


def test_help_that_nobody_reads_on() -> None:
    """As in ``fastgan train gan --help | head``."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "fastgan", "train", "gan", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
