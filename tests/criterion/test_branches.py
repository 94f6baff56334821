"""Branches equal the sum that one would write by hand, term by term, and what is absent is nothing."""

import copy
import pickle
import re
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tests.support.problems import Problem, random_boxes, random_problem
from uotod.loss import (
    Branch,
    Branches,
    DetectionLoss,
    GIoULoss,
    MultipleObjectiveLoss,
    PositiveNormalizer,
    SigmoidFocalLoss,
    TargetNormalizer,
)
from uotod.match import Hungarian, IoUThreshold

N = "none"
L1 = nn.L1Loss(reduction=N)
KEPT = ("pred_logits", "pred_boxes", "one2many_outputs")
WEIGHTS = {"enc_outputs": 1.0, "dn_outputs": 0.7, "one2many_outputs": 2.5}


def detector(copies: int = 1, **options) -> DetectionLoss:
    boxes = MultipleObjectiveLoss([L1, GIoULoss(reduction=N)], [5.0, 2.0])
    matcher = Hungarian(loc_match_module=L1, cls_match_module=SigmoidFocalLoss(reduction=N), copies=copies)
    return DetectionLoss(SigmoidFocalLoss(reduction=N), boxes, matcher, "none", **options)


def build() -> Branches:
    return Branches(
        detector(normalizer=TargetNormalizer()),
        enc_outputs=Branch(detector(), class_agnostic=True),
        dn_outputs=Branch(detector(normalizer=PositiveNormalizer()), WEIGHTS["dn_outputs"]),
        one2many_outputs=Branch(detector(copies=3), weight=WEIGHTS["one2many_outputs"]),
    )


def leaves(*shape: int) -> dict[str, Tensor]:
    logits = torch.randn(*shape, dtype=torch.float64)
    return {"pred_logits": logits.requires_grad_(), "pred_boxes": random_boxes(*shape[:2]).requires_grad_()}


def full_problem(images: int = 2, targets: int = 3) -> Problem:
    problem = random_problem(images, 8, targets, 5, low=0)
    groups = torch.arange(targets).expand(images, -1).where(problem.target["mask"], -1).repeat(1, 2)
    problem.input |= {
        "aux_outputs": [leaves(images, 8, 5)],
        "enc_outputs": leaves(images, 10, 1),
        "dn_outputs": leaves(images, 2 * targets, 5)
        | {"plan": groups, "aux_outputs": [leaves(images, 2 * targets, 5)]},
        "one2many_outputs": leaves(images, 12, 5) | {"aux_outputs": [leaves(images, 12, 5)] * 2},
    }
    return problem


