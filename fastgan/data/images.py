"""Folders of images.

A data set is a sequence: ``dataset[i]`` is item i without chance (central crop, no mirror), and
``dataset.sample(i, generator)`` draws crop, mirror and partner from ``generator``. So what is loaded depends on nothing
but the position and the seed: not on worker processes, nor on what was loaded before.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fastgan.data.decode import MODES, DataError, decode, image_size, in_threads, list_images
from fastgan.data.transforms import Pixels, Preprocess

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


class SingleImageFolder:
    """Images of one domain: those in a folder and its subfolders, as float32 [channels, H, W] in [−1, 1].

    Args:
        folder: see :func:`fastgan.data.decode.list_images`.
        preprocess: resize, crop, mirror.
        channels: 1, 3 or 4.
        max_dataset_size: take the first so many files only.
        cache: decode and resize all images now, on all processors, and keep them: 0.25 MB each at 286², less than a
            millisecond to load later, and every file is proved readable. Worker processes started by fork share them.
            Without it only the headers are read now.
        progress: called as the files are read.

    Raises:
        DataError: a missing or empty folder, a file that is no image or (with ``cache``) corrupt, an image smaller than
            the crop.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        preprocess: Preprocess | None = None,
        *,
        channels: int = 3,
        max_dataset_size: int | None = None,
        cache: bool = False,
        progress: Progress | None = None,
    ) -> None:
        if channels not in MODES:
            raise ValueError(f"channels must be 1, 3 or 4, got {channels}")
        if max_dataset_size is not None and max_dataset_size < 1:
            raise ValueError(f"max_dataset_size must be at least 1, got {max_dataset_size}")
        self.folder = Path(folder)
        self.preprocess = preprocess or Preprocess()
        self.channels = channels
        self.paths = list_images(self.folder)[:max_dataset_size]
        self._cache: list[Pixels] | None = None
        if cache:
            self._cache = in_threads(self._prepare, self.paths, progress)
            prepared = [image.shape[:2] for image in self._cache]
        else:
            prepared = in_threads(self._check, self.paths, progress)
        self.sizes: list[tuple[int, int]] = [self.preprocess.cropped(*size) for size in prepared]
        """(height, width) of each image as :meth:`sample` gives it."""

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.sample(index, None)

    def sample(self, index: int, generator: torch.Generator | None) -> Tensor:
        """Image ``index``; ``generator`` draws crop and mirror."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder}: image {index} of {len(self)}")
        pixels = self._prepare(self.paths[index]) if self._cache is None else self._cache[index]
        return self.preprocess.finish(pixels, self.channels, generator)

    @property
    def cached(self) -> list[Pixels]:
        """The decoded and resized images, if they are kept."""
        return self._cache or []

    def draw(self, index: int, generator: torch.Generator | None) -> Tensor:
        """What :meth:`sample` draws for a cached image: int64 [index, top, left, mirrored]."""
        height, width = self.cached[index].shape[:2]
        return torch.tensor([index, *self.preprocess.draw(height, width, generator)])

    def name(self, index: int) -> str:
        """The file's path within the folder, without its extension."""
        return self.paths[index].relative_to(self.folder).with_suffix("").as_posix()

    def _check(self, path: Path) -> tuple[int, int]:
        size = image_size(path)
        self.preprocess.check(*size, path)
        width, height = self.preprocess.size(*size)
        return height, width

    def _prepare(self, path: Path) -> Pixels:
        image = decode(path, self.channels)
        self.preprocess.check(*image.size, path)
        return self.preprocess.prepare(image)


