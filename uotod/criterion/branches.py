"""Further outputs of a detector, each with a loss of its own: nested predictions in, one sum of losses out."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from uotod.check import Described, check_choice, check_flag, check_integer, check_positions
from uotod.criterion.describe import describe_matched
from uotod.criterion.detection import DetectionLoss, Matched, PlanInput
from uotod.criterion.masses import Masses, share_masses
from uotod.match.schedule import Schedule, Scheduled
from uotod.scene.padding import COST_LABELS
from uotod.scene.predictions import INPUT_KEYS, PredictionDict
from uotod.scene.scene import AnchorInput
from uotod.scene.targets import TargetInput

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Branch(Described, Scheduled):
    """Say how one further output of a detector is trained: by which loss, and how much it counts. For `Branches`.

    Args:
        loss: the loss of the branch.
        weight: factor of the branch, at least 0, or a schedule: a callable that returns one for the step given to
            `Branches.set_step`.
        class_agnostic: give all targets the label 0, as for proposals that tell objects from background.
        plan: "match" to match the output, unless it brings a `plan`; "given" to demand one, as denoising queries have.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the weight is negative, or the label 0 is that of the background.
    """

    def __init__(
        self,
        loss: DetectionLoss,
        weight: float | Schedule = 1.0,
        *,
        class_agnostic: bool = False,
        plan: str = "match",
    ) -> None:
        super().__init__()
        if not isinstance(loss, DetectionLoss):
            raise TypeError(f"loss must be a DetectionLoss, got {loss!r} of type {type(loss).__name__}")
        self.loss = loss
        self.weight = self.scheduled("weight", weight, low=0.0)
        self.class_agnostic = check_flag("class_agnostic", class_agnostic)
        self.plan = check_choice("plan", plan, ("match", "given"))
        if class_agnostic and loss.bg_class_position == "first":
            raise ValueError(
                "class_agnostic=True gives all targets the label 0 and needs a loss with bg_class_position='last' or "
                "'none', got 'first'"
            )

    def match(
        self,
        name: str,
        output: PredictionDict,
        target: TargetInput,
        anchors: AnchorInput | None,
        of_images: PredictionDict | None = None,
    ) -> Matched:
        """Return what the losses of the branch's `output` are made of, which errors call `name`.

        `of_images` are fields `image_...` that the output has unless it brings its own.

        Raises:
            TypeError: an argument or an entry has the wrong type or dtype.
            ValueError: a key is missing, or a shape, a device or a value is wrong.
        """
        if not isinstance(output, Mapping):
            raise TypeError(f"{name} must be a dict of tensors, got {type(output).__name__}")
        inherited = dict(of_images or {})
        if self.class_agnostic:
            target = _without_classes(target)
            inherited.pop("image_class_mask", None)
        output = inherited | dict(output)
        plan = output.get("plan")
        if plan is None and self.plan == "given":
            raise ValueError(
                f"{name} must have the key 'plan': which target each query stands for is known and not to be matched; "
                "denoising_plan makes it from what models return"
            )
        anchors = anchors if output.get("anchors") is None else output["anchors"]
        try:
            return self.loss.match(output, target, anchors, plan)
        except (TypeError, ValueError) as error:  # the same entries are in every branch: say in which
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{name}: {error}") from error

    def lose(self, matched: Matched, own: Masses, shared: Masses) -> dict[str, Tensor]:
        """Return the weighted terms of the branch; see `DetectionLoss.lose`."""
        return _weighted(self.loss.lose(matched, own, shared), self.weight)


class Branches(Described, Scheduled):
    r"""Add the losses of further outputs of a detector to its main loss: proposals, denoising, one-to-many heads.

    .. math:: L = w L_\text{main}(\text{input}) + \sum_k w_k L_k(\text{input}[k])

    A branch `enc_outputs=Branch(...)` reads the dict `input["enc_outputs"]`: predictions as those of the input, with
    `aux_outputs` of their own. Two more entries are optional there: `plan`, which replaces matching as in
    `DetectionLoss.forward` (denoising queries know their targets), and `anchors`, which replace those of the call. A
    branch that the input does not have, or as None, contributes nothing, as in evaluation. What the input says of
    images, `image_...`, is true in branches that do not say otherwise.

    Args:
        main: loss of the input itself.
        main_weight: its factor `w`, as the `weight` of a `Branch`.
        branches: the `Branch` of each further output, by its key in the input.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a weight is negative, a name has a meaning already, or two have the same suffix.

    References:
        Zhu et al., "Deformable DETR", ICLR 2021, app. A.4 (two stages); Zhang et al., "DINO", ICLR 2023 (denoising);
        Jia et al., "DETRs with hybrid matching", CVPR 2023 (one-to-many).

    Examples:
        >>> from uotod.loss import SigmoidFocalLoss
        >>> from uotod.match import Hungarian
        >>> l1 = nn.L1Loss(reduction="none")
        >>> loss = DetectionLoss(SigmoidFocalLoss(reduction="none"), l1, Hungarian(loc_match_module=l1), "none")
        >>> criterion = Branches(loss, enc_outputs=Branch(loss, class_agnostic=True), dn_outputs=Branch(loss, 0.5))
        >>> box = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])
        >>> target = {"labels": torch.tensor([[1]]), "boxes": box}
        >>> output = {"pred_logits": torch.zeros(1, 1, 2), "pred_boxes": box}
        >>> denoising = output | {"plan": torch.tensor([[0]])}
        >>> terms = criterion.terms(output | {"dn_outputs": denoising}, target)
        >>> [key for key in terms if key.endswith("_dn")]
        ['loss_dn', 'loss_cls_dn', 'loss_loc_dn', 'num_pos_dn', 'num_neg_dn', 'num_starved_dn']
        >>> bool(terms["loss_dn"] == terms["loss_cls"] / 2), bool(terms["loss"] == 1.5 * terms["loss_cls"])
        (True, True)
    """

    def __init__(self, main: DetectionLoss, *, main_weight: float | Schedule = 1.0, **branches: Branch) -> None:
        super().__init__()
        if not isinstance(main, DetectionLoss):
            raise TypeError(f"main must be a DetectionLoss, got {main!r} of type {type(main).__name__}")
        suffixes: dict[str, str] = {}
        for key, branch in branches.items():
            if not isinstance(branch, Branch):
                raise TypeError(f"{key} must be a Branch, got {branch!r} of type {type(branch).__name__}")
            if key in INPUT_KEYS:
                raise ValueError(f"{key} cannot name a branch: it is an entry of predictions")
            if _suffix(key) in suffixes.values():
                raise ValueError(f"branches must differ in more than '_outputs', got {[*suffixes, key]}")
            suffixes[key] = _suffix(key)
        self.main = main
        self.main_weight = self.scheduled("main_weight", main_weight, low=0.0)
        self.branches = nn.ModuleDict(branches)

    @property
    def process_group(self) -> "ProcessGroup | None":
        """Ranks over which all divisors are averaged, those of the main loss; see `DetectionLoss`."""
        return self.main.process_group

    @process_group.setter
    def process_group(self, group: "ProcessGroup | None") -> None:
        self.main.process_group = group

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
            input: as for `DetectionLoss`, with a dict of the same kind for each branch.
            target: as for `DetectionLoss`; the branches have the same targets.
            anchors: for the main loss, and for branches without `anchors` of their own.
            plan: for the main loss.
            masses: as for `DetectionLoss`; those of `masses` hold the branches; the number of targets is theirs.

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

        All outputs are matched first, the masses of all are shared over the ranks in one reduction, and then come the
        losses.

        Returns:
            The terms of the main loss and those of each branch in the input, times their weights; those of a branch
            with its key less `_outputs` behind: "loss_cls_enc" of `enc_outputs`, "loss_cls_0_enc" of its first layer.
            "loss" is the sum of the main loss and of all branches, "loss_enc" and so on.

        Raises:
            ValueError: a branch and a part of a loss share the name of a term.
        """
        branches = self._branches()
        main, found = self._match(input, target, anchors, plan)
        criteria = [self.main, *(branch.loss for branch in branches.values())]
        given = None
        if masses is not None:
            given = [masses, *(masses if x is None else masses.of_branch(key) for key, x in found.items())]
        first, *shares = share_masses(criteria, [main, *found.values()], given)
        terms = _weighted(self.main.lose(main, *first), self.main_weight)
        total = terms["loss"]
        for (key, matched), sums in zip(found.items(), shares, strict=True):
            if matched is None:
                continue
            of_branch = branches[key].lose(matched, *sums)
            total = total + of_branch["loss"]
            for name, value in of_branch.items():
                if name + _suffix(key) in terms:
                    raise ValueError(f"branch {key!r} needs another name: there is a term {name + _suffix(key)!r}")
                terms[name + _suffix(key)] = value
        return terms | {"loss": total}

    def masses(
        self,
        input: PredictionDict,
        target: TargetInput,
        anchors: AnchorInput | None = None,
        plan: PlanInput | None = None,
    ) -> Masses:
        """Return what the normalisers of the main loss and of the branches divide by; see `DetectionLoss.masses`."""
        with torch.no_grad():
            main, found = self._match(input, target, anchors, plan)
            branches = {key: x.masses.total() for key, x in found.items() if x is not None}
            return main.masses.total()._replace(branches=branches)

    @torch.no_grad()
    def describe(self, input: PredictionDict, target: TargetInput, anchors: AnchorInput | None = None) -> str:
        """Return what the main loss and each branch make of a batch, in words; see `DetectionLoss.describe`."""
        branches = self._branches()
        main, found = self._match(input, target, anchors, None)
        weight = "" if self.main_weight == 1 else f", of weight {self.main_weight:g}"
        texts = [f"main{weight}", describe_matched(self.main, main, input, target, known=tuple(branches))]
        for key, branch in branches.items():
            matched = found[key]
            if matched is None:
                texts.append(f"{key}: not in the input")
                continue
            texts += [
                f"{key}, of weight {branch.weight:g}{', class-agnostic' if branch.class_agnostic else ''}",
                describe_matched(branch.loss, matched, input[key], target, known=("plan", "anchors")),
            ]
        return "\n".join(texts)

    def _match(
        self, input: PredictionDict, target: TargetInput, anchors: AnchorInput | None, plan: PlanInput | None
    ) -> tuple[Matched, dict[str, Matched | None]]:
        """Return what the losses of the main output and of each branch are made of, None for one without output."""
        branches = self._branches()
        main = self.main.match(input, target, anchors, plan, known=tuple(branches))
        of_images = {key: x for key, x in input.items() if isinstance(key, str) and key.startswith("image_")}
        found: dict[str, Matched | None] = dict.fromkeys(branches)
        for key, branch in branches.items():
            if input.get(key) is not None:
                found[key] = branch.match(f"input[{key!r}]", input[key], target, anchors, of_images)
        return main, found

    def _branches(self) -> dict[str, Branch]:
        return {key: branch for key, branch in self.branches.items() if isinstance(branch, Branch)}


