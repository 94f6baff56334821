"""Draw the picture of the README: a generated image, predictions around its targets, and the path of plans."""

from pathlib import Path

import torch
from torch import nn

from uotod.datasets import ColorBoxes
from uotod.loss import GIoULoss, MultipleObjectiveLoss, NegativeProbLoss
from uotod.match import Hungarian
from uotod.plot import plot_path


def main() -> None:
    """Write images/path.png beside this file."""
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
    figure = plot_path(image, pred_boxes, boxes, cost, reg=0.05)
    figure.savefig(Path(__file__).parent / "images" / "path.png", dpi=90)


if __name__ == "__main__":
    main()
