"""The networks of the GAN family: a generator and a critic of each architecture, for samples of any shape.

=============  ====================================================================================================
``mlp``        any shape: three hidden layers of 512, ReLU (the toys of Gulrajani et al. 2017, arXiv:1704.00028)
``dcgan``      images: 4×4 strided convolutions, batch norm, N(0, 0.02) (Radford et al. 2015, arXiv:1511.06434)
``wgan-gp``    images: 5×5 strided convolutions, no norm in the critic (Gulrajani et al. 2017, their CIFAR-10 code)
``resnet``     images: residual blocks; below 64 pixels the CIFAR-10 network of Gulrajani et al. 2017 (table 3),
               from there on their 64×64 network with layer norm in the critic
``sngan``      images: alternating 3×3 and strided 4×4 convolutions, LeakyReLU 0.1 (Miyato et al. 2018,
               arXiv:1802.05957, table 3); made for spectral norm
=============  ====================================================================================================

An image may have any number of channels, and any height and width that can be halved until the smaller one is between 4
and 7, at least twice: 8, 28, 32, 48, 64, 96, 128 or 64×128. The number of stages is derived from that. Generators give
images in [−1, 1] (tanh) and points without a bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fastgan._ranges import check_choice
from fastgan.models._build import init_weights, norm_layer, positive

NORMS = ("batch", "instance", "layer", "none")


class LatentGenerator(nn.Module):
    """z [N, latent_dim] → samples [N, *sample_shape]."""

    def __init__(self, net: nn.Module, latent_dim: int, sample_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.net = net
        self.latent_dim = latent_dim
        self.sample_shape = sample_shape

    def forward(self, z: Tensor) -> Tensor:
        x: Tensor = self.net(z)
        return x

    def latent(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """n draws of z ~ N(0, 1) on the network's device; ``generator`` must be of that device."""
        parameter = next(self.parameters())
        return torch.randn(n, self.latent_dim, generator=generator, device=parameter.device)


class Critic(nn.Module):
    """x [N, *sample_shape] → scores [N]: a trunk that gives features, and a linear head."""

    def __init__(self, trunk: nn.Module, features: int, minibatch: int = 0) -> None:
        super().__init__()
        self.trunk = trunk
        self.minibatch = MinibatchDiscrimination(features, minibatch) if minibatch else None
        self.head = _linear(features + minibatch, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x)[0]

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [N] and the features [N, F] of the last hidden layer."""
        features: Tensor = self.trunk(x)
        score: Tensor = self.head(features if self.minibatch is None else self.minibatch(features))
        return score.squeeze(-1), features


class AutoencoderCritic(nn.Module):
    """x [N, *sample_shape] → energies [N]: the mean squared error of an autoencoder's reconstruction, as in EBGAN.

    Zhao et al. 2016 (arXiv:1609.03126), section 2.3, where the energy is the norm of the error. The encoder is a
    critic's trunk with a linear code, the decoder a generator of the same architecture.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x)[0]

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies [N] and the codes [N, code_dim]."""
        code: Tensor = self.encoder(x)
        return (self.decoder(code) - x).square().flatten(1).mean(1), code

    def reconstruct(self, x: Tensor) -> Tensor:
        """[N, *sample_shape] → [N, *sample_shape]."""
        y: Tensor = self.decoder(self.encoder(x))
        return y


class MinibatchDiscrimination(nn.Module):
    r"""Appends to each sample's features its closeness to the other samples of the batch: [N, F] → [N, F + kernels].

    .. math:: o_{i,b} = \sum_j \exp\Big(-\sum_c |M_{i,b,c} - M_{j,b,c}|\Big), \qquad M = f T

    Salimans et al. 2016 (arXiv:1606.03498), section 3.2, with their 5 dimensions per kernel. Computed in float32;
    O(N² · kernels · dims) memory.
    """

    mixes_samples = True  # which a gradient penalty refuses

    def __init__(self, features: int, kernels: int, dims: int = 5) -> None:
        super().__init__()
        self.kernels, self.dims = kernels, dims
        self.tensor = nn.Parameter(torch.randn(features, kernels * dims) / math.sqrt(features))
        self.all: Callable[[Tensor], Tensor] | None = None  # the rows of all processes, where several share a batch

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            m = (features.float() @ self.tensor.float()).unflatten(1, (self.kernels, self.dims))
            others = m if self.all is None else self.all(m)
            closeness = (others.unsqueeze(0) - m.unsqueeze(1)).abs().sum(3).neg().exp().sum(1)
        return torch.cat([features, closeness.to(features.dtype)], 1)


class ResidualBlock(nn.Module):
    """shortcut(x) + conv(relu(norm(conv(relu(norm(x)))))), pre-activated; Gulrajani et al. 2017, appendix F.

    ``resample`` is ``up`` (nearest, before the first convolution), ``down`` (mean pooling after the second) or None.
    The convolution and its resampling are one: see :class:`DownConv2d`. The shortcut's 1×1 convolution commutes with
    its resampling and runs at the lower resolution. The ``first`` block of a critic has no norm and no activation ahead
    of its first convolution.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        make_norm: Callable[[int], nn.Module],
        resample: str | None = None,
        *,
        hidden: int | None = None,
        first: bool = False,
    ) -> None:
        super().__init__()
        hidden = outputs if hidden is None else hidden
        layers: list[nn.Module] = [] if first else [make_norm(inputs), nn.ReLU()]
        layers += [_conv(inputs, hidden, 3, kind=UpConv2d if resample == "up" else nn.Conv2d)]
        layers += [nn.Identity() if first else make_norm(hidden), nn.ReLU()]
        layers += [_conv(hidden, outputs, 3, kind=DownConv2d if resample == "down" else nn.Conv2d)]
        shortcut: list[nn.Module] = [nn.AvgPool2d(2)] if resample == "down" else []
        if inputs != outputs or resample is not None:
            shortcut += [_conv(inputs, outputs, 1, he=False)]
        if resample == "up":
            shortcut += [nn.Upsample(scale_factor=2)]
        self.block = _sequential(layers)
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.shortcut(x) + self.block(x)
        return y


