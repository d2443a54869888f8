"""Every Triton kernel, compiled ahead of time for every architecture: no spills, wide accesses, enough warps."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

import triton

from fastgan.kernels.triton import aot, gradient_penalty, instance_norm, interpolate, l1

SAVED = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "aot.json").read_text())


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
    if SAVED["triton"] == triton.__version__:  # another compiler may do otherwise
        worse = aot.regressions(lines, SAVED["lines"])
        again = "python -m fastgan.kernels.triton.aot --save benchmarks/results/aot.json"
        assert not worse, "\n".join([*worse, f"if that is right: {again}"])


def test_the_steps_of_the_models_launch() -> None:
    """Up to the driver: Triton's own launch takes the arguments, and what it compiles fits on the device. Images that
    change their size do not compile for ever."""
    *lines, last, first = _report("tests.kernels.dry_launches")
    kernels = {line["kernel"] for line in lines}
    assert {"forward_apply", "backward_resident", "double_resident", "penalty_kernel", "forward_kernel"} <= kernels
    assert not [line for line in lines if line["spills"] or line["stack"] or not line["resident"]]
    assert (last["channels_last"], first["channels_last"]) == (True, False)
    assert last["of 48 sizes"] <= 16
    assert first["of 48 sizes"] <= 64


def test_a_launch_that_was_made_before_hands_over_the_same_arguments() -> None:
    """And to the same kernel, never to one that Triton compiled for other alignments, types or sizes."""
    *lines, last = _report("tests.kernels.launch_probe")
    assert last["differently specialised"] >= 12
    stems = (instance_norm.launchers, l1, interpolate, gradient_penalty)
    kernels = {name for stem in stems for name, value in vars(stem).items() if hasattr(value, "arg_names")}
    assert {line["kernel"] for line in lines} == {name for name in kernels if name[0] != "_"}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"registers": 255, "warps": 8}, "resident warps"),
        ({"spills": 2}, "spills 0 -> 2"),
        ({"stack": 16}, "stack 0 -> 16"),
        ({"wide_loads": 0}, "loads were wide, now 0 of"),
        ({"wide_stores": 0}, "stores were wide, now 0 of"),
        ({"bytes": 1 << 40}, "bytes"),
        ({"case": "new"}, "not among the saved"),
    ],
    ids=str,
)
def test_what_is_worse_than_saved_is_found(change: dict[str, Any], found: str) -> None:
    lines = copy.deepcopy(SAVED["lines"])
    assert aot.regressions(lines, SAVED["lines"]) == []
    line = next(line for line in lines if line["wide_loads"] and line["wide_stores"] and line["warps"] > 8)
    line.update(change)
    assert found in "\n".join(aot.regressions(lines, SAVED["lines"]))


def test_more_registers_at_the_same_occupancy_are_no_regression() -> None:
    lines = copy.deepcopy(SAVED["lines"])
    lines[0]["registers"] += 1
    assert aot.regressions(lines, SAVED["lines"]) == []


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
