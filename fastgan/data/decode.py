"""Image files → pictures: grey, 16-bit, RGBA, palette, CMYK, TIFF and EXIF-rotated ones, each as a viewer shows it."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
_ROTATED = range(5, 9)  # EXIF orientations that swap width and height
_T = TypeVar("_T")


class DataError(ValueError):
    """Data that cannot be used: the message names the folder or file, what it holds and what was expected."""


def list_images(folder: Path) -> list[Path]:
    """The image files in ``folder`` and below, sorted by their path; hidden files are left out.

    Links to folders are followed; a folder to which several lead is read once.

    Raises:
        DataError: a folder that is missing or holds no image.
    """
    expected = f"expected image files ({', '.join(EXTENSIONS)})"
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {expected}")
    files: list[Path] = []
    read: set[Path] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        here, real = Path(root), Path(root).resolve()
        if real in read:
            folders.clear()
            continue
        read.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [here / name for name in names if not name.startswith(".")]
    images = [path for path in files if path.suffix.lower() in EXTENSIONS]
    if not images:
        raise DataError(
            f"{folder}: holds no image ({f'{len(files)} other files' if files else 'it is empty'}); {expected}"
        )
    return sorted(images, key=lambda path: path.relative_to(folder).as_posix())


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) as displayed, from the file's header (a rotated TIFF's from its pixels)."""

    def read(image: Image.Image) -> tuple[int, int]:
        width, height = image.size
        if image.getexif().get(0x0112, 1) not in _ROTATED:
            return width, height
        if image.format == "TIFF":  # some versions of Pillow give a TIFF's displayed size before they load it
            return ImageOps.exif_transpose(image).size
        return height, width

    return _open(path, read)


def decode(path: Path, channels: int = 3) -> Image.Image:
    """An image file as a picture of ``channels`` = 1 (grey), 3 (RGB) or 4 (RGBA).

    A 16-bit grey image without transparency comes as a picture of mode F with values in [0, 255], none of its precision
    lost, whatever ``channels`` is. Transparency is laid on white, unless it is asked for. The EXIF rotation is applied.
    Of several frames the first is taken.

    Raises:
        DataError: a file that is missing, corrupt, truncated, or of 32-bit or signed pixels, whose range is not
            defined.
    """

    def read(image: Image.Image) -> Image.Image:
        sixteen = image.mode in _SIXTEEN_BIT or (image.mode == "I" and image.format in ("PNG", "PPM"))
        if image.mode in ("I", "F") and not sixteen:
            raise DataError(
                f"{path}: holds 32-bit or signed pixels (mode {image.mode}), whose range is not defined; expected 8 or "
                "unsigned 16 bits a channel"
            )
        image.load()
        upright = ImageOps.exif_transpose(image)
        if sixteen:
            return Image.fromarray(np.asarray(upright).astype(np.float32) * np.float32(255 / 65535))
        if upright.mode == "LAB":
            upright = upright.convert("RGB")
        if upright.has_transparency_data and channels != 4:
            rgba = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return upright if upright.mode == MODES[channels] else upright.convert(MODES[channels])

    return _open(path, read)


def _open(path: Path, read: Callable[[Image.Image], _T]) -> _T:
    try:
        # Given a path, Pillow maps uncompressed TIFF files into memory, and turns wrongly those that lie on a side.
        with path.open("rb") as file, Image.open(file) as image:
            return read(image)
    except DataError:
        raise
    except FileNotFoundError:
        what = "a link to a file that is not there" if path.is_symlink() else "no such file"
        raise DataError(f"{path}: {what}") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, …
        raise DataError(f"{path}: not a readable image ({error}); expected a complete image file") from error


def in_threads(
    function: Callable[[Path], _T], paths: list[Path], progress: Callable[[int, int], None] | None
) -> list[_T]:
    """``function`` of each path, on as many threads as there are processors; decoding does not hold the GIL."""
    results = []
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        try:
            for result in pool.map(function, paths):
                results.append(result)
                if progress:
                    progress(len(results), len(paths))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return results
