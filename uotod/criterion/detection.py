"""The detection loss: predictions and targets in, the plan's mass times the sub-losses out."""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from uotod.check import Described, check_choice, check_flag, check_integer, check_number
from uotod.criterion.describe import describe_matched
from uotod.criterion.fit import check_matcher, check_mining, check_normalizer, check_terms
from uotod.criterion.masses import Masses, share_masses
from uotod.criterion.normalize import Normalizer
from uotod.criterion.starved import count_starved
from uotod.criterion.terms import Classification, Localization, Term
from uotod.criterion.totals import check_layer_weights, name_terms, weigh_layers
from uotod.match.base import Matcher
from uotod.plan import Plan, parse_plan
from uotod.scene.formats import BOX_FORMATS
from uotod.scene.keys import check_input_keys, check_target_keys
from uotod.scene.padding import COST_LABELS, CROWD, MISSING
from uotod.scene.predictions import INPUT_KEYS, PredictionDict
from uotod.scene.scene import AnchorInput, Scene, parse_scene
from uotod.scene.targets import TargetInput
from uotod.scene.units import check_units
from uotod.solvers.mining import mine_hard_negatives

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

PlanInput = Tensor | Plan


class Matched(NamedTuple):
    """What the losses are made of, for S stacked images.

    Attributes:
        scene: parsed predictions and targets of all decoder layers.
        plan: their plan, with hard negatives only if there is mining.
        seen: what each term sees of it.
        masses: what each term counts, of each image.
    """

    scene: Scene
    plan: Plan
    seen: tuple[Plan, ...]
    masses: Masses


