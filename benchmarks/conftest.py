"""Contestants of a case run side by side, and the result file says what it depends on.

FASTGAN_BENCH_UNTIL, in Unix time, is when the last benchmark may begin.
"""

from __future__ import annotations

import os
import time
from collections.abc import Hashable
from typing import Any

import pytest

from benchmarks import harness


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the contestants of a case next to each other."""
    first: dict[Hashable, int] = {}
    items.sort(key=lambda item: first.setdefault(_case(item), len(first)))


def _case(item: pytest.Item) -> Hashable:
    parameters = getattr(item, "callspec", None)
    case = {} if parameters is None else {k: v for k, v in parameters.params.items() if k != "contestant"}
    return item.path, item.name.partition("[")[0], repr(case)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.time() > float(os.environ.get("FASTGAN_BENCH_UNTIL", "inf")):
        pytest.skip("no time left (FASTGAN_BENCH_UNTIL)")


@pytest.hookimpl(tryfirst=True)  # while the case's fixtures live
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or _case(nextitem) != _case(item):
        harness.take_turns()


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    output_json["environment"] = harness.environment()
    output_json["unsupported"] = harness.UNSUPPORTED
