"""Runs in a process whose `uotod` is the original: problems come in over a pipe, losses, times and memory go out.

`peers.original` starts it as `python -m benchmarks.original_server` with the original first on the path, so nothing
here imports our package. Requests and answers are pickled; the operations are those of `Loaded`.
"""

import importlib
import os
import pickle
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import resident_growth, timed

NONE: dict[str, Any] = {"reduction": "none"}


class Loaded:
    """The criteria of one problem."""

    def __init__(self, rule: str, classes: int, problem: dict[str, Any]) -> None:
        self.criterion = CRITERIA[rule](classes)
        self.target = {key: problem[key] for key in ("labels", "boxes", "mask")}
        self.anchors = problem["anchors"]
        self.logits = problem["pred_logits"].requires_grad_()  # (L, B, P, C)
        self.boxes = problem["pred_boxes"].requires_grad_()

    def _layers(self) -> list[dict[str, Tensor]]:
        pairs = zip(self.logits, self.boxes, strict=True)
        return [{"pred_logits": logits, "pred_boxes": boxes} for logits, boxes in pairs]

    def match(self) -> None:
        """Match every decoder layer; it takes one at a time."""
        with torch.no_grad():
            for layer in self._layers():
                self.criterion.matching_method(layer, self.target, self.anchors)

    def forward(self) -> Tensor:
        """Return the sum of the losses of all layers."""
        return torch.stack([self.criterion(layer, self.target, self.anchors) for layer in self._layers()]).sum()

    def full(self) -> None:
        """Go forward and backward."""
        self.logits.grad = self.boxes.grad = None
        self.forward().backward()

    def result(self) -> float:
        """Return the loss as a number."""
        with torch.no_grad():
            return float(self.forward())

    def growth(self) -> float:
        """Return the MiB by which forward and backward raise the peak memory."""
        return resident_growth(self.full)


class CenterL1(nn.modules.loss._Loss):
    """The L1 distance of DETR, of boxes as centre and size."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the distances (N, 4)."""

        def centers(boxes: Tensor) -> Tensor:
            low, high = boxes.chunk(2, dim=-1)
            return torch.cat(((low + high) / 2, high - low), dim=-1)

        return nn.functional.l1_loss(centers(input), centers(target), reduction=self.reduction)


class FocalCost(nn.modules.loss._Loss):
    """The focal cost of Deformable DETR, of one-hot labels; that of the original has other values."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the costs (N,)."""
        prob = input.sigmoid()
        positive = -0.25 * (1 - prob) ** 2 * (prob + 1e-8).log()
        negative = -0.75 * prob**2 * (1 - prob + 1e-8).log()
        return ((positive - negative) * target).sum(-1)


def _library() -> tuple[Any, Any]:
    """Return the losses and the matchers of the original; the types of ours do not hold for them."""
    return importlib.import_module("uotod.loss"), importlib.import_module("uotod.match")


def _boxes(l1: nn.Module) -> Any:
    loss, _ = _library()

    return loss.MultipleObjectiveLoss(losses=[l1, loss.GIoULoss(**NONE)], weights=[5.0, 2.0])


def _detr(classes: int) -> Any:
    loss, match = _library()

    weight = torch.ones(classes + 1)
    weight[-1] = 0.1
    boxes = _boxes(CenterL1(**NONE))
    rule = match.Hungarian(cls_match_module=loss.NegativeProbLoss(**NONE), loc_match_module=boxes)
    return loss.DetectionLoss(nn.CrossEntropyLoss(weight, **NONE), boxes, rule, bg_class_position="last")


def _focal(l1: nn.Module, cls_weight: float) -> Any:
    loss, match = _library()

    def weigh(module: nn.Module, weight: float) -> Any:
        return loss.MultipleObjectiveLoss(losses=[module], weights=[weight])

    focal = weigh(loss.SigmoidFocalLoss(alpha=0.25, gamma=2.0, **NONE), cls_weight)
    cost = weigh(FocalCost(**NONE), 2.0)
    boxes = _boxes(l1)
    rule = match.Hungarian(cls_match_module=cost, loc_match_module=boxes)
    return loss.DetectionLoss(focal, boxes, rule, bg_class_position="none")


def _ssd(rule: Any) -> Any:
    loss, _ = _library()

    mining = {"use_hard_negative_mining": True, "neg_to_pos_ratio": 3.0}
    return loss.DetectionLoss(
        nn.CrossEntropyLoss(**NONE), nn.SmoothL1Loss(**NONE), rule, bg_class_position="first", **mining
    )


def _unbalanced(classes: int) -> Any:
    loss, match = _library()

    cost = {"loc_match_module": loss.IoULoss(**NONE), "background_cost": 0.5, "is_anchor_based": True}
    return _ssd(match.UnbalancedSinkhorn(reg_pred=1e3, reg_target=1e-3, **cost))


def _closest_target(classes: int) -> Any:
    loss, match = _library()

    cost = {"loc_match_module": loss.IoULoss(**NONE), "background_cost": 0.5, "is_anchor_based": True}
    return _ssd(match.ClosestTarget(**cost))


CRITERIA = {
    "detr": _detr,
    "dino": lambda classes: _focal(CenterL1(**NONE), 2.0),
    "uot": _unbalanced,
    "ssd": _closest_target,
    "yolo": lambda classes: _focal(nn.L1Loss(**NONE), 1.0),
}


def main() -> None:
    """Answer requests until the pipe is closed."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the library prints is no answer
    # The wheel lacks the pictures of its samples, without which its first import fails; nothing here needs them.
    sys.modules["uotod.sample"] = ModuleType("uotod.sample")
    import uotod

    if not uotod.__version__.startswith("0.3"):
        raise RuntimeError(f"the original uotod must come first on the path, found {uotod.__file__}")
    torch.set_num_threads(1)
    session: Loaded | None = None
    while True:
        try:
            operation, given = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        if operation == "load":
            session, answer = Loaded(*given), None
        elif operation in ("result", "growth"):
            answer = getattr(session, operation)()
        else:
            answer = tuple(timed(getattr(session, operation)))
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
