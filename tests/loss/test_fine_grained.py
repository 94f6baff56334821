"""The losses of fine-grained distributions: plain loops, limits and edges."""

import pytest
import torch
from torch import nn

from tests.oracles import fine_grained as oracle
from tests.oracles.box_loss import iou
from tests.support.problems import random_boxes, random_problem
from uotod import match
from uotod.loss import DetectionLoss, Distillation, DistillationLoss, FineGrainedLoss
from uotod.loss.fine_grained import fine_grained_bins
from uotod.match import Hungarian

N = "none"


@pytest.mark.parametrize(("count", "bound", "scale"), [(32, 0.5, 4.0), (8, 0.5, 4.0), (16, 1.0, 2.0), (4, 0.5, 4.0)])
def test_the_bins_are_those_of_the_paper(count, bound, scale) -> None:
    bins = fine_grained_bins(count, bound=bound, scale=scale)
    torch.testing.assert_close(bins, torch.tensor(oracle.bins(count, bound, 1 / scale), dtype=torch.float64))
    torch.testing.assert_close(bins, -bins.flip(0))
    assert bool((bins.diff() > 0).all())


@pytest.mark.parametrize("bins", [5, 9, 33])
def test_the_fine_grained_loss_equals_a_loop(bins) -> None:
    boxes, target, anchors = (random_boxes(120) for _ in range(3))
    boxes[:40] = target[:40] + 0.02 * torch.randn(40, 4, dtype=torch.float64)
    anchors[:80] = boxes[:80]
    logits = 2 * torch.randn(120, 4, bins, dtype=torch.float64)
    loss = FineGrainedLoss(max_bin=bins - 1, reduction=N)(boxes, target, pred_dist=logits, anchors=anchors)
    expected = [
        oracle.fine_grained(*(tuple(x[i].tolist()) for x in (boxes, target, anchors)), logits[i].tolist())
        for i in range(120)
    ]
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))


def test_the_weight_of_the_fine_grained_loss_has_no_gradient() -> None:
    target, logits = random_boxes(6), torch.randn(6, 4, 33, dtype=torch.float64, requires_grad=True)
    boxes = (target + 0.01).requires_grad_()
    loss = FineGrainedLoss(reduction="sum")(boxes, target, pred_dist=logits, anchors=target)
    gradients = torch.autograd.grad(loss, [boxes, logits], materialize_grads=True)
    assert float(gradients[0].abs().sum()) == 0
    assert float(gradients[1].abs().sum()) > 0


def test_a_reference_box_without_area_gives_a_finite_loss() -> None:
    box, logits = random_boxes(3), torch.zeros(3, 4, 33, dtype=torch.float64)
    assert FineGrainedLoss()(box, box, pred_dist=logits, anchors=torch.zeros_like(box)).isfinite()


@pytest.mark.parametrize(("preds", "targets"), [(9, 4), (5, 1), (6, 0), (3, 6)])
def test_it_is_the_localisation_loss_of_a_criterion(preds, targets) -> None:
    """The reference boxes are the anchors."""
    matcher = Hungarian(loc_match_module=nn.L1Loss(reduction=N))
    criterion = DetectionLoss(
        nn.BCEWithLogitsLoss(reduction=N), FineGrainedLoss(reduction=N), matcher, "none", reduction="sum"
    )
    for _ in range(10):
        problem = random_problem(2, preds, targets, low=0)
        problem.input["pred_dist"] = torch.randn(2, preds, 4, 33, dtype=torch.float64)
        reference, target = random_boxes(2, preds), problem.target
        plan = matcher(problem.input, target)
        expected = 0.0
        for b, i, j in plan[..., :-1].nonzero().tolist():
            boxes = (problem.input["pred_boxes"][b, i], target["boxes"][b, j], reference[b, i])
            expected += oracle.fine_grained(
                *(tuple(x.tolist()) for x in boxes), problem.input["pred_dist"][b, i].tolist()
            )
        actual = criterion.terms(problem.input, target, reference)["loss_loc"]
        assert float(actual.detach()) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_distillation_equals_a_loop(share, temperature) -> None:
    for _ in range(20):
        student, teacher = (2 * torch.randn(2, 5, 4, 9, dtype=torch.float64) for _ in range(2))
        logits, quality = torch.randn(2, 5, 3, dtype=torch.float64), torch.rand(2, 5, dtype=torch.float64)
        matched = torch.rand(2, 5) < share
        loss = DistillationLoss(temperature=temperature)(
            student, teacher, logits, quality.masked_fill(~matched, float("nan"))
        )
        expected = oracle.distillation(
            student.tolist(),
            teacher.tolist(),
            logits.sigmoid().amax(-1).tolist(),
            [[float(q) if m else None for q, m in zip(*x, strict=True)] for x in zip(quality, matched, strict=True)],
            temperature,
        )
        assert float(loss) == pytest.approx(expected, rel=1e-9)


