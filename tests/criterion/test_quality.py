"""Losses that are taught the quality of a pair receive it from the plan, by one mechanism for all."""

import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.oracles import classify as oracle
from tests.support.matcher_cases import CASES
from tests.support.problems import Problem, random_problem
from uotod.cost.kinds import Soft
from uotod.loss import (
    Classification,
    DetectionLoss,
    GHMCLoss,
    IoUAwareBCELoss,
    MatchabilityAwareLoss,
    MultipleObjectiveLoss,
    Objectness,
    ObjectnessLoss,
    QualityFocalLoss,
    ScoreNormalizer,
    SigmoidFocalLoss,
    SoftmaxFocalLoss,
    TotalMassNormalizer,
    VarifocalLoss,
)
from uotod.match import Hungarian
from uotod.plan import Plan
from uotod.scene.scene import parse_scene
from uotod.solvers.mining import mine_hard_negatives

N = "none"
L1 = nn.L1Loss(reduction=N)
BCE = nn.BCEWithLogitsLoss(reduction=N)
LOSSES = {
    "bce": (nn.BCEWithLogitsLoss(reduction=N), oracle.soft_bce),
    "qfl": (QualityFocalLoss(reduction=N), oracle.quality_focal),
    "vfl": (VarifocalLoss(form="rtdetr", reduction=N), oracle.varifocal_rtdetr),
    "mal": (MatchabilityAwareLoss(reduction=N), oracle.matchability),
    "iabce": (IoUAwareBCELoss(reduction=N), oracle.iou_aware),
}
QUALITIES = {
    None: lambda box, target: 1.0,
    "iou": oracle.iou,
    "callable": lambda box, target: max(1 - abs(box[0] - target[0]), 0.0),
}


def horizontal(boxes: Tensor, target_boxes: Tensor) -> Tensor:
    """Return the quality that `QUALITIES["callable"]` computes of one pair."""
    return (1 - (boxes[:, 0] - target_boxes[:, 0]).abs()).clamp(min=0)


class SoftBCE(nn.Module):
    """The binary cross-entropy by way of a soft target."""

    reduction = N

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        raise AssertionError("a module with a soft loss is not called on rows")

    def adapter(self) -> Soft:
        return Soft(self, self.of_target, by_row=False)

    def of_target(self, logits: Tensor, target) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, target.quality, reduction=N).sum(-1)


