"""The demo in its smallest setting."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastgan.demo import demo
from fastgan.training import inference
from fastgan.training.log import read_stats
from fastgan.training.loop import Outcome


def test_demo_leaves_what_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        (tmp_path / "demo" / "run").mkdir(parents=True)
        (tmp_path / "demo" / "run" / "old").touch()  # an earlier demo's is replaced
        demo(tmp_path / "demo", steps=4, size=32, count=24, rows=2)
    finally:
        torch.set_num_threads(threads)
    out = tmp_path / "demo"
    results = json.loads((out / "results.json").read_text())
    scores = results["held_out_l1"]
    assert list(scores) == ["identity map", "untrained", "trained"]
    for way, error in scores["trained"].items():
        assert error < scores["untrained"][way]
        assert f"{error:.3f}" in (out / "results.md").read_text()
    assert results["fused_over_eager"] > 0
    assert Image.open(out / "picture.png").size == (8 * (128 + 4) + 4, 16 + 2 * (128 + 4) + 4)
    assert Image.open(out / "losses.png").width > 500
    assert [line["step"] for line in read_stats(out / "run" / "stats.jsonl")] == list(range(1, 5))
    assert not (out / "run" / "old").exists()
    # The score is that of the run's checkpoint on the held-out emoji.
    again = inference.evaluate(out / "run", device="cpu", fused=False)
    assert again["l1_B"] == pytest.approx(scores["trained"]["line art to colour"], rel=1e-3)
    assert "held-out L1" in capsys.readouterr().err


def test_demo_ends_by_the_signal_that_ended_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[demo.__module__]
    monkeypatch.setattr(module, "fit", lambda task: Outcome(1, tmp_path, signal=15))
    monkeypatch.setattr(module, "_speed", lambda config, rounds: {"eager": 1.0, "fused": 1.0})
    with pytest.raises(SystemExit) as end:
        demo(tmp_path / "demo", steps=4, size=32, count=12)
    assert end.value.code == 143


def test_demo_asks_for_what_it_draws_with_before_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    with pytest.raises(ModuleNotFoundError, match=r"matplotlib: pip install 'fastgan\[demo\]'"):
        demo(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_demo_refuses_no_steps(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        demo(tmp_path / "demo", steps=0)
    assert not (tmp_path / "demo").exists()
