"""The networks of the GAN family."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fastgan.models import ARCHITECTURES, build_critic, build_gan_generator
from fastgan.models.gan import MinibatchDiscrimination, ResidualBlock

IMAGES = [name for name in ARCHITECTURES if name != "mlp"]
SHAPES = [(1, 8, 8), (3, 32, 32), (1, 28, 28), (4, 64, 64), (2, 16, 32), (3, 96, 128)]


def _count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("shape", [(2,), (5,), *SHAPES])
def test_shapes_and_sizes_are_derived(name, shape):
    if name != "mlp" and len(shape) == 1:
        return
    with torch.device("meta"):
        generator = build_gan_generator(name, shape)
        x = generator(generator.latent(3))
        assert x.shape == (3, *shape)
        for critic in (build_critic(name, shape), build_critic(name, shape, energy=True, code_dim=7)):
            output, features = critic.forward_features(x)
            assert output.shape == (3,)
            assert features.dim() == 2
        assert features.shape == (3, 7)


def test_published_sizes():
    """Counted by hand from the authors' code: WGAN-GP's toy and CIFAR-10 networks, DCGAN at 64 pixels."""
    linear = lambda i, o: i * o + o
    conv = lambda i, o, k: i * o * k * k + o
    with torch.device("meta"):
        assert _count(build_critic("mlp", (2,))) == linear(2, 512) + 2 * linear(512, 512) + linear(512, 1)
        assert _count(build_gan_generator("mlp", (2,))) == linear(2, 512) + 2 * linear(512, 512) + linear(512, 2)
        expected = conv(3, 128, 5) + conv(128, 256, 5) + conv(256, 512, 5) + linear(4 * 4 * 512, 1)
        assert _count(build_critic("wgan-gp", (3, 32, 32))) == expected
        block = 2 * conv(128, 128, 3)
        first = conv(3, 128, 3) + conv(128, 128, 3) + conv(3, 128, 1)
        expected = first + (block + conv(128, 128, 1)) + 2 * block + linear(128, 1)
        assert _count(build_critic("resnet", (3, 32, 32))) == expected
        norms = 7 * 2 * 128
        expected = linear(128, 4 * 4 * 128) + 3 * (block + conv(128, 128, 1)) + norms + conv(128, 3, 3)
        assert _count(build_gan_generator("resnet", (3, 32, 32))) == expected
        inner = sum(i * o * 16 for i, o in ((512, 256), (256, 128), (128, 64)))
        norms = 2 * (512 + 256 + 128 + 64)
        expected = 128 * 512 * 16 + inner + norms + conv(64, 3, 4)
        assert _count(build_gan_generator("dcgan", (3, 64, 64))) == expected


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_in_range_and_gradients_reach_every_parameter(name):
    generator = build_gan_generator(name, (1, 8, 8), width=8)
    critic = build_critic(name, (1, 8, 8), width=8)
    x = generator(generator.latent(4, generator=torch.Generator().manual_seed(1)))
    assert x.abs().max() <= 1
    critic(x).sum().backward()
    for net in (generator, critic):
        for parameter_name, parameter in net.named_parameters():
            assert parameter.grad is not None, parameter_name
    again = generator.latent(4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(generator(again), x)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_independent_critics_judge_each_sample_by_itself(name):
    shape = (2,) if name == "mlp" else (3, 64, 64)
    critic = build_critic(name, shape, width=8, independent=True).double()
    assert critic.training
    x = torch.randn(3, *shape, dtype=torch.float64)
    torch.testing.assert_close(critic(x)[:1], critic(x[:1]))


def test_default_norms_of_critics():
    kinds = lambda critic: {type(m) for m in critic.modules()} & {nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d}
    with torch.device("meta"):
        assert kinds(build_critic("dcgan", (3, 32, 32))) == {nn.BatchNorm2d}
        assert kinds(build_critic("dcgan", (3, 32, 32), independent=True)) == {nn.GroupNorm}
        assert kinds(build_critic("dcgan", (3, 32, 32), spectral_norm=True)) == set()
        assert kinds(build_critic("dcgan", (3, 32, 32), norm="instance", independent=True)) == {nn.InstanceNorm2d}
        assert kinds(build_critic("resnet", (3, 32, 32))) == set()
        assert kinds(build_critic("resnet", (3, 64, 64))) == {nn.GroupNorm}
    first, second = build_critic("dcgan", (3, 32, 32), width=4).trunk[:2]
    assert isinstance(first, nn.Conv2d)  # no norm after the first convolution
    assert isinstance(second, nn.LeakyReLU)


def test_layer_norm_is_over_channels_and_space():
    norm = next(m for m in build_critic("resnet", (3, 64, 64), width=4).modules() if isinstance(m, nn.GroupNorm))
    x = torch.randn(2, norm.num_channels, 5, 3) * 3 + 7
    torch.testing.assert_close(norm(x), nn.functional.layer_norm(x, x.shape[1:]))


@pytest.mark.parametrize("name", ["sngan", "resnet", "mlp"])
def test_spectral_norm_bounds_every_layer(name):
    shape = (2,) if name == "mlp" else (1, 8, 8)
    critic = build_critic(name, shape, width=8, spectral_norm=True)
    x = torch.randn(2, *shape)
    for _ in range(300):
        critic(x)  # a power iteration each
    critic.eval()
    layers = [m for m in critic.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) > 3
    for layer in layers:
        assert abs(torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() - 1) < 1e-3


def test_dropout_differs_between_passes_until_eval():
    for name, shape in (("mlp", (2,)), ("dcgan", (1, 8, 8)), ("resnet", (1, 8, 8)), ("wgan-gp", (1, 8, 8))):
        critic = build_critic(name, shape, width=16, dropout=0.5, independent=True)
        x = torch.randn(2, *shape)
        assert not torch.equal(critic(x), critic(x)), name
        critic.eval()
        assert torch.equal(critic(x), critic(x)), name


def test_autoencoder_energy_is_the_reconstruction_error():
    critic = build_critic("dcgan", (1, 16, 16), width=4, energy=True, code_dim=6)
    critic.eval()
    x = torch.rand(3, 1, 16, 16) * 2 - 1
    energy, code = critic.forward_features(x)
    assert code.shape == (3, 6)
    torch.testing.assert_close(energy, (critic.reconstruct(x) - x).square().mean((1, 2, 3)))
    torch.testing.assert_close(critic(x), energy)
    assert build_critic("mlp", (2,), energy=True)(torch.randn(4, 2)).shape == (4,)


def test_minibatch_discrimination_matches_its_formula():
    layer = MinibatchDiscrimination(3, kernels=4, dims=2)
    f = torch.randn(5, 3)
    m = (f @ layer.tensor).reshape(5, 4, 2)
    expected = torch.zeros(5, 4)
    for i in range(5):
        for j in range(5):
            for b in range(4):
                expected[i, b] += math.exp(-sum(abs((m[i, b, c] - m[j, b, c]).item()) for c in range(2)))
    torch.testing.assert_close(layer(f), torch.cat([f, expected], 1))
    critic = build_critic("mlp", (2,), minibatch=4)
    x = torch.randn(3, 2)
    assert not torch.allclose(critic(x)[:1], critic(x[:1]))


def test_residual_block_resamples_as_published():
    x = torch.randn(2, 3, 8, 6)
    none = lambda channels: nn.Identity()
    block = ResidualBlock(3, 5, none, "down", hidden=3)
    first, second, shortcut = (m for m in block.modules() if isinstance(m, nn.Conv2d))
    pool = nn.functional.avg_pool2d
    plain = lambda conv, t: nn.functional.conv2d(t, conv.weight, conv.bias, padding=1)
    expected = pool(shortcut(x), 2) + pool(plain(second, first(x.relu()).relu()), 2)
    torch.testing.assert_close(block(x), expected)
    block = ResidualBlock(3, 5, none, "up")
    first, second, shortcut = (m for m in block.modules() if isinstance(m, nn.Conv2d))
    up = lambda t: t.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(block(x), shortcut(up(x)) + second(plain(first, up(x.relu())).relu()))
    assert [name for name in block.state_dict() if "taps" in name] == []
    same = ResidualBlock(3, 3, none)
    assert len(same.shortcut) == 0


def test_initial_variances_are_the_authors():
    critic = build_critic("wgan-gp", (3, 32, 32), width=64)
    conv = critic.trunk[2]  # 64 → 128, 5×5, stride 2: fan out counts outputs once
    assert abs(conv.weight.var().item() / (4 / (25 * (64 + 128 / 4))) - 1) < 0.02
    assert abs(critic.head.weight.var().item() / (2 / (4096 + 1)) - 1) < 0.1
    hidden = build_critic("mlp", (2,)).trunk[3]
    assert abs(hidden.weight.var().item() / (2 / 512) - 1) < 0.02
    assert hidden.bias.abs().max() == 0
    dcgan = build_critic("dcgan", (3, 32, 32))
    assert abs(dcgan.head.weight.std().item() - 0.02) < 2e-3
    assert abs(dcgan.trunk[2].weight.std().item() - 0.02) < 2e-4


@pytest.mark.parametrize("name", ["dcgan", "resnet", "mlp"])
def test_second_derivatives(name):
    shape = (3,) if name == "mlp" else (1, 8, 8)
    critic = build_critic(name, shape, width=4, norm="layer", independent=True).double()
    x = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    g.square().sum().backward()
    step, grad = 1e-6, critic.head.weight.grad[0, 0].item()

    def penalty(shift: float) -> float:
        with torch.no_grad():
            critic.head.weight[0, 0] += shift
        (g,) = torch.autograd.grad(critic(x).sum(), x)
        with torch.no_grad():
            critic.head.weight[0, 0] -= shift
        return g.square().sum().item()

    assert abs((penalty(step) - penalty(-step)) / (2 * step) - grad) < 1e-5 * max(1, abs(grad))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: build_critic("stylegan", (1, 8, 8)), r"name must be one of 'mlp', 'dcgan'.*got 'stylegan'"),
        (
            lambda: build_critic("dcgan", (2,)),
            r"must be \(channels, height, width\), got \(2,\); use 'mlp'",
        ),
        (lambda: build_gan_generator("resnet", (3, 30, 32)), r"multiples of 4 here, got 30×32"),
        (lambda: build_gan_generator("resnet", (3, 68, 64)), r"multiples of 16 here, got 68×64"),
        (lambda: build_gan_generator("mlp", (0,)), r"sample_shape must be positive integers, got \(0,\)"),
        (lambda: build_gan_generator("mlp", (2,), latent_dim=0), r"latent_dim must be an integer of at least 1, got 0"),
        (lambda: build_critic("mlp", (2,), norm="group"), r"norm must be one of .*got 'group'"),
        (lambda: build_critic("mlp", (2,), norm="instance"), r"norm 'instance' needs images"),
        (lambda: build_critic("mlp", (2,), dropout=1.0), r"dropout must be in \[0, 1\), got 1"),
        (
            lambda: build_critic("dcgan", (1, 8, 8), norm="batch", independent=True),
            r"norm='batch' makes a score",
        ),
        (lambda: build_critic("mlp", (2,), minibatch=8, independent=True), r"minibatch=8 makes a score depend"),
        (lambda: build_critic("mlp", (2,), minibatch=8, energy=True), r"minibatch must be .* 0 for an energy, got 8"),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()
