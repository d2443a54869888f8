"""What a run writes and shows: stats.jsonl, TensorBoard events, a progress bar."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from fastgan._output import atomic_write, naming

if TYPE_CHECKING:
    from PIL import Image


class _Patient(Console):
    """A console that is silent once nobody reads it: a run does not end of that."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


STATS = "stats.jsonl"
console = _Patient(stderr=True, highlight=False, markup=False)


class Stats:
    """``stats.jsonl``: one JSON object a line, appended. NaN and infinities are written as strings.

    Args:
        path: the file.
        step: keep only what was logged up to this step: a continued run writes the rest again.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = [line for line in lines(path) if line["step"] <= step]
        with atomic_write(path) as file:
            file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def write(self, values: dict[str, Any]) -> None:
        with naming(self._path):
            self._file.write(json.dumps(as_json_numbers(values)) + "\n")
            self._file.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of a line that could not be written, which was told then
            self._file.close()


def as_json_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with NaN and infinities, which JSON has not, as strings."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a stats file; a line that a killed process left unfinished is dropped.

    Raises:
        ValueError: a file of something else.
    """
    texts = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            if number == len(texts):
                break
            line = None
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise ValueError(
                f'{path}: line {number} must be a JSON object with a whole number "step", got {text[:80]!r}'
            )
        found.append(line)
    return found


def read_stats(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``stats.jsonl``, NaN and infinities as floats again."""
    special = {"nan", "inf", "-inf"}
    return [{k: float(v) if v in special else v for k, v in line.items()} for line in lines(path)]


class TensorBoard:
    """Events for TensorBoard in ``folder``; what was written after ``step`` is hidden."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._folder = folder
        with naming(folder):
            self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        with naming(self._folder):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def image(self, step: int, sheet: Image.Image) -> None:
        import numpy as np

        with naming(self._folder):
            self._writer.add_image("samples", np.asarray(sheet), step, dataformats="HWC")

    def close(self) -> None:
        with naming(self._folder):
            self._writer.close()


class _WithLosses(Progress):
    """A progress bar with a line of text below, which may be longer than the terminal is wide."""

    losses = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.losses:
            yield Text(self.losses)


class Bar:
    """A progress bar with losses, images/s and the time left; without a terminal, a line at every log."""

    def __init__(self, total: int, step: int, show: bool) -> None:
        self._terminal = show and console.is_terminal
        self._lines = show and not console.is_terminal
        self.total = total
        self._progress = _WithLosses(
            BarColumn(24),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._terminal,
        )
        self._task = self._progress.add_task("", total=total, completed=step)
        self._progress.start()

    def advance(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def log(self, step: int, values: dict[str, float], rate: float, seconds_left: float) -> None:
        text = " ".join(f"{name} {value:.3g}" for name, value in values.items())
        self._progress.losses = text
        self._progress.update(self._task, description=f"{rate:.3g} img/s")
        if self._lines:
            line = f"step {step}/{self.total}  {rate:.3g} img/s  left {clock(seconds_left)}  {text}"
            console.print(line, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()


def clock(seconds: float) -> str:
    """A duration as h:mm:ss."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
