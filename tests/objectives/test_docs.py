"""docs/objectives.md says what the code has."""

from __future__ import annotations

import re
from pathlib import Path

from torch import nn, randn

from fastgan import objectives

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
