"""The terms of a criterion: a plan and a scene in, what each term sees, counts and loses out."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from uotod.check import Described, check_flag, check_sub_loss
from uotod.cost.adapters import Adapting, Part
from uotod.cost.classes import background_losses, class_losses, class_masses
from uotod.cost.labels import ClassLabels, fold
from uotod.cost.matched import matched_losses, reads_of
from uotod.criterion.quality import Quality, check_quality, pair_quality, quality_reads
from uotod.plan import Plan
from uotod.scene.scene import Scene
from uotod.solvers.vote import unite_layers


class Term(Described, Adapting, ABC):
    """One term of a criterion, which `DetectionLoss.terms` reports under its name, as "loss_cls" for "cls".

    A subclass implements `losses`; the rest has a default: a term that sees the plan as it is, and counts the mass on
    targets.

    Attributes:
        name: what the term is called.
        needs: fields that it reads, beside boxes: `pred_...`, `target_...` and `image_...`.
        is_mean: whether its losses are a mean already, which nothing divides.
    """

    name: str
    is_mean: ClassVar[bool] = False

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields that the term reads."""
        return ()

    @property
    def needs_background(self) -> bool:
        """Whether the term has no meaning without a background in the plan."""
        return False

    @property
    def parts(self) -> tuple[Part, ...]:
        """The weighted sub-losses of the attribute `module`, if it has one, whose losses are reported by name."""
        return self.adapted.get("module", ())

    def sees(self, plan: Plan, scene: Scene) -> Plan:
        """Return what the term sees of a plan."""
        return plan

    def masses(self, seen: Plan, plan: Plan, scene: Scene) -> list[Tensor]:
        """Return what the term counts: a mass (S,) for the number of its positives, what it sees, and of each part.

        Args:
            seen: what it sees of the plan.
            plan: the plan.
            scene: predictions and targets.
        """
        mass = seen.positive.sum(1)
        return [mass] * (2 + max(len(self.parts), 1))

    @abstractmethod
    def losses(self, seen: Plan, scene: Scene, divisor: Tensor) -> Tensor:
        """Return the loss (parts, L, B) of each part, decoder layer and image.

        Args:
            seen: what the term sees of the plan.
            scene: predictions and targets.
            divisor: (parts or 1, L, B or 1) by which the loss is to be divided.
        """


