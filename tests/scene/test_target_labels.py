"""Labels that are not allowed, where values may not be looked at: the device stops, or the transfer tells."""

import pytest
import torch
from torch import nn

from tests.support.guards import NoSynchronisation, take_gpu_path
from tests.support.matcher_cases import CASES
from tests.support.problems import Problem, random_problem
from uotod.loss import Branch, Branches, DetectionLoss, NegativeProbLoss, SigmoidFocalLoss
from uotod.match import ClosestTarget, Hungarian, SharedLayers, SoftMin, UnionVote, WeightedSum

N = "none"
B, P, T, C = 2, 8, 3, 5
L1 = nn.L1Loss(reduction=N)
COSTS = {"cls_match_module": NegativeProbLoss(reduction=N), "loc_match_module": L1}
HOSTS = {
    "Hungarian": lambda: Hungarian(**COSTS),
    "SharedLayers": lambda: SharedLayers(Hungarian(**COSTS)),
    "UnionVote": lambda: UnionVote(Hungarian(**COSTS)),
    "WeightedSum": lambda: WeightedSum([Hungarian(**COSTS), SoftMin(**COSTS)]),
}


@pytest.fixture(autouse=True)
def _on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    take_gpu_path(monkeypatch)


def problem(label: int | None = None, key: str = "labels") -> Problem:
    found = random_problem(B, P, T, C, full=True)
    if label is not None:
        found.target[key] = found.target["labels"].clone()
        found.target[key][1, 2] = label
    return found


def loss(matcher, position: str = "first") -> DetectionLoss:
    cls = nn.CrossEntropyLoss(reduction=N) if position != N else SigmoidFocalLoss(reduction=N)
    return DetectionLoss(cls, L1, matcher, position)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("key", ["labels", "cost_labels"])
@pytest.mark.parametrize("label", [-1, C, 99, 0])
@pytest.mark.parametrize("matcher", HOSTS)
def test_the_transfer_of_hungarian_gives_the_clear_error(matcher, label, key, layers) -> None:
    found = problem(label, key)
    input = found.input | ({"aux_outputs": [dict(found.input)]} if layers == 2 else {})
    message = rf"target\['{key}'\] must lie in \[0, 5\) where the mask is True, and not be the background class 0, got"
    with pytest.raises(ValueError, match=f"{message} {label}$"):
        loss(HOSTS[matcher]())(input, found.target)


@pytest.mark.parametrize("key", ["labels", "cost_labels"])
@pytest.mark.parametrize("label", [-1, C, 0])
def test_the_device_stops_without_synchronisation_where_no_transfer_is_made(label, key) -> None:
    found = problem(label, key)
    with NoSynchronisation(), pytest.raises(RuntimeError, match=r"must lie in \[0, 5\)"):
        loss(SoftMin(**COSTS))(found.input, found.target)
    allowed = problem(3, key)
    with NoSynchronisation():
        assert loss(SoftMin(**COSTS))(allowed.input, allowed.target) is not None


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(("BalancedPOT", "UnbalancedPOT"))])
def test_no_matcher_reads_a_label_that_is_out_of_range(name) -> None:
    found = problem(C)
    with pytest.raises((ValueError, RuntimeError), match=r"target\['labels'\] must lie in \[0, 5\)"):
        CASES[name].build()(found.input, found.target, found.anchors)


def test_a_given_plan_stops_at_them_too() -> None:
    found = problem(-1)
    plan = torch.full((B, P), T)
    with pytest.raises(RuntimeError, match=r"target\['labels'\] must lie in \[0, 5\)"):
        loss(SoftMin(**COSTS))(found.input, found.target, plan=plan)


def test_a_branch_stops_at_them_too() -> None:
    found = problem(0)  # a class of the main loss, but the background of the branch
    criterion = Branches(loss(SoftMin(**COSTS), N), other_outputs=Branch(loss(SoftMin(**COSTS))))
    with pytest.raises(RuntimeError, match="not be the background class 0"):
        criterion(found.input | {"other_outputs": dict(found.input)}, found.target)


@pytest.mark.parametrize("matcher", [Hungarian, SoftMin])
@pytest.mark.parametrize("one_hot", [False, True])
def test_an_absent_class_is_told_as_well(matcher, one_hot) -> None:
    found = problem(4)
    mask = torch.ones(B, C, dtype=torch.bool)
    mask[1, 4] = False
    if one_hot:
        found.target["labels"] = nn.functional.one_hot(found.target["labels"], C).double()
    else:
        found.target["labels"][0, 0] = 4  # which the other image has
    found.target["labels"][1, :2] = found.target["labels"][1, :2] * 0 if not one_hot else 0
    with pytest.raises((ValueError, RuntimeError), match=r"and name a class of input\['image_class_mask'\]"):
        loss(matcher(**COSTS), N)(found.input | {"image_class_mask": mask}, found.target)


def test_what_lies_under_the_mask_is_not_looked_at() -> None:
    found = problem(99)
    found.target["mask"] = torch.ones(B, T, dtype=torch.bool)
    found.target["mask"][1, 2] = False
    for matcher in (Hungarian(**COSTS), SoftMin(**COSTS)):
        assert loss(matcher)(found.input, found.target).isfinite()


def test_with_validate_the_error_is_clear_for_every_matcher() -> None:
    found = problem(C)
    with pytest.raises(ValueError, match=r"target\['labels'\] must lie in \[0, 5\) where the mask is True, got 5"):
        loss(ClosestTarget(**COSTS, validate=True))(found.input, found.target)
    found = problem(0)
    with pytest.raises(ValueError, match="must not hold the background class 0"):
        loss(ClosestTarget(**COSTS, validate=True))(found.input, found.target)
