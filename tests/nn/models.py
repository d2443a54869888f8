"""Small models of the published shapes, as their authors structure them, for the tests of fuse()."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn


class ResnetBlock(nn.Module):
    def __init__(self, dim: int, affine: bool = False) -> None:
        super().__init__()
        norm = functools.partial(nn.InstanceNorm2d, affine=affine)
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(dim, dim, 3), norm(dim), nn.ReLU(True),
            nn.ReflectionPad2d(1), nn.Conv2d(dim, dim, 3), norm(dim),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class ResnetGenerator(nn.Module):
    def __init__(self, width: int = 4, blocks: int = 3, affine: bool = False) -> None:
        super().__init__()
        norm = functools.partial(nn.InstanceNorm2d, affine=affine)
        self.model = nn.Sequential(
            nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), norm(width), nn.ReLU(True),
            nn.Conv2d(width, 2 * width, 3, 2, 1), norm(2 * width), nn.ReLU(True),
            *(ResnetBlock(2 * width, affine) for _ in range(blocks)),
            nn.ConvTranspose2d(2 * width, width, 3, 2, 1, output_padding=1), norm(width), nn.ReLU(True),
            nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class UnetBlock(nn.Module):
    def __init__(
        self,
        outer: int,
        inner: int,
        submodule: nn.Module | None = None,
        inputs: int | None = None,
        outermost: bool = False,
    ) -> None:
        super().__init__()
        self.outermost = outermost
        inputs = outer if inputs is None else inputs
        down = nn.Conv2d(inputs, inner, 4, 2, 1)
        if outermost:
            assert submodule is not None
            layers = [down, submodule, nn.ReLU(True), nn.ConvTranspose2d(inner * 2, outer, 4, 2, 1), nn.Tanh()]
        elif submodule is None:
            layers = [nn.LeakyReLU(0.2, True), down, nn.ReLU(True), nn.ConvTranspose2d(inner, outer, 4, 2, 1),
                      nn.InstanceNorm2d(outer)]  # fmt: skip
        else:
            layers = [nn.LeakyReLU(0.2, True), down, nn.InstanceNorm2d(inner), submodule, nn.ReLU(True),
                      nn.ConvTranspose2d(inner * 2, outer, 4, 2, 1), nn.InstanceNorm2d(outer)]  # fmt: skip
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if self.outermost:
            return self.model(x)
        return torch.cat([x, self.model(x)], 1)


def unet_generator(width: int = 4) -> nn.Module:
    block = UnetBlock(width * 4, width * 4)
    block = UnetBlock(width * 2, width * 4, block)
    block = UnetBlock(width, width * 2, block)
    return UnetBlock(3, width, block, inputs=3, outermost=True)


class PatchDiscriminator(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2, True),
            nn.Conv2d(width, 2 * width, 4, 2, 1), nn.InstanceNorm2d(2 * width), nn.LeakyReLU(0.2, True),
            nn.Conv2d(2 * width, 4 * width, 4, 1, 1), nn.InstanceNorm2d(4 * width), nn.LeakyReLU(0.2, True),
            nn.Conv2d(4 * width, 1, 4, 1, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)
