"""Values of some pairs of targets and predictions: a mask and a function of indices in, lists of values out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from uotod._blocks import images_per_block
from uotod.solvers.candidates import suitors

PairFunction = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class SomePairs:
    """The pairs that count, as one list of predictions for each target, of which only those are evaluated.

    Attributes:
        valid: (B, T, K) bool, False where a list has ended or, if it is dense, where a pair does not count.
        pred: (B, T, K) prediction of each pair, in ascending order; None if the list is dense: all predictions, K = P.
        preds: P.

    Examples:
        >>> pairs = SomePairs.of(torch.tensor([[[False, True, True], [True, False, False]]]))
        >>> pairs.evaluate(lambda image, target, pred: (10.0 * target + pred,), -1.0)
        [tensor([[[ 1.,  2.],
                 [10., -1.]]])]
    """

    valid: Tensor
    pred: Tensor | None
    preds: int

    @classmethod
    def of(cls, mask: Tensor) -> SomePairs:
        """List the pairs of a (B, T, P) mask; where counting them would synchronise, the list is dense."""
        images, num_targets, preds = mask.shape
        if mask.device.type != "cpu" or not mask.numel():
            return cls.dense(mask)
        flat = mask.flatten().nonzero().squeeze(1)
        count = torch.bincount(flat // preds, minlength=images * num_targets).view(images, num_targets, 1)
        valid = torch.arange(int(count.max())) < count  # (B, T, K)
        pred = torch.zeros_like(valid, dtype=torch.long).masked_scatter_(valid, flat % preds)
        return cls(valid, pred, preds)

    @classmethod
    def dense(cls, mask: Tensor) -> SomePairs:
        """Keep all pairs of a (B, T, P) mask in place."""
        return cls(mask, None, mask.shape[2])

    def evaluate(self, function: PairFunction, *others: float) -> list[Tensor]:
        """Return the (B, T, K) values of the pairs, and the numbers in `others` elsewhere.

        Args:
            function: of the indices (image, target, prediction), which broadcast together: three of shape (N,), or
                (b, 1, 1), (1, T, 1) and (1, 1, P) where pairs that do not count are evaluated too. It returns as many
                tensors as there are `others`.
            others: values of what is no pair.
        """
        if self.pred is not None:
            image, target, _ = self.valid.nonzero(as_tuple=True)
            found = function(image, target, self.pred[self.valid])
            blank = [x.new_full(self.valid.shape, other) for x, other in zip(found, others, strict=True)]
            return [x.masked_scatter_(self.valid, value) for x, value in zip(blank, found, strict=True)]
        images, num_targets, preds = self.valid.shape
        image, target, pred = (torch.arange(n, device=self.valid.device) for n in self.valid.shape)
        size = images_per_block(images, num_targets * preds, self.valid.device)
        parts = (image[i : i + size].view(-1, 1, 1) for i in range(0, max(images, 1), size))
        blocks = [function(part, target.view(1, -1, 1), pred.view(1, 1, -1)) for part in parts]
        columns = [
            torch.cat([x.expand(-1, num_targets, preds) for x in column]) for column in zip(*blocks, strict=True)
        ]
        return [x.masked_fill(~self.valid, other) for x, other in zip(columns, others, strict=True)]

    def at(self, value: Tensor) -> Tensor:
        """Return the (B, P) values of the pairs' predictions, (B, T, K) or what broadcasts to it."""
        if self.pred is None:
            return value.unsqueeze(1)
        return value.gather(1, self.pred.flatten(1)).view_as(self.pred)

    def count(self, mask: Tensor) -> Tensor:
        """Return in how many pairs of a (B, T, K) mask each prediction is, (B, P)."""
        if self.pred is None:
            return mask.sum(1, dtype=torch.int32)
        count = torch.zeros(len(mask), self.preds, dtype=torch.int32, device=mask.device)
        return count.scatter_add_(1, self.pred.flatten(1), mask.flatten(1).int())

    def best_target(self, value: Tensor) -> Tensor:
        """Return the (B, P) target of largest (B, T, K) value above `-inf`, the lowest on ties; T for none."""
        if self.pred is not None:
            return suitors(value, self.pred, self.preds)
        if not value.shape[1]:
            return torch.zeros_like(value[:, 0], dtype=torch.long)
        top = value.max(1)
        return top.indices.masked_fill(top.values == -math.inf, value.shape[1])
