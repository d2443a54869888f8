"""The report says what the result file says: ratios, weighted totals, unsupported cells, generated blocks."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report


def row(case: str, contestant: str, p50: float, operator: str = "norm", **facts: Any) -> dict[str, Any]:
    times = {"p20": 0.9 * p50, "p50": p50, "p80": 1.2 * p50}
    return {"operator": operator, "case": case, "contestant": contestant, "samples": 5, **times, **facts}


RESULTS: dict[str, Any] = {
    "device": "cpu, 2 threads", "processor": "a processor", "commit": "0123456789abcdef", "threads": 2, "load": 0.1,
    "versions": {"python": "3.12", "torch": "2.11"}, "freed_memory_kept": True,
    "copy_bytes_per_s": 2e10, "operations_per_s": 1e11,
    "unsupported": [{"operator": "norm", "case": "b", "contestant": "compile", "reason": "no double backward"}],
    "rows": [
        row("a", "fastgan", 1e-3, bytes=10**7, gb_per_s=10.0, copy_percent=50.0, floor=5e-4, operations=2e7,
            peak_bytes=2**21),
        row("a", "eager", 4e-3, bytes=10**7, gb_per_s=2.5, copy_percent=12.5, floor=5e-4, operations=2e7,
            peak_bytes=3 * 2**21),
        row("a", "compile", 2e-3),
        row("b", "fastgan", 1e-3),
        row("b", "eager", 9e-3),
        *(row(f"call {i}", name, seconds, "calls of CycleGAN", step="CycleGAN", calls=calls, step_calls=11,
              floor=5e-4)
          for i, calls in ((1, 10), (2, 1)) for name, seconds in (("fastgan", 1e-3), ("eager", 5e-3 * i))),
    ],
    "scaling": {"threads": 2, "rows": [
        {"operator": "norm", "varied": "batch", "value": n, "fastgan": {"p20": n, "p50": n, "p80": n},
         "eager": {"p20": n, "p50": 3 * n, "p80": 4 * n}} for n in (1, 2)
    ]},
    "profile": {"threads": 2, "steps": {"CycleGAN": {
        "eager": {"step": 2.0, "parts": {"convolution forward": 0.5, "convolution backward": 0.5, "norm": 0.8}},
        "fastgan": {"step": 1.2, "parts": {"convolution forward": 0.5, "convolution backward": 0.5, "norm": 0.1}},
    }}},
}  # fmt: skip


def test_the_report_has_every_figure(tmp_path: Path) -> None:
    source = tmp_path / "result.json"
    source.write_text(json.dumps(RESULTS))
    report.write_report(source)
    text = source.with_suffix(".md").read_text()
    assert "| a | 1.00 ms (900.00 µs–1.20 ms) | 10.0 | 50 | 500.00 µs | 2.0 MiB | 2.00× | 4.00× (memory 3.0×) |" in text
    assert "| b | 1.00 ms (900.00 µs–1.20 ms) |  |  |  |  | unsupported | 9.00× |" in text
    assert "Unsupported: compile: no double backward." in text
    assert "| CycleGAN | 60.00 ms | 11.00 ms | 5.5× | 5.50 ms |" in text  # 10 x 5 + 10 against 10 + 1
    assert "| CycleGAN | 1.00 s (50 % of the step) | 200.00 ms (17 %) | 5.0× |" in text
    assert "| norm | batch | 2 | 2.00 s | 6.00 s | 3.00× |" in text
    assert "remains outside convolutions and matrix products with fastgan: norm 100.00 ms." in text
    assert "| norm | 800.00 ms | 40.0 % | 100.00 ms | 8.3 % |" in text
    for name in ("result", "result-roofline", "result-scaling"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"]({name}.svg)" in text
    drawn = {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")}
    report.write_report(source)
    assert drawn == {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")}


def test_the_report_says_what_time_was_too_short_for(tmp_path: Path) -> None:
    rows = [row("a", "fastgan", 1.0, late=True), row("a", "eager", 2.0)]
    source = tmp_path / "result.json"
    more = {"left_out": ["test_l1.py::test_b"], "fallbacks": ["weighted_l1 falls back to plain PyTorch on cuda (no)"]}
    more["failed"] = ["test_l1.py::test_wrong"]
    source.write_text(json.dumps(RESULTS | {"rows": rows} | more))
    report.write_report(source)
    text = source.with_suffix(".md").read_text()
    assert "Time was short: 1 of 2 rows rest on fewer samples than usual." in text
    assert "kernels of fastgan's: weighted_l1 falls back to plain PyTorch on cuda (no)." in text
    assert "No time was left for: test_l1.py::test_b." in text
    assert "**Failed, and without figures: test_l1.py::test_wrong.**" in text


def test_a_part_measured_at_another_commit_says_so(tmp_path: Path) -> None:
    source = tmp_path / "result.json"
    parts = {"scaling": {"commit": "fedcba9876543210"}, "profile": {"commit": RESULTS["commit"]}}
    source.write_text(json.dumps(RESULTS | {name: RESULTS[name] | commit for name, commit in parts.items()}))
    report.write_report(source)
    text = source.with_suffix(".md").read_text()
    assert text.count("Measured at commit") == 1
    assert "Measured at commit fedcba987654.\n\n## Where" in text


def test_a_run_with_a_failed_benchmark_fails_after_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "result.json"
    monkeypatch.setattr("sys.argv", ["report", "--out", str(source), "--parts", "bench"])
    for failed in ([], ["test_l1.py::test_wrong"]):
        source.write_text(json.dumps(RESULTS | {"failed": failed}))
        monkeypatch.setattr(report, "measure", lambda out, parts, pytest_args: out)
        with pytest.raises(SystemExit, match="test_wrong") if failed else contextlib.nullcontext():
            report.main()
        assert ("test_wrong" in source.with_suffix(".md").read_text()) == bool(failed)


def test_a_report_of_a_run_that_ended_early_has_no_empty_plot(tmp_path: Path) -> None:
    source = tmp_path / "result.json"
    for rows in (
        [],
        [row("a", "fastgan", 1.0)],
        [row("a", "eager", 1.0)],
        [row("a", "eager", 1.0, bytes=1e9, operations=1)],
    ):
        source.write_text(
            json.dumps({key: RESULTS[key] for key in RESULTS if key not in ("rows", "scaling")} | {"rows": rows})
        )
        report.write_report(source)
        assert not source.with_suffix(".svg").exists()


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    assert json.loads(report.dump(RESULTS)) == RESULTS
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text(report.dump({key: RESULTS[key] for key in RESULTS if key != "scaling"}))
    second.write_text(report.dump({"scaling": RESULTS["scaling"]}))
    assert report.merge([first, second]) == first
    assert json.loads(first.read_text()) == RESULTS


def test_a_total_is_over_contestants_that_did_every_call() -> None:
    results = copy.deepcopy(RESULTS)
    facts = {"step": "CycleGAN", "calls": 10, "step_calls": 11}
    results["rows"].append(row("call 1", "compile", 1.0, "calls of CycleGAN", **facts))
    whole = {"fastgan": 0.011, "eager": 0.06, "floor": 0.0055}
    assert report.weighted(results) == {"CycleGAN": pytest.approx(whole)}
    results["rows"] = [each for each in results["rows"] if (each["case"], each["contestant"]) != ("call 2", "fastgan")]
    assert report.weighted(results) == {"CycleGAN": {"eager": pytest.approx(0.06)}}


def test_a_changed_working_tree_shows() -> None:
    assert report.short({"commit": "0123456789abcdef"}) == "0123456789ab"
    assert report.short({"commit": "0123456789abcdef+changes"}) == "0123456789ab+changes"


def test_the_summary_leaves_out_what_the_headline_has() -> None:
    lines = report.summary(RESULTS)
    assert lines[2:] == ["| norm | 1 | compile | 2.0× | 2.0–2.0× |", "| norm | 2 | eager | 6.0× | 4.0–9.0× |"]


def test_means_are_of_one_pass() -> None:
    """Of whatever spelling. A call that the models make is one case, with all its passes."""
    words = (
        ("norm", "[2, 2] float32, forward"),
        ("norm", "[2, 2] NCHW double backward"),
        ("norm", "[2, 2] forward+backward"),
    )
    words += ("norm", "[4, 4], forward + backward"), ("small", "forward"), ("calls", "norm 2x2, double backward")
    rows = []
    for operator, case in words:
        facts = {"calls": 2, "step_calls": 2, "step": "a step"} if operator == "calls" else {}
        rows += [row(case, "fastgan", 1.0, operator, **facts), row(case, "eager", 3.0, operator, **facts)]
    found = report.by_pass({"rows": rows})
    assert {name: len(cases) for name, cases in found.items()} == {
        "norm, forward": 1, "norm, double backward": 1, "norm, forward + backward": 2, "small": 1, "calls": 1,
    }  # fmt: skip


def test_condense_takes_device_times_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "commit", lambda: "abc")
    info = {"operator": "norm", "case": "a", "contestant": "fastgan"}
    device = {"device_p20": 1.0, "device_p50": 2.0, "device_p80": 3.0}
    samples = [5.0, 1.0, 4.0, 2.0, 3.0, 6.0]
    raw = {
        "benchmarks": [
            {"extra_info": info, "stats": {"data": samples, "median": 3.5}},
            {"extra_info": info | device, "stats": {"data": samples, "median": 3.5}},
        ],
        "environment": {"device": "cpu, 2 threads", "instructions": "AVX2"},
        "machine_info": {"cpu": {"brand_raw": "a processor"}},
        "unsupported": [],
        "left_out": ["test_l1.py::test_b"],
        "failed": ["test_l1.py::test_c"],
    }
    results = report.condense(raw)
    assert results["processor"] == "a processor (AVX2)"
    assert results["left_out"] == ["test_l1.py::test_b"]
    assert results["failed"] == ["test_l1.py::test_c"]
    wall, on_device = results["rows"]
    assert (wall["p20"], wall["p50"], wall["p80"], wall["samples"]) == (2.0, 3.0, 5.0, 6)
    assert (on_device["p20"], on_device["p50"], on_device["p80"]) == (1.0, 2.0, 3.0)


def test_generated_blocks_are_rewritten_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (tmp_path / "docs").mkdir()
    (results / "r.json").write_text(json.dumps(RESULTS))
    page = "before\n<!-- {}: r.json -->\nstale\n<!-- end of figures -->\nafter\n"
    (tmp_path / "README.md").write_text(page.format("figures"))
    (tmp_path / "docs" / "page.md").write_text(page.format("headline"))
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "RESULTS", results)
    assert report.update_pages(check=True) == 1
    assert "stale" in (tmp_path / "README.md").read_text()
    assert report.update_pages(check=False) == 0
    assert report.update_pages(check=True) == 0
    for path, figure in ((tmp_path / "README.md", "| 6.0× |"), (tmp_path / "docs" / "page.md", "| 5.5× |")):
        text = path.read_text()
        assert text.startswith("before\n<!-- ")
        assert text.endswith("<!-- end of figures -->\nafter\n")
        assert figure in text
        assert "stale" not in text
        assert "a processor, cpu, 2 threads, torch 2.11, commit 0123456789ab" in text
