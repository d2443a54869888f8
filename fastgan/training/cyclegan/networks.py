"""The networks of CycleGAN and their optimizers, made as the configuration says."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from fastgan.models import build_discriminator, build_generator, load_official
from fastgan.nn import fuse, use_cpu_convolutions
from fastgan.training import distributed
from fastgan.training.cyclegan.config import CycleGanConfig
from fastgan.training.precision import Precision
from fastgan.training.recompute import recomputing

Network = Callable[[Tensor], Tensor]


def build_networks(config: CycleGanConfig) -> dict[str, nn.Module]:
    """G_A (A → B), G_B (B → A), D_A (judges B), D_B (judges A), initialised from the global generator in this order."""

    def generator(inputs: int, outputs: int) -> nn.Module:
        return build_generator(
            config.netG,
            inputs,
            outputs,
            ngf=config.ngf,
            norm=config.norm,
            dropout=not config.no_dropout,
            init=config.init_type,
            init_gain=config.init_gain,
        )

    def discriminator(inputs: int) -> nn.Module:
        return build_discriminator(
            config.netD,
            inputs,
            ndf=config.ndf,
            n_layers=config.n_layers_D,
            norm=config.norm,
            init=config.init_type,
            init_gain=config.init_gain,
        )

    a, b = config.input_nc, config.output_nc
    return {"G_A": generator(a, b), "G_B": generator(b, a), "D_A": discriminator(b), "D_B": discriminator(a)}


def trainable_networks(config: CycleGanConfig, precision: Precision) -> dict[str, nn.Module]:
    """:func:`build_networks` with their first weights, fused, and in their place.

    Raises:
        CheckpointError: ``config.pretrained`` does not hold weights of these networks.
    """
    networks = build_networks(config)
    for name, network in networks.items():
        if config.pretrained is not None:
            load_official(network, config.pretrained / f"latest_net_{name}.pth")
    for network in networks.values():
        if config.fused:
            if precision.device.type == "cuda":
                skip_idle_biases(network)
            fuse(network)
            if precision.device.type == "cpu":
                use_cpu_convolutions(network)
        precision.place(network)
        distributed.join_batch_norms(network)
    return networks


def skip_idle_biases(network: nn.Module) -> None:
    """Has convolutions ahead of an instance norm, which takes any bias away again, compute without theirs.

    On a GPU a bias takes a pass over the result, and its gradient, which is 0, another. The parameters stay where they
    are: in ``state_dict``, and as they were, with no gradient.
    """
    for module in network.modules():
        for conv, norm in itertools.pairwise(module) if type(module) is nn.Sequential else ():
            follows = isinstance(norm, nn.InstanceNorm2d) and not norm.track_running_stats
            if follows and isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) and conv.bias is not None:
                conv.bias.requires_grad_(False)  # DistributedDataParallel would wait for its gradient
                conv.__dict__["bias"] = None  # found before the parameter of that name


def for_generators(networks: Mapping[str, nn.Module], config: CycleGanConfig) -> dict[str, Network]:
    """The networks as the generators' loss calls them.

    The generators recompute their activations if asked for. The discriminators, which are frozen then, are called
    without DistributedDataParallel: it would wait for gradients.
    """
    calls: dict[str, Network] = {}
    for name, network in networks.items():
        if name.startswith("D"):
            calls[name] = distributed.within(network)
        else:
            calls[name] = recomputing(network) if config.recompute else network
    return calls


def make_optimizers(networks: Mapping[str, nn.Module], config: CycleGanConfig) -> tuple[Adam, Adam]:
    """One Adam for both generators, one for both discriminators."""
    generators, discriminators = (
        Adam(
            itertools.chain(networks[a].parameters(), networks[b].parameters()),
            lr=config.lr,
            betas=(config.beta1, 0.999),
            fused=True if config.fused else None,  # None: PyTorch's own choice
        )
        for a, b in (("G_A", "G_B"), ("D_A", "D_B"))
    )
    return generators, discriminators


def sizes(config: CycleGanConfig) -> tuple[int, int]:
    """What the height and width of the generators' images must be a multiple of, and their least."""
    with torch.device("meta"):
        generator: Any = build_networks(config)["G_A"]
    return generator.size_multiple, generator.least_size
