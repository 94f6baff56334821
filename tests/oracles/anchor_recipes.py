"""Deltas, logits, anchors and targets of a batch in, the losses of anchor-based detectors out: loops over anchors.

A target is a pair of an (x1, y1, x2, y2) tensor and a label; the logits of SSD have the background first.
"""

import torch
from torch import Tensor

from tests.oracles.points import iou

Target = tuple[Tensor, int]
IGNORED = -2


def encode(box: Tensor, anchor: Tensor, weights: tuple[float, ...]) -> Tensor:
    (x1, y1, x2, y2), (a1, b1, a2, b2) = box, anchor
    wx, wy, ww, wh = weights
    width, height = a2 - a1, b2 - b1
    return torch.stack(
        (
            wx * ((x1 + x2) / 2 - (a1 + a2) / 2) / width,
            wy * ((y1 + y2) / 2 - (b1 + b2) / 2) / height,
            ww * ((x2 - x1) / width).log(),
            wh * ((y2 - y1) / height).log(),
        )
    )


def decode(delta: Tensor, anchor: Tensor, weights: tuple[float, ...]) -> Tensor:
    dx, dy, dw, dh = (x / w for x, w in zip(delta, weights, strict=True))
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x, y = (anchor[0] + anchor[2]) / 2 + dx * width, (anchor[1] + anchor[3]) / 2 + dy * height
    half_width, half_height = width * dw.exp() / 2, height * dh.exp() / 2
    return torch.stack((x - half_width, y - half_height, x + half_width, y + half_height))


def overlaps(anchors: Tensor, targets: list[Target]) -> list[list[float]]:
    """Return the IoU of each anchor (row) with each target."""
    return [[iou(anchor, box.tolist()) for box, _ in targets] for anchor in anchors.tolist()]


def share_a_best_anchor(anchors: Tensor, targets: list[Target]) -> bool:
    rows = overlaps(anchors, targets)
    best = [max(range(len(rows)), key=lambda i: rows[i][j]) for j in range(len(targets))]
    return len(set(best)) < len(best)


def match_ssd(anchors: Tensor, targets: list[Target], threshold: float = 0.5) -> list[int]:
    """Return the target of each anchor, -1 for the background; each target is written over its best anchor."""
    rows = overlaps(anchors, targets)
    found = []
    for row in rows:
        best = max(range(len(row)), key=row.__getitem__) if row else -1
        found.append(best if best >= 0 and row[best] >= threshold else -1)
    for j in range(len(targets)):
        found[max(range(len(rows)), key=lambda i: rows[i][j])] = j
    return found


def match_retinanet(anchors: Tensor, targets: list[Target], high: float = 0.5, low: float = 0.4) -> list[int]:
    """Return the target of each anchor, -1 for the background, -2 for an ignored one; ties of a target's best match."""
    rows = overlaps(anchors, targets)
    best_of = [max(row[j] for row in rows) for j in range(len(targets))]
    found = []
    for row in rows:
        best = max(range(len(row)), key=row.__getitem__) if row else -1
        tied = any(value == best_of[j] > 0 for j, value in enumerate(row))
        if best >= 0 and (row[best] >= high or tied):
            found.append(best)
        else:
            found.append(-1 if best < 0 or row[best] < low else IGNORED)
    return found


def smooth_l1(difference: Tensor, beta: float) -> Tensor:
    size = difference.abs()
    return (size if beta == 0 else torch.where(size < beta, size**2 / (2 * beta), size - beta / 2)).sum()


def ssd(
    logits: Tensor, deltas: Tensor, anchors: Tensor, batch: list[list[Target]], *, beta: float = 1.0, ratio: int = 3
) -> tuple[Tensor, Tensor]:
    """Return the losses of classification and of localisation of SSD, over its positives of the batch."""
    cls, loc, num_pos = logits.sum() * 0, deltas.sum() * 0, 0
    weights = (10.0, 10.0, 5.0, 5.0)
    for b, targets in enumerate(batch):
        found = match_ssd(anchors, targets)
        negatives = []
        for i, j in enumerate(found):
            losses = -logits[b, i].log_softmax(-1)
            if j < 0:
                negatives.append(losses[0])
                continue
            box, label = targets[j]
            cls = cls + losses[label]
            loc = loc + smooth_l1(deltas[b, i] - encode(box, anchors[i], weights), beta)
        positives = len(found) - len(negatives)
        for loss in sorted(negatives, key=torch.Tensor.item, reverse=True)[: ratio * positives]:
            cls = cls + loss
        num_pos += positives
    return cls / max(num_pos, 1), loc / max(num_pos, 1)


def retinanet(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    batch: list[list[Target]],
    *,
    beta: float = 0.0,
    average: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return both losses of RetinaNet: means over the images, or divided by a moving average of the positives."""
    sums: list[tuple[Tensor, Tensor, int]] = []
    for b, targets in enumerate(batch):
        found = match_retinanet(anchors, targets)
        cls, loc = logits.sum() * 0, deltas.sum() * 0
        for i, j in enumerate(found):
            if j == IGNORED:
                continue
            for c in range(logits.shape[-1]):
                cls = cls + focal(logits[b, i, c], j >= 0 and targets[j][1] == c)
            if j >= 0:
                loc = loc + smooth_l1(deltas[b, i] - encode(targets[j][0], anchors[i], (1.0, 1.0, 1.0, 1.0)), beta)
        sums.append((cls, loc, sum(j >= 0 for j in found)))
    if average is None:
        parts = [(cls / max(n, 1) / len(sums), loc / max(n, 1) / len(sums)) for cls, loc, n in sums]
    else:
        divisor = 0.9 * average + 0.1 * max(sum(n for *_, n in sums), 1)
        parts = [(cls / divisor, loc / divisor) for cls, loc, _ in sums]
    return sum((x for x, _ in parts), logits.sum() * 0), sum((x for _, x in parts), logits.sum() * 0)


def focal(logit: Tensor, positive: bool, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    p = logit.sigmoid() if positive else (-logit).sigmoid()
    return -(alpha if positive else 1 - alpha) * (1 - p) ** gamma * p.log()