class Fixed(Hungarian):
    """A matcher that returns the plan that it was given."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(loc_match_module=L1)
        self.value = plan

    def plan(self, batch) -> Plan:
        return self.value


def problem_for(position: str, images: int = 2, preds: int = 7, targets: int = 3, classes: int = 4) -> Problem:
    low, high = int(position == "first"), classes - (position == "last")
    return random_problem(images, preds, targets, classes, low=low, high=high)


def pair_qualities(problem: Problem, quality: str | None) -> Tensor:
    boxes, targets = problem.input["pred_boxes"].tolist(), problem.target["boxes"].tolist()
    mask = problem.target["mask"]
    images, preds, num_targets = len(boxes), len(boxes[0]), mask.shape[1]
    value = torch.zeros(images, preds, num_targets, dtype=torch.float64)
    for b in range(images):
        for i in range(preds):
            for j in range(num_targets):
                if mask[b, j]:
                    value[b, i, j] = QUALITIES[quality](boxes[b][i], targets[b][j])
    return value


def check(name: str, quality: str | None, matcher, position: str, problem: Problem, mining: float | None = None):
    module, scalar = LOSSES[name]
    options = {"use_hard_negative_mining": mining is not None, "neg_to_pos_ratio": mining, "reduction": "sum"}
    criterion = DetectionLoss(
        Classification(module, quality=horizontal if quality == "callable" else quality),
        L1,
        matcher,
        position,
        **options,
    )
    plan = matcher(problem.input, problem.target, problem.anchors)
    background = {"first": 0, "last": problem.input["pred_logits"].shape[-1] - 1, "none": None}[position]
    if mining is not None:
        logits = problem.input["pred_logits"]
        target = [float(c == background) for c in range(logits.shape[-1])]
        hardness = torch.tensor(
            [
                [sum(float(scalar(x.detach(), t, t)) for x, t in zip(row, target, strict=True)) for row in image]
                for image in logits
            ],
            dtype=torch.float64,
        )
        kept = mine_hard_negatives(plan[..., -1], hardness, plan[..., :-1].sum((1, 2)), mining)
        plan = torch.cat((plan[..., :-1], kept.unsqueeze(-1)), dim=-1)
    expected, scores = oracle.soft_target_loss(
        problem.input["pred_logits"],
        problem.target["labels"],
        plan,
        pair_qualities(problem, quality),
        scalar,
        background,
    )
    terms = criterion.terms(problem.input, problem.target, problem.anchors)
    torch.testing.assert_close(terms["loss_cls"], expected)
    logits = problem.input["pred_logits"]
    (actual_gradient,) = torch.autograd.grad(terms["loss_cls"], logits)
    torch.testing.assert_close(actual_gradient, torch.autograd.grad(expected, logits)[0])
    torch.testing.assert_close(terms["num_pos"], plan[..., :-1].sum())
    criterion = DetectionLoss(
        Classification(module, quality=criterion.cls_loss_module.quality),
        L1,
        matcher,
        position,
        normalizer=ScoreNormalizer(),
    )
    if mining is None:
        mean = criterion.terms(problem.input, problem.target, problem.anchors)["loss_cls"]
        torch.testing.assert_close(mean, expected / max(scores, 1.0))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("matcher", ["Hungarian", "ClosestPrediction", "IoUThreshold-band", "UnbalancedSinkhorn"])
def test_a_quality_equals_a_triple_loop(name, quality, matcher) -> None:
    """Two images, six settings, each matcher and loss: 360 problems, among them rows without mass and with mass 2."""
    for position in ("none", "first", "last"):
        for mining in (None, 1.5):
            problem = problem_for(position)
            check(name, quality, CASES[matcher].build(), position, problem, mining)


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("targets", [0, 1])
def test_images_with_no_and_one_target_are_ordinary(quality, targets) -> None:
    for name in LOSSES:
        for matcher in ("Hungarian", "UnbalancedSinkhorn"):
            check(name, quality, CASES[matcher].build(), "none", problem_for("none", 3, 5, targets))


@pytest.mark.parametrize("matcher", CASES)
@pytest.mark.parametrize("position", ["none", "first"])
@pytest.mark.parametrize("quality", [None, "iou"])
def test_a_linear_loss_is_the_same_on_both_paths(matcher, position, quality) -> None:
    """The soft target is defined so that an affine loss of it is the plan's mass times the loss of each label."""
    problem = problem_for(position, 3, 9, 4)
    for mining in (None, 1.0):
        options = {"use_hard_negative_mining": mining is not None, "neg_to_pos_ratio": mining}
        losses = [
            DetectionLoss(Classification(cls, quality=quality), L1, CASES[matcher].build(), position, **options)
            for cls in (nn.BCEWithLogitsLoss(reduction=N), SoftBCE())
        ]
        one, other = (x(problem.input, problem.target, problem.anchors) for x in losses)
        torch.testing.assert_close(other, one)
        for a, e in zip(
            torch.autograd.grad(other, list(problem.input.values()), allow_unused=True),
            torch.autograd.grad(one, list(problem.input.values()), allow_unused=True),
            strict=True,
        ):
            assert (a is None) == (e is None)
            if a is not None:
                torch.testing.assert_close(a, e)


def test_a_quality_of_one_changes_nothing() -> None:
    problem = problem_for("none")
    ones = lambda boxes, target_boxes: torch.ones_like(boxes[:, 0])  # noqa: E731
    for module, _ in LOSSES.values():
        for matcher in ("Hungarian", "UnbalancedSinkhorn"):
            losses = [
                DetectionLoss(Classification(module, quality=quality), L1, CASES[matcher].build(), "none")
                for quality in (None, ones)
            ]
            one, other = (x(problem.input, problem.target, problem.anchors) for x in losses)
            torch.testing.assert_close(other, one)


def test_the_two_representations_of_a_plan_give_the_same() -> None:
    problem = problem_for("none", 3, 8, 4)
    batch = parse_scene(problem.input, problem.target, problem.anchors)
    assigned = CASES["IoUThreshold-band"].build().scene_plan(batch)
    assert assigned.mass.shape[1] == 1
    dense = Plan.from_columns(assigned.to_dense().transpose(1, 2), 4)
    for module, _ in LOSSES.values():
        for quality in (None, "iou", horizontal):
            losses = [
                DetectionLoss(Classification(module, quality=quality), L1, Fixed(plan), "none")(
                    problem.input, problem.target
                )
                for plan in (assigned, dense)
            ]
            torch.testing.assert_close(*losses)


