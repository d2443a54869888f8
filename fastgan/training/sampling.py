"""Using a trained GAN: samples and evaluations from a checkpoint."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastgan._output import atomic_write, make_folder
from fastgan.metrics import frechet_inception_distance, inception_features
from fastgan.models.gan import LatentGenerator
from fastgan.training import distributed, gan, sheet
from fastgan.training.checkpoint import CheckpointError, locate, read
from fastgan.training.gan import GanConfig, RealData


@dataclass(frozen=True)
class Trained:
    """A generator out of a checkpoint."""

    generator: LatentGenerator
    config: GanConfig
    step: int

    def sample(self, n: int, seed: int = 0, batch_size: int = 512) -> Tensor:
        """n samples [n, *sample_shape] on the CPU, the same for the same seed on one kind of device."""
        device = next(self.generator.parameters()).device
        random = torch.Generator(device).manual_seed(seed)
        z = self.generator.latent(n, generator=random)
        return torch.cat([gan.sample(self.generator, part).float().cpu() for part in z.split(batch_size)])


def load(
    checkpoint: str | os.PathLike[str], *, which: str = "latest", average: bool = True, device: str = "auto"
) -> Trained:
    """The generator of a run of ``fastgan train gan``; its data are not needed.

    Args:
        checkpoint: a run's folder or a checkpoint file.
        which: ``latest`` or ``best`` of a folder.
        average: take the averaged weights where the run keeps an average.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        CheckpointError: there is none, or it is of something else.
    """
    path = locate(checkpoint, which)
    settings = read(path, only="config")
    if "objective" not in settings:
        raise CheckpointError(f"{path} is no checkpoint of `fastgan train gan`")
    config = GanConfig.from_dict(settings)
    generator = gan.make_generator(config)
    name = "average" if average and config.ema else "generator"
    generator.load_state_dict(read(path, only=f"state/networks/{name}"))
    generator.to(distributed.resolve_device(device)).eval()
    return Trained(generator, config, read(path, only="step"))


def write(trained: Trained, out: str | os.PathLike[str], n: int = 64, seed: int = 0, overwrite: bool = False) -> None:
    """Writes n samples to ``out``: a sheet (or, of points, a scatter plot) as .png, or an array as .npz.

    The array is called ``samples``, float32 [n, *sample_shape], images in [−1, 1].

    Raises:
        ValueError: another suffix.
        FileExistsError: ``out`` is there and is not to be overwritten.
    """
    out = Path(out)
    _check(n, seed, least=1)
    if out.suffix not in (".png", ".npz"):
        raise ValueError(f"out must end in .png or .npz, got {out.name!r}")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} is there already; give another, or allow overwriting (--overwrite)")
    make_folder("out's folder", out.parent)
    samples = trained.sample(n, seed)
    with atomic_write(out) as file:
        if out.suffix == ".npz":
            import numpy as np

            np.savez(file, samples=samples.numpy())
        elif samples.dim() == 2:
            gan.scatter(samples, RealData(trained.config).draw(n, seed)).save(file)
        else:
            sheet.grid(samples).save(file)


def evaluate(trained: Trained, n: int = 2048, seed: int = 0, *, fid: bool = False) -> dict[str, float]:
    """Metrics of n samples against as many real ones, see :func:`fastgan.training.gan.evaluate`.

    ``fid`` adds the Fréchet inception distance of images, for which Inception's weights must be on the disk.

    Raises:
        MetricUnavailableError: fid without its library or weights.
        ValueError: fid of points, or n below 2.
    """
    _check(n, seed, least=2)
    if fid and len(trained.generator.sample_shape) != 3:
        raise ValueError("fid is of images, and this run makes points")
    features = inception_features() if fid else None  # before all that takes long
    data, samples = RealData(trained.config), trained.sample(n, seed)
    scores = gan.evaluate(samples, data, seed)
    if fid:
        device = next(trained.generator.parameters()).device
        real = data.draw(n, seed)
        scores["fid"] = frechet_inception_distance(real.split(64), samples.split(64), features=features, device=device)
    return scores


def _check(n: int, seed: int, least: int) -> None:
    if n < least:
        raise ValueError(f"n must be at least {least}, got {n}")
    if not 0 <= seed < 2**62:
        raise ValueError(f"seed must be in [0, 2**62), got {seed}")
