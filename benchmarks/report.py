"""``python -m benchmarks.report``: runs the benchmarks, writes a result file, a report and the README's figures.

python -m benchmarks.report                       run everything, write benchmarks/results/<device>.json, .md and .svg
python -m benchmarks.report --parts bench,scaling only some of bench, scaling, profile; others stay as the file has them
python -m benchmarks.report --from FILE [FILE…]   only write the report of a result file, after adding the others to it;
                                                  FILE.rows.jsonl is what benchmarks that were killed had found
python -m benchmarks.report --readme [--check]    write (or only compare) what README.md and docs/ show of the results
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from benchmarks import plots

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PARTS = ("bench", "scaling", "profile")
Results = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--from", dest="sources", type=Path, nargs="+", metavar="FILE", help="result files: report, measure nothing"
    )
    parser.add_argument("--readme", action="store_true", help="write the figures of README.md and docs/")
    parser.add_argument("--check", action="store_true", help="with --readme: write nothing, fail if they differ")
    parser.add_argument("--out", type=Path, help="the result file to write (default: benchmarks/results/<device>.json)")
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure (default: all of %(default)s)")
    parser.add_argument("pytest_args", nargs="*", help="passed on to pytest, after --")
    arguments = parser.parse_args()
    if arguments.readme:
        raise SystemExit(update_pages(check=arguments.check))
    parts = arguments.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such parts: {', '.join(sorted(unknown))}")
    source = merge(arguments.sources) if arguments.sources else measure(arguments.out, parts, arguments.pytest_args)
    results = json.loads(source.read_text())
    if "rows" in results:
        write_report(source)
    else:
        print("no report: the result file has no benchmarks yet")
    if not arguments.sources and "bench" in parts and (failed := results["failed"]):
        raise SystemExit("failed, and without figures: " + ", ".join(failed))


def merge(sources: list[Path]) -> Path:
    """Adds the parts of the later result files to the first."""
    first, *others = sources = [_result_file(source) for source in sources]
    if others:
        results: Results = {}
        for source in sources:
            results |= json.loads(source.read_text())
        first.write_text(dump(results))
    return first


def _result_file(source: Path) -> Path:
    """The result file itself; or one made of the rows that benchmarks had written one by one."""
    if source.suffix != ".jsonl":
        return source
    made = source.with_name(source.name.removesuffix(".rows.jsonl") + ".json")
    results = json.loads(made.read_text()) if made.exists() else {}
    made.write_text(dump(results | condense(_interrupted(source))))
    return made


# --- measuring ----------------------------------------------------------------------------------------------------


def measure(out: Path | None, parts: list[str], pytest_args: list[str]) -> Path:
    """Runs ``parts``, each in a process of its own, and writes what each found as soon as it ends."""
    from benchmarks.harness import device_name

    name = re.sub(r"[^a-z0-9]+", "-", device_name().lower()).strip("-")
    out = out or RESULTS / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    results: Results = json.loads(out.read_text()) if out.exists() else {}
    for part in parts:
        with tempfile.TemporaryDirectory() as folder:
            raw = Path(folder) / "raw.json"
            module = ["benchmarks.scaling"] if part == "scaling" else ["benchmarks.profile_step"]
            command = [*module, "--out", str(raw)]
            if part == "bench":
                command = ["pytest", "benchmarks", "--benchmark-only", "--benchmark-save-data", "-q",
                           f"--benchmark-json={raw}", *pytest_args]  # fmt: skip
            # Here nothing is left out for want of time, unless whoever calls sets a limit.
            rows = out.with_suffix(".rows.jsonl")
            rows.unlink(missing_ok=True)
            environment = {"FASTGAN_BENCH_UNTIL": "inf"} | os.environ | {"FASTGAN_BENCH_ROWS": str(rows)}
            process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, env=environment)
            try:
                code = process.wait()
            except KeyboardInterrupt:
                code = process.wait()  # interrupted with us, it writes what it has
            if raw.exists() and raw.read_text().strip():
                found = json.loads(raw.read_text())
            elif rows.exists():
                found = _interrupted(rows)
            else:
                raise SystemExit(f"{part} left no results (exit status {code})")
        rows.unlink(missing_ok=True)
        results |= condense(found) if part == "bench" else {part: found | {"commit": commit()}}
        out.write_text(dump(results))
        print(f"wrote {part} to {out}")
    return out


def _interrupted(rows: Path) -> dict[str, Any]:
    """What pytest-benchmark would have written, as far as its session came."""
    from benchmarks.harness import ENDED

    first, *entries = [json.loads(line) for line in rows.read_text().splitlines() if line.endswith("}")]
    return {**first, "benchmarks": entries, "machine_info": {}, "unsupported": [], "left_out": [ENDED], "failed": []}


def dump(results: Results) -> str:
    """As JSON, with a line for each row."""
    entries = []
    for key, value in results.items():
        rows = ",\n".join(map(json.dumps, value)) if isinstance(value, list) else None
        entries.append(f"{json.dumps(key)}: " + (json.dumps(value) if rows is None else f"[\n{rows}\n]"))
    return "{\n" + ",\n".join(entries) + "\n}\n"


def condense(raw: dict[str, Any]) -> Results:
    """The device, versions, commit, and of every case and contestant the 20th, 50th and 80th percentile in seconds."""
    from benchmarks.harness import quantiles

    rows = []
    for entry in raw["benchmarks"]:
        info = dict(entry["extra_info"])
        samples = entry["stats"].get("data") or [entry["stats"]["median"]]
        row = {key: info.pop(key) for key in ("operator", "case", "contestant")}
        row |= quantiles(samples) | {"samples": len(samples)}
        if "device_p50" in info:
            row |= {f"p{q}": info.pop(f"device_p{q}") for q in (20, 50, 80)}
        rows.append(row | info)
    processor = raw["machine_info"].get("cpu", {}).get("brand_raw") or platform.processor() or platform.machine()
    processor += f" ({raw['environment']['instructions']})"
    return {**raw["environment"], "processor": processor, "commit": commit(),
            "unsupported": raw["unsupported"], "left_out": raw["left_out"], "failed": raw["failed"],
            "rows": rows}  # fmt: skip


def commit() -> str:
    """The commit measured (FASTGAN_COMMIT where there is no repository), marked if the working tree differs from it."""
    if given := os.environ.get("FASTGAN_COMMIT"):
        return given
    run = lambda *words: subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    sources = ("fastgan", "csrc", "benchmarks/*.py", "CMakeLists.txt", "setup.py", "constraints.txt")
    changed = run("status", "--porcelain", "--untracked-files=no", "--", *sources).strip()
    return run("rev-parse", "HEAD").strip() + ("+changes" if changed else "")


def short(results: Results) -> str:
    """The commit's first digits, and the mark."""
    digits, plus, mark = str(results["commit"]).partition("+")
    return digits[:12] + plus + mark


