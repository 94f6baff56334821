"""The rules of anchors as loops over images, targets and predictions, for the tests to compare with."""

import math
import statistics
from collections.abc import Sequence

Box = Sequence[float]
IGNORED = -1


def iou(a: Box, b: Box) -> float:
    """Return the intersection over union of two xyxy boxes, 0 if the union is empty."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    area = [max(x[2] - x[0], 0.0) * max(x[3] - x[1], 0.0) for x in (a, b)]
    union = area[0] + area[1] - width * height
    return width * height / union if union > 0 else 0.0


def threshold_assignment(
    overlap: Sequence[Sequence[float]],
    targets: int,
    positive: float,
    negative: tuple[float, float],
    force_match: str | None,
    min_positive: float,
) -> list[int]:
    """Assign each prediction by its row of IoUs: a target, `targets` for the background or -1 if it is ignored."""
    preds, floor = range(len(overlap)), min_positive if min_positive > 0 else -math.inf
    result = []
    for i in preds:
        best = max(range(targets), key=lambda j: (overlap[i][j], -j), default=None)
        if best is None:
            result.append(targets)
        elif overlap[i][best] >= positive:
            result.append(best)
        else:
            result.append(targets if negative[0] <= overlap[i][best] < negative[1] else IGNORED)
    if not targets or not preds:
        return result
    top = [max(overlap[i][j] for i in preds) for j in range(targets)]
    if force_match in ("low_quality", "all_best"):
        for i in preds:
            tied = [j for j in range(targets) if overlap[i][j] == top[j] and top[j] > 0 and top[j] >= floor]
            if tied:
                among = range(targets) if force_match == "low_quality" else tied
                result[i] = max(among, key=lambda j: (overlap[i][j], -j))
    if force_match == "best":
        free_preds, free_targets = set(preds), set(range(targets))
        for value, j, i in sorted((-overlap[i][j], j, i) for i in preds for j in range(targets)):
            if -value >= floor and i in free_preds and j in free_targets:
                free_preds.remove(i)
                free_targets.remove(j)
                result[i] = j
    return result


def atss_assignment(
    similarity: Sequence[Sequence[float]],
    anchors: Sequence[Box],
    levels: Sequence[int],
    boxes: Sequence[Box],
    topk: int,
    margin: float,
) -> list[int]:
    """Assign each anchor by its row of similarities to a target, `len(boxes)` for the background."""
    best: dict[int, tuple[float, int]] = {}
    for j, (x1, y1, x2, y2) in enumerate(boxes):
        centres = [((a[0] + a[2]) / 2, (a[1] + a[3]) / 2) for a in anchors]
        distance = [(x - (x1 + x2) / 2) ** 2 + (y - (y1 + y2) / 2) ** 2 for x, y in centres]
        candidates = []
        for level in set(levels):
            candidates += sorted((i for i in range(len(anchors)) if levels[i] == level), key=distance.__getitem__)[
                :topk
            ]
        values = [similarity[i][j] for i in candidates]
        threshold = statistics.fmean(values) + (statistics.stdev(values) if len(values) > 1 else 0) if values else 0
        for i in candidates:
            x, y = centres[i]
            if similarity[i][j] >= threshold and min(x - x1, y - y1, x2 - x, y2 - y) > margin:
                best[i] = max(best.get(i, (-math.inf, 0)), (similarity[i][j], -j))
    return [-best[i][1] if i in best else len(boxes) for i in range(len(anchors))]


def uniform_choices(pred_boxes: Sequence[Box], anchors: Sequence[Box], boxes: Sequence[Box], k: int) -> list[set[int]]:
    """Return for each prediction the targets that choose it, by its box or by its anchor."""
    chosen: list[set[int]] = [set() for _ in anchors]
    for j, box in enumerate(boxes):
        for located in (pred_boxes, anchors):
            for i in sorted(range(len(anchors)), key=[l1(x, box) for x in located].__getitem__)[:k]:
                chosen[i].add(j)
    return chosen


def uniform_assignment(
    pred_boxes: Sequence[Box], anchors: Sequence[Box], boxes: Sequence[Box], k: int, positive: float, negative: float
) -> list[int]:
    """Assign each prediction to a target, `len(boxes)` for the background or -1 if it is ignored."""
    result = []
    for i, chosen in enumerate(uniform_choices(pred_boxes, anchors, boxes, k)):
        if chosen:
            j = min(chosen, key=lambda j: (l1(pred_boxes[i], boxes[j]), j))
            result.append(j if iou(anchors[i], boxes[j]) >= positive else IGNORED)
        else:
            is_near = any(iou(pred_boxes[i], box) > negative for box in boxes)
            result.append(IGNORED if is_near else len(boxes))
    return result


def l1(a: Box, b: Box) -> float:
    """Return the L1 distance of the centres and sizes of two xyxy boxes."""
    centre = abs((a[0] + a[2]) / 2 - (b[0] + b[2]) / 2) + abs((a[1] + a[3]) / 2 - (b[1] + b[3]) / 2)
    return centre + abs((a[2] - a[0]) - (b[2] - b[0])) + abs((a[3] - a[1]) - (b[3] - b[1]))
