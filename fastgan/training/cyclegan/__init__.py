"""CycleGAN (Zhu et al. 2017, arXiv:1703.10593), step by step as the authors' code trains it.

One step on images A and B (:meth:`CycleGan._update`; the formulas of the losses are in ``losses.py``)::

    freeze both D; fake_B = G_A(A), rec_A = G_B(fake_B), fake_A = G_B(B), rec_B = G_A(fake_A)
    loss_G, one Adam step of both G
    thaw both D; loss_D of D_A on B and pool(fake_B), of D_B on A and pool(fake_A), one Adam step of both D

GAN is least squares, cross-entropy, hinge, or Wasserstein with a gradient penalty (which the authors' option lacks).

========  =====================================================
config    the settings, and which of them fit together
data      the folders of images, in memory or on the device
networks  generators, discriminators, their optimizers
losses    what a step differentiates: the formulas
trainer   the step, and the task that the loop drives
report    sheets, scores of held-out images, the dry run's plan
========  =====================================================
"""

from fastgan.training.cyclegan.config import CycleGanConfig, GanMode, PreprocessMode, check, graphs
from fastgan.training.cyclegan.data import held_out, resident
from fastgan.training.cyclegan.losses import gan_loss
from fastgan.training.cyclegan.networks import build_networks, sizes
from fastgan.training.cyclegan.report import scores, scores_of
from fastgan.training.cyclegan.trainer import CycleGan, make, train

__all__ = [
    "CycleGan",
    "CycleGanConfig",
    "GanMode",
    "PreprocessMode",
    "build_networks",
    "check",
    "gan_loss",
    "graphs",
    "held_out",
    "make",
    "resident",
    "scores",
    "scores_of",
    "sizes",
    "train",
]
