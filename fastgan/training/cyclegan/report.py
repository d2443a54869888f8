"""What a run of CycleGAN shows of itself: sheets, scores of held-out images, the plan of a dry run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastgan.data import DataError, UnpairedImageFolder
from fastgan.metrics import PairedScores, sliced_wasserstein_patches
from fastgan.nn import fuse
from fastgan.training import distributed, sheet
from fastgan.training.cyclegan.config import CycleGanConfig
from fastgan.training.cyclegan.data import counts, one_item
from fastgan.training.cyclegan.losses import generators_loss
from fastgan.training.cyclegan.networks import build_networks, for_generators
from fastgan.training.loader import Source
from fastgan.training.memory import kept_for_backward

if TYPE_CHECKING:
    from PIL import Image

    from fastgan.training.cyclegan.trainer import CycleGan


LEAST_SIDE = 16  # of images whose patches are compared


def check(config: CycleGanConfig, test: Source | None, paired: bool) -> None:
    """Raises ValueError if ``config`` asks for scores that ``test`` cannot have."""
    if test is not None and len(test) == 0:
        raise ValueError("test: the data set is empty")
    if config.eval_freq and test is None:
        raise ValueError(f"eval_freq evaluates held-out images: {config.dataroot} has no testA and testB")
    paired_scores = ("l1", "psnr", "ssim") if paired else ()
    sizes = {*test.a.sizes, *test.b.sizes} if isinstance(test, UnpairedImageFolder) else set()
    patches = () if len(sizes) > 1 or any(min(size) < LEAST_SIDE for size in sizes) else ("swd",)
    known = [f"{name}_{domain}" for name in (*paired_scores, *patches) for domain in "BA"]
    if config.best_metric and config.best_metric not in known:
        why = "" if paired else " (the files of testA and testB have other names or sizes, so they are no pairs)"
        why += "" if patches else f" (swd needs images of one size, of at least {LEAST_SIDE} pixels)"
        raise ValueError(f"best_metric must be one of {', '.join(known) or 'none'}{why}, got {config.best_metric!r}")


def sheet_of(task: CycleGan, rows: int) -> Image.Image | None:
    """Real, translated and reconstructed images of both domains, or None if there are none."""
    lines = []
    for real_A, real_B in task.held_out(rows):
        made = task.translate(real_A, real_B)
        line = [real_A, made["fake_B"], made["rec_A"], real_B, made["fake_A"], made["rec_B"]]
        lines.append([_rgb(image[0].cpu()) for image in line])
    titles = ["A", "G_A(A)", "G_B(G_A(A))", "B", "G_B(B)", "G_A(G_B(B))"]
    return sheet.table(lines, titles) if lines else None


def scores_of(
    source: Source,
    translate: Callable[[Tensor, Tensor], Mapping[str, Tensor]],
    paired: bool,
    *,
    fid: Callable[[Iterable[Tensor], Iterable[Tensor]], float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """:func:`scores` of a data set: "…_B" of G_A(A) beside B, "…_A" of G_B(B) beside A.

    Several processes translate a share each, and the main one scores them all; the others get no scores.

    Args:
        source: items of A and B; of folders of different lengths, each image counts once.
        translate: gives fake_B and fake_A of batches of one image.
        paired: whether A and B of an item are one thing.
        fid: the Fréchet inception distance of batches; None: it is left out.
        progress: called with (done, total).

    Raises:
        DataError: an image that cannot be read, in every process.
    """
    limits = counts(source) or dict.fromkeys("AB", len(source))
    own: _Images = {}
    unreadable: DataError | None = None
    try:
        own = _translated_share(source, translate, limits, progress)
    except DataError as error:
        unreadable = error
    for each in distributed.gather(unreadable):  # who read on would wait for the others for ever
        if each is not None:
            raise each
    items: _Images = {index: images for share in distributed.gather_at_main(own) for index, images in share.items()}
    found: dict[str, float] = {}
    if not distributed.is_main():
        return found
    for domain, other in ("BA", "AB"):
        real = [items[index][domain][0] for index in range(limits[domain])]
        fake = [items[index][other][1] for index in range(limits[other])]
        of_domain = scores(real, fake, paired)
        if fid is not None:
            batches = ([image[None] for image in images] for images in (real, fake))
            of_domain["fid"] = fid(*batches)
        found |= {f"{name}_{domain}": value for name, value in of_domain.items()}
    return found


_Images = dict[int, dict[str, tuple[Tensor, Tensor]]]
"""Of an item and a domain: its image, and that made of it."""


def _translated_share(
    source: Source,
    translate: Callable[[Tensor, Tensor], Mapping[str, Tensor]],
    limits: Mapping[str, int],
    progress: Callable[[int, int], None] | None,
) -> _Images:
    """This process's share of the items; of each domain those before its limit."""
    own: _Images = {}
    for index in range(distributed.rank(), len(source), distributed.size()):
        real_A, real_B = one_item(source, index)
        made = translate(real_A, real_B)
        images = {"A": (real_A[0], made["fake_B"][0].cpu()), "B": (real_B[0], made["fake_A"][0].cpu())}
        own[index] = {domain: pair for domain, pair in images.items() if index < limits[domain]}
        if progress is not None:
            progress(index + 1, len(source))
    return own


