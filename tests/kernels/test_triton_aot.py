"""Every Triton kernel, compiled ahead of time for every architecture: no spills, wide accesses, enough warps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("triton")

from fastgan.kernels.triton import aot


def _report(module: str, *args: str) -> list[dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-m", module, *args], env=environment, capture_output=True, text=True)
    assert done.stdout, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_is_within_its_budget() -> None:
    lines = _report("fastgan.kernels.triton.aot", "--json")
    assert {line["arch"] for line in lines} == set(aot.ARCHITECTURES)
    faults = [
        f"sm_{line['arch']} {line['case']} {line['kernel']}: {line['faults']}" for line in lines if line["faults"]
    ]
    assert not faults, "\n".join(faults)


def test_the_gate_sees_spills_and_narrow_accesses_and_lost_occupancy() -> None:
    lines = _report("tests.kernels.aot_probe")
    good = [line for line in lines if line["case"] == "good"]
    assert [line["arch"] for line in good] == list(aot.ARCHITECTURES)
    assert all(not line["faults"] and line["wide_loads"] == line["loads"] for line in good)
    found = {line["case"]: " ".join(line["faults"]) for line in lines if line["case"] != "good"}
    assert "loads is 128 bits" in found["misaligned"]
    assert "stores is 128 bits" not in found["misaligned"]
    assert "loads is 128 bits" in found["odd length"]
    assert "spills" in found["spilling"]
    assert "resident warps" in found["crowded"]


@pytest.mark.parametrize(
    ("registers", "shared", "num_warps", "warps"),
    [
        (32, 0, 4, 64),  # every warp fits: 65536 registers / (32 lanes * 32)
        (33, 0, 4, 48),  # 40 after rounding: 12 warps in each of four register files
        (64, 0, 16, 32),
        (255, 0, 4, 8),
        (255, 0, 16, 0),  # more than the register file: it does not launch
        (16, 100 * 1024, 4, 8),  # two programs' shared memory
    ],
)
def test_resident_warps(registers: int, shared: int, num_warps: int, warps: int) -> None:
    assert aot.resident_warps(aot.ARCHITECTURES[90], registers, shared, num_warps) == warps
