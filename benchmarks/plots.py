"""The report's plots: SVG, which is small and diffs, and PNG beside it, which git ignores."""

from __future__ import annotations

import io
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

OURS, THEIRS = "#3b6ea5", "#c4713b"


def draw(results: dict[str, Any], ratios: dict[str, dict[str, dict[str, float]]], stem: Path) -> list[Path]:
    """Writes <stem>.svg (speed-ups), and where the results have them <stem>-roofline.svg and <stem>-scaling.svg."""
    import matplotlib

    matplotlib.use("Agg")
    # No dates or random ids: the same results give the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "fastgan", "svg.fonttype": "none", "font.size": 8})
    figures = {"": _speed_ups(ratios)}
    if "copy_bytes_per_s" in results and any("operations" in row for row in results["rows"]):
        figures["-roofline"] = _roofline(results)
    if "scaling" in results:
        figures["-scaling"] = _scaling(results["scaling"])
    written = []
    for suffix, figure in figures.items():
        for extension, metadata in ((".svg", {"Date": None}), (".png", None)):
            path = stem.with_name(stem.name + suffix + extension)
            drawn = io.BytesIO()
            figure.savefig(drawn, format=extension[1:], dpi=90, metadata=metadata)
            path.write_bytes(re.sub(rb"[ \t]+\n", b"\n", drawn.getvalue()) if extension == ".svg" else drawn.getvalue())
            written.append(path)
    import matplotlib.pyplot as plt

    plt.close("all")
    return written


def _speed_ups(ratios: dict[str, dict[str, dict[str, float]]]) -> Any:
    """A bar for each case: how many times longer the plain contestant takes."""
    import matplotlib.pyplot as plt

    bars = []
    for operator, cases in ratios.items():
        for case, contestants in cases.items():
            plain = next(
                (contestants[name] for name in ("eager", "torch", "plain", "pot") if name in contestants), None
            )
            if plain is not None and "fastgan" in contestants:
                bars.append((f"{operator}  {case}", plain))
    figure, axes = plt.subplots(figsize=(8, 1 + 0.16 * len(bars)), layout="constrained")
    axes.barh([name for name, _ in bars], [ratio for _, ratio in bars], color=OURS)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("times longer than fastgan: eager PyTorch (Wasserstein: torch.sort, or POT)")
    axes.invert_yaxis()
    axes.margins(y=0.005)
    axes.tick_params(axis="y", labelsize=5)
    return figure


def _roofline(results: dict[str, Any]) -> Any:
    """Operations per second over operations per byte, under what a copy and a matrix product reach."""
    import matplotlib.pyplot as plt

    bandwidth, peak = results["copy_bytes_per_s"], results["operations_per_s"]
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    rows = [row for row in results["rows"] if "operations" in row and "bytes" in row]
    intensities = [row["operations"] / row["bytes"] for row in rows]
    low, high = min(intensities) / 2, max(*intensities, 2 * peak / bandwidth)
    points = [low * (high / low) ** (i / 99) for i in range(100)]
    axes.plot(points, [min(x * bandwidth, peak) / 1e9 for x in points], color="black", linewidth=1)
    axes.annotate(f"copy: {bandwidth / 1e9:.0f} GB/s", (low, low * bandwidth / 1e9), fontsize=7)
    axes.annotate(f"matrix product: {peak / 1e9:.0f} Gop/s", (high, peak / 1e9), fontsize=7, ha="right", va="bottom")
    markers = dict(zip(dict.fromkeys(row["operator"] for row in rows), "osD^vP*Xph<>", strict=False))
    for row in rows:
        if row["contestant"] not in ("fastgan", "eager", "torch"):
            continue
        axes.scatter(
            row["operations"] / row["bytes"],
            row["operations"] / row["p50"] / 1e9,
            s=14,
            marker=markers.get(row["operator"], "."),
            color=OURS if row["contestant"] == "fastgan" else THEIRS,
            linewidths=0,
        )
    for operator, marker in markers.items():
        axes.scatter([], [], s=14, marker=marker, color=OURS, label=operator)
    axes.scatter([], [], s=14, marker="s", color=THEIRS, label="the same in eager PyTorch")
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="Gop/s")
    axes.set_title("above the line: tensors that stay in caches", fontsize=7)
    axes.legend(fontsize=6, loc="lower right")
    return figure


def _scaling(scaling: dict[str, Any]) -> Any:
    """A panel for each operator and what is varied."""
    import matplotlib.pyplot as plt

    panels: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in scaling["rows"]:
        panels[row["varied"], row["operator"]].append(row)
    columns = 3
    lines = math.ceil(len(panels) / columns)
    figure, grid = plt.subplots(lines, columns, figsize=(9, 2.4 * lines), layout="constrained", squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, ((varied, operator), rows) in zip(grid.flat, sorted(panels.items()), strict=False):
        places = range(len(rows))
        for name, colour in (("fastgan", OURS), ("eager", THEIRS)):
            axes.plot(places, [1e3 * row[name]["p50"] for row in rows], "o-", color=colour, markersize=3, label=name)
            low, high = ([1e3 * row[name][q] for row in rows] for q in ("p20", "p80"))
            axes.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set_xticks(places, [str(row["value"]) for row in rows], fontsize=6)
        axes.set(yscale="log", title=operator, xlabel=varied, ylabel="ms")
        axes.legend(fontsize=6)
    return figure