class DetectionLoss(Described, _Loss):
    r"""Match predictions to targets and add up the sub-losses, each times the mass of its pair.

    .. math::
        L = \sum_b \sum_{i \le P} \Big[ \sum_{j \le T} \hat P_{ij} \big( L_\text{cls}(\hat c_i, c_j)
            + L_\text{loc}(\hat b_i, b_j) \big) + \hat P_{i\varnothing} L_\text{cls}(\hat c_i, \varnothing) \Big]

    The plan carries no gradient. `reduction="mean"` divides localisation by the positive mass and classification by
    the positive and the background mass, each weighted by its class weight (as `torch.nn.CrossEntropyLoss` does); with
    hard negative mining, or without a background class, the background does not count in that divisor. Divisors are
    at least 1. The losses of decoder layers in `input["aux_outputs"]`, which are matched in the same call, are added.

    Args:
        cls_loss_module: classification loss with `reduction="none"`, see `Classification`, which says more; a `Term`
            in its place, or None for none.
        loc_loss_module: localisation loss with `reduction="none"` on rows of boxes `(N, 4), (N, 4)`, xyxy, see
            `Localization`, which says more; a `Term` in its place, or None for none.
        matching_method: the matcher.
        bg_class_position: "first" or "last" if the logits have a class for the background there, "none" if they have
            none (sigmoid losses).
        use_hard_negative_mining: keep only the background mass of the hardest predictions of an image.
        neg_to_pos_ratio: background mass kept for a unit of positive mass, with mining.
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: "mean" or "sum".
        extra_terms: further terms, such as `Objectness`, `Distillation` or a `Term` of one's own.
        min_negatives: background mass kept in an image even without positives, with mining.
        normalizer: what a mean divides by; `MassNormalizer()` by default.
        num_classes: number of classes without the background, which is compared with the logits; None for any.
        box_format: "cxcywh" or "xywh" if `pred_boxes` and `target["boxes"]` are that; None for xyxy. The matcher must
            have the same.
        target_format: the same of `target["boxes"]` where it differs, "xyxy" included; None for `box_format`.
        layer_weights: factors, at least 0, of the decoder layers: those of `aux_outputs` first, that of the final one
            last; all 1 by default. They are in the terms.
        process_group: ranks of `torch.distributed` over which a normaliser with `distributed=True` averages; None for
            all. It may be assigned later, and a pickle cannot hold it.
        unit_boxes: whether target boxes are fractions of the image: those that are plainly not, as pixels, raise.
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

    wrapped: dict[str, tuple[Term, ...]]

    def __init__(
        self,
        cls_loss_module: nn.Module | None,
        loc_loss_module: nn.Module | None,
        matching_method: Matcher,
        bg_class_position: str = "first",
        use_hard_negative_mining: bool = False,
        neg_to_pos_ratio: float | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        *,
        extra_terms: Sequence[Term] = (),
        min_negatives: float = 0.0,
        normalizer: Normalizer | None = None,
        num_classes: int | None = None,
        box_format: str | None = None,
        target_format: str | None = None,
        layer_weights: Sequence[float] | None = None,
        process_group: "ProcessGroup | None" = None,
        unit_boxes: bool = False,
        validate: bool = False,
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        check_choice("reduction", self.reduction, ("mean", "sum"))
        check_choice("box_format", box_format, (None, *BOX_FORMATS))
        check_choice("target_format", target_format, (None, *BOX_FORMATS, "xyxy"))
        check_matcher(matching_method, box_format)
        for index, term in enumerate(extra_terms):
            if not isinstance(term, Term):
                raise TypeError(f"extra_terms[{index}] must be a Term, got {term!r} of type {type(term).__name__}")
        self.cls_loss_module = cls_loss_module
        self.loc_loss_module = loc_loss_module
        self.extra_terms = nn.ModuleList(extra_terms)
        self.matching_method = matching_method
        self.bg_class_position = check_choice("bg_class_position", bg_class_position, ("first", "last", "none"))
        self.use_hard_negative_mining = check_flag("use_hard_negative_mining", use_hard_negative_mining)
        ratio = neg_to_pos_ratio
        self.neg_to_pos_ratio = None if ratio is None else check_number("neg_to_pos_ratio", ratio, low=0.0)
        self.min_negatives = check_number("min_negatives", min_negatives, low=0.0)
        self.normalizer = check_normalizer(normalizer, self.reduction)
        self.num_classes = None if num_classes is None else check_integer("num_classes", num_classes, low=1)
        self.box_format, self.target_format = box_format, target_format
        self.layer_weights = check_layer_weights(layer_weights)
        self.process_group = process_group
        self.unit_boxes = check_flag("unit_boxes", unit_boxes)
        self.validate = check_flag("validate", validate)
        self._check_fit()

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a sub-loss becomes a term, and what does not fit the rest leaves all as it was."""
        wrapped = made = self.__dict__.get("wrapped", {})
        if name in _TERMS:
            term = value if value is None or isinstance(value, Term) else _TERMS[name](value)
            made = wrapped | {name: () if term is None else (term,)}
        before = self.__dict__.get("_modules", {}).get(name)
        super().__setattr__(name, value)
        self.__dict__["wrapped"] = made
        if name in _PARTS and "validate" in self.__dict__:  # once the criterion is complete
            try:
                self._check_fit()
            except (TypeError, ValueError):
                super().__setattr__(name, before)
                self.__dict__["wrapped"] = wrapped
                raise

    def __deepcopy__(self, memo: dict[int, Any]) -> "DetectionLoss":
        """Return a copy in the same process group, of which there are no copies."""
        memo[id(self.process_group)] = self.process_group
        copy = memo[id(self)] = type(self).__new__(type(self))
        copy.__dict__.update(deepcopy(self.__dict__, memo))
        return copy

    @property
    def all_terms(self) -> tuple[Term, ...]:
        """The terms of the loss: classification, localisation and the extra ones."""
        return (*self.wrapped["cls_loss_module"], *self.wrapped["loc_loss_module"], *self.extra_terms)

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields that the matcher and the terms read, of those that not everyone reads."""
        terms = (name for term in self.all_terms for name in term.needs)
        return tuple(dict.fromkeys((*self.matching_method.needs, *terms)))

    def forward(
        self,
        input: PredictionDict,
        target: TargetInput,
        anchors: AnchorInput | None = None,
        plan: PlanInput | None = None,
        masses: Masses | None = None,
    ) -> Tensor:
        """Return the loss, a tensor without dimensions.

        Args:
            input: dict with `pred_logits` (B, P, C) and, where something reads them, `pred_boxes` (B, P, 4), xyxy, and
                further fields `pred_...`; optionally `aux_outputs`, a list of such dicts, one for each earlier decoder
                layer, and `pred_valid` (B, P) and `image_class_mask` (B, C), bool, False for padded predictions and for
                classes that an image lacks, neither of which has a loss.
            target: dict with `labels` (B, T) or one-hot (B, T, C), `boxes` (B, T, 4), xyxy, and optionally `mask`,
                `ignore`, `cost_weight` and `loss_weight` (B, T), and `cost_labels`, which the loss does not read, see
                `Matcher`; or a list of one dict an image.
            anchors: (P, 4) or (B, P, 4) boxes, xyxy, `Anchors` or `Points`, for matchers, sub-losses and qualities
                that need them.
            plan: a plan for all layers that replaces the matcher's, as it is: (B, P, T + 1) masses in the layout of
                the matcher, (B, P) integers, the target of each prediction, T for the background, -1 for ignored, or a
                `Plan`.
            masses: what the normaliser divides by, instead of the masses of this call; nothing is shared over ranks
                then. Those of `masses` for all micro-batches together give each the gradient that it has in the whole.

        Raises:
            TypeError: an argument or an entry has the wrong type or dtype.
            ValueError: a key is missing, or a shape, a device or a value is wrong.
        """
        return self.terms(input, target, anchors, plan, masses)["loss"]

    def terms(
        self,
        input: PredictionDict,
        target: TargetInput,
        anchors: AnchorInput | None = None,
        plan: PlanInput | None = None,
        masses: Masses | None = None,
    ) -> dict[str, Tensor]:
        """Return the loss and what it is made of. Arguments as in `forward`.

        Returns:
            "loss"; "loss_cls", "loss_loc" and those of extra terms, and one for each part of a composite, such as
            "loss_loc_giou", which add up to those; for the decoder layer `i` of `aux_outputs` the same with `_i`
            behind. "loss" is their sum over all layers. Detached, of the final layer: "num_pos" and "num_neg", the mass
            that the plan gives to targets and to the background; and "num_starved", the number of targets, neither
            padded nor ignored, with less than half a unit of mass, of which a `StarvedTargetsWarning` tells on the CPU.
        """
        matched = self.match(input, target, anchors, plan)
        (shares,) = share_masses([self], [matched], None if masses is None else [masses])
        return self.lose(matched, *shares)

    def masses(
        self,
        input: PredictionDict,
        target: TargetInput,
        anchors: AnchorInput | None = None,
        plan: PlanInput | None = None,
    ) -> Masses:
        """Return what a normaliser divides by, summed over the images of this process; add those of micro-batches.

        Arguments as in `forward`. Without gradient, and without a word to other ranks.
        """
        with torch.no_grad():
            return self.match(input, target, anchors, plan).masses.total()

    @torch.no_grad()
    def describe(self, input: PredictionDict, target: TargetInput, anchors: AnchorInput | None = None) -> str:
        """Return what the criterion makes of a batch, in words: a dry run. Arguments as in `forward`.

        Formats, dtypes and ranges; the keys that are read and those that are not; the mass that targets get, and how
        many get little; the shares of the plan; and what each term is divided by. It has no gradient, leaves no trace,
        and exchanges nothing with other ranks.
        """
        return describe_matched(self, self.match(input, target, anchors), input, target)

    def match(
        self,
        input: PredictionDict,
        target: TargetInput,
        anchors: AnchorInput | None = None,
        plan: PlanInput | None = None,
        *,
        name: str = "input",
        known: Sequence[str] = (),
    ) -> Matched:
        """Return what the losses are made of, and measures beside them too. Arguments as in `forward`.

        `name` is what errors call the input, and `known` are keys that others read.
        """
        matcher, terms = self.matching_method, self.all_terms
        validate = self.validate or matcher.validate
        needs = self.needs
        check_input_keys(name, input, {*INPUT_KEYS, *needs, *known})
        check_target_keys(target, {*_TARGET_KEYS, *(x.removeprefix("target_") for x in needs)})
        scene = parse_scene(
            input,
            target,
            anchors,
            needs,
            nonfinite=matcher.nonfinite,
            validate=validate,
            auxiliary=True,
            box_format=self.box_format,
            target_format=self.target_format,
            classes=None if self.num_classes is None else (self.num_classes, self.bg_class_position != "none"),
        ).with_background(self.bg_class_position, self.use_hard_negative_mining)
        check_units(scene, self.unit_boxes)
        with torch.no_grad(), torch.autocast(scene.logits.device.type, enabled=False):
            if plan is None:
                found = matcher.scene_plan(scene)
            else:
                like, mask = scene.logits[: scene.images], scene.mask[: scene.images]
                found = parse_plan(plan, mask, like, matcher.background, validate).repeat(scene.layers)
                scene.check_plan(found.positive)
            found = self._mined(found.only(scene.valid_preds), scene)
            seen = tuple(term.sees(found, scene) for term in terms)
            return self._weighted(Matched(scene, found, seen, self._masses(scene, found, seen)))

    def lose(self, matched: Matched, own: Masses, shared: Masses) -> dict[str, Tensor]:
        """Return the terms of the loss, divided by sums of masses: those of this process, and those of all ranks."""
        scene, _, seen, local = matched
        losses: dict[Term, Tensor] = {}
        with torch.autocast(scene.logits.device.type, enabled=False):
            for term, plan in zip(self.all_terms, seen, strict=True):
                divisor = scene.logits.new_ones(1, 1, 1)
                if self.reduction == "mean" and not term.is_mean:
                    divisor = self.normalizer(term.name, local, own, shared).to(scene.logits.device)
                    divisor = divisor if divisor.dim() == 3 else divisor[None]
                losses[term] = term.losses(plan, scene, divisor).sum(-1)  # (parts, L)
        if self.matching_method.nonfinite == "propagate":
            # by a product, for the gradient must not be finite either, or a scaler would take the step
            sums = [x.sum() for x in losses.values()]
            finite = scene.finite.all() & torch.stack([*sums, scene.logits.new_zeros(())]).isfinite().all()
            losses = {term: x * torch.where(finite, 1.0, math.nan).to(x.dtype) for term, x in losses.items()}
        if self.layer_weights is not None:
            losses = {term: weigh_layers(x, self.layer_weights) for term, x in losses.items()}
        total = torch.stack([x.sum() for x in losses.values()]).sum() if losses else scene.logits.new_zeros(())
        terms = {"loss": total}
        for term, values in losses.items():
            terms |= name_terms(term, values)
        counts = {"num_pos": local.of("positive")[-1].sum(), "num_neg": local.of("background")[-1].sum()}
        return terms | counts | {"num_starved": count_starved(matched.plan, scene)}

    def count_parts(self) -> dict[str, int]:
        """Return the number of parts of each term, 1 for one without; the masses have a row of each."""
        return {term.name: max(len(term.parts), 1) for term in self.all_terms}

    def set_step(self, step: int) -> None:
        """Set the step of training at which schedules are read; see `Matcher.set_step`."""
        self.matching_method.set_step(step)

    def _masses(self, scene: Scene, plan: Plan, seen: tuple[Plan, ...]) -> Masses:
        positive, background = plan.positive.sum(1), plan.background_mass().sum(1)
        rows = [
            torch.ones_like(positive),
            scene.mask.sum(1).to(positive),
            positive,
            positive.clamp(min=1),
            background,
        ]
        for term, own in zip(self.all_terms, seen, strict=True):
            rows += term.masses(own, plan, scene)
        shape = (len(rows), scene.layers, scene.images)
        return Masses(torch.stack(rows).view(shape), self.count_parts())

    def _weighted(self, matched: Matched) -> Matched:
        """Return what the losses are made of with the mass of targets times their `loss_weight`, uncounted."""
        weight = matched.scene.targets.loss_weight
        if weight is None:
            return matched
        plan = matched.plan.weighted(weight)
        return matched._replace(seen=tuple(term.sees(plan, matched.scene) for term in self.all_terms))

    def _mined(self, plan: Plan, scene: Scene) -> Plan:
        """Return the plan with the background mass of hard negatives only, if there is mining."""
        if self.neg_to_pos_ratio is None:
            return plan
        loss = self.wrapped["cls_loss_module"][0]
        assert isinstance(loss, Classification)
        background, num_pos = plan.background_mass(), plan.positive.sum(1)
        hardness = loss.background_losses(scene)
        kept = mine_hard_negatives(background, hardness, num_pos, self.neg_to_pos_ratio, self.min_negatives)
        return plan.with_background(kept)

    def _check_fit(self) -> None:
        check_matcher(self.matching_method, self.box_format)
        check_terms(self.all_terms, self.matching_method, self.bg_class_position)
        cls = self.wrapped["cls_loss_module"]
        mines, ratio = self.use_hard_negative_mining, self.neg_to_pos_ratio
        check_mining(mines, ratio, self.min_negatives, self.matching_method, cls[0] if cls else None)


_TERMS: Mapping[str, type[Classification] | type[Localization]] = {
    "cls_loss_module": Classification,
    "loc_loss_module": Localization,
}
_PARTS = (*_TERMS, "extra_terms", "matching_method")
_TARGET_KEYS = ("labels", "boxes", COST_LABELS, CROWD, *MISSING)
