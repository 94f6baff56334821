"""The kinds of adapter: a sub-loss in, its cost of all pairs and its loss of matched rows out."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uotod.check import reads_values
from uotod.cost import blocks
from uotod.cost.labels import ClassLabels, SoftTarget
from uotod.scene.scene import Scene
from uotod.scene.targets import Targets

BOXES = ("pred_boxes", "target_boxes")
Fields = Mapping[str, Tensor]


class ClassTerms(NamedTuple):
    """A classification loss that is affine in its (soft) one-hot target: `loss(x, t) = base(x) + ⟨t, gain(x)⟩`.

    Attributes:
        gain: (..., C).
        base: (...), the loss of a target of zeros, or None if that is zero.
    """

    gain: Tensor
    base: Tensor | None


class Adapter:
    """Rows: a module of which nothing is known but that it takes aligned rows.

    Attributes:
        module: the sub-loss.
        reads: fields that it reads. One that declares none of predictions or targets in its attribute `needs` gets the
            predicted and the target boxes, and the rest by keyword; otherwise it gets all by keyword.
    """

    # what is known of its rows: a loss whose rows are independent has a value and a gradient for each of them
    by_row = False

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        declared = tuple(getattr(module, "needs", ()))
        self.takes_boxes = not any(x.startswith(("pred_", "target_")) for x in declared)
        self.reads = (*BOXES, *declared) if self.takes_boxes else declared

    # --- localisation

    def fields(self, scene: Scene) -> dict[str, Tensor]:
        """Return what it reads of a scene; boxes that it takes as such have four numbers.

        Raises:
            ValueError: a field is missing, or boxes have another shape.
        """
        boxes = BOXES if self.takes_boxes else ()
        return {name: scene.field(name, self.module, width=4 if name in boxes else None) for name in self.reads}

    def rows(self, fields: Fields, name: str) -> Tensor:
        """Return the loss (N,) of aligned fields (N, ...); `name` is what errors call the module."""
        count = len(next(iter(fields.values())))
        return sum_rows(self.module(*self._boxes(fields), **self._rest(fields)), count, name)

    def pair_cost(self, fields: Fields, shape: tuple[int, int, int]) -> Tensor:
        """Return the cost, of `shape` (S, T, P), of all pairs of fields (S, P, ...) and, of targets, (S, T, ...)."""
        pairwise = declared(self.module, "pairwise")
        if pairwise is not None and shape[1]:  # without targets their fields may have no inner sizes
            cost: Tensor = pairwise(*self._boxes(fields), **self._rest(fields))
            return cost
        return cost_by_rows(partial(self.rows, name="loc_match_module"), fields, shape)

    def _boxes(self, fields: Fields) -> list[Tensor]:
        return [fields[name] for name in BOXES] if self.takes_boxes else []

    def _rest(self, fields: Fields) -> Fields:
        return {name: x for name, x in fields.items() if name not in BOXES} if self.takes_boxes else fields

    # --- classification

    def class_cost(self, logits: Tensor, targets: Targets) -> Tensor:
        """Return the cost (S, T, P) of (S, P, C) logits against the targets of the same images."""
        labels = targets.labels
        if labels is None or self.takes_one_hot:
            labels = targets.class_matrix(logits.shape[-1], logits.dtype)

        def rows(fields: Fields) -> Tensor:
            count = len(fields["pred_logits"])
            return sum_rows(self.module(fields["pred_logits"], fields["target_labels"]), count, "cls_match_module")

        fields = {"pred_logits": logits, "target_labels": labels}
        return cost_by_rows(rows, fields, (len(logits), labels.shape[1], logits.shape[1]))

    @property
    def takes_one_hot(self) -> bool:
        """Whether rows get one-hot targets even where labels are integers."""
        known = isinstance(self.module, (nn.BCEWithLogitsLoss, nn.BCELoss))
        return known or bool(getattr(self.module, "takes_one_hot", False))

    def class_weight(self, logits: Tensor) -> Tensor | None:
        """Return the class weights (C,) by which the loss of (..., C) logits and its mean are weighted, None for 1.

        Raises:
            ValueError: there is no class for each of the weights.
        """
        module = self.module
        if not isinstance(module, (nn.CrossEntropyLoss, nn.NLLLoss)):
            declared: Tensor | None = getattr(module, "class_weight", None)
            return declared
        ignored, weight = module.ignore_index, module.weight
        if weight is not None and len(weight) != logits.shape[-1]:
            raise ValueError(
                f"pred_logits must have a class for each of the {len(weight)} weights of {module}, "
                f"got {logits.shape[-1]}"
            )
        if 0 <= ignored < logits.shape[-1]:
            weight = logits.new_ones(logits.shape[-1]) if weight is None else weight.clone()
            weight[ignored].zero_()
        return weight

    def values(self, rows: Tensor, labels: ClassLabels) -> Tensor:
        """Return the loss (N,) of (N, C) logits under flat labels, each row times its mass."""
        num_classes, bg_class = rows.shape[1], labels.bg_class
        row, label, mass = labels.entries()
        one_hot = bg_class is None or self.takes_one_hot
        total = rows[:, :0].sum(1)
        if len(row):
            target = F.one_hot(label, num_classes).to(rows.dtype) if one_hot else label
            total = self._add_rows(total, rows, row, target, mass)
        row = (labels.background > 0).nonzero().squeeze(1)
        if len(row):
            target = rows.new_zeros(len(row), num_classes) if one_hot else label.new_full((len(row),), bg_class or 0)
            if one_hot and bg_class is not None:
                target[:, bg_class] = 1
            total = self._add_rows(total, rows, row, target, labels.background[row])
        return total

    def _add_rows(self, total: Tensor, rows: Tensor, row: Tensor, target: Tensor, mass: Tensor) -> Tensor:
        loss = sum_rows(self.module(rows[row], target), len(row), "cls_loss_module")
        return total.to(loss.dtype).index_add(0, row, loss * mass.to(loss.dtype))


class Pair(Adapter):
    """A loss of two boxes that is known for all pairs at once.

    Args:
        module: the loss of aligned rows.
        pairwise: function of (S, P, 4) boxes and (S, T, 4) target boxes that returns their (S, T, P) loss.
    """

    def __init__(self, module: nn.Module, pairwise: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(module)
        self.pairwise = pairwise

    def pair_cost(self, fields: Fields, shape: tuple[int, int, int]) -> Tensor:
        """Return the cost (S, T, P) of all pairs."""
        return self.pairwise(fields["pred_boxes"], fields["target_boxes"])


class RowLoss(Adapter):
    """A classification of which each row depends on nothing but its own logits, and a gradient made with its values."""

    by_row = True

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


class Affine(RowLoss):
    """A loss that is affine in its one-hot target: `Σ_p m·base + ⟨S, gain⟩` with the mass folded onto classes.

    Args:
        module: the loss.
        terms: function of (..., C) logits that returns gain and base.
        of_labels: the (S, T, P) cost of (S, P, C) logits, for integer labels, from a function that picks those of the
            labels from (S, P, C) values; None to pick from the gain.
    """

    def __init__(
        self,
        module: nn.Module,
        terms: Callable[[Tensor], ClassTerms],
        of_labels: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor] | None = None,
    ) -> None:
        super().__init__(module)
        self.terms, self.of_labels = terms, of_labels

    def class_cost(self, logits: Tensor, targets: Targets) -> Tensor:
        """Return the cost (S, T, P) of (S, P, C) logits against the targets of the same images."""
        if self.of_labels is not None and targets.one_hot is None:
            return self.of_labels(logits, targets.pick)
        gain, base = self.terms(logits)
        value = targets.pick(gain)
        return value if base is None else value + base.unsqueeze(1)

    def values(self, rows: Tensor, labels: ClassLabels) -> Tensor:
        """Return the loss (N,) of each row, times its mass."""
        gain, base = self.terms(rows)
        if labels.index is not None:
            index = labels.index.clamp(max=gain.shape[-1] - 1)
            loss = labels.positive * gain.gather(-1, index.unsqueeze(-1)).squeeze(-1)
        else:
            loss = (labels.masses() * gain).sum(-1)
        if labels.bg_class is not None:
            loss = loss + labels.background * gain[..., labels.bg_class]
        # gain and base may be large and cancel: they are added row by row
        return loss if base is None else loss + (labels.positive + labels.background) * base


class Sigmoid(Affine):
    """A loss of each logit on its own: a zero everywhere, and what a one changes at the few positives.

    Args:
        module: the loss.
        terms: function of (..., C) logits that returns gain and base.
        zeros: function of (N, C) logits that returns the loss of a zero at each, and writes its derivative into a
            second tensor; None where that is not known.
    """

    def __init__(
        self,
        module: nn.Module,
        terms: Callable[[Tensor], ClassTerms],
        zeros: Callable[[Tensor, Tensor], Tensor | None],
    ) -> None:
        super().__init__(module, terms)
        self.zeros = zeros

    def write_gradient(self, rows: Tensor, labels: ClassLabels, out: Tensor) -> Tensor:
        """Return the values of `rows`, which need no gradient, and write their gradient into `out`, (N, C)."""
        known = labels.index is not None and labels.bg_class is None
        zeros = self.zeros(rows, out) if known else None
        if zeros is None or labels.index is None:
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
            gain = share * self.terms(leaf).gain.squeeze(1)
            (slope,) = torch.autograd.grad(gain.sum(), leaf)
        out[some, ones] = out[some, ones] + slope.squeeze(1)
        return values.index_add_(0, some, gain.detach())


class Soft(RowLoss):
    """A loss of soft targets, which is not affine in them.

    Args:
        module: the loss.
        of_target: function of (..., C) logits and a `SoftTarget` that returns the loss (...) before its mass.
        by_row: whether the loss of a row reads no other row.
    """

    def __init__(
        self, module: nn.Module, of_target: Callable[[Tensor, SoftTarget], Tensor], *, by_row: bool = True
    ) -> None:
        super().__init__(module)
        self.of_target, self.by_row = of_target, by_row

    def values(self, rows: Tensor, labels: ClassLabels) -> Tensor:
        """Return the loss of each row, times its mass, of flat or whole labels."""
        target = SoftTarget(*(x.to(rows.dtype) for x in labels.soft_target(rows.shape[-1])))
        return target.mass * self.of_target(rows, target)


def sum_rows(loss: Tensor, rows: int, name: str) -> Tensor:
    """Return one value a row from a loss of shape (rows,) or (rows, ...).

    Raises:
        ValueError: the loss has another number of rows.
    """
    if loss.dim() == 0 or loss.shape[0] != rows:
        raise ValueError(f"{name} must return one loss a row, ({rows},) or ({rows}, K), got {tuple(loss.shape)}")
    return loss.flatten(1).sum(1) if loss.dim() > 1 else loss


def spread(values: Tensor, share: float, present: Tensor) -> Tensor:
    """Return (..., C) values of which a share is their mean over the classes that are present, bool."""
    some = values.masked_fill(~present, 0)
    mean = (some / present.sum(-1, keepdim=True).clamp(min=1)).sum(-1, keepdim=True)  # the sum itself may overflow
    return (1 - share) * values + share * (mean * present)


def take_rows(fields: Fields, image: Tensor, pred: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Return the values (N, ...) of fields for (N,) pairs."""
    index = {"target": (image, target), "image": (image,)}
    return {name: value[index.get(name.split("_")[0], (image, pred))] for name, value in fields.items()}


