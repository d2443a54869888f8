"""What the autograd Functions of the fused operators have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from fastgan.kernels import layout


class Fused(torch.autograd.Function):
    """A pass of the fused operator ``operator``: forward, backward or double backward.

    Where a pass has no rule of its own, vmap runs it for each of the batch in turn, and a derivative of it is refused
    by the operator's name.

    keeps: whether ``forward`` has results that only the backward pass needs, of each of which autograd takes a
    microsecond as an output. Its last argument ``kept`` then says where they go: into this list, for ``setup_context``
    to find, and then a kernel may be called on all tensors as they are; among the outputs (True), where a transform or
    a mode must see them; nowhere (False): nothing is recorded.
    """

    operator: str
    keeps = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        rules: dict[str, Callable[..., Any]] = {
            "vmap": functools.partial(one_by_one, cls),
            "backward": _refusing(cls.operator, "a third derivative"),
            "jvp": _refusing(cls.operator, "forward mode over a derivative"),
        }
        for name, rule in rules.items():
            if name not in vars(cls):
                setattr(cls, name, staticmethod(rule))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keeps nothing, for a derivative that is refused."""


def keep(results: tuple[Any, ...], outputs: int, kept: list[Any] | bool) -> tuple[Any, ...]:
    """What a ``forward`` that ``keeps`` returns of ``results``, of which ``outputs`` are for its caller."""
    if kept is True:
        return results
    if kept is not False:
        kept += results[outputs:]
    return results[:outputs]


def kept_of(ctx: Any, output: tuple[Any, ...], outputs: int, kept: list[Any] | bool) -> Sequence[Any]:
    """In ``setup_context``: what :func:`keep` was told to keep."""
    if isinstance(kept, list):
        return kept
    rest = output[outputs:]
    ctx.mark_non_differentiable(*[t for t in rest if t is not None])
    return rest


def _refusing(operator: str, what: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any) -> NoReturn:
        raise NotImplementedError(
            f"{operator}: {what} is not supported by the fused kernels; run it under fastgan.use_backend('reference')"
        )

    return refuse


def one_by_one(function: type[torch.autograd.Function], info: Any, in_dims: Sequence[Any], *args: Any) -> Any:
    """A vmap rule: ``function.apply`` for each of the batch in turn, as PyTorch does for operators without a rule."""
    size = info.batch_size

    def slice_of(argument: Any, dim: int | None, k: int) -> Any:
        if not isinstance(argument, torch.Tensor) or dim is None:
            return argument
        # Nothing has no first: its sum, zeros, stands for one, of which the results' shapes are known.
        one = argument.select(dim, k) if size else argument.sum(dim, dtype=argument.dtype)
        return layout.dense(one, layout.is_channels_last(one))

    each = [function.apply(*[slice_of(*a, k) for a in zip(args, in_dims, strict=True)]) for k in range(size or 1)]
    if isinstance(each[0], torch.Tensor):
        return torch.stack(each)[:size], 0
    results = tuple([None if of_all[0] is None else torch.stack(of_all)[:size] for of_all in zip(*each, strict=True)])
    return results, tuple([None if result is None else 0 for result in results])
