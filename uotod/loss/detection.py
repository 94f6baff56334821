"""The detection loss: predictions and targets in, the plan's mass times the sub-losses out."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from uotod._batch import AnchorInput, Batch, PredictionDict, parse_batch
from uotod._check import check_choice, check_flag, check_number, check_sub_loss
from uotod._plan import DensePlan, Plan
from uotod._targets import TargetInput
from uotod._tensors import reads_values
from uotod.loss._classify import Classifier, ClassLabels, fold_quality
from uotod.loss._given import given_plan
from uotod.loss._layers import name_terms, per_layer
from uotod.loss._locate import localization_losses
from uotod.loss._quality import Quality, check_quality, pair_quality
from uotod.loss.mining import mine_hard_negatives
from uotod.loss.normalize import Masses, MassNormalizer, Normalizer
from uotod.match._base import Matcher


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
        quality: how good a pair is, which scales the mass that classification sees: "iou" of predicted and target box,
            a callable of both `(N, 4), (N, 4)` that returns `(N,)` in [0, 1], or None for 1. The rest of the mass goes
            to the background of that prediction; localisation keeps the plan's own. It has no gradient, and mining
            comes before it.
        obj_loss_module: loss of `input["pred_objectness"]` with `reduction="none"`: a classification loss for one
            class, `(N, 1)` logits and targets, such as `ObjectnessLoss`. Its target is the positive mass of the
            prediction, and it is divided as localisation is.
        obj_quality: the same as `quality` for the target of objectness.
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
        validate: bool = False,
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        check_choice("reduction", self.reduction, ("mean", "sum"))
        check_sub_loss("cls_loss_module", cls_loss_module)
        check_sub_loss("loc_loss_module", loc_loss_module)
        check_sub_loss("obj_loss_module", obj_loss_module, optional=True)
        if not isinstance(matching_method, Matcher):
            raise TypeError(f"matching_method must be a Matcher, got {matching_method!r}")
        check_choice("bg_class_position", bg_class_position, ("first", "last", "none"))
        if bg_class_position != "none" and not matching_method.background:
            raise ValueError(
                f"bg_class_position={bg_class_position!r} needs a matching_method with background=True, "
                "got one with background=False"
            )
        check_flag("use_hard_negative_mining", use_hard_negative_mining)
        if use_hard_negative_mining != (neg_to_pos_ratio is not None):
            raise ValueError(
                "neg_to_pos_ratio must be given with use_hard_negative_mining=True, and only then, "
                f"got neg_to_pos_ratio={neg_to_pos_ratio} and use_hard_negative_mining={use_hard_negative_mining}"
            )
        if use_hard_negative_mining and not matching_method.background:
            raise ValueError("use_hard_negative_mining=True needs a matching_method with background=True")
        if min_negatives > 0 and not use_hard_negative_mining:
            raise ValueError(f"min_negatives needs use_hard_negative_mining=True, got {min_negatives} without")
        if normalizer is not None and self.reduction == "sum":
            raise ValueError('normalizer needs reduction="mean", got reduction="sum"')
        if normalizer is not None and not isinstance(normalizer, Normalizer):
            raise TypeError(f"normalizer must be a Normalizer, got {normalizer!r}")
        if obj_loss_module is not None and not matching_method.background:
            raise ValueError("obj_loss_module needs a matching_method with background=True")
        if obj_quality is not None and obj_loss_module is None:
            raise ValueError(f"obj_quality needs an obj_loss_module, got {obj_quality!r} without")
        self.cls_loss_module = cls_loss_module
        self.loc_loss_module = loc_loss_module
        self.matching_method = matching_method
        self.bg_class_position = bg_class_position
        self.use_hard_negative_mining = use_hard_negative_mining
        ratio = None if neg_to_pos_ratio is None else check_number("neg_to_pos_ratio", neg_to_pos_ratio, low=0.0)
        self.neg_to_pos_ratio = ratio
        self.min_negatives = check_number("min_negatives", min_negatives, low=0.0)
        self.quality, self.obj_quality = check_quality("quality", quality), check_quality("obj_quality", obj_quality)
        self.obj_loss_module = obj_loss_module
        self.normalizer = MassNormalizer() if normalizer is None else normalizer
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
            anchors: (P, 4) or (B, P, 4) boxes, xyxy, `Anchors` or `Points`, for matchers that need them.
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
        matcher = self.matching_method
        validate = self.validate or matcher.validate
        batch = parse_batch(input, target, anchors, nonfinite=matcher.nonfinite, validate=validate, auxiliary=True)
        bg_class = self._background_class(batch)
        with torch.autocast(batch.predictions.logits.device.type, enabled=False):
            matched = matcher.plan(batch) if plan is None else given_plan(plan, batch, matcher.background, validate)
            return self._terms(batch, matched, bg_class)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return (
            f"bg_class_position={self.bg_class_position!r}, use_hard_negative_mining={self.use_hard_negative_mining}, "
            f"neg_to_pos_ratio={self.neg_to_pos_ratio}, reduction={self.reduction!r}"
        )

    def _background_class(self, batch: Batch) -> int | None:
        """Return the index of the background class; raise if a target is labelled with it."""
        if self.bg_class_position == "none":
            return None
        targets = batch.targets
        if targets.labels is None:
            position = self.bg_class_position
            raise ValueError(
                f"target['labels'] must be integers with bg_class_position={position!r}, got one-hot labels"
            )
        num_classes = batch.predictions.logits.shape[-1]
        bg_class = 0 if self.bg_class_position == "first" else num_classes - 1
        if reads_values(targets.labels, self.validate):
            count = int(((targets.labels == bg_class) & targets.mask).sum()) // batch.predictions.layers
            if count:
                raise ValueError(
                    f"target['labels'] must not hold the background class {bg_class} "
                    f"(bg_class_position={self.bg_class_position!r}), got it for {count} targets"
                )
        return bg_class

    def _terms(self, batch: Batch, plan: Plan, bg_class: int | None) -> dict[str, Tensor]:
        logits, layers = batch.predictions.logits, batch.predictions.layers
        classifier = Classifier(self.cls_loss_module, logits, bg_class, layers)
        positive = plan.positive_mass().sum(1)  # (layers * B,)
        if self.neg_to_pos_ratio is not None:
            kept = mine_hard_negatives(
                plan.background_mass(),
                classifier.background_loss(),
                positive,
                self.neg_to_pos_ratio,
                self.min_negatives,
            )
            plan = plan.with_background(kept)
        background = plan.background_mass().sum(1)
        labels = self._labels(self.quality, batch, plan, logits.shape[-1], bg_class)
        cls = classifier.losses(labels)
        cls_values = torch.stack([per_layer(x.value, layers) for x in cls])  # (K, L, B)
        num_pos, num_neg = per_layer(positive, layers), per_layer(background, layers)  # (L, B)
        obj_values = self._objectness(batch, plan)  # (M, L, B)
        if self.reduction == "mean":
            class_background = torch.stack([per_layer(x.background, layers) for x in cls])
            if bg_class is None or self.use_hard_negative_mining:
                class_background = torch.zeros_like(class_background)
            divisors = self.normalizer(
                Masses(
                    positive=num_pos,
                    background=num_neg,
                    scores=per_layer(labels.positive.sum(1), layers),
                    targets=per_layer(batch.targets.mask.sum(1).to(num_pos.dtype), layers),
                    class_positive=torch.stack([per_layer(x.positive, layers) for x in cls]),
                    class_background=class_background,
                )
            )
            cls_values, obj_values = cls_values / divisors.classification, obj_values / divisors.localization
            # localisation is linear in the mass: dividing that serves divisors of a batch and of an image alike
            plan = _divided(plan, divisors.localization.expand_as(num_pos).flatten())
        cls_sums, obj_sums = cls_values.sum(-1), obj_values.sum(-1)  # (K, L), (M, L)
        loc_sums = torch.stack(localization_losses(self.loc_loss_module, batch, plan))
        terms = {"loss": cls_sums.sum() + loc_sums.sum() + obj_sums.sum()}
        terms |= name_terms("loss_cls", self.cls_loss_module, cls_sums) | name_terms(
            "loss_loc", self.loc_loss_module, loc_sums
        )
        if self.obj_loss_module is not None:
            terms |= name_terms("loss_obj", self.obj_loss_module, obj_sums)
        return terms | {"num_pos": num_pos[-1].sum().detach(), "num_neg": num_neg[-1].sum().detach()}

    def _labels(
        self, quality: Quality | None, batch: Batch, plan: Plan, num_classes: int, bg_class: int | None
    ) -> ClassLabels:
        validate = self.validate or self.matching_method.validate
        return fold_quality(plan, pair_quality(quality, batch, plan, validate), batch.targets, num_classes, bg_class)

    def _objectness(self, batch: Batch, plan: Plan) -> Tensor:
        """Return the loss (M, L, B) of each part of the objectness loss: a classification with one class."""
        layers, objectness = batch.predictions.layers, batch.predictions.objectness
        if self.obj_loss_module is None:
            return batch.predictions.logits.new_zeros(0, layers, 1)
        if objectness is None:
            raise ValueError("input must have the key 'pred_objectness' with an obj_loss_module")
        one_class = replace(batch.targets, labels=torch.zeros_like(batch.targets.mask, dtype=torch.long), one_hot=None)
        labels = self._labels(self.obj_quality, replace(batch, targets=one_class), plan, 1, None)
        losses = Classifier(self.obj_loss_module, objectness.unsqueeze(-1), None, layers).losses(labels)
        return torch.stack([per_layer(x.value, layers) for x in losses])


def _divided(plan: Plan, divisor: Tensor) -> Plan:
    """Divide the mass of each image by its (B,) divisor."""
    if isinstance(plan, DensePlan):
        return replace(plan, positive=plan.positive / divisor[:, None, None])
    return replace(plan, mass=plan.mass / divisor[:, None])
