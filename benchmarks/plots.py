"""The report's plots: SVG, which is small and diffs, and PNG beside it, which git ignores."""

from __future__ import annotations

import io
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

OURS, THEIRS = "#2f6db3", "#d0743c"
# The contestants that have bars: variants of ours, floors and copies have none.
COLOURS = {"eager": THEIRS, "plain": "#c9a187", "compile": "#7a9e4f", "torch": THEIRS}
COLOURS |= {"official": "#a0522d", "published": "#a0522d"}
COLOURS |= {"numpy": "#8064a2", "scipy": "#b8a13a", "pot": "#4aa3a3", "pot, float64": "#4aa3a3"}
# Below this a call's time is Python's, and the roofline says nothing of it.
_LARGE = 2**18  # bytes


def draw(results: dict[str, Any], ratios: dict[str, dict[str, dict[str, float]]], stem: Path) -> list[Path]:
    """Writes, where the results have them, <stem>.svg (speed-ups), <stem>-roofline.svg and <stem>-scaling.svg."""
    import matplotlib

    matplotlib.use("Agg")
    # No dates or random ids: the same results give the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "fastgan", "svg.fonttype": "none", "font.size": 8})
    matplotlib.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    figures = {}
    if any("fastgan" in contestants and COLOURS.keys() & contestants for cases in ratios.values()
           for contestants in cases.values()):  # fmt: skip
        figures[""] = _speed_ups(ratios)
    large = [row for row in results["rows"] if "operations" in row and row.get("bytes", 0) >= _LARGE]
    if "copy_bytes_per_s" in results and large:
        figures["-roofline"] = _roofline(large, results["copy_bytes_per_s"], results["operations_per_s"])
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
    """How many times longer others take: a bar for an operator's geometric mean, a dot for each of its cases."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    groups: dict[str, dict[str, list[float]]] = {}
    for operator, cases in ratios.items():
        group: dict[str, list[float]] = defaultdict(list)
        for contestants in cases.values():
            for name, ratio in contestants.items() if "fastgan" in contestants else ():
                if name in COLOURS:
                    group[name].append(ratio)
        if group:
            groups[operator] = group
    bars = sum(map(len, groups.values()))
    figure, axes = plt.subplots(figsize=(8, 1 + 0.13 * bars + 0.1 * len(groups)), layout="constrained")
    place, middles = 0.0, []
    for group in groups.values():
        middles.append(place + (len(group) - 1) / 2)
        for name, each in group.items():
            mean = geometric_mean(each)
            axes.barh(place, mean - 1, left=1, color=COLOURS[name], height=0.8, alpha=0.75)
            if len(each) > 1:
                axes.scatter(each, [place] * len(each), s=4, color="black", linewidths=0, zorder=3)
            # Apart: beside the last dot the mean would seem to be that case's.
            axes.annotate(f"{mean:.1f}×", (1.005, place), xycoords=("axes fraction", "data"), va="center", fontsize=6)
            place += 1
        place += 0.8
    axes.axvline(1.0, color="black", linewidth=0.8)
    _log_ticks(axes.xaxis, [ratio for group in groups.values() for each in group.values() for ratio in each], "×")
    axes.set_yticks(middles, list(groups), fontsize=7)
    axes.set_xlabel("times as long as fastgan: geometric mean over the cases, each case a dot")
    axes.set_ylim(place, -1)
    shown = dict.fromkeys(name for group in groups.values() for name in group)
    handles = [Patch(color=COLOURS[name], alpha=0.75, label=name) for name in shown]
    axes.legend(handles=handles, fontsize=7, loc="upper left", bbox_to_anchor=(1.08, 1), frameon=False)
    return figure


def _roofline(rows: list[dict[str, Any]], bandwidth: float, peak: float) -> Any:
    """Operations per second over operations per byte, under what a copy and a matrix product reach."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    intensities = [row["operations"] / row["bytes"] for row in rows]
    low, high = min(intensities) / 1.5, max(*intensities, 2 * peak / bandwidth)
    points = [low * (high / low) ** (i / 99) for i in range(100)]
    axes.plot(points, [min(x * bandwidth, peak) / 1e9 for x in points], color="black", linewidth=1)
    copy = (low, low * bandwidth / 1e9)
    axes.annotate(f"copy: {bandwidth / 1e9:.0f} GB/s", copy, (0, 14), textcoords="offset points", fontsize=7)
    axes.annotate(f"matrix product: {peak / 1e9:.0f} Gop/s", (high, peak / 1e9), fontsize=7, ha="right", va="bottom")
    markers = dict(zip(dict.fromkeys(row["operator"] for row in rows), "osD^vP*Xph<>", strict=False))
    reached = []
    for row in rows:
        if row["contestant"] not in ("fastgan", "eager", "torch"):
            continue
        reached.append(row["operations"] / row["p50"] / 1e9)
        axes.scatter(
            row["operations"] / row["bytes"],
            reached[-1],
            s=16,
            marker=markers.get(row["operator"], "."),
            color=OURS if row["contestant"] == "fastgan" else THEIRS,
            linewidths=0,
            alpha=0.8,
        )
    for operator, marker in markers.items():
        axes.scatter([], [], s=16, marker=marker, color=OURS, label=operator)
    axes.scatter([], [], s=16, marker="s", color=THEIRS, label="the same in eager PyTorch")
    axes.set(xlabel="operations per byte", ylabel="Gop/s")
    _log_ticks(axes.xaxis, [low, high])
    _log_ticks(axes.yaxis, [*reached, copy[1], peak / 1e9])
    axes.set_title("above the line: tensors that stay in caches", fontsize=7)
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
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
        every = []
        for name, colour in (("fastgan", OURS), ("eager", THEIRS)):
            low, middle, high = ([1e3 * row[name][q] for row in rows] for q in ("p20", "p50", "p80"))
            axes.plot(places, middle, "o-", color=colour, markersize=3, label=name)
            axes.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)
            every += low + high
        axes.set_xticks(places, [str(row["value"]) for row in rows], fontsize=6)
        axes.set(title=operator, xlabel=varied, ylabel="ms")
        _log_ticks(axes.yaxis, every)
        axes.legend(fontsize=6)
    return figure


def _log_ticks(axis: Any, values: Sequence[float], unit: str = "") -> None:
    """A logarithmic axis about ``values``, with a tick at 1, 2 and 5 times each power of ten in plain figures."""
    from matplotlib.ticker import NullLocator

    low, high = min(values) / 1.15, max(values) * 1.15
    steps = (1,) if high / low > 5000 else (1, 2, 5)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    ticks = [tick for tick in ticks if low <= tick <= high]
    name = axis.axis_name
    axis.axes.set(**{f"{name}scale": "log", f"{name}lim": (low, high)})
    axis.set_ticks(ticks, [f"{tick:g}{unit}" for tick in ticks], fontsize=6)
    axis.set_minor_locator(NullLocator())
