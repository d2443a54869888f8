"""fastgan: fused, twice differentiable operators and reference trainers for GANs."""

from fastgan import functional
from fastgan.kernels.dispatch import BackendError, use_backend

__all__ = ["BackendError", "functional", "use_backend"]
__version__ = "0.1.0"
