"""Box losses written out for two boxes of plain floats, after their papers and without any tensor."""

from math import asin, atan2, exp, hypot, log, pi, sin

Box = tuple[float, float, float, float]  # x1, y1, x2, y2


def _size(box: Box) -> tuple[float, float]:
    return max(box[2] - box[0], 0.0), max(box[3] - box[1], 0.0)


def _center(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _hull(a: Box, b: Box) -> tuple[float, float]:
    return max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])


def _over(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else 0.0


def _union(a: Box, b: Box) -> tuple[float, float]:
    """Return intersection and union."""
    (aw, ah), (bw, bh) = _size(a), _size(b)
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    return shared, aw * ah + bw * bh - shared


def iou(a: Box, b: Box) -> float:
    return _over(*_union(a, b))


def penalties(a: Box, b: Box, kind: str, theta: float = 4.0) -> list[float]:
    """Return what a member of the family takes off the IoU, term by term."""
    (aw, ah), (bw, bh), (cw, ch) = _size(a), _size(b), _hull(a, b)
    (ax, ay), (bx, by) = _center(a), _center(b)
    distance = _over((ax - bx) ** 2 + (ay - by) ** 2, cw**2 + ch**2)
    if kind == "iou":
        return []
    if kind == "giou":
        return [_over(cw * ch - _union(a, b)[1], cw * ch)]
    if kind == "diou":
        return [distance]
    if kind == "ciou":
        v = 4 / pi**2 * (atan2(bw, bh) - atan2(aw, ah)) ** 2
        return [distance, _over(v, 1 - iou(a, b) + v) * v]
    if kind == "eiou":
        return [distance, _over((aw - bw) ** 2, cw**2), _over((ah - bh) ** 2, ch**2)]
    sigma = hypot(ax - bx, ay - by)
    angle = 1 - 2 * sin(asin(min(_over(abs(ay - by), sigma), 1.0)) - pi / 4) ** 2  # SIoU, its eq. 1
    far = sum(1 - exp(-(2 - angle) * _over(d, c) ** 2) for d, c in ((ax - bx, cw), (ay - by, ch)))
    shape = sum((1 - exp(-_over(abs(p - q), max(p, q)))) ** theta for p, q in ((aw, bw), (ah, bh)))
    return [far / 2, shape / 2]


def family(a: Box, b: Box, kind: str) -> float:
    return 1 - iou(a, b) + sum(penalties(a, b, kind))


def focal_eiou(a: Box, b: Box, gamma: float) -> float:
    return float(iou(a, b) ** gamma) * family(a, b, "eiou")


def siou(a: Box, b: Box, theta: float) -> float:
    return 1 - iou(a, b) + sum(penalties(a, b, "siou", theta))


def extended_iou(a: Box, b: Box, point: float) -> float:
    """Return the smooth extended IoU loss; the signed intersection as a sum over its cases."""
    (aw, ah), (bw, bh) = _size(a), _size(b)
    left, top = min(a[0], b[0]), min(a[1], b[1])
    x = max(a[0], b[0]) - left, min(a[2], b[2]) - left
    y = max(a[1], b[1]) - top, min(a[3], b[3]) - top
    if x[0] <= x[1] and y[0] <= y[1]:
        shared = (x[1] - x[0]) * (y[1] - y[0])
    elif x[0] <= x[1]:  # a gap in y: a strip over both widths is missing
        shared = (y[1] - y[0]) * (x[0] + x[1])
    elif y[0] <= y[1]:
        shared = (x[1] - x[0]) * (y[0] + y[1])
    else:
        shared = 2 * x[1] * y[1] - 2 * x[0] * y[0]
    distance = 1 - shared / (aw * ah + bw * bh - shared)
    return distance**2 / (2 * point) if distance < point else distance - point / 2


def inner_iou(a: Box, b: Box, kind: str, ratio: float) -> float:
    inner = []
    for box in (a, b):
        (x, y), (w, h) = _center(box), _size(box)
        inner.append((x - w * ratio / 2, y - h * ratio / 2, x + w * ratio / 2, y + h * ratio / 2))
    return 1 - iou(inner[0], inner[1]) + sum(penalties(a, b, kind))


def mpdiou(a: Box, b: Box, width: float, height: float) -> float:
    upper = (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2
    lower = (a[2] - b[2]) ** 2 + (a[3] - b[3]) ** 2
    return 1 - iou(a, b) + (upper + lower) / (width**2 + height**2)


def alpha_iou(a: Box, b: Box, kind: str, alpha: float) -> float:
    return 1 - float(iou(a, b) ** alpha) + sum(float(max(p, 0.0) ** alpha) for p in penalties(a, b, kind))


def wise_iou(
    a: Box, b: Box, version: int, mean: float, gamma: float = 0.5, alpha: float = 1.9, delta: float = 3.0
) -> float:
    loss, (cw, ch) = 1 - iou(a, b), _hull(a, b)
    (ax, ay), (bx, by) = _center(a), _center(b)
    first = exp(((ax - bx) ** 2 + (ay - by) ** 2) / (cw**2 + ch**2)) * loss
    beta = loss / mean
    return first * {1: 1.0, 2: float(beta**gamma), 3: beta / (delta * float(alpha ** (beta - delta)))}[version]


def balanced_l1(d: float, alpha: float, gamma: float, beta: float, steps: int = 2000) -> float:
    """Return the integral of the slope min(α ln(b x / β + 1), γ) from 0 to |d|, by Simpson's rule on each side of β."""
    b = exp(gamma / alpha) - 1

    def integral(low: float, high: float) -> float:
        h = (high - low) / steps
        slope = [min(alpha * log(b * (low + i * h) / beta + 1), gamma) for i in range(steps + 1)]
        return h / 3 * (slope[0] + slope[-1] + 4 * sum(slope[1:-1:2]) + 2 * sum(slope[2:-1:2]))

    return integral(0.0, min(abs(d), beta)) + (integral(beta, abs(d)) if abs(d) > beta else 0.0)


def deltas(box: Box, anchor: Box, weights: tuple[float, float, float, float]) -> list[float]:
    """Return the deltas of a box of positive size from an anchor of positive size."""
    (x, y), (w, h), (xa, ya), (wa, ha) = _center(box), _size(box), _center(anchor), _size(anchor)
    plain = ((x - xa) / wa, (y - ya) / ha, log(w / wa), log(h / ha))
    return [weight * value for weight, value in zip(weights, plain, strict=True)]


def distances(box: Box, point: tuple[float, float], stride: float = 1.0) -> list[float]:
    """Return left, upper, right and lower distance of a point from the sides of a box, in strides."""
    x, y = point
    return [d / stride for d in (x - box[0], y - box[1], box[2] - x, box[3] - y)]


def center_size(box: Box, width: float = 1.0, height: float = 1.0) -> list[float]:
    x1, y1, x2, y2 = box[0] / width, box[1] / height, box[2] / width, box[3] / height
    return [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]


def smooth_l1(values: list[float], targets: list[float], beta: float) -> float:
    total = 0.0
    for value, target in zip(values, targets, strict=True):
        d = abs(value - target)
        total += d**2 / (2 * beta) if d < beta else d - beta / 2
    return total


def distribution_focal(logits: list[list[float]], targets: list[float], bins: list[float]) -> float:
    """Return the mean over the sides of the cross-entropy with the two bins around each clamped distance."""
    total = 0.0
    for side, distance in zip(logits, targets, strict=True):
        y = min(max(distance, bins[0]), bins[-1])
        n = max(i for i in range(len(bins) - 1) if bins[i] <= y)
        partition = log(sum(exp(x) for x in side))
        width = bins[n + 1] - bins[n]
        total -= (bins[n + 1] - y) / width * (side[n] - partition) + (y - bins[n]) / width * (side[n + 1] - partition)
    return total / len(targets)
