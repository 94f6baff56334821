"""Classification losses of rows of logits and what their labels say: one value a row, and its gradient on request."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from uotod.check import reads_values
from uotod.cost.adapters import (
    ClassTerms,
    SoftTarget,
    class_terms,
    class_weight,
    has_class_terms,
    soft_loss,
    zero_terms,
)
from uotod.cost.focal import LOG2_E
from uotod.cost.labels import ClassLabels


class RowLoss(ABC):
    """The loss of (N, C) logits under flat labels, of which each row depends on nothing but its own logits."""

    @abstractmethod
    def values(self, rows: Tensor, labels: ClassLabels) -> Tensor:
        """Return the loss (N,) of each row, times its mass, by operations that autograd knows."""

    def write_gradient(self, rows: Tensor, labels: ClassLabels, out: Tensor) -> Tensor:
        """Return the values of `rows`, which need no gradient, and write their gradient into `out`, (N, C)."""
        with torch.enable_grad():
            leaf = rows.detach().requires_grad_()
            values = self.values(leaf, labels)
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        out.copy_(gradient)
        return values.detach()

    def trains_more(self, rows: Tensor, labels: ClassLabels) -> bool:
        """Tell whether the loss has a gradient with respect to more than its logits: to weights that it learns."""
        with torch.enable_grad():
            return self.values(rows[:1].detach(), labels.rows(slice(1))).requires_grad


class AffineRows(RowLoss):
    """A loss that is affine in its one-hot target: `Σ_p m·base + ⟨S, gain⟩` with the mass folded onto classes."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def values(self, rows: Tensor, labels: ClassLabels) -> Tensor:
        """Return the loss (N,) of each row, times its mass."""
        terms = class_terms(self.module, rows)
        assert terms is not None
        return _affine(terms, labels)


class CrossEntropyRows(AffineRows):
    """The cross-entropy, whose gradient is the probabilities less the label."""

    def values(self, rows: Tensor, labels: ClassLabels) -> Tensor:
        """Return the loss (N,) of each row, times its mass."""
        target = self._target(labels, rows)
        return target.dot(torch.log_softmax(rows, dim=-1)).neg()

    def write_gradient(self, rows: Tensor, labels: ClassLabels, out: Tensor) -> Tensor:
        """Return the values of `rows`, which need no gradient, and write their gradient into `out`, (N, C)."""
        target = self._target(labels, rows)
        values = target.dot(torch.log_softmax(rows, dim=-1, out=out)).neg_()
        # powers of two are several times faster than `exp` on CPUs
        target.take_from(out.mul_(LOG2_E).exp2_().mul_(target.mass()))
        return values

    def _target(self, labels: ClassLabels, rows: Tensor) -> "_DenseTarget | _SparseTarget":
        """Return the mass on each class, the background's included, times its class weight."""
        weight = class_weight(self.module, rows)
        weight = None if weight is None else weight.to(rows)
        bg_class = labels.bg_class
        background = torch.zeros_like(labels.background) if bg_class is None else labels.background
        bg_class = bg_class or 0
        if weight is not None:
            background = background * weight[bg_class]
        if labels.index is None:
            assert labels.soft is not None
            mass = labels.soft.clone() if weight is None else labels.soft * weight
            mass[:, bg_class] += background
            return _DenseTarget(mass)
        index = labels.index.clamp(max=rows.shape[1] - 1)
        mass = labels.positive if weight is None else labels.positive * weight[index]
        return _SparseTarget(index.unsqueeze(1), mass.unsqueeze(1), bg_class, background.unsqueeze(1))

    def trains_more(self, rows: Tensor, labels: ClassLabels) -> bool:
        """Tell whether the loss has a gradient with respect to more than its logits."""
        return False


class _DenseTarget(NamedTuple):
    """The mass (N, C) of rows on each class."""

    masses: Tensor

    def mass(self) -> Tensor:
        """Return the mass (N, 1) of each row."""
        return self.masses.sum(1, keepdim=True)

    def dot(self, values: Tensor) -> Tensor:
        """Return the sum (N,) of (N, C) values, each times its mass."""
        return (self.masses * values).sum(1)

    def take_from(self, values: Tensor) -> None:
        """Subtract the masses from (N, C) values, in place."""
        values.sub_(self.masses)


