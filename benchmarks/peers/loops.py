"""The losses of SSD and RetinaNet as implementations that go image by image write them."""

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.contender import Contender, criterion
from benchmarks.workloads import Problem, Workload
from uotod.utils import box_iou

SSD_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
RETINA_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
# Where two targets share their best anchor, one of them goes without; ours gives it another. With a target an image the
# losses are equal.
TOLERANCE = 2e-3


def loop(workload: Workload, problem: Problem) -> Contender:
    """Return the loss that torchvision has, in a few lines."""
    places, targets, deltas = places_of(problem), targets_of(workload, problem), regression_output(workload, problem)
    match = _retina_match if workload.kind == "retina" else _ssd_match
    loss = _retina_loss if workload.kind == "retina" else _ssd_loss

    def matches() -> list[Tensor]:
        return [match(target["boxes"], places) for target in targets]

    def value() -> Tensor:
        return loss(problem.logits[-1], deltas, places, targets, matches())

    return criterion("loop over images", "IoU", matches, value, [problem.logits, deltas], tolerance=TOLERANCE)


def regression_output(workload: Workload, problem: Problem) -> Tensor:
    """Return the regression output (B, P, 4) of which the problem's boxes are the decoded ones, a leaf."""
    weights = RETINA_WEIGHTS if workload.kind == "retina" else SSD_WEIGHTS
    boxes, places = problem.boxes[-1].detach(), places_of(problem)
    return torch.stack([_encode(image, places, weights) for image in boxes]).requires_grad_()


def places_of(problem: Problem) -> Tensor:
    """Return the anchors, (P, 4)."""
    assert problem.anchors is not None
    return problem.anchors.places


def targets_of(workload: Workload, problem: Problem) -> list[dict[str, Tensor]]:
    """Return the targets of each image, the labels behind that of a first background."""
    shift = int(workload.background == "first")
    return [{"labels": t["labels"] + shift, "boxes": t["boxes"]} for t in problem.targets]


def _ssd_match(boxes: Tensor, places: Tensor) -> Tensor:
    iou = box_iou(boxes, places)
    value, index = iou.max(0)
    index[value < 0.5] = -1
    index[iou.argmax(1)] = torch.arange(len(boxes))
    return index


def _ssd_loss(
    logits: Tensor, deltas: Tensor, places: Tensor, targets: list[dict[str, Tensor]], matches: list[Tensor]
) -> Tensor:
    localization, labels = logits.new_zeros(()), torch.zeros(logits.shape[:2], dtype=torch.long)
    for image, (target, index) in enumerate(zip(targets, matches, strict=True)):
        positive = (index >= 0).nonzero().squeeze(1)
        wanted = _encode(target["boxes"][index[positive]], places[positive], SSD_WEIGHTS)
        localization = localization + F.smooth_l1_loss(deltas[image, positive], wanted, reduction="sum")
        labels[image, positive] = target["labels"][index[positive]]
    classification = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    foreground = labels > 0
    negative = classification.detach().masked_fill(foreground, -torch.inf)
    rank = negative.sort(1, descending=True).indices.sort(1).indices
    kept = foreground | (rank < 3 * foreground.sum(1, keepdim=True))
    return (localization + classification[kept].sum()) / foreground.sum().clamp(min=1)


def _retina_match(boxes: Tensor, places: Tensor) -> Tensor:
    """Return the target of each anchor, -1 for the background and -2 for those that are ignored."""
    iou = box_iou(boxes, places)
    value, index = iou.max(0)
    nearest = index.clone()
    index[value < 0.4] = -1
    index[(value >= 0.4) & (value < 0.5)] = -2
    best = (iou == iou.max(1, keepdim=True).values).any(0)
    index[best] = nearest[best]
    return index


def _retina_loss(
    logits: Tensor, deltas: Tensor, places: Tensor, targets: list[dict[str, Tensor]], matches: list[Tensor]
) -> Tensor:
    total = logits.new_zeros(())
    for image, (target, index) in enumerate(zip(targets, matches, strict=True)):
        positive = (index >= 0).nonzero().squeeze(1)
        scores, kept = logits[image], index > -2
        labels = torch.zeros_like(scores)
        labels[positive, target["labels"][index[positive]]] = 1.0
        scores, labels = scores[kept], labels[kept]
        prob = scores.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(scores, labels, reduction="none")
        factor = (0.75 - 0.5 * labels) * (prob * (1 - labels) + (1 - prob) * labels) ** 2
        wanted = _encode(target["boxes"][index[positive]], places[positive], RETINA_WEIGHTS)
        localization = F.l1_loss(deltas[image, positive], wanted, reduction="sum")
        total = total + ((factor * entropy).sum() + localization) / max(1, len(positive))
    return total / len(targets)


def _encode(boxes: Tensor, places: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Return the deltas (N, 4) of boxes from their anchors, xyxy."""
    size, place_size = boxes[:, 2:] - boxes[:, :2], places[:, 2:] - places[:, :2]
    moved = (boxes[:, 2:] + boxes[:, :2] - places[:, 2:] - places[:, :2]) / (2 * place_size)
    return torch.cat((moved, (size / place_size).log()), dim=1) * torch.tensor(weights)