def test_distillation_teaches_the_earlier_layer_only() -> None:
    student, teacher = (torch.randn(1, 3, 4, 9, dtype=torch.float64, requires_grad=True) for _ in range(2))
    logits = torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True)
    loss = DistillationLoss()(student, teacher, logits, torch.tensor([[0.5, float("nan"), 0.1]], dtype=torch.float64))
    gradients = torch.autograd.grad(loss, [student, teacher, logits], materialize_grads=True)
    assert [float(x.abs().sum()) > 0 for x in gradients] == [True, False, False]
    assert gradients[0].isfinite().all()


def test_distillation_of_equal_distributions_and_of_nothing_is_zero() -> None:
    student, logits = torch.randn(2, 3, 4, 9), torch.randn(2, 3, 2)
    quality = torch.rand(2, 3)
    assert float(DistillationLoss()(student, student, logits, quality)) == pytest.approx(0, abs=1e-6)
    nothing = (student[:, :0], student[:, :0], logits[:, :0], quality[:, :0])
    assert float(DistillationLoss()(*nothing)) == 0


@pytest.mark.parametrize("matcher", ["Hungarian", "BalancedSinkhorn"])
@pytest.mark.parametrize(("preds", "targets"), [(9, 4), (5, 1), (6, 0)])
def test_a_criterion_distils_the_final_layer_into_earlier_ones_with_distributions(matcher, preds, targets) -> None:
    """The second of three earlier layers has none."""
    matching = getattr(match, matcher)(loc_match_module=nn.L1Loss(reduction=N))
    distillation = DistillationLoss(weight=1.5)
    criterion = DetectionLoss(
        nn.BCEWithLogitsLoss(reduction=N),
        nn.L1Loss(reduction=N),
        matching,
        "none",
        layer_weights=[1, 1, 2, 1],
        extra_terms=[Distillation(distillation)],
    )
    for _ in range(10):
        problem = random_problem(2, preds, targets, low=0)
        layers = [random_problem(2, preds, targets).input for _ in range(3)] + [problem.input]
        for k in (0, 2, 3):
            layers[k]["pred_dist"] = torch.randn(2, preds, 4, 9, dtype=torch.float64)
        terms = criterion.terms(problem.input | {"aux_outputs": layers[:3]}, problem.target)
        assert float(terms["loss_dist"]) == float(terms["loss_dist_1"]) == 0
        scores = problem.input["pred_logits"].sigmoid().amax(-1).tolist()
        for k, weight in ((0, 1.5), (2, 3.0)):
            plan = matching(layers[k], problem.target)
            quality: list = [[None] * preds for _ in range(2)]
            for b in range(2):
                for i in range(preds):
                    mass = {j: float(plan[b, i, j]) for j in range(targets) if plan[b, i, j] > 0}
                    if mass:
                        box = tuple(layers[k]["pred_boxes"][b, i].tolist())
                        ious = {j: iou(box, tuple(problem.target["boxes"][b, j].tolist())) for j in mass}
                        quality[b][i] = sum(mass[j] * ious[j] for j in mass) / sum(mass.values())
            student, teacher = layers[k]["pred_dist"].tolist(), problem.input["pred_dist"].tolist()
            expected = weight * oracle.distillation(student, teacher, scores, quality, 5.0)
            assert float(terms[f"loss_dist_{k}"]) == pytest.approx(expected, rel=1e-6)
        parts = [value for key, value in terms.items() if key.startswith(("loss_cls", "loss_loc", "loss_dist"))]
        torch.testing.assert_close(terms["loss"], torch.stack(parts).sum())


