"""The CycleGAN networks: the authors' names, sizes and outputs."""

from __future__ import annotations

import pytest
import torch
import torch.fx

from fastgan.models import build_discriminator, build_generator, init_weights


def _pairs(*prefixes: str) -> list[str]:
    return [f"{prefix}.{name}" for prefix in prefixes for name in ("weight", "bias")]


# Names in pytorch-CycleGAN-and-pix2pix's files, spelt out.
RESNET_9 = _pairs(
    "model.1", "model.4", "model.7",
    "model.10.conv_block.1", "model.10.conv_block.5",
    "model.11.conv_block.1", "model.11.conv_block.5",
    "model.12.conv_block.1", "model.12.conv_block.5",
    "model.13.conv_block.1", "model.13.conv_block.5",
    "model.14.conv_block.1", "model.14.conv_block.5",
    "model.15.conv_block.1", "model.15.conv_block.5",
    "model.16.conv_block.1", "model.16.conv_block.5",
    "model.17.conv_block.1", "model.17.conv_block.5",
    "model.18.conv_block.1", "model.18.conv_block.5",
    "model.19", "model.22", "model.26",
)  # fmt: skip
RESNET_6_DROPOUT = _pairs(
    "model.1", "model.4", "model.7",
    "model.10.conv_block.1", "model.10.conv_block.6",
    "model.11.conv_block.1", "model.11.conv_block.6",
    "model.12.conv_block.1", "model.12.conv_block.6",
    "model.13.conv_block.1", "model.13.conv_block.6",
    "model.14.conv_block.1", "model.14.conv_block.6",
    "model.15.conv_block.1", "model.15.conv_block.6",
    "model.16", "model.19", "model.23",
)  # fmt: skip
UNET_128 = _pairs(
    "model.model.0",
    "model.model.1.model.1",
    "model.model.1.model.3.model.1",
    "model.model.1.model.3.model.3.model.1",
    "model.model.1.model.3.model.3.model.3.model.1",
    "model.model.1.model.3.model.3.model.3.model.3.model.1",
    "model.model.1.model.3.model.3.model.3.model.3.model.3.model.1",
    "model.model.1.model.3.model.3.model.3.model.3.model.3.model.3",
    "model.model.1.model.3.model.3.model.3.model.3.model.5",
    "model.model.1.model.3.model.3.model.3.model.5",
    "model.model.1.model.3.model.3.model.5",
    "model.model.1.model.3.model.5",
    "model.model.1.model.5",
    "model.model.3",
)
UNET_256 = _pairs(
    "model.model.0",
    "model.model.1.model.1",
    "model.model.1.model.3.model.1",
    "model.model.1.model.3.model.3.model.1",
    "model.model.1.model.3.model.3.model.3.model.1",
    "model.model.1.model.3.model.3.model.3.model.3.model.1",
    "model.model.1.model.3.model.3.model.3.model.3.model.3.model.1",
    "model.model.1.model.3.model.3.model.3.model.3.model.3.model.3.model.1",
    "model.model.1.model.3.model.3.model.3.model.3.model.3.model.3.model.3",
    "model.model.1.model.3.model.3.model.3.model.3.model.3.model.5",
    "model.model.1.model.3.model.3.model.3.model.3.model.5",
    "model.model.1.model.3.model.3.model.3.model.5",
    "model.model.1.model.3.model.3.model.5",
    "model.model.1.model.3.model.5",
    "model.model.1.model.5",
    "model.model.3",
)
BASIC = _pairs("model.0", "model.2", "model.5", "model.8", "model.11")
BASIC_BATCH = [
    "model.0.weight", "model.0.bias", "model.2.weight",
    "model.3.weight", "model.3.bias", "model.3.running_mean", "model.3.running_var", "model.3.num_batches_tracked",
    "model.5.weight",
    "model.6.weight", "model.6.bias", "model.6.running_mean", "model.6.running_var", "model.6.num_batches_tracked",
    "model.8.weight",
    "model.9.weight", "model.9.bias", "model.9.running_mean", "model.9.running_var", "model.9.num_batches_tracked",
    "model.11.weight", "model.11.bias",
]  # fmt: skip
PIXEL = _pairs("net.0", "net.2", "net.5")


@pytest.mark.parametrize(
    ("net", "names"),
    [
        (lambda: build_generator("resnet_9blocks", ngf=2), RESNET_9),
        (lambda: build_generator("resnet_6blocks", ngf=2, dropout=True), RESNET_6_DROPOUT),
        (lambda: build_generator("unet_128", ngf=2), UNET_128),
        (lambda: build_generator("unet_256", ngf=2, dropout=True), UNET_256),
        (lambda: build_discriminator("basic", ndf=2), BASIC),
        (lambda: build_discriminator("n_layers", ndf=2, n_layers=3), BASIC),
        (lambda: build_discriminator("basic", ndf=2, norm="batch"), BASIC_BATCH),
        (lambda: build_discriminator("pixel", ndf=2), PIXEL),
        (lambda: build_generator("resnet_9blocks", ngf=2, norm="none"), None),
    ],
)
def test_names_are_the_official_ones(net, names):
    if names is None:  # only instance norm leaves the inner convolutions their bias
        names = [name for name in RESNET_9 if name.endswith("weight") or name == "model.26.bias"]
    assert list(net().state_dict()) == names


