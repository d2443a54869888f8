"""``python -m benchmarks.report``: runs the benchmarks, writes a result file, a report and the README's figures.

python -m benchmarks.report                       run everything, write benchmarks/results/<device>.json, .md and .svg
python -m benchmarks.report --from FILE           only write the report of a result file
python -m benchmarks.report --readme [--check]    write (or only compare) the README's figures from committed results
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_BEGIN, _END = "<!-- figures: {} -->", "<!-- end of figures -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, help="a result file: write its report, measure nothing")
    parser.add_argument("--readme", action="store_true", help="write the README's figures from the committed results")
    parser.add_argument("--check", action="store_true", help="with --readme: write nothing, fail if they differ")
    parser.add_argument("--out", type=Path, help="the result file to write (default: benchmarks/results/<device>.json)")
    parser.add_argument("pytest_args", nargs="*", help="passed on to pytest, after --")
    arguments = parser.parse_args()
    if arguments.readme:
        raise SystemExit(update_readme(check=arguments.check))
    source = arguments.source or measure(arguments.out, arguments.pytest_args)
    write_report(source)


def measure(out: Path | None, pytest_args: list[str]) -> Path:
    """Runs the benchmarks and writes their results with what is needed to read them."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.json"
        code = subprocess.call(
            [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-only", "--benchmark-save-data", "-q",
             f"--benchmark-json={raw}", *pytest_args], cwd=ROOT,
        )  # fmt: skip
        if not raw.exists() or not raw.read_text().strip():
            raise SystemExit(code or 1)
        results = condense(json.loads(raw.read_text()))
    name = re.sub(r"[^a-z0-9]+", "-", results["device"].lower()).strip("-")
    out = out or RESULTS / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {out}")
    return out


def condense(raw: dict[str, Any]) -> dict[str, Any]:
    """The device, versions, commit, and of every case and contestant the 20th, 50th and 80th percentile in seconds."""
    import torch

    from benchmarks.harness import MEMORY_KEPT, device_name

    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    rows = []
    for entry in raw["benchmarks"]:
        info = dict(entry["extra_info"])
        samples = sorted(entry["stats"].get("data") or [entry["stats"]["median"]])
        quantile = lambda q, samples=samples: samples[round(q * (len(samples) - 1))]
        row = {key: info.pop(key) for key in ("operator", "case", "contestant")}
        row |= {"p20": quantile(0.2), "p50": quantile(0.5), "p80": quantile(0.8), "samples": len(samples)}
        if "device_p50" in info:
            row |= {f"p{q}": info.pop(f"device_p{q}") for q in (20, 50, 80)}
        info.pop("device", None)
        rows.append(row | info)
    return {
        "device": device_name(),
        "processor": raw["machine_info"].get("cpu", {}).get("brand_raw", platform.processor()),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "commit": commit.stdout.strip(),
        "freed_memory_kept": MEMORY_KEPT,
        "rows": rows,
    }


def ratios(results: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
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


def write_report(source: Path) -> None:
    """Writes ``source``'s report beside it: tables as Markdown and bars of the speed-ups as SVG."""
    results = json.loads(source.read_text())
    kept = results.get("freed_memory_kept")
    lines = [
        f"# Benchmarks on {results['device']}",
        "",
        f"{results['processor']}; torch {results['versions']['torch']}, Python {results['versions']['python']}; "
        f"commit {results['commit'][:12]}. Medians; every case's result was checked before it was timed."
        + (" Freed memory was kept (mallopt): outputs do not fault in new pages." if kept else ""),
    ]
    for operator, cases in ratios(results).items():
        others = sorted({name for case in cases.values() for name in case} - {"fastgan"})
        lines += ["", f"## {operator}", "", "| case | fastgan | " + " | ".join(f"{o} ÷ fastgan" for o in others) + " |"]
        lines.append("|---|---:|" + "---:|" * len(others))
        for case, contestants in cases.items():
            cells = [f"{contestants[o]:.2f}×" if o in contestants else "" for o in others]
            ours = _time(contestants["fastgan"]) if "fastgan" in contestants else ""
            lines.append(f"| {case} | {ours} | " + " | ".join(cells) + " |")
    source.with_suffix(".md").write_text("\n".join(lines) + "\n")
    _plot(results, source.with_suffix(".svg"))
    print(f"wrote {source.with_suffix('.md')} and {source.with_suffix('.png')}")


def _plot(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bars = [
        (f"{operator}\n{case}", contestants["eager"])
        for operator, cases in ratios(results).items()
        for case, contestants in cases.items()
        if "eager" in contestants and "fastgan" in contestants
    ]
    figure, axes = plt.subplots(figsize=(8, 1 + 0.35 * len(bars)), layout="constrained")
    axes.barh([name.replace("\n", "  ") for name, _ in bars], [ratio for _, ratio in bars], color="#3b6ea5")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("times faster than eager PyTorch")
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    figure.savefig(path)
    plt.close(figure)


def summary(results: dict[str, Any]) -> list[str]:
    """One table: for each operator, the geometric mean over its cases against each contestant, and the range."""
    lines = ["| operator | cases | against | geometric mean | range |", "|---|---:|---|---:|---:|"]
    for operator, cases in ratios(results).items():
        names = {name for case in cases.values() for name in case}
        # Variants of our own and the copy are for the report; here are only competitors.
        for other in sorted(name for name in names if not name.startswith("fastgan") and name != "copy"):
            values = [case[other] for case in cases.values() if other in case and "fastgan" in case]
            if values:
                mean = math.exp(sum(map(math.log, values)) / len(values))
                spread = f"{min(values):.1f}–{max(values):.1f}×"
                lines.append(f"| {operator} | {len(values)} | {other} | {mean:.1f}× | {spread} |")
    return lines


def update_readme(*, check: bool) -> int:
    """Rewrites every block of figures in README.md from its result file; 1 if ``check`` and a block differs."""
    readme = ROOT / "README.md"
    text = readme.read_text()

    def figures(match: re.Match[str]) -> str:
        source = match.group(1)
        results = json.loads((RESULTS / source).read_text())
        note = f"{results['processor']}, {results['device']}, torch {results['versions']['torch']}, " \
               f"commit {results['commit'][:12]}"  # fmt: skip
        return "\n".join([_BEGIN.format(source), *summary(results), "", note, _END])

    pattern = re.escape(_BEGIN).replace(r"\{\}", r"([\w.-]+)") + r".*?" + re.escape(_END)
    updated = re.sub(pattern, figures, text, flags=re.DOTALL)
    if check:
        return int(updated != text)
    readme.write_text(updated)
    return 0


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.2f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


if __name__ == "__main__":
    main()
