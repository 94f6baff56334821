"""Classification as a whole equals the criteria of transformers, in value and gradient."""

import pytest
import torch
from torch import Tensor, nn

from tests.support.problems import Problem, random_boxes, random_problem
from uotod.geometry.boxes import aligned_overlap
from uotod.loss import (
    Classification,
    DetectionLoss,
    DistillationLoss,
    FineGrainedLoss,
    IoUAwareBCELoss,
    MatchabilityAwareLoss,
    SigmoidFocalLoss,
    TargetNormalizer,
    VarifocalLoss,
)
from uotod.match import Hungarian
from uotod.utils import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh

pytest.importorskip("transformers")
N = "none"
CLASSES = 5
PROBLEMS = 40


def matcher() -> Hungarian:
    return Hungarian(loc_match_module=nn.L1Loss(reduction=N))


def published(problem: Problem, plan: Tensor):
    """Return outputs, targets, indices and number of boxes as the criteria of transformers take them."""
    target, outputs = (
        problem.target,
        {
            "logits": problem.input["pred_logits"],
            "pred_boxes": box_xyxy_to_cxcywh(problem.input["pred_boxes"]),
        },
    )
    targets, indices = [], []
    for b in range(len(plan)):
        valid = target["mask"][b]
        targets.append(
            {"class_labels": target["labels"][b][valid], "boxes": box_xyxy_to_cxcywh(target["boxes"][b][valid])}
        )
        indices.append(plan[b][:, :-1][:, valid].nonzero(as_tuple=True))
    return outputs, targets, indices, int(target["mask"].sum())


def problem_with_targets(classes: int = CLASSES, high: int = CLASSES) -> Problem:
    problem = random_problem(2, 9, 4, classes, low=0, high=high)
    problem.target["mask"][0, 0] = True
    problem.target["boxes"][0, 0] = torch.tensor([0.2, 0.3, 0.6, 0.7])
    problem.target["labels"][0, 0] = 1
    return problem


def check(criterion: DetectionLoss, reference, key: str, **options) -> None:
    for _ in range(PROBLEMS):
        problem = problem_with_targets(**options)
        plan = criterion.matching_method(problem.input, problem.target)
        expected = reference(*published(problem, plan))[key]
        actual = criterion.terms(problem.input, problem.target)["loss_cls"]
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)
        logits = problem.input["pred_logits"]
        for a, e in zip(torch.autograd.grad(actual, logits), torch.autograd.grad(expected, logits), strict=True):
            torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-7)


def rt_detr_family(name: str):
    """Return the criterion of a model of the RT-DETR family."""
    import transformers
    from transformers.loss import loss_deimv2, loss_rt_detr

    config, criterion = {
        "rt_detr": ("RTDetrConfig", loss_rt_detr.RTDetrLoss),
        "deim": ("Deimv2Config", getattr(loss_deimv2, "Deimv2Loss", None)),
    }[name]
    settings = getattr(transformers, config)()
    settings.num_labels = CLASSES
    return criterion(settings)


def test_varifocal_loss_of_rt_detr() -> None:
    criterion = DetectionLoss(
        Classification(VarifocalLoss(form="rtdetr", reduction=N), quality="iou"),
        nn.L1Loss(reduction=N),
        matcher(),
        "none",
        normalizer=TargetNormalizer(),
    )
    check(criterion, rt_detr_family("rt_detr").loss_labels_vfl, "loss_vfl")


def test_matchability_aware_loss_of_deim() -> None:
    pytest.importorskip("transformers.loss.loss_deimv2")
    reference = rt_detr_family("deim")
    criterion = DetectionLoss(
        Classification(MatchabilityAwareLoss(gamma=reference.gamma, reduction=N), quality="iou"),
        nn.L1Loss(reduction=N),
        matcher(),
        "none",
        normalizer=TargetNormalizer(),
    )
    check(criterion, reference.loss_labels_mal, "loss_mal")


