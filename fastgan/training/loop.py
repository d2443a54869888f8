"""The training loop: drives a task, logs, samples, evaluates, saves, resumes and stops cleanly.

A run's folder::

    config.json                          the settings
    stats.jsonl                          mean losses, learning rates, evaluations: one line a log
    events/                              TensorBoard
    sheets/step-XXXXXXXX.png             samples
    checkpoints/step-XXXXXXXX.safetensors

Ctrl-C (SIGINT), SIGTERM, or the SIGHUP of a terminal that is closed lets the running step finish, saves a checkpoint
and ends with ``Outcome.signal`` set; the command line then exits with 128 + signal (130 after Ctrl-C). A second Ctrl-C
interrupts at once. Under ``nohup`` a SIGHUP does nothing.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.text import Text
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fastgan._output import atomic_write, locked, make_folder
from fastgan.data import DataError
from fastgan.training import distributed, random, schedule
from fastgan.training.checkpoint import CheckpointError, Checkpoints, read
from fastgan.training.log import STATS, Bar, Stats, TensorBoard, console, lines
from fastgan.training.task import RunConfig, Task
from fastgan.training.watch import Bad, Meter, listed, not_finite

# Settings in which the processes of one run may differ.
_OWN = ("dataroot", "pretrained", "cache", "device", "num_threads", "progress")
_HIGHER_IS_BETTER = ("psnr", "ssim", "modes", "coverage", "inception", "accuracy", "high_quality")


class RunError(RuntimeError):
    """A run that cannot begin or continue; nothing was overwritten."""


class NotFiniteError(RuntimeError):
    """Losses or weights became NaN or infinite, and the run was told to stop then."""


@dataclass
class Outcome:
    """How a run ended."""

    step: int
    folder: Path
    signal: int = 0  # the signal that stopped it, or 0
    losses: dict[str, float] = field(default_factory=dict)  # the last logged means


@dataclass
class _Progress:
    step: int = 0
    seconds: float = 0.0  # trained, over all restarts
    best: dict[str, Any] | None = None  # metric, value, step
    evaluated: int = 0  # the last step that was, and whose scores are in stats.jsonl


def fit(task: Task) -> Outcome:
    """Runs ``task`` to its end, from its newest checkpoint if the run is continued.

    Raises:
        RunError: the folder holds another run, or another process trains there, or the configuration changed.
        CheckpointError: the checkpoint to continue from is corrupt.
        NotFiniteError: see ``RunConfig.nan``.
    """
    config = task.config
    config.check()
    if config.dry_run:
        show_plan(task)
        return Outcome(0, config.folder)
    _check_processes(config)
    with _alone(config.folder):
        return _run(task)


def _run(task: Task) -> Outcome:
    config = task.config
    checkpoints = Checkpoints(config.folder / "checkpoints", config.keep)
    progress = _begin(task, checkpoints)
    total = task.total_after(progress.step)
    stop_at = total if config.max_steps is None else min(total, config.max_steps)
    log = _Log(task, progress, stop_at)
    meter, agree = Meter(), distributed.Agreement()
    saved = progress.step if checkpoints.steps() else -1
    stop = 0
    try:
        with _signals() as received:
            if progress.step:  # what the process before was to do behind its checkpoint may be missing
                if _evaluates(config, progress.step, stop_at) and progress.evaluated < progress.step:
                    _judge(task, checkpoints, progress, log)
                if _shows(config, progress.step, stop_at) and not log.sheet_at(progress.step).exists():
                    log.sheet(task, progress.step)
            while progress.step < stop_at and not (stop := agree(received.number)):
                epoch = task.epoch
                started = time.perf_counter()
                try:
                    losses = task.step()
                except DataError:  # an image that cannot be read: what was learned until then is kept
                    if saved != progress.step and distributed.size() == 1:
                        log.flush(task, progress, meter)
                        _save(task, checkpoints, progress)
                    raise
                progress.step += 1
                step = progress.step
                meter.add(step, losses)
                progress.seconds += time.perf_counter() - started
                log.bar.advance(step)
                last = step == stop_at
                save = last or _due(step, config.save_latest_freq)
                save = save or (task.epoch > epoch and _due(task.epoch, config.save_epoch_freq))
                evaluate = _evaluates(config, step, stop_at)
                # What is not finite must not be saved, so saving looks at the losses first.
                if save or evaluate or last or _due(step, config.print_freq):
                    log.flush(task, progress, meter)
                if save:  # before what may fail
                    _save(task, checkpoints, progress)
                    saved = step
                if evaluate and _judge(task, checkpoints, progress, log):
                    saved = step
                if _shows(config, step, stop_at):
                    log.sheet(task, step)
            stop = max(stop, agree.settle(received.number))
            if stop and saved != progress.step:
                log.flush(task, progress, meter)
                _save(task, checkpoints, progress)
        if config.progress and distributed.is_main():
            how = "stopped" if stop else "done"
            again = "; --continue_train goes on" if progress.step < total else ""
            console.print(f"{how} after step {progress.step}: everything is in {config.folder}{again}", soft_wrap=True)
        return Outcome(progress.step, config.folder, stop, log.last)
    finally:
        log.close()
        task.close()


def show_plan(task: Task) -> None:
    """Prints what a run of ``task`` would take, then the settings; an empty one says nothing."""
    from rich.table import Table

    if distributed.is_main():
        table = Table(title=f"Plan of {task.config.folder}", title_justify="left", show_header=False)
        settings, plan = task.config.to_dict(), task.plan()
        for name, value in plan.items():
            if name not in settings:
                table.add_row(name, value)
        table.add_section()
        for name, value in settings.items():
            table.add_row(name, plan.get(name, "" if value in (None, [], "") else str(value)))
        console.print(table)


def _due(count: int, freq: int) -> bool:
    return freq > 0 and count % freq == 0


def _evaluates(config: RunConfig, step: int, stop_at: int) -> bool:
    return config.eval_freq > 0 and (step == stop_at or _due(step, config.eval_freq))


def _shows(config: RunConfig, step: int, stop_at: int) -> bool:
    return config.display_freq > 0 and (step == stop_at or _due(step, config.display_freq))


# --- begin, save, resume ------------------------------------------------------------------------------------------


def _check_processes(config: RunConfig) -> None:
    """Raises RunError if the processes of this run were started with different settings."""
    shared = {name: value for name, value in config.to_dict().items() if name not in _OWN}
    for rank, others in enumerate(distributed.gather(shared)):
        if others != shared:
            names = ", ".join(sorted(name for name in shared if others[name] != shared[name]))
            raise RunError(f"process {rank} was started with another {names} than process {distributed.rank()}")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Makes the run's folder, and keeps other runs out of it."""
    if not distributed.is_main():
        yield
        return
    make_folder("checkpoints_dir/name", folder)
    with locked(folder / ".lock") as ours:
        if not ours:
            raise RunError(f"another process is training in {folder}; choose another name (--name)")
        yield