class DownConv2d(nn.Conv2d):
    r"""A 3×3 convolution and 2×2 mean pooling in one 4×4 convolution of stride 2.

    Pooling is linear, so with the parameters of the 3×3 convolution w and along each axis

    .. math:: \tfrac12 \sum_{a \in \{0, 1\}} \sum_k w_k x_{2i + a + k - 1} = \sum_m v_m x_{2i + m - 1},
              \qquad v = \tfrac12 (w_0, w_0 + w_1, w_1 + w_2, w_2)

    It computes the same up to rounding with 16 multiplications in place of 36, and the large map is never stored.
    """

    _taps = ((0.5, 0.5, 0, 0), (0, 0.5, 0.5, 0), (0, 0, 0.5, 0.5))

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, padding: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding, bias=bias)
        # [3, 4]: which of an axis's three weights is in which of its four
        taps = torch.tensor(self._taps, dtype=torch.float32)
        self.register_buffer("taps", torch.einsum("ai,bj->abij", taps, taps).reshape(9, 16), persistent=False)
        self.taps: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self._kernel(), self.bias, stride=2, padding=1)

    def _kernel(self) -> Tensor:
        """[outputs, inputs, 4, 4]"""
        kernel: Tensor = (self.weight.flatten(2) @ self.taps).unflatten(2, (4, 4))
        return kernel


class UpConv2d(DownConv2d):
    r"""Nearest up-sampling by 2 and a 3×3 convolution in one 4×4 transposed convolution of stride 2.

    Along each axis an even output is w₀ x_{i−1} + (w₁ + w₂) x_i and an odd one (w₀ + w₁) x_i + w₂ x_{i+1}, which is the
    transposed convolution with (w₂, w₁ + w₂, w₀ + w₁, w₀). 16 multiplications in place of 36, and the up-sampled map is
    never stored.
    """

    _taps = ((0, 0, 1, 1), (0, 1, 1, 0), (1, 1, 0, 0))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv_transpose2d(x, self._kernel().transpose(0, 1), self.bias, stride=2, padding=1)


