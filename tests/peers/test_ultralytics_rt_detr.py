"""The criterion of RT-DETR as Ultralytics trains it, against its implementation: pairs, losses and gradients."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.peers import peer
from tests.support.set_outputs import CLASSES, Layer, assert_same, denoising, random_layers, random_targets, stacked
from uotod import recipes
from uotod.utils import box_xyxy_to_cxcywh


@pytest.fixture
def double() -> Iterator[None]:
    """Make its zeros, which are of the default dtype, those of the inputs."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def stack(layers: list[Layer]) -> tuple[Tensor, Tensor]:
    return torch.stack([x.boxes for x in layers]), torch.stack([x.logits for x in layers])


def their_loss(reference: Any, layers: list[Layer], targets: list[dict[str, Tensor]], noisy: list[Layer]) -> Tensor:
    counts = [len(x["labels"]) for x in targets]
    batch = {
        "cls": torch.cat([x["labels"] for x in targets]),
        "bboxes": box_xyxy_to_cxcywh(torch.cat([x["boxes"] for x in targets])),
        "gt_groups": counts,
    }
    more: dict[str, Any] = {}
    if noisy:
        groups = noisy[0].logits.shape[1] // (2 * max(counts))
        _, positive = denoising(targets, groups)
        index = list(torch.arange(sum(counts)).split(counts))
        meta = {"dn_pos_idx": positive, "dn_num_group": groups, "dn_gt_idx": index}
        boxes, scores = stack(noisy)
        more = {"dn_bboxes": boxes, "dn_scores": scores, "dn_meta": meta}
    return sum(reference(stack(layers), batch, **more).values())


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("size", [(3, 20, 4), (1, 30, 1), (3, 24, 9), (2, 4, 6)])
@pytest.mark.parametrize("groups", [0, 1, 3])
def test_it_is_that_of_ultralytics(size: tuple[int, int, int], groups: int) -> None:
    reference = peer("ultralytics.models.utils.loss").RTDETRDetectionLoss(nc=CLASSES, use_vfl=True)
    criterion, (images, preds, most) = recipes.rt_detr(CLASSES, style="ultralytics"), size
    for _ in range(5):
        layers, targets = random_layers(3, images, preds), random_targets(images, most)
        ours, noisy = stacked(layers), []
        if groups:
            plan, _ = denoising(targets, groups)
            noisy = random_layers(2, images, plan.shape[1])
            ours["dn_outputs"] = stacked(noisy) | {"plan": plan}
        theirs = their_loss(reference, layers, targets, noisy)
        # it computes classes in float32, and its overlaps have an epsilon
        assert_same(criterion(ours, targets), theirs, [*layers, *noisy], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("double")
def test_without_any_target_its_negatives_count_three_times_as_much() -> None:
    reference = peer("ultralytics.models.utils.loss").RTDETRDetectionLoss(nc=CLASSES, use_vfl=True)
    layers, targets = random_layers(2, 2, 7), random_targets(2, 0)
    ours = recipes.rt_detr(CLASSES, style="ultralytics")(stacked(layers), targets)
    torch.testing.assert_close(3 * ours, their_loss(reference, layers, targets, []))
