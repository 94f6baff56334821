"""Labels of the cost, `target["cost_labels"]`: they take the place of the labels there, and nowhere else."""

import pytest
import torch
from torch import Tensor, nn

from tests.support.matcher_cases import CASES
from tests.support.problems import Problem, random_problem
from uotod.loss import (
    Branch,
    Branches,
    DetectionLoss,
    GIoULoss,
    NegativeProbLoss,
    SigmoidFocalCost,
    SigmoidFocalLoss,
)
from uotod.match import Hungarian, Matcher
from uotod.utils import pad_targets

N = "none"
B, P, T, C = 3, 12, 3, 5
FOCAL = SigmoidFocalCost(reduction=N)
READ_LABELS = [name for name in CASES if name.startswith(("SimOTA", "OTA", "TaskAligned", "DynamicSoft", "ATSS-alpha"))]


def problem() -> Problem:
    found = random_problem(B, P, T, C, low=0)
    found.target["cost_labels"] = torch.randint(C, (B, T)).masked_fill(~found.target["mask"], -7)
    return found


def rows(labels: Tensor) -> Tensor:
    return nn.functional.one_hot(labels.clamp(min=0), C).double()


def swapped(target: dict) -> dict:
    return {key: x for key, x in target.items() if key != "cost_labels"} | {"labels": target["cost_labels"]}


def criterion(position: str = N) -> DetectionLoss:
    cls = SigmoidFocalLoss(reduction=N) if position == N else nn.CrossEntropyLoss(reduction=N)
    cost = FOCAL if position == N else NegativeProbLoss(reduction=N)
    matcher = Hungarian(cls_match_module=cost, class_weight=[1.0, 2.0, 3.0, 4.0, 5.0])
    return DetectionLoss(cls, GIoULoss(reduction=N), matcher, position)


@pytest.mark.parametrize("kind", ["integers", "rows"])
@pytest.mark.parametrize("name", CASES)
def test_a_matcher_sees_them_in_place_of_the_labels(name: str, kind: str) -> None:
    matcher: Matcher = CASES[name].build()
    found = problem()
    expected = matcher(found.input, swapped(found.target), found.anchors)
    target = found.target | ({"cost_labels": rows(found.target["cost_labels"])} if kind == "rows" else {})
    torch.testing.assert_close(matcher(found.input, target, found.anchors), expected, rtol=0, atol=1e-6)
    cost = matcher.compute_cost_matrix(found.input, target, found.anchors)
    torch.testing.assert_close(cost, matcher.compute_cost_matrix(found.input, swapped(target), found.anchors))
    if name in READ_LABELS:
        plain = {key: x for key, x in found.target.items() if key != "cost_labels"}
        assert not torch.allclose(cost, matcher.compute_cost_matrix(found.input, plain, found.anchors))


@pytest.mark.parametrize("position", ["first", N])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_loss_has_their_plan_and_the_labels(position: str, layers: int) -> None:
    found, loss = random_problem(B, P, T, C), criterion(position)
    found.target["cost_labels"] = torch.randint(1, C, (B, T))
    input = found.input if layers == 1 else found.input | {"aux_outputs": [dict(found.input)]}
    plan = loss.matching_method(found.input, swapped(found.target))
    plain = {key: x for key, x in found.target.items() if key != "cost_labels"}
    torch.testing.assert_close(loss(input, found.target), loss(input, plain, plan=plan))
    assert not torch.equal(loss.matching_method(found.input, plain), plan)


def test_several_classes_of_a_target_add_up() -> None:
    found = problem()
    several = torch.tensor([1.0, 0, 0, 1, 0]).expand(B, T, C)
    matcher = Hungarian(cls_match_module=FOCAL)
    cost = matcher.compute_cost_matrix(found.input, found.target | {"cost_labels": several})[..., :T]
    each = FOCAL._gain(found.input["pred_logits"].detach())
    expected = (each[..., 0] + each[..., 3]).unsqueeze(-1).expand_as(cost)
    mask = found.target["mask"].unsqueeze(1).expand_as(cost)
    torch.testing.assert_close(cost[mask], expected[mask])
    assert criterion()(found.input, found.target | {"cost_labels": several}).isfinite()


def test_rows_have_no_meaning_beside_a_background_class() -> None:
    found = random_problem(B, P, T, C)
    target = found.target | {"cost_labels": rows(found.target["labels"])}
    with pytest.raises(ValueError, match=r"target\['cost_labels'\] must be integers with bg_class_position='first'"):
        criterion("first")(found.input, target)


def test_a_label_of_the_background_raises() -> None:
    found = random_problem(B, P, T, C, full=True)
    target = found.target | {"cost_labels": torch.zeros(B, T, dtype=torch.long)}
    with pytest.raises(ValueError, match=r"target\['cost_labels'\] must not hold the background class 0"):
        criterion("first")(found.input, target)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (
            torch.full((B, T), C),
            ValueError,
            r"target\['cost_labels'\] must lie in \[0, 5\) where the mask is True, got 5",
        ),
        (torch.full((B, T), -1), ValueError, r"target\['cost_labels'\] must lie in \[0, 5\).* got -1"),
        (torch.zeros(B, T), TypeError, r"target\['cost_labels'\] of shape \(B, T\) must have an integer dtype"),
        (torch.zeros(B, T + 1).long(), ValueError, r"target\['cost_labels'\] must have shape \(3, 3\) or \(3, 3, 5\)"),
        (torch.full((B, T, C), 2.0), ValueError, r"target\['cost_labels'\] must hold one-hot values in \[0, 1\]"),
    ],
)
def test_what_is_no_label_raises(labels: Tensor, error: type[Exception], message: str) -> None:
    found = random_problem(B, P, T, C, full=True)
    with pytest.raises(error, match=message):
        criterion()(found.input, found.target | {"cost_labels": labels})


@pytest.mark.parametrize("kind", ["integers", "rows"])
def test_a_list_of_images_has_them_too(kind: str) -> None:
    found, loss = problem(), criterion()
    if kind == "rows":
        found.target["cost_labels"] = rows(found.target["cost_labels"])
    mask = found.target["mask"]
    images = [{key: x[b][mask[b]] for key, x in found.target.items() if key != "mask"} for b in range(B)]
    images.append({"boxes": torch.tensor([]), "labels": torch.tensor([]), "cost_labels": torch.tensor([])})
    input = {key: torch.cat((x, x[:1])) for key, x in found.input.items()}
    padding = {key: torch.cat((x, torch.zeros_like(x[:1]))) for key, x in found.target.items()}
    torch.testing.assert_close(loss(input, images), loss(input, padding))
    assert ("cost_labels" in pad_targets(images)) is True


def test_class_agnostic_branches_have_none() -> None:
    found, main = problem(), criterion()
    agnostic = {"pred_logits": torch.randn(B, P, 1), "pred_boxes": found.input["pred_boxes"]}
    one = DetectionLoss(SigmoidFocalLoss(reduction=N), None, Hungarian(cls_match_module=FOCAL), N)
    both = Branches(main, enc_outputs=Branch(one, class_agnostic=True))
    assert both(found.input | {"enc_outputs": agnostic}, found.target).isfinite()
