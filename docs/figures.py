"""Draw the pictures of the documentation: the path of plans, the rooms of the package, a scene for every matcher."""

import ast
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from uotod import match
from uotod.datasets import ColorBoxes
from uotod.loss import GIoULoss, MultipleObjectiveLoss, NegativeProbLoss, SigmoidFocalCost
from uotod.match import Hungarian, Matcher
from uotod.plot import plot_path
from uotod.utils import Anchors, Points, box_iou

IMAGES = Path(__file__).parent / "images"
SIZE = 128  # of the scene, in pixels
COLORS = ["#d62728", "#1f77b4", "#2ca02c"]
# rules that bring what they read; the others are drawn with the cost of `costs()`
OWN = ("ATSS", "CenterRegion", "DynamicSoftLabel", "FCOS", "GridCell", "OTA", "SimOTA", "TaskAligned", "Uniform")
SETTINGS: dict[str, Callable[[], Matcher]] = {
    "BalancedPOT": lambda: match.BalancedPOT(reg=0.05, **costs()),
    "IoUThreshold": lambda: match.IoUThreshold(positive=0.5, negative=0.4, is_anchor_based=True),
    "SharedLayers": lambda: match.SharedLayers(match.Hungarian(**costs())),
    "UnionVote": lambda: match.UnionVote(match.Hungarian(copies=3, **costs())),
    "WeightedSum": lambda: match.WeightedSum([match.Hungarian(**costs()), match.SoftMin(**costs())]),
}


# from below to above: a file imports from its own room and from those before it
ROOMS = {
    "check": "arguments and tensors, checked",
    "geometry": "boxes, anchors, points",
    "plan": "the plan and its pairs",
    "scene": "what users pass, parsed once",
    "cost": "sub-losses of pairs and rows",
    "solvers": "from cost to plan",
    "match": "matchers",
    "criterion": "from plan to losses",
    "loss": "one formula a file",
    "recipes": "published detectors",
    "utils": "geometry, for users",
    "integrations": "other frameworks",
    "datasets": "files in, targets out",
    "eval": "COCO AP",
    "plot": "figures of plans",
    "report": "a run in a page",
}


class Scene(NamedTuple):
    """Three targets, and the predictions of two feature maps that a detector might make of them."""

    input: dict[str, Tensor]
    target: dict[str, Tensor]
    anchors: Anchors
    centers: Tensor


def costs() -> dict[str, nn.Module | float]:
    """Return the cost of Deformable DETR, in pixels."""
    boxes = MultipleObjectiveLoss([nn.L1Loss(reduction="none"), GIoULoss(reduction="none")], [5.0 / SIZE, 2.0])
    focal = MultipleObjectiveLoss([SigmoidFocalCost(alpha=0.25, reduction="none")], [2.0])
    return {"cls_match_module": focal, "loc_match_module": boxes, "background_cost": 4.0}


def scene() -> Scene:
    """Return the scene of all pictures of matchers."""
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[10.0, 14.0, 70.0, 66.0], [52.0, 40.0, 118.0, 116.0], [14.0, 88.0, 38.0, 112.0]])
    points = Points.from_levels([(16, 16), (8, 8)], [8, 16])
    assert isinstance(points.stride, Tensor)
    half = 1.5 * points.stride[:, None]
    anchors = torch.cat((points.centers - half, points.centers + half), dim=1)
    overlap, nearest = box_iou(anchors, boxes).max(1)
    trust = (2 * overlap).clamp(max=0.85)[:, None]  # the better the anchor, the better its prediction
    pred_boxes = (1 - trust) * anchors + trust * boxes[nearest]
    pred_boxes = pred_boxes + torch.randn(len(anchors), 4, generator=generator) * (1.5 + 3 * (1 - trust))
    logits = 3 * nn.functional.one_hot(nearest, 3) * trust - 2.0
    logits = logits + 0.5 * torch.randn(len(anchors), 3, generator=generator)
    return Scene(
        {"pred_logits": logits[None], "pred_boxes": pred_boxes[None]},
        {"labels": torch.arange(3)[None], "boxes": boxes[None]},
        Anchors(anchors, points.stride, points.level),
        points.centers,
    )


def draw_plan(given: Scene, plan: Tensor, title: str) -> Figure:
    """Draw each prediction at its point, in the colour of its target and as strong as its (P, T + 1) mass."""
    figure = Figure(figsize=(4.2, 4.4), layout="constrained")
    axes = figure.add_subplot(xlim=(0, SIZE), ylim=(SIZE, 0), xticks=[], yticks=[], aspect="equal", title=title)
    x, y = given.centers.T.numpy()
    assert given.anchors.level is not None
    area = torch.tensor([26.0, 110.0])[given.anchors.level]
    mass, target = plan[:, :-1].max(1)
    ignored = plan.sum(1) == 0
    background = (mass < 0.02) & ~ignored
    for index, (box, color) in enumerate(zip(given.target["boxes"][0].tolist(), COLORS, strict=True)):
        axes.add_patch(Rectangle((box[0], box[1]), box[2] - box[0], box[3] - box[1], fill=False, ec=color, lw=2))
        mine = (target == index) & ~background & ~ignored
        strength = mass[mine].clamp(max=1).numpy()
        axes.scatter(x[mine], y[mine], s=area[mine], c=color, alpha=strength, lw=0)
        axes.scatter(x[mine], y[mine], s=area[mine], facecolors="none", edgecolors=color, lw=0.5)
    axes.scatter(x[background], y[background], s=2, c="#999999", lw=0)
    axes.scatter(x[ignored], y[ignored], s=area[ignored] / 3, c="#777777", marker="x", lw=0.8)
    return figure


