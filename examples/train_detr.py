"""Train a small DETR on Color Boxes or on a COCO folder, with any matcher or recipe of a set predictor.

The model is DETR's: predictions form a set, each decoder layer is matched and pays, and nothing is suppressed at the
end. The size is for one core of a CPU: the cells of a convolutional network are the queries, so that each knows where
it stands, and there is no encoder. See `python examples/train_detr.py --help`.
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

from uotod.loss import DetectionLoss, GIoULoss, MultipleObjectiveLoss, SigmoidFocalCost, SigmoidFocalLoss
from uotod.match import BalancedSinkhorn, ClosestPrediction, Hungarian, Matcher, SoftMin, UnbalancedSinkhorn
from uotod.utils import box_cxcywh_to_xyxy

# Of each image's costs, divided by the largest, those of good pairs differ little: a small `reg` tells them apart.
MATCHERS: dict[str, Callable[..., Matcher]] = {
    "UnbalancedSinkhorn": partial(UnbalancedSinkhorn, reg_pred=1e3, reg_target=1.0, reg_dimless=0.03),
    "Hungarian": Hungarian,
    "BalancedSinkhorn": partial(BalancedSinkhorn, reg_dimless=0.03),
    "ClosestPrediction": ClosestPrediction,
    "SoftMin": partial(SoftMin, source="target", reg=0.1),
}
LEARNING_RATE = 2e-3
PRIOR_SIDE, PRIOR_SCORE = 0.2, 0.01  # what an untrained query predicts: sides, as fractions of the image's, and scores
MAX_DETECTIONS = 100


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the program and return what it writes to `metrics.json`."""
    options = parse_options(
        argv, program="train_detr", description=__doc__, matchers=list(MATCHERS), learning_rate=LEARNING_RATE
    )
    return train(options, partial(build, options))


def build(options: Options, num_classes: int) -> Detector:
    """Return the model with the loss of a recipe, or with the focal loss and the boxes' losses of a matcher."""
    if options.recipe is None:
        head, criterion = Head(num_classes, background="none"), build_criterion(str(options.matcher))
        return Detector(Detr(head), criterion, criterion.matching_method, partial(detect, head))
    recipe = recipe_criterion(options, num_classes)
    detector = Detector(Detr(recipe.head), recipe, recipe.plan, partial(detect, recipe.head))
    check_fit(detector, options, reads_anchors=False)
    return detector


def build_criterion(matcher: str) -> DetectionLoss:
    """Return the loss: 2 · focal + 5 · L1 + 2 · GIoU, which but for the focal loss is also the matcher's cost."""
    boxes = MultipleObjectiveLoss([nn.L1Loss(reduction="none"), GIoULoss(reduction="none")], weights=[5.0, 2.0])
    cost = MultipleObjectiveLoss([SigmoidFocalCost(reduction="none")], weights=[2.0])
    focal = MultipleObjectiveLoss([SigmoidFocalLoss(alpha=0.25, reduction="none")], weights=[2.0])
    matching = MATCHERS[matcher](cls_match_module=cost, loc_match_module=boxes, background_cost=0.0)
    return DetectionLoss(focal, boxes, matching, bg_class_position="none")


