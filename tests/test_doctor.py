"""fastgan doctor tells the truth."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastgan import doctor
from fastgan.kernels import dispatch


def test_it_says_what_runs() -> None:
    report = doctor.examine()
    rows = {row.operator: row for row in report.operators if row.device == "cpu"}
    assert set(rows) == set(dispatch.OPERATORS)
    call = dispatch.Call("instance_norm_act", "cpu", torch.float32)
    assert rows["instance_norm_act"].serves == dispatch._choose(call)
    for row in rows.values():
        assert row.serves not in row.reasons
        assert row.serves in ("native", "reference")


def test_a_backend_that_breaks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(backend: str, stem: str) -> str:
        return "undefined symbol: omp_in_parallel"

    monkeypatch.setattr(dispatch, "_load", load)
    monkeypatch.setattr(dispatch, "_selected", {})
    for row in doctor.examine().operators:
        assert row.serves == "reference"
        assert row.reasons["native"] == "undefined symbol: omp_in_parallel"


@pytest.mark.parametrize(
    ("asked", "serves", "reason"),
    [
        ("reference", "reference", None),
        ("native", "nothing", "native: not built"),
        ("cuda", "nothing", "every call: FASTGAN_BACKEND must be one of"),
    ],
)
def test_the_backend_asked_for_serves_or_nothing_does(
    monkeypatch: pytest.MonkeyPatch, asked: str, serves: str, reason: str | None
) -> None:
    monkeypatch.setattr(dispatch, "_load", lambda backend, stem: "not built")
    monkeypatch.setattr(dispatch, "_selected", {})
    monkeypatch.setenv("FASTGAN_BACKEND", asked)
    report = doctor.examine()
    assert report.versions["FASTGAN_BACKEND"] == asked
    for row in (row for row in report.operators if row.device == "cpu"):
        assert row.serves == serves
        assert reason is None or any(f"{name}: {why}".startswith(reason) for name, why in row.reasons.items())


def test_an_unknown_instruction_set_is_refused() -> None:
    """And not taken for the best there is: whoever sets it compares."""
    environment = {**os.environ, "FASTGAN_CPU_ISA": "avx3", "PYTHONPATH": str(Path(__file__).parents[1])}
    ended = subprocess.run(
        [sys.executable, "-c", "import fastgan"], env=environment, capture_output=True, text=True, check=False
    )
    complaint = "FASTGAN_CPU_ISA must be one of baseline, avx2, avx512, avx512_bf16, got 'avx3'"
    assert ended.stderr.splitlines()[-1] == f"ValueError: {complaint}"


def test_a_native_module_of_older_sources_is_named() -> None:
    code = (
        "import sys, types\n"
        "sys.modules['fastgan._C'] = types.ModuleType('fastgan._C')\n"  # lacks what today's kernels call
        "from fastgan import doctor\n"
        "print({(row.serves, row.reasons['native']) for row in doctor._operators() if row.device == 'cpu'})\n"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    reason = "ImportError: fastgan._C was built from older sources: install the package again"
    assert printed.strip() == str({("reference", reason)})


def test_it_prints_commands_as_they_are_typed(capsys: pytest.CaptureFixture[str]) -> None:
    commands = {"torch_fidelity": "pip install 'fastgan[metrics]'"}
    doctor.print_report(doctor.Report({}, {}, {}, [], commands))
    assert commands["torch_fidelity"] in capsys.readouterr().out


def test_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.print_report(doctor.examine())
    printed = capsys.readouterr().out
    for word in ("fastgan", "torch", "instance_norm_act", "wasserstein_1d", "native"):
        assert word in printed
