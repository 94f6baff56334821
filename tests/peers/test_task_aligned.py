"""Task-aligned matching against a slow loop and the implementations of YOLOv8 and TOOD."""

from typing import Any

import pytest
import torch

from tests.oracles import task_aligned as slow
from tests.support.aligned_scenes import assignment, scene
from tests.support.peers import peer
from uotod.match import TaskAligned
from uotod.utils import Anchors

TOOD: dict[str, Any] = {"alpha": 1.0, "overlap": "iou", "candidates": "all", "min_size": None, "eps": 1e-7}


@pytest.mark.parametrize("seed", range(120))
def test_the_plan_is_that_of_the_slow_loop(seed: int) -> None:
    input, target, points = scene(seed)
    topk, topk2 = 100 if seed % 5 == 0 else 1 + seed % 13, (None, 1, 3)[seed % 3]
    form: dict[str, Any] = TOOD if seed % 2 else {}
    plan = TaskAligned(topk=topk, topk2=topk2, **form)(input, target, points)
    index, mass = assignment(plan)
    for b in range(2):
        expected, scores = slow.task_aligned(
            input["pred_logits"][b],
            input["pred_boxes"][b],
            points.centers,
            target["labels"][b],
            target["boxes"][b],
            target["mask"][b],
            topk=topk,
            topk2=topk2,
            alpha=form.get("alpha", 0.5),
            beta=6.0,
            kind=form.get("overlap", "ciou"),
            inside_first=not form,
            min_size=0.0 if form else 16.0,
            eps=form.get("eps", 1e-9),
        )
        assert index[b].tolist() == expected
        torch.testing.assert_close(mass[b], torch.tensor(scores, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(plan.sum(-1), torch.ones_like(mass), rtol=0, atol=1e-15)


@pytest.fixture(scope="module")
def yolo() -> Any:
    return peer("ultralytics.utils.tal").TaskAlignedAssigner


@pytest.mark.parametrize("seed", range(120))
def test_the_plan_is_that_of_ultralytics(seed: int, yolo: Any) -> None:
    input, target, points = scene(4 * seed + 1, dtype=torch.float32, targets=seed % 7)  # its ties are arbitrary
    topk, topk2, alpha = 1 + seed % 13, (None, 1, 3)[seed % 3], (0.5, 1.0)[seed % 2]
    index, mass = assignment(TaskAligned(topk=topk, topk2=topk2, alpha=alpha)(input, target, points))
    mask = target["mask"].unsqueeze(-1)
    assigner = yolo(topk=topk, num_classes=3, alpha=alpha, beta=6.0, stride=[8, 16, 32], topk2=topk2)
    _, _, scores, positive, gt = assigner(
        input["pred_logits"].sigmoid(),
        input["pred_boxes"],
        points.centers,
        target["labels"].unsqueeze(-1) * mask,
        target["boxes"] * mask,
        mask,
    )
    expected = torch.zeros_like(scores)
    if seed % 7:
        label = target["labels"].gather(1, index.clamp(min=0))
        expected.scatter_(2, label.unsqueeze(-1), mass.unsqueeze(-1))
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
    positive = positive & (scores.amax(-1) > 0)  # it also makes some predictions of metric 0 positive
    assert torch.equal(index, gt.masked_fill(~positive, -1))


@pytest.fixture(scope="module")
def tood() -> Any:
    return peer("mmdet.models.task_modules.assigners").TaskAlignedAssigner


@pytest.mark.parametrize("seed", range(120))
def test_the_plan_is_that_of_mmdetection(seed: int, tood: Any) -> None:
    from mmengine.structures import InstanceData

    input, target, points = scene(4 * seed + 1, images=1, targets=seed % 7, dtype=torch.float32)
    target["mask"][:] = True
    anchors = Anchors(torch.cat((points.centers - 4, points.centers + 4), -1))
    topk = 1 + seed % 15
    index, mass = (x[0] for x in assignment(TaskAligned(topk=topk, **TOOD)(input, target, anchors)))
    result = tood(topk).assign(
        InstanceData(priors=anchors.boxes, bboxes=input["pred_boxes"][0], scores=input["pred_logits"][0].sigmoid()),
        InstanceData(bboxes=target["boxes"][0], labels=target["labels"][0]),
        alpha=1,
        beta=6,
    )
    assert torch.equal(index, result.gt_inds - 1)
    expected = torch.zeros_like(mass)
    for j in range(seed % 7):
        own = index == j
        if own.any():
            metric = result.assign_metrics[own]
            expected[own] = metric / (metric.max() + 1e-7) * result.max_overlaps[own].max()
    torch.testing.assert_close(mass, expected, rtol=0, atol=1e-5)
