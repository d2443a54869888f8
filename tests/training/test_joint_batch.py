"""Two processes compute what one does with the joint batch, whatever is random or looks at the whole batch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastgan.training import checkpoint
from tests.training.joint_batch import CASES, run

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of two processes, by case and rank."""
    folder = tmp_path_factory.mktemp("joint")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.training.joint_batch", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_with_the_joint_batch(written: Path, case: str) -> None:
    _, one = checkpoint.flatten(run(case))
    first, second = (checkpoint.flatten(checkpoint.read(written / f"{case} {rank}"))[1] for rank in (0, 1))
    assert one.keys() == first.keys()
    for name, value in one.items():
        # Adam makes up to 1e-8 of a gradient that is nothing but rounding, and 1e-4 of any other.
        torch.testing.assert_close(first[name], value, rtol=1e-9, atol=5e-8, msg=lambda m, name=name: f"{name}: {m}")
        assert torch.equal(first[name], second[name]), name


@pytest.mark.slow
def test_two_processes_resume_exactly(written: Path) -> None:
    """Each with its own masks of dropout."""
    whole, parts = (checkpoint.read(checkpoint.locate(written / name)) for name in ("whole", "parts"))
    (_, mine), (_, theirs) = (checkpoint.flatten([tree["state"], tree["random"]]) for tree in (whole, parts))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    first, second = (state["torch"] for state in whole["random"])
    assert not torch.equal(first, second)


@pytest.mark.slow
def test_processes_of_different_settings_are_refused(written: Path) -> None:
    assert (written / "complaint 0").read_text() == "process 1 was started with another seed than process 0"
    assert (written / "complaint 1").read_text() == "process 0 was started with another seed than process 1"


@pytest.mark.slow
def test_gradients_of_parts_are_averaged_once(written: Path) -> None:
    for rank in (0, 1):
        found = json.loads((written / f"found {rank}").read_text())
        assert found["gan 1"] == found["gan 2"] > 0
        assert found["cyclegan 1"] == found["cyclegan 2"] > 0


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(written: Path) -> None:
    """It travels while a step is computed, and all save and end after that one."""
    for rank in (0, 1):
        assert json.loads((written / f"found {rank}").read_text())["interrupted"] == [3, signal.SIGINT, 3]
    assert checkpoint.Checkpoints(written / "interrupted" / "checkpoints").steps() == [3]


@pytest.mark.slow
def test_processes_agree_on_the_best_step(written: Path) -> None:
    """They would wait for each other for ever."""
    for rank in (0, 1):
        assert json.loads((written / f"found {rank}").read_text())["best"] == [1, 2, 3]
    assert checkpoint.locate(written / "best", "best").name == "step-00000002.safetensors"


@pytest.mark.slow
def test_each_process_translates_its_share_and_the_first_scores(written: Path) -> None:
    first, second = (json.loads((written / f"found {rank}").read_text())["shared"] for rank in (0, 1))
    assert (first, second) == ([True, 0, 2, 4], [False, 1, 3, 5])


@pytest.mark.slow
def test_all_processes_end_with_the_error_of_one_that_cannot_read_an_image(written: Path) -> None:
    """They would wait for its share of the held-out images."""
    for rank in (0, 1):
        assert json.loads((written / f"found {rank}").read_text())["unreadable"] == "1.png: cannot be read"