def scores(real: list[Tensor], fake: list[Tensor], paired: bool) -> dict[str, float]:
    """l1, psnr and ssim if ``fake[i]`` should be ``real[i]``; swd, the sliced Wasserstein distance of patches of
    :func:`fastgan.metrics.sliced_wasserstein_patches`, if all images have one size of at least 16 pixels."""
    found: dict[str, float] = {}
    if paired:
        pairs = PairedScores()
        for x, y in zip(fake, real, strict=True):
            pairs.update(x[None], y[None])
        found |= pairs.compute()
    if len({image.shape for image in real + fake}) == 1 and min(real[0].shape[1:]) >= LEAST_SIDE:
        found["swd"] = sliced_wasserstein_patches(torch.stack(real), torch.stack(fake)).mean
    return found


def plan(task: CycleGan) -> dict[str, str]:
    """What a dry run prints beside the settings."""
    config, loader = task.config, task.loader
    if "crop" in config.preprocess:
        height = width = config.crop_size
    else:  # sizes are the images' own: the first one's
        height, width = task.train.sample(0, None)["A"].shape[1:]
    weights = {name: sum(p.numel() for p in network.parameters()) for name, network in task.networks.items()}
    # Weights, gradients and Adam's two moments, in float32; the averages; the pools.
    fixed = 16 * sum(weights.values()) + 4 * sum(weights[name] for name in task.ema)
    pools = 2 * config.pool_size * 4 * config.output_nc * height * width
    activations = activation_bytes(task, height, width)
    return {
        "networks": ", ".join(f"{name} {count / 1e6:.3f} M" for name, count in weights.items()),
        "steps": f"{task.total_steps} ({loader.batches_per_epoch} an epoch, {len(task.train)} items)",
        "joint batch": f"{config.batch_size} x {distributed.size()} processes, {height} x {width} pixels",
        "runs on": f"{task.device}, autocast {task.precision.amp}, {task.precision.memory_format}",
        "weights, gradients, moments": _mib(fixed),
        "image pools": _mib(pools),
        "kept for the backward pass": _mib(activations),
        "memory, about": _mib(fixed + pools + activations),
    }


def activation_bytes(task: CycleGan, height: int, width: int) -> int:
    """What autograd keeps of the generators' loss, which keeps most of a step, on height × width pixels."""
    config = task.config

    def make() -> list[nn.Module]:
        networks = build_networks(config)
        for network in networks.values():
            if config.fused:
                fuse(network)
        return list(networks.values())

    def run(*networks: nn.Module) -> object:
        rows = -(-config.batch_size // config.accumulate)
        real_A, real_B = (torch.empty(rows, c, height, width) for c in (config.input_nc, config.output_nc))
        nets = for_generators(dict(zip(task.networks, networks, strict=True)), config)
        with task.backend(), task.precision.autocast("cpu"):
            return generators_loss(nets, config, real_A, real_B, apart=False)

    return kept_for_backward(make, run)


def _mib(size: float) -> str:
    return f"{size / 2**20:.0f} MiB"


def _rgb(image: Tensor) -> Tensor:
    return image.expand(3, -1, -1) if image.size(0) == 1 else image