def all_leaves(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.requires_grad else []
    values = value.values() if isinstance(value, dict) else value
    return [leaf for x in values for leaf in all_leaves(x)]


@pytest.mark.parametrize(("images", "targets"), [(2, 3), (1, 1), (3, 0), (0, 2)])
def test_the_loss_is_the_sum_written_by_hand(images, targets) -> None:
    criterion = build()
    for _ in range(25):
        problem = full_problem(images, targets)
        input, target = problem.input, problem.target
        terms = criterion.terms(input, target)
        agnostic = target | {"labels": torch.zeros_like(target["labels"])}
        parts = {
            "": criterion.main.terms({k: v for k, v in input.items() if k not in criterion.branches}, target),
            "_enc": criterion.branches["enc_outputs"].loss.terms(input["enc_outputs"], agnostic),
            "_dn": criterion.branches["dn_outputs"].loss.terms(
                input["dn_outputs"], target, plan=input["dn_outputs"]["plan"]
            ),
            "_one2many": criterion.branches["one2many_outputs"].loss.terms(input["one2many_outputs"], target),
        }
        expected = torch.zeros((), dtype=torch.float64)
        count = 0
        for suffix, part in parts.items():
            weight = WEIGHTS.get(suffix[1:] + "_outputs", 1.0)
            expected = expected + weight * part["loss"]
            for key, value in part.items():
                count += 1
                if suffix + key != "loss":
                    torch.testing.assert_close(terms[key + suffix], weight * value if "loss" in key else value)
        assert len(terms) == count
        assert {"loss_cls", "loss_cls_0", "loss_enc", "loss_loc_giou_0_dn", "loss_cls_1_one2many"} <= terms.keys()
        torch.testing.assert_close(terms["loss"], expected)
        torch.testing.assert_close(criterion(input, target), expected)
        inputs = all_leaves(input)
        assert len(inputs) == 16
        actual, wanted = (torch.autograd.grad(x, inputs) for x in (terms["loss"], expected))
        for a, e in zip(actual, wanted, strict=True):
            torch.testing.assert_close(a, e)


def test_an_absent_branch_is_nothing() -> None:
    problem = full_problem()
    criterion = build()
    bare = {key: problem.input[key] for key in ("pred_logits", "pred_boxes", "aux_outputs")}
    expected = criterion.main.terms(bare, problem.target)
    for input in (bare, bare | dict.fromkeys(WEIGHTS)):
        terms = criterion.terms(input, problem.target)
        assert terms.keys() == expected.keys()
        for key, value in terms.items():
            assert torch.equal(value, expected[key])
    one = criterion.terms(bare | {"enc_outputs": problem.input["enc_outputs"]}, problem.target)
    assert torch.equal(one["loss"], expected["loss"] + one["loss_enc"])
    assert not any(key.endswith(("_dn", "_one2many")) for key in one)


def test_a_branch_of_weight_zero_adds_zero() -> None:
    problem = full_problem()
    del problem.input["enc_outputs"], problem.input["one2many_outputs"]
    terms = Branches(detector(), dn_outputs=Branch(detector(), 0.0)).terms(problem.input, problem.target)
    assert terms["loss_dn"] == 0
    assert terms["num_pos_dn"] == 2 * problem.target["mask"].sum()


@pytest.mark.parametrize("layout", ["padded", "one-hot", "list", "list of one-hot"])
def test_class_agnostic_targets_have_the_label_0_in_every_layout(layout) -> None:
    problem = random_problem(3, 8, 4, 5, low=1)
    mask, labels = problem.target["mask"], problem.target["labels"].clamp(min=0)
    target = dict(problem.target)
    if "one-hot" in layout:
        target["labels"] = nn.functional.one_hot(labels, 5)
    if "list" in layout:
        target = [{key: target[key][b, mask[b]] for key in ("boxes", "labels")} for b in range(3)]
    before = copy.deepcopy(target)
    criterion = Branches(detector(), enc_outputs=Branch(detector(), class_agnostic=True))
    proposals = leaves(3, 9, 1)
    terms = criterion.terms(problem.input | {"enc_outputs": proposals}, target)
    agnostic = problem.target | {"labels": torch.zeros(3, 4, dtype=torch.long)}
    torch.testing.assert_close(terms["loss_enc"], detector()(proposals, agnostic))
    torch.testing.assert_close(terms["loss_cls"], detector().terms(problem.input, problem.target)["loss_cls"])
    for a, e in zip(all_values(target), all_values(before), strict=True):
        torch.testing.assert_close(a, e, equal_nan=True)  # targets are left as they were


def all_values(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [x for part in (value.values() if isinstance(value, dict) else value) for x in all_values(part)]


def test_anchors_of_a_branch_replace_those_of_the_call() -> None:
    problem = random_problem(2, 8, 3, 5, low=0)
    dense = DetectionLoss(SigmoidFocalLoss(reduction=N), L1, IoUThreshold(is_anchor_based=True), "none")
    criterion = Branches(dense, own_outputs=Branch(dense), same_outputs=Branch(dense))
    anchors, own = problem.anchors, random_boxes(5)
    few = leaves(2, 5, 5)
    terms = criterion.terms(
        problem.input | {"own_outputs": few | {"anchors": own}, "same_outputs": problem.input}, problem.target, anchors
    )
    torch.testing.assert_close(terms["loss_own"], dense(few, problem.target, own))
    torch.testing.assert_close(terms["loss_same"], dense(problem.input, problem.target, anchors))


def test_a_plan_is_that_of_the_main_loss() -> None:
    problem = random_problem(2, 8, 3, 5, low=0)
    plan = torch.full((2, 8), 3)
    criterion = Branches(detector(), more_outputs=Branch(detector()))
    terms = criterion.terms(problem.input | {"more_outputs": problem.input}, problem.target, plan=plan)
    assert terms["num_pos"] == 0
    assert terms["num_pos_more"] == problem.target["mask"].sum()
    torch.testing.assert_close(
        criterion(problem.input, problem.target, plan=plan), detector()(problem.input, problem.target, plan=plan)
    )


def test_branches_hold_no_state() -> None:
    problem = full_problem()
    criterion = build()
    before = pickle.dumps(criterion)
    loss = criterion(problem.input, problem.target)
    assert pickle.dumps(criterion) == before
    assert criterion.state_dict() == {}
    for twin in (pickle.loads(before), copy.deepcopy(criterion)):
        assert torch.equal(twin(problem.input, problem.target), loss)


def test_class_weights_of_branches_move_with_them() -> None:
    weighted = DetectionLoss(nn.CrossEntropyLoss(torch.ones(5), reduction=N), L1, Hungarian(loc_match_module=L1))
    criterion = Branches(detector(), more_outputs=Branch(weighted)).double()
    assert list(criterion.state_dict()) == ["branches.more_outputs.loss.cls_loss_module.weight"]
    assert weighted.cls_loss_module.weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "message", "error"),
    [
        (lambda: Branches(Branch(detector())), "main must be a DetectionLoss, got Branch(", TypeError),
        (lambda: Branches(detector(), enc=detector()), "enc must be a Branch, got DetectionLoss(", TypeError),
        (lambda: Branch(L1), "loss must be a DetectionLoss, got L1Loss()", TypeError),
        (lambda: Branch(detector(), -1.0), "weight must lie in [0.0, inf), got -1.0", ValueError),
        (lambda: Branch(detector(), class_agnostic=1), "class_agnostic must be a bool, got 1", TypeError),
        (
            lambda: Branches(detector(), aux_outputs=Branch(detector())),
            "aux_outputs cannot name a branch: it is an entry of predictions",
            ValueError,
        ),
        (
            lambda: Branches(detector(), enc=Branch(detector()), enc_outputs=Branch(detector())),
            "branches must differ in more than '_outputs', got ['enc', 'enc_outputs']",
            ValueError,
        ),
        (
            lambda: Branch(
                DetectionLoss(nn.CrossEntropyLoss(reduction=N), L1, Hungarian(loc_match_module=L1)), class_agnostic=True
            ),
            "class_agnostic=True gives all targets the label 0 and needs a loss with bg_class_position='last'",
            ValueError,
        ),
    ],
)
def test_bad_arguments_raise(make, message, error) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()


