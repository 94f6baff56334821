"""Train a small SSD on Color Boxes or on a COCO folder, with any matcher.

The recipe is SSD's: anchors of several sizes and shapes on the grids of a convolutional network, a softmax with a
background class, hard negative mining, and non-maximum suppression at the end. Matchers compare anchors with targets.
See `python examples/train_ssd.py --help`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
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
from uotod.utils import batched_nms, box_cxcywh_to_xyxy

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
ANCHOR_SIZES, ANCHOR_RATIOS = ((12.0, 18.0, 27.0), (40.0, 60.0), (90.0, 135.0)), (0.5, 1.0, 2.0)
CENTRE_SCALE, SIDE_SCALE = 0.1, 0.2  # SSD's variances: what a prediction of 1 does to an anchor
LEAST_SCORE, MAX_CANDIDATES, MAX_OVERLAP, MAX_DETECTIONS = 0.01, 200, 0.45, 100


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the program and return what it writes to `metrics.json`."""
    options = parse_options(
        argv, program="train_ssd", description=__doc__, matchers=list(MATCHERS), learning_rate=LEARNING_RATE
    )
    return train(options, lambda num_classes: Detector(Ssd(num_classes), build_criterion(options.matcher), detect))


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


def detect(outputs: Outputs) -> list[Detections]:
    """Take the best pairs of an anchor and a class, without those that a better one of the class overlaps."""
    scores = outputs["pred_logits"].float().softmax(-1)[..., :-1]  # (B, P, C), the background left out
    num_classes = scores.shape[-1]
    scores = scores.flatten(1)
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
        num_classes: number of classes, without the background.

    Shape:
        images: (B, 3, H, W) in [0, 1]; predicted boxes and anchors are fractions of the image.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.row = num_classes + 5  # four numbers of a box, the classes and the background
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
        self.heads = nn.ModuleList(
            nn.Conv2d(width, len(sizes) * len(ANCHOR_RATIOS) * self.row, 3, padding=1)
            for width, sizes in zip(channels, ANCHOR_SIZES, strict=True)
        )

    def forward(self, images: Tensor) -> Outputs:
        """Return logits (B, P, C + 1), boxes (B, P, 4) and the anchors (P, 4), all boxes xyxy."""
        features, rows, anchors = 2 * images - 1, [], []
        for stage, head, sizes in zip(self.stages, self.heads, ANCHOR_SIZES, strict=True):
            features = stage(features)
            rows.append(head(features).permute(0, 2, 3, 1).reshape(len(images), -1, self.row))
            anchors.append(place_anchors(features, images, sizes))
        row, anchor = torch.cat(rows, dim=1), torch.cat(anchors)  # (B, P, C + 5), (P, 4)
        delta, logits = row[..., :4].float(), row[..., 4:]
        centre = anchor[:, :2] + CENTRE_SCALE * delta[..., :2] * anchor[:, 2:]
        side = anchor[:, 2:] * (SIDE_SCALE * delta[..., 2:]).clamp(max=4).exp()
        boxes = box_cxcywh_to_xyxy(torch.cat((centre, side), dim=-1))
        return {"pred_logits": logits, "pred_boxes": boxes, "anchors": box_cxcywh_to_xyxy(anchor)}


def place_anchors(features: Tensor, images: Tensor, sizes: Sequence[float]) -> Tensor:
    """Return the anchors (h * w * A, 4) of (B, D, h, w) features, `(cx, cy, w, h)` as fractions of the image."""
    rows, columns = ((torch.arange(side, device=features.device) + 0.5) / side for side in features.shape[-2:])
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    centres = torch.stack((x, y), dim=-1).view(-1, 1, 2)  # (h * w, 1, 2)
    height, width = images.shape[-2:]
    shapes = [(size * ratio**0.5 / width, size / ratio**0.5 / height) for size in sizes for ratio in ANCHOR_RATIOS]
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
