"""Generators, discriminators and critics, in plain torch.nn."""

from fastgan.models._build import init_weights
from fastgan.models.cyclegan import build_discriminator, build_generator
from fastgan.models.gan import ARCHITECTURES, build_critic, build_gan_generator
from fastgan.models.official import CheckpointError, infer_generator, load_official, read_official, save_official

__all__ = [
    "ARCHITECTURES",
    "CheckpointError",
    "build_critic",
    "build_discriminator",
    "build_gan_generator",
    "build_generator",
    "infer_generator",
    "init_weights",
    "load_official",
    "read_official",
    "save_official",
]
