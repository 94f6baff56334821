"""The matcher's contract: predictions and targets become a cost, and one method turns the cost into a plan."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from uotod.check import check_choice, check_flag, check_number, check_sub_loss, is_transformed
from uotod.cost.adapters import Adapting
from uotod.cost.matched import reads_of
from uotod.cost.padded import forbid_padding, plan_of_valid
from uotod.cost.pairwise import Cost, parse_class_weight, parse_cost
from uotod.geometry.anchors import Locations
from uotod.match.ignore import ignore_background
from uotod.match.schedule import Schedule, Scheduled
from uotod.plan import Plan
from uotod.scene.formats import BOX_FORMATS
from uotod.scene.predictions import PredictionDict
from uotod.scene.scene import AnchorInput, Scene, parse_scene
from uotod.scene.targets import TargetInput
from uotod.solvers.opaque import on_values, plan_of_values

if TYPE_CHECKING:
    from typing_extensions import Self


def shared(owner: type[nn.Module], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a constructor's arguments that the constructor of the class `owner` takes, too.

    Every constructor writes its options out, so that its signature shows them and a misspelt one is an error of the
    class that was called; `super().__init__(**shared(owner, locals()))` hands on what it does not read itself.
    """
    return {name: arguments[name] for name in inspect.signature(owner).parameters if name in arguments}