def test_an_ignored_prediction_contributes_nothing() -> None:
    problem = problem_for("none", 2, 6, 3)
    batch = parse_scene(problem.input, problem.target, None)
    plan = Hungarian(loc_match_module=L1).scene_plan(batch)
    ignored = torch.zeros(2, 6, dtype=torch.bool)
    ignored[0, 2] = ignored[1, 4] = True
    background = plan.background.masked_fill(ignored, 0)
    plan = replace(plan, mass=plan.mass.masked_fill(ignored.unsqueeze(1), 0), background=background)
    for module, _ in [*LOSSES.values(), (GHMCLoss(reduction=N), None)]:
        criterion = DetectionLoss(
            Classification(module, quality="iou"), L1, Fixed(plan), "none", extra_terms=[Objectness(module)]
        )
        loss = criterion(problem.input | {"pred_objectness": problem.input["pred_logits"][..., 0]}, problem.target)
        (gradient,) = torch.autograd.grad(loss, problem.input["pred_logits"])
        assert (gradient[ignored] == 0).all()
        assert (gradient[~ignored] != 0).any(-1).all()


def test_the_histogram_of_ghm_counts_predictions_by_their_mass() -> None:
    for matcher in ("Hungarian", "IoUThreshold-band", "UnbalancedSinkhorn"):
        for _ in range(20):
            problem = problem_for("none", 2, 9, 3)
            matching = CASES[matcher].build()
            plan = matching(problem.input, problem.target, problem.anchors).flatten(0, 1)
            labels = F.one_hot(problem.target["labels"].clamp(min=0), 4).double().repeat_interleave(9, 0)  # (B·P, T, C)
            mass = plan.sum(1)
            share = (plan[:, :-1].unsqueeze(-1) * labels).sum(1) / mass.where(mass > 0, 1).unsqueeze(-1)
            logits = problem.input["pred_logits"].detach().flatten(0, 1)
            expected = (mass.unsqueeze(-1) * oracle.ghm(logits, share, mass.tolist())).sum() / mass.sum().clamp(min=1)
            criterion = DetectionLoss(GHMCLoss(reduction=N), L1, matching, "none", normalizer=TotalMassNormalizer())
            terms = criterion.terms(problem.input, problem.target, problem.anchors)
            torch.testing.assert_close(terms["loss_cls"], expected)


def test_localisation_keeps_the_mass_of_the_plan() -> None:
    problem = problem_for("none")
    for matcher in ("Hungarian", "UnbalancedSinkhorn"):
        terms = [
            DetectionLoss(Classification(LOSSES["bce"][0], quality=quality), L1, CASES[matcher].build(), "none").terms(
                problem.input, problem.target
            )
            for quality in (None, "iou")
        ]
        assert terms[0]["loss_loc"] == terms[1]["loss_loc"]
        assert terms[0]["num_pos"] == terms[1]["num_pos"]
        assert terms[0]["loss_cls"] != terms[1]["loss_cls"]


def test_no_gradient_flows_through_the_quality() -> None:
    problem = problem_for("none")
    for quality in ("iou", horizontal):
        criterion = DetectionLoss(
            Classification(LOSSES["qfl"][0], quality=quality), L1, Hungarian(loc_match_module=L1), "none"
        )
        loss = criterion.terms(problem.input, problem.target)["loss_cls"]
        (gradient,) = torch.autograd.grad(loss, problem.input["pred_boxes"], allow_unused=True)
        assert gradient is None


