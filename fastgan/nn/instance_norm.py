"""Instance norm modules that also do what follows them: residual, activation, reflection padding."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, fx, nn

import fastgan.functional as F
from fastgan.functional import _check
from fastgan.functional.instance_norm import ACTIVATIONS


def _broadcasts(residual: Any, input: Tensor) -> bool:
    """Whether ``input + residual`` has the shape and the dtype of ``input``; under autocast, a residual is cast."""
    if not isinstance(residual, Tensor):  # a number
        return False
    if residual.dtype != input.dtype and not torch.is_autocast_enabled(input.device.type):
        return False
    sizes = input.shape[input.dim() - residual.dim() :]
    return residual.dim() <= input.dim() and all(r in (1, s) for r, s in zip(residual.shape, sizes, strict=True))


def _call_in_graph(
    norm: nn.Module, input: Any, residual: Any, activation: str | None, negative_slope: float, reflect_pad: int | None
) -> Any:
    """The node of this call of ``norm``, with the arguments that are given."""
    following: dict[str, Any] = {} if reflect_pad is None else {"reflect_pad": reflect_pad}
    if activation is not None:
        following |= {"activation": activation, "negative_slope": negative_slope}
    args = (input,) if residual is None else (input, residual)
    return input.tracer.create_proxy("call_module", input.tracer.path_of_module(norm), args, following)


class _InstanceNormAct(nn.modules.instancenorm._InstanceNorm):
    """What the 1-D, 2-D and 3-D modules share.

    It is an InstanceNorm of PyTorch without running statistics, so that parameters, ``state_dict`` keys and code that
    looks for norms by class stay as they are.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = False,
        activation: str = "relu",
        negative_slope: float = 0.2,
        reflect_pad: int = 0,
    ) -> None:
        name = type(self).__name__
        _check.integer(name, "num_features", num_features, 1)
        _check.number(name, "eps", eps, 0)
        _check.choice(name, "activation", activation, ACTIVATIONS)
        _check.number(name, "negative_slope", negative_slope)
        _check.integer(name, "reflect_pad", reflect_pad, 0)
        super().__init__(num_features, eps=eps, affine=affine, track_running_stats=False)
        self.activation = activation
        self.negative_slope = negative_slope
        self.reflect_pad = reflect_pad

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        *,
        activation: str | None = None,
        negative_slope: float = 0.2,
        reflect_pad: int | None = None,
    ) -> Tensor:
        """The normalised, activated, padded input; ``residual`` is added before the activation.

        residual: whatever can be added; one kernel does all if it broadcasts to the input's shape, in its dtype.
        activation (with negative_slope), reflect_pad: what this call does in the place of the module's own.
        """
        if type(input) is not Tensor and isinstance(input, fx.Proxy):  # in a graph one call, as of a module of torch.nn
            return _call_in_graph(self, input, residual, activation, negative_slope, reflect_pad)
        if activation is None:
            activation, negative_slope = self.activation, self.negative_slope
        if reflect_pad is None:
            reflect_pad = self.reflect_pad
        if residual is not None and not _broadcasts(residual, input):
            z = self.forward(input, activation="none", reflect_pad=0) + residual
            if activation != "none":
                z = nnf.leaky_relu(z, negative_slope) if activation == "leaky_relu" else torch.relu(z)
            return nnf.pad(z, (reflect_pad,) * (2 * (self._get_no_batch_dim() - 1)), "reflect") if reflect_pad else z
        self._check_input_dim(input)
        unbatched = input.dim() == self._get_no_batch_dim()
        if unbatched:
            input = input.unsqueeze(0)
            residual = None if residual is None else residual.unsqueeze(0)
        if residual is not None:
            residual = residual.expand_as(input)
        if input.size(1) != self.num_features:
            message = (
                f"{type(self).__name__}: input must have {self.num_features} channels (num_features), "
                f"got shape {list(input.shape)}"
            )
            if self.affine:
                raise ValueError(message)
            warnings.warn(f"{message}; without affine parameters that changes nothing", stacklevel=2)
        y = F.instance_norm_act(
            input,
            self.weight,
            self.bias,
            residual=residual,
            activation=activation,
            negative_slope=negative_slope,
            reflect_pad=reflect_pad,
            eps=self.eps,
        )
        return y.squeeze(0) if unbatched else y

    def __prepare_scriptable__(self) -> None:
        raise RuntimeError(
            f"{type(self).__name__} cannot be compiled by torch.jit.script: script the model before "
            "fastgan.fuse, or use torch.jit.trace or torch.export"
        )

    def extra_repr(self) -> str:
        parts = [f"{self.num_features}", f"eps={self.eps}", f"affine={self.affine}", f"activation={self.activation!r}"]
        if self.activation == "leaky_relu":
            parts.append(f"negative_slope={self.negative_slope}")
        if self.reflect_pad:
            parts.append(f"reflect_pad={self.reflect_pad}")
        return ", ".join(parts)


class InstanceNormAct1d(_InstanceNormAct, nn.InstanceNorm1d):
    """:class:`InstanceNormAct2d` for [N, C, L] or [C, L]."""


class InstanceNormAct2d(_InstanceNormAct, nn.InstanceNorm2d):
    r"""``reflect_pad(act(instance_norm(x) * weight + bias + residual))`` in one kernel.

    Stands for :class:`torch.nn.InstanceNorm2d` (without running statistics), an optional residual, ReLU or LeakyReLU
    and an optional :class:`torch.nn.ReflectionPad2d`; see :func:`fastgan.functional.instance_norm_act` for the formula.

    Args:
        num_features: C of the input [N, C, H, W] or [C, H, W].
        eps: added to the variance.
        affine: learn ``weight`` and ``bias`` [C].
        activation: ``none``, ``relu`` or ``leaky_relu``.
        negative_slope: of ``leaky_relu``.
        reflect_pad: elements of reflection padding on each side of the result.

    Raises:
        TypeError, ValueError: an argument of a wrong type or value.
        ValueError: an input of other dimensions or, with affine parameters, channels;
            without them other channels are a warning, as in PyTorch.
    """


class InstanceNormAct3d(_InstanceNormAct, nn.InstanceNorm3d):
    """:class:`InstanceNormAct2d` for [N, C, D, H, W] or [C, D, H, W]."""