def _begin(task: Task, checkpoints: Checkpoints) -> _Progress:
    """Checks the folder and the configuration, then restores the run or begins it."""
    config = task.config
    steps = checkpoints.steps()
    progress = _Progress()
    logged = lines(config.folder / STATS)  # raises if that is no run's
    if (steps or logged) and not config.continue_train:
        what = f"a run with checkpoints up to step {steps[-1]}" if steps else f"a run's {STATS} and no checkpoint"
        raise RunError(
            f"{config.folder} holds {what}; {'continue it' if steps else 'begin it again'} (--continue_train), or "
            "choose another name (--name)"
        )
    if steps:
        path = checkpoints.path(steps[-1])
        try:
            tree = read(path)
        except CheckpointError as error:
            older = f"; remove it to continue from step {steps[-2]}" if len(steps) > 1 else ""
            raise CheckpointError(f"{error}{older}") from error
        changed = check_config(tree["config"], config, path, task.facts)
        load_state(task, tree["state"], path, keep_settings=changed)
        scored = (line["step"] for line in logged if "images_per_second" not in line and line["step"] <= tree["step"])
        progress = _Progress(tree["step"], tree["seconds"], tree["best"], max(scored, default=0))
        states = tree["random"]
        random.set_state(states[distributed.rank() % len(states)])
        if config.progress and distributed.is_main():
            console.print(f"continuing {config.folder} after step {progress.step}", soft_wrap=True)
    distributed.barrier()  # every process has read before one writes
    if distributed.is_main():
        checkpoints.clean()
        with atomic_write(config.folder / "config.json") as file:
            file.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
    return progress


