"""What a mean divides by: each policy against the sums that it divides, and against a loop of its source."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn

from tests.support.matcher_cases import CASES
from tests.support.problems import random_problem
from uotod.loss import (
    Classification,
    DetectionLoss,
    MassNormalizer,
    MovingAverageNormalizer,
    Normalizer,
    Objectness,
    ObjectnessLoss,
    PerImageNormalizer,
    PositiveNormalizer,
    QualityFocalLoss,
    ScoreNormalizer,
    SigmoidFocalLoss,
    TargetNormalizer,
    TotalMassNormalizer,
)

N = "none"
NORMALIZERS = {
    "mass": MassNormalizer,
    "total": TotalMassNormalizer,
    "targets": TargetNormalizer,
    "positives": PositiveNormalizer,
    "scores": ScoreNormalizer,
    "images": PerImageNormalizer,
    "average": MovingAverageNormalizer,
}
TERMS = ("loss_cls", "loss_loc", "loss_obj", "loss_cls_0", "loss_loc_0", "loss_obj_0")


def build(normalizer: Normalizer | None, matcher: str = "Hungarian", quality=None, obj_quality=None) -> DetectionLoss:
    return DetectionLoss(
        Classification(SigmoidFocalLoss(alpha=0.25, reduction=N), quality=quality),
        nn.L1Loss(reduction=N),
        CASES[matcher].build(),
        "none",
        normalizer=normalizer,
        reduction="sum" if normalizer is None else "mean",
        extra_terms=[Objectness(ObjectnessLoss(reduction=N), quality=obj_quality)],
    )


def problem_of(images: int = 3, preds: int = 10, targets: int = 4):
    problem = random_problem(images, preds, targets)
    layer = problem.input | {"pred_objectness": torch.randn(images, preds, dtype=torch.float64)}
    problem.input = layer | {"aux_outputs": [{k: 0.9 * v for k, v in layer.items()}]}
    return problem


def masses(criterion: DetectionLoss, problem) -> dict[str, torch.Tensor]:
    """Return the positive and the background mass of each layer and image."""
    layers = [*problem.input["aux_outputs"], {k: v for k, v in problem.input.items() if k != "aux_outputs"}]
    plans = torch.stack([criterion.matching_method(x, problem.target, problem.anchors) for x in layers])
    return {"positive": plans[..., :-1].sum((2, 3)), "background": plans[..., -1].sum(2)}


@pytest.mark.parametrize("matcher", ["Hungarian", "ClosestPrediction", "IoUThreshold-band", "UnbalancedSinkhorn"])
@pytest.mark.parametrize("name", ["mass", "total", "targets", "positives", "scores", "average"])
def test_the_mean_of_a_batch_is_the_sum_over_its_divisor(name, matcher) -> None:
    for _ in range(4):
        problem = problem_of()
        criterion = build(NORMALIZERS[name](), matcher)
        total = build(None, matcher).terms(problem.input, problem.target, problem.anchors)
        mean = criterion.terms(problem.input, problem.target, problem.anchors)
        mass = masses(criterion, problem)
        positive, background = mass["positive"].sum(1), mass["background"].sum(1)  # (L,)
        targets = problem.target["mask"].sum().double().expand(2)
        cls, loc = {
            "mass": (positive, positive),  # the background has no class of its own
            "total": (positive + background, positive),
            "targets": (targets, targets),
            "positives": (positive, positive),
            "scores": (positive, positive),
            "average": (90 + 0.1 * positive.clamp(min=1),) * 2,
        }[name]
        for term in TERMS:
            layer = 0 if term.endswith("_0") else 1
            divisor = (cls if "cls" in term else loc)[layer].clamp(min=1)
            torch.testing.assert_close(mean[term], total[term] / divisor)


@pytest.mark.parametrize("matcher", ["Hungarian", "IoUThreshold-band", "UnbalancedSinkhorn"])
def test_the_mean_of_images_is_averaged_over_them(matcher) -> None:
    """Torchvision's RetinaNet: the loss of an image over max(1, its positives), then the mean over images."""
    for _ in range(30):
        problem = problem_of()
        problem.target["mask"][0] = False  # an image without positives
        mean = build(PerImageNormalizer(), matcher).terms(problem.input, problem.target, problem.anchors)
        criterion = build(None, matcher)
        positive = masses(criterion, problem)["positive"]
        expected = dict.fromkeys(TERMS, 0.0)
        for b in range(3):
            image = {k: v[b : b + 1] for k, v in problem.input.items() if k != "aux_outputs"}
            image["aux_outputs"] = [{k: v[b : b + 1] for k, v in problem.input["aux_outputs"][0].items()}]
            target = {k: v[b : b + 1] for k, v in problem.target.items()}
            terms = criterion.terms(image, target, problem.anchors)
            for term in TERMS:
                divisor = positive[0 if term.endswith("_0") else 1, b].clamp(min=1)
                expected[term] += terms[term] / divisor / 3
        for term in TERMS:
            torch.testing.assert_close(mean[term], expected[term])


