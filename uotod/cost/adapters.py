"""Evaluate a loss module on all pairs of predictions and targets, without materialising rows of size B·P·T·C.

A module takes part in one of three ways:

* `torch.nn` losses are known here by their exact type;
* a module may offer `class_terms(logits)` or `soft_loss(logits, target)` (classification) or
  `pairwise(boxes, target_boxes)` (localisation), and one that weighs others offers `parts()`; with `class_terms` it may
  also offer `label_cost(logits, pick)`, the same for integer labels, where `pick` selects the labels' (B, T, P) of
  (B, P, C) values, and `zero_terms(logits, slope)`;
* any other module is called on aligned rows, a bounded number at a time.
"""

from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uotod.cost.blocks import by_blocks, rows_per_block
from uotod.cost.by_rows import cost_by_rows
from uotod.cost.focal import zero_terms as focal_zero_terms
from uotod.geometry.boxes import pairwise_coordinates
from uotod.scene.targets import Targets


class ClassTerms(NamedTuple):
    """A classification loss that is affine in its (soft) one-hot target: `loss(x, t) = base(x) + ⟨t, gain(x)⟩`.

    Attributes:
        gain: (..., C).
        base: (...), the loss of a target of zeros, or None if that is zero.
    """

    gain: Tensor
    base: Tensor | None


class SoftTarget(NamedTuple):
    """What a classification loss that is not affine in its target sees of rows that share a mass between classes.

    Attributes:
        quality: (..., C) share of the row's mass on each class, in [0, 1], scaled by the quality of its pairs.
        positive: (..., C) the same before that scaling: the one-hot label of a row with a single target.
        mass: (...) mass of the row, by which its loss is multiplied afterwards; 0 for an ignored prediction.
    """

    quality: Tensor
    positive: Tensor
    mass: Tensor


class Part(NamedTuple):
    """One weighted sub-loss of a loss; the name of a loss that is a single part is empty."""

    name: str
    weight: float
    module: nn.Module


def parts_of(module: nn.Module) -> list[Part]:
    """Return the weighted parts of a composite loss, or the loss itself with weight 1."""
    parts = _fast_method(module, "parts")
    return [Part("", 1.0, module)] if parts is None else list(parts())


def class_terms(module: nn.Module, logits: Tensor) -> ClassTerms | None:
    """Return the affine form of a classification loss on (..., C) logits, or None for an unknown module."""
    declared = _fast_method(module, "class_terms")
    if declared is not None:
        return ClassTerms(*declared(logits))
    known = _KNOWN_CLASS_TERMS.get(type(module))
    return None if known is None else known(module, logits)


def has_class_terms(module: nn.Module) -> bool:
    """Tell whether a classification loss has an affine form."""
    return type(module) in _KNOWN_CLASS_TERMS or _fast_method(module, "class_terms") is not None


def soft_loss(module: nn.Module) -> Callable[[Tensor, SoftTarget], Tensor] | None:
    """Return the method that evaluates (..., C) logits on a `SoftTarget`, or None if the module has none."""
    return _fast_method(module, "soft_loss")


def zero_terms(module: nn.Module, logits: Tensor, slope: Tensor) -> Tensor | None:
    """Return the loss of a zero at each of (N, C) logits, and write its derivative into `slope`.

    None for a module that does not treat each logit alone and all alike.
    """
    if type(module) is nn.BCEWithLogitsLoss and module.weight is None and module.pos_weight is None:
        return focal_zero_terms(logits, -1, 0.0, slope)
    declared = _fast_method(module, "zero_terms")
    return None if declared is None else declared(logits, slope)


def class_weight(module: nn.Module, logits: Tensor) -> Tensor | None:
    """Return the class weights (C,) by which the loss of (..., C) logits and its mean are weighted, None for 1."""
    if not isinstance(module, (nn.CrossEntropyLoss, nn.NLLLoss)):
        declared: Tensor | None = getattr(module, "class_weight", None)
        return declared
    ignored = module.ignore_index
    weight: Tensor | None = module.weight
    if 0 <= ignored < logits.shape[-1]:
        weight = logits.new_ones(logits.shape[-1]) if weight is None else weight.clone()
        weight[ignored].zero_()
    return weight


