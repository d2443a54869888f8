"""fastgan: fused, twice differentiable operators and reference trainers for GANs."""

from fastgan import functional, nn, numpy
from fastgan.kernels.dispatch import BackendError, use_backend
from fastgan.nn.fuse import fuse

__all__ = ["BackendError", "functional", "fuse", "nn", "numpy", "use_backend"]
__version__ = "0.1.0"
