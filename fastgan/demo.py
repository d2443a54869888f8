"""``fastgan demo``: CycleGAN learns to colour line drawings of emoji, and to draw the lines of coloured ones.

The two training halves are of different emoji, so nothing is paired; the held-out emoji are known in both domains, so
what was learned can be measured: the mean absolute difference from the truth, values in [−1, 1], beside that of the
identity map.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgan.data import make_emoji_dataset
from fastgan.training import distributed, sheet
from fastgan.training.cyclegan import CycleGan, CycleGanConfig, make
from fastgan.training.log import clock, console, read_stats
from fastgan.training.loop import fit

_BATCH = 4
_TO_COLOUR, _TO_LINES = "line art to colour", "colour to line art"


def demo(
    out: Path = Path("demo"),
    steps: int = 500,
    size: int = 64,
    count: int | None = None,
    rows: int = 8,
    seed: int = 0,
) -> None:
    """Trains CycleGAN on emoji, line art to colour and back, in under five minutes on two CPU cores.

    Leaves in OUT: picture.png, losses.png, results.md, results.json, the data set (emoji/) and the run (run/), with
    which `fastgan translate --checkpoint OUT/run` works.

    Args:
        out: The folder for everything. A run of an earlier demo in it is replaced.
        steps: Training steps of four images of each domain.
        size: Height and width of the images in pixels.
        count: Use so many emoji only.
        rows: Held-out emoji in the picture.
        seed: Seed of everything that is random.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("the demo draws its losses with matplotlib: pip install 'fastgan[demo]'")
    begun = time.perf_counter()
    data = make_emoji_dataset(out / "emoji", size, count=count)
    images = {folder.name: sum(1 for _ in folder.iterdir()) for folder in sorted(data.iterdir()) if folder.is_dir()}
    console.print("emoji: " + ", ".join(f"{name} {count}" for name, count in images.items()))
    epoch = -(-max(images["trainA"], images["trainB"]) // _BATCH)
    config = _config(out, data, steps, -(-steps // epoch), size, seed)
    if config.folder.exists():
        shutil.rmtree(config.folder)
    speed = _speed(config, rounds=max(1, min(8, steps // 15)))
    console.print(f"steps per second: eager {speed['eager']:.2f}, fused {speed['fused']:.2f}")
    with distributed.session(torch.device("cpu")):
        task = make(config)
        scores = {"identity map": _identity(task), "untrained": _scores(task)}
        outcome = fit(task)
        if outcome.signal:
            raise SystemExit(128 + outcome.signal)
        scores["trained"] = _scores(task)
    _picture(task, rows).save(out / "picture.png")
    _curve(read_stats(config.folder / "stats.jsonl"), out / "losses.png")
    results = {
        "held_out_l1": scores,
        "steps_per_second": speed,
        "fused_over_eager": speed["fused"] / speed["eager"],
        "steps": outcome.step,
        "images": images,
        "seconds": round(time.perf_counter() - begun, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (out / "results.md").write_text(_markdown(results), encoding="utf-8")
    _show(results, out)
    if not all(scores["trained"][way] < scores["untrained"][way] for way in scores["trained"]):
        raise RuntimeError("training did not bring the translations nearer to the truth: something is wrong here")


def _config(out: Path, data: Path, steps: int, epochs: int, size: int, seed: int) -> CycleGanConfig:
    return CycleGanConfig(
        dataroot=data,
        checkpoints_dir=out,
        name="run",
        device="cpu",
        seed=seed,
        netG="resnet_4blocks",
        ngf=24,
        ndf=32,
        batch_size=_BATCH,
        load_size=size,
        crop_size=size,
        n_epochs=epochs - epochs // 3,
        n_epochs_decay=epochs // 3,
        max_steps=steps,
        ema=max(0.0, 1 - 5 / steps),  # over about the last fifth
        num_threads=0,
        print_freq=max(1, min(10, steps // 10)),
        display_freq=max(1, steps // 4),
        save_latest_freq=0,
        save_epoch_freq=0,
        keep=1,
    )


def _speed(config: CycleGanConfig, rounds: int) -> dict[str, float]:
    """Steps per second of fused and of eager training, measured in turns."""
    changes: dict[str, dict[str, Any]] = {"eager": {"fused": False}, "fused": {"fused": True}}
    tasks = {name: make(dataclasses.replace(config, **change)) for name, change in changes.items()}
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(rounds + 1):  # the first warms up
        for name, task in tasks.items():
            started = time.perf_counter()
            task.step()
            if turn > 0:
                seconds[name].append(time.perf_counter() - started)
    return {name: 1 / statistics.median(values) for name, values in seconds.items()}


def _scores(task: CycleGan) -> dict[str, float]:
    metrics = task.evaluate()
    return {_TO_COLOUR: metrics["l1_B"], _TO_LINES: metrics["l1_A"]}


def _identity(task: CycleGan) -> dict[str, float]:
    errors = [float((a - b).abs().mean()) for a, b in task.held_out()]
    return dict.fromkeys((_TO_COLOUR, _TO_LINES), statistics.fmean(errors))


def _picture(task: CycleGan, rows: int) -> Any:
    lines: list[list[Tensor]] = []
    items = list(task.held_out())
    for lineart, colour in items[:: max(1, len(items) // rows)][:rows]:
        made = task.translate(lineart, colour)
        line = [lineart, made["fake_B"], made["rec_A"], colour, colour, made["fake_A"], made["rec_B"], lineart]
        lines.append([image[0].cpu() for image in line])
    titles = ["line art", "coloured", "lines again", "true colour", "colour", "its lines", "colour again", "true lines"]
    return sheet.table(lines, titles, gap=4, scale=max(1, 128 // lines[0][0].size(-1)))


def _curve(stats: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for axes, names, title in (
        (left, ("cycle_A", "cycle_B", "idt_A", "idt_B"), "cycle and identity losses"),
        (right, ("G_A", "G_B", "D_A", "D_B"), "adversarial losses"),
    ):
        for name in names:
            points = [(line["step"], line[name]) for line in stats if name in line]
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1.2)
        axes.set(title=title, xlabel="step", ylim=(0, None))
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def _rows(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (name, f"{values[_TO_COLOUR]:.3f}", f"{values[_TO_LINES]:.3f}")
        for name, values in results["held_out_l1"].items()
    ]


def _markdown(results: dict[str, Any]) -> str:
    speed = results["steps_per_second"]
    lines = [
        f"CycleGAN on emoji, {results['steps']} steps, held-out mean |difference| from the truth (values in [−1, 1]):",
        "",
        f"| | {_TO_COLOUR} | {_TO_LINES} |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in _rows(results)),
        "",
        f"Steps per second, measured in turns on {results['threads']} threads: eager PyTorch {speed['eager']:.2f}, "
        f"fused {speed['fused']:.2f} ({results['fused_over_eager']:.2f}×).",
    ]
    return "\n".join(lines) + "\n"


def _show(results: dict[str, Any], out: Path) -> None:
    from rich.table import Table

    table = Table("held-out L1", _TO_COLOUR, _TO_LINES)
    for row in _rows(results):
        table.add_row(*row)
    console.print(table)
    speed = results["steps_per_second"]
    table = Table("steps per second", "eager", "fused", "fused / eager")
    table.add_row("in turns", f"{speed['eager']:.2f}", f"{speed['fused']:.2f}", f"{results['fused_over_eager']:.2f}")
    console.print(table)
    console.print(f"{clock(results['seconds'])} in all; see {out / 'picture.png'} and {out / 'losses.png'}")