# --- reading results ----------------------------------------------------------------------------------------------


def ratios(results: Results) -> dict[str, dict[str, dict[str, float]]]:
    """operator -> case -> contestant -> how many times slower than fastgan it is (fastgan itself: seconds)."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for row in results["rows"]:
        table.setdefault(row["operator"], {}).setdefault(row["case"], {})[row["contestant"]] = row["p50"]
    for cases in table.values():
        for contestants in cases.values():
            ours = contestants.get("fastgan")
            if ours is not None:
                for name in contestants:
                    if name != "fastgan":
                        contestants[name] /= ours
    return table


def by_pass(results: Results) -> dict[str, dict[str, dict[str, float]]]:
    """The ratios, with forward, forward + backward and double backward of an operator apart: a mean over all of them
    would mostly say how many cases each has."""
    counted = {row["operator"] for row in results["rows"] if "calls" in row}
    table: dict[str, dict[str, dict[str, float]]] = {}
    for operator, cases in ratios(results).items():
        for case, contestants in cases.items():
            found = _PASS.match(case)
            kind = "" if found is None or operator in counted else f", {found[1].replace('d+b', 'd + b')}"
            table.setdefault(operator + kind, {})[case] = contestants
    return table


_PASS = re.compile(r".+?[ ,]+(forward ?\+ ?backward|double backward|forward)$")


def weighted(results: Results) -> dict[str, dict[str, float]]:
    """model's step -> contestant -> seconds in all its norms, losses and penalties, each as often as it is called.

    "floor" is what their bytes take at the speed of a large copy. A contestant that did not do every call of a step
    (``step_calls``) has no total.
    """
    totals: dict[str, dict[str, float]] = {}
    left: dict[tuple[str, str], int] = {}
    for row in results["rows"]:
        if "calls" in row:
            step, found = row["step"], {row["contestant"]: row["p50"]}
            if row["contestant"] == "fastgan" and "floor" in row:
                found["floor"] = row["floor"]
            for name, seconds in found.items():
                total = totals.setdefault(step, {})
                total[name] = total.get(name, 0.0) + row["calls"] * seconds
                left[step, name] = left.get((step, name), row["step_calls"]) - row["calls"]
    return {
        step: {name: total[name] for name in sorted(total) if left[step, name] == 0} for step, total in totals.items()
    }


def summary(results: Results) -> list[str]:
    """One table: for each operator and pass, the geometric mean over its cases against each other, and the range."""
    lines = ["| operator | cases | against | geometric mean | range |", "|---|---:|---|---:|---:|"]
    counted = {row["operator"] for row in results["rows"] if "calls" in row}  # the headline has those
    for operator, cases in by_pass(results).items():
        names = {name for case in cases.values() for name in case} if operator not in counted else set()
        # Variants of our own and the copy are for the report; here are only competitors.
        for other in sorted(name for name in names if not name.startswith("fastgan") and name not in ("copy", "floor")):
            values = [case[other] for case in cases.values() if other in case and "fastgan" in case]
            if values:
                mean = geometric_mean(values)
                spread = f"{min(values):.1f}–{max(values):.1f}×"
                lines.append(f"| {operator} | {len(values)} | {other} | {mean:.1f}× | {spread} |")
    return lines


def headline(results: Results) -> list[str]:
    """Time outside convolutions in a training step, from the model-weighted calls and from the profiles."""
    lines = []
    if totals := weighted(results):
        lines += ["| a step's calls of norms, losses and penalties, alone | eager | fastgan | | bytes at copy speed |"]
        lines += ["|---|---:|---:|---:|---:|"]
        for step, seconds in totals.items():
            if {"eager", "fastgan"} <= seconds.keys():
                ours, eager = seconds["fastgan"], seconds["eager"]
                floor = _time(seconds["floor"]) if "floor" in seconds else ""
                lines.append(f"| {step} | {_time(eager)} | {_time(ours)} | {eager / ours:.1f}× | {floor} |")
    if profiles := results.get("profile", {}).get("steps"):
        lines += ["", "| time outside convolutions, profiled | eager | fastgan | | whole step |"]
        lines += ["|---|---:|---:|---:|---:|"]
        for step, contestants in profiles.items():
            ours, eager = (outside(contestants[name]) for name in ("fastgan", "eager"))
            shares = [f"{100 * outside(contestants[n]) / contestants[n]['step']:.0f} %" for n in ("eager", "fastgan")]
            lines.append(
                f"| {step} | {_time(eager)} ({shares[0]} of the step) | {_time(ours)} ({shares[1]}) "
                f"| {eager / ours:.1f}× | {contestants['eager']['step'] / contestants['fastgan']['step']:.1f}× |"
            )
    return lines


def outside(profile: dict[str, Any]) -> float:
    """Seconds of a profiled step that are not in a convolution or matrix product."""
    return float(profile["step"] - sum(profile["parts"].get(name, 0.0) for name in _INSIDE))


_INSIDE = ("convolution forward", "convolution backward", "convolution by fastgan", "matrix product")


# --- the report ---------------------------------------------------------------------------------------------------


def write_report(source: Path) -> None:
    """Writes ``source``'s report beside it: tables as Markdown; plots as SVG, and as PNG."""
    results = json.loads(source.read_text())
    drawn = plots.draw(results, by_pass(results), source.with_suffix(""))
    lines = [*_head(results), ""]
    if found := headline(results):
        lines += ["## Time outside convolutions", "", *_HEADLINE_NOTE, "", *found, ""]
    lines += [f"![{path.stem}]({path.name})" for path in drawn if path.suffix == ".svg"]
    for operator in ratios(results):
        lines += ["", *_operator(results, operator)]
    if "scaling" in results:
        lines += ["", *_scaling(results["scaling"]), *_other_commit(results, "scaling")]
    if "profile" in results:
        lines += ["", *_profile(results["profile"]), *_other_commit(results, "profile")]
    source.with_suffix(".md").write_text("\n".join(lines) + "\n")
    for path in (source.with_suffix(".md"), *drawn):
        print(f"wrote {path}")
    print("\n".join(["", *found, "", *summary(results)]))


