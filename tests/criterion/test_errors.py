"""Class error and cardinality error are what their definitions say, for softmax and sigmoid heads alike."""

import re

import pytest
import torch
from torch import nn

from tests.oracles import criterion as oracle
from tests.support.matcher_cases import CASES
from tests.support.problems import random_problem
from uotod.loss import DetectionLoss, ObjectnessLoss, SigmoidFocalLoss, detection_errors
from uotod.match import Hungarian, SharedLayers

N = "none"
L1 = nn.L1Loss(reduction=N)


def build(position: str = "none", matcher=None, **options) -> DetectionLoss:
    cls = SigmoidFocalLoss(reduction=N) if position == "none" else nn.CrossEntropyLoss(reduction=N)
    return DetectionLoss(cls, L1, Hungarian(loc_match_module=L1) if matcher is None else matcher, position, **options)


@pytest.mark.parametrize("matcher", ["Hungarian", "ClosestPrediction", "IoUThreshold-band", "UnbalancedSinkhorn"])
@pytest.mark.parametrize("position", ["first", "last", "none"])
@pytest.mark.parametrize("objectness", [False, True])
@pytest.mark.parametrize("shape", [(3, 9, 4), (2, 5, 1), (2, 6, 0), (1, 0, 2), (0, 3, 2)])
def test_the_errors_equal_loops(matcher, position, objectness, shape) -> None:
    background = {"first": 0, "last": 3, "none": None}[position]
    for threshold in (0.5, 0.0, 0.8):
        problem = random_problem(*shape, 4, low=int(position == "first"), high=4 - (position == "last"))
        extra = {"obj_loss_module": ObjectnessLoss(reduction=N)} if objectness else {}
        criterion = build(position, CASES[matcher].build(), **extra)
        problem.input["pred_objectness"] = torch.randn(shape[:2], dtype=torch.float64)
        logits, labels = problem.input["pred_logits"].detach(), problem.target["labels"]
        plan = criterion.matching_method(problem.input, problem.target, problem.anchors)
        errors = detection_errors(problem.input, problem.target, criterion, problem.anchors, threshold=threshold)
        assert errors.keys() == {"class_error", "cardinality_error"}
        assert all(x.shape == () and not x.requires_grad for x in errors.values())
        torch.testing.assert_close(float(errors["class_error"]), oracle.class_error(logits, labels, plan))
        scores = problem.input["pred_objectness"] if objectness else None
        expected = oracle.cardinality_error(logits, problem.target["mask"], background, threshold, scores)
        torch.testing.assert_close(float(errors["cardinality_error"]), expected)


def test_a_perfect_detector_has_no_errors() -> None:
    for position, background in (("first", 0), ("last", 5), ("none", None)):
        problem = random_problem(2, 10, 4, 6, low=1, high=5, full=True)
        boxes, labels = problem.target["boxes"], problem.target["labels"]
        logits = torch.full((2, 10, 6), -5.0)
        if background is not None:
            logits[..., background] = 0
        logits[:, :4] = 10 * nn.functional.one_hot(labels, 6) - 5.0
        input = {"pred_logits": logits, "pred_boxes": torch.cat((boxes, boxes[:, :1].expand(-1, 6, -1) + 1), 1).float()}
        errors = detection_errors(input, problem.target, build(position))
        assert errors == {"class_error": 0, "cardinality_error": 0}


def test_a_sigmoid_head_that_predicts_nothing_misses_the_targets_only() -> None:
    """Counting predictions whose largest logit is not the last one would find objects where all scores are low."""
    problem = random_problem(3, 50, 4, 6, low=0, full=True)
    input = problem.input | {"pred_logits": problem.input["pred_logits"] - 100}
    assert detection_errors(input, problem.target, build())["cardinality_error"] == 4
    counted = (input["pred_logits"].argmax(-1) != 5).sum(1).double().mean()
    assert counted > 30


@pytest.mark.parametrize("labels", ["integers", "one-hot"])
def test_a_list_of_targets_and_one_hot_labels_give_the_same(labels) -> None:
    problem = random_problem(3, 9, 4, 5, low=0)
    mask = problem.target["mask"]
    target = [{key: problem.target[key][b, mask[b]] for key in ("boxes", "labels")} for b in range(3)]
    if labels == "one-hot":
        target = [x | {"labels": nn.functional.one_hot(x["labels"], 5)} for x in target]
    expected = detection_errors(problem.input, problem.target, build())
    for key, value in detection_errors(problem.input, target, build()).items():
        torch.testing.assert_close(value, expected[key])


def test_the_errors_are_those_of_the_final_layer() -> None:
    problems = [random_problem(2, 9, 4, 5, low=0) for _ in range(2)]
    input = problems[0].input | {"aux_outputs": [problems[1].input]}
    target = problems[0].target
    assert detection_errors(input, target, build()) == detection_errors(problems[0].input, target, build())
    shared = build(matcher=SharedLayers(Hungarian(loc_match_module=L1), layer=0))
    plan = shared.matching_method.matcher(problems[1].input, target)
    expected = oracle.class_error(problems[0].input["pred_logits"].detach(), target["labels"], plan)
    torch.testing.assert_close(float(detection_errors(input, target, shared)["class_error"]), expected)


def test_a_given_plan_says_what_is_matched() -> None:
    problem = random_problem(2, 4, 4, 5, low=0, full=True)
    plan = torch.arange(4).expand(2, -1)
    wrong = problem.input["pred_logits"].argmax(-1) != problem.target["labels"]
    errors = detection_errors(problem.input, problem.target, build(), plan=plan)
    torch.testing.assert_close(errors["class_error"], 100 * wrong.double().mean())


def test_ignored_targets_are_not_counted() -> None:
    problem = random_problem(1, 6, 3, 5, low=0, full=True)
    input = problem.input | {"pred_logits": problem.input["pred_logits"] - 100}
    target = problem.target | {"ignore": torch.tensor([[True, False, False]])}
    assert detection_errors(input, target, build())["cardinality_error"] == 2


def test_bad_arguments_raise() -> None:
    problem = random_problem(2, 4, 3, 5, low=0)
    with pytest.raises(TypeError, match="criterion must be a DetectionLoss, got Hungarian"):
        detection_errors(problem.input, problem.target, Hungarian())
    with pytest.raises(ValueError, match=re.escape("threshold must lie in [0.0, 1.0], got 2.0")):
        detection_errors(problem.input, problem.target, build(), threshold=2.0)
    criterion = build(obj_loss_module=ObjectnessLoss(reduction=N))
    with pytest.raises(ValueError, match="input must have the key 'pred_objectness' with an obj_loss_module"):
        detection_errors(problem.input, problem.target, criterion)
