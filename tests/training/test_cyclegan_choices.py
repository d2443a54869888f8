"""Every choice of the CycleGAN command line, on pictures as people have them: trained, translated, scored, exported."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastgan import cli
from fastgan.models import read_official
from fastgan.training import checkpoint
from fastgan.training.log import read_stats

TINY = (
    "--ngf 4 --ndf 4 --n_epochs 1 --n_epochs_decay 1 --device cpu --num_threads 0 "
    "--print_freq 1 --max_dataset_size 3 --max_steps 3 --no-tensorboard --no-progress"
)
SIZES = {"none": "", "crop": "--crop_size 32"}  # others: both
CHOICES = [
    "--netG resnet_9blocks --netD basic --norm instance --gan_mode lsgan --lr_policy linear --no_dropout --no_flip "
    "--preprocess crop",
    "--netG resnet_6blocks --netD pixel --norm batch --gan_mode vanilla --lr_policy step --lr_decay_iters 1 "
    "--direction BtoA --init_type xavier --pool_size 0",
    "--netG unet_32 --netD n_layers --n_layers_D 2 --norm none --gan_mode hinge --lr_policy cosine "
    "--preprocess scale_width_and_crop --serial_batches --init_type kaiming",
    "--netG resnet_1blocks --netD n_layers --n_layers_D 1 --gan_mode wgangp --gp_one_sided --lr_policy plateau "
    "--input_nc 1 --output_nc 1 --init_type orthogonal",
    "--netG resnet_1blocks --netD basic --preprocess none --pool_size 2 --lambda_identity 0 --no-no_dropout "
    "--input_nc 1 --output_nc 4 --cache on",
    "--netG unet_128 --ngf 1 --netD pixel --preprocess scale_width --load_size 128 --crop_size 128 --max_steps 1",
    "--netG unet_256 --ngf 1 --netD pixel --load_size 256 --crop_size 256 --max_steps 1",
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour, grey, 16-bit, transparent, palette and rotated pictures of several sizes, more in B than in A."""
    root, numbers = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    rotated = Image.Exif()
    rotated[0x0112] = 6

    def noise(*shape: int, top: int = 256) -> np.ndarray:
        return numbers.integers(0, top, shape, dtype=np.uint16 if top > 256 else np.uint8)

    for folder in ("trainA", "trainB", "testA", "testB"):
        place = root / folder
        place.mkdir()
        Image.fromarray(noise(40, 60, 4)).save(place / "a_rgba.png")
        Image.fromarray(noise(44, 36, top=65536)).save(place / "b_sixteen.png")
        Image.fromarray(noise(60, 38, 3)).save(place / "c_rotated.jpg", exif=rotated)
        if folder == "trainB":
            Image.fromarray(noise(50, 40)).save(place / "d_grey.tiff")
            Image.fromarray(noise(40, 50)).convert("P").save(place / "e_palette.png")
    return root