def check_config(saved: dict[str, Any], config: RunConfig, path: Path, facts: Mapping[str, Any] | None = None) -> bool:
    """Whether the configuration, or the task's ``facts``, would compute something else than what is saved in ``path``;
    refuses it unless told.

    Raises:
        RunError: with the differences.
    """
    # An option that was not there yet did nothing; facts that were not written down are taken to be the same.
    saved = {"processes": 1, **config.defaults(), **(facts or {}), **saved}
    now = json.loads(json.dumps({**config.to_dict(), **_facts(facts)}))
    changed = [
        f"  {name}: {saved.get(name, '(absent)')!r} -> {now.get(name, '(absent)')!r}{config.REMARKS.get(name, '')}"
        for name in sorted(saved.keys() | now.keys())
        if name not in config.FREE and (name not in saved or name not in now or saved[name] != now[name])
    ]
    if changed and not config.allow_config_change:
        raise RunError(
            f"the configuration differs from that of {path}:\n"
            + "\n".join(changed)
            + "\nContinue all the same with --allow_config_change, or start another run (--name)"
        )
    return bool(changed)


def _facts(facts: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"processes": distributed.size(), **(facts or {})}


def state(task: Task) -> dict[str, Any]:
    """The state of a task."""
    return {
        "networks": {name: network.state_dict() for name, network in task.networks.items()},
        "stateful": {name: value.state_dict() for name, value in task.stateful.items()},
    }


def load_state(task: Task, saved: dict[str, Any], path: Path, keep_settings: bool = False) -> None:
    """Restores what :func:`state` gave.

    Args:
        task: gets the state.
        saved: what :func:`state` gave.
        path: where it comes from, for messages.
        keep_settings: keep the optimizers' settings (learning rate, betas, …) as the task was built with, because its
            configuration was changed; learning rates are those of the schedule at the saved point.

    Raises:
        CheckpointError: it is the state of something else.
    """
    parts: dict[str, dict[str, Any]] = {"networks": dict(task.networks), "stateful": dict(task.stateful)}
    for kind, named in parts.items():
        missing, extra = sorted(named.keys() - saved[kind].keys()), sorted(saved[kind].keys() - named.keys())
        wrong = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has {', '.join(extra)} too many"] * bool(extra)
        if wrong:
            raise CheckpointError(f"{path} does not fit: of {kind}, it {' and '.join(wrong)}")
    for kind, named in parts.items():
        for name, part in named.items():
            _load(part, saved[kind][name], keep_settings, f"{path} does not fit {name}")
    task.restored()


