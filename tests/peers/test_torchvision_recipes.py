"""The criteria of SSD, RetinaNet and FCOS against the models of torchvision: their matching, losses and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.oracles import anchor_recipes as oracle
from tests.recipes.test_anchors import CLASSES, ONES, SSD_WEIGHTS, compare, problem
from tests.support.dense_scenes import check_terms, dense_scene
from tests.support.peers import peer
from uotod import recipes

RTOL = 1e-5


def model(name: str, constructor: str, classes: int, *parts: Any, **options: Any) -> Any:
    """Return a detector whose backbone is never run."""
    backbone: Any = nn.Identity()
    backbone.out_channels = 32
    return getattr(peer(f"torchvision.models.detection.{name}"), constructor)(backbone, *parts, classes, **options)


def targets_of(batch: list[list[oracle.Target]]) -> list[dict[str, Tensor]]:
    """Return the dictionaries of each image that torchvision takes."""
    return [
        {
            "boxes": torch.stack([box for box, _ in image]) if image else torch.zeros(0, 4).double(),
            "labels": torch.tensor([label for _, label in image], dtype=torch.long),
        }
        for image in batch
    ]


def test_ssd_is_that_of_torchvision_where_no_targets_share_their_best_anchor() -> None:
    generator = peer("torchvision.models.detection.anchor_utils").DefaultBoxGenerator([[1]])
    theirs = model("ssd", "SSD", CLASSES + 1, generator, (64, 64), head=nn.Identity())
    box_iou, compared = peer("torchvision.ops").box_iou, 0
    for seed in range(60):
        logits, deltas, anchors, batch = problem(seed, first_label=1)
        if any(oracle.share_a_best_anchor(anchors, image) for image in batch):
            continue
        targets, background = targets_of(batch), torch.full((len(anchors),), -1)
        matches = [
            theirs.proposal_matcher(box_iou(t["boxes"], anchors)) if len(t["boxes"]) else background for t in targets
        ]  # as its `forward` does
        outputs = {"cls_logits": logits, "bbox_regression": deltas}
        losses = theirs.compute_loss(targets, outputs, [anchors] * len(batch), matches)
        expected = losses["classification"], losses["bbox_regression"]
        compare(recipes.ssd300(CLASSES), SSD_WEIGHTS, (logits, deltas), anchors, batch, expected, rtol=RTOL)
        compared += 1
    assert compared >= 30


def test_retinanet_is_that_of_torchvision_where_every_target_overlaps_an_anchor() -> None:
    theirs, compared = model("retinanet", "RetinaNet", CLASSES), 0
    for seed in range(60):
        logits, deltas, anchors, batch = problem(seed, first_label=0)
        if any(max(column) == 0 for image in batch for column in zip(*oracle.overlaps(anchors, image), strict=True)):
            continue
        outputs = {"cls_logits": logits, "bbox_regression": deltas}
        losses = theirs.compute_loss(targets_of(batch), outputs, [anchors] * len(batch))
        expected = losses["classification"], losses["bbox_regression"]
        compare(recipes.retinanet(CLASSES), ONES, (logits, deltas), anchors, batch, expected, rtol=RTOL)
        compared += 1
    assert compared >= 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fcos_is_that_of_torchvision(dtype: torch.dtype) -> None:
    theirs = model("fcos", "FCOS", 3)
    for seed in range(40):
        scene = dense_scene(seed, dtype=dtype)
        half = scene.stride[:, None] / 2
        cells = torch.cat((scene.points.centers - half, scene.points.centers + half), -1)
        anchors = [cells] * len(scene.target["mask"])
        outputs = {
            "cls_logits": scene.input["pred_logits"],
            "bbox_regression": theirs.box_coder.encode(cells.expand(len(anchors), -1, -1), scene.input["pred_boxes"]),
            "bbox_ctrness": scene.input["pred_objectness"].unsqueeze(-1),
        }
        targets = [{"boxes": image.targets, "labels": image.labels} for image in scene.images()]
        losses = theirs.compute_loss(targets, outputs, anchors, [64, 16, 4])
        names = {"loss_cls": "classification", "loss_loc": "bbox_regression", "loss_obj": "bbox_ctrness"}
        check_terms(recipes.fcos(3), scene, {ours: losses[name] for ours, name in names.items()}, rtol=RTOL)
