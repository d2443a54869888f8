"""The networks of a run and their optimizers, made as the configuration and the objective say."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.optim import Optimizer

from fastgan.models.gan import LatentGenerator, MinibatchDiscrimination, build_critic, build_gan_generator
from fastgan.nn import use_cpu_convolutions
from fastgan.nn.layer_norm import use_layer_norm
from fastgan.objectives import Defaults, Objective
from fastgan.training import distributed
from fastgan.training.gan.config import GanConfig, architecture_name, sample_shape
from fastgan.training.precision import Precision
from fastgan.training.recompute import recompute_activations


def make_generator(config: GanConfig) -> LatentGenerator:
    """The generator, drawn from the global random state."""
    generator = build_gan_generator(
        architecture_name(config),
        sample_shape(config),
        latent_dim=config.latent_dim,
        width=config.width_g,
        norm=config.norm_g,
    )
    if config.fused:
        use_layer_norm(generator)
    return generator


def make_critic(config: GanConfig, objective: Objective) -> nn.Module | None:
    """The critic that the objective requires, None for none, drawn from the global random state."""
    requires = objective.requires
    if requires.output == "none":
        return None
    if config.code_dim is not None and requires.output != "energy":
        raise ValueError(f"code_dim is for critics that are autoencoders (ebgan), not for {config.objective!r}")
    shape = sample_shape(config)
    dropout = config.dropout if config.dropout is not None else 0.5 if requires.dropout else 0.0
    if requires.dropout and not dropout:
        raise ValueError(f"objective {config.objective!r} compares two dropout passes: dropout must be above 0")
    critic = build_critic(
        architecture_name(config),
        shape,
        width=config.width_d,
        norm=config.norm_d,
        independent=requires.independent,
        spectral_norm=requires.spectral_norm,
        dropout=dropout,
        minibatch=config.minibatch,
        energy=requires.output == "energy",
        code_dim=min(128, max(32, math.prod(shape) // 2)) if config.code_dim is None else config.code_dim,
    )
    if config.fused:
        use_layer_norm(critic)
    return critic


def trainable(network: nn.Module, config: GanConfig, precision: Precision) -> None:
    """Puts a network in its place, joins its batch norms over the processes, and lets it recompute if asked for."""
    precision.place(network)
    if config.fused and precision.device.type == "cpu" and precision.memory_format == torch.channels_last:
        use_cpu_convolutions(network)  # they serve in that layout alone
    distributed.join_batch_norms(network)
    for module in network.modules():
        if isinstance(module, MinibatchDiscrimination) and distributed.size() > 1:
            module.all = distributed.differentiable_rows
    if config.recompute:
        recompute_activations(network)


def mixes_samples(critic: nn.Module) -> bool:
    """Whether a sample's output depends on the rest of the batch."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm | MinibatchDiscrimination) for m in critic.modules())


def is_joinable(critic: nn.Module) -> bool:
    """Whether real and fake samples may go through the critic in one call.

    Not where each call is another step of a spectral norm's power iteration.
    """
    return not (mixes_samples(critic) or any(isinstance(m, _SpectralNorm) for m in critic.modules()))


def make_optimizer(network: nn.Module, settings: Defaults, lr: float, fused: bool) -> Optimizer:
    if settings.optimizer == "rmsprop":
        return torch.optim.RMSprop(network.parameters(), lr=lr)
    # None, not False: without fused kernels the choice is PyTorch's own.
    return torch.optim.Adam(network.parameters(), lr=lr, betas=settings.betas, fused=True if fused else None)


def parameter_count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def no_critic(x: Tensor) -> Tensor:
    """The critic of an objective without one."""
    raise RuntimeError("this objective has no critic")
