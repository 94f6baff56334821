"""The criteria of detectors on points against the heads of mmdetection, where it is installed."""

from typing import Any

import pytest
import torch

from tests.dense_scenes import check_terms, dense_scene
from tests.mmdet_heads import dense_head, head_losses
from uotod import recipes

STRIDES = [8, 16, 32]
CELLS = {"type": "AnchorGenerator", "ratios": [1.0], "octave_base_scale": 8, "scales_per_octave": 1}
CELLS |= {"strides": STRIDES, "center_offset": 0.5}
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
