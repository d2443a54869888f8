"""What a trainer is, seen from the loop, and the settings that all trainers share."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Union, get_args, get_origin, get_type_hints

from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.optim import Optimizer

from fastgan._ranges import check_choice, check_range
from fastgan.training import distributed
from fastgan.training.precision import Amp, Switch

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import Self

logger = logging.getLogger("fastgan")


class Stateful(Protocol):
    """Anything with a state: optimizers, schedules, pools, loaders, generators, averages."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


@dataclass(frozen=True)
class RunConfig:
    """Settings of a run that do not belong to an algorithm. Every "freq" counts steps unless it says otherwise."""

    name: str = "run"
    """The run's name: its files are in checkpoints_dir/name."""
    checkpoints_dir: Path = Path("runs")
    """Where runs are kept."""
    continue_train: bool = False
    """Continue the run from its newest checkpoint, exactly."""
    allow_config_change: bool = False
    """Continue although settings that change the result were changed."""
    max_steps: int | None = None
    """Stop after this many steps, whatever else says how long to train."""
    seed: int = 0
    """Seed of everything that is random."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:N."""
    num_threads: int = 2
    """Processes that load images from files; 0 loads in the main one. The result does not depend on it."""
    fused: bool = True
    """Use fastgan's fused operators; off: plain PyTorch."""
    amp: Amp = "auto"
    """Autocast: none, bf16, fp16 (with loss scaling); auto: bf16 on a GPU that has it, else none."""
    channels_last: Switch = "auto"
    """Memory format of networks and images; auto: channels last where that is faster (docs/training.md)."""
    cuda_graph: Switch = "auto"
    """Record steps as CUDA graphs and replay them; auto: on a GPU, where nothing prevents it (docs/training.md)."""
    print_freq: int = 100
    """Write the mean losses since the last time to the progress bar, stats.jsonl and TensorBoard."""
    display_freq: int = 400
    """Write a sample sheet; 0: never."""
    save_latest_freq: int = 1000
    """Save a checkpoint; 0: only as save_epoch_freq says, and at the end."""
    save_epoch_freq: int = 0
    """Save a checkpoint every this many epochs; 0: only as save_latest_freq says, and at the end."""
    eval_freq: int = 0
    """Evaluate: cyclegan on testA and testB, gan beside the data that it learns from; 0: never."""
    best_metric: str = ""
    """Keep the checkpoint that is best by this evaluated metric as well; empty: none."""
    keep: int = 3
    """How many of the newest checkpoints to keep, beside the best; 0: all."""
    nan: Literal["stop", "warn"] = "stop"
    """When something is not finite: stop without saving it, or warn and go on."""
    tensorboard: bool = True
    """Write TensorBoard events."""
    progress: bool = True
    """Show a progress bar (on a terminal) or lines."""
    dry_run: bool = False
    """Print the plan, sizes and a memory estimate, and do nothing."""

    # Settings that do not change what is computed, so that a run may continue with others. Subclasses add theirs.
    FREE: ClassVar[frozenset[str]] = frozenset(
        {
            "name", "checkpoints_dir", "continue_train", "allow_config_change", "max_steps", "device", "num_threads",
            "print_freq", "display_freq", "save_latest_freq", "save_epoch_freq", "eval_freq", "best_metric", "keep",
            "nan", "tensorboard", "progress", "dry_run", "cuda_graph",
        }
    )  # fmt: skip

    # What to say beside a setting with which a run cannot continue.
    REMARKS: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        types = _types(type(self))
        for field in dataclasses.fields(self):
            value = _as(types.get(field.name, Any), field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)

    def defaults(self) -> dict[str, Any]:
        """The settings that have a default, as JSON has them."""
        return {f.name: _plain(f.default) for f in dataclasses.fields(self) if f.default is not dataclasses.MISSING}

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.checkpoints_dir / self.name

    def given(self, *names: str) -> list[str]:
        """Those of ``names`` whose settings are not the defaults."""
        defaults = self.defaults()
        return [name for name in names if _plain(getattr(self, name)) != defaults[name]]

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON has them."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Self:
        """The settings that :meth:`to_dict` gave; those that are not known any more are left out."""
        return cls(**{field.name: saved[field.name] for field in dataclasses.fields(cls) if field.name in saved})

    def check(self) -> None:
        """Raises ValueError if a setting that all trainers share is out of its range."""
        if self.allow_config_change and not self.continue_train:
            raise ValueError("allow_config_change is for a run that is continued: set continue_train")
        if self.best_metric and not self.eval_freq:
            raise ValueError(f"best_metric {self.best_metric!r} needs evaluations: set eval_freq")
        if Path(self.name).name in ("", ".."):
            raise ValueError(f"name must be that of a folder in checkpoints_dir, got {self.name!r}")
        if not 0 <= self.seed < 2**62:
            raise ValueError(f"seed must be in [0, 2**62), got {self.seed}")
        not_negative = ("save_latest_freq", "save_epoch_freq", "display_freq", "eval_freq", "keep", "num_threads")
        for least, names in ((0, not_negative), (1, ("print_freq", "max_steps"))):
            for name in names:
                if getattr(self, name) is not None:
                    check_range(name, getattr(self, name), least=least)