def detect(head: Head, outputs: Outputs) -> list[Detections]:
    """Take the best pairs of a query and a class; a trained model leaves nothing to suppress."""
    num_classes, scores = head.num_classes, head.scores(outputs).flatten(1)  # (B, P * C)
    scores, index = scores.topk(min(MAX_DETECTIONS, scores.shape[1]))
    images = zip(outputs["pred_boxes"], scores, index, strict=True)
    return [Detections(boxes[best // num_classes], score, best % num_classes) for boxes, score, best in images]


class Detr(nn.Module):
    """A convolutional network of stride 16 whose cells are queries, refined by layers of self-attention.

    Each layer moves the boxes of the one before, in logits of `(cx, cy, w, h)`; its gradient stops there.

    Args:
        head: what a query predicts.
        dim: features of a query, a multiple of 8.
        num_layers: layers of attention.

    Shape:
        images: (B, 3, H, W) in [0, 1]; P = H/16 · W/16 predictions, boxes as fractions of the image.
    """

    def __init__(self, head: Head, *, dim: int = 128, num_layers: int = 3) -> None:
        super().__init__()
        self.dim = dim
        self.backbone = nn.Sequential(
            convolution(3, 32, stride=2),
            convolution(32, 64, stride=2),
            convolution(64, 64),
            convolution(64, 128, stride=2),
            convolution(128, 128),
            convolution(128, dim, stride=2),
            convolution(dim, dim),
        )
        self.layers = nn.ModuleList(AttentionLayer(dim, num_heads=4) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.classify = nn.Linear(dim, head.num_logits)
        heads = [perceptron(dim, dim, 4) for _ in range(num_layers)]
        self.locate = nn.ModuleList(heads)
        if head.background == "none":
            nn.init.constant_(self.classify.bias, math.log(PRIOR_SCORE / (1 - PRIOR_SCORE)))
        for locate in heads:
            for parameter in locate[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Outputs:
        """Return logits (B, P, C) and boxes (B, P, 4) of the last layer, and those of the others in `aux_outputs`."""
        features = self.backbone(2 * images - 1)  # (B, dim, H / 16, W / 16)
        centres = cell_centres(features)  # (P, 2)
        position = sine_embedding(centres, self.dim)
        prior = torch.cat((centres, torch.full_like(centres, PRIOR_SIDE)), dim=-1)
        reference = prior.logit().expand(len(images), -1, -1)  # (B, P, 4)
        queries = features.flatten(2).transpose(1, 2)  # (B, P, dim)
        outputs = []
        for layer, locate in zip(self.layers, self.locate, strict=True):
            queries = layer(queries, position)
            normed = self.norm(queries)
            reference = reference.detach() + locate(normed)
            boxes = box_cxcywh_to_xyxy(reference.sigmoid())
            outputs.append({"pred_logits": self.classify(normed), "pred_boxes": boxes})
        return {**outputs[-1], "aux_outputs": outputs[:-1]}


class AttentionLayer(nn.Module):
    """Self-attention among the queries, then a perceptron; both normalise what comes in and add what comes out."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention_norm, self.perceptron_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.perceptron = perceptron(dim, 2 * dim, dim)

    def forward(self, queries: Tensor, position: Tensor) -> Tensor:
        """Return queries (B, P, dim); `position` (P, dim) takes part in who attends to whom."""
        values = self.attention_norm(queries)
        keys = values + position
        queries = queries + self.attention(keys, keys, values, need_weights=False)[0]
        refined: Tensor = queries + self.perceptron(self.perceptron_norm(queries))
        return refined


def convolution(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    """Return a 3 x 3 convolution, a normalisation that does not depend on the batch, and a rectifier."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
        nn.GroupNorm(8, channels_out),
        nn.ReLU(inplace=True),
    )


def perceptron(dim_in: int, dim_hidden: int, dim_out: int) -> nn.Sequential:
    """Return two linear layers."""
    return nn.Sequential(nn.Linear(dim_in, dim_hidden), nn.SiLU(), nn.Linear(dim_hidden, dim_out))


def cell_centres(features: Tensor) -> Tensor:
    """Return the centres (h * w, 2), as fractions of the image, of the cells of (B, D, h, w) features."""
    rows, columns = ((torch.arange(side, device=features.device) + 0.5) / side for side in features.shape[-2:])
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((x, y), dim=-1).flatten(0, 1)


def sine_embedding(points: Tensor, dim: int) -> Tensor:
    """Return (P, dim) sines and cosines of points (P, 2) in [0, 1], of wavelengths from 2 down to 1/16."""
    frequency = math.pi * 2 ** torch.linspace(0, 5, dim // 4, device=points.device)
    angle = (points.unsqueeze(-1) * frequency).flatten(1)  # (P, dim / 2)
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


if __name__ == "__main__":
    main()