def test_decoder_layers_are_losses_of_their_own() -> None:
    """A loss that counts over its input, too, sees one layer at a time."""
    layers = [problem_for("none", 2, 6, 3) for _ in range(3)]
    target = layers[0].target
    inputs = [x.input | {"pred_objectness": x.input["pred_logits"][..., 0]} for x in layers]
    for module in (GHMCLoss(reduction=N), VarifocalLoss(reduction=N)):
        both = MultipleObjectiveLoss({"soft": module, "bce": nn.BCEWithLogitsLoss(reduction=N)}, [2.0, 1.0])
        criterion = DetectionLoss(
            Classification(both, quality="iou"),
            L1,
            Hungarian(loc_match_module=L1),
            "none",
            extra_terms=[Objectness(both, quality="iou")],
        )
        terms = criterion.terms(inputs[2] | {"aux_outputs": inputs[:2]}, target)
        total = torch.zeros((), dtype=torch.float64)
        for layer, suffix in ((0, "_0"), (1, "_1"), (2, "")):
            alone = criterion.terms(inputs[layer], target)
            total = total + alone["loss"]
            for key in ("loss_cls", "loss_cls_soft", "loss_obj", "loss_obj_bce", "loss_loc"):
                torch.testing.assert_close(terms[key + suffix], alone[key])
            torch.testing.assert_close(alone["loss"], alone["loss_cls"] + alone["loss_loc"] + alone["loss_obj"])
        torch.testing.assert_close(terms["loss"], total)


def test_half_precision_is_computed_in_float32() -> None:
    problem = problem_for("none")
    half = {k: v.detach().half() for k, v in problem.input.items()}
    for module, _ in LOSSES.values():
        criterion = DetectionLoss(Classification(module, quality="iou"), L1, Hungarian(loc_match_module=L1), "none")
        loss = criterion(half, problem.target)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, criterion({k: v.float() for k, v in half.items()}, problem.target))


def test_a_weighted_softmax_loss_keeps_its_weights() -> None:
    """Without focus the softmax focal loss is the cross-entropy, in the sum and in what the mean divides by."""
    problem = problem_for("first", 2, 9, 4)
    weight = torch.tensor([0.1, 1.0, 2.0, 0.5], dtype=torch.float64)
    for matcher in ("Hungarian", "SoftMin"):
        for quality in (None, "iou"):
            one, other = (
                DetectionLoss(Classification(module, quality=quality), L1, CASES[matcher].build())(
                    problem.input, problem.target
                )
                for module in (
                    nn.CrossEntropyLoss(weight, reduction=N),
                    SoftmaxFocalLoss(gamma=0.0, class_weight=weight, reduction=N),
                )
            )
            torch.testing.assert_close(other, one)


