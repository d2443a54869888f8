"""Sheets of sample images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image


def to_uint8(images: Tensor) -> Tensor:
    """[…, C, H, W] with values in [−1, 1] → uint8 […, H, W, C] on the CPU."""
    x = images.detach().float().cpu()
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1).contiguous()


def grid(images: Tensor, columns: int | None = None, gap: int = 2) -> Image.Image:
    """A grid of [N, C, H, W] images in [−1, 1], filled row by row: grey ones, or the first three channels."""
    from PIL import Image

    pixels = to_uint8(images.expand(-1, 3, -1, -1) if images.size(1) == 1 else images[:, :3])
    n, height, width, _ = pixels.shape
    columns = columns or math.ceil(math.sqrt(n))
    sheet = Image.new("RGB", (columns * (width + gap) + gap, math.ceil(n / columns) * (height + gap) + gap), "white")
    for i, image in enumerate(pixels):
        row, column = divmod(i, columns)
        sheet.paste(Image.fromarray(image.numpy()), (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet


def table(rows: Sequence[Sequence[Tensor]], titles: Sequence[str], gap: int = 2, scale: int = 1) -> Image.Image:
    """Rows of single images [C, H, W] under column titles; each image is enlarged ``scale`` times.

    Smaller images stand in the upper left of white cells of the largest height and width.
    """
    from PIL import Image, ImageDraw

    images = [image.expand(3, -1, -1) if image.size(0) == 1 else image[:3] for row in rows for image in row]
    flat = images[0].new_ones(len(images), 3, *(max(image.size(d) for image in images) for d in (1, 2)))
    for cell, image in zip(flat, images, strict=True):
        cell[:, : image.size(1), : image.size(2)] = image
    flat = flat.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    body = grid(flat, columns=len(titles), gap=gap)
    header = 16
    sheet = Image.new("RGB", (body.width, body.height + header), "white")
    sheet.paste(body, (0, header))
    draw = ImageDraw.Draw(sheet)
    for i, title in enumerate(titles):
        draw.text((gap + i * (flat.size(-1) + gap) + 2, 2), title, fill="black")
    return sheet
