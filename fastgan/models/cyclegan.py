"""The CycleGAN networks: ResNet and U-Net generators, PatchGAN and pixel discriminators.

Zhu et al. 2017 (arXiv:1703.10593), Johnson et al. 2016 (arXiv:1603.08155), Isola et al. 2017 (arXiv:1611.07004).
Modules sit where the authors' pytorch-CycleGAN-and-pix2pix puts them, so parameters have its names and
:mod:`fastgan.models.official` reads and writes its checkpoints. They are plain torch.nn; ``fastgan.fuse`` makes
them fast.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
import torch.fx
from torch import Tensor, nn

from fastgan._ranges import check_choice
from fastgan.models._build import init_weights, norm_layer, positive

NORMS = ("instance", "batch", "none")
_Norm = Callable[[int], nn.Module]


class ResnetGenerator(nn.Module):
    """Convolution 7×7, two strided convolutions, residual blocks, two transposed convolutions, convolution 7×7, tanh.

    [N, in_channels, H, W] → [N, out_channels, H, W] in [−1, 1]; H and W must be at least 8 and multiples of
    ``size_multiple`` = 4, otherwise the output is up to three pixels larger. Convolutions before an
    instance norm keep their bias.
    """

    size_multiple = 4
    least_size = 8

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        ngf: int = 64,
        n_blocks: int = 9,
        norm: str = "instance",
        dropout: bool = False,
    ) -> None:
        super().__init__()
        make_norm, bias = norm_layer(norm), norm == "instance"
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(in_channels, ngf, 7, bias=bias)]
        layers += [make_norm(ngf), nn.ReLU(inplace=True)]
        for width in (ngf, 2 * ngf):
            layers += [nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=bias)]
            layers += [make_norm(2 * width), nn.ReLU(inplace=True)]
        layers += [ResnetBlock(4 * ngf, make_norm, dropout, bias) for _ in range(n_blocks)]
        for width in (4 * ngf, 2 * ngf):
            layers += [nn.ConvTranspose2d(width, width // 2, 3, stride=2, padding=1, output_padding=1, bias=bias)]
            layers += [make_norm(width // 2), nn.ReLU(inplace=True)]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(ngf, out_channels, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        return y


class ResnetBlock(nn.Module):
    """x + norm(conv(pad(drop(relu(norm(conv(pad(x)))))))), with reflection padding and 3×3 convolutions."""

    def __init__(self, channels: int, make_norm: _Norm, dropout: bool, bias: bool) -> None:
        super().__init__()
        layers = [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=bias), make_norm(channels)]
        layers += [nn.ReLU(inplace=True)]
        if dropout:
            layers += [nn.Dropout(0.5)]
        layers += [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=bias), make_norm(channels)]
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.conv_block(x)
        return y


class UnetGenerator(nn.Module):
    """An encoder-decoder with skip connections that halves the image ``n_downs`` (at least 5) times.

    [N, in_channels, H, W] → [N, out_channels, H, W] in [−1, 1]; H and W must be multiples of ``size_multiple`` =
    2^n_downs. Widths: ngf · (1, 2, 4, 8, 8, …). With ``dropout`` the blocks between the innermost and the four outer
    ones drop half of their features.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        ngf: int = 64,
        n_downs: int = 8,
        norm: str = "instance",
        dropout: bool = False,
    ) -> None:
        super().__init__()
        if n_downs < 5:
            raise ValueError(f"UnetGenerator: n_downs must be at least 5 (images of 32 pixels), got {n_downs}")
        self.size_multiple = self.least_size = 2**n_downs
        make_norm, bias = norm_layer(norm), norm == "instance"

        def block(outer: int, inner: int, inside: nn.Module | None, drop: bool = False) -> nn.Module:
            return UnetSkipConnectionBlock(outer, inner, inside, make_norm, drop, bias)

        inside = block(8 * ngf, 8 * ngf, None)
        for _ in range(n_downs - 5):
            inside = block(8 * ngf, 8 * ngf, inside, dropout)
        for width in (4 * ngf, 2 * ngf, ngf):
            inside = block(width, 2 * width, inside)
        self.model = UnetSkipConnectionBlock(out_channels, ngf, inside, make_norm, False, bias, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        _check_size(x, self.size_multiple)
        y: Tensor = self.model(x)
        return y


@torch.fx.wrap
def _check_size(x: Tensor, multiple: int) -> None:
    if x.size(-1) % multiple or x.size(-2) % multiple:
        raise ValueError(f"UnetGenerator: height and width must be multiples of {multiple}, got {list(x.shape)}")


class UnetSkipConnectionBlock(nn.Module):
    """Down, ``inside``, up; the input is concatenated to the output except at the outermost block.

    As in the authors' code the block's LeakyReLU works in place on the input, so what the skip connection carries is
    the activated input. ``in_channels`` is given for the outermost block only, ``inside`` is None for the innermost.
    """

    def __init__(
        self,
        outer: int,
        inner: int,
        inside: nn.Module | None,
        make_norm: _Norm,
        dropout: bool,
        bias: bool,
        in_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.outermost = in_channels is not None
        down = nn.Conv2d(outer if in_channels is None else in_channels, inner, 4, stride=2, padding=1, bias=bias)
        up_width = inner if inside is None else 2 * inner
        up_bias = bias or self.outermost
        up = nn.ConvTranspose2d(up_width, outer, 4, stride=2, padding=1, bias=up_bias)
        layers: list[nn.Module] = [] if self.outermost else [nn.LeakyReLU(0.2, inplace=True)]
        layers += [down]
        if inside is not None:
            layers += [inside] if self.outermost else [make_norm(inner), inside]
        layers += [nn.ReLU(inplace=True), up, nn.Tanh() if self.outermost else make_norm(outer)]
        if dropout:
            layers += [nn.Dropout(0.5)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        return y if self.outermost else torch.cat([x, y], 1)


class NLayerDiscriminator(nn.Module):
    """PatchGAN: 4×4 convolutions, ``n_layers`` of stride 2 and two of stride 1; one score per overlapping patch.

    [N, in_channels, H, W] → [N, 1, H', W'] logits. With n_layers = 3 a score sees 70×70 pixels and 256×256 gives
    30×30 scores. The first convolution has no norm.
    """

    def __init__(self, in_channels: int = 3, ndf: int = 64, n_layers: int = 3, norm: str = "instance") -> None:
        super().__init__()
        positive("NLayerDiscriminator: n_layers", n_layers)
        make_norm, bias = norm_layer(norm), norm == "instance"
        layers: list[nn.Module] = [nn.Conv2d(in_channels, ndf, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        width = ndf
        for layer in range(1, n_layers + 1):
            previous, width = width, ndf * min(2**layer, 8)
            stride = 2 if layer < n_layers else 1
            layers += [nn.Conv2d(previous, width, 4, stride=stride, padding=1, bias=bias)]
            layers += [make_norm(width), nn.LeakyReLU(0.2, inplace=True)]
        layers += [nn.Conv2d(width, 1, 4, padding=1)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        return y


class PixelDiscriminator(nn.Module):
    """1×1 convolutions: one score per pixel, [N, in_channels, H, W] → [N, 1, H, W] logits."""

    def __init__(self, in_channels: int = 3, ndf: int = 64, norm: str = "instance") -> None:
        super().__init__()
        make_norm, bias = norm_layer(norm), norm == "instance"
        self.net = nn.Sequential(
            nn.Conv2d(in_channels, ndf, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(ndf, 2 * ndf, 1, bias=bias),
            make_norm(2 * ndf),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(2 * ndf, 1, 1, bias=bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y


GENERATOR_NAMES = "resnet_9blocks, resnet_6blocks (any count), unet_128 or unet_256 (any power of two from 32)"


def is_generator(name: str) -> bool:
    """Whether :func:`build_generator` knows ``name``."""
    unet = re.fullmatch(r"unet_(\d+)", name)
    return bool(re.fullmatch(r"resnet_\d+blocks", name)) or (
        unet is not None and int(unet[1]) >= 32 and int(unet[1]).bit_count() == 1
    )


def build_generator(
    name: str = "resnet_9blocks",
    in_channels: int = 3,
    out_channels: int = 3,
    *,
    ngf: int = 64,
    norm: str = "instance",
    dropout: bool = False,
    init: str = "normal",
    init_gain: float = 0.02,
    generator: torch.Generator | None = None,
) -> ResnetGenerator | UnetGenerator:
    """A CycleGAN generator, initialised.

    Args:
        name: ``resnet_Nblocks`` with N ≥ 0 residual blocks (the published ones are resnet_9blocks, 11.378 M parameters,
            for 256² and resnet_6blocks for 128²), or ``unet_S`` for images of S = 32, 64, 128, 256, … pixels.
        ngf: channels after the first convolution.
        norm: ``instance`` (no parameters, the published choice), ``batch`` or ``none``.
        dropout: half of the features, within the residual blocks or the inner U-Net blocks.
        init, init_gain, generator: see :func:`init_weights`.
    """
    for what, value in (("in_channels", in_channels), ("out_channels", out_channels), ("ngf", ngf)):
        positive(f"build_generator: {what}", value)
    check_choice("build_generator: norm", norm, NORMS)
    if not is_generator(name):
        raise ValueError(f"build_generator: name must be {GENERATOR_NAMES}, got {name!r}")
    number = int("".join(filter(str.isdigit, name)))
    net: ResnetGenerator | UnetGenerator
    if name.startswith("resnet"):
        net = ResnetGenerator(in_channels, out_channels, ngf, number, norm, dropout)
    else:
        net = UnetGenerator(in_channels, out_channels, ngf, number.bit_length() - 1, norm, dropout)
    init_weights(net, init, init_gain, generator=generator)
    return net


def build_discriminator(
    name: str = "basic",
    in_channels: int = 3,
    *,
    ndf: int = 64,
    n_layers: int = 3,
    norm: str = "instance",
    init: str = "normal",
    init_gain: float = 0.02,
    generator: torch.Generator | None = None,
) -> NLayerDiscriminator | PixelDiscriminator:
    """A CycleGAN discriminator, initialised.

    Args:
        name: ``basic`` (the 70×70 PatchGAN, n_layers = 3, 2.765 M parameters), ``n_layers`` (a PatchGAN with
            ``n_layers`` strided convolutions) or ``pixel`` (1×1).
        ndf: channels after the first convolution.
        norm, init, init_gain, generator: as for :func:`build_generator`.
    """
    for what, value in (("in_channels", in_channels), ("ndf", ndf)):
        positive(f"build_discriminator: {what}", value)
    check_choice("build_discriminator: norm", norm, NORMS)
    check_choice("build_discriminator: name", name, ("basic", "n_layers", "pixel"))
    net: NLayerDiscriminator | PixelDiscriminator
    if name == "pixel":
        net = PixelDiscriminator(in_channels, ndf, norm)
    else:
        net = NLayerDiscriminator(in_channels, ndf, 3 if name == "basic" else n_layers, norm)
    init_weights(net, init, init_gain, generator=generator)
    return net