class Classification(Term):
    """The loss of `pred_logits` under the labels of targets, onto which the plan is folded.

    Args:
        module: classification loss with `reduction="none"`: one of `torch.nn` or `uotod.loss`, or any module of rows
            `(N, C), (N,)`. Without a background class its targets are one-hot, zeros for the background.
        quality: how good a pair is, in [0, 1], which scales its mass; the rest of it goes to the background of the
            prediction. "iou" of predicted and target box; "centerness" of the prediction's point (or its anchor's
            centre) in the target box, as in FCOS; "score", the largest sigmoid score of the prediction; or a callable
            of predicted and target boxes `(N, 4), (N, 4)` that returns `(N,)`; None for 1. It has no gradient.
        background: whether it sees the background mass of the plan; with False matched pairs only.
    """

    name = "cls"

    def __init__(self, module: nn.Module, *, quality: Quality | None = None, background: bool = True) -> None:
        super().__init__()
        check_sub_loss(f"{self.name}_loss_module", module)
        self.module = module
        self.quality = check_quality("quality", quality)
        self.background = check_flag("background", background)

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields that the quality reads."""
        return quality_reads(self.quality)

    def sees(self, plan: Plan, scene: Scene) -> Plan:
        """Return the plan whose masses are scaled by the quality of their pairs."""
        quality = pair_quality("quality", self.quality, scene, plan)
        seen = plan if self.background else plan.with_background(torch.zeros_like(plan.background_mass()))
        return seen if quality is None else seen.scaled(quality, rest_to_background=True)

    def masses(self, seen: Plan, plan: Plan, scene: Scene) -> list[Tensor]:
        """Return the mass on targets before and after the quality, and for each part that times class weights."""
        positives = plan.positive.sum(1)
        found = positives if self.quality is None else seen.positive.sum(1)
        weights = [part.adapter.class_weight(scene.logits) for part in self.parts]
        counts_background = scene.bg_class is not None and not scene.is_mined
        if all(weight is None for weight in weights):
            each = found + seen.background_mass().sum(1) if counts_background else found
            return [positives, found, *[each] * len(weights)]
        labels = self._labels(seen, scene)
        return [positives, found, *class_masses(weights, labels, counts_background)]

    def losses(self, seen: Plan, scene: Scene, divisor: Tensor) -> Tensor:
        """Return the loss (parts, L, B)."""
        labels, logits = self._labels(seen, scene), self._logits(scene)
        divisor = divisor.expand(-1, scene.layers, scene.images).flatten(1)
        losses = class_losses(self.parts, logits, labels, divisor, scene.layers)
        losses = scene.where_given(self.needs, losses)
        return losses.view(len(losses), scene.layers, scene.images)

    def background_losses(self, scene: Scene) -> Tensor:
        """Return the loss (S, P) of calling each prediction background."""
        return background_losses(self.parts, self._logits(scene), scene.bg_class, scene.layers)

    def _logits(self, scene: Scene) -> Tensor:
        return scene.logits

    def _labels(self, seen: Plan, scene: Scene) -> ClassLabels:
        return fold(seen, scene.targets, scene.logits.shape[-1], scene.bg_class)


class Objectness(Classification):
    """The loss of `pred_objectness` (B, P) under the positive mass of the prediction.

    Args:
        module: loss with `reduction="none"`, a classification loss for one class, `(N, 1)` logits and targets, such as
            `ObjectnessLoss`. Its target is the positive mass of the prediction, and it is divided by the positive mass.
        quality: as for `Classification`, for the target of objectness.
        background: as for `Classification`.
    """

    name = "obj"

    @property
    def needs(self) -> tuple[str, ...]:
        """The objectness, and what the quality reads."""
        return ("pred_objectness", *quality_reads(self.quality))

    @property
    def needs_background(self) -> bool:
        """Whether the plan must have a background."""
        return self.background

    def masses(self, seen: Plan, plan: Plan, scene: Scene) -> list[Tensor]:
        """Return the mass on targets, whatever their quality."""
        return [plan.positive.sum(1)] * (2 + len(self.parts))

    def background_losses(self, scene: Scene) -> Tensor:
        """Return the loss (S, P) of calling each prediction background."""
        return background_losses(self.parts, self._logits(scene), None, scene.layers)

    def _logits(self, scene: Scene) -> Tensor:
        return scene.field("pred_objectness", self).unsqueeze(-1)

    def _labels(self, seen: Plan, scene: Scene) -> ClassLabels:
        labels = torch.zeros_like(scene.mask, dtype=torch.long)
        return fold(seen, replace(scene.targets, labels=labels, one_hot=None), 1, None)


class Localization(Term):
    """The loss of matched pairs: of predicted and target boxes, or of the fields that its module declares.

    Args:
        module: loss with `reduction="none"` of aligned rows, of boxes `(N, 4), (N, 4)`, xyxy, or of what its attribute
            `needs` names; several values a pair are summed.
        quality: as for `Classification`; it scales the mass of the pair, and what a mean divides by. What is left goes
            nowhere.
        union: see the union of the pairs of all decoder layers, as `UnionVote` makes it, instead of those of its layer.
        name: what the term is called.
    """

    def __init__(
        self, module: nn.Module, *, quality: Quality | None = None, union: bool = False, name: str = "loc"
    ) -> None:
        super().__init__()
        check_sub_loss(f"{name}_loss_module", module)
        self.module = module
        self.quality = check_quality("quality", quality)
        self.union = check_flag("union", union)
        self.name = name

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields that the sub-losses and the quality read."""
        return (*reads_of(self.parts), *quality_reads(self.quality))

    def sees(self, plan: Plan, scene: Scene) -> Plan:
        """Return the plan, or the union of the layers, whose masses are scaled by the quality of their pairs."""
        seen = unite_layers(plan, scene.layers, scene.valid_preds) if self.union else plan
        quality = pair_quality("quality", self.quality, scene, seen)
        return seen if quality is None else seen.scaled(quality)

    def losses(self, seen: Plan, scene: Scene, divisor: Tensor) -> Tensor:
        """Return the loss (parts, L, B)."""
        divisor = divisor.expand(-1, scene.layers, scene.images).flatten(1)
        losses = matched_losses(self.parts, scene, seen, divisor, f"{self.name}_loss_module")
        return losses.view(len(losses), scene.layers, scene.images)


class Distillation(Term):
    """Teach earlier decoder layers the distributions `pred_dist` of the final one, as D-FINE does.

    A matched prediction counts by the IoU of its pair, that of several by their mean, weighted with the mass.

    Args:
        module: loss of student, teacher, the teacher's logits and the quality of each prediction, NaN without a match,
            such as `DistillationLoss`; it is a mean, which nothing divides. Where `pred_valid` is given, it gets that
            (B, P) of the layer as well.
        union: see the union of the pairs of all decoder layers.
    """

    name = "dist"
    is_mean = True

    def __init__(self, module: nn.Module, *, union: bool = False) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, got {module!r}")
        self.module = module
        self.union = check_flag("union", union)

    @property
    def needs(self) -> tuple[str, ...]:
        """The distributions, and what the quality of a pair reads."""
        return ("pred_dist", *quality_reads("iou"))

    def sees(self, plan: Plan, scene: Scene) -> Plan:
        """Return the plan, or the union of the layers."""
        return unite_layers(plan, scene.layers, scene.valid_preds) if self.union else plan

    def losses(self, seen: Plan, scene: Scene, divisor: Tensor) -> Tensor:
        """Return the loss (1, L, 1) of each layer; that of the final one is 0."""
        dist, layers, mass = scene.field("pred_dist", self), scene.layers, seen.positive
        quality = pair_quality("quality", "iou", scene, seen)
        assert quality is not None
        mean = (seen.mass * quality).sum(1) / torch.where(mass > 0, mass, 1)
        quality = mean.masked_fill(mass <= 0, float("nan"))
        *students, teacher = dist.chunk(layers)
        logits, zero = scene.logits.chunk(layers)[-1], dist[..., :0].sum()
        valid: list[tuple[Tensor, ...]] = [()] * layers
        if scene.valid_preds is not None:
            valid = [(x,) for x in scene.valid_preds.chunk(layers)]
        found = [
            self.module(x, teacher, logits, q, *padding)
            for x, q, padding in zip(students, quality.chunk(layers), valid, strict=False)
        ]
        losses = torch.stack([*found, zero])[None]
        return scene.where_given(self.needs, losses).unsqueeze(-1)