def _types(config: type[Any]) -> dict[str, Any]:
    """The types of a configuration's settings; not those of a subclass that has one which only a type checker sees, or,
    in Python 3.10, ``KW_ONLY``."""
    try:
        return get_type_hints(config)
    except (NameError, TypeError):
        return _types(config.__mro__[1])


def _as(kind: Any, name: str, value: Any) -> Any:
    """``value`` as the type of setting ``name``: a path of a string, a float of an int, a tuple of a list.

    Raises:
        ValueError: it is none.
    """
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if value is None and NoneType in kinds:
        return None
    kind, *others = (each for each in kinds if each is not NoneType)
    if get_origin(kind) is Literal:
        check_choice(name, value, get_args(kind))
        return value
    of: dict[Any, tuple[Any, str]] = {
        bool: (bool, "True or False"),
        int: (Integral, "a whole number"),
        float: (Real, "a number"),
        str: (str, "a string"),
        Path: (str | os.PathLike, "a path"),
        tuple: (list | tuple, "a tuple"),
    }
    kind = get_origin(kind) or kind
    if kind not in of or others:
        return value
    types, meaning = of[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} must be {meaning}, got {value!r}")
    return kind(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value


def check_parts(networks: Mapping[str, nn.Module], batch_size: int, accumulate: int) -> None:
    """Warns where batches in parts are another step than whole ones: batch norms see a part at a time, and spectral
    norms take a step of the power iteration for each.

    Raises:
        ValueError: a batch, or a part of one, is a single sample, of which batch norm of vectors has no variance.
    """

    def trained_with(kind: type[nn.Module]) -> str:
        return ", ".join(
            name for name, net in networks.items() if net.training and any(isinstance(m, kind) for m in net.modules())
        )

    rows = -(-batch_size // accumulate)
    least = batch_size % rows or rows
    if least * distributed.size() == 1 and (names := trained_with(nn.BatchNorm1d)):
        parts = "" if accumulate == 1 else f" in parts of {rows} (accumulate {accumulate})"
        raise ValueError(
            f"batch_size: batch norm (in {names}) has no variance of one sample, got {batch_size}{parts}; expected at "
            "least 2 in each"
        )
    if accumulate == 1 or not distributed.is_main():
        return
    if names := trained_with(nn.modules.batchnorm._BatchNorm):
        logger.warning(
            "accumulate %d: batch norm (in %s) takes mean and variance of each part of %d samples, not of all %d",
            *(accumulate, names, rows, batch_size),
        )
    if names := trained_with(_SpectralNorm):
        logger.warning(
            "accumulate %d: spectral norm (in %s) takes a step of its power iteration for each part, not once a batch",
            *(accumulate, names),
        )


@contextlib.contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """In this context the networks are in evaluation mode; afterwards each is in its own again."""
    modes = [network.training for network in networks]
    try:
        for network in networks:
            network.eval()
        yield
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)


class Task(abc.ABC):
    """A trainer: networks, everything else that has a state, and what one step does.

    A subclass fills ``networks`` and ``stateful`` when it is built (before which nothing is written anywhere), and
    defines :meth:`step`. ``networks`` are the bare modules, never DistributedDataParallel; their order is that in
    which the NaN watch looks at them. All that must survive a restart is in the two dicts.
    """

    config: RunConfig
    networks: dict[str, nn.Module]
    stateful: dict[str, Stateful]
    facts: Mapping[str, Any] = MappingProxyType({})  # what else decides the result, in which a run must not change
    total_steps: int
    items_per_step: int  # of this process, for images/s

    @abc.abstractmethod
    def step(self) -> dict[str, Tensor]:
        """One step: takes the batches it needs, updates, returns detached scalar losses in order of computation.

        It must not wait for the device.
        """

    def restored(self) -> None:  # noqa: B027 -- most have nothing to do
        """Called when the states of networks and parts were replaced by saved ones."""

    @property
    def epoch(self) -> int:
        """Epochs that are complete."""
        return 0

    def total_after(self, step: int) -> int:
        """The steps of the whole run, ``step`` of which are done: others than at its beginning where epochs have other
        batches now."""
        return self.total_steps

    def optimizers(self) -> dict[str, Optimizer]:
        """The optimizers among ``stateful``."""
        return {name: value for name, value in self.stateful.items() if isinstance(value, Optimizer)}

    def sheet(self) -> Image.Image | None:
        """A sample sheet of fixed inputs. Draws nothing from a generator that training uses."""
        return None

    def evaluate(self) -> dict[str, float]:
        """Metrics, on held-out data where there are any. Draws nothing from a generator that training uses.

        Every process calls it; what the main one gets counts.
        """
        return {}

    def plan(self) -> dict[str, str]:
        """What a dry run prints; entries with a setting's name stand in its place."""
        return {}

    def close(self) -> None:  # noqa: B027 -- most have nothing to end
        """Ends loader processes and the like."""
