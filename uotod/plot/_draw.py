"""Draw on matplotlib figures: scenes with the links of their plan, and heat maps of costs and plans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uotod.check import check_flag
from uotod.plot._scene import GREY, PALETTE, Array, Columns, Scene

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# widths in points; that of a link is for a mass of 1
LINK_WIDTH, TARGET_LINE, PRED_LINE, BACKGROUND_LINE = 5.0, 2.2, 1.1, 0.6
MAX_ROWS = 100  # of a heat map
GAP = 0.3  # between targets and background, in columns


def new_figure(width: float, height: float, title: str | None) -> Figure:
    """Return a figure that draws itself, without pyplot's global state."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "uotod[plot]"') from error
    figure = Figure((width, height + 0.3 * (title is not None)), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    if title is not None:
        figure.suptitle(title, fontsize=11)
    return figure


def best_rows(score: Array, count: int = MAX_ROWS) -> NDArray[np.int64]:
    """Return the indices of the predictions with the highest scores, in order."""
    return np.sort(np.argsort(-score, kind="stable")[:count])


def panel_size(scene: Scene, width: float, max_height: float) -> tuple[float, float]:
    """Return width and height in inches of a panel that shows a scene."""
    left, right, bottom, top = scene.extent
    ratio = min(max((bottom - top) / (right - left), 0.2), 5.0)
    width = min(width, max_height / ratio)
    return width, width * ratio


def heat_size(rows: NDArray[np.int64], columns: Columns, annotate: bool | None) -> tuple[float, float]:
    """Return width and height in inches of a heat map, without limit if values are to be printed in its cells."""
    width, height = max(0.5 * len(columns.names), 1.6), max(0.32 * len(rows), 1.2)
    return (width, height) if annotate else (min(width, 9.0), min(height, 7.0))


def draw_matching(axes: Axes, scene: Scene, mass: Array, width: float, top: float) -> None:
    """Draw a scene and a plan (P, T + 1) with no mass above `top` in a panel of `width` inches."""
    from matplotlib.collections import LineCollection, PolyCollection
    from matplotlib.patheffects import withStroke

    colors, T, scale = scene.columns.colors, len(scene.targets), _line_scale(width)
    pred, target = np.nonzero(mass[:, :T] >= scene.min_mass)
    pred, target = np.stack([pred, target])[:, np.argsort(mass[pred, target], kind="stable")]  # the heaviest on top
    linked, ignored, visible = np.isin(np.arange(len(mass)), pred), mass.sum(1) == 0, np.ones(len(mass), dtype=bool)
    best = np.where(linked, mass.argmax(1), T)
    if len(mass) > scene.max_preds:
        visible = linked & np.isin(np.arange(len(mass)), best_rows(mass[:, :T].sum(1), scene.max_preds))
    fade = min(1.0, max(0.3, 60 / max(len(pred), 1)))  # many lines would hide the image

    if scene.image is not None:
        axes.imshow(0.4 + 0.6 * scene.image, extent=scene.extent)  # paler, to set off what is drawn on it
    for gid, rows, thickness, style, alpha in (
        ("background", visible & (best == T) & ~ignored, BACKGROUND_LINE, "-", 0.6),
        ("ignored", visible & ignored, BACKGROUND_LINE, ":", 0.9),
        ("predictions", visible & (best < T), PRED_LINE, "-", max(fade, 0.6)),
    ):
        boxes = PolyCollection(_corners(scene.preds[rows]), facecolors="none", edgecolors=colors[best[rows]], gid=gid)
        boxes.set(linewidths=thickness * scale, linestyles=style, alpha=alpha)
        axes.add_collection(boxes)
    centres, ends = scene.preds.reshape(-1, 2, 2).mean(1), scene.targets.reshape(-1, 2, 2).mean(1)
    lines, widths = list(np.stack([centres[pred], ends[target]], 1)), LINK_WIDTH * scale * mass[pred, target] / top
    axes.add_collection(LineCollection(lines, linewidths=widths + scale, colors="white", alpha=0.7 * fade))
    axes.add_collection(LineCollection(lines, linewidths=widths, colors=colors[target], alpha=fade, gid="links"))
    axes.scatter(
        centres[linked, 0], centres[linked, 1], s=10 * scale**2, color=colors[best[linked]], alpha=fade, zorder=3
    )
    axes.scatter(ends[:, 0], ends[:, 1], s=30 * scale**2, color=colors[:T], marker="s", edgecolors="white", zorder=4)
    boxes = PolyCollection(_corners(scene.targets), facecolors="none", edgecolors=colors[:T], gid="targets", zorder=5)
    halo = withStroke(linewidth=(TARGET_LINE + 1.4) * scale, foreground="white")
    boxes.set(linewidths=TARGET_LINE * scale, path_effects=[halo])
    axes.add_collection(boxes)
    _draw_names(axes, scene, width, 8 * scale)

    left, right, bottom, high = scene.extent
    axes.set(xlim=(left, right), ylim=(bottom, high), aspect="equal", xticks=[], yticks=[], facecolor="0.96")
    axes.spines[:].set_visible(False)
    if not visible.all():
        note = f"{visible.sum():,} of {len(mass):,} predicted boxes are shown"
        axes.set_xlabel(note, fontsize=8 * scale, color=GREY)


def draw_legend(figure: Figure, width: float, top: float) -> None:
    """Explain the boxes and links of panels of `width` inches; links are as wide as can be for the mass `top`."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    scale, blue, grey = _line_scale(width), tuple(PALETTE[0]), tuple(GREY)
    boxes = [
        Patch(fill=False, edgecolor=color, lw=thickness * scale, ls=style, label=name)
        for name, color, thickness, style in (
            ("target", blue, TARGET_LINE, "-"),
            ("prediction", blue, PRED_LINE, "-"),
            ("background", grey, BACKGROUND_LINE, "-"),
            ("ignored", grey, BACKGROUND_LINE, ":"),
        )
    ]
    links = [Line2D([], [], color=blue, lw=LINK_WIDTH * scale * x, label=f"mass {x * top:.2g}") for x in (0.25, 1.0)]
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": 6, "columnspacing": 1.4, "handletextpad": 0.5}
    figure.legend(handles=[*boxes, *links], frameon=False, fontsize=8, **place)


def draw_heat(
    axes: Axes,
    matrix: Array,
    rows: NDArray[np.int64],
    columns: Columns,
    width: float,
    annotate: bool | None,
    cmap: str,
    limits: tuple[float, float],
) -> Any:
    """Draw rows of a matrix (P, T + 1) in a panel of `width` inches; return what its colour bar needs."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    annotated = check_flag("annotate", annotate) if annotate is not None else False
    T, total, count = matrix.shape[1] - 1, len(matrix), len(rows)
    matrix, centres, norm = matrix[rows], _column_centres(T), Normalize(*limits)
    colors = ScalarMappable(norm, cmap)
    if np.isinf(matrix).any():  # shines through where a pair is forbidden
        for left, size in ((0, T), (T + GAP, 1)):
            axes.add_patch(Rectangle((left, 0), size, count, facecolor="0.92", edgecolor="0.6", hatch="////", lw=0))
    if count:
        cells = np.ma.masked_invalid(np.insert(matrix, T, np.nan, axis=1))  # (count, T + 2), with the gap
        edges = np.append(np.arange(T + 1), (T + GAP, T + GAP + 1))
        line = 0.8 if count <= 40 else 0.3
        axes.pcolormesh(edges, np.arange(count + 1), cells, norm=norm, cmap=cmap, edgecolors="white", lw=line)
    if annotated or (annotate is None and count <= 25 and width / (T + 1 + GAP) > 0.35):
        for (row, column), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                _write(axes, centres[column], row + 0.5, f"{value:.2f}", 7, _ink(colors.to_rgba(value)))
    axes.set(xlim=(0 if T else GAP, T + GAP + 1), ylim=(max(count, 1), 0))
    axes.set_xlabel("target", fontsize=9)
    axes.set_ylabel("prediction" if count == total else f"prediction ({count} of {total:,})", fontsize=9)
    every = -(-count // 25) or 1
    axes.set_yticks(np.arange(0, count, every) + 0.5, rows[::every])
    crowded = 0.08 * max(map(len, columns.names)) > width / (T + 1 + GAP)
    axes.set_xticks(centres, columns.names, rotation=90 if crowded else 0)
    for name, color in zip(axes.get_xticklabels(), columns.colors, strict=True):
        name.set_color(color)
    axes.get_xticklabels()[-1].set_rotation(0)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    return colors


def draw_column_masses(axes: Axes, masses: Array, columns: Columns) -> None:
    """Draw the mass of each column (T + 1) as a bar; one of the background that dwarfs the others is cut."""
    most = 2 * masses[:-1].max(initial=0.0)
    cut = 0 < most < masses[-1]
    heights = np.append(masses[:-1], most if cut else masses[-1])
    centres = _column_centres(len(masses) - 1)
    axes.bar(centres, heights, width=0.7, color=columns.colors)
    if cut:
        _write(axes, centres[-1], 0.6 * most, "≈", 14, "white", weight="bold")
    for x, height, mass in zip(centres, heights, masses, strict=True):
        if len(masses) <= 18 or x == centres[-1]:
            _write(axes, x, height, f"{mass:.2f}" if mass < 100 else f"{mass:,.0f}", 7, va="bottom")
    axes.set_ylim(0, 1.35 * (heights.max() or 1.0))
    axes.set_ylabel("mass", fontsize=9)
    axes.tick_params(bottom=False, labelbottom=False, labelsize=7)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def draw_row_masses(axes: Axes, masses: Array) -> None:
    """Draw the mass of each prediction as a bar."""
    axes.barh(np.arange(len(masses)) + 0.5, masses, height=0.7, color=GREY)
    axes.set_xlim(0, 1.15 * masses.max(initial=1.0))
    axes.set_xlabel("mass", fontsize=9)
    axes.tick_params(left=False, labelleft=False, labelsize=7)
    axes.spines[["top", "right", "left"]].set_visible(False)


def draw_color_bar(figure: Figure, axes: list[Axes], colors: Any, label: str, height: float) -> None:
    """Draw a thin colour bar of `height` inches beside the axes."""
    bar = figure.colorbar(colors, ax=axes, aspect=height / 0.12, pad=0.015, fraction=0.3 / figure.get_figwidth())
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8, length=2)
    bar.outline.set_visible(False)


def _draw_names(axes: Axes, scene: Scene, width: float, size: float) -> None:
    """Write each target's name at a corner of its box, where it overlaps earlier names least."""
    left, right, bottom, top = scene.extent
    unit = size / 72 * (right - left) / width  # the height of the font in pixels of the image
    taken = np.zeros((0, 4))
    for (x1, y1, x2, y2), name, color in zip(scene.targets, scene.columns.names, scene.columns.colors, strict=False):
        w, h = (0.62 * len(name) + 0.6) * unit, 1.6 * unit
        spots = np.array([(x, y) for y in (y1 - h, y2, y1, y2 - h) for x in (x1, x2 - w)])
        spots = np.clip(spots, (left, top), (max(right - w, left), max(bottom - h, top)))
        spots = np.hstack([spots, spots + np.array([w, h])])  # (8, 4), xyxy
        sides = np.minimum(spots[:, None, 2:], taken[:, 2:]) - np.maximum(spots[:, None, :2], taken[:, :2])
        spot = spots[sides.clip(min=0).prod(-1).sum(1).argmin()]
        taken = np.vstack([taken, spot])
        frame = {"boxstyle": "square,pad=0.2", "facecolor": color, "edgecolor": "none"}
        _write(axes, spot[0] + w / 2, spot[1] + h / 2, name, size, _ink(color), bbox=frame, zorder=6)


def _line_scale(width: float) -> float:
    """Return how much thinner lines are in a panel that is narrower than 6.4 inches."""
    return 0.5 + width / 12.8


def _corners(boxes: Array) -> list[Array]:
    """Return the four corners (4, 2) of each box (N, 4), xyxy."""
    return list(boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]])


def _column_centres(T: int) -> Array:
    """Return where the columns of `T` targets and the background, set apart, have their centres."""
    return np.append(np.arange(T) + 0.5, T + GAP + 0.5)


def _write(axes: Axes, x: float, y: float, text: str, size: float, color: str = "black", **style: Any) -> None:
    """Write text around a point."""
    axes.text(x, y, text, size=size, color=color, ha="center", **{"va": "center", **style})


def _ink(color: Sequence[float] | Array) -> str:
    """Return the colour of text that is legible on `color`."""
    return "black" if np.dot(color[:3], (0.3, 0.6, 0.1)) > 0.52 else "white"
