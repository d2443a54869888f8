"""CT-GAN's consistency term, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.functional import _check

_NAME = "consistency_term"


def consistency_term(
    scores: Tensor,
    scores_again: Tensor,
    features: Tensor | None = None,
    features_again: Tensor | None = None,
    *,
    weight: float = 2.0,
    margin: float = 0.0,
    feature_weight: float = 0.1,
) -> Tensor:
    r"""The consistency term of CT-GAN between two critic passes, with different dropout, over one real batch.

    .. math:: \lambda_2\,\frac1N\sum_n \max\big(0,\ d(D(x_n'), D(x_n'')) + 0.1\, d(D\_(x_n'), D\_(x_n'')) - M'\big)

    where d is the mean squared difference over a sample's elements and :math:`D\_` the layer before the last (Wei et
    al. 2018, arXiv:1803.01541, equation 4; :math:`\lambda_2` = 2, M' from 0 to 0.2).

    Args:
        scores, scores_again: [N] or [N, ...], the critic's outputs in the two passes.
        features, features_again: [N, ...], the two outputs of the layer before the last, or None to leave them out.
        weight, margin, feature_weight: :math:`\lambda_2`, M' and the 0.1 above.

    Returns:
        A scalar, at least float32. Differentiable to any order.

    Raises:
        TypeError, ValueError: an argument of a wrong type or shape, or only one of the two features.
    """
    for name, value in (("weight", weight), ("margin", margin), ("feature_weight", feature_weight)):
        _check.number(_NAME, name, value)
    distance = _squared_distance("scores", scores, scores_again)
    if (features is None) != (features_again is None):
        raise ValueError(f"{_NAME}: features and features_again must be given together")
    if features is not None and features_again is not None:
        of_features = _squared_distance("features", features, features_again)
        _check.shape(_NAME, "features", features, (len(scores), *features.shape[1:]), "as many as scores")
        distance = distance + feature_weight * of_features
    return weight * (distance - margin).clamp(min=0).mean()


def _squared_distance(name: str, x: Tensor, y: Tensor) -> Tensor:
    for label, value in ((name, x), (f"{name}_again", y)):
        _check.floating(_NAME, label, value)
    _check.shape(_NAME, f"{name}_again", y, x.shape, f"{name}'s shape")
    if x.dim() == 0 or x.numel() == 0:
        raise ValueError(f"{_NAME}: {name} must be [N, ...] with at least one element, got {list(x.shape)}")
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    return (x.to(dtype) - y.to(dtype)).square().reshape(x.size(0), -1).mean(1)
