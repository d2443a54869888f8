"""The gradient of critics for their samples; refusals of those that have none, or whose would mean nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastgan.functional import _check, _piecewise
from fastgan.functional._autocast import NOTHING, without_autocast

Critic = Callable[..., Tensor]
_NORMALISES = (
    "normalises over the batch, so each score depends on every sample and a per-sample gradient has no meaning. Use "
    "layer or instance normalisation in the critic"
)
_MIXES = (
    "mixes the samples of a batch, so each score depends on every sample and a per-sample gradient has no meaning. "
    "Leave it out of the critic"
)


def input_gradient(
    critic: Critic,
    points: Tensor,
    *,
    grad_scale: float = 1.0,
    allow_batch_mixing: bool = False,
    critic_args: Sequence[Any] = (),
    operator: str = "input_gradient",
) -> Tensor:
    """The gradient of each sample's summed scores for that sample, itself differentiable for the critic's parameters.

    Args:
        points: [N, ...]; detached.
        operator: the name that errors begin with.

    Returns:
        [N, ...], points' shape, in at least float32. The other arguments and the errors are those of
        :func:`gradient_penalty`.
    """
    if not callable(critic):
        raise TypeError(f"{operator}: critic must be a module or a function, got {type(critic).__name__}")
    check_critic_args(operator, critic_args)
    _check.number(operator, "grad_scale", grad_scale)
    if grad_scale <= 0:
        raise ValueError(f"{operator}: grad_scale must be positive, got {grad_scale!r}")
    way_out = ", or pass allow_batch_mixing=True."
    if not allow_batch_mixing:
        refuse_batch_mixing(operator, critic, way_out)
    create_graph = torch.is_grad_enabled()
    inference = torch.is_inference_mode_enabled()  # its tensors have no gradients
    with torch.inference_mode(False) if inference else NOTHING, NOTHING if create_graph else torch.enable_grad():
        points = _recordable(points).detach().requires_grad_()
        with _piecewise.activations():
            scores = critic(points, *map(_recordable, critic_args))
        if not isinstance(scores, Tensor):
            raise TypeError(f"{operator}: critic must return a Tensor of scores, got {type(scores).__name__}")
        if not scores.requires_grad:
            raise RuntimeError(
                f"{operator}: the critic's scores do not depend on its input (were they detached, or computed under "
                "no_grad?)"
            )
        if not allow_batch_mixing and not torch.compiler.is_compiling():
            refuse_recorded_batch_norm(operator, scores, critic_args, way_out)
        if create_graph and type(scores.grad_fn).__name__ == "CompiledFunctionBackward":
            raise RuntimeError(
                f"{operator}: a critic under torch.compile has no double backward. Give the network that was compiled, "
                "keep this call out of a compiled step (torch.compiler.disable), or compile "
                "fastgan.training.critic_step.critic_gradients instead. (For the value alone: torch.no_grad().)"
            )
        # Its operations have the dtypes of the forward pass.
        with without_autocast(points.device.type):
            (gradient,) = torch.autograd.grad(
                scores,
                points,
                grad_outputs=torch.full_like(scores, grad_scale),
                create_graph=create_graph,
                allow_unused=True,
            )
    if gradient is None:
        raise RuntimeError(f"{operator}: the critic's scores do not depend on its input")
    if create_graph and not gradient.requires_grad:
        raise RuntimeError(
            f"{operator}: the gradient of the critic's scores is cut off from the graph, so the penalty would train "
            "nothing. Known causes: a critic under torch.compile (compile "
            "fastgan.training.critic_step.critic_gradients instead), a layer whose backward is not "
            "differentiable, or a critic without trainable parameters (for the value alone, call this under "
            "torch.no_grad())."
        )
    if gradient.dtype in (torch.float16, torch.bfloat16):
        gradient = gradient.float()
    return gradient if grad_scale == 1.0 else gradient / grad_scale


def _recordable(argument: Any) -> Any:
    """``argument``, or a copy that autograd may keep if it is a tensor of an inference mode."""
    return argument.clone() if isinstance(argument, Tensor) and argument.is_inference() else argument


def check_critic_args(operator: str, critic_args: Sequence[Any]) -> None:
    if not isinstance(critic_args, (tuple, list)):  # a tensor would be taken apart into its rows
        raise TypeError(f"{operator}: critic_args must be a tuple of arguments, got {type(critic_args).__name__}")


class _WithoutBatchNorm(TorchFunctionMode):
    """Refuses the function batch_norm in the call of a critic."""

    def __init__(self, operator: str) -> None:
        super().__init__()
        self.operator = operator

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (nnf.batch_norm, torch.batch_norm):
            input = args[0] if args else kwargs["input"]
            training = args[5] if len(args) > 5 else kwargs.get("training", False)
            if training and len(input) > 1:  # a batch of one is what adaptive instance norm is made with
                raise ValueError(f"{self.operator}: the critic {_NORMALISES}.")
        return func(*args, **kwargs)


def refuse_recorded_batch_norm(operator: str, scores: Tensor, critic_args: Sequence[Any], way_out: str = ".") -> None:
    """Raises ValueError if batch normalisation is recorded between the critic's arguments and ``scores``.

    Whoever called it: a helper, a module in a list, a script that has not been optimised yet, which hides its calls.
    """
    nodes = [scores.grad_fn]
    seen = {*nodes, *(a.grad_fn for a in critic_args if isinstance(a, Tensor)), None}
    for node in nodes:  # which grows
        assert node is not None
        normalises = "BatchNorm" in node.name() and getattr(node, "_saved_training", True)
        if normalises and node._input_metadata[0].shape[0] > 1:  # adaptive instance norm is made with a batch of one
            raise ValueError(f"{operator}: the critic {_NORMALISES}{way_out}")
        for earlier, _ in node.next_functions:
            if earlier not in seen:
                seen.add(earlier)
                nodes.append(earlier)


def without_batch_mixing(operator: str, critic: nn.Module) -> AbstractContextManager[Any]:
    """:func:`refuse_batch_mixing`, and a context to call ``critic`` in, where its own calls of batch_norm raise it too.

    For where nothing is recorded: in a compiler or a transform.
    """
    modules = refuse_batch_mixing(operator, critic, ".")
    # Not without a reason: each call would take longer, and torch.compile cannot trace some of Tensor's methods
    # (unflatten, split) while they are watched.
    watched = any(_names_batch_norm(type(m)) for m in modules)
    return _WithoutBatchNorm(operator) if watched else NOTHING


def refuse_batch_mixing(operator: str, critic: Critic, way_out: str) -> list[nn.Module]:
    """Raises ValueError, from ``operator`` to ``way_out``, if ``critic`` is a module whose scores depend on the batch.

    Those are batch normalisation in training mode, and any layer with an attribute ``mixes_samples`` that is true.

    Returns:
        The modules that have been looked at.
    """
    if not isinstance(critic, nn.Module):
        return []
    modules = [critic]
    for module in modules:  # which grows: this is asked in every step, and modules() takes five times as long
        reason = _mixing(module)
        if reason is not None:
            name = next(name for name, other in critic.named_modules() if other is module)
            raise ValueError(f"{operator}: {type(module).__name__} {name!r} {reason}{way_out}")
        modules += [child for child in module._modules.values() if child is not None]
    return modules


_name_batch_norm: dict[type[nn.Module], bool] = {}


def _names_batch_norm(cls: type[nn.Module]) -> bool:
    """Whether a method of ``cls`` names the function."""
    if cls not in _name_batch_norm:
        own = [base for base in cls.__mro__ if not base.__module__.startswith("torch.")]
        codes = [value.__code__ for base in own for value in vars(base).values() if hasattr(value, "__code__")]
        _name_batch_norm[cls] = any("batch_norm" in code.co_names for code in codes)
    return _name_batch_norm[cls]


# What torch.compiler.assume_constant_result does, which would import the compiler with fastgan.
_names_batch_norm._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _mixing(module: nn.Module) -> str | None:
    """How ``module`` by itself mixes samples, or None."""
    norm: Any = module
    is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    if isinstance(module, torch.jit.ScriptModule):
        is_norm = "BatchNorm" in getattr(module, "original_name", "")
    if is_norm and (norm.training or norm.running_mean is None):
        return _NORMALISES
    # getattr alone is slow for a module without the attribute.
    if ("mixes_samples" in module.__dict__ or hasattr(type(module), "mixes_samples")) and module.mixes_samples:
        return _MIXES
    return None
