"""Layer norms that run as one plane's instance norm for each sample."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fastgan.nn.layer_norm import LayerNorm, use_layer_norm


@pytest.mark.parametrize(
    "shape", [(3, 5, 7, 6), (2, 4), (4, 3, 9), (1, 2, 3, 4, 5), (2, 1, 1, 1), (0, 5, 2, 2)], ids=str
)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_group_norm(shape: tuple[int, ...], affine: bool, channels_last: bool) -> None:
    """With first and second derivatives, and the memory format."""
    plain = nn.GroupNorm(1, shape[1], eps=1e-3, affine=affine).double()
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    ours = copy.deepcopy(plain)
    assert use_layer_norm(ours) == [""]
    assert type(ours) is LayerNorm
    images = torch.randn(shape, dtype=torch.float64) * 3 + 2
    if channels_last:
        images = images.movedim(1, -1).contiguous().movedim(-1, 1)
    u, grad = torch.randn_like(images), torch.randn_like(images)

    def everything(norm: nn.Module) -> list[Tensor]:
        x = images.clone().requires_grad_()
        y = norm(x)
        wanted = [x, *norm.parameters()]
        first = torch.autograd.grad(y, wanted, grad, create_graph=True)
        second = torch.autograd.grad((first[0] * u).sum(), wanted, materialize_grads=True)
        return [y, *first, *second]

    got, expected = everything(ours), everything(plain)
    torch.testing.assert_close(got, expected)
    assert shape[0] == 0 or got[0].stride() == images.stride()


def test_replaces_layer_norms_alone() -> None:
    model = nn.Sequential(
        nn.GroupNorm(1, 4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.Sequential(nn.GroupNorm(1, 4))
    )
    names = list(model.state_dict())
    assert use_layer_norm(model) == ["0", "3.0"]
    assert list(model.state_dict()) == names
    with torch.autocast("cpu", torch.bfloat16):
        assert model[0](torch.randn(2, 4, 3, 3, dtype=torch.bfloat16)).dtype == torch.float32  # as PyTorch's there


@pytest.mark.parametrize("affine", [True, False])
def test_a_script_has_pytorch_s_group_norm(affine: bool) -> None:
    norm, x = nn.GroupNorm(1, 4, affine=affine), torch.randn(2, 4, 3, 3)
    expected = norm(x)
    use_layer_norm(norm)
    assert torch.equal(torch.jit.script(norm)(x), expected)
