"""The launch table that follows from a sweep: on a made-up device whose fastest settings are known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import sweep_instance_norm as sweep
from fastgan.kernels.triton.instance_norm import Setting, launch_table


def measured(time_of: Any, workloads: list[Any]) -> list[dict[str, Any]]:
    rows = []
    for operator in launch_table.RESIDENT:
        for shape, channels_last, pad in workloads:
            for dtype in (torch.bfloat16, torch.float32):
                key = sweep.facts(operator, shape, channels_last, pad, dtype.itemsize, 132)
                for setting in sweep.candidates(key):
                    row = {
                        "operator": operator, "shape": shape, "channels_last": channels_last, "pad": pad,
                        "dtype": str(dtype).removeprefix("torch."), "processors": 132, "setting": setting,
                        "us": time_of(operator, setting), "chosen": setting == launch_table.setting(*key),
                    }  # fmt: skip
                    rows.append(json.loads(json.dumps(row)))  # as it comes back from a file
    return rows


def constants(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    exec(text, found)
    return {name: found[name] for name in sweep.NAMES}


def today() -> dict[str, Any]:
    return {name: getattr(launch_table, name) for name in sweep.NAMES}


def test_the_table_stays_where_it_is_fastest() -> None:
    chosen = {
        launch_table.setting(*sweep.facts(op, *w, 2, 132)) for op in launch_table.RESIDENT for w in sweep.WORKLOADS
    }
    chosen |= {
        launch_table.setting(*sweep.facts(op, *w, 4, 132)) for op in launch_table.RESIDENT for w in sweep.WORKLOADS
    }
    text = sweep.table(measured(lambda _, setting: 1.0 if setting in chosen else 2.0, sweep.WORKLOADS))
    assert constants(text) == today()
    assert "1.00 us -> 1.00 us" in text
    # It can take the place of the constants in the table's source.
    blocks = [block + "\n}\n" for block in text[text.index("RESIDENT") :].split("\n}")[:3]]
    source = Path(launch_table.__file__).read_text()
    assert all(block.lstrip("\n") in source for block in blocks)


def test_a_device_that_likes_twice_the_warps_gets_half_the_elements_a_thread() -> None:
    """Resident forward tiles in NCHW run faster the more warps they have, up to 32; nothing else matters."""
    workloads = [w for w in sweep.WORKLOADS if not w[1] and not w[2]]

    def time_of(operator: str, setting: Setting) -> float:
        return 100.0 / setting.num_warps if operator == "forward" and not setting.splits else 10.0

    found = constants(sweep.table(measured(time_of, workloads)))
    assert found["RESIDENT"]["forward"][0][1] < today()["RESIDENT"]["forward"][0][1]
    assert found["RESIDENT"]["forward"][1:] == today()["RESIDENT"]["forward"][1:]
    assert found["RESIDENT"]["backward"] == today()["RESIDENT"]["backward"]


def test_what_was_not_measured_is_not_chosen() -> None:
    rows = [row for row in measured(lambda *_: 1.0, sweep.WORKLOADS) if row["chosen"]]
    assert constants(sweep.table(rows)) == today()
    text = sweep.table(
        [row for row in rows if row["operator"] != "backward"] + [{"operator": "backward", "failed": ""}]
    )
    assert "backward: the table's own choice was not measured" in text
    assert constants(text) == today()


def test_an_interrupted_workload_does_not_hold_the_others_back() -> None:
    workloads = [w for w in sweep.WORKLOADS if not w[1] and not w[2]]

    def time_of(operator: str, setting: Setting) -> float:
        return 100.0 / setting.num_warps if operator == "forward" and not setting.splits else 10.0

    whole = measured(time_of, workloads)
    left_out = [row["operator"] == "forward" and row["shape"] == [1, 256, 64, 64] for row in whole]
    begun = left_out.index(True) + 1
    rows = [row for k, row in enumerate(whole) if not left_out[k] or k < begun]
    assert len(rows) < len(whole)
    assert constants(sweep.table(rows)) == constants(sweep.table(whole)) != today()


def test_settings_are_compiled_ahead_into_the_cache(tmp_path: Path) -> None:
    command = ["-m", "benchmarks.sweep_instance_norm", "--only", "forward", "--compile", "1", "5000", "90", "132"]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(list(tmp_path.rglob("forward_*.cubin"))) == 1


def test_using_a_setting_ends() -> None:
    key = sweep.facts("forward", (1, 256, 64, 64), False, 0, 4, 132)
    before, other = launch_table.setting(*key), Setting(1, 128, 2, 4)
    with sweep.using(other):
        assert launch_table.setting(*key) == other
    assert launch_table.setting(*key) == before
