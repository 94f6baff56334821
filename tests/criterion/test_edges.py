"""Edges of a criterion: what is assigned later, layers without boxes, plans and targets in every form."""

import copy

import pytest
import torch
from torch import nn

from tests.support.problems import random_boxes, random_problem
from uotod.loss import (
    Branch,
    Branches,
    Classification,
    DetectionLoss,
    Masses,
    MultipleObjectiveLoss,
    Objectness,
    ObjectnessLoss,
    SigmoidFocalLoss,
    TargetNormalizer,
)
from uotod.match import Hungarian
from uotod.plan import Plan

B, P, T, C = 2, 6, 3, 4
N = "none"
L1 = nn.L1Loss(reduction=N)


def problem():
    return random_problem(B, P, T, C, low=0)


def whole_targets() -> dict[str, torch.Tensor]:
    return {"labels": torch.randint(0, C, (B, T)), "boxes": random_boxes(B, T)}


def build(**options) -> DetectionLoss:
    return DetectionLoss(SigmoidFocalLoss(reduction=N), L1, Hungarian(loc_match_module=L1), N, **options)


def class_matcher() -> Hungarian:
    return Hungarian(cls_match_module=SigmoidFocalLoss(reduction=N))


# --- a quality in a layer without what it reads


@pytest.mark.parametrize("quality", ["iou", lambda ours, theirs: torch.ones_like(ours[:, 0])])
def test_a_layer_without_boxes_has_no_class_loss_by_their_quality(quality) -> None:
    scene = problem()
    head = Classification(SigmoidFocalLoss(reduction=N), quality=quality)
    criterion = DetectionLoss(head, None, class_matcher(), N)
    bare = {"pred_logits": scene.input["pred_logits"].detach().requires_grad_()}
    terms = criterion.terms(scene.input | {"aux_outputs": [bare]}, scene.target)
    assert terms["loss_cls_0"] == 0
    assert torch.equal(terms["loss_cls"], criterion.terms(scene.input, scene.target)["loss_cls"])
    with pytest.raises(ValueError, match="'pred_boxes'"):
        criterion(bare, scene.target)


def test_a_layer_without_boxes_has_no_objectness_by_their_quality() -> None:
    scene = problem()
    head = Objectness(ObjectnessLoss(reduction=N), quality="iou")
    criterion = DetectionLoss(SigmoidFocalLoss(reduction=N), None, class_matcher(), N, extra_terms=[head])
    bare = {"pred_logits": torch.randn(B, P, C), "pred_objectness": torch.randn(B, P)}
    final = scene.input | {"pred_objectness": torch.randn(B, P)}
    terms = criterion.terms(final | {"aux_outputs": [bare]}, scene.target)
    assert terms["loss_obj_0"] == 0
    assert terms["loss_cls_0"] > 0
    assert terms["loss_obj"] > 0


# --- targets of branches


def test_a_branch_without_classes_keeps_the_fields_of_targets_in_a_list() -> None:
    class PointLoss(nn.Module):
        needs = ("pred_points", "target_points")

        def forward(self, pred_points, target_points):
            return (pred_points - target_points).abs()

    scene = problem()
    loss = DetectionLoss(SigmoidFocalLoss(reduction=N), PointLoss(), Hungarian(loc_match_module=L1), N)
    criterion = Branches(build(), enc_outputs=Branch(loss, class_agnostic=True))
    output = scene.input | {"enc_outputs": scene.input | {"pred_points": torch.randn(B, P, 2)}}
    padded = whole_targets() | {"points": torch.randn(B, T, 2)}
    listed = [{key: padded[key][b] for key in ("labels", "boxes", "points")} for b in range(B)]
    assert torch.equal(criterion(output, listed), criterion(output, padded))


# --- plans that users make


def made(mass: torch.Tensor, target: torch.Tensor) -> Plan:
    background = (mass.sum(1) == 0).to(mass.dtype)
    return Plan(mass, target, background, T)