def _load(part: Any, saved: Any, keep_settings: bool, complaint: str) -> None:
    settings = [dict(group, params=None) for group in part.param_groups] if isinstance(part, Optimizer) else []
    try:
        for own, group in zip(settings, saved["param_groups"] if settings else [], strict=False):
            # Versions of PyTorch add settings, or know fewer: another kind of optimizer does both.
            if own.keys() - group.keys() and group.keys() - own.keys():
                raise ValueError(f"it holds another kind of optimizer than {type(part).__name__}")
        if isinstance(part, LRScheduler):
            schedule.load(part, saved, keep_settings)
        else:
            part.load_state_dict(saved)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        first, *rest = [line.strip().rstrip(".") for line in str(error).splitlines()]
        more = f" {rest[0]}" + (f" (and {len(rest) - 1} more)" if len(rest) > 1 else "") if rest else ""
        raise CheckpointError(f"{complaint}: {first}{more}") from error
    if isinstance(part, Optimizer):
        _match_formats(part)
    if keep_settings and isinstance(part, Optimizer):
        for group, own in zip(part.param_groups, settings, strict=True):
            scheduled = "initial_lr" in own and group.get("initial_lr")
            factor = group["lr"] / group["initial_lr"] if scheduled else 1.0
            group.update({k: v for k, v in own.items() if k != "params"})
            group["lr"] = own.get("initial_lr", own["lr"]) * factor


