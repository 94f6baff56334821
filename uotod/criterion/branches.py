"""Further outputs of a detector, each with a loss of its own: nested predictions in, one sum of losses out."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from uotod.check import check_flag, check_number
from uotod.criterion.detection import DetectionLoss
from uotod.scene.predictions import AnchorInput, PredictionDict
from uotod.scene.targets import TargetInput, pad_targets

_OWN_KEYS = ("pred_logits", "pred_boxes", "pred_objectness", "pred_dist", "aux_outputs", "anchors", "plan")


class Branch(nn.Module):
    """Say how one further output of a detector is trained: by which loss, and how much it counts. For `Branches`.

    Args:
        loss: the loss of the branch.
        weight: factor of the branch, at least 0.
        class_agnostic: give all targets the label 0, as for proposals that tell objects from background.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the weight is negative, or the label 0 is that of the background.
    """

    def __init__(self, loss: DetectionLoss, weight: float = 1.0, *, class_agnostic: bool = False) -> None:
        super().__init__()
        if not isinstance(loss, DetectionLoss):
            raise TypeError(f"loss must be a DetectionLoss, got {loss!r} of type {type(loss).__name__}")
        self.loss = loss
        self.weight = check_number("weight", weight, low=0.0)
        self.class_agnostic = check_flag("class_agnostic", class_agnostic)
        if class_agnostic and loss.bg_class_position == "first":
            raise ValueError(
                "class_agnostic=True gives all targets the label 0 and needs a loss with bg_class_position='last' or "
                "'none', got 'first'"
            )

    def terms(
        self, name: str, output: PredictionDict, target: TargetInput, anchors: AnchorInput | None = None
    ) -> dict[str, Tensor]:
        """Return the weighted terms of the branch's `output`, which errors call `name`.

        Raises:
            TypeError: an argument or an entry has the wrong type or dtype.
            ValueError: a key is missing, or a shape, a device or a value is wrong.
        """
        if not isinstance(output, Mapping):
            raise TypeError(f"{name} must be a dict of tensors, got {type(output).__name__}")
        if self.class_agnostic:
            target = _without_classes(target)
        anchors = anchors if output.get("anchors") is None else output["anchors"]
        try:
            terms = self.loss.terms(output, target, anchors, output.get("plan"))
        except (TypeError, ValueError) as error:  # the same entries are in every branch: say in which
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{name}: {error}") from error
        return {key: self.weight * value if key.startswith("loss") else value for key, value in terms.items()}

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"weight={self.weight}, class_agnostic={self.class_agnostic}"


class Branches(nn.Module):
    r"""Add the losses of further outputs of a detector to its main loss: proposals, denoising, one-to-many heads.

    .. math:: L = L_\text{main}(\text{input}) + \sum_k w_k L_k(\text{input}[k])

    A branch `enc_outputs=Branch(...)` reads the dict `input["enc_outputs"]`: predictions as those of the input, with
    `aux_outputs` of their own. Two more entries are optional there: `plan`, which replaces matching as in
    `DetectionLoss.forward` (denoising queries know their targets), and `anchors`, which replace those of the call. A
    branch that the input does not have, or as None, contributes nothing, as in evaluation.

    Args:
        main: loss of the input itself.
        branches: the `Branch` of each further output, by its key in the input.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a name has a meaning already, or two have the same suffix.

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
        ['loss_dn', 'loss_cls_dn', 'loss_loc_dn', 'num_pos_dn', 'num_neg_dn']
        >>> bool(terms["loss_dn"] == terms["loss_cls"] / 2), bool(terms["loss"] == 1.5 * terms["loss_cls"])
        (True, True)
    """

    def __init__(self, main: DetectionLoss, **branches: Branch) -> None:
        super().__init__()
        if not isinstance(main, DetectionLoss):
            raise TypeError(f"main must be a DetectionLoss, got {main!r} of type {type(main).__name__}")
        suffixes: dict[str, str] = {}
        for key, branch in branches.items():
            if not isinstance(branch, Branch):
                raise TypeError(f"{key} must be a Branch, got {branch!r} of type {type(branch).__name__}")
            if key in _OWN_KEYS:
                raise ValueError(f"{key} cannot name a branch: it is an entry of predictions")
            if _suffix(key) in suffixes.values():
                raise ValueError(f"branches must differ in more than '_outputs', got {[*suffixes, key]}")
            suffixes[key] = _suffix(key)
        self.main = main
        self.branches = nn.ModuleDict(branches)

    def forward(
        self, input: PredictionDict, target: TargetInput, anchors: AnchorInput | None = None, plan: Tensor | None = None
    ) -> Tensor:
        """Return the loss, a tensor without dimensions.

        Args:
            input: as for `DetectionLoss`, with a dict of the same kind for each branch.
            target: as for `DetectionLoss`; the branches have the same targets.
            anchors: for the main loss, and for branches without `anchors` of their own.
            plan: for the main loss.

        Raises:
            TypeError: an argument or an entry has the wrong type or dtype.
            ValueError: a key is missing, or a shape, a device or a value is wrong.
        """
        return self.terms(input, target, anchors, plan)["loss"]

    def terms(
        self, input: PredictionDict, target: TargetInput, anchors: AnchorInput | None = None, plan: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the loss and what it is made of. Arguments as in `forward`.

        Returns:
            The terms of the main loss, and those of each branch in the input times its weight, with the key of the
            branch less `_outputs` behind: "loss_cls_enc" of `enc_outputs`, "loss_cls_0_enc" of its first layer.
            "loss" is the sum of the main loss and of all branches, "loss_enc" and so on.

        Raises:
            ValueError: a branch and a part of a loss share the name of a term.
        """
        terms = self.main.terms(input, target, anchors, plan)
        total = terms["loss"]
        for key, branch in self.branches.items():
            output = input.get(key)
            if output is None:
                continue
            assert isinstance(branch, Branch)
            of_branch = branch.terms(f"input[{key!r}]", output, target, anchors)
            total = total + of_branch["loss"]
            for name, value in of_branch.items():
                if name + _suffix(key) in terms:
                    raise ValueError(f"branch {key!r} needs another name: there is a term {name + _suffix(key)!r}")
                terms[name + _suffix(key)] = value
        return terms | {"loss": total}


def _suffix(key: str) -> str:
    """Return what the terms of a branch end in."""
    return "_" + key.removesuffix("_outputs")


def _without_classes(target: TargetInput) -> TargetInput:
    """Return the targets with the label 0 everywhere."""
    if not isinstance(target, Mapping):
        target = pad_targets(target)
    labels = target.get("labels")
    if not isinstance(labels, Tensor):
        return target  # the checks of targets tell what is wrong
    return {**target, "labels": torch.zeros(labels.shape[:2], dtype=torch.long, device=labels.device)}
