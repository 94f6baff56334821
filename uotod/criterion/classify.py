"""Classification on a plan: logits and labels in, the loss and the masses of each image out."""

from functools import partial

import torch
from torch import Tensor, nn

from uotod.cost.adapters import SoftTarget, class_weight, parts_of, soft_loss, takes_one_hot
from uotod.cost.blockwise import module_losses, row_losses
from uotod.cost.by_rows import sum_rows
from uotod.cost.labels import ClassLabels
from uotod.cost.row_losses import row_loss


class Classifier:
    """The classification sub-losses on the logits of one batch.

    Args:
        module: the loss module, composite or single.
        logits: (B, P, C).
        bg_class: class of the background, or None if it has none.
        layers: number of decoder layers stacked along the batch.
    """

    def __init__(self, module: nn.Module, logits: Tensor, bg_class: int | None, layers: int = 1) -> None:
        self.parts = parts_of(module)
        self.logits = logits
        self.bg_class = bg_class
        self.layers = layers
        self.row_losses = [row_loss(part.module, logits) for part in self.parts]

    @torch.no_grad()
    def background_loss(self) -> Tensor:
        """Return the weighted loss (B, P) of calling each prediction background."""
        images, preds, num_classes = self.logits.shape
        none, all_ = self.logits.new_zeros(images, preds), self.logits.new_ones(images, preds)
        index = torch.full_like(none, num_classes if self.bg_class is None else self.bg_class, dtype=torch.long)
        labels = ClassLabels(none, all_, index, None, self.bg_class)
        total = none
        for k, part in enumerate(self.parts):
            total = total + part.weight * self._values(k, labels)
        return total

    def masses(self, labels: ClassLabels) -> tuple[Tensor, Tensor]:
        """Return the positive and the background mass (K, B) that each part sees, weighted by its class weights."""
        positive, background = zip(
            *(_weighted_masses(class_weight(part.module, self.logits), labels) for part in self.parts), strict=True
        )
        return torch.stack(positive), torch.stack(background)

    def losses(self, labels: ClassLabels, divisors: Tensor | None = None) -> Tensor:
        """Return the loss (K, B) of each part, weighted, over its (K, B) divisors."""
        losses = []
        for k, part in enumerate(self.parts):
            divisor = None if divisors is None else divisors[k].unsqueeze(1)
            if divisor is not None and self.row_losses[k] is not None and labels.soft is None:
                # at once: the gradient is made with the loss, and another pass over it would take as long
                labels_over, divisor = labels.over(divisor), None
            else:
                labels_over = labels
            values = self._values(k, labels_over)
            losses.append(part.weight * (values if divisor is None else values / divisor).sum(1))
        return torch.stack(losses)

    def _values(self, part: int, labels: ClassLabels) -> Tensor:
        """Return the loss (B, P) of a part, each times its mass."""
        module, by_row = self.parts[part].module, self.row_losses[part]
        if by_row is not None:
            return row_losses(by_row, self.logits, labels)
        if soft_loss(module) is not None:
            return _values_by_layer(module, self.logits, labels, self.layers)
        return module_losses(partial(_values_of_module, module), self.logits, labels.pruned())


def _values_by_layer(module: nn.Module, logits: Tensor, labels: ClassLabels, layers: int) -> Tensor:
    """Return the loss (B, P) of a module that takes soft targets and reads all rows of a decoder layer."""
    method = soft_loss(module)
    assert method is not None
    target = [x.to(logits.dtype) for x in labels.soft_target(logits.shape[-1])]
    chunks = zip(logits.chunk(layers), *(x.chunk(layers) for x in target), strict=True)
    return torch.cat([some[2] * method(part, SoftTarget(*some)) for part, *some in chunks])


def _values_of_module(module: nn.Module, rows: Tensor, labels: ClassLabels) -> Tensor:
    """Return the loss (N,) of a module that takes aligned rows, each times its mass."""
    num_classes, bg_class = rows.shape[1], labels.bg_class
    if labels.index is not None:
        row = labels.positive.nonzero().squeeze(1)
        label, mass = labels.index[row], labels.positive[row]
    else:
        assert labels.soft is not None
        row, label = labels.soft.nonzero(as_tuple=True)
        mass = labels.soft[row, label]
    one_hot = bg_class is None or takes_one_hot(module)
    total = rows[:, :0].sum(1)
    if len(row):
        target = nn.functional.one_hot(label, num_classes).to(rows.dtype) if one_hot else label
        loss = sum_rows(module(rows[row], target), len(row), "cls_loss_module")
        total = total.to(loss.dtype).index_add(0, row, loss * mass.to(loss.dtype))
    row = (labels.background > 0).nonzero().squeeze(1)
    if len(row):
        target = rows.new_zeros(len(row), num_classes) if one_hot else label.new_full((len(row),), bg_class or 0)
        if one_hot and bg_class is not None:
            target[:, bg_class] = 1
        loss = sum_rows(module(rows[row], target), len(row), "cls_loss_module")
        total = total.to(loss.dtype).index_add(0, row, loss * labels.background[row].to(loss.dtype))
    return total


def _weighted_masses(weight: Tensor | None, labels: ClassLabels) -> tuple[Tensor, Tensor]:
    """Return the positive and the background mass of each image, (B,), each mass times its class weight."""
    background = labels.background.sum(1)
    if weight is None:
        return labels.positive.sum(1), background
    weight = weight.to(labels.positive)
    if labels.bg_class is not None:
        background = background * weight[labels.bg_class]
    if labels.soft is not None:
        return (labels.soft * weight).sum((1, 2)), background
    assert labels.index is not None
    padded = torch.cat((weight, weight.new_zeros(1)))  # the background without a class carries no positive mass
    return (labels.positive * padded[labels.index]).sum(1), background