def test_a_plan_object_is_checked_as_a_tensor_is() -> None:
    scene = problem()
    target = whole_targets() | {"mask": torch.tensor([[True, True, False]] * B)}
    criterion = build()
    mass, index = torch.zeros(B, 1, P), torch.zeros(B, 1, P, dtype=torch.long)
    mass[:, 0, 0] = 1
    assert criterion(scene.input, target, plan=made(mass, index)).isfinite()
    with pytest.raises(ValueError, match="plan must not match targets where"):
        criterion(scene.input, target, plan=made(mass, index + 2))
    with pytest.raises(ValueError, match=r"plan.target must lie in .*, got 7"):
        criterion(scene.input, target, plan=made(mass, index + 7))
    with pytest.raises(ValueError, match="plan"):
        criterion(scene.input, target, plan=made(mass.masked_fill(mass == 1, float("nan")), index))
    with pytest.raises(ValueError, match="plan must not be negative"):
        criterion(scene.input, target, plan=made(-mass, index))


# --- what is assigned later


def test_a_failed_assignment_leaves_the_criterion_as_it_was() -> None:
    criterion = DetectionLoss(nn.CrossEntropyLoss(reduction=N), L1, Hungarian(loc_match_module=L1))
    scene = random_problem(B, P, T, C, low=1)
    before = criterion(scene.input, scene.target)
    for name, value, message in (
        ("loc_loss_module", nn.L1Loss(), "reduction"),
        ("cls_loss_module", nn.CrossEntropyLoss(), "reduction"),
        ("matching_method", Hungarian(loc_match_module=L1, background=False), "background=True"),
        ("matching_method", Hungarian(loc_match_module=L1, box_format="cxcywh"), "box_format"),
    ):
        kept = getattr(criterion, name)
        with pytest.raises(ValueError, match=message):
            setattr(criterion, name, value)
        assert getattr(criterion, name) is kept
        assert torch.equal(criterion(scene.input, scene.target), before)
    with pytest.raises(TypeError, match="matching_method must be a Matcher"):
        criterion.matching_method = L1
    criterion.loc_loss_module = nn.SmoothL1Loss(reduction=N)
    assert not torch.equal(criterion(scene.input, scene.target), before)


def test_a_sum_of_losses_cannot_be_changed_unseen() -> None:
    scene = problem()
    loss = MultipleObjectiveLoss([nn.L1Loss(reduction=N), nn.MSELoss(reduction=N)])
    criterion = build()
    criterion.loc_loss_module = loss
    before = criterion(scene.input, scene.target)
    with pytest.raises(AttributeError, match="MultipleObjectiveLoss"):
        loss.weights = (10.0, 10.0)
    with pytest.raises(TypeError, match="MultipleObjectiveLoss"):
        loss.losses[0] = nn.MSELoss(reduction=N)
    criterion.loc_loss_module = MultipleObjectiveLoss(list(loss.losses), (10, 10))
    assert criterion(scene.input, scene.target) > before
    twin = copy.deepcopy(criterion)
    assert torch.equal(twin(scene.input, scene.target), criterion(scene.input, scene.target))


# --- losses by inheritance, divisors from outside


def test_a_subclass_that_replaces_nothing_has_its_parents_adapter() -> None:
    class Same(nn.CrossEntropyLoss):
        pass

    class Other(nn.CrossEntropyLoss):
        def forward(self, input, target):
            return super().forward(input, target)

    kinds = [type(Classification(x(reduction=N)).parts[0].adapter) for x in (nn.CrossEntropyLoss, Same, Other)]
    assert kinds[0] is kinds[1]
    assert kinds[0] is not kinds[2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_number_of_targets_from_outside_may_lie_on_another_device() -> None:
    scene = problem()
    criterion = build(normalizer=TargetNormalizer()).cuda()
    input, target = ({key: x.cuda() for key, x in values.items()} for values in (scene.input, scene.target))
    assert criterion(input, target, masses=Masses.of_targets(3)).isfinite()


def test_boxes_of_no_image_are_no_error() -> None:
    empty = {"pred_logits": torch.zeros(0, P, C), "pred_boxes": random_boxes(0, P)}
    target = {"labels": torch.zeros(0, T, dtype=torch.long), "boxes": random_boxes(0, T)}
    assert build()(empty, target) == 0
