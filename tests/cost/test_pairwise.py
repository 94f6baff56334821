"""The fast pairwise paths equal a module called on every pair of rows."""

import pytest
import torch
from torch import Tensor, nn

from tests.support.costs import box_cost, class_cost
from tests.support.problems import random_problem
from uotod.cost import blocks
from uotod.cost.kinds import Adapter
from uotod.loss import (
    CIoULoss,
    DIoULoss,
    GIoULoss,
    IoULoss,
    MultipleObjectiveLoss,
    NegativeProbLoss,
    SigmoidFocalCost,
    SigmoidFocalLoss,
)
from uotod.scene.scene import parse_scene

WEIGHT = torch.tensor([0.1, 1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
N = "none"
CLASS_LOSSES = {
    "ce": nn.CrossEntropyLoss(reduction=N),
    "ce-weight": nn.CrossEntropyLoss(WEIGHT, reduction=N),
    "ce-smooth": nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1, reduction=N),
    "ce-ignore": nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1, ignore_index=2, reduction=N),
    "bce": nn.BCEWithLogitsLoss(reduction=N),
    "bce-weight": nn.BCEWithLogitsLoss(WEIGHT, pos_weight=2 * WEIGHT, reduction=N),
    "focal": SigmoidFocalLoss(alpha=0.25, reduction=N),
    "focal-plain": SigmoidFocalLoss(gamma=1.5, reduction=N),
    "focal-cost": SigmoidFocalCost(reduction=N),
    "prob": NegativeProbLoss(reduction=N),
    "sum": MultipleObjectiveLoss([NegativeProbLoss(reduction=N), nn.CrossEntropyLoss(reduction=N)], [2.0, 0.5]),
}
BOX_LOSSES = {
    "l1": nn.L1Loss(reduction=N),
    "smooth_l1": nn.SmoothL1Loss(beta=0.2, reduction=N),
    "huber": nn.HuberLoss(delta=0.3, reduction=N),
    "mse": nn.MSELoss(reduction=N),
    "iou": IoULoss(reduction=N),
    "iou-log": IoULoss(mode="log", reduction=N),
    "iou-square": IoULoss(mode="square", reduction=N),
    "giou": GIoULoss(reduction=N),
    "diou": DIoULoss(reduction=N),
    "ciou": CIoULoss(reduction=N),
    "sum": MultipleObjectiveLoss([nn.L1Loss(reduction=N), GIoULoss(reduction=N)], [5.0, 2.0]),
}


class Opaque(nn.Module):
    """Hides a module, so that only its rows can be evaluated."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.takes_one_hot = Adapter(module).takes_one_hot
        self.rows: list[int] = []

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        self.rows.append(len(input))
        return torch.as_tensor(self.module(input, target))


def parsed(**options):
    problem = random_problem(3, 7, 4, 5, full=True, **options)
    return parse_scene(problem.input, problem.target, None)


@pytest.mark.parametrize("name", CLASS_LOSSES)
@pytest.mark.parametrize("one_hot", [False, True])
def test_class_cost_equals_the_module_on_every_pair(name: str, one_hot: bool) -> None:
    problem = random_problem(3, 7, 4, 5, full=True)
    labels = problem.target["labels"]
    if one_hot:
        if name.startswith("ce-ignore"):
            pytest.skip("cross-entropy ignores no class of a one-hot target")
        problem.target["labels"] = nn.functional.one_hot(labels, 5)
    batch = parse_scene(problem.input, problem.target, None)
    module = CLASS_LOSSES[name]
    cost = class_cost(module, batch.logits, batch.targets)
    for b in range(3):
        for t in range(4):
            target = labels[b, t].expand(7)
            if isinstance(module, nn.BCEWithLogitsLoss):
                target = nn.functional.one_hot(target, 5).double()
            expected = module(batch.logits[b], target)
            expected = expected.sum(-1) if expected.dim() > 1 else expected
            torch.testing.assert_close(cost[b, t], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_box_cost_equals_the_module_on_every_pair(name: str) -> None:
    batch = parsed()
    module = BOX_LOSSES[name]
    cost = box_cost(module, batch.pred_boxes, batch.target_boxes)
    for b in range(3):
        for t in range(4):
            expected = module(batch.pred_boxes[b], batch.target_boxes[b, t].expand(7, 4))
            expected = expected.sum(-1) if expected.dim() > 1 else expected
            torch.testing.assert_close(cost[b, t], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("limit", [1, 50, 1 << 20])
def test_an_unknown_module_costs_the_same_and_sees_bounded_rows(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "MAX_COST_ROW_ELEMENTS", limit)
    batch = parsed()
    for name in ("ce-smooth", "bce-weight", "focal"):
        opaque = Opaque(CLASS_LOSSES[name])
        cost = class_cost(opaque, batch.logits, batch.targets)
        torch.testing.assert_close(cost, class_cost(CLASS_LOSSES[name], batch.logits, batch.targets))
        assert max(opaque.rows) <= max(limit // 5, 1)
    opaque = Opaque(BOX_LOSSES["giou"])
    cost = box_cost(opaque, batch.pred_boxes, batch.target_boxes)
    torch.testing.assert_close(cost, box_cost(BOX_LOSSES["giou"], batch.pred_boxes, batch.target_boxes))
    assert max(opaque.rows) <= max(limit // 4, 1)


def test_a_subclass_with_its_own_forward_is_not_taken_for_its_parent() -> None:
    class Doubled(GIoULoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return 2 * super().forward(input, target)

    class Squared(nn.L1Loss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return super().forward(input, target) ** 2

    batch = parsed()
    boxes, target = batch.pred_boxes, batch.target_boxes
    torch.testing.assert_close(
        box_cost(Doubled(reduction=N), boxes, target), 2 * box_cost(GIoULoss(reduction=N), boxes, target)
    )
    torch.testing.assert_close(
        box_cost(Squared(reduction=N), boxes, target), box_cost(nn.MSELoss(reduction=N), boxes, target)
    )


def test_a_module_that_reduces_its_rows_raises() -> None:
    class Mean(nn.Module):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return (input - target).abs().mean()

    batch = parsed()
    with pytest.raises(
        ValueError, match=r"loc_match_module must return one loss a row, \(84,\) or \(84, K\), got \(\)"
    ):
        box_cost(Mean(), batch.pred_boxes, batch.target_boxes)