def test_one_image_is_divided_by_its_positives() -> None:
    problem = problem_of(images=1)
    one, other = (
        build(normalizer)(problem.input, problem.target) for normalizer in (PerImageNormalizer(), PositiveNormalizer())
    )
    torch.testing.assert_close(one, other)


def test_scores_are_the_mass_times_the_quality() -> None:
    problem = problem_of()
    half = lambda boxes, target_boxes: torch.full_like(boxes[:, 0], 0.5)  # noqa: E731
    problem.target["mask"][:] = True
    problem.target["boxes"] = problem.target["boxes"].nan_to_num(0.1)
    problem.target["labels"] = problem.target["labels"].clamp(min=0)
    mean = build(ScoreNormalizer(), quality=half).terms(problem.input, problem.target)
    total = build(None, quality=half).terms(problem.input, problem.target)
    for term in TERMS:
        torch.testing.assert_close(mean[term], total[term] / 6)  # 12 pairs of a half


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize(("images", "preds", "targets"), [(0, 4, 2), (2, 4, 0), (2, 0, 3), (1, 1, 1), (2, 3, 6)])
def test_empty_and_crowded_input_is_ordinary(name, images, preds, targets) -> None:
    for cls in (SigmoidFocalLoss(reduction=N), QualityFocalLoss(reduction=N)):
        for matcher in ("Hungarian", "UnbalancedSinkhorn"):
            problem = problem_of(images, preds, targets)
            criterion = build(NORMALIZERS[name](), matcher, quality="iou", obj_quality="iou")
            criterion.cls_loss_module = Classification(cls, quality="iou")
            loss = criterion(problem.input, problem.target, problem.anchors)
            assert loss.isfinite()
            loss.backward()
            for value in problem.input.values():
                if isinstance(value, torch.Tensor) and value.requires_grad:
                    assert value.grad.isfinite().all()


@pytest.mark.parametrize("name", NORMALIZERS)
def test_a_normalizer_is_a_value(name) -> None:
    problem = problem_of()
    criterion = build(NORMALIZERS[name]())
    before = pickle.dumps(criterion)
    loss = criterion(problem.input, problem.target)
    assert pickle.dumps(criterion) == before  # forward writes nothing
    for twin in (pickle.loads(before), copy.deepcopy(criterion)):
        assert torch.equal(twin(problem.input, problem.target), loss)
    assert list(criterion.state_dict()) == (["normalizer.average"] if name == "average" else [])


class TestMovingAverage:
    def test_it_is_that_of_detectron2(self) -> None:
        """The average takes the batch in before it divides, and starts at its initial value."""
        criterion = build(MovingAverageNormalizer(momentum=0.8, initial=10.0))
        average = 10.0
        for step in range(6):
            problem = problem_of(targets=step % 4)
            del problem.input["aux_outputs"]
            terms = criterion.terms(problem.input, problem.target)
            total = build(None).terms(problem.input, problem.target)
            average = 0.8 * average + 0.2 * max(float(total["num_pos"]), 1.0)
            torch.testing.assert_close(terms["loss"], total["loss"] / average, rtol=1e-6, atol=1e-6)
            criterion.normalizer.update(terms["num_pos"])
            torch.testing.assert_close(criterion.normalizer.average, torch.tensor(average))

    def test_its_state_is_saved_and_moved(self) -> None:
        normalizer = MovingAverageNormalizer()
        normalizer.update(torch.tensor(0.0))
        torch.testing.assert_close(normalizer.average, torch.tensor(90.1))
        twin = MovingAverageNormalizer()
        twin.load_state_dict(normalizer.state_dict())
        assert torch.equal(twin.average, normalizer.average)
        assert normalizer.double().average.dtype == torch.float64

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"momentum": 1.5}, "momentum must lie in [0.0, 1.0], got 1.5"),
            ({"initial": 0.5}, "initial must lie in [1.0, inf), got 0.5"),
        ],
    )
    def test_bad_arguments_raise(self, options, message) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            MovingAverageNormalizer(**options)


def test_a_policy_of_the_user_is_a_subclass() -> None:
    class Constant(Normalizer):
        def divisor(self, term, local, total) -> torch.Tensor:
            return torch.full_like(total.of("positive"), 5.0 if term == "cls" else 0.5)

    problem = problem_of()
    mean = build(Constant()).terms(problem.input, problem.target)
    total = build(None).terms(problem.input, problem.target)
    torch.testing.assert_close(mean["loss_cls"], total["loss_cls"] / 5)
    torch.testing.assert_close(mean["loss_loc"], total["loss_loc"])  # a divisor is at least 1
