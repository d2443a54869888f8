"""The trainer of the GAN family: one step is some critic steps, then a generator step.

Algorithm 1 of Goodfellow et al. 2014, Arjovsky et al. 2017 and Gulrajani et al. 2017, for any objective of
:mod:`fastgan.objectives` (:meth:`GanTask._update_critic`, :meth:`GanTask._update_generator`)::

    for each generator step:
        n_critic times:
            clamp the critic's weights (wgan)
            take real samples; draw z and generate fakes, without a graph through the generator
            critic loss, backward, critic step
        freeze the critic; draw z, generate; generator loss, backward, generator step; average the weights (EMA)

========  ====================================================================
config    the settings, the authors' defaults, and which of them fit together
data      the real samples
networks  generator, critic, their optimizers
trainer   the steps, and the task that the loop drives
report    samples, sheets, scores, the dry run's plan
========  ====================================================================
"""

from fastgan.training.gan.config import GanConfig, architecture_name, graphs, resolve, sample_shape
from fastgan.training.gan.data import RealData
from fastgan.training.gan.networks import make_critic, make_generator, mixes_samples
from fastgan.training.gan.report import evaluate, sample, scatter
from fastgan.training.gan.trainer import GanTask, train

__all__ = [
    "GanConfig",
    "GanTask",
    "RealData",
    "architecture_name",
    "evaluate",
    "graphs",
    "make_critic",
    "make_generator",
    "mixes_samples",
    "resolve",
    "sample",
    "sample_shape",
    "scatter",
    "train",
]