def denoising_plan(
    positions: "list[Tensor] | tuple[Tensor, ...]", groups: int, num_queries: int, num_targets: int
) -> Tensor:
    """Return the plan of denoising queries: which target each of them was made from.

    Models of the families of DINO and RT-DETR make `groups` copies of the targets of an image, each followed by its
    negatives; the latter return the positions of the positive queries among all of them.

    Args:
        positions: for each image the positions of its positive queries, (groups * T_b,), group after group and in each
            in the order of the targets (`dn_positive_idx` of RT-DETR's `dn_meta`).
        groups: number of groups (`dn_num_group`).
        num_queries: number of denoising queries of an image.
        num_targets: T, the largest number of targets in an image.

    Returns:
        (B, num_queries) index of the target of each query, T for negatives and padding, for `output["plan"]`.

    Raises:
        ValueError: the positions do not make equal groups, repeat, or lie outside of the queries.

    Examples:
        >>> denoising_plan([torch.tensor([0, 1, 4, 5]), torch.tensor([0, 4])], 2, 8, 2)
        tensor([[0, 1, 2, 2, 0, 1, 2, 2],
                [0, 2, 2, 2, 0, 2, 2, 2]])
    """
    check_integer("groups", groups, low=1)
    rows = []
    for image, position in enumerate(positions):
        count, rest = divmod(len(position), groups)
        if rest or count > num_targets:
            raise ValueError(
                f"positions[{image}] must hold groups={groups} times at most {num_targets} targets, got {len(position)}"
            )
        check_positions(f"positions[{image}]", position, num_queries)
        row = torch.full((num_queries,), num_targets, device=position.device)
        target = torch.arange(count, device=position.device).repeat(groups)
        rows.append(row.scatter(0, position.long(), target))
    return torch.stack(rows) if rows else torch.zeros(0, num_queries, dtype=torch.long)


def _weighted(terms: dict[str, Tensor], weight: float) -> dict[str, Tensor]:
    """Return terms whose losses are multiplied by a weight."""
    return {key: weight * value if key.startswith("loss") else value for key, value in terms.items()}


def _suffix(key: str) -> str:
    """Return what the terms of a branch end in."""
    return "_" + key.removesuffix("_outputs")


def _without_classes(target: TargetInput) -> TargetInput:
    """Return the targets with the label 0 everywhere."""
    if isinstance(target, Mapping):
        return _relabelled(target, 2)
    return [_relabelled(image, 1) if isinstance(image, Mapping) else image for image in target]


def _relabelled(target: Mapping[str, Tensor], dims: int) -> Mapping[str, Tensor]:
    labels = target.get("labels")
    if not isinstance(labels, Tensor):
        return target  # the checks of targets tell what is wrong
    others = {key: value for key, value in target.items() if key != COST_LABELS}
    return {**others, "labels": torch.zeros(labels.shape[:dims], dtype=torch.long, device=labels.device)}