_HEADLINE_NOTE = (
    "Every norm, loss and penalty that the models call in a training step, at the shapes and layouts at which they call"
    " it, forward and backward (in a gradient penalty: double backward), measured alone and again and again, times how"
    " often a step makes it. Within a step its inputs come from other operators, on a CPU mostly not from the caches:"
    " the profile says what a step spends, as a whole step less its convolutions and matrix products.",
)


def _head(results: Results) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        f"# Benchmarks on {results['device']}",
        "",
        f"{results['processor']}; {versions}; commit {short(results)}. Medians (20th to 80th percentile of the"
        " samples); every case's result was checked before it was timed."
        + (" Freed memory was kept (mallopt): outputs do not fault in new pages." if kept(results) else ""),
    ]
    if "copy_bytes_per_s" in results:
        lines += [
            "",
            f"A large copy moves {results['copy_bytes_per_s'] / 1e9:.1f} GB/s, read and written, and a large matrix"
            f" product makes {results['operations_per_s'] / 1e9:.0f} Gop/s; the load average was {results['load']:.1f}"
            " at the end. GB/s and % of copy: the bytes that the operation must at least read and write, over its time"
            " and over that bandwidth; floor: the time those bytes take at that bandwidth. On a CPU, tensors that stay"
            " in its caches go beyond 100 %. Peak memory: what PyTorch's allocator held at most beyond the inputs.",
        ]
    if fallbacks := results.get("fallbacks"):
        lines += ["", f"**Not measured on kernels of fastgan's: {'; '.join(fallbacks)}.**"]
    if failed := results.get("failed"):
        lines += ["", f"**Failed, and without figures: {', '.join(failed)}.**"]
    if late := sum(row.get("late", False) for row in results["rows"]):
        lines += ["", f"Time was short: {late} of {len(results['rows'])} rows rest on fewer samples than usual."]
    if left_out := results.get("left_out"):
        lines += ["", f"No time was left for: {', '.join(left_out)}."]
    return lines


