"""The detection loss: predictions and targets in, the plan's mass times the sub-losses out."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from uotod.check import check_choice, check_flag, check_sub_loss
from uotod.cost.labels import fold_quality
from uotod.criterion.arguments import check_background, check_mining, check_normalizer, check_objectness
from uotod.criterion.background import background_class
from uotod.criterion.classify import Classifier
from uotod.criterion.distill import distillation_losses
from uotod.criterion.given import given_plan
from uotod.criterion.layers import SubLosses, add_terms, check_layer_weights, per_layer
from uotod.criterion.locate import localization_losses
from uotod.criterion.mining import mine_hard_negatives
from uotod.criterion.normalize import Masses, Normalizer
from uotod.criterion.objectness_ import objectness_losses
from uotod.criterion.quality import Quality, check_quality, pair_quality
from uotod.loss.fine_grained import DistillationLoss
from uotod.match.base import Matcher
from uotod.match.union_vote import unite_layers
from uotod.plan import Plan
from uotod.scene.predictions import AnchorInput, PredictionDict, Scene, parse_scene
from uotod.scene.targets import TargetInput


class Matched(NamedTuple):
    """Parsed predictions and targets of all layers, their plan, and the class of the background, if it has one."""

    scene: Scene
    plan: Plan
    bg_class: int | None


class DetectionLoss(_Loss):
    r"""Match predictions to targets and add up the sub-losses, each times the mass of its pair.

    .. math::
        L = \sum_b \sum_{i \le P} \Big[ \sum_{j \le T} \hat P_{ij} \big( L_\text{cls}(\hat c_i, c_j)
            + L_\text{loc}(\hat b_i, b_j) \big) + \hat P_{i\varnothing} L_\text{cls}(\hat c_i, \varnothing) \Big]

    The plan carries no gradient. `reduction="mean"` divides localisation by the positive mass and classification by
    the positive and the background mass, each weighted by its class weight (as `torch.nn.CrossEntropyLoss` does); with
    hard negative mining, or without a background class, the background does not count in that divisor. Divisors are
    at least 1. The losses of decoder layers in `input["aux_outputs"]`, which are matched in the same call, are added.

    Args:
        cls_loss_module: classification loss with `reduction="none"`: one of `torch.nn` or `uotod.loss`, or any module
            of rows `(N, C), (N,)`. Without a background class its targets are one-hot, zeros for the background.
        loc_loss_module: localisation loss with `reduction="none"` on rows of boxes `(N, 4), (N, 4)`, xyxy; four values
            a box are summed.
        matching_method: the matcher.
        bg_class_position: "first" or "last" if the logits have a class for the background there, "none" if they have
            none (sigmoid losses).
        use_hard_negative_mining: keep only the background mass of the hardest predictions of an image.
        neg_to_pos_ratio: background mass kept for a unit of positive mass, with mining.
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: "mean" or "sum".
        min_negatives: background mass kept in an image even without positives, with mining.
        normalizer: what a mean divides by; `MassNormalizer()` by default.
        quality: how good a pair is, in [0, 1], which scales the mass that classification sees; None for 1. "iou" of
            predicted and target box; "centerness" of the prediction's point (or its anchor's centre) in the target
            box, as in FCOS; "score", the largest sigmoid score of the prediction; or a callable of predicted and
            target boxes `(N, 4), (N, 4)` that returns `(N,)`. The rest of the mass goes to the background of that
            prediction. It has no gradient, and mining comes before it.
        obj_loss_module: loss of `input["pred_objectness"]` with `reduction="none"`: a classification loss for one
            class, `(N, 1)` logits and targets, such as `ObjectnessLoss`. Its target is the positive mass of the
            prediction, and it is divided by the positive mass.
        obj_quality: the same as `quality` for the target of objectness.
        loc_quality: the same for the mass that localisation sees, and a mean divides by. What is left goes nowhere.
        loc_union: whether localisation sees the union of the pairs of all decoder layers, as `UnionVote` makes it,
            instead of those of its layer; the matcher must give each prediction to one target or none.
        cls_background: whether classification sees the background mass of the plan, with False matched pairs only.
        obj_background: the same for objectness.
        distillation_module: teaches earlier decoder layers the distributions `input["pred_dist"]` of the final one.
        layer_weights: factors, at least 0, of the decoder layers: those of `aux_outputs` first, that of the final one
            last; all 1 by default. They are in the terms.
        validate: also check values (label range, inverted boxes, finiteness) on a GPU, which synchronises.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range, or a combination has no meaning.

    References:
        De Plaen et al., "Unbalanced optimal transport: a unified framework for object detection", CVPR 2023, eq. 1.

    Examples:
        >>> from uotod.loss import GIoULoss
        >>> from uotod.match import Hungarian
        >>> matcher = Hungarian(loc_match_module=nn.L1Loss(reduction="none"))
        >>> criterion = DetectionLoss(
        ...     cls_loss_module=nn.CrossEntropyLoss(reduction="none"),
        ...     loc_loss_module=GIoULoss(reduction="none"),
        ...     matching_method=matcher,
        ... )
        >>> box = torch.tensor([[[0.0, 0.0, 2.0, 2.0]]])
        >>> target = {"labels": torch.tensor([[1]]), "boxes": box}
        >>> criterion({"pred_logits": torch.zeros(1, 1, 2), "pred_boxes": box}, target)
        tensor(0.6931)
    """

    def __init__(
        self,
        cls_loss_module: nn.Module,
        loc_loss_module: nn.Module,
        matching_method: Matcher,
        bg_class_position: str = "first",
        use_hard_negative_mining: bool = False,
        neg_to_pos_ratio: float | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        *,
        min_negatives: float = 0.0,
        normalizer: Normalizer | None = None,
        quality: Quality | None = None,
        obj_loss_module: nn.Module | None = None,
        obj_quality: Quality | None = None,
        loc_quality: Quality | None = None,
        loc_union: bool = False,
        cls_background: bool = True,
        obj_background: bool = True,
        distillation_module: DistillationLoss | None = None,
        layer_weights: Sequence[float] | None = None,
        validate: bool = False,
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        check_choice("reduction", self.reduction, ("mean", "sum"))
        check_sub_loss("cls_loss_module", cls_loss_module)
        check_sub_loss("loc_loss_module", loc_loss_module)
        check_sub_loss("obj_loss_module", obj_loss_module, optional=True)
        check_choice("bg_class_position", bg_class_position, ("first", "last", "none"))
        check_background(bg_class_position, matching_method, cls_background)
        check_objectness(obj_loss_module, obj_quality, obj_background, matching_method)
        self.neg_to_pos_ratio, self.min_negatives = check_mining(
            use_hard_negative_mining, neg_to_pos_ratio, min_negatives, matching_method, cls_background
        )
        self.normalizer = check_normalizer(normalizer, self.reduction)
        self.cls_loss_module = cls_loss_module
        self.loc_loss_module = loc_loss_module
        self.matching_method = matching_method
        self.bg_class_position = bg_class_position
        self.use_hard_negative_mining = use_hard_negative_mining
        self.obj_loss_module = obj_loss_module
        self.quality = check_quality("quality", quality)
        self.obj_quality = check_quality("obj_quality", obj_quality)
        self.loc_quality = check_quality("loc_quality", loc_quality)
        self.loc_union = check_flag("loc_union", loc_union)
        self.cls_background, self.obj_background = cls_background, obj_background
        if distillation_module is not None and not isinstance(distillation_module, DistillationLoss):
            raise TypeError(f"distillation_module must be a DistillationLoss, got {distillation_module!r}")
        self.distillation_module = distillation_module
        self.layer_weights = check_layer_weights(layer_weights)
        self.validate = check_flag("validate", validate)

    def forward(
        self,
        input: PredictionDict,
        target: TargetInput,
        anchors: AnchorInput | None = None,
        plan: Tensor | None = None,
    ) -> Tensor:
        """Return the loss, a tensor without dimensions.

        Args:
            input: dict with `pred_logits` (B, P, C) and `pred_boxes` (B, P, 4), xyxy; with an `obj_loss_module`
                `pred_objectness` (B, P); optionally `aux_outputs`, a list of such dicts, one for each earlier decoder
                layer.
            target: dict with `labels` (B, T) or one-hot (B, T, C), `boxes` (B, T, 4), xyxy, and optionally `mask`,
                `ignore` and `weight` (B, T), see `Matcher`; or a list of one dict an image.
            anchors: (P, 4) or (B, P, 4) boxes, xyxy, `Anchors` or `Points`, for matchers, sub-losses and qualities
                that need them.
            plan: a plan for all layers that replaces the matcher's, as it is: (B, P, T + 1) masses in the layout of
                the matcher, or (B, P) integers, the target of each prediction, T for the background, -1 for ignored.

        Raises:
            TypeError: an argument or an entry has the wrong type or dtype.
            ValueError: a key is missing, or a shape, a device or a value is wrong.
        """
        return self.terms(input, target, anchors, plan)["loss"]

    def terms(
        self,
        input: PredictionDict,
        target: TargetInput,
        anchors: AnchorInput | None = None,
        plan: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the loss and what it is made of. Arguments as in `forward`.

        Returns:
            "loss"; "loss_cls", "loss_loc" and, with an `obj_loss_module`, "loss_obj", and one term for each part of a
            composite, such as "loss_loc_giou", which add up to those; for the decoder layer `i` of `aux_outputs` the
            same with `_i` behind. "loss" is their sum over all layers. Detached: "num_pos" and "num_neg", the mass
            that the plan gives to targets and to the background in the final layer.
        """
        matched = self.match(input, target, anchors, plan)
        with torch.autocast(matched.scene.logits.device.type, enabled=False):
            return self._terms(*matched, self.validate or self.matching_method.validate)

    def match(
        self,
        input: PredictionDict,
        target: TargetInput,
        anchors: AnchorInput | None = None,
        plan: Tensor | None = None,
    ) -> Matched:
        """Return what the terms of the loss are made of, and measures beside it too. Arguments as in `forward`."""
        matcher = self.matching_method
        validate = self.validate or matcher.validate
        scene = parse_scene(input, target, anchors, nonfinite=matcher.nonfinite, validate=validate, auxiliary=True)
        bg_class = background_class(self.bg_class_position, scene, validate)
        matched = matcher.scene_plan(scene) if plan is None else given_plan(plan, scene, matcher.background, validate)
        return Matched(scene, matched, bg_class)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return (
            f"bg_class_position={self.bg_class_position!r}, use_hard_negative_mining={self.use_hard_negative_mining}, "
            f"neg_to_pos_ratio={self.neg_to_pos_ratio}, reduction={self.reduction!r}, "
            f"quality={self.quality!r}, obj_quality={self.obj_quality!r}, loc_quality={self.loc_quality!r}, "
            f"cls_background={self.cls_background}, obj_background={self.obj_background}, "
            f"loc_union={self.loc_union}, layer_weights={self.layer_weights}"
        )

    def _terms(self, scene: Scene, plan: Plan, bg_class: int | None, validate: bool) -> dict[str, Tensor]:
        logits, layers = scene.logits, scene.layers
        classifier = Classifier(self.cls_loss_module, logits, bg_class, layers)
        plan = self._mined(plan, classifier)

        def quality_of(name: str, quality: Quality | None, seen: Plan) -> Tensor | None:
            return pair_quality(name, quality, scene, seen, bg_class, validate)

        cls_plan = plan if self.cls_background else _without_background(plan)
        quality = quality_of("quality", self.quality, plan)
        labels = fold_quality(cls_plan, quality, scene.targets, logits.shape[-1], bg_class)
        obj_plan = plan if self.obj_background else _without_background(plan)
        obj_quality = quality_of("obj_quality", self.obj_quality, plan)
        obj_losses = objectness_losses(self.obj_loss_module, scene, obj_plan, obj_quality)  # (M, L, B)
        loc_plan = unite_layers(plan, layers, "loc_union=True", self.matching_method) if self.loc_union else plan
        loc_quality = quality_of("loc_quality", self.loc_quality, loc_plan)
        loc_plan = loc_plan if loc_quality is None else loc_plan.scaled(loc_quality)

        num_pos = per_layer(plan.positive_mass().sum(1), layers)  # (L, B)
        num_neg = per_layer(plan.background_mass().sum(1), layers)
        cls_divisor: Tensor | None = None
        loc_divisor: Tensor | None = None
        if self.reduction == "mean":
            class_positive, class_background = (x.view(len(x), *num_pos.shape) for x in classifier.masses(labels))
            if bg_class is None or self.use_hard_negative_mining:
                class_background = torch.zeros_like(class_background)
            masses = Masses(
                positive=num_pos,
                background=num_neg,
                scores=num_pos if quality is None else per_layer(labels.positive.sum(1), layers),
                targets=per_layer(scene.mask.sum(1).to(num_pos.dtype), layers),
                class_positive=class_positive,
                class_background=class_background,
                localization=num_pos if loc_plan is plan else per_layer(loc_plan.positive_mass().sum(1), layers),
            )
            divisors = self.normalizer(masses)
            cls_divisor = divisors.classification.expand_as(class_positive).flatten(1)
            loc_divisor = divisors.localization.expand_as(num_pos).flatten()
            obj_losses = obj_losses / divisors.of_objectness
        cls_losses = classifier.losses(labels, cls_divisor)
        cls_losses = cls_losses.view(len(cls_losses), *num_pos.shape)  # (K, L, B)
        loc_losses = torch.stack(localization_losses(self.loc_loss_module, scene, loc_plan, loc_divisor))  # (N, L)
        losses = [
            SubLosses("loss_cls", self.cls_loss_module, cls_losses.sum(-1)),
            SubLosses("loss_loc", self.loc_loss_module, loc_losses),
        ]
        if self.obj_loss_module is not None:
            losses.append(SubLosses("loss_obj", self.obj_loss_module, obj_losses.sum(-1)))
        if self.distillation_module is not None:
            values = distillation_losses(self.distillation_module, scene, loc_plan, validate)
            losses.append(SubLosses("loss_dist", self.distillation_module, values))
        counts = {"num_pos": num_pos[-1].sum().detach(), "num_neg": num_neg[-1].sum().detach()}
        return add_terms(losses, self.layer_weights) | counts

    def _mined(self, plan: Plan, classifier: Classifier) -> Plan:
        """Return the plan with the background mass of hard negatives only, if there is mining."""
        if self.neg_to_pos_ratio is None:
            return plan
        background, num_pos = plan.background_mass(), plan.positive_mass().sum(1)
        loss = classifier.background_loss()
        kept = mine_hard_negatives(background, loss, num_pos, self.neg_to_pos_ratio, self.min_negatives)
        return plan.with_background(kept)


def _without_background(plan: Plan) -> Plan:
    return plan.with_background(torch.zeros_like(plan.background_mass()))
