"""Draw the scaling study: its points in, a figure with a panel for each size out."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.targets import Row

LABELS = {"B": "images B", "P": "predictions P", "T": "targets T", "C": "classes C"}
COLORS = ["#d62728", "#1f77b4", "#2ca02c", "#9467bd"]


def draw_scaling(points: Sequence[Row], path: Path) -> None:
    """Write time (above) and peak memory (below) against each size, on logarithmic axes, with a line of slope 1."""
    sizes = list(dict.fromkeys(point["size"] for point in points))
    figure = Figure(figsize=(3 * len(sizes), 5.6), layout="constrained")
    panels = figure.subplots(2, len(sizes), sharey="row", squeeze=False)
    for row, (field, label) in enumerate((("time_ms", "forward + backward, ms"), ("peak_mib", "peak memory, MiB"))):
        for column, size in enumerate(sizes):
            axes = panels[row][column]
            mine = [point for point in points if point["size"] == size]
            for criterion, color in zip(dict.fromkeys(point["criterion"] for point in points), COLORS, strict=False):
                line = [point for point in mine if point["criterion"] == criterion]
                axes.loglog(
                    [x["value"] for x in line], [x[field] for x in line], "o-", color=color, ms=3, lw=1, label=criterion
                )
            low, high = min(x["value"] for x in mine), max(x["value"] for x in mine)
            top = max(point[field] for point in mine)
            axes.loglog([low, high], [top * low / high, top], ":", color="#888888", lw=1, label="slope 1")
            values = list(dict.fromkeys(point["value"] for point in mine))
            axes.set_xticks(values, [str(value) for value in values])
            axes.minorticks_off()
            axes.set_xlabel(LABELS[size])
            if column == 0:
                axes.set_ylabel(label)
    panels[0][0].legend(fontsize="x-small", frameon=False)
    with rc_context({"svg.hashsalt": "uotod", "svg.fonttype": "none"}):  # the same points make the same file
        figure.savefig(path, metadata={"Date": None})