@pytest.mark.parametrize(
    ("net", "count"),
    [
        (lambda: build_generator("resnet_9blocks"), 11_378_179),
        (lambda: build_generator("resnet_6blocks"), 7_837_699),
        (lambda: build_generator("unet_256", norm="batch"), 54_413_955),
        (lambda: build_discriminator("basic"), 2_764_737),
        (lambda: build_discriminator("pixel"), 8_705),
    ],
)
def test_parameter_counts(net, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in net().parameters()) == count


def test_output_shapes():
    x = torch.randn(2, 3, 64, 32)
    for name in ("resnet_0blocks", "resnet_2blocks", "unet_32"):
        y = build_generator(name, 3, 5, ngf=2)(x)
        assert y.shape == (2, 5, 64, 32)
        assert y.abs().max() <= 1
    assert build_generator("resnet_1blocks", 1, ngf=2)(x[:, :1, :12, :8]).shape == (2, 3, 12, 8)
    assert build_discriminator("pixel", 3, ndf=2)(x).shape == (2, 1, 64, 32)
    assert build_discriminator("n_layers", 3, ndf=2, n_layers=1)(x).shape == (2, 1, 30, 14)


def test_basic_discriminator_sees_70_pixels_of_256():
    net = build_discriminator("basic", 1, ndf=2, norm="none").double()
    x = torch.zeros(1, 1, 256, 256, dtype=torch.float64, requires_grad=True)
    scores = net(x)
    assert scores.shape == (1, 1, 30, 30)
    (gradient,) = torch.autograd.grad(scores[0, 0, 15, 15], x)
    rows = gradient[0, 0].abs().sum(1).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == 70


def test_unet_skips_carry_the_activated_input():
    """The authors' LeakyReLU works in place on what the skip connection holds; the figures depend on it."""
    inner = build_generator("unet_32", ngf=2).model.model[1]
    x = torch.randn(1, 2, 16, 16)
    y = inner(x.clone())
    torch.testing.assert_close(y[:, :2], torch.nn.functional.leaky_relu(x, 0.2))


def test_dropout_only_in_training():
    net = build_generator("resnet_1blocks", ngf=4, dropout=True)
    x = torch.randn(1, 3, 16, 16)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_networks_can_be_traced_and_compiled():
    x = torch.randn(1, 3, 32, 32)
    for net in (
        build_generator("unet_32", ngf=2),
        build_generator("resnet_1blocks", ngf=2),
        build_discriminator(ndf=2),
    ):
        assert torch.equal(torch.fx.symbolic_trace(net)(x), net(x))
        assert torch.equal(torch.compile(net, fullgraph=True, backend="eager")(x), net(x))


def test_initialisation():
    net = build_generator("resnet_2blocks", ngf=16, norm="batch")
    weights = torch.cat([m.weight.flatten() for m in net.modules() if isinstance(m, torch.nn.Conv2d)])
    assert abs(weights.std().item() - 0.02) < 2e-4
    assert abs(weights.mean().item()) < 2e-4
    assert net.model[-2].bias.abs().max() == 0
    norm = net.model[2]
    assert abs(norm.weight.mean().item() - 1) < 0.02
    assert norm.weight.std() > 0.01
    xavier = build_discriminator(ndf=16, init="xavier", init_gain=1.0).model[5].weight  # 32 → 64 channels, 4×4
    assert abs(xavier.std().item() / (2 / (16 * 96)) ** 0.5 - 1) < 0.02
    kaiming = build_discriminator(ndf=16, init="kaiming").model[5].weight
    assert abs(kaiming.std().item() / (2 / (16 * 32)) ** 0.5 - 1) < 0.02
    orthogonal = build_discriminator(ndf=4, init="orthogonal", init_gain=2.0).model[5].weight.flatten(1)
    torch.testing.assert_close(orthogonal @ orthogonal.T, 4 * torch.eye(16), atol=1e-5, rtol=0)


def test_initialisation_is_reproducible():
    first, second = (build_discriminator(ndf=2, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    state = torch.random.get_rng_state()
    init_weights(first, generator=torch.Generator().manual_seed(4))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(first.model[0].weight, second.model[0].weight)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: build_generator("resnet9"), r"name must be resnet_9blocks.*got 'resnet9'"),
        (lambda: build_generator("unet_100"), r"power of two from 32.*got 'unet_100'"),
        (lambda: build_generator("unet_16"), r"power of two from 32.*got 'unet_16'"),
        (lambda: build_generator(in_channels=0), r"in_channels must be an integer of at least 1, got 0"),
        (lambda: build_generator(norm="layer"), r"norm must be one of 'instance', 'batch', 'none', got 'layer'"),
        (lambda: build_generator("resnet_0blocks", ngf=1, init="zeros"), r"init must be one of .*got 'zeros'"),
        (lambda: build_discriminator("patch"), r"name must be one of 'basic', 'n_layers', 'pixel', got 'patch'"),
        (lambda: build_discriminator("n_layers", n_layers=0), r"n_layers must be an integer of at least 1, got 0"),
        (
            lambda: build_generator("unet_32", ngf=1)(torch.zeros(1, 3, 40, 32)),
            r"multiples of 32, got \[1, 3, 40, 32\]",
        ),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()
