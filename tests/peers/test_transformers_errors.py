"""The cardinality error of softmax heads equals that of transformers; that of sigmoid heads is another one."""

import pytest
import torch
from torch import nn

from tests.support.problems import random_problem
from uotod.loss import DetectionLoss, SigmoidFocalLoss, detection_errors
from uotod.match import Hungarian

pytest.importorskip("transformers")
N = "none"


def published(problem) -> torch.Tensor:
    from transformers.loss.loss_for_object_detection import ImageLoss

    targets = [
        {"class_labels": labels[m]} for labels, m in zip(*(problem.target[k] for k in ("labels", "mask")), strict=True)
    ]
    criterion = ImageLoss(None, 4, 0.1, ["cardinality"])
    return criterion.loss_cardinality({"logits": problem.input["pred_logits"]}, targets, None, None)[
        "cardinality_error"
    ]


def test_the_cardinality_error_of_a_softmax_head_is_that_of_transformers() -> None:
    l1 = nn.L1Loss(reduction=N)
    criterion = DetectionLoss(nn.CrossEntropyLoss(reduction=N), l1, Hungarian(loc_match_module=l1), "last")
    for _ in range(100):
        problem = random_problem(3, 12, 5, 5, low=0, high=4)
        actual = detection_errors(problem.input, problem.target, criterion)["cardinality_error"]
        torch.testing.assert_close(actual, published(problem), check_dtype=False)


def test_transformers_counts_every_prediction_of_a_sigmoid_head_but_those_of_the_last_class() -> None:
    l1 = nn.L1Loss(reduction=N)
    criterion = DetectionLoss(SigmoidFocalLoss(reduction=N), l1, Hungarian(loc_match_module=l1), "none")
    problem = random_problem(3, 12, 5, 5, low=0)
    with torch.no_grad():
        problem.input["pred_logits"].sub_(100)  # nothing is an object
        problem.input["pred_logits"][..., 0] += 50
    targets = problem.target["mask"].sum(1).double().mean()
    actual = detection_errors(problem.input, problem.target, criterion)["cardinality_error"]
    torch.testing.assert_close(actual, targets)
    torch.testing.assert_close(published(problem).double(), 12 - targets)
