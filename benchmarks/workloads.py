"""The problems that are timed: a name in, random but realistic predictions, targets and anchors out."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from uotod.utils import Anchors, Points, pad_targets

SSD_MAPS = [(38, 4), (19, 6), (10, 6), (5, 6), (3, 4), (1, 4)]  # (cells a side, anchors a cell): 8732 anchors
RETINA_STRIDES = [8, 16, 32, 64, 128]
YOLO_STRIDES = [8, 16, 32]


@dataclass(frozen=True)
class Workload:
    """Sizes of a problem.

    Attributes:
        kind: "detr" (softmax, background last), "dino" (sigmoid), "ssd" (softmax, background first, anchors, matched by
            IoU), "uot" (the same, matched by unbalanced transport), "retina" (sigmoid, anchors), "yolo" (sigmoid,
            points), "grid" (sigmoid, an anchor in each cell) or "transport" (the predictions of "detr" or the
            anchors of "uot", of which only the plan is asked).
        images: B.
        classes: classes of objects, without background.
        targets: fewest and most targets in an image.
        queries: P of a set predictor, or a square number of cells; others have their own number.
        layers: decoder layers.
    """

    kind: str
    images: int
    classes: int
    targets: tuple[int, int]
    queries: int = 300
    layers: int = 1

    @property
    def background(self) -> str:
        """Position of the background class, as `DetectionLoss` names it."""
        return {"detr": "last", "ssd": "first", "uot": "first"}.get(self.kind, "none")


WORKLOADS = {
    "D2": Workload("detr", 2, 91, (1, 14), layers=6),
    "D16": Workload("detr", 16, 91, (1, 14), layers=6),
    "C16": Workload("detr", 16, 91, (1, 60), layers=6),
    "DINO": Workload("dino", 8, 91, (1, 14), queries=900, layers=7),
    "S8": Workload("uot", 8, 20, (1, 40)),
    "S32": Workload("uot", 32, 20, (1, 40)),
    "S8h": Workload("ssd", 8, 20, (1, 40)),
    "R1": Workload("retina", 1, 80, (1, 40)),
    "R4": Workload("retina", 4, 80, (1, 40)),
    "Y1": Workload("yolo", 1, 80, (1, 100)),
    "Y8": Workload("yolo", 8, 80, (1, 100)),
    "P300": Workload("transport", 16, 91, (1, 60)),
    "P8732": Workload("transport", 8, 20, (1, 40), queries=8732),
}


@dataclass(frozen=True)
class Problem:
    """What a criterion is given: predictions of all layers (the last is the final one), targets and anchors."""

    logits: Tensor  # (L, B, P, C), a leaf
    boxes: Tensor  # (L, B, P, 4) xyxy, in units of the image, a leaf
    targets: list[dict[str, Tensor]]  # labels from 0, boxes xyxy
    anchors: Anchors | Points | None

    def padded(self) -> dict[str, Tensor]:
        """Return the targets as `labels` (B, T), `boxes` (B, T, 4) and `mask` (B, T), the padding at the end."""
        return pad_targets(self.targets)


def make_problem(workload: Workload, seed: int = 0, device: str = "cpu") -> Problem:
    """Return a problem: boxes with log-uniform sizes, and 30 % of the predictions near a target that they recognise."""
    generator = torch.Generator().manual_seed(seed)
    anchors = _anchors(workload)
    preds = workload.queries if anchors is None else len(anchors.places)
    shape = (workload.layers, workload.images, preds)
    low, high = workload.targets
    targets = []
    for _ in range(workload.images):
        count = int(torch.randint(low, high + 1, (), generator=generator))
        labels = torch.randint(0, workload.classes, (count,), generator=generator)
        targets.append({"labels": labels, "boxes": _random_boxes((count,), generator)})
    boxes = _random_boxes(shape, generator) if anchors is None else _cells(anchors).expand(*shape, 4).clone()
    columns = workload.classes + (workload.background != "none")
    logits = torch.randn(*shape, columns, generator=generator) - (3 if workload.background == "none" else 0)
    near = torch.rand(shape, generator=generator) < 0.3
    for image, target in enumerate(targets):
        chosen = torch.randint(0, len(target["labels"]), (workload.layers, preds), generator=generator)
        close = target["boxes"][chosen] + 0.03 * torch.randn(workload.layers, preds, 4, generator=generator)
        close = torch.cat((close[..., :2], torch.maximum(close[..., 2:], close[..., :2] + 0.01)), dim=-1)
        boxes[:, image] = torch.where(near[:, image, :, None], close, boxes[:, image])
        raised = target["labels"][chosen] + (workload.background == "first")
        bonus = torch.nn.functional.one_hot(raised, columns) * near[:, image, :, None]
        logits[:, image] += 3.0 * bonus
    return Problem(
        logits.to(device).requires_grad_(),
        boxes.to(device).requires_grad_(),
        [{k: v.to(device) for k, v in target.items()} for target in targets],
        None if anchors is None else anchors.to(device),
    )


def _random_boxes(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    size = 0.02 * (0.9 / 0.02) ** torch.rand(*shape, 2, generator=generator)
    corner = torch.rand(*shape, 2, generator=generator) * (1 - size)
    return torch.cat((corner, corner + size), dim=-1)


def _anchors(workload: Workload) -> Anchors | Points | None:
    kind = workload.kind
    if kind in ("ssd", "uot") or (kind, workload.queries) == ("transport", 8732):
        levels = [_grid_boxes(n, [0.1 + 0.15 * i] * k) for i, (n, k) in enumerate(SSD_MAPS)]
        return Anchors.from_levels(levels, [1 / n for n, _ in SSD_MAPS])
    if kind == "retina":
        sides = [-(-800 // stride) for stride in RETINA_STRIDES]
        scales = [4 * stride / 800 * 2 ** (k / 3) for stride in RETINA_STRIDES for k in range(3)]
        levels = [_grid_boxes(n, scales[3 * i : 3 * i + 3] * 3) for i, n in enumerate(sides)]
        return Anchors.from_levels(levels, [1 / n for n in sides])
    if kind == "yolo":
        points = Points.from_levels([(640 // s, 640 // s) for s in YOLO_STRIDES], YOLO_STRIDES)
        assert isinstance(points.stride, Tensor)
        return Points(points.centers / 640, points.stride / 640, points.level, points.num_levels)
    if kind == "grid":
        cells = math.isqrt(workload.queries)
        return Anchors.from_levels([_grid_boxes(cells, [4 / cells])], [1 / cells])
    return None


def _grid_boxes(cells: int, scales: list[float]) -> Tensor:
    """Return boxes of several scales and the ratios 1/2, 1, 2 in turn at the centres of a grid, (cells² · K, 4)."""
    center = Points.from_levels([(cells, cells)], [1 / cells]).centers[:, None, :]
    ratio = torch.tensor([(0.5, 1.0, 2.0)[k % 3] for k in range(len(scales))])
    side = torch.tensor(scales)
    half = torch.stack((side * ratio.sqrt(), side / ratio.sqrt()), dim=-1) / 2
    return torch.cat((center - half, center + half), dim=-1).flatten(0, 1)


def _cells(anchors: Anchors | Points) -> Tensor:
    if isinstance(anchors, Anchors):
        return anchors.boxes
    assert isinstance(anchors.stride, Tensor)
    half = 2 * anchors.stride[:, None]
    return torch.cat((anchors.centers - half, anchors.centers + half), dim=-1)
