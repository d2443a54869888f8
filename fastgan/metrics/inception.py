"""Fréchet inception distance and inception score of torch-fidelity's Inception network.

Nothing is downloaded: the network's weights must lie on the disk.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
_SOURCE = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS}"


class MetricUnavailableError(RuntimeError):
    """A metric's library or weights are not there; the message says how to get them."""


def inception_weights(path: str | os.PathLike[str] | None = None) -> Path:
    """The Inception network's weights: ``path``, or their place in torch's cache.

    Raises:
        MetricUnavailableError: torch-fidelity or the weights are missing.
    """
    if find_spec("torch_fidelity") is None:
        raise MetricUnavailableError(
            "FID and the inception score need torch-fidelity, which is not installed: "
            "pip install 'fastgan[metrics]'. Sliced Wasserstein distances of patches do not"
        )
    weights = Path(path) if path is not None else Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    if not weights.is_file():
        raise MetricUnavailableError(
            f"{weights}: no such file; FID and the inception score need the Inception weights of {_SOURCE} there. "
            "Sliced Wasserstein distances of patches need none"
        )
    return weights


def inception_features(weights: str | os.PathLike[str] | None = None) -> nn.Module:
    """The Inception network's pooled features: images [N, 3, H, W] with values in [−1, 1] → [N, 2048].

    For ``features`` of several distances, and to learn whether it can be had before there are images.

    Raises:
        MetricUnavailableError: torch-fidelity or the weights (see :func:`inception_weights`) are missing or damaged.
    """
    return _Inception(inception_weights(weights), "2048")


def frechet_inception_distance(
    real: Iterable[Tensor],
    fake: Iterable[Tensor],
    *,
    features: nn.Module | None = None,
    weights: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
) -> float:
    r"""Fréchet inception distance between two sets of images (Heusel et al. 2017, arXiv:1706.08500, equation 6).

    .. math:: \|\mu_r - \mu_f\|_2^2 + \mathrm{tr}\big(\Sigma_r + \Sigma_f - 2 (\Sigma_r \Sigma_f)^{1/2}\big)

    of the Inception network's 2048 pooled features; use at least 2048 images, better 10,000 and more.

    Args:
        real, fake: batches [N, C, H, W] with values in [−1, 1]; one channel is repeated.
        features: another network, float images [N, 3, H, W] in [−1, 1] → [N, F], instead of Inception.
        weights: of Inception; see :func:`inception_weights`.
        device: where to compute.

    Raises:
        MetricUnavailableError: see :func:`inception_features`.
        ValueError: fewer than two images on a side.
    """
    network = _network(features, weights, "2048", device)
    moments = []
    for side, batches in (("real", real), ("fake", fake)):
        found = _Moments()
        for batch in batches:
            found.add(network(batch))
        if found.count < 2:
            raise ValueError(f"frechet_inception_distance: {side} must hold at least two images, got {found.count}")
        moments.append(found)
    return _frechet_distance(*moments)


