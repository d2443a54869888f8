"""The loop: logs, exact resume, kills, interrupts, refusals, the NaN watch."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fastgan.data import DataError
from fastgan.training import checkpoint, log, loop, schedule
from fastgan.training.log import read_stats
from tests.training.toy import Toy, quiet

STEPS = 20  # 7 items in batches of 2: 4 batches an epoch, 5 epochs


def losses(folder: Path) -> list[tuple[int, float, float]]:
    lines = read_stats(folder / "run" / "stats.jsonl")
    return [(line["step"], line["loss"], line["lr_optimizer"]) for line in lines if "loss" in line]


def run(folder: Path, **settings: object) -> loop.Outcome:
    return loop.fit(Toy(quiet(folder, **settings)))


def final(folder: Path) -> dict[str, torch.Tensor]:
    path = checkpoint.locate(folder / "run")
    tree = checkpoint.read(path)
    tree = {k: tree[k] for k in ("step", "state", "random")}
    document, tensors = checkpoint.flatten(tree)
    return {"document": json.dumps(document), **tensors}


def assert_same(a: Path, b: Path) -> None:
    assert losses(a) == losses(b)
    left, right = final(a), final(b)
    assert left.keys() == right.keys()
    assert left.pop("document") == right.pop("document")
    for name in left:
        assert torch.equal(left[name], right[name]), name


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """An uninterrupted run."""
    outcome = run(tmp_path / "whole")
    assert outcome.step == STEPS
    assert outcome.signal == 0
    return tmp_path / "whole"


def test_writes_what_it_promises(tmp_path: Path) -> None:
    run(tmp_path, display_freq=8, tensorboard=True, print_freq=5)
    folder = tmp_path / "run"
    lines = read_stats(folder / "stats.jsonl")
    assert [line["step"] for line in lines] == [4, 5, 8, 10, 12, 15, 16, 20]
    assert {"step", "seconds", "epoch", "loss", "twice", "lr_optimizer", "images_per_second"} == set(lines[0])
    # An epoch's last line has the rate that its steps took, not the next epoch's.
    assert [20 * line["lr_optimizer"] for line in lines] == pytest.approx([1, 1, 1, 0.75, 0.75, 0.5, 0.5, 0.25])
    assert all(line["twice"] == pytest.approx(2 * line["loss"]) for line in lines)
    assert sorted(p.name for p in (folder / "sheets").iterdir()) == [f"step-{s:08d}.png" for s in (8, 16, 20)]
    assert list((folder / "events").iterdir())
    assert json.loads((folder / "config.json").read_text())["lr"] == 0.05
    assert checkpoint.Checkpoints(folder / "checkpoints").steps() == [12, 16, 20]


def test_losses_are_means_since_the_last_log(tmp_path: Path, whole: Path) -> None:
    run(tmp_path / "b", print_freq=4)
    each = [loss for _, loss, _ in losses(whole)]
    means = [loss for _, loss, _ in losses(tmp_path / "b")]
    assert means == pytest.approx([sum(each[i : i + 4]) / 4 for i in range(0, STEPS, 4)], rel=1e-6)


@pytest.mark.parametrize("stop", [1, 6, 8])
def test_resume_is_exact(tmp_path: Path, whole: Path, stop: int) -> None:
    run(tmp_path / "b", max_steps=stop)
    torch.rand(3)  # the generators' states must come from the checkpoint
    run(tmp_path / "b", continue_train=True)
    assert_same(whole, tmp_path / "b")


def test_resume_is_exact_with_loader_processes(tmp_path: Path, whole: Path) -> None:
    run(tmp_path / "b", max_steps=6, num_threads=2)
    run(tmp_path / "b", continue_train=True, num_threads=1)
    assert_same(whole, tmp_path / "b")


@pytest.mark.parametrize(("where", "step", "left"), [("step", 7, [4]), ("write", 8, [4]), ("write", 4, [])])
def test_killed_run_continues_exactly(tmp_path: Path, whole: Path, where: str, step: int, left: list[int]) -> None:
    """SIGKILL in a step, after lines that the checkpoint does not cover, and while a checkpoint is written."""
    folder = tmp_path / "b"
    command = [sys.executable, "-m", "tests.training.toy", str(folder), where, str(step)]
    killed = subprocess.run(command, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    checkpoints = checkpoint.Checkpoints(folder / "run" / "checkpoints")
    assert checkpoints.steps() == left
    assert len(list(checkpoints.folder.glob(".partial.*"))) == (where == "write")
    stats = folder / "run" / "stats.jsonl"
    stats.write_text(stats.read_text() + '{"step": 8, "lo')  # a line cut short
    run(folder, continue_train=True)
    assert not list(checkpoints.folder.glob(".*"))
    assert_same(whole, folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_finishes_the_step_and_saves(
    tmp_path: Path, whole: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    outcome = run(tmp_path / "b", interrupt_at=5, interrupt_by=number, progress=True)
    assert (outcome.step, outcome.signal) == (5, number)
    assert checkpoint.Checkpoints(tmp_path / "b" / "run" / "checkpoints").steps() == [4, 5]
    assert signal.getsignal(number) is before
    assert f"{number.name}: finishing the step and saving" in capsys.readouterr().err
    run(tmp_path / "b", continue_train=True)
    assert_same(whole, tmp_path / "b")


def test_a_closed_terminal_is_written_to_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    monkeypatch.setattr(loop, "console", Console(file=os.fdopen(theirs, "w")))
    kill = os.kill
    monkeypatch.setattr(os, "kill", lambda process, number: (os.close(ours), kill(process, number)))
    assert run(tmp_path, interrupt_at=5, interrupt_by=signal.SIGHUP, progress=True).signal == signal.SIGHUP
    assert checkpoint.Checkpoints(tmp_path / "run" / "checkpoints").steps() == [4, 5]


def test_nohup_keeps_a_run_alive(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(tmp_path, interrupt_at=5, interrupt_by=signal.SIGHUP).step == STEPS
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_outlives_the_reader_of_its_messages() -> None:
    unread, pipe = os.pipe()
    os.close(unread)
    file = os.fdopen(pipe, "w")
    console = type(log.console)(file=file)
    for _ in range(2):
        console.print("a line")
    assert console.quiet
    with pytest.raises(BrokenPipeError):  # the lines are still there; from Python 3.13 on a forgotten file tells, too
        file.close()


def test_refuses_an_existing_run(whole: Path) -> None:
    before = (whole / "run" / "stats.jsonl").read_bytes()
    with pytest.raises(loop.RunError, match=r"holds a run with checkpoints up to step 20; continue it"):
        run(whole)
    assert (whole / "run" / "stats.jsonl").read_bytes() == before


def test_refuses_a_changed_configuration_with_a_diff(tmp_path: Path) -> None:
    run(tmp_path, max_steps=6)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(loop.RunError, match=r"(?s)lr: 0.05 -> 0.1\n.*seed: 0 -> 3\n.*--allow_config_change"):
        run(tmp_path, continue_train=True, lr=0.1, seed=3, print_freq=7)
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    run(tmp_path, continue_train=True, lr=0.1, allow_config_change=True, print_freq=1)
    assert [lr for step, _, lr in losses(tmp_path) if step <= 12] == pytest.approx([0.05] * 6 + [0.1] * 2 + [0.075] * 4)


def test_epochs_stay_what_they_are_when_they_get_other_batches(tmp_path: Path) -> None:
    """And the learning rate that falls over them; an epoch that had begun is begun again."""
    run(tmp_path, max_steps=6)  # of 5 epochs of 4
    outcome = run(tmp_path, continue_train=True, batch_size=1, allow_config_change=True)
    assert outcome.step == 6 + 4 * 7
    assert losses(tmp_path)[-1][2] == pytest.approx(0.05 * 0.25)


def test_facts_are_compared_like_settings(tmp_path: Path) -> None:
    def begin(images: int, **settings: object) -> loop.Outcome:
        task = Toy(quiet(tmp_path, **settings))
        task.facts = {"images": images}
        return loop.fit(task)

    begin(7, max_steps=2)
    with pytest.raises(loop.RunError, match=r"images: 7 -> 8\n"):
        begin(8, continue_train=True)
    begin(7, continue_train=True, max_steps=4)
    begin(8, continue_train=True, allow_config_change=True)
    tree = checkpoint.read(checkpoint.locate(tmp_path / "run"))
    assert tree["config"]["images"] == 8
    del tree["config"]["images"]  # as older checkpoints are
    assert not loop.check_config(tree["config"], quiet(tmp_path), tmp_path, {"images": 9})


def test_plateau_s_falls_survive_a_changed_configuration(tmp_path: Path) -> None:
    def begin(lr: float) -> tuple[torch.optim.Optimizer, object]:
        optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=lr)
        return optimizer, schedule.make(optimizer, "plateau")

    old, new = begin(0.1), begin(0.2)
    for _ in range(8):
        old[0].step()
        schedule.advance(old[1], 1.0)
    for part, saved in zip(new, old, strict=True):
        loop._load(part, saved.state_dict(), True, "")
    assert new[0].param_groups[0]["lr"] == pytest.approx(0.2 * 0.2)


def test_an_option_that_is_newer_than_the_checkpoint_had_its_default(tmp_path: Path) -> None:
    config = quiet(tmp_path)
    saved = {name: value for name, value in config.to_dict().items() if name != "lr"}
    assert not loop.check_config(saved, config, tmp_path)
    with pytest.raises(loop.RunError, match=r"lr: 0.05 -> 0.1\n"):
        loop.check_config(saved, quiet(tmp_path, lr=0.1), tmp_path)


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "text"])
def test_corrupt_checkpoint_is_one_clear_error(tmp_path: Path, damage: str) -> None:
    run(tmp_path, max_steps=6)
    path = checkpoint.locate(tmp_path / "run")
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-10] ^= 1
    path.write_bytes({"truncate": data[:-100], "flip": data, "empty": b"", "text": b"hello"}[damage])
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(checkpoint.CheckpointError, match=r"step-00000006.*corrupt.*remove it to continue from step 4"):
        run(tmp_path, continue_train=True)
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_a_full_disk_is_one_clear_error_and_costs_no_checkpoint(tmp_path: Path, whole: Path) -> None:
    limit, grow = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    task = Toy(quiet(tmp_path / "b"))
    step = task.step

    def fills_the_disk() -> dict[str, torch.Tensor]:
        if task.taken == 5:  # from here on no file can grow past 4 kB; a checkpoint is larger
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
        return step()

    task.step = fills_the_disk  # type: ignore[method-assign]
    try:
        with pytest.raises(checkpoint.CheckpointError, match=r"step-00000008\.safetensors cannot be written: .*large"):
            loop.fit(task)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, grow)
    assert [p.name for p in (tmp_path / "b" / "run" / "checkpoints").iterdir()] == ["step-00000004.safetensors"]
    run(tmp_path / "b", continue_train=True)
    assert_same(whole, tmp_path / "b")


def test_progress_has_losses_images_and_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, progress=True, max_steps=2, print_freq=2)
    line = (
        r"step 2/2  \S+ img/s  left \d:\d\d:\d\d  loss \S+ twice \S+\ndone after step 2: .*; --continue_train goes on\n"
    )
    assert re.search(line, capsys.readouterr().err)
    assert log.console.render_str("[b]").plain == "[b]"  # as names of runs may be
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr(log, "console", terminal)
    run(tmp_path, progress=True, continue_train=True)
    shown = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", terminal.file.getvalue())
    assert re.search(r"20/20 \S+ img/s 0:00:\d\d left 0:00:00 *\n\r?loss \S+ twice \S+", shown)
    assert "continuing" in capsys.readouterr().err


def test_two_runs_do_not_share_a_folder(tmp_path: Path, whole: Path) -> None:
    run(tmp_path, max_steps=6)
    hold = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    lock, pipe = tmp_path / "run" / ".lock", subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", hold, str(lock)], stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None
        other.stdout.readline()
        before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
        with pytest.raises(loop.RunError, match=r"another process is training in .*run; choose another name"):
            run(tmp_path, continue_train=True)
        assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
        other.communicate(b"\n")
    run(tmp_path, continue_train=True)
    assert_same(whole, tmp_path)


def test_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    run(tmp_path, save_latest_freq=2, eval_freq=3, best_metric="distance", keep=2)
    folder = tmp_path / "run"
    assert checkpoint.Checkpoints(folder / "checkpoints").steps() == [9, 18, 20]
    assert checkpoint.locate(folder, "best").name == "step-00000009.safetensors"
    run(tmp_path, name="c", eval_freq=3, max_steps=3)
    with pytest.raises(checkpoint.CheckpointError, match=r"no best checkpoint.*best_metric"):
        checkpoint.locate(tmp_path / "c", "best")
    assert checkpoint.locate(folder).name == "step-00000020.safetensors"
    run(tmp_path, name="b", save_latest_freq=0, eval_freq=3, best_metric="psnr", keep=1)
    assert checkpoint.locate(tmp_path / "b", "best").name == "step-00000020.safetensors"


@pytest.mark.parametrize("where", ["evaluate", "log", "sheet"])
def test_a_run_killed_behind_a_checkpoint_evaluates_and_shows_what_was_due(tmp_path: Path, where: str) -> None:
    settings = {"eval_freq": 4, "display_freq": 4, "best_metric": "distance", "keep": 1, "max_steps": 8}
    whole = run(tmp_path, name="whole", **settings).folder
    killed = Toy(quiet(tmp_path, **settings))

    def at_eight(whole: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            if killed.taken == 8:
                raise KeyboardInterrupt
            return whole(*given)

        return call

    with pytest.MonkeyPatch.context() as patch:
        owner, name = (loop._Log, "metrics") if where == "log" else (killed, where)
        patch.setattr(owner, name, at_eight(getattr(owner, name)))
        with pytest.raises(KeyboardInterrupt):
            loop.fit(killed)
    again = Toy(quiet(tmp_path, continue_train=True, **settings))
    again.taken = 8  # which this task evaluates, and does not save
    loop.fit(again)
    times = {"seconds", "images_per_second"}
    stats = (read_stats(folder / "stats.jsonl") for folder in (whole, again.config.folder))
    mine, theirs = ([{k: v for k, v in line.items() if k not in times} for line in lines] for lines in stats)
    assert mine == theirs
    names = ({p.relative_to(f) for p in f.rglob("step-*")} for f in (whole, again.config.folder))
    assert next(names) == next(names)
    assert checkpoint.locate(again.config.folder, "best").name == "step-00000008.safetensors"
    assert loop.fit(again).step == 8
    assert len(read_stats(again.config.folder / "stats.jsonl")) == len(mine)


def test_another_best_metric_begins_anew(tmp_path: Path) -> None:
    settings = {"eval_freq": 3, "keep": 1, "save_latest_freq": 0}
    run(tmp_path, max_steps=9, best_metric="distance", **settings)  # 0, at the ninth step of a process
    run(tmp_path, continue_train=True, best_metric="farther", **settings)
    best = checkpoint.read(checkpoint.locate(tmp_path / "run"), only="best")
    assert best == {"metric": "farther", "value": 1.0, "step": 18}


def test_what_was_due_is_saved_before_what_may_fail(tmp_path: Path) -> None:
    def fails() -> None:
        raise DataError("picture.png: not a readable image")

    steps = {"evaluate": 4, "sheet": 4, "step": 6}
    for what, last in steps.items():
        task = Toy(quiet(tmp_path, name=what, eval_freq=4, display_freq=4))
        step = task.step
        failing = {"step": lambda task=task, step=step: fails() if task.taken == 6 else step()}.get(what, fails)
        setattr(task, what, failing)
        with pytest.raises(DataError):
            loop.fit(task)
        assert checkpoint.Checkpoints(tmp_path / what / "checkpoints").steps()[-1] == last
    run(tmp_path, name="step", continue_train=True)
    run(tmp_path, name="whole")
    mine, theirs = (read_stats(tmp_path / name / "stats.jsonl")[-1]["loss"] for name in ("step", "whole"))
    assert mine == theirs


def test_best_metric_must_exist(tmp_path: Path) -> None:
    with pytest.raises(loop.RunError, match="must be one of distance, farther, psnr, got 'fid'"):
        run(tmp_path, eval_freq=3, best_metric="fid")
    with pytest.raises(ValueError, match="set eval_freq"):
        run(tmp_path, best_metric="fid")


def test_not_finite_stops_and_names_it(tmp_path: Path) -> None:
    with pytest.raises(
        loop.NotFiniteError, match=r"stopped at step 8.*loss loss is not finite, first at step 6.*net\."
    ):
        run(tmp_path, poison_at=6, print_freq=100)
    assert checkpoint.Checkpoints(tmp_path / "run" / "checkpoints").steps() == [4]


@pytest.mark.parametrize("nan", ["stop", "warn"])
def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, nan: str) -> None:
    """Though the losses were: a gradient of sqrt at 0, say. The gradients of a step that fp16 leaves out may be."""
    task = Toy(quiet(tmp_path, nan=nan, max_steps=8))
    step = task.step

    def breaks() -> dict[str, torch.Tensor]:
        losses = step()
        task.net[0].weight.grad[0] = torch.inf
        if task.taken == 8:
            task.net[2].weight.data[0, 0] = torch.nan
        return losses

    task.step = breaks  # type: ignore[method-assign]
    stops = pytest.raises(
        loop.NotFiniteError, match=r"stopped at step 8, nothing of it saved: .* net\.2\.weight \(--nan"
    )
    with stops if nan == "stop" else contextlib.nullcontext():
        loop.fit(task)
    assert checkpoint.Checkpoints(tmp_path / "run" / "checkpoints").steps() == ([4] if nan == "stop" else [4, 8])


def test_a_run_without_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(loop.NotFiniteError):
        run(tmp_path, poison_at=3)
    stats = tmp_path / "run" / "stats.jsonl"
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(
        loop.RunError, match=r"holds a run's stats.jsonl and no checkpoint; begin it again \(--continue"
    ):
        run(tmp_path, lr=0.1)
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    assert run(tmp_path, continue_train=True).step == STEPS
    for text, wrong in (('{"loss": 1}\n{"step": 1}\n', "line 1 must"), ("a,b\n1,2\n", "line 1 must")):
        shutil.rmtree(tmp_path / "run" / "checkpoints", ignore_errors=True)
        stats.write_text(text)
        before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
        with pytest.raises(ValueError, match=rf'stats\.jsonl: {wrong} be a JSON object with a whole number "step"'):
            run(tmp_path, continue_train=True)
        assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    for name in ("", "..", "a/.."):
        with pytest.raises(ValueError, match="name must be that of a folder in checkpoints_dir"):
            run(tmp_path, name=name)


def test_not_finite_can_warn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, poison_at=6, nan="warn", max_steps=6, print_freq=2)
    assert "loss loss is not finite, first at step 6" in capsys.readouterr().err
    assert math.isnan(losses(tmp_path)[-1][1])


def test_the_task_of_the_documentation_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs" / "training.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, str(page), "exec"), {})
    assert read_stats(tmp_path / "runs" / "regression" / "stats.jsonl")[-1]["step"] == 100
