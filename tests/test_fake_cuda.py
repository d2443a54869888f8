"""GPU tests of the trainers on a device without memory: see tests/fake_cuda."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
# Of those that pass there, which are all of training and data, some of each kind.
CHOSEN = (
    "checks or does_not_wait or resume_continues or (judged and digits) or steps_recorded"
    " or (recorded_cyclegan and fp16) or (recorded_gans and (wgan-8 or wgan-gp-8 or sngan-8 or sliced-8))"
)


@pytest.mark.skipif(
    torch.version.cuda is not None or torch.version.hip is not None, reason="PyTorch has CUDA of its own"
)
def test_gpu_tests_of_training_pass_on_a_device_without_memory() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET" and not k.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "tests.fake_cuda.plugin", "-p", "no:cacheprovider", "-q", "-rs"]
    tests = ["-k", CHOSEN, "tests/fake_cuda/checks.py", "tests/training/test_cyclegan_gpu.py"]
    done = subprocess.run(
        [*command, *tests, "tests/training/test_graph_gpu.py"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
    assert "skipped" not in done.stdout