def takes_one_hot(module: nn.Module) -> bool:
    """Tell whether a module of rows wants one-hot targets even where labels are integers."""
    return isinstance(module, (nn.BCEWithLogitsLoss, nn.BCELoss)) or bool(getattr(module, "takes_one_hot", False))


def class_cost(module: nn.Module, logits: Tensor, targets: Targets) -> Tensor:
    """Return the classification cost (B, T, P) of (B, P, C) logits against the targets of the same images."""
    cost: Tensor | None = None
    for part in parts_of(module):
        value = part.weight * _part_class_cost(part.module, logits, targets)
        cost = value if cost is None else cost + value
    assert cost is not None
    return cost


def class_cost_by_blocks(module: nn.Module, logits: Tensor, targets: Targets) -> Tensor:
    """Return the same, computed on the CPU a few images at a time so that their logits stay in its cache."""
    images, preds, num_classes = logits.shape
    size = max(rows_per_block(num_classes, logits.device) // max(preds, 1), 1)
    blocks = [slice(start, start + size) for start in range(0, max(images, 1), size)]
    costs = [class_cost(module, logits[block], targets.map(itemgetter(block))) for block in blocks]
    return costs[0] if len(costs) == 1 else torch.cat(costs)


def _part_class_cost(module: nn.Module, logits: Tensor, targets: Targets) -> Tensor:
    label_cost = _fast_method(module, "label_cost")
    if label_cost is not None and targets.one_hot is None:
        value: Tensor = label_cost(logits, lambda x: gather_classes(x, targets))
        return value
    terms = class_terms(module, logits)
    if terms is None:
        return _class_cost_by_rows(module, logits, targets)
    value = gather_classes(terms.gain, targets)
    return value if terms.base is None else value + terms.base.unsqueeze(1)


def box_cost(module: nn.Module, boxes: Tensor, target_boxes: Tensor) -> Tensor:
    """Return the localisation cost (B, T, P) of (B, P, 4) boxes against the (B, T, 4) boxes of the same images."""
    cost: Tensor | None = None
    for part in parts_of(module):
        value = part.weight * by_blocks(partial(_part_box_cost, part.module), target_boxes, boxes)
        cost = value if cost is None else cost + value
    assert cost is not None
    return cost


def _part_box_cost(module: nn.Module, target_boxes: Tensor, boxes: Tensor) -> Tensor:
    pairwise = _fast_method(module, "pairwise")
    if pairwise is not None:
        value: Tensor = pairwise(boxes, target_boxes)
        return value
    if type(module) in _KNOWN_BOX_COSTS:
        return _KNOWN_BOX_COSTS[type(module)](module, boxes, target_boxes)
    if getattr(module, "needs", ()):
        raise ValueError(f"{type(module).__name__} cannot be a matching cost: each row of it needs {module.needs}")
    return cost_by_rows(module, boxes, target_boxes, "loc_match_module")


def _fast_method(module: nn.Module, name: str) -> Callable[..., Any] | None:
    """Return a module's fast method, unless a subclass has replaced what it stands for."""
    stands_for = ("forward", "class_terms") if name in ("label_cost", "zero_terms") else ("forward",)
    for cls in type(module).__mro__:
        if name in vars(cls):
            method: Callable[..., Any] = getattr(module, name)
            return method
        if any(x in vars(cls) for x in stands_for):
            return None
    return None


def gather_classes(gain: Tensor, targets: Targets) -> Tensor:
    """Return ⟨label_j, gain_i⟩ for all pairs: (B, P, C) → (B, T, P)."""
    if targets.one_hot is not None:
        return targets.one_hot.to(gain.dtype) @ gain.transpose(1, 2)
    assert targets.labels is not None
    image = torch.arange(len(gain), device=gain.device).unsqueeze(1)
    return gain.transpose(1, 2)[image, targets.labels]


def _class_cost_by_rows(module: nn.Module, logits: Tensor, targets: Targets) -> Tensor:
    labels = targets.labels
    if labels is None or takes_one_hot(module):
        labels = targets.class_matrix(logits.shape[-1], logits.dtype)
    return cost_by_rows(module, logits, labels, "cls_match_module")


def _cross_entropy_terms(module: nn.CrossEntropyLoss, logits: Tensor) -> ClassTerms:
    negative = -F.log_softmax(logits, dim=-1)
    if module.weight is not None:
        if len(module.weight) != logits.shape[-1]:
            raise ValueError(
                f"pred_logits must have a class for each of the {len(module.weight)} weights of {module}, "
                f"got {logits.shape[-1]}"
            )
        negative = negative * module.weight.to(negative.dtype)
    gain = negative
    if module.label_smoothing > 0:
        smoothing = module.label_smoothing
        gain = (1 - smoothing) * negative + smoothing * negative.mean(-1, keepdim=True)
    if 0 <= module.ignore_index < logits.shape[-1]:
        keep = torch.arange(logits.shape[-1], device=logits.device) != module.ignore_index
        gain = gain * keep
    return ClassTerms(gain, None)


def _bce_with_logits_terms(module: nn.BCEWithLogitsLoss, logits: Tensor) -> ClassTerms:
    negative = -F.logsigmoid(-logits)  # a zero costs -log σ(-x)
    positive = negative - logits  # a one costs -log σ(x), the same less x
    if module.pos_weight is not None:
        positive = positive * module.pos_weight.to(positive.dtype)
    if module.weight is not None:
        weight = module.weight.to(positive.dtype)
        positive, negative = positive * weight, negative * weight
    return ClassTerms(positive - negative, negative.sum(-1))


def _distance(boxes: Tensor, target_boxes: Tensor) -> Tensor:
    """Return the sum of absolute differences."""
    if boxes.device.type != "cpu":
        return torch.cdist(target_boxes, boxes, p=1.0)
    total: Tensor | None = None
    for x, y in zip(*pairwise_coordinates(target_boxes, boxes), strict=True):
        difference = (x - y).abs_()  # three times as fast as `cdist`
        total = difference if total is None else total.add_(difference)
    assert total is not None
    return total


def _coordinate_cost(loss: Callable[[Tensor, Tensor], Tensor], boxes: Tensor, target_boxes: Tensor) -> Tensor:
    cost = boxes.new_zeros(())
    for k in range(4):  # coordinate by coordinate: (B, T, P, 4) never exists
        left = boxes[:, None, :, k].expand(-1, target_boxes.shape[1], -1)
        right = target_boxes[:, :, None, k].expand(-1, -1, boxes.shape[1])
        cost = cost + loss(left, right)
    return cost


_KNOWN_CLASS_TERMS: dict[type[nn.Module], Callable[..., ClassTerms]] = {
    nn.CrossEntropyLoss: _cross_entropy_terms,
    nn.BCEWithLogitsLoss: _bce_with_logits_terms,
}
_KNOWN_BOX_COSTS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.L1Loss: lambda module, boxes, target: _distance(boxes, target),
    nn.MSELoss: lambda module, boxes, target: _coordinate_cost(lambda a, b: (a - b) ** 2, boxes, target),
    nn.SmoothL1Loss: lambda module, boxes, target: _coordinate_cost(
        lambda a, b: F.smooth_l1_loss(a, b, reduction="none", beta=module.beta), boxes, target
    ),
    nn.HuberLoss: lambda module, boxes, target: _coordinate_cost(
        lambda a, b: F.huber_loss(a, b, reduction="none", delta=module.delta), boxes, target
    ),
}