# --- sizes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Image:
    """An image's shape, and the number of halvings (at least 2) that leave base = (h, w), the smaller of them ≤ 7."""

    channels: int
    stages: int
    base: tuple[int, int]

    @classmethod
    def of(cls, sample_shape: tuple[int, ...], name: str) -> _Image:
        if len(sample_shape) != 3:
            raise ValueError(
                f"architecture {name!r} makes images, sample_shape must be (channels, height, width), "
                f"got {sample_shape}; use 'mlp' for other shapes"
            )
        channels, height, width = sample_shape
        stages = max((min(height, width) // 4).bit_length() - 1, 2)
        if height % 2**stages or width % 2**stages:
            raise ValueError(
                f"architecture {name!r} halves images to 4 to 7 pixels, at least twice: height and width must be "
                f"multiples of {2**stages} here, got {height}×{width} (8, 28, 32, 48, 64, 96, … fit)"
            )
        return cls(channels, stages, (height // 2**stages, width // 2**stages))

    @property
    def base_size(self) -> int:
        return self.base[0] * self.base[1]


def _widths(width: int, stages: int) -> list[int]:
    """width · (1, 2, 4, 8, 8, …), one for each stage."""
    return [width * min(2**stage, 8) for stage in range(stages)]


# --- layers ---------------------------------------------------------------------------------------------------------


def _conv(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    *,
    he: bool = True,
    bias: bool = True,
    kind: type[nn.Conv2d] = nn.Conv2d,
) -> nn.Conv2d:
    """A convolution that keeps the size (divides it by the stride), initialised as in WGAN-GP's code.

    Weights are uniform with variance 4/(fan in + fan out) for ReLU (``he``) or 2/(fan in + fan out), biases 0.
    """
    conv = kind(inputs, outputs, kernel, stride, kernel // 2, bias=bias)
    fans = kernel**2 * (inputs + outputs / stride**2)
    _uniform(conv, (4 if he else 2) / fans)
    return conv


def _deconv(inputs: int, outputs: int, kernel: int, *, bias: bool = True) -> nn.ConvTranspose2d:
    """A transposed convolution that doubles the size, initialised as :func:`_conv`."""
    deconv = nn.ConvTranspose2d(inputs, outputs, kernel, 2, kernel // 2, output_padding=1, bias=bias)
    _uniform(deconv, 4 / (kernel**2 * (inputs / 4 + outputs)))
    return deconv


def _linear(inputs: int, outputs: int, *, he: bool = False) -> nn.Linear:
    """A linear layer with He's uniform weights (variance 2/fan in) or Glorot's, and biases 0."""
    linear = nn.Linear(inputs, outputs)
    _uniform(linear, 2 / inputs if he else 2 / (inputs + outputs))
    return linear


def _uniform(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, variance: float) -> None:
    bound = math.sqrt(3 * variance)
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _needs_bias(norm: str) -> bool:
    """Whether a convolution ahead of this norm needs a bias: others take any away again."""
    return norm not in ("batch", "instance")


def _sequential(layers: Sequence[nn.Module | None]) -> nn.Sequential:
    return nn.Sequential(*(layer for layer in layers if layer is not None and not isinstance(layer, nn.Identity)))


def _dropout(p: float) -> nn.Module:
    return nn.Dropout(p) if p else nn.Identity()


# --- architectures --------------------------------------------------------------------------------------------------
# A generator builder takes (latent_dim, sample_shape, width, norm); a trunk builder (sample_shape, width, norm,
# dropout) and returns the trunk and its number of features.

_Trunk = tuple[nn.Sequential, int]


def _mlp_generator(latent_dim: int, shape: tuple[int, ...], width: int, norm: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs in (latent_dim, width, width):
        layers += [_linear(inputs, width, he=True), _flat_norm(norm, width), nn.ReLU(inplace=True)]
    layers += [_linear(width, math.prod(shape))]
    if len(shape) > 1:
        layers += [nn.Tanh(), nn.Unflatten(1, shape)]
    return _sequential(layers)


def _mlp_trunk(shape: tuple[int, ...], width: int, norm: str, dropout: float) -> _Trunk:
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs in (math.prod(shape), width, width):
        layers += [_linear(inputs, width, he=True), _flat_norm(norm, width), nn.ReLU(inplace=True), _dropout(dropout)]
    return _sequential(layers), width


def _flat_norm(norm: str, width: int) -> nn.Module:
    if norm == "instance":
        raise ValueError("norm 'instance' needs images; 'mlp' takes 'batch', 'layer' or 'none'")
    if norm == "none":
        return nn.Identity()
    return nn.BatchNorm1d(width) if norm == "batch" else nn.LayerNorm(width)


def _dcgan_generator(latent_dim: int, shape: tuple[int, ...], width: int, norm: str) -> nn.Sequential:
    image, make_norm, bias = _Image.of(shape, "dcgan"), norm_layer(norm), _needs_bias(norm)
    *inner, top = _widths(width, image.stages)
    layers: list[nn.Module] = [nn.Linear(latent_dim, top * image.base_size, bias=bias)]
    layers += [nn.Unflatten(1, (top, *image.base)), make_norm(top), nn.ReLU(inplace=True)]
    for outputs in reversed(inner):
        layers += [nn.ConvTranspose2d(top, outputs, 4, 2, 1, bias=bias), make_norm(outputs), nn.ReLU(inplace=True)]
        top = outputs
    layers += [nn.ConvTranspose2d(top, image.channels, 4, 2, 1), nn.Tanh()]
    return _sequential(layers)


def _dcgan_trunk(shape: tuple[int, ...], width: int, norm: str, dropout: float) -> _Trunk:
    image, make_norm, bias = _Image.of(shape, "dcgan"), norm_layer(norm), _needs_bias(norm)
    layers: list[nn.Module] = []
    inputs = image.channels
    for stage, outputs in enumerate(_widths(width, image.stages)):
        layers += [nn.Conv2d(inputs, outputs, 4, 2, 1, bias=bias or stage == 0)]
        layers += [make_norm(outputs) if stage else nn.Identity(), nn.LeakyReLU(0.2, inplace=True), _dropout(dropout)]
        inputs = outputs
    return _sequential([*layers, nn.Flatten()]), inputs * image.base_size


def _wgan_gp_generator(latent_dim: int, shape: tuple[int, ...], width: int, norm: str) -> nn.Sequential:
    image, make_norm, bias = _Image.of(shape, "wgan-gp"), norm_layer(norm), _needs_bias(norm)
    *inner, top = _widths(width, image.stages)
    layers: list[nn.Module] = [_linear(latent_dim, top * image.base_size)]
    if norm == "batch":  # over each feature, not each channel, as their code does it
        layers += [nn.BatchNorm1d(top * image.base_size), nn.Unflatten(1, (top, *image.base))]
    else:
        layers += [nn.Unflatten(1, (top, *image.base)), make_norm(top)]
    layers += [nn.ReLU(inplace=True)]
    for outputs in reversed(inner):
        layers += [_deconv(top, outputs, 5, bias=bias), make_norm(outputs), nn.ReLU(inplace=True)]
        top = outputs
    return _sequential([*layers, _deconv(top, image.channels, 5), nn.Tanh()])


def _wgan_gp_trunk(shape: tuple[int, ...], width: int, norm: str, dropout: float) -> _Trunk:
    image, make_norm, bias = _Image.of(shape, "wgan-gp"), norm_layer(norm), _needs_bias(norm)
    layers: list[nn.Module] = []
    inputs = image.channels
    for stage, outputs in enumerate(_widths(width, image.stages)):
        layers += [_conv(inputs, outputs, 5, 2, bias=bias or stage == 0)]
        layers += [make_norm(outputs) if stage else nn.Identity(), nn.LeakyReLU(0.2, inplace=True), _dropout(dropout)]
        inputs = outputs
    return _sequential([*layers, nn.Flatten()]), inputs * image.base_size


def _resnet_generator(latent_dim: int, shape: tuple[int, ...], width: int, norm: str) -> nn.Sequential:
    image, make_norm = _Image.of(shape, "resnet"), norm_layer(norm)
    large = image.stages > 3
    widths = list(reversed(_widths(width, image.stages))) if large else [width] * image.stages
    layers: list[nn.Module] = [_linear(latent_dim, widths[0] * image.base_size)]
    layers += [nn.Unflatten(1, (widths[0], *image.base))]
    for inputs, outputs in pairwise([widths[0], *widths]):
        layers += [ResidualBlock(inputs, outputs, make_norm, "up")]
    layers += [make_norm(widths[-1]), nn.ReLU(inplace=True), _conv(widths[-1], image.channels, 3, he=large), nn.Tanh()]
    return _sequential(layers)


def _resnet_trunk(shape: tuple[int, ...], width: int, norm: str, dropout: float) -> _Trunk:
    image, make_norm = _Image.of(shape, "resnet"), norm_layer(norm)
    if image.stages > 3:
        widths = [*_widths(width, image.stages), _widths(width, image.stages)[-1]]
        layers: list[nn.Module] = [_conv(image.channels, width, 3, he=False)]
        for inputs, outputs in pairwise(widths):
            layers += [ResidualBlock(inputs, outputs, make_norm, "down", hidden=inputs), _dropout(dropout)]
        return _sequential([*layers, nn.Flatten()]), widths[-1] * image.base_size
    layers = [ResidualBlock(image.channels, width, make_norm, "down", first=True)]
    for resample in ["down"] * (image.stages - 2) + [None, None]:
        layers += [ResidualBlock(width, width, make_norm, resample), _dropout(dropout)]
    return _sequential([*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]), width


def _sngan_generator(latent_dim: int, shape: tuple[int, ...], width: int, norm: str) -> nn.Sequential:
    image, make_norm, bias = _Image.of(shape, "sngan"), norm_layer(norm), _needs_bias(norm)
    top = width * min(2**image.stages, 8)
    layers: list[nn.Module] = [nn.Linear(latent_dim, top * image.base_size), nn.Unflatten(1, (top, *image.base))]
    for outputs in reversed(_widths(width, image.stages)):
        layers += [nn.ConvTranspose2d(top, outputs, 4, 2, 1, bias=bias), make_norm(outputs), nn.ReLU(inplace=True)]
        top = outputs
    return _sequential([*layers, nn.Conv2d(top, image.channels, 3, padding=1), nn.Tanh()])


def _sngan_trunk(shape: tuple[int, ...], width: int, norm: str, dropout: float) -> _Trunk:
    image, make_norm, bias = _Image.of(shape, "sngan"), norm_layer(norm), _needs_bias(norm)
    layers: list[nn.Module] = []
    inputs, outputs = image.channels, width

    def stage(kernel: int, stride: int) -> list[nn.Module]:
        first = not layers
        conv = nn.Conv2d(inputs, outputs, kernel, stride, 1, bias=bias or first)
        return [conv, nn.Identity() if first else make_norm(outputs), nn.LeakyReLU(0.1, inplace=True)]

    for outputs in _widths(width, image.stages):
        layers += stage(3, 1)
        inputs = outputs
        layers += [*stage(4, 2), _dropout(dropout)]
    outputs = width * min(2**image.stages, 8)
    layers += stage(3, 1)
    return _sequential([*layers, nn.Flatten()]), outputs * image.base_size


@dataclass(frozen=True)
class Architecture:
    """A generator, a critic's trunk, and the published settings; (small, large) where 64 pixels make a difference."""

    generator: Callable[[int, tuple[int, ...], int, str], nn.Sequential]
    trunk: Callable[[tuple[int, ...], int, str, float], _Trunk]
    width: tuple[int, int]
    generator_norm: str
    critic_norm: tuple[str, str]
    normal_init: bool
    """Weights N(0, 0.02) instead of those of WGAN-GP's code."""


ARCHITECTURES = {
    "mlp": Architecture(_mlp_generator, _mlp_trunk, (512, 512), "none", ("none", "none"), False),
    "dcgan": Architecture(_dcgan_generator, _dcgan_trunk, (64, 64), "batch", ("batch", "batch"), True),
    "wgan-gp": Architecture(_wgan_gp_generator, _wgan_gp_trunk, (128, 64), "batch", ("none", "none"), False),
    "resnet": Architecture(_resnet_generator, _resnet_trunk, (128, 64), "batch", ("none", "layer"), False),
    "sngan": Architecture(_sngan_generator, _sngan_trunk, (64, 64), "batch", ("none", "none"), True),
}


def build_gan_generator(
    name: str,
    sample_shape: Sequence[int],
    *,
    latent_dim: int | None = None,
    width: int | None = None,
    norm: str | None = None,
) -> LatentGenerator:
    """A generator of the GAN family, initialised from torch's global random state.

    Args:
        name: a key of :data:`ARCHITECTURES`.
        sample_shape: (channels, height, width) of an image, or (d,) of a point.
        latent_dim: of z; 128 by default, 2 for points.
        width: channels of the widest-resolution stage; the published number by default.
        norm: ``batch``, ``instance``, ``layer`` or ``none``; the published one by default.
    """
    what = "build_gan_generator"
    architecture, shape, large = _architecture(what, name, sample_shape)
    latent_dim = latent_dim if latent_dim is not None else 128 if len(shape) > 1 else 2
    width = width if width is not None else architecture.width[large]
    norm = norm if norm is not None else architecture.generator_norm
    positive(f"{what}: latent_dim", latent_dim)
    positive(f"{what}: width", width)
    check_choice(f"{what}: norm", norm, NORMS)
    net = LatentGenerator(architecture.generator(latent_dim, shape, width, norm), latent_dim, shape)
    if architecture.normal_init:
        init_weights(net)
    return net


def build_critic(
    name: str,
    sample_shape: Sequence[int],
    *,
    width: int | None = None,
    norm: str | None = None,
    independent: bool = False,
    spectral_norm: bool = False,
    dropout: float = 0.0,
    minibatch: int = 0,
    energy: bool = False,
    code_dim: int = 128,
) -> Critic | AutoencoderCritic:
    """A critic of the GAN family, initialised from torch's global random state.

    Args:
        name: a key of :data:`ARCHITECTURES`.
        sample_shape: (channels, height, width) of an image, or (d,) of a point.
        width: channels of the first stage; the published number by default.
        norm: ``batch``, ``instance``, ``layer`` or ``none``; the published one by default, none with ``spectral_norm``.
        independent: the critic must judge each sample by itself, as a gradient penalty requires: a default of batch
            norm becomes layer norm, and an explicit choice that mixes samples is an error.
        spectral_norm: divide every weight by its largest singular value (torch's parametrization, one power iteration
            a training step; Miyato et al. 2018).
        dropout: probability, after each hidden stage (CT-GAN).
        minibatch: kernels of :class:`MinibatchDiscrimination` ahead of the head; 0 for none.
        energy: an :class:`AutoencoderCritic` with codes of ``code_dim``, for EBGAN.
    """
    what = "build_critic"
    architecture, shape, large = _architecture(what, name, sample_shape)
    width = width if width is not None else architecture.width[large]
    if norm is None:
        norm = "none" if spectral_norm else architecture.critic_norm[large]
        if independent and norm == "batch":
            norm = "layer"
    positive(f"{what}: width", width)
    check_choice(f"{what}: norm", norm, NORMS)
    if not 0 <= dropout < 1:
        raise ValueError(f"{what}: dropout must be in [0, 1), got {dropout}")
    if minibatch < 0 or (minibatch and energy):
        raise ValueError(f"{what}: minibatch must be at least 0, and 0 for an energy, got {minibatch}")
    if independent and (norm == "batch" or minibatch):
        mixes = "norm='batch'" if norm == "batch" else f"minibatch={minibatch}"
        raise ValueError(f"{what}: {mixes} makes a score depend on the other samples; independent=True forbids it")
    trunk, features = architecture.trunk(shape, width, norm, dropout)
    critic: Critic | AutoencoderCritic
    if energy:
        positive(f"{what}: code_dim", code_dim)
        encoder = nn.Sequential(*trunk, _linear(features, code_dim))
        critic = AutoencoderCritic(encoder, architecture.generator(code_dim, shape, width, norm))
    else:
        critic = Critic(trunk, features, minibatch)
    if architecture.normal_init:
        init_weights(critic)
    if spectral_norm:
        for module in list(critic.modules()):
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                parametrizations.spectral_norm(module)
    return critic


def _architecture(what: str, name: str, sample_shape: Sequence[int]) -> tuple[Architecture, tuple[int, ...], bool]:
    check_choice(f"{what}: name", name, tuple(ARCHITECTURES))
    shape = tuple(sample_shape)
    if not shape or any(not isinstance(size, int) or size < 1 for size in shape):
        raise ValueError(f"{what}: sample_shape must be positive integers, got {shape}")
    return ARCHITECTURES[name], shape, len(shape) == 3 and min(shape[1:]) >= 64