def test_iou_aware_cross_entropy_of_lw_detr() -> None:
    lw_detr = pytest.importorskip("transformers.loss.loss_lw_detr")
    reference = lw_detr.LwDetrImageLoss(None, CLASSES, 0.25, ["labels"], 1)
    criterion = DetectionLoss(
        Classification(IoUAwareBCELoss(reduction=N), quality="iou"),
        nn.L1Loss(reduction=N),
        matcher(),
        "none",
        normalizer=TargetNormalizer(),
    )
    check(criterion, reference.loss_labels, "loss_ce")


def test_sigmoid_focal_loss_of_deformable_detr() -> None:
    deformable = pytest.importorskip("transformers.loss.loss_deformable_detr")
    reference = deformable.DeformableDetrImageLoss(None, CLASSES, 0.25, ["labels"])
    criterion = DetectionLoss(
        SigmoidFocalLoss(alpha=0.25, reduction=N),
        nn.L1Loss(reduction=N),
        matcher(),
        "none",
        normalizer=TargetNormalizer(),
    )
    check(criterion, reference.loss_labels, "loss_ce")


def test_cross_entropy_of_detr_with_a_light_background() -> None:
    """`eos_coef` is the weight of the background in the cross-entropy, in its sum and in what the mean divides by."""
    detr = pytest.importorskip("transformers.loss.loss_for_object_detection")
    reference = detr.ImageLoss(None, CLASSES, 0.1, ["labels"]).double()
    weight = torch.ones(CLASSES + 1, dtype=torch.float64)
    weight[-1] = 0.1
    criterion = DetectionLoss(nn.CrossEntropyLoss(weight, reduction=N), nn.L1Loss(reduction=N), matcher(), "last")
    check(criterion, reference.loss_labels, "loss_ce", classes=CLASSES + 1)


@pytest.mark.parametrize("counts", [(3, 0), (4, 4), (0, 0), (1, 2)])
def test_fine_grained_losses_of_d_fine(counts) -> None:
    """In float32, the only dtype in which the reference runs."""
    d_fine = pytest.importorskip("transformers.loss.loss_d_fine")
    from transformers import DFineConfig

    settings = DFineConfig()
    settings.num_labels = CLASSES
    images, preds, reference = len(counts), 7, d_fine.DFineLoss(settings)
    for _ in range(20):
        boxes, anchors = (random_boxes(images, preds, dtype=torch.float32) for _ in range(2))
        student, teacher = (torch.randn(images, preds, 4, 33, requires_grad=True) for _ in range(2))
        logits, divisor = torch.randn(images, preds, CLASSES), max(sum(counts), 1)
        targets = [random_boxes(n, dtype=torch.float32) for n in counts]
        pairs = [(torch.randperm(preds)[:n], torch.arange(n)) for n in counts]
        for b, (pred, index) in enumerate(pairs):  # some targets near their boxes
            targets[b][index[::2]] = boxes[b, pred[::2]] + 0.01
        outputs = {
            "pred_boxes": box_xyxy_to_cxcywh(boxes),
            "ref_points": box_xyxy_to_cxcywh(anchors),
            "pred_corners": student.flatten(2),
            "teacher_corners": teacher.flatten(2),
            "teacher_logits": logits,
        }
        losses = reference.loss_local(outputs, [{"boxes": box_xyxy_to_cxcywh(x)} for x in targets], pairs, divisor)
        quality, fine_grained = torch.full((images, preds), float("nan")), student.sum() * 0
        for b, (pred, index) in enumerate(pairs):
            rows = boxes[b, pred], box_cxcywh_to_xyxy(box_xyxy_to_cxcywh(targets[b][index]))
            fields = {"pred_dist": student[b, pred], "anchors": anchors[b, pred]}
            fine_grained = fine_grained + FineGrainedLoss(reduction="sum")(*rows, **fields) / divisor
            quality[b, pred] = aligned_overlap(*rows, "iou", eps=0.0)
        distilled = DistillationLoss()(student, teacher, logits, quality)
        for actual, expected in ((fine_grained, losses["loss_fgl"]), (distilled, losses["loss_ddf"])):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
            ours, theirs = (torch.autograd.grad(x, student, materialize_grads=True) for x in (actual, expected))
            torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-6)
