from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastgan.training import checkpoint, random


def test_round_trip(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    tree = {
        "a": {"x": base, "view": base[1], "strided": base.transpose(0, 2), "shared": base},
        "types": [torch.tensor(True), torch.ones(3, dtype=torch.bfloat16), torch.tensor(7), torch.empty(0, 3)],
        "numbers": (1, -2.5, 2**70, float("inf"), None, True, "text"),
        3: {0: "zero", 1: {"$odd": 1}},
    }
    path = tmp_path / "x.safetensors"
    checkpoint.write(path, tree)
    back = checkpoint.read(path)
    assert back["numbers"] == tree["numbers"]
    assert back[3] == tree[3]
    for name, value in tree["a"].items():
        assert torch.equal(back["a"][name], value)
    for got, value in zip(back["types"], tree["types"], strict=True):
        assert got.dtype == value.dtype
        assert torch.equal(got, value)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_reads_a_part(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "x", {"state": {"net": {"w": torch.ones(2)}, "other": torch.zeros(3)}})
    assert torch.equal(checkpoint.read(tmp_path / "x", only="state/net")["w"], torch.ones(2))
    with pytest.raises(checkpoint.CheckpointError, match="holds no 'state/missing'"):
        checkpoint.read(tmp_path / "x", only="state/missing")


def test_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(TypeError, match="state at 'a/0' cannot be saved: function"):
        checkpoint.flatten({"a": [print.__class__, lambda: 0][1:]})


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(checkpoint.CheckpointError, match="there is no checkpoint at"):
        checkpoint.read(tmp_path / "missing")
    save_file({"w": torch.ones(2)}, tmp_path / "foreign")
    with pytest.raises(checkpoint.CheckpointError, match="not a checkpoint of fastgan"):
        checkpoint.read(tmp_path / "foreign")
    with pytest.raises(checkpoint.CheckpointError, match="there is no checkpoint in"):
        checkpoint.locate(tmp_path)


def test_random_state() -> None:
    import random as python

    import numpy as np

    random.seed_all(3)
    python.gauss(0, 1), np.random.randn(), torch.rand(1)  # noqa: NPY002
    _, tensors = checkpoint.flatten(saved := random.get_state())
    assert tensors
    first = python.gauss(0, 1), python.random(), np.random.randn(3).tolist(), torch.rand(3).tolist()  # noqa: NPY002
    random.set_state(saved)
    again = python.gauss(0, 1), python.random(), np.random.randn(3).tolist(), torch.rand(3).tolist()  # noqa: NPY002
    assert first == again
