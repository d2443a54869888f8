"""The modules InstanceNormAct1d, 2d and 3d."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastgan
from fastgan.nn import InstanceNormAct1d, InstanceNormAct2d, InstanceNormAct3d


@pytest.mark.parametrize(
    ("module", "plain", "shape"),
    [
        (InstanceNormAct1d, nn.InstanceNorm1d, (2, 3, 7)),
        (InstanceNormAct2d, nn.InstanceNorm2d, (2, 3, 5, 7)),
        (InstanceNormAct3d, nn.InstanceNorm3d, (2, 3, 3, 5, 4)),
    ],
)
@pytest.mark.parametrize("affine", [False, True])
def test_matches_torch(module: type, plain: type, shape: tuple[int, ...], affine: bool) -> None:
    ours, theirs = module(3, affine=affine), plain(3, affine=affine)
    if affine:
        nn.init.normal_(theirs.weight)
        nn.init.normal_(theirs.bias)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape) * 2 + 1
    torch.testing.assert_close(ours(x), torch.relu(theirs(x)))
    torch.testing.assert_close(ours(x[0]), torch.relu(theirs(x[0])))  # unbatched


def test_residual_slope_and_padding() -> None:
    module = InstanceNormAct2d(3, activation="leaky_relu", negative_slope=0.1, reflect_pad=2)
    x, residual = torch.randn(2, 3, 6, 5), torch.randn(2, 3, 6, 5)
    expected = nn.ReflectionPad2d(2)(nn.functional.leaky_relu(nn.InstanceNorm2d(3)(x) + residual, 0.1))
    torch.testing.assert_close(module(x, residual), expected)


def test_defaults_are_the_contract() -> None:
    module = fastgan.nn.InstanceNormAct2d(5)
    assert (module.eps, module.affine, module.activation, module.negative_slope) == (1e-5, False, "relu", 0.2)
    assert not module.state_dict()


def test_errors() -> None:
    for arguments, error, message in (
        ((3, 1e-5, False, "gelu"), ValueError, "activation must be one of 'none', 'relu', 'leaky_relu', got 'gelu'"),
        (("3",), TypeError, "num_features must be an integer, got '3'"),
        ((0,), ValueError, "num_features must be at least 1, got 0"),
        ((3, None), TypeError, "eps must be a number, got None"),
        ((3, -1.0), ValueError, "eps must be a finite number of at least 0, got -1.0"),
        ((3, 1e-5, False, "relu", "0.2"), TypeError, "negative_slope must be a number, got '0.2'"),
        ((3, 1e-5, False, "relu", 0.2, 1.5), TypeError, "reflect_pad must be an integer, got 1.5"),
        ((3, 1e-5, False, "relu", 0.2, True), TypeError, "reflect_pad must be an integer, got True"),
        ((3, 1e-5, False, "relu", 0.2, -1), ValueError, "reflect_pad must be at least 0, got -1"),
    ):
        with pytest.raises(error, match=f"^InstanceNormAct2d: {message}$"):
            InstanceNormAct2d(*arguments)
    with pytest.raises(ValueError, match=r"input must have 3 channels \(num_features\), got shape \[1, 4, 5, 5\]"):
        InstanceNormAct2d(3, affine=True)(torch.randn(1, 4, 5, 5))
    with pytest.raises(ValueError, match="expected 3D or 4D input"):
        InstanceNormAct2d(3)(torch.randn(2, 3))


def test_other_channels_without_affine_parameters_are_a_warning() -> None:
    """As in PyTorch: models with a wrong num_features run, and must do so when fused."""
    x, plain = torch.randn(1, 4, 5, 5), torch.nn.InstanceNorm2d(3)
    with pytest.warns(UserWarning, match="num_features"):
        expected = plain(x)
    with pytest.warns(UserWarning, match=r"input must have 3 channels \(num_features\)"):
        torch.testing.assert_close(InstanceNormAct2d(3, activation="none")(x), expected)