def _other_commit(results: Results, part: str) -> list[str]:
    """Of a part that was measured at another time than the rows."""
    own = short(results[part]) if "commit" in results[part] else short(results)
    return [] if own == short(results) else ["", f"Measured at commit {own}."]


def kept(results: Results) -> bool:
    return bool(results.get("freed_memory_kept"))


def _operator(results: Results, operator: str) -> list[str]:
    cases = ratios(results)[operator]
    rows = {(r["case"], r["contestant"]): r for r in results["rows"] if r["operator"] == operator}
    refused = {
        (r["case"], r["contestant"]): r["reason"] for r in results.get("unsupported", []) if r["operator"] == operator
    }
    others = sorted({contestant for _, contestant in (*rows, *refused)} - {"fastgan"})
    ours = [rows[case, "fastgan"] for case in cases if (case, "fastgan") in rows]
    columns: dict[str, Callable[[dict[str, Any]], str]] = {}
    if any("calls" in row for row in ours):
        columns["calls"] = lambda row: f"{row['calls']:g}"
    columns["fastgan"] = lambda row: f"{_time(row['p50'])} ({_time(row['p20'])}–{_time(row['p80'])})"
    if any("gb_per_s" in row for row in ours):
        columns["GB/s"] = lambda row: f"{row['gb_per_s']:.1f}" if "gb_per_s" in row else ""
        columns["% of copy"] = lambda row: f"{row['copy_percent']:.0f}" if "copy_percent" in row else ""
        columns["floor"] = lambda row: _time(row["floor"]) if "floor" in row else ""
    if any("images" in row for row in ours):
        columns["images/s"] = lambda row: f"{row['images'] / row['p50']:.3g}" if "images" in row else ""
    if any("peak_bytes" in row for row in ours):
        columns["peak memory"] = lambda row: _bytes(row["peak_bytes"]) if "peak_bytes" in row else ""
    lines = [f"## {operator}", ""]
    lines.append("| case | " + " | ".join([*columns, *(f"{o} ÷ fastgan" for o in others)]) + " |")
    lines.append("|---|" + "---:|" * (len(columns) + len(others)))
    for case, contestants in cases.items():
        row = rows.get((case, "fastgan"))
        cells = ["" if row is None else column(row) for column in columns.values()]
        for other in others:
            if other in contestants:
                mark = "×" if row is not None else ""
                cell = f"{contestants[other]:.2f}{mark}" if mark else _time(contestants[other])
                peaks = [r.get("peak_bytes") for r in (rows[case, other], row or {})]
                if all(peaks) and peaks[0] >= 2**20 <= 16 * peaks[1]:
                    cell += f" (memory {peaks[0] / peaks[1]:.1f}×)"
            else:
                cell = "unsupported" if (case, other) in refused else ""
            cells.append(cell)
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    reasons = sorted({f"{contestant}: {reason}" for (_, contestant), reason in refused.items()})
    return lines + (["", f"Unsupported: {'; '.join(reasons)}."] if reasons else [])


