"""Train a small SSD on Color Boxes or on a COCO folder, with any matcher or recipe of anchors or points.

The model is SSD's: anchors of several sizes and shapes on the grids of a convolutional network, a softmax with a
background class, hard negative mining, and non-maximum suppression at the end. Matchers compare anchors with targets.
A recipe has the head that it needs: one square a cell for rules of points, sigmoids, objectness, or distances as bins.
See `python examples/train_ssd.py --help`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from _options import Options
from _recipes import Head, check_fit, recipe_criterion
from common import Detections, Detector, Outputs, parse_options, train
from torch import Tensor, nn

from uotod.loss import DetectionLoss, GIoULoss, IoULoss, MultipleObjectiveLoss
from uotod.match import (
    BalancedSinkhorn,
    ClosestPrediction,
    ClosestTarget,
    Hungarian,
    IoUThreshold,
    Matcher,
    SoftMin,
    UnbalancedSinkhorn,
)
from uotod.utils import batched_nms, box_cxcywh_to_xyxy, distribution_to_box

# `reg_target` makes it dear to leave a target without anchors: small ones, which overlap no anchor by half, get some.
MATCHERS: dict[str, Callable[..., Matcher]] = {
    "UnbalancedSinkhorn": partial(UnbalancedSinkhorn, reg_pred=1e3, reg_target=0.05, reg_dimless=0.03),
    "IoUThreshold": IoUThreshold,
    "ClosestTarget": ClosestTarget,
    "ClosestPrediction": ClosestPrediction,
    "SoftMin": partial(SoftMin, source="prediction", reg=0.01),
    "Hungarian": Hungarian,
    "BalancedSinkhorn": partial(BalancedSinkhorn, reg_dimless=0.03),
}
LEARNING_RATE = 2e-3
# Anchors: the roots of their areas in pixels, for each of the strides 8, 16 and 32, and widths over heights.
STRIDES, ANCHOR_RATIOS = (8.0, 16.0, 32.0), (0.5, 1.0, 2.0)
ANCHOR_SIZES = ((12.0, 18.0, 27.0), (40.0, 60.0), (90.0, 135.0))
SQUARE_SIZES = ((32.0,), (64.0,), (128.0,))  # for rules of points, which need one anchor a cell
PRIOR_SCORE = 0.01  # what an untrained sigmoid head predicts
CENTRE_SCALE, SIDE_SCALE = 0.1, 0.2  # SSD's variances: what a prediction of 1 does to an anchor
LEAST_SCORE, MAX_CANDIDATES, MAX_OVERLAP, MAX_DETECTIONS = 0.01, 200, 0.45, 100


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the program and return what it writes to `metrics.json`."""
    options = parse_options(
        argv, program="train_ssd", description=__doc__, matchers=list(MATCHERS), learning_rate=LEARNING_RATE
    )
    return train(options, partial(build, options))


def build(options: Options, num_classes: int) -> Detector:
    """Return the model with the loss of a recipe, or with SSD's and a matcher."""
    if options.recipe is None:
        head, criterion = Head(num_classes, background="last"), build_criterion(str(options.matcher))
        return Detector(Ssd(head), criterion, criterion.matching_method, partial(detect, head))
    recipe = recipe_criterion(options, num_classes)
    detector = Detector(Ssd(recipe.head), recipe, recipe.plan, partial(detect, recipe.head))
    check_fit(detector, options, reads_anchors=True)
    return detector


def build_criterion(matcher: str) -> DetectionLoss:
    """Return the loss: cross-entropy with three hard negatives for a positive, and 5 · L1 + 2 · GIoU.

    The cost is `1 − IoU` of the anchors; one that overlaps no target by half would rather be background.
    """
    boxes = MultipleObjectiveLoss([nn.L1Loss(reduction="none"), GIoULoss(reduction="none")], weights=[5.0, 2.0])
    return DetectionLoss(
        nn.CrossEntropyLoss(reduction="none"),
        boxes,
        MATCHERS[matcher](loc_match_module=IoULoss(reduction="none"), background_cost=0.5, is_anchor_based=True),
        bg_class_position="last",
        use_hard_negative_mining=True,
        neg_to_pos_ratio=3.0,
    )


