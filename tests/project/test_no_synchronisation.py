"""The path that a GPU takes reads no value of a tensor: on the CPU every operation that would have to is refused."""

import pytest
import torch
from torch import Tensor, nn

from tests.support.guards import NoSynchronisation, take_gpu_path
from tests.support.problems import random_boxes, random_problem
from uotod.loss import (
    Branch,
    Branches,
    Classification,
    DetectionLoss,
    GIoULoss,
    Localization,
    MultipleObjectiveLoss,
    Objectness,
    ObjectnessLoss,
    PositiveNormalizer,
    QualityFocalLoss,
    SigmoidFocalLoss,
    detection_errors,
)
from uotod.match import ClosestTarget, SoftMin

N = "none"
L1 = nn.L1Loss(reduction=N)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the library take the path of a GPU."""
    take_gpu_path(monkeypatch)


def output(preds: int) -> dict[str, Tensor]:
    tensors = {"pred_logits": torch.randn(2, preds, 5), "pred_boxes": random_boxes(2, preds).float()}
    tensors["pred_objectness"] = torch.randn(2, preds)
    return {key: value.requires_grad_() for key, value in tensors.items()}


def distance(boxes: Tensor, target_boxes: Tensor) -> Tensor:
    return (1 - (boxes - target_boxes).abs().amax(-1)).clamp(min=0)


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("matcher", [SoftMin, ClosestTarget])
@pytest.mark.parametrize("quality", [None, "iou", "centerness", "score", distance])
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("dense", [True, False])
def test_a_criterion_with_every_keyword_reads_no_value(matcher, quality, background, dense) -> None:
    def loss(**options) -> DetectionLoss:
        return DetectionLoss(
            Classification(
                MultipleObjectiveLoss([SigmoidFocalLoss(reduction=N), QualityFocalLoss(reduction=N)]),
                quality=quality,
                background=background,
            ),
            Localization(MultipleObjectiveLoss([L1, GIoULoss(reduction=N)], [5.0, 2.0]), quality=quality),
            matcher(loc_match_module=L1),
            "none",
            normalizer=PositiveNormalizer(),
            **options,
            extra_terms=[Objectness(ObjectnessLoss(reduction=N), quality=quality, background=background)],
        )

    criterion = Branches(
        loss(layer_weights=[0.5, 1.0]), enc_outputs=Branch(loss(), class_agnostic=True), dn_outputs=Branch(loss(), 2.0)
    )
    target = random_problem(2, 9, 3, 5, low=0, dtype=torch.float32).target
    mask = target["mask"]
    plan = torch.rand(2, 6, 4) * torch.cat((mask, torch.ones(2, 1)), 1)[:, None] if dense else torch.full((2, 6), 3)
    if quality == "centerness":
        anchors = {count: random_boxes(count).float() for count in (9, 7, 6)}
    else:
        anchors = dict.fromkeys((9, 7, 6))
    input = output(9) | {
        "aux_outputs": [output(9)],
        "enc_outputs": output(7) | {"anchors": anchors[7]},
        "dn_outputs": output(6) | {"plan": plan, "anchors": anchors[6]},
    }
    with NoSynchronisation():
        terms = criterion.terms(input, target, anchors[9])
        terms["loss"].backward()
        errors = detection_errors(input, target, criterion.main, anchors[9])
    assert terms["loss"].isfinite()
    assert errors["class_error"].isfinite()


def test_the_guard_refuses_what_synchronises() -> None:
    values = torch.rand(3)
    for read in (values.sum().item, values.nonzero, lambda: values[values > 0.5], lambda: values.new_tensor([1.0])):
        with NoSynchronisation(), pytest.raises(AssertionError, match="reads values on the host"):
            read()
