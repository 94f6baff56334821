"""Which mass each sub-loss sees: with or without background, scaled by a quality, and what a mean divides it by."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn

from tests.oracles import criterion as oracle
from tests.oracles.loss import binary_cross_entropy, l1
from tests.support.criteria import detection_loss
from tests.support.guards import take_gpu_path
from tests.support.matcher_cases import CASES
from tests.support.problems import Problem, random_problem
from uotod.criterion.quality import centerness
from uotod.loss import (
    Classification,
    DetectionLoss,
    MassNormalizer,
    ObjectnessLoss,
    PerImageNormalizer,
    PositiveNormalizer,
    QualityFocalLoss,
    ScoreNormalizer,
    TargetNormalizer,
    TotalMassNormalizer,
)
from uotod.match import Hungarian
from uotod.utils import Points

N = "none"
L1 = nn.L1Loss(reduction=N)
BCE = nn.BCEWithLogitsLoss(reduction=N)
QUALITIES = [None, "iou", "centerness", "score"]
PARTS = ("loss_cls", "loss_loc", "loss_obj")


def problem_of(images: int = 2, preds: int = 7, targets: int = 3) -> Problem:
    problem = random_problem(images, preds, targets, 4, low=0)
    problem.input["pred_objectness"] = torch.randn(images, preds, dtype=torch.float64).requires_grad_()
    return problem


def build(matcher=None, **options) -> DetectionLoss:
    matcher = Hungarian(loc_match_module=L1) if matcher is None else matcher
    return detection_loss(BCE, L1, matcher, obj_loss=ObjectnessLoss(reduction=N), **options)


def check(matcher: str, problem: Problem, **options) -> None:
    criterion = build(CASES[matcher].build(), normalizer=PositiveNormalizer(), **options)
    terms = criterion.terms(problem.input, problem.target, problem.anchors)
    boxes = problem.anchors.boxes
    scene = oracle.Scene(
        *(problem.input[key] for key in ("pred_logits", "pred_boxes", "pred_objectness")),
        (boxes[:, :2] + boxes[:, 2:]) / 2,
        problem.target["labels"],
        problem.target["boxes"],
        criterion.matching_method(problem.input, problem.target, problem.anchors),
    )
    expected = oracle.detection_parts(scene, binary_cross_entropy, l1, divide="positive", **options)
    inputs = list(problem.input.values())
    for name in PARTS:
        torch.testing.assert_close(terms[name], expected[name])
        for a, e in zip(
            torch.autograd.grad(terms[name], inputs, allow_unused=True, retain_graph=True),
            torch.autograd.grad(expected[name], inputs, allow_unused=True, retain_graph=True),
            strict=True,
        ):
            if a is not None or e is not None:
                zero = torch.zeros_like(e if a is None else a)
                torch.testing.assert_close(zero if a is None else a, zero if e is None else e)


@pytest.mark.parametrize("matcher", ["Hungarian", "ClosestPrediction", "IoUThreshold-band", "UnbalancedSinkhorn"])
@pytest.mark.parametrize("quality", QUALITIES)
def test_every_keyword_equals_a_triple_loop(matcher, quality) -> None:
    """Two images of 16 problems for each: 256 problems, with and without each background."""
    for index in range(16):
        check(
            matcher,
            problem_of(),
            quality=quality,
            obj_quality=QUALITIES[index % 4],
            loc_quality=QUALITIES[index // 4],
            cls_background=index % 2 == 0,
            obj_background=index % 3 == 0,
        )


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("shape", [(3, 5, 0), (3, 5, 1), (2, 2, 5), (2, 0, 3), (0, 4, 2), (1, 1, 1)])
def test_small_problems_are_ordinary(quality, shape) -> None:
    for matcher in ("Hungarian", "UnbalancedSinkhorn"):
        for background in (True, False):
            check(
                matcher,
                problem_of(*shape),
                quality=quality,
                obj_quality=quality,
                loc_quality=quality,
                cls_background=background,
                obj_background=background,
            )


def test_without_its_background_a_loss_reads_matched_predictions_only() -> None:
    """The class loss of YOLOX and the centerness of FCOS."""
    problem = problem_of(3, 9, 3)
    criterion = build(cls_background=False, obj_background=False, quality="iou", obj_quality="centerness")
    terms = criterion.terms(problem.input, problem.target, problem.anchors)
    matched = criterion.matching_method(problem.input, problem.target)[..., :-1].sum(-1) > 0
    assert terms["num_neg"] == (~matched).sum()  # the plan has it still
    for term, key in (("loss_cls", "pred_logits"), ("loss_obj", "pred_objectness")):
        (gradient,) = torch.autograd.grad(terms[term], problem.input[key])
        assert torch.equal(gradient.reshape(3, 9, -1).ne(0).any(-1), matched)


@pytest.mark.parametrize("position", ["first", "last"])
def test_a_mean_leaves_out_a_background_that_classification_does_not_see(position) -> None:
    problem = random_problem(2, 8, 3, 5, low=1, high=4, full=True)
    weight = torch.rand(5, dtype=torch.float64) + 0.5
    module = nn.CrossEntropyLoss(weight, reduction=N)
    matcher = Hungarian(loc_match_module=L1)
    criterion = DetectionLoss(Classification(module, background=False), L1, matcher, position)
    pairs = matcher(problem.input, problem.target)[..., :-1].nonzero().T
    labels = problem.target["labels"][pairs[0], pairs[2]]
    expected = nn.functional.cross_entropy(problem.input["pred_logits"][pairs[0], pairs[1]], labels, weight)
    torch.testing.assert_close(criterion.terms(problem.input, problem.target)["loss_cls"], expected)


def test_objectness_needs_no_background_that_it_does_not_see() -> None:
    problem = problem_of()
    losses = [
        build(Hungarian(loc_match_module=L1, background=background), cls_background=False, obj_background=False)
        for background in (True, False)
    ]
    one, other = (x(problem.input, problem.target) for x in losses)
    torch.testing.assert_close(one, other)


def test_the_centerness_is_that_of_the_paper() -> None:
    boxes = torch.rand(500, 4, dtype=torch.float64)
    boxes[:, 2:] += boxes[:, :2]
    boxes[0] = torch.tensor([0.5, 0.5, 0.5, 0.5])  # without area
    boxes[1, 2] = boxes[1, 0]
    points = torch.rand(500, 2, dtype=torch.float64)
    points[0], points[1] = boxes[0, :2], boxes[1, :2]
    points[2:5] = boxes[2:5, :2]  # corners
    points[5:8] = (boxes[5:8, :2] + boxes[5:8, 2:]) / 2
    expected = [oracle.centerness(p, b) for p, b in zip(points.tolist(), boxes.tolist(), strict=True)]
    value = centerness(points, boxes)
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(value[5:8], torch.ones(3, dtype=torch.float64))
    assert 50 < (value > 0).sum() < 450


def test_points_and_the_anchors_around_them_have_the_same_centerness() -> None:
    problem = problem_of(2, 9, 3)
    points = Points(torch.rand(9, 2, dtype=torch.float64), 0.25)
    boxes = torch.cat((points.centers - 0.125, points.centers + 0.125), dim=1)
    criterion = build(obj_quality="centerness", loc_quality="centerness")
    one, other = (criterion(problem.input, problem.target, anchors) for anchors in (points, boxes))
    torch.testing.assert_close(one, other)


def test_layers_have_the_quality_of_their_own_predictions() -> None:
    problems = [problem_of(), problem_of()]
    target, anchors = problems[0].target, problems[0].anchors
    criterion = build(loc_quality="score", quality="centerness", obj_quality="iou")
    both = criterion.terms(problems[0].input | {"aux_outputs": [problems[1].input]}, target, anchors)
    for problem, suffix in zip(problems, ("", "_0"), strict=True):
        alone = criterion.terms(problem.input, target, anchors)
        for name in PARTS:
            torch.testing.assert_close(both[name + suffix], alone[name])


def test_the_mass_of_localisation_divides_it_alone() -> None:
    problem = problem_of(2, 9, 4)
    problem.target["mask"][:] = True
    problem.target["boxes"] = problem.target["boxes"].nan_to_num(0.1)
    problem.target["labels"] = problem.target["labels"].clamp(min=0)
    half = lambda boxes, target_boxes: torch.full_like(boxes[:, 0], 0.5)  # noqa: E731
    for normalizer, divided in (
        (MassNormalizer(), True),
        (TotalMassNormalizer(), True),
        (PositiveNormalizer(), True),
        (PerImageNormalizer(), True),
        (TargetNormalizer(), False),
        (ScoreNormalizer(), False),
    ):
        plain, scaled = (
            build(normalizer=normalizer, loc_quality=quality).terms(problem.input, problem.target)
            for quality in (None, half)
        )
        torch.testing.assert_close(scaled["loss_loc"], plain["loss_loc"] * (1 if divided else 0.5))
        for name in ("loss_cls", "loss_obj"):
            torch.testing.assert_close(scaled[name], plain[name])


def test_no_gradient_flows_through_the_quality_of_localisation() -> None:
    problem = problem_of()
    loss = build(loc_quality="score").terms(problem.input, problem.target)["loss_loc"]
    (gradient,) = torch.autograd.grad(loss, problem.input["pred_logits"], allow_unused=True)
    assert gradient is None


def test_the_static_path_of_a_gpu_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Hungarian", "SoftMin", "IoUThreshold-band"):
        problem = problem_of(3, 9, 4)
        criterion = build(
            CASES[name].build(),
            quality="score",
            obj_quality="centerness",
            loc_quality="iou",
            cls_background=False,
            obj_background=False,
        )
        expected = criterion(problem.input, problem.target, problem.anchors)
        with monkeypatch.context() as patch:
            take_gpu_path(patch)
            loss = criterion(problem.input, problem.target, problem.anchors)
        torch.testing.assert_close(loss, expected)


def test_a_criterion_of_qualities_holds_no_state() -> None:
    problem = problem_of()
    criterion = build(quality="centerness", loc_quality="score", cls_background=False, obj_background=False)
    before = pickle.dumps(criterion)
    loss = criterion(problem.input, problem.target, problem.anchors)
    assert pickle.dumps(criterion) == before
    assert criterion.state_dict() == {}
    for twin in (pickle.loads(before), copy.deepcopy(criterion)):
        assert torch.equal(twin(problem.input, problem.target, problem.anchors), loss)


def test_a_quality_focal_loss_takes_the_mass_that_is_left() -> None:
    problem = problem_of(2, 8, 3)
    criterion = DetectionLoss(
        Classification(QualityFocalLoss(reduction=N), quality="iou", background=False),
        L1,
        Hungarian(loc_match_module=L1),
        "none",
    )
    terms = criterion.terms(problem.input, problem.target)
    (gradient,) = torch.autograd.grad(terms["loss_cls"], problem.input["pred_logits"])
    matched = criterion.matching_method(problem.input, problem.target)[..., :-1].sum(-1) > 0
    assert torch.equal(gradient.ne(0).any(-1), matched)


@pytest.mark.parametrize(
    ("options", "message", "error"),
    [
        ({"loc_quality": "giou"}, "quality must be None, 'iou', 'centerness', 'score' or a callable", ValueError),
        ({"loc_quality": ["iou"]}, "quality must be None, 'iou', 'centerness', 'score' or a callable", ValueError),
        ({"cls_background": None}, "background must be a bool, got None", TypeError),
        ({"obj_background": 1}, "background must be a bool, got 1", TypeError),
        (
            {"cls_background": False, "use_hard_negative_mining": True, "neg_to_pos_ratio": 3.0},
            "use_hard_negative_mining=True needs a Classification with background=True",
            ValueError,
        ),
        (
            {"matcher": Hungarian(background=False)},
            "Objectness needs a matching_method with background=True, or background=False itself",
            ValueError,
        ),
    ],
)
def test_bad_arguments_raise(options, message, error) -> None:
    with pytest.raises(error, match=re.escape(message)):
        build(**options)


@pytest.mark.parametrize("name", ["quality", "obj_quality", "loc_quality"])
def test_what_a_quality_needs_must_be_there(name) -> None:
    problem = problem_of()
    with pytest.raises(ValueError, match=r'anchors must be given for quality="centerness": .*, got None'):
        build(**{name: "centerness"})(problem.input, problem.target)
    with pytest.raises(ValueError, match=re.escape("quality must return one value a pair")):
        build(**{name: lambda boxes, target_boxes: boxes})(problem.input, problem.target)
    criterion = detection_loss(
        nn.CrossEntropyLoss(reduction=N),
        L1,
        Hungarian(loc_match_module=L1),
        "last",
        obj_loss=ObjectnessLoss(reduction=N),
        **{name: "score"},
    )
    problem.target["labels"] = problem.target["labels"].clamp(0, 2)
    with pytest.raises(ValueError, match='quality="score" is a sigmoid score and needs bg_class_position="none"'):
        criterion(problem.input, problem.target)