def detect(head: Head, outputs: Outputs) -> list[Detections]:
    """Take the best pairs of an anchor and a class, without those that a better one of the class overlaps."""
    num_classes, scores = head.num_classes, head.scores(outputs).flatten(1)  # (B, P * C)
    scores, index = scores.topk(min(MAX_CANDIDATES, scores.shape[1]))
    detections = []
    for boxes, score, best in zip(outputs["pred_boxes"], scores, index, strict=True):
        candidates = Detections(boxes[best // num_classes], score, best % num_classes)
        likely = score > LEAST_SCORE
        candidates = Detections(*(x[likely] for x in candidates))
        kept = batched_nms(*candidates, iou_threshold=MAX_OVERLAP)[:MAX_DETECTIONS]
        detections.append(Detections(*(x[kept] for x in candidates)))
    return detections


class Ssd(nn.Module):
    """A convolutional network with a head on each of three grids, which moves and classifies the anchors there.

    Args:
        head: what an anchor predicts.

    Shape:
        images: (B, 3, H, W) in [0, 1]; predicted boxes and anchors are fractions of the image.
    """

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head
        # the numbers of a box, or the bins of its four distances; the logits; objectness
        self.row = [4 * max(head.bins, 1), head.num_logits, int(head.objectness)]
        self.sizes = ANCHOR_SIZES if head.shapes else SQUARE_SIZES
        self.ratios = ANCHOR_RATIOS if head.shapes else (1.0,)
        channels = (96, 128, 128)
        self.stages = nn.ModuleList(
            (
                nn.Sequential(
                    convolution(3, 32, stride=2),
                    convolution(32, 64, stride=2),
                    convolution(64, 64),
                    convolution(64, channels[0], stride=2),
                    convolution(channels[0], channels[0]),
                ),
                nn.Sequential(
                    convolution(channels[0], channels[1], stride=2),
                    convolution(channels[1], channels[1]),
                ),
                convolution(channels[1], channels[2], stride=2),
            )
        )
        heads = [
            nn.Conv2d(width, len(sizes) * len(self.ratios) * sum(self.row), 3, padding=1)
            for width, sizes in zip(channels, self.sizes, strict=True)
        ]
        self.heads = nn.ModuleList(heads)
        if head.background == "none":
            for layer in heads:
                bias = torch.zeros(len(layer.weight) // sum(self.row), sum(self.row))
                bias[:, self.row[0] :] = math.log(PRIOR_SCORE / (1 - PRIOR_SCORE))
                layer.bias = nn.Parameter(bias.flatten())

    def forward(self, images: Tensor) -> Outputs:
        """Return logits (B, P, C or C + 1), boxes (B, P, 4), the anchors (P, 4) and what else the head has.

        Boxes are xyxy; "stride" (P,) and "image_size" (height, width) are in pixels.
        """
        features, rows, anchors, strides = 2 * images - 1, [], [], []
        for stage, head, sizes, stride in zip(self.stages, self.heads, self.sizes, STRIDES, strict=True):
            features = stage(features)
            rows.append(head(features).permute(0, 2, 3, 1).reshape(len(images), -1, sum(self.row)))
            anchors.append(place_anchors(features, images, sizes, self.ratios))
            strides.append(torch.full_like(anchors[-1][:, 0], stride))
        values, logits, objectness = torch.split(torch.cat(rows, dim=1), self.row, dim=-1)
        anchor = torch.cat(anchors)  # (P, 4)
        outputs = {"pred_logits": logits, "anchors": box_cxcywh_to_xyxy(anchor), "stride": torch.cat(strides)}
        if self.head.objectness:
            outputs["pred_objectness"] = objectness.squeeze(-1)
        height, width = images.shape[-2:]
        if self.head.bins:
            outputs["pred_dist"] = values.float().reshape(*values.shape[:2], 4, self.head.bins)
            size = anchor.new_tensor([width, height])
            outputs["pred_boxes"] = distribution_to_box(outputs["pred_dist"], anchor[:, :2] * size, outputs["stride"])
            outputs["pred_boxes"] = outputs["pred_boxes"] / size.repeat(2)
        else:
            outputs["pred_boxes"] = decode(values.float(), anchor)
        return {**outputs, "image_size": (height, width)}


def decode(delta: Tensor, anchor: Tensor) -> Tensor:
    """Return the boxes (B, P, 4), xyxy, that (B, P, 4) numbers make of the anchors (P, 4), `(cx, cy, w, h)`."""
    centre = anchor[:, :2] + CENTRE_SCALE * delta[..., :2] * anchor[:, 2:]
    side = anchor[:, 2:] * (SIDE_SCALE * delta[..., 2:]).clamp(max=4).exp()
    return box_cxcywh_to_xyxy(torch.cat((centre, side), dim=-1))


def place_anchors(features: Tensor, images: Tensor, sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Return the anchors (h * w * A, 4) of (B, D, h, w) features, `(cx, cy, w, h)` as fractions of the image."""
    rows, columns = ((torch.arange(side, device=features.device) + 0.5) / side for side in features.shape[-2:])
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    centres = torch.stack((x, y), dim=-1).view(-1, 1, 2)  # (h * w, 1, 2)
    height, width = images.shape[-2:]
    shapes = [(size * ratio**0.5 / width, size / ratio**0.5 / height) for size in sizes for ratio in ratios]
    sides = torch.tensor(shapes, device=features.device)  # (A, 2)
    grid = (len(centres), len(sides), 2)
    return torch.cat((centres.expand(grid), sides.expand(grid)), dim=-1).flatten(0, 1)


def convolution(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    """Return a 3 x 3 convolution, a normalisation that does not depend on the batch, and a rectifier."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
        nn.GroupNorm(8, channels_out),
        nn.ReLU(inplace=True),
    )


if __name__ == "__main__":
    main()