class _SparseTarget(NamedTuple):
    """The mass of rows on one class each, `label` and `positive` (N, 1), and on the background, (N, 1)."""

    label: Tensor
    positive: Tensor
    bg_class: int
    background: Tensor

    def mass(self) -> Tensor:
        """Return the mass (N, 1) of each row."""
        return self.positive + self.background

    def dot(self, values: Tensor) -> Tensor:
        """Return the sum (N,) of (N, C) values, each times its mass."""
        found = self.positive * values.gather(1, self.label) + self.background * values[:, self.bg_class, None]
        return found.squeeze(1)

    def take_from(self, values: Tensor) -> None:
        """Subtract the masses from (N, C) values, in place."""
        values[:, self.bg_class, None].sub_(self.background)
        values.scatter_(1, self.label, values.gather(1, self.label) - self.positive)


class SigmoidRows(AffineRows):
    """A loss of each logit on its own: a zero everywhere, and what a one changes at the few positives."""

    def write_gradient(self, rows: Tensor, labels: ClassLabels, out: Tensor) -> Tensor:
        """Return the values of `rows`, which need no gradient, and write their gradient into `out`, (N, C)."""
        zeros = zero_terms(self.module, rows, out)
        if zeros is None or labels.index is None or labels.bg_class is not None:
            return super().write_gradient(rows, labels, out)
        mass = labels.positive + labels.background
        values = zeros.sum(1).mul_(mass)
        out.mul_(mass.unsqueeze(1))
        ones, share = labels.index.clamp(max=rows.shape[1] - 1), labels.positive
        some = torch.arange(len(rows), device=rows.device)
        if reads_values(rows, validate=False):
            some = share.nonzero().squeeze(1)
            ones, share = ones[some], share[some]
        with torch.enable_grad():
            leaf = rows[some, ones].unsqueeze(1).requires_grad_()
            terms = class_terms(self.module, leaf)
            assert terms is not None
            gain = share * terms.gain.squeeze(1)
            (slope,) = torch.autograd.grad(gain.sum(), leaf)
        out[some, ones] = out[some, ones] + slope.squeeze(1)
        return values.index_add_(0, some, gain.detach())


class SoftRows(RowLoss):
    """A loss of soft targets, which is not affine in them."""

    def __init__(self, module: nn.Module) -> None:
        method = soft_loss(module)
        assert method is not None
        self.method = method

    def values(self, rows: Tensor, labels: ClassLabels) -> Tensor:
        """Return the loss (N,) of each row, times its mass."""
        target = SoftTarget(*(x.to(rows.dtype) for x in labels.soft_target(rows.shape[-1])))
        return target.mass * self.method(rows, target)


def row_loss(module: nn.Module, logits: Tensor) -> RowLoss | None:
    """Return how to evaluate a module on rows of (B, P, C) logits.

    None for a module that is unknown, or that reads more than a row at a time.
    """
    if soft_loss(module) is not None:
        return SoftRows(module) if getattr(module, "is_rowwise", False) else None
    if not has_class_terms(module):
        return None
    probe = logits.new_zeros(0, logits.shape[-1])
    if class_weight(module, logits) is not None:
        class_terms(module, probe)  # checks that the weights fit
    if type(module) is nn.CrossEntropyLoss:
        return AffineRows(module) if module.label_smoothing else CrossEntropyRows(module)
    return AffineRows(module) if zero_terms(module, probe, probe) is None else SigmoidRows(module)


def _affine(terms: ClassTerms, labels: ClassLabels) -> Tensor:
    """Return m·base + ⟨S, gain⟩ for each row, (N,)."""
    if labels.index is not None:
        index = labels.index.clamp(max=terms.gain.shape[-1] - 1)
        rows = labels.positive * terms.gain.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    else:
        assert labels.soft is not None
        rows = (labels.soft * terms.gain).sum(-1)
    if labels.bg_class is not None:
        rows = rows + labels.background * terms.gain[..., labels.bg_class]
    # gain and base may be large and cancel: they are added row by row
    return rows if terms.base is None else rows + (labels.positive + labels.background) * terms.base
