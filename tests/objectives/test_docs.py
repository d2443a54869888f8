"""docs/objectives.md says what the code has."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from torch import Tensor, nn, randn
from torch.nn.functional import softplus

from fastgan import objectives
from fastgan.training.gan import GanConfig, GanTask

PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"


def default_rows() -> list[str]:
    """The rows of the page's table of settings."""
    rows = []
    for name in objectives.OBJECTIVES:
        d = objectives.make(name).defaults
        optimizer = f"Adam {d.betas}" if d.optimizer == "adam" else "RMSprop"
        s = d.schedule
        steps = f"{s.n}; {s.boosted} in the first {s.first} and every {s.every}th" if s.first else str(s.n)
        if objectives.make(name).requires.output == "none":
            steps, critic = "none", "none"
        else:
            critic = f"{d.lr_critic:g}"
        rows.append(
            f"| `{name}` | {optimizer} | {critic} | {d.lr_generator:g} | {steps} | {d.batch_size} | {d.source} |"
        )
    return rows


def test_settings_are_those_of_the_code():
    page = PAGE.read_text(encoding="utf-8")
    for row in default_rows():
        assert row in page
    assert len(re.findall(r"^\| `.*(Adam|RMSprop)", page, flags=re.M)) == len(objectives.OBJECTIVES)


def test_the_example_runs():
    example = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)[1]
    names = {
        "critic": nn.Linear(3, 1),
        "generator": nn.Linear(2, 3),
        "real": randn(4, 3),
        "fake": randn(4, 3),
        "z": randn(4, 2),
    }
    exec(compile(example, str(PAGE), "exec"), names)
    assert set(names["terms"]) == {"adversarial"}
    assert names["critic"].weight.grad is not None


def test_an_objective_of_one_s_own_trains(tmp_path, monkeypatch):
    example = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)[1]
    steps: list[dict[str, Tensor]] = []

    def few(config: GanConfig) -> None:
        task = GanTask(dataclasses.replace(config, batch_size=8, checkpoints_dir=tmp_path, device="cpu"))
        steps.extend(task.step() for _ in range(2))
        with pytest.raises(ValueError, match="accumulate must be 1: objective 'relativistic' looks at the batch as a"):
            GanTask(dataclasses.replace(config, batch_size=8, accumulate=2))

    monkeypatch.setattr(objectives, "OBJECTIVES", dict(objectives.OBJECTIVES))
    names = {"objectives": objectives, "dataclass": dataclasses.dataclass, "softplus": softplus}
    exec(compile(example, str(PAGE), "exec"), {**names, "GanConfig": GanConfig, "train": few})
    assert [set(losses) for losses in steps] == [{"critic", "generator"}] * 2