def _scaling(scaling: dict[str, Any]) -> list[str]:
    lines = [
        "## Scaling",
        "",
        "Medians of interleaved samples.",
        "",
        "| operator | varied | value | fastgan | eager | |",
    ]
    lines.append("|---|---|---:|---:|---:|---:|")
    for row in scaling["rows"]:
        ours, eager = row["fastgan"]["p50"], row["eager"]["p50"]
        lines.append(
            f"| {row['operator']} | {row['varied']} | {row['value']} | {_time(ours)} | {_time(eager)} "
            f"| {eager / ours:.2f}× |"
        )
    return lines


def _profile(profile: dict[str, Any]) -> list[str]:
    lines = [
        "## Where a training step's time goes",
        "",
        f"By torch.profiler, {profile['threads']} threads: self time of operators over that of steps between them"
        " without the profiler. The rest is Python, autograd's engine and small operators that no row names.",
    ]
    for step, contestants in profile["steps"].items():
        names = sorted({name for c in contestants.values() for name in c["parts"]}, key=_part_order(contestants))
        lines += ["", f"### {step}", "", "| | eager | share | fastgan | share |", "|---|---:|---:|---:|---:|"]
        for name in [*names, "outside convolutions and matrix products", "whole step"]:
            cells = []
            for contestant in ("eager", "fastgan"):
                c = contestants[contestant]
                whole = {"whole step": c["step"], "outside convolutions and matrix products": outside(c)}
                seconds = whole.get(name, c["parts"].get(name, 0.0))
                cells += [_time(seconds) if seconds else "", f"{100 * seconds / c['step']:.1f} %"]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        ours = contestants["fastgan"]
        left = sorted(((s, name) for name, s in ours["parts"].items() if name not in _INSIDE), reverse=True)
        largest = ", ".join(f"{name} {_time(seconds)}" for seconds, name in left[:4] if seconds > 0)
        lines += ["", f"What remains outside convolutions and matrix products with fastgan: {largest}."]
    return lines


def _part_order(contestants: dict[str, Any]) -> Callable[[str], tuple[float, str]]:
    return lambda name: (-contestants["eager"]["parts"].get(name, 0.0), name)


# --- README and docs ----------------------------------------------------------------------------------------------


def update_pages(*, check: bool) -> int:
    """Rewrites every generated block of README.md and docs/ from its result file; 1 if ``check`` and one differs."""
    differs = False
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text()
        updated = re.sub(_BLOCK, lambda match: "\n".join([match[1], *_block(match[2], match[3]), match[4]]), text)
        differs |= updated != text
        if not check:
            page.write_text(updated)
    return int(check and differs)


_BLOCK = re.compile(r"(<!-- (figures|headline|registers): ([\w.-]+) -->)\n.*?(<!-- end of figures -->)", re.DOTALL)


def _block(kind: str, source: str) -> list[str]:
    results = json.loads((RESULTS / source).read_text())
    if kind == "registers":
        from fastgan.kernels.triton import aot

        table = aot.table([line for line in results["lines"] if line["arch"] == 90])
        return [table, "", f"Triton {results['triton']}"]
    note = f"{results['processor']}, {results['device']}, torch {results['versions']['torch']}, " \
           f"commit {short(results)}"  # fmt: skip
    if kind == "headline":
        return [*headline(results), "", note]
    chart = f"![how many times as long as fastgan others take](benchmarks/results/{Path(source).stem}.svg)"
    fold = ["", "<details><summary>the same as a table</summary>", "", *summary(results), "", "</details>", ""]
    return [chart, *fold, note]


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.2f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def _bytes(count: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


if __name__ == "__main__":
    main()