def draw_matchers(folder: Path) -> None:
    """Write the picture of every matcher into `folder`."""
    given = scene()
    folder.mkdir(parents=True, exist_ok=True)
    for name, kind in match.ALL_MATCHERS.items():
        default = kind if name in OWN else partial(kind, **costs())
        matcher = SETTINGS.get(name, default)()
        plan = matcher(given.input, given.target, given.anchors)[0]
        draw_plan(given, plan, name).savefig(folder / f"{name}.png", dpi=90)


def draw_path(path: Path) -> None:
    """Write the picture of the README: a generated image, predictions around its targets, and the path of plans."""
    image, target = ColorBoxes(8, size=(160, 200), num_classes=6, min_boxes=3, max_boxes=4, seed=3)[1]
    generator = torch.Generator().manual_seed(0)
    boxes, labels = target["boxes"], target["labels"]
    near = boxes.repeat(3, 1) + 9 * torch.randn(3 * len(boxes), 4, generator=generator)
    corner = torch.rand(4, 2, generator=generator) * torch.tensor([150.0, 110.0])
    pred_boxes = torch.cat((near, torch.cat((corner, corner + 30), dim=1)))
    logits = torch.randn(len(pred_boxes), 6, generator=generator)
    logits[: len(near)] += 2 * nn.functional.one_hot(labels, 6).repeat(3, 1)
    localization = MultipleObjectiveLoss([nn.L1Loss(reduction="none"), GIoULoss(reduction="none")], [0.01, 1.0])
    matcher = Hungarian(
        cls_match_module=NegativeProbLoss(reduction="none"), loc_match_module=localization, background_cost=0.8
    )
    cost = matcher.compute_cost_matrix(
        {"pred_logits": logits[None], "pred_boxes": pred_boxes[None]}, {"labels": labels[None], "boxes": boxes[None]}
    )[0]
    plot_path(image, pred_boxes, boxes, cost, reg=0.05).savefig(path, dpi=90)


def room_imports(package: Path) -> Counter[tuple[str, str]]:
    """Return how many files of a room (first) import from another one (second)."""
    found: Counter[tuple[str, str]] = Counter()
    for path in sorted(package.rglob("*.py")):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        modules = [(node.module or "").split(".") for node in nodes]
        others = {parts[1] for parts in modules if parts[0] == package.name and len(parts) > 1} - {room}
        found.update((room, other) for other in others if room != "__init__")
    return found


def draw_rooms(path: Path, package: Path) -> None:
    """Write the picture of the rooms: each on the diagonal, and where a row meets a column, an import."""
    found = room_imports(package)
    names = [name for name in ROOMS if (package / name).exists() or (package / f"{name}.py").exists()]
    top = max(found.values())
    figure = Figure(figsize=(12.8, 7.6), layout="constrained")
    axes = figure.add_subplot(xlim=(-0.7, len(names) + 2.2), ylim=(len(names) - 0.4, -0.6), frame_on=False)
    axes.set(xticks=[], yticks=[])
    for row, name in enumerate(names):
        axes.add_patch(Rectangle((row - 0.48, row - 0.36), 0.96, 0.72, fc="#e8eef6", ec="#1f4e79", lw=1.2))
        axes.text(row, row, name, ha="center", va="center", fontsize=9.5 if len(name) < 11 else 8)
        axes.text(row + 0.6, row, ROOMS[name], ha="left", va="center", fontsize=9.5, color="#555555")
        columns = [column for column, other in enumerate(names) if found[name, other]]
        if columns:
            axes.plot([min(columns), row - 0.48], [row, row], c="#c4cdd8", lw=0.8, zorder=0)
    for column, name in enumerate(names):
        rows = [row for row, other in enumerate(names) if found[other, name]]
        if rows:
            axes.plot([column, column], [column + 0.36, max(rows)], c="#c4cdd8", lw=0.8, zorder=0)
        for row in rows:
            count = found[names[row], name]
            axes.scatter(column, row, s=150 + 350 * count / top, c="#1f77b4", lw=0)
            axes.text(column, row, str(count), ha="center", va="center", fontsize=8.5, color="white", weight="bold")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw_rooms(IMAGES / "rooms.png", Path(match.__file__).parents[1])
    draw_path(IMAGES / "path.png")
    draw_matchers(IMAGES / "matchers")