class TestObjectness:
    def problem(self, *shape: int) -> Problem:
        problem = problem_for("none", *shape)
        images, preds, _ = problem.input["pred_logits"].shape
        problem.input["pred_objectness"] = torch.randn(images, preds, dtype=torch.float64).requires_grad_()
        return problem

    @pytest.mark.parametrize("matcher", ["Hungarian", "IoUThreshold-band", "UnbalancedSinkhorn"])
    @pytest.mark.parametrize("quality", QUALITIES)
    def test_it_equals_a_loop(self, matcher, quality) -> None:
        modules = {
            "weighted": (
                ObjectnessLoss(negative_weight=0.5, reduction=N),
                lambda x, t, y: oracle.cross_entropy(x, t) - 0.5 * (1 - t) * torch.logaddexp(torch.zeros_like(x), x),
            ),
            "qfl": (QualityFocalLoss(reduction=N), oracle.quality_focal),
        }
        for _ in range(20):
            problem = self.problem()
            plan = CASES[matcher].build()(problem.input, problem.target, problem.anchors)
            for module, scalar in modules.values():
                criterion = DetectionLoss(
                    nn.BCEWithLogitsLoss(reduction=N),
                    L1,
                    CASES[matcher].build(),
                    "none",
                    extra_terms=[Objectness(module, quality=horizontal if quality == "callable" else quality)],
                )
                terms = criterion.terms(problem.input, problem.target, problem.anchors)
                expected, _ = oracle.soft_target_loss(
                    problem.input["pred_objectness"].unsqueeze(-1),
                    torch.zeros_like(problem.target["labels"]),
                    plan,
                    pair_qualities(problem, quality),
                    scalar,
                )
                torch.testing.assert_close(terms["loss_obj"], expected / max(float(plan[..., :-1].sum()), 1.0))
                torch.testing.assert_close(terms["loss"], terms["loss_cls"] + terms["loss_loc"] + terms["loss_obj"])

    def test_a_weight_of_zero_leaves_negatives_out(self) -> None:
        problem = self.problem(2, 6, 2)
        criterion = DetectionLoss(
            nn.BCEWithLogitsLoss(reduction=N),
            L1,
            Hungarian(loc_match_module=L1),
            "none",
            extra_terms=[Objectness(ObjectnessLoss(negative_weight=0.0, reduction=N))],
        )
        loss = criterion.terms(problem.input, problem.target)["loss_obj"]
        (gradient,) = torch.autograd.grad(loss, problem.input["pred_objectness"])
        plan = criterion.matching_method(problem.input, problem.target)
        assert torch.equal(gradient != 0, plan[..., :-1].sum(-1) > 0)

    def test_a_focal_loss_serves_too(self) -> None:
        problem = self.problem()
        criterion = DetectionLoss(
            nn.BCEWithLogitsLoss(reduction=N),
            L1,
            Hungarian(loc_match_module=L1),
            "none",
            extra_terms=[Objectness(SigmoidFocalLoss(alpha=0.25, reduction=N))],
        )
        positive = criterion.matching_method(problem.input, problem.target)[..., :-1].sum(-1)
        expected = SigmoidFocalLoss(alpha=0.25, reduction="sum")(
            problem.input["pred_objectness"].unsqueeze(-1), positive.unsqueeze(-1)
        ) / positive.sum().clamp(min=1)
        torch.testing.assert_close(criterion.terms(problem.input, problem.target)["loss_obj"], expected)

    def test_one_hot_labels_and_no_targets_are_ordinary(self) -> None:
        for targets in (0, 3):
            problem = self.problem(2, 6, targets)
            labels = F.one_hot(problem.target["labels"].clamp(min=0), 4)
            criterion = DetectionLoss(
                Classification(SigmoidFocalLoss(reduction=N), quality="iou"),
                L1,
                Hungarian(loc_match_module=L1),
                "none",
                extra_terms=[Objectness(ObjectnessLoss(reduction=N), quality="iou")],
            )
            expected = criterion(problem.input, problem.target)
            torch.testing.assert_close(criterion(problem.input, problem.target | {"labels": labels}), expected)

    def test_predictions_without_objectness_raise(self) -> None:
        problem = problem_for("none")
        criterion = DetectionLoss(
            nn.BCEWithLogitsLoss(reduction=N),
            L1,
            Hungarian(loc_match_module=L1),
            "none",
            extra_terms=[Objectness(ObjectnessLoss(reduction=N))],
        )
        with pytest.raises(ValueError, match="input must have the key 'pred_objectness' for Objectness"):
            criterion(problem.input, problem.target)


class TestNonFinitePredictions:
    def test_a_nan_reaches_the_loss_whether_it_is_matched_or_not(self) -> None:
        problem = problem_for("none", 1, 6, 2)
        problem.target["mask"][:] = True
        problem.target["boxes"] = problem.target["boxes"].nan_to_num(0.1)
        problem.target["labels"] = problem.target["labels"].clamp(min=0)
        boxes = problem.input["pred_boxes"].detach().clone()
        boxes[0, 3] = torch.nan
        matcher = partial(Hungarian, loc_match_module=L1, nonfinite="propagate")
        criterion = DetectionLoss(Classification(LOSSES["qfl"][0], quality="iou"), L1, matcher(), "none")
        input = problem.input | {"pred_boxes": boxes}
        assert criterion(problem.input, problem.target).isfinite()
        assert criterion.terms(input, problem.target)["loss_cls"].isnan()
        few = {k: v[:, 2:4] for k, v in input.items()}
        assert criterion.terms(few, problem.target)["loss_cls"].isnan()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Classification(BCE, quality="giou"),
            "quality must be None, 'iou', 'centerness', 'score' or a callable of boxes and target boxes, got 'giou'",
        ),
        (
            lambda: Classification(BCE, quality=QualityFocalLoss),
            "quality must be None, 'iou', 'centerness', 'score' or a callable",
        ),
        (lambda: Objectness(nn.BCEWithLogitsLoss()), 'obj_loss_module must be built with reduction="none"'),
        (
            lambda: DetectionLoss(
                BCE, L1, Hungarian(background=False), "none", extra_terms=[Objectness(ObjectnessLoss(reduction=N))]
            ),
            "Objectness needs a matching_method with background=True",
        ),
    ],
)
def test_bad_arguments_raise(build, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build()