class UnpairedImageFolder:
    """CycleGAN's data: ``root``/trainA and ``root``/trainB, images of two domains with no correspondence.

    ``sample(i, generator)`` is {"A": [channels_a, H, W], "B": [channels_b, H, W], "A_path", "B_path"} with image i of
    the larger domain's order in A (wrapping round), and any image of B, drawn uniformly (``serial_batches``: image i).
    The length is the larger domain's.

    Args:
        root: the folder of folders.
        phase: ``train`` or ``test`` …: the folders' first part.
        channels_a, channels_b, max_dataset_size, cache, progress: as for :class:`SingleImageFolder`.
        direction: ``AtoB``, or ``BtoA``, which exchanges the domains.
        serial_batches: take partners in order.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        preprocess: Preprocess | None = None,
        *,
        phase: str = "train",
        channels_a: int = 3,
        channels_b: int = 3,
        direction: str = "AtoB",
        serial_batches: bool = False,
        max_dataset_size: int | None = None,
        cache: bool = False,
        progress: Progress | None = None,
    ) -> None:
        if direction not in ("AtoB", "BtoA"):
            raise ValueError(f"direction must be 'AtoB' or 'BtoA', got {direction!r}")
        self.root = Path(root)
        self.serial_batches = serial_batches
        folders = _two_folders(self.root, phase)
        if direction == "BtoA":
            folders.reverse()
        self.a, self.b = (
            SingleImageFolder(
                folder,
                preprocess,
                channels=channels,
                max_dataset_size=max_dataset_size,
                cache=cache,
                progress=progress,
            )
            for folder, channels in zip(folders, (channels_a, channels_b), strict=True)
        )

    def __len__(self) -> int:
        return max(len(self.a), len(self.b))

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        return self.sample(index, None)

    def sample(self, index: int, generator: torch.Generator | None) -> dict[str, Tensor | str]:
        """Item ``index``; ``generator`` draws the partner, the crops and the mirrors."""
        a, b = self._partners(index, generator)
        return {
            "A": self.a.sample(a, generator),
            "B": self.b.sample(b, generator),
            "A_path": str(self.a.paths[a]),
            "B_path": str(self.b.paths[b]),
        }

    def draw(self, index: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        """What :meth:`sample` draws for cached images: {"A", "B"} of :meth:`SingleImageFolder.draw`."""
        a, b = self._partners(index, generator)
        return {"A": self.a.draw(a, generator), "B": self.b.draw(b, generator)}

    def _partners(self, index: int, generator: torch.Generator | None) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.root}: item {index} of {len(self)}")
        if self.serial_batches or generator is None:
            return index % len(self.a), index % len(self.b)
        return index % len(self.a), int(torch.randint(len(self.b), (), generator=generator))


class PairedImageFolder:
    """Pairs with ground truth: files of the same name in ``root``/testA and ``root``/testB.

    ``dataset[i]`` is {"A", "B", "A_path", "B_path"} without chance. Arguments as for :class:`UnpairedImageFolder`; it
    raises DataError if a file has no partner, or one of another size.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        preprocess: Preprocess | None = None,
        *,
        phase: str = "test",
        channels_a: int = 3,
        channels_b: int = 3,
        direction: str = "AtoB",
        max_dataset_size: int | None = None,
        cache: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._pairs = UnpairedImageFolder(
            root,
            preprocess,
            phase=phase,
            channels_a=channels_a,
            channels_b=channels_b,
            direction=direction,
            serial_batches=True,
            max_dataset_size=max_dataset_size,
            cache=cache,
            progress=progress,
        )
        self.a, self.b = self._pairs.a, self._pairs.b
        names_a, names_b = ([folder.name(i) for i in range(len(folder))] for folder in (self.a, self.b))
        if names_a != names_b:
            alone = sorted(set(names_a) ^ set(names_b)) or [a for a, b in zip(names_a, names_b, strict=True) if a != b]
            raise DataError(
                f"{self.a.folder} and {self.b.folder}: expected files of the same names, "
                f"{len(alone)} have no partner: {', '.join(alone[:3])}{', …' if len(alone) > 3 else ''}"
            )

        for i, sizes in enumerate(zip(self.a.sizes, self.b.sizes, strict=True)):
            if sizes[0] != sizes[1]:
                (h, w), (height, width) = sizes
                raise DataError(
                    f"{self.a.paths[i]} and {self.b.paths[i]}: expected pairs of one size, got {w}×{h} and "
                    f"{width}×{height} pixels"
                )

    def __len__(self) -> int:
        return len(self.a)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        return self._pairs[index]

    def sample(self, index: int, generator: torch.Generator | None = None) -> dict[str, Tensor | str]:
        """The same as ``dataset[index]``: a pair must not be cropped or mirrored apart."""
        return self._pairs[index]


def _two_folders(root: Path, phase: str) -> list[Path]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected a folder with {phase}A and {phase}B")
    folders = [root / f"{phase}A", root / f"{phase}B"]
    for folder in folders:
        if not folder.is_dir():
            found = sorted(path.name for path in root.iterdir() if path.is_dir())
            raise DataError(
                f"{folder}: no such folder; expected {root} to hold {phase}A and {phase}B with the images of the two "
                f"domains, found {', '.join(found[:10]) if found else 'no folder'}"
            )
    return folders
