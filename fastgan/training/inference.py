"""Using what CycleGAN learned: translating images, and scoring translations."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastgan._output import atomic_write, make_folder
from fastgan.data import DataError, Preprocess, SingleImageFolder
from fastgan.data.decode import MODES, decode
from fastgan.metrics import frechet_inception_distance, inception_features
from fastgan.models import build_generator, infer_generator, load_official, read_official, save_official
from fastgan.nn import fuse, use_cpu_convolutions
from fastgan.training import checkpoint, cyclegan, distributed, sheet
from fastgan.training.cyclegan import CycleGanConfig, PreprocessMode
from fastgan.training.cyclegan.config import check_sizes

Direction = Literal["AtoB", "BtoA"]


@dataclass
class Translator:
    """A trained generator, ready to use: [N, C, H, W] in [−1, 1] → the same in the other domain."""

    generator: nn.Module
    in_channels: int
    device: torch.device
    config: CycleGanConfig | None = None  # of the run, unless the weights are an official file

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        result: Tensor = self.generator(images.to(self.device)).float().cpu()
        return result

    @property
    def sizes(self) -> dict[str, int]:
        """What height and width must be a multiple of, and their least."""
        generator: Any = self.generator
        return {"multiple": generator.size_multiple, "least": generator.least_size}


def load_config(path: Path) -> CycleGanConfig:
    """The settings that a checkpoint was trained with."""
    saved = checkpoint.read(path, only="config")
    if "lambda_A" not in saved:
        raise checkpoint.CheckpointError(f"{path} is not a checkpoint of CycleGAN")
    return CycleGanConfig.from_dict(saved)


def load_translator(
    path: str | os.PathLike[str],
    direction: Direction = "AtoB",
    *,
    which: str = "latest",
    device: str = "auto",
    fused: bool = True,
) -> Translator:
    """The generator of a run, a checkpoint, or an official ``latest_net_G_A.pth``.

    Args:
        path: a run's folder, a checkpoint of it, a file ending in .pth, or an official run's folder of such files.
        direction: AtoB takes G_A, BtoA takes G_B, averaged if the run averages; an official file is one generator.
        which: of a run's folder: ``latest`` or ``best``.
        device: ``auto``, ``cpu``, ``cuda`` …
        fused: use the fused operators.

    Raises:
        CheckpointError: no such checkpoint, or of something else.
    """
    path, place = Path(path), distributed.resolve_device(device)
    name = "G_A" if direction == "AtoB" else "G_B"
    # A run's folder may hold official files too, which export wrote: its checkpoints may be newer.
    if which == "latest" and not (path / "checkpoints").is_dir() and (path / _official_name(name)).is_file():
        path, direction = path / _official_name(name), "AtoB"
    if path.suffix == ".pth":
        for name, used in (("direction BtoA", direction != "AtoB"), (f"which {which}", which != "latest")):
            if used:
                raise checkpoint.CheckpointError(f"{name} is for runs of fastgan, and {path} is one generator")
        arguments = infer_generator(read_official(path))
        if arguments is None:
            raise checkpoint.CheckpointError(f"{path} does not hold a ResNet or U-Net generator of CycleGAN")
        generator: nn.Module = build_generator(**arguments)
        load_official(generator, path)
        config, channels = None, arguments["in_channels"]
    else:
        file = checkpoint.locate(path, which)
        config = load_config(file)
        channels, others = config.input_nc, config.output_nc
        if direction == "BtoA":
            channels, others = others, channels
        generator = build_generator(
            config.netG, channels, others, ngf=config.ngf, norm=config.norm, dropout=not config.no_dropout
        )
        part = f"stateful/ema_{name}" if config.ema else f"networks/{name}"
        generator.load_state_dict(checkpoint.read(file, only=f"state/{part}"))
    generator.eval().requires_grad_(False)
    if fused:
        fuse(generator)
        if place.type == "cpu":
            use_cpu_convolutions(generator)
        generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Translator(generator.to(place), channels, place, config)


def _official_name(network: str) -> str:
    return f"latest_net_{network}.pth"


def translate(
    translator: Translator,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    preprocess: PreprocessMode = "none",
    load_size: int | None = None,
    crop_size: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Translates an image, or all images in a folder and below, to PNG files of the same names in ``out``.

    Args:
        translator: see :func:`load_translator`.
        source: an image file or a folder.
        out: a folder; made if it is not there.
        preprocess, load_size, crop_size: as in training, with the same defaults (286, 256); ``none`` keeps each
            image's size, rounded to what the generator needs.
        overwrite: replace files that are there.
        progress: called with (done, total).

    Returns:
        The files that were written.

    Raises:
        DataError: nothing to translate, an unreadable image, or files that would be overwritten.
    """
    source, out = Path(source), Path(out)
    sizes = {name: v for name, v in (("load_size", load_size), ("crop_size", crop_size)) if v is not None}
    check_sizes(preprocess, sizes)
    rule = Preprocess(preprocess, **sizes, flip=False, **translator.sizes).for_testing()
    load: Callable[[int], Tensor]
    if source.is_dir():
        folder = SingleImageFolder(source, rule, channels=translator.in_channels)
        names, load = [folder.name(i) for i in range(len(folder))], lambda i: folder.sample(i, None)
    else:
        picture = decode(source, translator.in_channels)
        rule.check(*picture.size, source)
        names = [source.stem]
        load = lambda i: rule.finish(rule.prepare(picture), translator.in_channels, None)
    targets = [out / f"{name}.png" for name in names]
    there = [path for path in targets if path.exists()]
    if there and not overwrite:
        raise DataError(
            f"{there[0]}{' and others' if len(there) > 1 else ''}: there already; give another folder, or "
            "allow overwriting (--overwrite)"
        )
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise DataError(f"{source}: several images are called {twice}, but for their extension: {out} can hold but one")
    make_folder("out", out)
    for i, target in enumerate(targets):
        image = _pixels(translator(load(i)[None])[0])
        make_folder("out", target.parent)
        with atomic_write(target) as file:
            image.save(file)
        if progress:
            progress(i + 1, len(targets))
    return targets