def fastgan(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    return int(ended.value.code or 0)


def with_sizes(choice: str) -> list[str]:
    preprocess = choice.split("--preprocess ")[1].split()[0] if "--preprocess" in choice else ""
    return [*SIZES.get(preprocess, "--load_size 36 --crop_size 32").split(), *choice.split()]


@pytest.mark.parametrize("choice", CHOICES)
def test_choices(choice: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    side = choice.split("--load_size ")[1].split()[0] if "--load_size" in choice else "32"
    flags = ["--dataroot", str(pictures), "--checkpoints_dir", str(tmp_path), "--name", "run", *TINY.split()]
    assert fastgan("train", "cyclegan", *flags, *with_sizes(choice)) == 0, capsys.readouterr().err
    lines = read_stats(tmp_path / "run" / "stats.jsonl")
    assert len(lines) == (1 if "--max_steps" in choice else 3)
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert ("idt_A" in lines[0]) == ("--lambda_identity 0" not in choice)
    if "--lr_policy" in choice:
        factor = {"linear": 0.5, "step": 0.1, "cosine": 0.0, "plateau": 1.0}[choice.split("--lr_policy ")[1].split()[0]]
        optimizer = checkpoint.read(checkpoint.locate(tmp_path / "run"), only="state/stateful/G")
        assert optimizer["param_groups"][0]["lr"] == pytest.approx(2e-4 * factor, abs=1e-12)  # of the next epoch
    assert Image.open(tmp_path / "run" / "sheets" / f"step-{len(lines):08d}.png").width > 6 * 32
    capsys.readouterr()
    run = ["--checkpoint", str(tmp_path / "run"), "--device", "cpu"]
    assert fastgan("evaluate", *run, "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    assert {"l1_A", "psnr_B", "ssim_B"} < set(scores)
    assert fastgan("export", *run[:2], "--out", str(tmp_path / "official")) == 0
    for direction, net in (("AtoB", "G_A"), ("BtoA", "G_B")):
        file = tmp_path / "official" / f"latest_net_{net}.pth"
        assert read_official(file).keys() == torch.load(file, weights_only=True).keys()
        made = []
        for name, weights in ((net, [str(file)]), (direction, [run[1], "--direction", direction])):
            words = ["--checkpoint", *weights, "--input", str(pictures / "testA"), "--out", str(tmp_path / name)]
            words += ["--preprocess", "resize_and_crop", "--load_size", side, "--crop_size", side]
            assert fastgan("translate", *words, "--device", "cpu") == 0, capsys.readouterr().err
            made.append([np.asarray(Image.open(path)) for path in sorted((tmp_path / name).iterdir())])
        assert [image.shape[:2] for image in made[0]] == [(int(side), int(side))] * 3
        assert all(np.array_equal(*pair) for pair in zip(*made, strict=True))


def test_flags_of_the_official_train_script(capsys: pytest.CaptureFixture[str]) -> None:
    """Those with another name or no meaning here, in both spellings; the others pass as they are."""
    words = "--model cycle_gan --dataset_mode=unaligned --phase train --epoch latest --load_iter 0 --gpu_ids 1,2"
    words += " --no_html --verbose --use_wandb --wandb_project_name w --save_by_iter --update_html_freq 100"
    words += " --display_id 0 --display_winsize 256 --display_ncols=4 --display_server http://x --display_env main"
    words += " --display_port 8097 --max_dataset_size inf --netG resnet_6blocks --max_dataset_size 7"
    words += " --norm syncbatch --norm=instance"
    left = cli.official_flags(words.split())
    norms = ["--norm", "batch", "--norm", "instance"]
    assert left == ["--device", "cuda:1", "--netG", "resnet_6blocks", "--max_dataset_size", "7", *norms]
    assert "--display_port has no meaning here" in (said := capsys.readouterr().err)
    assert "torchrun" in said
    for flag, message in (("--model pix2pix", "--model must be cycle_gan"), ("--epoch 20", "--epoch must be latest")):
        with pytest.raises(ValueError, match=message):
            cli.official_flags(flag.split())
    with pytest.raises(ValueError, match="--suffix must be left out"):
        cli.official_flags(["--suffix", "_x"])
    for flag in ("--gpu_ids", "--display_id", "--max_dataset_size"):
        with pytest.raises(ValueError, match=f"{flag} needs a value"):
            cli.official_flags(["--verbose", flag])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--netG resnet", "netG must be resnet_9blocks, resnet_6blocks (any count), unet_128 or unet_256"),
        ("--norm layer", "--norm"),
        ("--print_freq 0", "print_freq must be at least 1, got 0"),
        ("--keep -1", "keep must be at least 0, got -1"),
        ("--max_steps 0", "max_steps must be at least 1, got 0"),
        ("--input_nc 2 --output_nc 2", "input_nc must be 1, 3 or 4 for image files, got 2"),
        ("--preprocess none --crop_size 32", "crop_size is not looked at with preprocess none: leave it out"),
        ("--preprocess crop --load_size 36", "load_size is not looked at with preprocess crop: leave it out"),
        ("--preprocess none --batch_size 2", "b_sixteen 36×44 pixels with preprocess none: batch_size must be 1"),
        ("--best_metric l1_B", "best_metric 'l1_B' needs evaluations: set eval_freq"),
        ("--best_metric l1_B --dry_run", "best_metric 'l1_B' needs evaluations: set eval_freq"),
        ("--name .", "name must be that of a folder in checkpoints_dir, got '.'"),
        ("--cache device", "cache cannot be device: "),
        ("--max_dataset_size 0", "max_dataset_size must be at least 1, got 0"),
    ],
)
def test_wrong_values(
    flags: str, message: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--dataroot",
        str(pictures),
        "--checkpoints_dir",
        str(tmp_path / "runs"),
        *TINY.split(),
        *with_sizes(flags),
    ]
    assert fastgan("train", "cyclegan", *words) in (1, 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