def cost_by_rows(function: Callable[[Fields], Tensor], fields: Fields, shape: tuple[int, int, int]) -> Tensor:
    """Return the cost, of the `shape` (S, T, P), of a function that knows rows only, as many as stay bounded."""
    _, num_targets, preds = shape
    like = next(iter(fields.values()))
    widths = [math.prod(x.shape[1 if name.startswith("image_") else 2 :]) for name, x in fields.items()]
    total = math.prod(shape)
    cost: Tensor | None = None
    for block in blocks.slices(total, max(widths), blocks.MAX_COST_ROW_ELEMENTS):
        pair = torch.arange(block.start, block.stop, device=like.device)
        image, target, pred = pair // (num_targets * preds), pair // preds % num_targets, pair % preds
        loss = function(take_rows(fields, image, pred, target))
        if cost is None:  # at once, for small results among the temporaries would keep those from being given back
            cost = loss.new_empty(total)
        cost[block] = loss
    return (like.new_empty(0) if cost is None else cost).view(shape)


def declared(module: nn.Module, name: str) -> Callable[[], Any] | None:
    """Return a method of a module, unless a subclass has replaced the `forward` that it stands for."""
    for cls in type(module).__mro__:
        if name in vars(cls):
            method: Callable[[], Any] = getattr(module, name)
            return method
        if "forward" in vars(cls):
            return None
    return None
