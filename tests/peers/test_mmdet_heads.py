"""The criteria of detectors on points against the heads of mmdetection."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.dense_scenes import DenseScene, check_terms, dense_scene
from tests.support.mmdet_heads import dense_head, head_losses
from uotod import recipes
from uotod.match import SimOTA
from uotod.utils import DeltaCoder, DistanceCoder, box_xyxy_to_cxcywh

STRIDES = [8, 16, 32]
CELLS = {"type": "AnchorGenerator", "ratios": [1.0], "octave_base_scale": 8, "scales_per_octave": 1}
CELLS |= {"strides": STRIDES, "center_offset": 0.5}
ATSS = {"assigner": {"type": "ATSSAssigner", "topk": 9}, "allowed_border": -1, "pos_weight": -1}
# seeds whose scenes have no ties, which they break arbitrarily
SEEDS = range(1, 121, 4)


@pytest.fixture(scope="module")
def tood() -> Any:
    train = {"initial_epoch": 4, "alpha": 1, "beta": 6, "allowed_border": -1, "pos_weight": -1}
    train |= {"initial_assigner": {"type": "ATSSAssigner", "topk": 9}}
    train |= {"assigner": {"type": "TaskAlignedAssigner", "topk": 13}}
    losses = {
        "loss_cls": {"type": "QualityFocalLoss", "use_sigmoid": True, "activated": True, "beta": 2.0},
        "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
    }
    head = dense_head("TOODHead", num_dcn=0, anchor_generator=CELLS, train_cfg=train, **losses)
    from mmengine.logging import MessageHub

    MessageHub.get_current_instance().update_info("epoch", 4)  # after the epochs with the assignment of ATSS
    return head


@pytest.mark.parametrize("seed", SEEDS)
def test_tood_is_that_of_mmdetection(seed: int, tood: Any) -> None:
    problem = dense_scene(seed, dtype=torch.float32)  # it stores scores in float32
    boxes = problem.input["pred_boxes"] / problem.stride[:, None]
    losses = head_losses(tood, problem, problem.input["pred_logits"].sigmoid(), boxes)
    expected = {"loss_cls": losses["loss_cls"], "loss_loc": losses["loss_bbox"]}
    check_terms(recipes.tood(3), problem, expected, rtol=1e-4)


@pytest.fixture(scope="module")
def rtmdet() -> Any:
    train = {"assigner": {"type": "DynamicSoftLabelAssigner", "topk": 13}, "allowed_border": -1, "pos_weight": -1}
    points = {"type": "MlvlPointGenerator", "offset": 0.5, "strides": STRIDES}
    losses = {
        "loss_cls": {"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0},
        "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
    }
    coder = {"type": "DistancePointBBoxCoder"}
    config = {"with_objectness": False, "anchor_generator": points, "bbox_coder": coder, "train_cfg": train, **losses}
    return dense_head("RTMDetHead", **config)


@pytest.mark.parametrize("seed", SEEDS)
def test_rtmdet_is_that_of_mmdetection(seed: int, rtmdet: Any) -> None:
    problem = dense_scene(seed, dtype=torch.float32)
    losses = head_losses(rtmdet, problem, problem.input["pred_logits"], distances(problem))
    expected = {"loss_cls": losses["loss_cls"], "loss_loc": losses["loss_bbox"]}
    check_terms(recipes.rtmdet(3), problem, expected, rtol=1e-4)


@pytest.fixture(scope="module")
def yolox() -> Any:
    train = {"assigner": {"type": "SimOTAAssigner", "center_radius": 2.5}}
    return dense_head("YOLOXHead", train_cfg=train)


@pytest.mark.parametrize("l1_weight", [0.0, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_yolox_is_that_of_mmdetection(seed: int, l1_weight: float, yolox: Any) -> None:
    problem = dense_scene(seed, dtype=torch.float32)
    yolox.use_l1 = l1_weight > 0
    boxes, stride = box_xyxy_to_cxcywh(problem.input["pred_boxes"]), problem.stride[:, None]
    corners = problem.points.centers - stride / 2
    outputs = torch.cat(((boxes[..., :2] - corners) / stride, (boxes[..., 2:] / stride).log()), -1)
    objectness = problem.input["pred_objectness"].unsqueeze(-1)
    losses = head_losses(yolox, problem, problem.input["pred_logits"], outputs, objectness)
    names = {"loss_cls": "loss_cls", "loss_loc_box": "loss_bbox", "loss_obj": "loss_obj"}
    names |= {"loss_loc_l1": "loss_l1"} if l1_weight else {}
    matcher = SimOTA(region="box_and_center", radius=2.5, penalty=1e5, eps=1e-7)
    criterion = recipes.yolox(3, matcher=matcher, l1_weight=l1_weight)
    check_terms(criterion, problem, {ours: losses[theirs] for ours, theirs in names.items()}, rtol=1e-4)


@pytest.fixture(scope="module")
def fcos() -> Any:
    ranges = ((-1, 64), (64, 128), (128, 1e8))
    return dense_head("FCOSHead", strides=STRIDES, regress_ranges=ranges, center_sampling=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_fcos_is_that_of_mmdetection(seed: int, fcos: Any) -> None:
    problem = dense_scene(seed, dtype=torch.float32)
    objectness = problem.input["pred_objectness"].unsqueeze(-1)
    losses = head_losses(fcos, problem, problem.input["pred_logits"], distances(problem), objectness)
    expected = {"loss_cls": losses["loss_cls"], "loss_loc": losses["loss_bbox"], "loss_obj": losses["loss_centerness"]}
    check_terms(recipes.fcos(3, style="mmdetection"), problem, expected, rtol=1e-4)


@pytest.fixture(scope="module")
def atss() -> Any:
    deltas = {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": [0.1, 0.1, 0.2, 0.2]}
    losses = {
        "loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25},
        "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
    }
    config = {"anchor_generator": CELLS | {"octave_base_scale": 4}, "bbox_coder": deltas, "train_cfg": ATSS, **losses}
    return dense_head("ATSSHead", **config)


@pytest.mark.parametrize("seed", SEEDS)
def test_atss_is_that_of_mmdetection(seed: int, atss: Any) -> None:
    problem = without_ties(dense_scene(seed))
    boxes = problem.leaves["boxes"].data  # a decoded box is at least a 60th of its anchor
    boxes[..., 2:] = torch.maximum(boxes[..., 2:], boxes[..., :2] + 3)
    anchors = problem.anchors()
    deltas = DeltaCoder().encode(problem.input["pred_boxes"], anchors.boxes)
    objectness = problem.input["pred_objectness"].unsqueeze(-1)
    losses = head_losses(atss, problem, problem.input["pred_logits"], deltas, objectness)
    expected = {"loss_cls": losses["loss_cls"], "loss_loc": losses["loss_bbox"], "loss_obj": losses["loss_centerness"]}
    check_terms(recipes.atss(3), problem, expected, anchors=anchors, rtol=1e-5)


@pytest.fixture(scope="module")
def gfl() -> Any:
    losses = {
        "loss_cls": {"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0},
        "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
        "loss_dfl": {"type": "DistributionFocalLoss", "loss_weight": 0.25},
    }
    cells = CELLS | {"octave_base_scale": 4}
    return dense_head("GFLHead", reg_max=15, anchor_generator=cells, train_cfg=ATSS, **losses)


@pytest.mark.parametrize("seed", SEEDS)
def test_gfl_is_that_of_mmdetection(seed: int, gfl: Any) -> None:
    problem = without_ties(dense_scene(seed, dist=True, dtype=torch.float32))
    losses = head_losses(gfl, problem, problem.input["pred_logits"], problem.input["pred_dist"].flatten(2))
    expected = {"loss_cls": losses["loss_cls"], "loss_loc_box": losses["loss_bbox"], "loss_loc_dfl": losses["loss_dfl"]}
    check_terms(recipes.gfl(3), problem, expected, anchors=problem.anchors(), rtol=1e-4)


def without_ties(problem: DenseScene) -> DenseScene:
    """Move the targets a little, so that no two points are equally near to their centres."""
    boxes = problem.target["boxes"]
    boxes += 0.2 * torch.rand_like(boxes)
    return problem


def distances(problem: DenseScene) -> Tensor:
    """Return the distances of the predicted sides from the points, in pixels."""
    return DistanceCoder().encode(problem.input["pred_boxes"], problem.points.centers)
