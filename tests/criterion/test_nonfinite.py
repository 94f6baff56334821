"""Predictions that are not finite, and boxes whose areas overflow: an error that helps, or a step that is skipped."""

import math
import re

import pytest
import torch
from torch import nn

from tests.support.guards import take_gpu_path
from tests.support.matcher_cases import CASES as MATCHERS
from tests.support.problems import Problem, mapped, random_problem
from tests.support.recipe_cases import CASES, layered, problem_for, value_of
from uotod import recipes
from uotod.loss import DetectionLoss, GIoULoss, SigmoidFocalLoss
from uotod.match import ALL_MATCHERS, Hungarian

N = "none"
L1, GIOU = nn.L1Loss(reduction=N), GIoULoss(reduction=N)
FAR = torch.tensor([-1e20, -1e20, 1e20, 1e20])


def single(problem: Problem) -> Problem:
    """Return the problem in float32, in which the areas of such boxes overflow."""
    return mapped(problem, lambda x: x.detach().float().requires_grad_(x.requires_grad))


def detector(nonfinite: str = "error", **options) -> DetectionLoss:
    matcher = Hungarian(loc_match_module=L1, nonfinite=nonfinite, **options)
    return DetectionLoss(SigmoidFocalLoss(reduction=N), GIOU, matcher, N)


def apart() -> Problem:
    """Return a problem of float32 with a prediction, the last one, that no target wants."""
    problem = single(random_problem(2, 8, 3, full=True))
    with torch.no_grad():
        problem.input["pred_boxes"][:, :3] = problem.target["boxes"]
        problem.input["pred_boxes"][1, 7] = torch.tensor([5.0, 5.0, 6.0, 6.0])
    return problem


def spoil(problem: Problem, kind: str) -> None:
    with torch.no_grad():
        if kind == "overflow":
            problem.input["pred_boxes"][1, 7] = FAR
        elif kind == "far corner":
            problem.input["pred_boxes"][1, 7, 3] = 1e20
        else:
            problem.input["pred_boxes" if "box" in kind else "pred_logits"][1, 7, 0] = float(kind.split()[0])