def test_distillation_needs_distributions() -> None:
    l1, problem = nn.L1Loss(reduction=N), random_problem(2, 5, 3, low=0)
    parts = (nn.BCEWithLogitsLoss(reduction=N), l1, Hungarian(loc_match_module=l1), "none")
    with pytest.raises(ValueError, match="must have the key 'pred_dist' for Distillation"):
        DetectionLoss(*parts, extra_terms=[Distillation(DistillationLoss())])(problem.input, problem.target)
    with pytest.raises(TypeError, match=r"module must be a torch.nn.Module, got 'l1'"):
        Distillation("l1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_bin": 7}, "max_bin must be even, got 7"),
        ({"max_bin": 2}, "max_bin"),
        ({"bound": 0.0}, "bound"),
        ({"scale": -1.0}, "scale"),
    ],
)
def test_wrong_arguments_are_named(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        FineGrainedLoss(**options)


def test_a_wrong_number_of_bins_is_named() -> None:
    box = random_boxes(2)
    with pytest.raises(ValueError, match="pred_dist must have 33 bins"):
        FineGrainedLoss()(box, box, pred_dist=torch.zeros(2, 4, 9, dtype=torch.float64), anchors=box)
    with pytest.raises(ValueError, match=r"pred_dist must have the shapes|target and pred_dist must have"):
        FineGrainedLoss()(box, box, pred_dist=torch.zeros(2, 9), anchors=box)


def test_the_fine_grained_loss_passes_gradcheck() -> None:
    box, target = random_boxes(5), random_boxes(5)
    logits = torch.randn(5, 4, 9, dtype=torch.float64, requires_grad=True)
    loss = FineGrainedLoss(max_bin=8, reduction=N)
    assert torch.autograd.gradcheck(lambda x: loss(box, target, pred_dist=x, anchors=box), (logits,))


def test_distillation_passes_gradcheck() -> None:
    student, teacher = (torch.randn(1, 3, 4, 5, dtype=torch.float64) for _ in range(2))
    logits, quality = torch.randn(1, 3, 2, dtype=torch.float64), torch.tensor([[0.5, float("nan"), 0.1]])
    loss = DistillationLoss(weight=1.5)
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, logits, quality), (student.requires_grad_(),))


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_extreme_logits_give_finite_values_and_gradients(scale) -> None:
    box, target = random_boxes(6).float(), random_boxes(6).float()
    logits = (scale * torch.randn(6, 4, 33)).requires_grad_()
    fine = FineGrainedLoss(reduction="sum")(box, target, pred_dist=logits, anchors=box)
    student = logits.unsqueeze(0)
    quality = torch.rand(1, 6)
    coarse = DistillationLoss()(student, -student.detach(), scale * torch.randn(1, 6, 3), quality)
    for loss in (fine, coarse):
        assert loss.isfinite()
        assert torch.autograd.grad(loss, logits, retain_graph=True)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype) -> None:
    box, target, logits = random_boxes(8).to(dtype), random_boxes(8).to(dtype), torch.randn(8, 4, 33).to(dtype)
    loss = FineGrainedLoss()
    value = loss(box, target, pred_dist=logits, anchors=box)
    assert value.dtype == torch.float32
    same = loss(box.float(), target.float(), pred_dist=logits.float(), anchors=box.float())
    torch.testing.assert_close(value, same, rtol=0, atol=0)
    student, classes, quality = logits.unsqueeze(0), torch.randn(1, 8, 3).to(dtype), torch.rand(1, 8).to(dtype)
    distilled = DistillationLoss()(student, -student, classes, quality)
    assert distilled.dtype == torch.float32
    torch.testing.assert_close(
        distilled, DistillationLoss()(student.float(), -student.float(), classes.float(), quality.float())
    )
