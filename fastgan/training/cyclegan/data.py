"""Where CycleGAN's images come from: the folders of a data root, in memory or on the device."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from fastgan.data import DataError, Preprocess, UnpairedImageFolder
from fastgan.data.decode import MODES, list_images
from fastgan.data.resident import ResidentPairs, keeps, on_device
from fastgan.training import distributed
from fastgan.training.cyclegan.config import CycleGanConfig
from fastgan.training.cyclegan.networks import sizes
from fastgan.training.loader import Source


def training_images(config: CycleGanConfig) -> UnpairedImageFolder:
    """trainA and trainB, all of whose files are checked.

    Raises:
        DataError: a folder that is missing or empty, an unreadable image, one smaller than the crop, images of several
            sizes for batches.
    """
    for name in ("input_nc", "output_nc"):
        if getattr(config, name) not in MODES:
            raise ValueError(f"{name} must be 1, 3 or 4 for image files, got {getattr(config, name)}")
    images = UnpairedImageFolder(
        config.dataroot,
        _preprocess(config, config.least_judged),
        serial_batches=config.serial_batches,
        cache=_caches(config),
        **_folders(config),
    )
    joint = config.batch_size * distributed.size()
    for folder in (images.a, images.b) if joint > 1 else ():
        other = next((i for i, size in enumerate(folder.sizes) if size != folder.sizes[0]), None)
        if other is not None:
            (h, w), (height, width) = folder.sizes[0], folder.sizes[other]
            raise DataError(
                f"{folder.folder}: {folder.name(0)} has {w}×{h} and {folder.name(other)} {width}×{height} pixels with "
                f"preprocess {config.preprocess}: batch_size must be 1, in one process, or preprocess one that crops"
            )
    return images


def held_out(config: CycleGanConfig) -> tuple[UnpairedImageFolder | None, bool]:
    """testA and testB, if they are there, and whether they are pairs: files of the same names and sizes."""
    folders = [config.dataroot / "testA", config.dataroot / "testB"]
    if not all(folder.is_dir() for folder in folders):
        return None, False
    rule = _preprocess(config).for_testing()
    images = UnpairedImageFolder(config.dataroot, rule, phase="test", serial_batches=True, **_folders(config))
    names = [[folder.name(i) for i in range(len(folder))] for folder in (images.a, images.b)]
    return images, names[0] == names[1] and images.a.sizes == images.b.sizes


def check_batch(source: str, batch: object, channels: Mapping[str, int], dtype: torch.dtype) -> None:
    """Looks at the first batch of a ``source`` from elsewhere, on the host; warns of images that seem to be in [0, 1].

    Raises:
        TypeError, ValueError: they are not what :class:`fastgan.training.cyclegan.CycleGan` says of ``train``.
    """
    if not isinstance(batch, Mapping) or not channels.keys() <= batch.keys():
        got = f"a dict of {list(batch)}" if isinstance(batch, Mapping) else type(batch).__name__
        raise TypeError(f"{source}: an item must be a dict of 'A' and 'B', got {got}")
    for name, count in channels.items():
        images = batch[name]
        what = f"{source}: {name} of an item must be {dtype} [{count}, H, W] with values in [−1, 1]"
        if not isinstance(images, Tensor):
            raise TypeError(f"{what}, got {type(images).__name__}")
        if images.dtype != dtype or images.dim() != 4 or images.size(1) != count:
            raise ValueError(f"{what}, got {images.dtype} {list(images.shape[1:])}")
        least, most = (float(value) for value in images.aminmax())
        if not (least >= -1.5 and most <= 1.5):  # bicubic interpolation overshoots
            raise ValueError(f"{what}, got values from {least:.3g} to {most:.3g}")
        if least >= 0:
            warnings.warn(
                f"{what}, got values from {least:.3g} to {most:.3g} in the first batch: if 0 is black, give 2 x - 1",
                stacklevel=2,
            )


def one_item(source: Source, index: int) -> tuple[Tensor, Tensor]:
    """A and B of an item, without chance, as batches of one."""
    batch = default_collate([source.sample(index, None)])
    return batch["A"], batch["B"]


def counts(source: Source) -> dict[str, int] | None:
    """How many images A and B have, of which a source of folders repeats the fewer; None: nobody knows."""
    return {"A": len(source.a), "B": len(source.b)} if isinstance(source, UnpairedImageFolder) else None


def _preprocess(config: CycleGanConfig, least: int = 1) -> Preprocess:
    multiple, of_generators = sizes(config)
    least = max(least, of_generators)
    return Preprocess(config.preprocess, config.load_size, config.crop_size, not config.no_flip, multiple, least)


def _folders(config: CycleGanConfig) -> dict[str, Any]:
    return {
        "channels_a": config.input_nc,
        "channels_b": config.output_nc,
        "direction": config.direction,
        "max_dataset_size": config.max_dataset_size,
    }


def _caches(config: CycleGanConfig) -> bool:
    """Whether decoded images are to be kept; ``auto``: when they surely take less than 2 GB."""
    if config.cache == "auto" and config.preprocess != "resize_and_crop":
        return False
    folders = [folder for name in ("trainA", "trainB") if (folder := config.dataroot / name).is_dir()]
    images = sum(len(list_images(folder)[: config.max_dataset_size]) for folder in folders)
    return keeps(config.cache, images, max(config.input_nc, config.output_nc), config.load_size)


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
