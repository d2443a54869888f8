"""Contestants of a case run side by side, and the result file says what it depends on, and what failed.

A session whose time is up (``harness.UNTIL``, in Unix time, which FASTGAN_BENCH_UNTIL sets: ``inf`` lifts the limit)
begins no more cases, and says which it left out.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import Any

import pytest
import torch._dynamo

from benchmarks import harness


def pytest_sessionstart() -> None:
    # Else a contestant that PyTorch has compiled too often would be eager PyTorch.
    torch._dynamo.config.fail_on_recompile_limit_hit = True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the contestants of a case next to each other, and last what takes longest: it leaves the operators their
    time, and what is left to itself is known then."""
    first: dict[Hashable, int] = {}
    items.sort(key=lambda item: (_kept_back(item) > 0, first.setdefault(_case(item), len(first))))


def _kept_back(item: pytest.Item) -> float:
    """How many seconds before the session's last beginnings this one must begin: on the CPU whole steps take many, and
    compiling them takes more."""
    if item.path.name != "test_cyclegan_step.py":
        return 0.0
    return harness.COMPILED_STEP if "compile" in item.name else harness.STEP


def _case(item: pytest.Item) -> Hashable:
    parameters = getattr(item, "callspec", None)
    case = {} if parameters is None else {k: v for k, v in parameters.params.items() if k != "contestant"}
    return item.path, item.name.partition("[")[0], repr(case)


_begun: list[Hashable] = []


def pytest_runtest_setup(item: pytest.Item) -> None:
    items = item.session.items
    harness.to_come = len(items) - items.index(item)
    case = _case(item)
    end = harness.UNTIL - _kept_back(item) + harness.GRACE * (case in _begun)
    if time.time() > end:
        harness.LEFT_OUT.append(_name(item.nodeid))
        pytest.skip("no time left (FASTGAN_BENCH_UNTIL)")
    _begun[:] = [case]


@pytest.hookimpl(tryfirst=True)  # while the case's fixtures live
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or _case(nextitem) != _case(item):
        harness.take_turns()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed and (name := _name(report.nodeid)) not in harness.FAILED:
        harness.FAILED.append(name)


def _name(nodeid: str) -> str:
    return nodeid.removeprefix("benchmarks/")


def pytest_keyboard_interrupt() -> None:
    harness.LEFT_OUT.append(harness.ENDED)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if harness.LEFT_OUT:
        terminalreporter.section("no time left")
        terminalreporter.write_line(
            f"{len(harness.LEFT_OUT)} benchmarks were left out. FASTGAN_BENCH_UNTIL=inf, or make bench, runs them all:"
        )
        terminalreporter.write_line("\n".join(harness.LEFT_OUT))
    if harness.FALLBACKS.messages:
        terminalreporter.section("not measured on kernels of fastgan's")
        terminalreporter.write_line("\n".join(harness.FALLBACKS.messages))
        terminalreporter.write_line("These figures of fastgan's are plain PyTorch's; fastgan doctor says why.")


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    output_json["environment"] = harness.environment()
    output_json["unsupported"] = harness.UNSUPPORTED
    output_json["left_out"] = harness.LEFT_OUT
    output_json["failed"] = harness.FAILED