def test_bad_input_raises() -> None:
    problem = full_problem()
    criterion = build()
    with pytest.raises(TypeError, match=re.escape("input['enc_outputs'] must be a dict of tensors, got list")):
        criterion(problem.input | {"enc_outputs": [1]}, problem.target)
    wrong = problem.input["dn_outputs"] | {"plan": torch.zeros(2, 3, dtype=torch.long)}
    with pytest.raises(ValueError, match=re.escape("input['dn_outputs']: plan must have shape (2, 6, 4)")):
        criterion(problem.input | {"dn_outputs": wrong}, problem.target)
    wrong = problem.input["enc_outputs"] | {"pred_boxes": None}
    message = "input['enc_outputs']: input['pred_boxes'] must be a tensor, got NoneType"
    with pytest.raises(TypeError, match=re.escape(message)):
        criterion(problem.input | {"enc_outputs": wrong}, problem.target)
    with pytest.raises(ValueError, match="target must have the key 'labels'"):
        criterion(problem.input, {"boxes": problem.target["boxes"]})


def test_a_term_of_two_meanings_raises() -> None:
    problem = random_problem(2, 8, 3, 5, low=0)
    parts = MultipleObjectiveLoss({"enc": SigmoidFocalLoss(reduction=N)})
    loss = DetectionLoss(parts, L1, Hungarian(loc_match_module=L1), "none")
    criterion = Branches(loss, enc_outputs=Branch(loss))
    with pytest.raises(ValueError, match="branch 'enc_outputs' needs another name: there is a term 'loss_cls_enc'"):
        criterion(problem.input | {"enc_outputs": problem.input}, problem.target)


class Falling(NamedTuple):
    """A schedule that can be pickled: from `high` by a tenth a step."""

    high: float

    def __call__(self, step: int) -> float:
        return self.high - 0.1 * step


def test_weights_of_outputs_follow_the_step() -> None:
    problem = full_problem()
    input, target = ({k: x for k, x in problem.input.items() if k in KEPT}, problem.target)
    parts = Branches(detector(), one2many_outputs=Branch(detector(copies=3)))
    main, many = (parts.terms(input, target)[key] for key in ("loss", "loss_one2many"))
    main = main - many
    many_of_them = Branch(detector(copies=3), Falling(0.8))
    criterion = Branches(detector(), main_weight=Falling(0.5), one2many_outputs=many_of_them)
    for step in (0, 1, 4):
        criterion.set_step(step)
        assert criterion.main_weight == 0.5 - 0.1 * step
        terms = criterion.terms(input, target)
        torch.testing.assert_close(terms["loss"], criterion.main_weight * main + (0.8 - 0.1 * step) * many)
        torch.testing.assert_close(terms["loss"] - terms["loss_one2many"], terms["loss_cls"] + terms["loss_loc"])
    for twin in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        torch.testing.assert_close(twin(input, target), criterion(input, target))
        twin.set_step(0)
        assert (twin.main_weight, criterion.main_weight) == (0.5, 0.5 - 0.4)
    assert "main, of weight 0.1" in criterion.describe(input, target)


def test_a_bad_weight_of_a_schedule_changes_nothing() -> None:
    criterion = Branches(detector(), main_weight=Falling(0.5), dn_outputs=Branch(detector(), Falling(0.2)))
    criterion.set_step(1)
    with pytest.raises(ValueError, match=r"weight\(3\) must lie in \[0.0, inf\)"):
        criterion.set_step(3)
    assert (criterion.main_weight, criterion.branches["dn_outputs"].weight) == (0.4, 0.1)
    with pytest.raises(ValueError, match=r"main_weight must lie in \[0.0, inf\), got -1.0"):
        Branches(detector(), main_weight=-1.0)
