"""The losses of `torch.nn` that are known: a module in, its adapter out."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uotod.cost.focal import LOG2_E, zero_terms
from uotod.cost.kinds import Adapter, Affine, ClassTerms, Pair, Sigmoid, spread
from uotod.cost.labels import ClassLabels
from uotod.scene.absent import is_present


class Softmax(Affine):
    """The cross-entropy, whose gradient is the probabilities less the label."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, partial(cross_entropy_terms, module))

    def values(self, rows: Tensor, labels: ClassLabels) -> Tensor:
        """Return the loss (N,) of each row, times its mass."""
        if self.smoothing:
            return super().values(rows, labels)
        return -self._target(labels, rows).dot(torch.log_softmax(rows, dim=-1))

    def write_gradient(self, rows: Tensor, labels: ClassLabels, out: Tensor) -> Tensor:
        """Return the values of `rows`, which need no gradient, and write their gradient into `out`, (N, C)."""
        if self.smoothing:
            return super().write_gradient(rows, labels, out)
        target = self._target(labels, rows)
        values = target.dot(torch.log_softmax(rows, dim=-1, out=out)).neg_()
        # powers of two are several times faster than `exp` on CPUs
        target.take_from(out.mul_(LOG2_E).exp2_().mul_(target.total()))
        return values

    def trains_more(self, rows: Tensor, labels: ClassLabels) -> bool:
        """Tell whether the loss has a gradient with respect to more than its logits."""
        return False

    @property
    def smoothing(self) -> float:
        """The label smoothing, with which the label is no class but a row."""
        return float(getattr(self.module, "label_smoothing", 0.0))

    def _target(self, labels: ClassLabels, rows: Tensor) -> "_Target":
        """Return the mass of each row on its classes, times class weights."""
        weight, bg_class, background = self.class_weight(rows), labels.bg_class, labels.background
        weight = None if weight is None else weight.to(rows)
        if bg_class is None:
            background = torch.zeros_like(background)
        elif weight is not None:
            background = background * weight[bg_class]
        if labels.index is None:
            mass = labels.masses() if weight is None else labels.masses() * weight
            return _Target(None, mass, bg_class or 0, background.unsqueeze(1))
        index = labels.index if bg_class is not None else labels.index.clamp(max=rows.shape[1] - 1)
        positive = labels.positive if weight is None else labels.positive * weight[index]
        return _Target(index.unsqueeze(1), positive.unsqueeze(1), bg_class or 0, background.unsqueeze(1))


class _Target(NamedTuple):
    """The mass of rows on classes.

    Attributes:
        label: (N, 1) the class that has the mass of targets, or None if several have.
        positive: (N, 1) that mass, or (N, C) without a label.
        bg_class: the class of the background.
        background: (N, 1) its mass.
    """

    label: Tensor | None
    positive: Tensor
    bg_class: int
    background: Tensor

    def total(self) -> Tensor:
        """Return the mass (N, 1) of each row."""
        return self.positive.sum(1, keepdim=True) + self.background

    def dot(self, values: Tensor) -> Tensor:
        """Return the sum (N,) of (N, C) values, each times its mass."""
        found = values if self.label is None else values.gather(1, self.label)
        return (found * self.positive).sum(1) + values[:, self.bg_class] * self.background.squeeze(1)

    def take_from(self, values: Tensor) -> None:
        """Subtract the masses from (N, C) values, in place."""
        if self.label is None:
            values.sub_(self.positive)
        else:
            values.scatter_add_(1, self.label, -self.positive)
        values[:, self.bg_class : self.bg_class + 1].sub_(self.background)


def cross_entropy_terms(module: Any, logits: Tensor) -> ClassTerms:
    """Return the affine form of the cross-entropy."""
    gain = -F.log_softmax(logits, dim=-1)
    if module.weight is not None:
        gain = gain * module.weight.to(gain.dtype)
    smoothing = module.label_smoothing
    if smoothing > 0:
        gain = spread(gain, smoothing, is_present(logits))
    if 0 <= module.ignore_index < logits.shape[-1]:
        keep = torch.arange(logits.shape[-1], device=logits.device) != module.ignore_index
        gain = gain * keep
    return ClassTerms(gain, None)


def _bce_terms(module: Any, logits: Tensor) -> ClassTerms:
    negative = -F.logsigmoid(-logits)  # a zero costs -log σ(-x)
    positive = negative - logits  # a one costs -log σ(x), the same less x
    if module.pos_weight is not None:
        positive = positive * module.pos_weight.to(positive.dtype)
    if module.weight is not None:
        weight = module.weight.to(positive.dtype)
        positive, negative = positive * weight, negative * weight
    return ClassTerms(positive - negative, negative.sum(-1))


def _bce_zeros(module: Any, logits: Tensor, slope: Tensor) -> Tensor | None:
    is_plain = module.weight is None and module.pos_weight is None
    return zero_terms(logits, -1, 0.0, slope) if is_plain else None


def _of_bce(module: nn.Module) -> Adapter:
    return Sigmoid(module, partial(_bce_terms, module), partial(_bce_zeros, module))


def _of_coordinates(module: nn.Module) -> Adapter:
    return Pair(module, partial(_coordinate_cost, module))


def _coordinate_cost(module: nn.Module, boxes: Tensor, target_boxes: Tensor) -> Tensor:
    """Return the sum (S, T, P) over coordinates, taken one by one: (S, T, P, 4) never exists."""
    shape = (len(boxes), target_boxes.shape[1], boxes.shape[1])
    total: Tensor | None = None
    planes = (x.movedim(-1, 0).contiguous() for x in (target_boxes, boxes))  # strided ones would slow all that follows
    for x, y in zip(*planes, strict=True):
        x, y = x.unsqueeze(2), y.unsqueeze(1)
        if isinstance(module, nn.L1Loss):
            value = (x - y).abs_()  # three times as fast as `cdist`
        elif isinstance(module, nn.MSELoss):
            value = (x - y).square_()
        else:
            value = module(x.expand(shape), y.expand(shape))
        total = value if total is None else total.add_(value)
    assert total is not None
    return total


KNOWN: dict[type[nn.Module], Callable[[nn.Module], Adapter]] = {
    nn.CrossEntropyLoss: Softmax,
    nn.BCEWithLogitsLoss: _of_bce,
    nn.L1Loss: _of_coordinates,
    nn.MSELoss: _of_coordinates,
    nn.SmoothL1Loss: _of_coordinates,
    nn.HuberLoss: _of_coordinates,
}
