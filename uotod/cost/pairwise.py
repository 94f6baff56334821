"""The cost of all pairs of predictions and targets: a scene in, the target-major cost that a rule matches out."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from uotod.check import check_device, check_number, reads_values
from uotod.cost.adapters import Part
from uotod.cost.blocks import image_blocks
from uotod.geometry.boxes import full_precision
from uotod.scene.scene import Scene


class Cost(NamedTuple):
    """What the cost of a pair is made of.

    Attributes:
        cls: the classification cost, adapted; nothing for none.
        loc: the localisation cost, adapted; nothing for none.
        background: cost of the background, or None for no such column.
        by_anchors: compute the localisation cost of the anchors instead of the predicted boxes.
        class_weight: (C,) factors of the cost of the targets of each class, or None for 1.
        nonfinite: "error", or "propagate" to match predictions that are not finite only if nothing finite is left.
        validate: also check values on a GPU, which synchronises.
    """

    cls: tuple[Part, ...]
    loc: tuple[Part, ...]
    background: float | None
    by_anchors: bool
    class_weight: Tensor | None
    nonfinite: str
    validate: bool

    def of_scene(self, scene: Scene, pair_cost: Callable[[Scene], Tensor]) -> Tensor:
        """Return the target-major cost (S, T + 1, P), or (S, T, P) without background; `inf` on padding.

        Args:
            scene: S stacked images.
            pair_cost: function of a scene of some of the images that returns their cost (s, t, P). What it returns for
                padding is not read, and the targets after the last one that is not padding are not there.

        Raises:
            ValueError: a value is NaN or -inf, or a module does not return one cost a row.
        """
        mask, preds = scene.mask, scene.logits.shape[1]
        num_targets = mask.shape[1]
        columns = num_targets + (self.background is not None)
        cost: Tensor | None = None
        for some, count in image_blocks(mask, preds):
            part = scene if count == num_targets and some == slice(0, len(mask)) else scene.part(some, slice(count))
            block = self._weighted(part, pair_cost(part))
            if cost is None:
                cost = block.new_empty(len(mask), columns, preds)
            cost[some, :count] = block
            cost[some, count:num_targets].fill_(math.inf)
        assert cost is not None
        if self.background is not None:
            cost[:, num_targets:].fill_(self.background)
        hint = ' (nonfinite="propagate" matches such a pair only if nothing finite is left)'
        check_cost_values("the cost that the match modules return", cost, self.validate, hint)
        return cost

    def of_pairs(self, scene: Scene, *, cls: bool = True, loc: bool = True) -> Tensor:
        """Return the sum (S, T, P) of what the modules of classification and localisation say, padding included."""
        total: Tensor | None = None
        for part in self.cls if cls else ():
            cost = part.adapter.class_cost(scene.logits, scene.targets)
            total = part.weight * cost if total is None else total.add_(cost, alpha=part.weight)
        shape = (*scene.mask.shape, scene.logits.shape[1])
        for part in self.loc if loc else ():
            fields = part.adapter.fields(scene)
            if self.by_anchors and "pred_boxes" in fields:
                fields["pred_boxes"] = scene.anchor_boxes
            cost = part.adapter.pair_cost(fields, shape)
            total = part.weight * cost if total is None else total.add_(cost, alpha=part.weight)
        assert total is not None
        return total

    def target_weight(self, scene: Scene) -> Tensor | None:
        """Return the (S, T) factors of the targets' costs, or None if all are 1.

        The factor of a one-hot target is the mean of the class weights, weighted by its labels; 1 for a row of zeros.

        Raises:
            ValueError: there are fewer or more class weights than classes, or they are on another device.
        """
        class_weight, targets, logits = self.class_weight, scene.targets, scene.logits
        if class_weight is None:
            return targets.cost_weight
        if len(class_weight) != logits.shape[-1]:
            raise ValueError(
                f"class_weight must hold C = {logits.shape[-1]} numbers, one a class, got {len(class_weight)}"
            )
        check_device("class_weight", class_weight, targets.mask.device)
        weight = class_weight.to(logits.dtype)
        if targets.one_hot is None:
            assert targets.labels is not None
            weight = weight[targets.labels]  # (B, T)
        else:
            share = targets.one_hot.to(weight.dtype)
            total = share.sum(-1)
            weight = torch.where(total > 0, share @ weight / total.where(total > 0, 1.0), 1.0)
        return weight if targets.cost_weight is None else weight * targets.cost_weight

    def _weighted(self, scene: Scene, cost: Tensor) -> Tensor:
        """Return the cost (S, T, P) with weights of targets, and `inf` on padding."""
        weight = self.target_weight(scene)
        if weight is not None:
            cost = cost * weight.unsqueeze(-1)
        if self.nonfinite == "propagate":
            cost = replace_nonfinite(cost, scene, self.background or 0.0)
        return _forbid_padding(cost, scene.mask)


def _forbid_padding(cost: Tensor, mask: Tensor) -> Tensor:
    """Make a (S, T, P) cost `inf` where the (S, T) mask is False; in place if it is contiguous."""
    if not reads_values(cost, validate=False):
        return cost.masked_fill(~mask.unsqueeze(-1), math.inf)
    padding = (~mask).flatten().nonzero().squeeze(1)
    cost = cost.contiguous()
    if len(padding):
        cost.flatten(0, 1).index_fill_(0, padding, math.inf)  # `masked_fill` takes 30 times as long
    return cost


def parse_cost(cost_matrix: Tensor, target_mask: Tensor, background: bool, validate: bool) -> Tensor:
    """Return a public cost (B, P, K) as a contiguous target-major one, (B, K, P), in at least float32.

    Raises:
        TypeError: an argument is not a tensor of the right dtype.
        ValueError: shapes do not fit, or the cost holds NaN or -inf.
    """
    if not isinstance(cost_matrix, Tensor) or not cost_matrix.is_floating_point():
        found = cost_matrix.dtype if isinstance(cost_matrix, Tensor) else type(cost_matrix).__name__
        raise TypeError(f"cost_matrix must be a tensor of a floating dtype, got {found}")
    if not isinstance(target_mask, Tensor) or target_mask.dtype != torch.bool:
        found = target_mask.dtype if isinstance(target_mask, Tensor) else type(target_mask).__name__
        raise TypeError(f"target_mask must be a tensor of dtype torch.bool, got {found}")
    layout = "(B, P, T + 1)" if background else "(B, P, T)"
    columns = cost_matrix.shape[-1] - background if cost_matrix.dim() == 3 else -1
    if columns < 0 or target_mask.shape != (cost_matrix.shape[0], columns):
        raise ValueError(
            f"cost_matrix must have shape {layout} and target_mask (B, T), "
            f"got {tuple(cost_matrix.shape)} and {tuple(target_mask.shape)}"
        )
    if cost_matrix.device != target_mask.device:
        raise ValueError(f"target_mask must be on {cost_matrix.device} like cost_matrix, got {target_mask.device}")
    cost = full_precision(cost_matrix.detach()).transpose(1, 2).clone(memory_format=torch.contiguous_format)
    cost[:, :columns].masked_fill_(~target_mask.unsqueeze(-1), math.inf)
    check_cost_values("cost_matrix", cost, validate)
    return cost


def check_cost_values(name: str, cost: Tensor, validate: bool, hint: str = "") -> None:
    """Raise a ValueError if a target-major cost (B, K, P) holds NaN or -inf, which no plan can mean."""
    if not cost.numel() or not reads_values(cost, validate) or bool(cost.amin() > -math.inf):
        return  # the minimum of values with a NaN is NaN
    bad = cost.isnan() | (cost == -math.inf)
    image, column, pred = (int(x) for x in bad.nonzero()[0])
    value = float(cost[image, column, pred])
    raise ValueError(
        f"{name} must not hold NaN or -inf, got {value} in image {image}, prediction {pred}, column {column}, and "
        f"{int(bad[image].sum())} such values in that image{hint}"
    )


def replace_nonfinite(cost: Tensor, scene: Scene, background_cost: float) -> Tensor:
    """Give predictions and costs that are not finite a cost (B, T, P) above that of any set of finite pairs.

    Infinity, by which a module forbids a pair, remains of finite predictions.
    """
    if not cost.numel():
        return cost
    bad = ~scene.finite  # (B, P)
    valid = scene.mask.unsqueeze(-1) & ~bad.unsqueeze(1) & cost.isfinite()
    some = valid.flatten(1).any(1)[:, None, None]
    high = cost.masked_fill(~valid, -math.inf).amax((1, 2), keepdim=True).where(some, 0.0)
    low = cost.masked_fill(~valid, math.inf).amin((1, 2), keepdim=True).where(some, 0.0)
    high, low = high.clamp(min=background_cost), low.clamp(max=background_cost)
    count = scene.mask.sum(1)[:, None, None]
    worst = high + (count + 1) * (high - low + 1)
    return torch.where(bad.unsqueeze(1) | cost.isnan() | (cost == -math.inf), worst, cost)


def parse_class_weight(value: Sequence[float] | Tensor | None) -> Tensor | None:
    """Return class weights as a (C,) tensor, float32 or, where they are given so, float64.

    Raises:
        TypeError: `value` holds anything but real numbers.
        ValueError: `value` has another shape, or holds a number that is not finite and above 0.
    """
    if value is None:
        return None
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"class_weight must have a floating dtype, got {value.dtype}")
        if value.dim() != 1:
            raise ValueError(f"class_weight must have shape (C,), got {tuple(value.shape)}")
        weight = full_precision(value.detach().clone())
        if not bool(((weight > 0) & weight.isfinite()).all()):
            raise ValueError(f"class_weight must hold finite numbers above 0, got {weight.tolist()}")
        return weight
    if not isinstance(value, Sequence):
        raise TypeError(f"class_weight must be a sequence of numbers or a tensor, got {type(value).__name__}")
    numbers = [check_number(f"class_weight[{i}]", w, low=0.0, low_open=True) for i, w in enumerate(value)]
    return torch.tensor(numbers, dtype=torch.float32)
