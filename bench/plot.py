"""Draws a result: one bar for each measure, cafs beside ext4.  Needs matplotlib.

Bars are ratios on a logarithmic scale, so twice as fast and half as fast look alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.result import Result

_TICKS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)


class PlotError(Exception):
    """matplotlib is not installed."""


def draw(result: Result, path: Path) -> None:
    """Write a PNG.

    Raises:
        PlotError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise PlotError("the plot needs matplotlib: pip install matplotlib") from None
    # A dot marks what only accompanies a measure: its latency, its processor time.
    measured = [measure for measure in result.measured() if "." not in measure.key]
    rows = [(m, r) for m in measured if (r := result.ratio(m)) is not None]
    rows.reverse()
    figure = Figure(figsize=(9, 1.2 + 0.3 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    colours = {True: "tab:green", False: "tab:red", None: "tab:blue"}
    axes.barh(
        [measure.title for measure, _ in rows],
        [ratio - 1 for _, ratio in rows],
        left=1,
        color=[colours[result.met(measure)] for measure, _ in rows],
    )
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    for position, (measure, _) in enumerate(rows):
        target = measure.target
        if target is not None and target.of == "ratio":
            axes.plot([target.limit] * 2, [position - 0.4, position + 0.4], color="black")
    ticks = [t for t in _TICKS if min(r for _, r in rows) / 2 <= t <= max(r for _, r in rows) * 2]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.margins(y=0.01)
    axes.set_xlabel(
        "cafs / ext4: of speeds, or of stored bytes\n"
        "black marks are targets; green: met, red: missed"
    )
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(str(path))