def _pixels(image: Tensor) -> Any:
    """[C, H, W] in [−1, 1] → a picture of C channels: grey, RGB or RGBA; of other counts the first three."""
    from PIL import Image

    pixels = sheet.to_uint8(image if image.size(0) in MODES else image[:3])
    return Image.fromarray(pixels.squeeze(-1).numpy())


def evaluate(
    path: str | os.PathLike[str],
    dataroot: str | os.PathLike[str] | None = None,
    *,
    which: str = "latest",
    device: str = "auto",
    fused: bool = True,
    fid: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Scores a run's translations of testA and testB: "…_B" of G_A(A) against B, "…_A" of G_B(B) against A.

    Args:
        path: a run's folder or a checkpoint.
        dataroot: the folder of testA and testB; by default the run's own.
        which, device, fused: see :func:`load_translator`.
        fid: compute the Fréchet inception distance too, for which Inception's weights must be on the disk.
        progress: called with (done, total).

    Returns:
        l1, psnr and ssim where the files of testA and testB have the same names and sizes, and so are pairs; swd, the
        sliced-Wasserstein distance of patches, where the images have one size; fid if asked for.

    Raises:
        CheckpointError, DataError: nothing to evaluate, or to evaluate with.
        MetricUnavailableError: fid without its library or weights.
    """
    features = inception_features() if fid else None  # before all that takes long
    file = checkpoint.locate(path, which)
    config = load_config(file)
    if dataroot is not None:
        config = dataclasses.replace(config, dataroot=Path(dataroot))
    source, paired = cyclegan.held_out(config)
    if source is None:
        what = "holds no testA and testB to evaluate on" if config.dataroot.is_dir() else "no such folder"
        raise DataError(f"{config.dataroot}: {what}; name another (--dataroot)")
    to_B, to_A = (load_translator(file, way, device=device, fused=fused) for way in get_args(Direction))

    translate = lambda real_A, real_B: {"fake_B": to_B(real_A), "fake_A": to_A(real_B)}
    distance = partial(frechet_inception_distance, features=features, device=to_B.device) if fid else None
    found = cyclegan.scores_of(source, translate, paired, fid=distance, progress=progress)
    if not found:
        raise DataError(
            f"{config.dataroot}: nothing to score: testA and testB are no pairs (by their files' names or sizes), and "
            "their images are of several sizes or below 16 pixels, for which there is no distance of patches"
        )
    return found


def export_official(
    path: str | os.PathLike[str], out: str | os.PathLike[str], which: str = "latest", *, overwrite: bool = False
) -> list[Path]:
    """Writes a run's networks as ``latest_net_G_A.pth`` … for the official code; averaged generators if there are.

    Raises:
        CheckpointError: no such checkpoint, or of something else.
        FileExistsError: such a file is in ``out`` and is not to be overwritten.
    """
    file, out = checkpoint.locate(path, which), Path(out)
    config = load_config(file)
    networks = cyclegan.build_networks(config)
    files = [out / _official_name(name) for name in networks]
    there = [file for file in files if file.exists()]
    if there and not overwrite:
        raise FileExistsError(f"{there[0]} is there already; give another folder, or allow overwriting (--overwrite)")
    make_folder("out", out)
    for target, (name, network) in zip(files, networks.items(), strict=True):
        averaged = bool(config.ema) and name.startswith("G")
        part = f"stateful/ema_{name}" if averaged else f"networks/{name}"
        network.load_state_dict(checkpoint.read(file, only=f"state/{part}"))
        save_official(network, target)
    return files
