"""Small images held in memory: scikit-learn's digits, and the files of MNIST and CIFAR-10."""

from __future__ import annotations

import gzip
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastgan.data.decode import DataError


class ImageTensor:
    """Images held as uint8, given as float32 [C, H, W] in [−1, 1].

    Args:
        pixels: uint8 [N, C, H, W].
        top: the value of white; 255, or 16 for the digits.
        flip: whether ``sample`` mirrors with probability ½.
        dequantize: whether ``sample`` adds uniform noise of one step, (v + u) · 2/(top + 1) − 1 with u ~ U[0, 1), as
            WGAN-GP's ResNet code and SN-GAN's do; otherwise values are v · 2/top − 1.
    """

    def __init__(self, pixels: Tensor, *, top: int = 255, flip: bool = False, dequantize: bool = False) -> None:
        if pixels.dim() != 4 or pixels.dtype != torch.uint8:
            raise ValueError(f"pixels must be uint8 [N, C, H, W], got {pixels.dtype} {list(pixels.shape)}")
        self.pixels = pixels
        self.top, self.flip, self.dequantize = top, flip, dequantize

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.pixels.shape[1:])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.sample(index, None)

    def sample(self, index: int, generator: torch.Generator | None) -> Tensor:
        """Image ``index``; ``generator`` draws mirror and noise, without one there is neither."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self.finish(self.pixels[index : index + 1], generator)[0]

    def all(self) -> Tensor:
        """Every image without chance, [N, C, H, W]."""
        return self.finish(self.pixels, None)

    def finish(self, pixels: Tensor, generator: torch.Generator | None) -> Tensor:
        """Some of ``pixels``, on any device, as values in [−1, 1]; ``generator``, as for :meth:`sample`, is of that
        device."""
        return self.apply(pixels, self.draw(len(pixels), generator))

    def draw(self, n: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        """What :meth:`finish` draws for n images, row by row, on the generator's device: nothing, mirrors, noise."""
        drawn: dict[str, Tensor] = {}
        if generator is not None and self.flip:
            drawn["mirrored"] = torch.randint(2, (n, 1, 1, 1), generator=generator, device=generator.device)
        if generator is not None and self.dequantize:
            drawn["noise"] = torch.rand((n, *self.sample_shape), generator=generator, device=generator.device)
        return drawn

    def apply(self, pixels: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
        """Some of ``pixels`` as values in [−1, 1], with what was drawn for them."""
        x = pixels.float()
        if "mirrored" in drawn:
            x = torch.where(drawn["mirrored"].bool(), x.flip(-1), x)
        if "noise" in drawn:
            return (x + drawn["noise"]) * (2 / (self.top + 1)) - 1
        return x * (2 / self.top) - 1


def digits(*, dequantize: bool = False) -> ImageTensor:
    """scikit-learn's 1,797 handwritten digits of 8 × 8 pixels and 17 greys, [1, 8, 8] (Alpaydin and Kaynak 1998)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(
            "the digits come with scikit-learn, which is not installed: pip install 'fastgan[data]'"
        ) from None
    images = load_digits().images
    return ImageTensor(torch.from_numpy(images.astype(np.uint8))[:, None], top=16, dequantize=dequantize)


def mnist(
    folder: str | os.PathLike[str], *, train: bool = True, size: int = 28, dequantize: bool = False
) -> ImageTensor:
    """MNIST, Fashion-MNIST or another set in its format, [1, 28, 28], from ``train-images-idx3-ubyte`` or
    ``t10k-images-idx3-ubyte`` in ``folder``, plain or .gz. ``size`` = 32 pads with black."""
    stem = f"{'train' if train else 't10k'}-images-idx3-ubyte"
    path = _existing(Path(folder), [stem, f"{stem}.gz", stem.replace("-idx3", ".idx3")])
    data = _read(path)
    if len(data) < 16:
        raise DataError(f"{path}: too short for an IDX file of images: {len(data)} bytes")
    magic, n, height, width = struct.unpack(">4I", data[:16])
    if magic != 0x803:
        raise DataError(f"{path}: not an IDX file of uint8 images: magic number {magic:#x}, expected 0x803")
    if len(data) != 16 + n * height * width:
        raise DataError(
            f"{path}: {len(data)} bytes, expected {16 + n * height * width} for {n} images of {height}×{width}"
        )
    pixels = torch.frombuffer(bytearray(data[16:]), dtype=torch.uint8).view(n, 1, height, width)
    if size != height:
        if size < max(height, width) or (size - height) % 2 or (size - width) % 2:
            raise ValueError(f"size must exceed {height}×{width} by an even number, got {size}")
        vertical, horizontal = (size - height) // 2, (size - width) // 2
        pixels = torch.nn.functional.pad(pixels, (horizontal, horizontal, vertical, vertical))
    return ImageTensor(pixels, dequantize=dequantize)


def cifar10(
    folder: str | os.PathLike[str], *, train: bool = True, flip: bool = False, dequantize: bool = False
) -> ImageTensor:
    """CIFAR-10, [3, 32, 32], from the "binary version"'s data_batch_1.bin … data_batch_5.bin or test_batch.bin.

    The "Python version" is a pickle, which can execute code, and is not read.
    """
    root = Path(folder)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if train else ["test_batch.bin"]
    record, batches = 1 + math.prod((3, 32, 32)), []
    if not (root / names[0]).exists() and (root / "cifar-10-batches-bin").is_dir():
        root /= "cifar-10-batches-bin"
    for name in names:
        path = _existing(root, [name], "; CIFAR-10's binary version is expected (cifar-10-binary.tar.gz)")
        data = _read(path)
        if not data or len(data) % record:
            raise DataError(f"{path}: {len(data)} bytes, expected a multiple of {record} (label and 32×32×3 pixels)")
        rows = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, record)
        batches.append(rows[:, 1:].reshape(-1, 3, 32, 32))
    return ImageTensor(torch.cat(batches), flip=flip, dequantize=dequantize)


def _existing(folder: Path, names: list[str], hint: str = "") -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder}: holds no {' or '.join(names)}{hint}")


def _read(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