class _Moments:
    """Mean and covariance of features, in float64, as batches come.

    Sums are of differences from the first batch's mean: of features far from 0, a covariance would lose its digits.
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, features: Tensor) -> None:
        features = features.flatten(1).double()
        if self.count == 0:
            self._origin = features.mean(0)
            self._sum, self._products = torch.zeros_like(self._origin), features.new_zeros(2 * [features.size(1)])
        apart = features - self._origin
        self._sum += apart.sum(0)
        self._products += apart.T @ apart
        self.count += len(features)

    def mean(self) -> Tensor:
        return self._origin + self._sum / self.count

    def covariance(self) -> Tensor:
        return (self._products - self._sum.outer(self._sum) / self.count) / (self.count - 1)

    def root(self) -> Tensor:
        """R with R Rᵀ = the covariance."""
        covariance = self.covariance()
        root: Tensor
        root, failed = torch.linalg.cholesky_ex(covariance)
        if failed:  # it is singular: of fewer images than features, or of features that depend on each other
            values, vectors = torch.linalg.eigh(covariance)
            root = vectors * values.clamp(min=0).sqrt()
        return root


def _frechet_distance(a: _Moments, b: _Moments) -> float:
    r"""The trace of :math:`(\Sigma_a \Sigma_b)^{1/2}` is the sum of the singular values of :math:`R_a^T R_b`.

    They are exact to rounding; the eigenvalues of :math:`\Sigma_a \Sigma_b`, whose roots would do as well, are not
    where there are fewer images than features.
    """
    shared = torch.linalg.svdvals(a.root().T @ b.root()).sum()
    traces = a.covariance().trace() + b.covariance().trace() - 2 * shared
    return float((a.mean() - b.mean()).square().sum() + traces)


def inception_score(
    images: Iterable[Tensor],
    *,
    splits: int = 10,
    features: nn.Module | None = None,
    weights: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
) -> tuple[float, float]:
    r"""Inception score (Salimans et al. 2016, arXiv:1606.03498, section 4): mean and deviation over ``splits``.

    .. math:: \exp E_x \mathrm{KL}\big(p(y|x) \,\|\, p(y)\big)

    Arguments as for :func:`frechet_inception_distance`; ``features`` gives logits. The images are shuffled among the
    splits from torch's global random state.
    """
    network = _network(features, weights, "logits_unbiased", device)
    logits = torch.cat([network(batch).double() for batch in images] or [torch.empty(0, 1)])
    if len(logits) < splits:
        raise ValueError(
            f"inception_score: at least one image for each of {splits} splits is needed, got {len(logits)}"
        )
    scores = []
    for part in logits[torch.randperm(len(logits))].tensor_split(splits):
        given = part.log_softmax(1)
        marginal = given.logsumexp(0) - math.log(len(part))
        scores.append((given.exp() * (given - marginal)).sum(1).mean().exp())
    found = torch.stack(scores)
    return float(found.mean()), float(found.std(correction=0))


_Network = Callable[[Tensor], Tensor]
"""Images [N, C, H, W] in [−1, 1] → features [N, F]."""


def _network(
    features: nn.Module | None, weights: str | os.PathLike[str] | None, layer: str, device: torch.device | str
) -> _Network:
    """``features``, or a layer of Inception; on three channels."""
    network = (features if features is not None else _Inception(inception_weights(weights), layer)).to(device)

    @torch.no_grad()
    def call(batch: Tensor) -> Tensor:
        if batch.dim() != 4 or not batch.is_floating_point():
            raise ValueError(
                "inception: images must come in batches [N, C, H, W] with values in [−1, 1], got "
                f"{batch.dtype} {list(batch.shape)}"
            )
        x = batch.to(device)
        found: Tensor = network(x.expand(-1, 3, -1, -1) if x.size(1) == 1 else x[:, :3])
        return found

    return call


class _Inception(nn.Module):
    """Images [N, 3, H, W] with values in [−1, 1] → one layer's features [N, F].

    It is torch-fidelity's own network that scales images to 299 × 299, as the published figures' does. torchmetrics'
    version of it smooths them on the way (antialias), which changes features and the distance.
    """

    def __init__(self, weights: Path, layer: str) -> None:
        super().__init__()
        try:
            torch.load(weights, map_location="meta", weights_only=True)  # torch-fidelity would execute what is in it
        except Exception as error:
            raise MetricUnavailableError(f"{weights}: damaged, or not a file of weights; expected {_SOURCE}") from error
        try:
            extractors = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        except (ImportError, RuntimeError, OSError) as error:  # a torchvision that was built for another torch
            raise MetricUnavailableError(f"torch-fidelity cannot be imported: {error}") from error
        try:
            self.extractor = extractors.FeatureExtractorInceptionV3("inception-v3-compat", [layer], str(weights))
        except RuntimeError as error:
            raise MetricUnavailableError(f"{weights}: holds other weights; expected {_SOURCE}") from error
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        (features,) = self.extractor(((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
        found: Tensor = features
        return found