KINDS = ["nan box", "inf box", "nan logit", "-inf logit", "overflow", "far corner"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_names_tensor_image_and_count_and_what_helps(kind: str) -> None:
    problem = apart()
    spoil(problem, kind)
    tensor = "pred_logits" if "logit" in kind else "pred_boxes"
    count = 4 if kind == "overflow" else 1
    what = rf"{count} \S+ values in image 1 \(nonfinite=\"propagate\""
    with pytest.raises(ValueError, match=rf"input\['{tensor}'\] must be .*, got {what}"):
        detector()(problem.input, problem.target)


def test_the_error_names_the_decoder_layer() -> None:
    problem, earlier = apart(), apart()
    spoil(earlier, "overflow")
    with pytest.raises(ValueError, match=re.escape("input['aux_outputs'][0]['pred_boxes'] must be at most 4.6e+18")):
        detector()(problem.input | {"aux_outputs": [earlier.input]}, problem.target)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_that_nothing_matches_makes_loss_and_gradient_nan(kind: str) -> None:
    problem = apart()
    criterion = detector("propagate")
    assert criterion(problem.input, problem.target).isfinite()
    spoil(problem, kind)
    assert (criterion.matching_method(problem.input, problem.target)[1, 7, :3] == 0).all()
    loss = criterion(problem.input, problem.target)
    loss.backward()
    assert loss.isnan()
    assert problem.input["pred_logits"].grad.isnan().any()
    assert problem.input["pred_boxes"].grad.isnan().any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_scaler_skips_the_step(kind: str) -> None:
    problem = apart()
    spoil(problem, kind)
    weight = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler("cpu")
    boxes, logits = (problem.input[key].detach() for key in ("pred_boxes", "pred_logits"))
    # the head trains the logits, of which all are finite where the boxes are not
    loss = detector("propagate")({"pred_logits": weight * logits, "pred_boxes": boxes}, problem.target)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert weight == 1
    assert scaler.get_scale() < 2**16


@pytest.mark.parametrize("make", [problem_for, layered])
@pytest.mark.parametrize("name", CASES)
def test_every_recipe_refuses_or_propagates_a_box_whose_area_overflows(name: str, make) -> None:
    build, problem = getattr(recipes, name), single(make(name))
    layer = problem.input if make is problem_for else problem.input["aux_outputs"][0]
    with torch.no_grad():
        layer["pred_boxes"][1, 5] = FAR
    with pytest.raises(ValueError, match=r"\['pred_boxes'\] must be at most 4.6e\+18 in size.*propagate"):
        value_of(build(3), problem)
    loss = value_of(build(3, nonfinite="propagate"), problem)
    loss.backward()
    assert loss.isnan()
    assert problem.input["pred_logits"].grad.isnan().any()


@pytest.mark.parametrize("name", CASES)
def test_every_recipe_propagates_half_precision_that_overflowed(name: str) -> None:
    problem = single(problem_for(name))
    with torch.no_grad():
        boxes = problem.input["pred_boxes"]
        boxes[0, 3] = torch.tensor([0.0, 0.0, 1e5, 1e5])
    halves = problem.input | {"pred_boxes": boxes.half()}  # 65504 at most
    with pytest.raises(ValueError, match=r"input\['pred_boxes'\] must be finite, got 2 non-finite values in image 0"):
        getattr(recipes, name)(3)(halves, problem.target, problem.anchors)
    assert getattr(recipes, name)(3, nonfinite="propagate")(halves, problem.target, problem.anchors).isnan()


@pytest.mark.parametrize("name", MATCHERS)
def test_every_matcher_takes_a_box_whose_area_overflows_last(name: str) -> None:
    matcher = MATCHERS[name].build(nonfinite="propagate")
    problem = single(random_problem(3, 8, 3, full=True))
    expected = matcher(problem.input, problem.target, problem.anchors)
    with torch.no_grad():
        problem.input["pred_boxes"][1, 2] = FAR
    plan = matcher(problem.input, problem.target, problem.anchors)
    assert plan.isfinite().all()
    assert (plan[1, 2, :3] < 1e-3).all()
    assert torch.equal(plan[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_prediction_is_matched_for_nothing_finite_is_left(kind: str) -> None:
    problem = single(random_problem(2, 1, 1, full=True))
    with torch.no_grad():
        if "logit" in kind:
            problem.input["pred_logits"][1, 0, 0] = math.nan
        else:
            problem.input["pred_boxes"][1, 0] = FAR
    plan = Hungarian(loc_match_module=GIOU, nonfinite="propagate")(problem.input, problem.target)
    assert (plan[:, 0, 0] == 1).all()


def test_a_module_whose_cost_is_nan_is_named_with_what_helps_and_matched_last() -> None:
    class Odd(nn.Module):
        def forward(self, boxes, target_boxes):
            cost = (boxes - target_boxes).abs().sum(-1)
            return torch.where(boxes[:, 0] > 4, math.nan, cost)

    problem = apart()
    with pytest.raises(
        ValueError, match=r"got nan in image 1, prediction 7, .* 3 such values .*nonfinite=\"propagate\""
    ):
        Hungarian(loc_match_module=Odd())(problem.input, problem.target)
    plan = Hungarian(loc_match_module=Odd(), nonfinite="propagate")(problem.input, problem.target)
    assert (plan[1, 7, :3] == 0).all()
    assert (plan[:, :, :3].sum(1) == 1).all()


def test_targets_and_anchors_whose_areas_overflow_raise() -> None:
    problem = apart()
    problem.target["boxes"][0, 1] = FAR
    with pytest.raises(ValueError, match=r"target\['boxes'\] must be at most 4.6e\+18 in size, .* got 4 larger values"):
        detector()(problem.input, problem.target)
    with pytest.raises(ValueError, match=r"anchors must be at most 4.6e\+18 in size, .* got 32 larger values"):
        detector()(problem.input, apart().target, FAR.expand(8, 4))


def test_what_float64_can_hold_is_finite() -> None:
    problem = random_problem(2, 8, 3, full=True)
    with torch.no_grad():
        problem.input["pred_boxes"][1, 2] = FAR.double()
    assert detector()(problem.input, problem.target).isfinite()


def test_the_transfer_of_hungarian_tells_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = apart()
    spoil(problem, "nan box")
    take_gpu_path(monkeypatch)
    with pytest.raises(ValueError, match=r"input\['pred_boxes'\] must be finite, got 1 non-finite values in image 1"):
        detector()(problem.input, problem.target)


@pytest.mark.parametrize("value", ["propagate", "error"])
def test_every_matcher_and_recipe_has_the_option(value: str) -> None:
    for build in (Hungarian, ALL_MATCHERS["IoUThreshold"], *(getattr(recipes, name) for name in CASES)):
        assert build(**({} if isinstance(build, type) else {"num_classes": 3}), nonfinite=value) is not None
