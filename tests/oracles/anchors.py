"""The rules of anchors as loops over images, targets and predictions, for the tests to compare with."""

import math
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