def _match_formats(optimizer: Optimizer) -> None:
    """Gives loaded moments their parameters' strides, which fused optimizers rely on."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.dim() > 0:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _save(task: Task, checkpoints: Checkpoints, progress: _Progress) -> None:
    """Saves a checkpoint.

    Raises:
        NotFiniteError: losses were finite, and weights are not any more; the run was told to stop then.
    """
    # Gradients may be infinite: fp16's loss scaling leaves such steps out.
    bad = not_finite(task.networks, gradients=False) if task.config.nan == "stop" else []
    if any(distributed.gather(bool(bad))):
        what = listed(bad) if bad else "weights of another process"
        raise NotFiniteError(
            f"stopped at step {progress.step}, nothing of it saved: not finite now: {what} (--nan warn goes on)"
        )
    tree = {
        "step": progress.step,
        "seconds": progress.seconds,
        "best": progress.best,
        "config": {**task.config.to_dict(), **_facts(task.facts)},
        "state": state(task),  # by every process: a part may need the others'
        "random": distributed.gather(random.get_state()),
    }
    if distributed.is_main():
        checkpoints.save(progress.step, tree, progress.best["step"] if progress.best else None)
    distributed.barrier()


def _judge(task: Task, checkpoints: Checkpoints, progress: _Progress, log: _Log) -> bool:
    """Evaluates; whether that saved the checkpoint, as the best so far."""
    metrics = _best(task, task.config, progress)
    best = progress.best is not None and progress.best["step"] == progress.step
    if best:
        _save(task, checkpoints, progress)
    log.metrics(progress, metrics)  # last: a step that is logged is not evaluated again
    return best


def _best(task: Task, config: RunConfig, progress: _Progress) -> dict[str, float]:
    """Evaluates, and remembers the step if it is the best so far."""
    # Those of one process: who thought another step the best would wait for the others for ever.
    metrics: dict[str, float] = distributed.gather(task.evaluate())[0]
    if config.best_metric:
        if config.best_metric not in metrics:
            raise RunError(f"best_metric must be one of {', '.join(metrics) or 'none'}, got {config.best_metric!r}")
        value = metrics[config.best_metric]
        sign = -1 if config.best_metric.startswith(_HIGHER_IS_BETTER) else 1
        best = progress.best if progress.best and progress.best["metric"] == config.best_metric else None
        if math.isfinite(value) and (best is None or sign * value < sign * best["value"]):
            progress.best = {"metric": config.best_metric, "value": value, "step": progress.step}
    return metrics


# --- log ----------------------------------------------------------------------------------------------------------


class _Log:
    """Everything that the main process writes and shows; the others only take part in the reductions."""

    def __init__(self, task: Task, progress: _Progress, stop_at: int) -> None:
        config = task.config
        self.config = config
        self.last: dict[str, float] = {}
        self._main = distributed.is_main()
        self._begun = progress.step, progress.seconds
        self._rates = _rates(task)
        self.bar = Bar(stop_at, progress.step, config.progress and self._main)
        self._stats = Stats(config.folder / STATS, progress.step) if self._main else None
        self._board = (
            TensorBoard(config.folder / "events", progress.step) if self._main and config.tensorboard else None
        )

    def flush(self, task: Task, progress: _Progress, meter: Meter) -> None:
        started = time.perf_counter()
        means, bad = meter.flush()  # waits for the device: that time belongs to the steps
        progress.seconds += time.perf_counter() - started
        if bad is not None or not all(map(math.isfinite, means.values())):
            self._not_finite(task, progress.step, bad)
        self.last = means or self.last
        step, seconds = progress.step - self._begun[0], progress.seconds - self._begun[1]
        self._begun = progress.step, progress.seconds
        if not self._main or step == 0:
            return
        rate = step * task.items_per_step * distributed.size() / max(seconds, 1e-9)
        left = (self.bar.total - progress.step) * seconds / step
        rates, self._rates = self._rates, _rates(task)  # those that these steps began with: an epoch's end changes them
        self.bar.log(progress.step, means, rate, left)
        self._write(progress, {"epoch": task.epoch, **means, **rates, "images_per_second": rate})

    def metrics(self, progress: _Progress, metrics: dict[str, float]) -> None:
        if self._main:
            if self.config.progress:
                scores = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
                best = progress.best and progress.best["step"] == progress.step
                note = f"  best {self.config.best_metric} so far" if best else ""
                console.print(f"step {progress.step} evaluated  {scores}{note}", soft_wrap=True)
            self._write(progress, metrics)

    def sheet(self, task: Task, step: int) -> None:
        image = task.sheet() if self._main else None
        if image is not None:
            path = self.sheet_at(step)
            path.parent.mkdir(exist_ok=True)
            with atomic_write(path) as file:
                image.save(file)
            if self._board:
                self._board.image(step, image)

    def sheet_at(self, step: int) -> Path:
        return self.config.folder / "sheets" / f"step-{step:08d}.png"

    def _write(self, progress: _Progress, values: dict[str, float]) -> None:
        if self._stats:
            self._stats.write({"step": progress.step, "seconds": round(progress.seconds, 3), **values})
        if self._board:
            self._board.scalars(progress.step, values)

    def _not_finite(self, task: Task, step: int, bad: Bad | None) -> None:
        found = not_finite(task.networks)
        text = f"{bad or 'the sum of a loss is not finite'}" + (
            f"; not finite now: {listed(found)}" if found else "; all weights are finite"
        )
        if self.config.nan == "stop":
            raise NotFiniteError(f"stopped at step {step}, nothing of it saved: {text} (--nan warn goes on)")
        if self._main:
            console.print(Text.assemble(("warning: ", "bold red"), text), soft_wrap=True)

    def close(self) -> None:
        self.bar.close()
        if self._stats:
            self._stats.close()
        if self._board:
            self._board.close()


def _rates(task: Task) -> dict[str, float]:
    """The learning rates, as they are logged."""
    optimizers = {name.removeprefix("optimizer_"): optimizer for name, optimizer in task.optimizers().items()}
    return {f"lr_{name}": float(optimizer.param_groups[0]["lr"]) for name, optimizer in optimizers.items()}


# --- signals ------------------------------------------------------------------------------------------------------


@dataclass
class _Received:
    number: int = 0


@contextmanager
def _signals() -> Iterator[_Received]:
    """Notes SIGINT, SIGTERM and SIGHUP instead of dying of them; a second SIGINT raises KeyboardInterrupt."""
    received, terminal = _Received(), console.is_terminal
    noted = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which nohup sets
        noted.append(signal.SIGHUP)

    def note(number: int, frame: FrameType | None) -> None:
        if received.number == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.number = number
        if number not in (signal.SIGINT, signal.SIGTERM):
            console.quiet = terminal  # which is gone, and writing to it an error
        console.print(f"{signal.Signals(number).name}: finishing the step and saving", soft_wrap=True)

    try:
        previous = {number: signal.signal(number, note) for number in noted}
    except ValueError:  # not in the main thread: signals are someone else's
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
