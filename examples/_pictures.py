"""Pictures of a run: its history, and what it found in a few images, come in; PNG files go out."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _checkpoint import write_atomically
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from uotod.datasets import TargetDict
from uotod.plot import plot_matching

LEAST_SCORE, MAX_BOXES = 0.3, 30  # of the detections that are drawn, and of the matched boxes beside a plan
DOTS = 150  # an inch
COLORS = ("#0072b2", "#d55e00", "#00805d", "#b2588a", "#8c5a2b", "#6a4fb3", "#9a7400", "#15768a")


class Example(NamedTuple):
    """An image, what should be and what was found in it, the boxes that were matched and their plan; in pixels."""

    image: Tensor
    target: TargetDict
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    matched: Tensor
    plan: Tensor


def draw_curve(path: Path, history: Sequence[dict[str, float]], title: str) -> None:
    """Draw the loss of each epoch, and the average precisions where they were measured."""
    figure = Figure((8, 3.2), dpi=DOTS, layout="constrained")
    loss, precision = figure.subplots(1, 2)
    loss.plot([entry["step"] for entry in history], [entry["loss"] for entry in history], marker=".", color="black")
    loss.set(title="training loss", xlabel="step", ylim=(0, None))
    measured = [entry for entry in history if "AP" in entry]
    for name, color in (("AP50", COLORS[0]), ("AP", COLORS[1])):
        steps, values = [entry["step"] for entry in measured], [entry[name] for entry in measured]
        precision.plot(steps, values, marker="o", markersize=4, color=color, label=f"{name} {values[-1]:.3f}")
    precision.set(title="average precision on held-out images", xlabel="step", ylim=(0, 1))
    precision.legend(loc="lower right", frameon=False)
    for axes in (loss, precision):
        axes.set_xlim(0, None)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    _save(path, figure)


def draw_examples(path: Path, examples: Sequence[Example], class_names: Sequence[str], title: str) -> None:
    """Draw a column an image: above, the detections with the targets, and below, the plan of all predictions."""
    height, width = examples[0].target["size"] if examples else (1, 1)
    figure = Figure((3.4 * max(len(examples), 1), 6.8 * height / width + 0.6), dpi=DOTS, layout="constrained")
    if examples:
        for axes, example in zip(figure.subplots(2, len(examples), squeeze=False).T, examples, strict=True):
            _draw_detections(axes[0], example, class_names)
            _draw_plan(axes[1], example, class_names)
    figure.suptitle(f"{title}: detections (score ≥ {LEAST_SCORE}; targets dashed), and below the plan")
    _save(path, figure)


def _draw_detections(axes: Axes, example: Example, class_names: Sequence[str]) -> None:
    height, width = example.target["size"]
    axes.imshow(example.image.permute(1, 2, 0).numpy(), extent=(0, width, height, 0))
    for box in example.target["boxes"].tolist():
        _draw_box(axes, box, color="white", linewidth=1.2, linestyle="--")
    for box, score, label in zip(example.boxes.tolist(), example.scores.tolist(), example.labels.tolist(), strict=True):
        if score >= LEAST_SCORE:
            color = COLORS[label % len(COLORS)]
            _draw_box(axes, box, color=color, linewidth=1.5)
            frame = {"facecolor": color, "edgecolor": "none", "pad": 0.6}
            text = f"{class_names[label]} {score:.2f}"
            axes.text(
                box[0], max(box[1], 0.04 * height), text, size=5, color="white", va="bottom", bbox=frame, clip_on=True
            )
    axes.set_axis_off()


def _draw_box(axes: Axes, box: Sequence[float], **style: Any) -> None:
    left, top, right, bottom = box
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, **style))


def _draw_plan(axes: Axes, example: Example, class_names: Sequence[str]) -> None:
    boxes, labels = example.target["boxes"], example.target["labels"]
    plan = plot_matching(
        example.image,
        example.matched,
        boxes,
        example.plan,
        target_labels=labels,
        class_names=class_names,
        max_preds=MAX_BOXES,
    )
    axes.imshow(_pixels(plan), interpolation="antialiased")
    axes.set_axis_off()


def _pixels(figure: Figure) -> NDArray[np.float64]:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS)
    buffer.seek(0)
    return imread(buffer)


def _save(path: Path, figure: Figure) -> None:
    write_atomically(path, lambda file: figure.savefig(file, format="png"))
