"""Decoder layers count by their weight: the loss is the weighted sum of the losses of single layers."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn

from tests.support.matcher_cases import CASES
from tests.support.problems import random_problem
from uotod.loss import DetectionLoss, GIoULoss, MultipleObjectiveLoss, Objectness, ObjectnessLoss, SigmoidFocalLoss
from uotod.match import Hungarian, SharedLayers

N = "none"
L1 = nn.L1Loss(reduction=N)
WEIGHTS = (0.5, 0.0, 2.0)


def build(matcher=None, **options) -> DetectionLoss:
    return DetectionLoss(
        MultipleObjectiveLoss([SigmoidFocalLoss(reduction=N), nn.BCEWithLogitsLoss(reduction=N)]),
        MultipleObjectiveLoss([L1, GIoULoss(reduction=N)], [5.0, 2.0]),
        Hungarian(loc_match_module=L1) if matcher is None else matcher,
        "none",
        **options,
        extra_terms=[Objectness(ObjectnessLoss(reduction=N))],
    )


def layers_of(count: int, shape=(2, 7, 3)):
    problems = [random_problem(*shape, 5, low=0) for _ in range(count)]
    for problem in problems:
        problem.input["pred_objectness"] = torch.randn(shape[:2], dtype=torch.float64).requires_grad_()
    inputs = [x.input for x in problems]
    return inputs, inputs[-1] | {"aux_outputs": inputs[:-1]}, problems[0]


@pytest.mark.parametrize("matcher", ["Hungarian", "IoUThreshold-band", "UnbalancedSinkhorn"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(2, 7, 3), (1, 1, 1), (2, 4, 0)])
def test_the_loss_is_the_weighted_sum_of_those_of_single_layers(matcher, reduction, shape) -> None:
    for _ in range(6):
        inputs, input, problem = layers_of(3, shape)
        criterion = build(CASES[matcher].build(), reduction=reduction, layer_weights=WEIGHTS)
        single = build(CASES[matcher].build(), reduction=reduction)
        terms = criterion.terms(input, problem.target, problem.anchors)
        total = torch.zeros((), dtype=torch.float64)
        for layer, weight, suffix in zip(inputs, WEIGHTS, ("_0", "_1", ""), strict=True):
            alone = single.terms(layer, problem.target, problem.anchors)
            total = total + weight * alone["loss"]
            for key, value in alone.items():
                if key.startswith("loss_"):
                    torch.testing.assert_close(terms[key + suffix], weight * value)
        torch.testing.assert_close(terms["loss"], total)
        assert terms["num_pos"] == alone["num_pos"]  # masses are counted, not weighted
        leaves = [x for layer in inputs for x in layer.values()]
        actual, expected = (torch.autograd.grad(x, leaves) for x in (terms["loss"], total))
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e)


def test_weights_of_one_change_nothing() -> None:
    _, input, problem = layers_of(2)
    one, other = (build(layer_weights=w)(input, problem.target) for w in (None, [1, 1]))
    assert torch.equal(one, other)


def test_the_weights_reach_layers_of_a_shared_matching() -> None:
    _, input, problem = layers_of(3)
    matcher = SharedLayers(Hungarian(loc_match_module=L1), layer=0)
    plain, weighted = (build(matcher, layer_weights=w).terms(input, problem.target) for w in (None, WEIGHTS))
    for weight, suffix in zip(WEIGHTS, ("_0", "_1", ""), strict=True):
        torch.testing.assert_close(weighted["loss_loc" + suffix], weight * plain["loss_loc" + suffix])


def test_weights_are_no_state() -> None:
    _, input, problem = layers_of(3)
    criterion = build(layer_weights=WEIGHTS)
    before = pickle.dumps(criterion)
    loss = criterion(input, problem.target)
    assert pickle.dumps(criterion) == before
    assert criterion.state_dict() == {}
    for twin in (pickle.loads(before), copy.deepcopy(criterion)):
        assert torch.equal(twin(input, problem.target), loss)


@pytest.mark.parametrize(
    ("weights", "message", "error"),
    [
        (1.0, "layer_weights must be a sequence of numbers, got 1.0 of type float", TypeError),
        ([], "layer_weights must hold one number a decoder layer, got none", ValueError),
        ([1.0, -1.0], "layer_weights[1] must lie in [0.0, inf), got -1.0", ValueError),
        (["1"], "layer_weights[0] must be a real number, got '1'", TypeError),
    ],
)
def test_bad_weights_raise(weights, message, error) -> None:
    with pytest.raises(error, match=re.escape(message)):
        build(layer_weights=weights)


def test_another_number_of_layers_raises() -> None:
    inputs, input, problem = layers_of(3)
    message = "layer_weights must hold 3 numbers, one a decoder layer of the input, got 2"
    with pytest.raises(ValueError, match=message):
        build(layer_weights=[1.0, 1.0])(input, problem.target)
    with pytest.raises(ValueError, match="layer_weights must hold 1 numbers"):
        build(layer_weights=[1.0, 1.0])(inputs[0], problem.target)