class Matcher(Scheduled, Adapting):
    """Match predictions to targets: the base class of every matching rule.

    The cost of the pair of prediction `i` and target `j` is `L_cls(ĉ_i, c_j) + L_loc(b̂_i, b_j)`, and that of the
    background, in the last column, is constant. A subclass implements `compute_matching`.

    Args:
        cls_match_module: classification cost, a loss module with `reduction="none"`. A module of rows gets integer
            labels, or one-hot ones if the targets are or if it has the attribute `takes_one_hot = True`.
        loc_match_module: localisation cost, a loss module with `reduction="none"`; four values a box are summed.
        background: whether cost and plan have a background column.
        background_cost: cost of matching a prediction to the background; a number, or a schedule: a callable that
            returns one for the step given to `set_step`.
        is_anchor_based: compute the localisation cost of the anchors instead of the predicted boxes. Otherwise
            only the rules of anchors and points read those that are given; the others check them.
        nonfinite: what to do with NaN or infinite predictions, and boxes whose areas overflow. "error" raises;
            "propagate" matches them only if nothing finite is left, and any of them makes the loss and its gradient
            NaN, so that a gradient scaler skips the step.
        ignore_threshold: a background prediction of which more than this share of the area lies in a target with
            `ignore` (a crowd) is ignored, a row of zeros, instead of trained as background.
        class_weight: (C,) factors > 0 of the cost of the targets of each class; of one-hot targets their mean, weighted
            by the labels. They multiply the `cost_weight` of each target, which `target` may hold.
        validate: also check values (label range, inverted boxes, finiteness) on a GPU, which synchronises.
        box_format: "cxcywh" or "xywh" if `pred_boxes` and `target["boxes"]` are that; None for xyxy.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range, or a module reduces its rows.

    Examples:
        A rule of one's own needs one method; here each prediction is spread evenly over targets and background:

        >>> class Even(Matcher):
        ...     def compute_matching(self, cost_matrix, target_mask):
        ...         allowed = torch.cat((target_mask, torch.ones_like(target_mask[:, :1])), dim=1)[:, None, :]
        ...         return (allowed / allowed.sum(-1, keepdim=True)).expand_as(cost_matrix)
        >>> Even().compute_matching(torch.rand(1, 2, 4), torch.tensor([[True, True, False]]))[0, 0]
        tensor([0.3333, 0.3333, 0.0000, 0.3333])
    """

    def __init__(
        self,
        *,
        cls_match_module: nn.Module | None = None,
        loc_match_module: nn.Module | None = None,
        background: bool = True,
        background_cost: float | Schedule = 10.0,
        is_anchor_based: bool = False,
        nonfinite: str = "error",
        ignore_threshold: float = 0.5,
        class_weight: Sequence[float] | Tensor | None = None,
        validate: bool = False,
        box_format: str | None = None,
    ) -> None:
        super().__init__()
        check_sub_loss("cls_match_module", cls_match_module, optional=True)
        check_sub_loss("loc_match_module", loc_match_module, optional=True)
        self.cls_match_module = cls_match_module
        self.loc_match_module = loc_match_module
        self.background = check_flag("background", background)
        self.background_cost = self.scheduled("background_cost", background_cost)
        self.is_anchor_based = check_flag("is_anchor_based", is_anchor_based)
        self.nonfinite = check_choice("nonfinite", nonfinite, ("error", "propagate"))
        self.ignore_threshold = check_number("ignore_threshold", ignore_threshold, low=0.0, high=1.0)
        self.class_weight: Tensor | None
        self.register_buffer("class_weight", parse_class_weight(class_weight), persistent=False)
        self.validate = check_flag("validate", validate)
        self.box_format = check_choice("box_format", box_format, (None, *BOX_FORMATS))

    def __init_subclass__(cls, *, abstract: bool = False) -> None:
        """Check that a rule is stated, unless the class is `abstract` and leaves that to its subclasses.

        Raises:
            TypeError: neither `match` nor `compute_matching` is implemented.
        """
        super().__init_subclass__()
        if not abstract and cls.match is Matcher.match and cls.compute_matching is Matcher.compute_matching:
            raise TypeError(f"{cls.__name__} must implement compute_matching(cost_matrix, target_mask), or match")

    @torch.no_grad()
    def forward(self, input: PredictionDict, target: TargetInput, anchors: AnchorInput | None = None) -> Tensor:
        """Return the plan, a tensor without gradient.

        Args:
            input: dict with `pred_logits` (B, P, C) and `pred_boxes` (B, P, 4), xyxy; optionally `pred_valid` (B, P)
                and `image_class_mask` (B, C), bool, False for padded predictions and for classes that an image lacks.
            target: dict with `labels` (B, T) or one-hot (B, T, C), `boxes` (B, T, 4), xyxy, and optionally, all
                (B, T), `mask`, bool; `ignore`, bool, True for a target (a crowd) that no prediction may match;
                `cost_weight` > 0, a factor of the target's cost; and `cost_labels`, in place of the labels. Or a list
                of one dict an image.
            anchors: (P, 4) or (B, P, 4) boxes, xyxy, or `Anchors` or `Points` with strides and levels; needed with
                `is_anchor_based=True` and by the rules of anchors and points.

        Returns:
            (B, P, T + 1) masses, the background last; (B, P, T) with `background=False`.

        Raises:
            TypeError: an argument or an entry has the wrong type or dtype.
            ValueError: a key is missing, or a shape, a device or a value is wrong.
        """
        scene = self.parse(input, target, anchors)
        return self.scene_plan(scene).to_dense()

    @torch.no_grad()
    def compute_cost_matrix(
        self, input: PredictionDict, target: TargetInput, anchors: AnchorInput | None = None
    ) -> Tensor:
        """Return the cost in the layout of the plan; what is padding costs `inf`. Arguments as in `forward`."""
        scene = self.parse(input, target, anchors).to_match()
        scene.assert_labels()
        return forbid_padding(self.cost(scene), scene).transpose(1, 2).contiguous()

    @torch.no_grad()
    def compute_matching(self, cost_matrix: Tensor, target_mask: Tensor) -> Tensor:
        """Return the plan of a cost matrix.

        Args:
            cost_matrix: (B, P, T + 1), or (B, P, T) with `background=False`; `inf` forbids a pair, and what lies
                under the mask is never read. Rules for which the background is what is left do not read its column.
            target_mask: (B, T) bool, False for padding.

        Returns:
            The plan, of the shape of the cost.

        Raises:
            TypeError: an argument is not a tensor of the right dtype.
            ValueError: shapes do not fit, or the cost holds NaN or -inf.
        """
        (plan,) = on_values(self._dense_plan, (cost_matrix, target_mask))
        return plan

    def _dense_plan(self, cost_matrix: Tensor, target_mask: Tensor) -> tuple[Tensor]:
        cost = parse_cost(cost_matrix, target_mask, self.background, self.validate)
        return (self.match(cost, target_mask).to_dense(),)

    def match(self, cost: Tensor, mask: Tensor) -> Plan:
        """Return the plan of a target-major cost (S, T + 1, P), or (S, T, P) without background: the rule.

        A subclass implements this or, in the public layout, `compute_matching`.

        Args:
            cost: the cost; `inf` forbids a pair, and stands under the mask.
            mask: (S, T) bool, False for padding.
        """
        public = cost.transpose(1, 2)
        mass = self.compute_matching(public, mask)
        if mass.shape != public.shape:
            raise ValueError(
                f"{type(self).__name__}.compute_matching must return {tuple(public.shape)}, got {tuple(mass.shape)}"
            )
        return Plan.from_columns(mass.detach().transpose(1, 2), mask.shape[1])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the class weights with the module, and leave them their dtype: in half precision 1e6 is infinite."""
        weight = self._buffers.get("class_weight")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = self._buffers.get("class_weight")
        if weight is not None and moved is not None:
            self.class_weight = weight.to(moved.device)
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields that the matcher reads, of those that not everyone reads."""
        return reads_of(self.adapted["loc_match_module"])

    @property
    def costs(self) -> Cost:
        """What the cost of a pair is made of."""
        return Cost(
            self.adapted["cls_match_module"],
            self.adapted["loc_match_module"],
            self.background_cost if self.background else None,
            self.is_anchor_based,
            self.class_weight,
            self.nonfinite,
            self.validate,
        )

    def scene_plan(self, scene: Scene) -> Plan:
        """Return the plan of a scene, without gradient; predictions on ignored targets lose their background."""
        scene = scene.to_match()  # zeros that stand for a missing field must not be matched
        if is_transformed():
            return plan_of_values(self.scene_plan, scene)
        with torch.no_grad(), torch.autocast(scene.logits.device.type, enabled=False):
            self.refuse_labels(scene)
            if scene.valid_preds is None or self.reads_cost_alone:  # in which padding is forbidden
                plan = self.plan(scene).only(scene.valid_preds)
            else:
                plan = plan_of_valid(scene, scene.valid_preds, self.plan)
            if scene.targets.ignored is None:
                return plan
            boxes, threshold = self._located_boxes(scene), self.ignore_threshold
            return ignore_background(plan, boxes, scene.target_boxes, scene.targets, threshold)

    @property
    def reads_cost_alone(self) -> bool:
        """Whether a prediction without an allowed pair changes nothing for the others, not even by its number."""
        return False

    def refuse_labels(self, scene: Scene) -> None:
        """Let labels that are not allowed stop the device, where values may not be looked at."""
        scene.assert_labels()

    def plan(self, scene: Scene) -> Plan:
        """Return the plan of a scene: the rule on its cost. Rules of geometry override it."""
        return self.match(self.cost(scene), scene.mask)

    def cost(self, scene: Scene) -> Tensor:
        """Return the target-major cost (S, T + 1, P), or (S, T, P) without background, of a scene."""
        with torch.no_grad(), torch.autocast(scene.logits.device.type, enabled=False):
            return forbid_padding(self.costs.of_scene(scene, self.pair_cost), scene)

    def pair_cost(self, scene: Scene) -> Tensor:
        """Return the cost (S, T, P) of all pairs, padding included. Rules of geometry override it."""
        return self.costs.of_pairs(scene) if self._has_modules() else self.own_pair_cost(scene)

    def own_pair_cost(self, scene: Scene) -> Tensor:
        """Return the cost (S, T, P) of all pairs without modules, of the rules that have one."""
        raise ValueError(
            f"{type(self).__name__} needs cls_match_module or loc_match_module to compute a cost, got neither"
        )

    def _has_modules(self) -> bool:
        return self.cls_match_module is not None or self.loc_match_module is not None

    def _locations(self, scene: Scene) -> Locations:
        if scene.anchors is None:
            raise ValueError(f"anchors must be given to {type(self).__name__}: boxes, Anchors or Points, got None")
        return scene.anchors

    def _strides(self, scene: Scene, purpose: str) -> Tensor:
        stride = self._locations(scene).stride
        if stride is None:
            raise ValueError(
                f"anchors must have a stride, which {type(self).__name__} needs for {purpose}: "
                "pass Anchors(boxes, stride) or Points, got boxes without stride"
            )
        return stride

    def _located_boxes(self, scene: Scene) -> Tensor:
        """Return the (B, P, 4) boxes whose position is compared with the targets."""
        return scene.anchor_boxes if self.is_anchor_based else scene.pred_boxes

    def parse(self, input: PredictionDict, target: TargetInput, anchors: AnchorInput | None) -> Scene:
        """Return what the matcher reads of the input, validated. Arguments as in `forward`."""
        return parse_scene(
            input,
            target,
            anchors,
            self.needs,
            nonfinite=self.nonfinite,
            validate=self.validate,
            box_format=self.box_format,
        )
