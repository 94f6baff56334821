"""Plot matchings: images, boxes, costs and plans come in, matplotlib figures that pyplot does not know go out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from uotod.check import check_integer, check_number
from uotod.match.unbalanced_sinkhorn import UnbalancedSinkhorn
from uotod.plot._draw import (
    best_rows,
    draw_color_bar,
    draw_column_masses,
    draw_heat,
    draw_legend,
    draw_matching,
    draw_row_masses,
    heat_size,
    new_figure,
    panel_size,
)
from uotod.plot._scene import Array, read_matrix, read_scene

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_matching(
    image: Tensor | None,
    pred_boxes: Tensor,
    target_boxes: Tensor,
    plan: Tensor,
    *,
    mask: Tensor | None = None,
    target_labels: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    min_mass: float = 0.05,
    max_preds: int = 100,
    title: str | None = None,
) -> Figure:
    """Draw the boxes of one image, and its plan as links between the centres of predictions and targets.

    Each target has a colour. A link's width is proportional to its mass. A prediction takes the colour of the target
    that it gives most mass to, or grey if that is the background; it is dotted if it is ignored (a row of zeros).

    Args:
        image: (3, H, W) or (H, W) image, in [0, 1] or of dtype uint8; None for an empty canvas.
        pred_boxes: (P, 4) boxes, xyxy, in pixels.
        target_boxes: (T, 4) boxes, xyxy, in pixels.
        plan: (P, T + 1) masses, the background last; or (P, T) without background.
        mask: (T,) bool, False for padding, which is not read; None for no padding.
        target_labels: (T,) integer classes, to name the targets by; None to name them by their index.
        class_names: names of the classes; None to name them by their number.
        min_mass: smallest mass that is drawn as a link.
        max_preds: largest number of predicted boxes to draw; of more, those that have links and most mass on targets.
        title: text above the figure.

    Returns:
        A figure with its own canvas; `savefig` writes it to a file.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape or a value out of range.

    Examples:
        >>> preds = torch.tensor([[10.0, 10.0, 50.0, 50.0], [60.0, 20.0, 90.0, 80.0]])
        >>> plan = torch.tensor([[0.9, 0.1], [0.0, 1.0]])
        >>> figure = plot_matching(None, preds, preds[:1] + 4, plan, target_labels=torch.tensor([1]))
        >>> [name.get_text() for name in figure.axes[0].texts]
        ['1']
    """
    scene = read_scene(image, pred_boxes, target_boxes, mask, target_labels, class_names, min_mass, max_preds)
    mass, _ = read_matrix("plan", plan, scene=scene)
    width, height = panel_size(scene, 6.4, 7.0)
    figure = new_figure(max(width, 6.2) + 0.1, height + 0.4, title)
    top = mass[:, :-1].max(initial=1.0)
    draw_matching(figure.subplots(), scene, mass, width, top)
    draw_legend(figure, width, top)
    return figure


def plot_cost(
    cost: Tensor, *, mask: Tensor | None = None, annotate: bool | None = None, title: str | None = None
) -> Figure:
    """Draw the cost of one image as a heat map, where forbidden pairs (`inf`) are hatched.

    Of more than 100 predictions, the 100 with the cheapest pairs are shown.

    Args:
        cost: (P, T + 1) costs, the background last.
        mask: (T,) bool, False for padding, which is left out; None for no padding.
        annotate: whether to print the values; None to print those of a small matrix.
        title: text above the figure.

    Returns:
        A figure with its own canvas; `savefig` writes it to a file.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, or a cost is NaN or -inf.

    Examples:
        >>> figure = plot_cost(torch.tensor([[0.6, 1.0, 0.8], [0.4, torch.inf, 0.8]]))
        >>> [name.get_text() for name in figure.axes[0].get_xticklabels()]
        ['0', '1', '∅']
    """
    matrix, columns = read_matrix("cost", cost, mask)
    rows = best_rows(-matrix[:, :-1].min(1, initial=math.inf))
    finite = matrix[rows][np.isfinite(matrix[rows])]
    limits = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    width, height = heat_size(rows, columns, annotate)
    figure = new_figure(width + 1.3, height + 0.5, title)
    colors = draw_heat(figure.subplots(), matrix, rows, columns, width, annotate, "viridis", limits)
    draw_color_bar(figure, figure.axes, colors, "cost", height)
    return figure


def plot_plan(
    plan: Tensor, *, mask: Tensor | None = None, annotate: bool | None = None, title: str | None = None
) -> Figure:
    """Draw the plan of one image as a heat map, with the mass of each prediction and column in its margins.

    Of more than 100 predictions, the 100 that give most mass to targets are shown; a column's mass is that of all. A
    bar of the background that would dwarf the targets' is cut, and marked ≈; the number above it is its mass.

    Args:
        plan: (P, T + 1) masses, the background last.
        mask: (T,) bool, False for padding, which is left out; None for no padding.
        annotate: whether to print the values; None to print those of a small matrix.
        title: text above the figure.

    Returns:
        A figure whose axes are the heat map, the masses of the columns, and those of the predictions.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, or a mass is negative or not finite.

    Examples:
        >>> figure = plot_plan(torch.tensor([[0.75, 0.25], [0.0, 1.0]]))
        >>> [mass.get_text() for mass in figure.axes[1].texts]
        ['0.75', '1.25']
    """
    matrix, columns = read_matrix("plan", plan, mask)
    rows = best_rows(matrix[:, :-1].sum(1))
    width, height = heat_size(rows, columns, annotate)
    figure = new_figure(width + 2.1, height + 1.3, title)
    grid = figure.add_gridspec(2, 2, width_ratios=(width, 0.6), height_ratios=(0.8, height))
    axes = figure.add_subplot(grid[1, 0])
    colors = draw_heat(axes, matrix, rows, columns, width, annotate, "Blues", (0.0, matrix.max(initial=1.0)))
    draw_column_masses(figure.add_subplot(grid[0, 0], sharex=axes), matrix.sum(0), columns)
    draw_row_masses(figure.add_subplot(grid[1, 1], sharey=axes), matrix[rows].sum(1))
    draw_color_bar(figure, figure.axes, colors, "mass", height + 0.8)
    return figure


def plot_path(
    image: Tensor | None,
    pred_boxes: Tensor,
    target_boxes: Tensor,
    cost: Tensor,
    *,
    mask: Tensor | None = None,
    target_labels: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    reg: float = 0.05,
    steps: int = 5,
    min_mass: float = 0.05,
    max_preds: int = 100,
    title: str | None = None,
) -> Figure:
    r"""Draw the path from `ClosestPrediction` through balanced transport to `ClosestTarget`: their plans on one image.

    Each plan is that of `UnbalancedSinkhorn`. First `reg_pred` grows from 0 to inf while `reg_target` is inf, then
    `reg_target` falls from inf to 0; `penalty / (penalty + reg)` moves in equal steps. The ends become the two matchers
    as `reg` tends to 0. Of more than 100 predictions, the heat maps show the 100 with most mass on targets.

    Args:
        image: image of the boxes, as in `plot_matching`.
        pred_boxes: (P, 4) boxes, xyxy, in pixels.
        target_boxes: (T, 4) boxes, xyxy, in pixels.
        cost: (P, T + 1) costs, the background last.
        mask: (T,) bool, False for padding, which is not read; None for no padding.
        target_labels: (T,) integer classes, to name the targets by; None to name them by their index.
        class_names: names of the classes; None to name them by their number.
        reg: entropic regularisation, in units of the normalised cost.
        steps: number of plans, odd, so that the balanced one is among them.
        min_mass: smallest mass that is drawn as a link.
        max_preds: largest number of predicted boxes to draw; of more, those that have links and most mass on targets.
        title: text above the figure.

    Returns:
        A figure whose axes are the images and then the heat maps, from left to right.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape or a value out of range, or all pairs of a target are forbidden.

    Examples:
        >>> boxes = torch.tensor([[10.0, 10.0, 50.0, 50.0], [60.0, 20.0, 90.0, 80.0]])
        >>> figure = plot_path(None, boxes, boxes[:1] + 4, torch.tensor([[0.1, 0.5], [0.9, 0.5]]), steps=3)
        >>> figure.axes[1].get_title()
        'balanced\nreg_pred = ∞, reg_target = ∞'
    """
    scene = read_scene(image, pred_boxes, target_boxes, mask, target_labels, class_names, min_mass, max_preds)
    matrix, columns = read_matrix("cost", cost, scene=scene)
    check_number("reg", reg, low=0.0, low_open=True)
    if check_integer("steps", steps, low=3) % 2 == 0:
        raise ValueError(f"steps must be odd, so that the balanced plan is among them, got {steps}")
    half = steps // 2
    rising = [reg * k / (half - k) for k in range(half)] + [math.inf]
    penalties = [(x, math.inf) for x in rising] + [(math.inf, x) for x in rising[-2::-1]]
    plans = [_solve(matrix, reg, *pair) for pair in penalties]
    rows = best_rows(np.max([plan[:, :-1].sum(1) for plan in plans], axis=0))
    top = max(plan[:, :-1].max(initial=1.0) for plan in plans)
    limits = (0.0, max(plan.max(initial=1.0) for plan in plans))
    width, image_height = panel_size(scene, 2.6, 3.6)
    heat_height = min(heat_size(rows, columns, None)[1], 3.6)
    figure = new_figure(2.7 * steps + 0.9, image_height + heat_height + 1.2, title)
    grid = figure.subplots(2, steps, height_ratios=(image_height, heat_height), squeeze=False)
    names = {0: "soft ClosestPrediction", half: "balanced", steps - 1: "soft ClosestTarget"}
    for step, (plan, (pred, target)) in enumerate(zip(plans, penalties, strict=True)):
        above, below = grid[:, step]
        draw_matching(above, scene, plan, width, top)
        values = f"reg_pred = {pred:.3g}, reg_target = {target:.3g}".replace("inf", "∞")
        above.set_title(f"{names.get(step, 'unbalanced')}\n{values}", fontsize=8.5)
        colors = draw_heat(below, plan, rows, columns, 2.6, None, "Blues", limits)
        below.label_outer()
    draw_color_bar(figure, grid[1].tolist(), colors, "mass", heat_height)
    draw_legend(figure, width, top)
    return figure


def _solve(matrix: Array, reg: float, reg_pred: float, reg_target: float) -> Array:
    """Return the plan of a cost (P, T + 1)."""
    cost, mask = torch.from_numpy(matrix)[None], torch.ones(1, matrix.shape[1] - 1, dtype=torch.bool)
    matcher = UnbalancedSinkhorn(reg_pred=reg_pred, reg_target=reg_target, reg=reg)
    return matcher.compute_matching(cost, mask)[0].numpy()
