"""The loss of a detector of transformers: a model in, the same model with a criterion of this library out."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from uotod.check import check_choice
from uotod.criterion.branches import Branches
from uotod.criterion.detection import DetectionLoss
from uotod.criterion.masses import Masses
from uotod.integrations.averages import update_averages
from uotod.integrations.transformers.families import Criterion, Family, arguments_of, build, family_of
from uotod.integrations.transformers.outputs import ALIGNMENTS, converted
from uotod.match import Matcher

Outputs = tuple[Tensor, dict[str, Tensor], list[dict[str, Tensor]] | None]


def set_criterion(
    model: Any, criterion: Criterion | None = None, *, matcher: Matcher | None = None, align: str = "published"
) -> Any:
    """Let a detector of transformers train with a criterion of this library, and return it.

    The model calls the criterion wherever it called its loss: with `labels`, in training and in evaluation, under
    `Trainer`, accelerate and any other loop. The criterion is no part of the model: its state is not in the
    checkpoints, which load where this library is not installed. To undo it, delete `model._loss_function`.

    Args:
        model: a model for object detection.
        criterion: by default that of `criterion_for(model.config)`.
        matcher: in place of the matcher of that default.
        align: see `convert`. With "transformers" the loss is that of the library.

    Raises:
        TypeError: the model or the criterion is none; a model in a wrapper is to be set before it is wrapped.
        ValueError: the model is of no family that is known, a criterion is given with a matcher or reads other boxes
            than xyxy, or the alignment is unknown.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"model must be a detector of transformers, got {type(model).__name__}: set the criterion of the model "
            "itself, before anything wraps it"
        )
    check_choice("align", align, ALIGNMENTS)
    current: Any = model.loss_function
    published: Any = current.published if isinstance(current, CriterionLoss) else current
    family = family_of(published)
    if criterion is None:
        criterion = build(published, model.config, matcher)
    elif matcher is not None:
        raise ValueError("matcher and criterion cannot be given together: the criterion has a matcher of its own")
    _check_criterion(criterion)
    loss = CriterionLoss(criterion.to(model.device), published, family, align)
    if family.hides_proposals and getattr(model.config, "two_stage", False):
        known = current.proposals if isinstance(current, CriterionLoss) else None
        loss.proposals = known or Proposals.of(model)
    model.loss_function = loss
    return model


def _check_criterion(criterion: Any) -> None:
    if not isinstance(criterion, (DetectionLoss, Branches)):
        raise TypeError(f"criterion must be a DetectionLoss or Branches, got {criterion!r}")
    for part in criterion.modules():
        formats = (part.box_format, part.target_format) if isinstance(part, DetectionLoss) else ()
        for given in formats:
            if given not in (None, "xyxy"):
                raise ValueError(f"criterion must read boxes as xyxy, as convert makes them, got box_format={given!r}")


class Proposals:
    """Forward hooks that keep the proposals of an encoder, which its model does not hand to the loss, for one pass."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    @classmethod
    def of(cls, model: Any) -> Proposals:
        """Return what keeps those of a model from now on."""
        proposals = cls()
        model.base_model.register_forward_hook(proposals.keep)
        model.register_forward_hook(proposals.forget, always_call=True)
        return proposals

    def keep(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """Keep the proposals of this forward pass."""
        logits = getattr(outputs, "enc_outputs_class", None)
        if logits is not None:
            self.found = {"enc_outputs_class": logits, "enc_outputs_coord": outputs.enc_outputs_coord_logits.sigmoid()}

    def forget(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """Keep them no longer."""
        self.found = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Proposals, ()


# of the final layer, what the library leaves out where it pairs layers in its own way, and the sums that lack it
LEFT_OUT = {
    "loss_loc_fgl": ("loss", "loss_loc"),
    "loss_cls_dn": ("loss", "loss_dn"),
    "loss_loc_dn": ("loss", "loss_dn"),
    "loss_dist_dn": ("loss", "loss_dn"),
}
OF_FINAL_DENOISING = re.compile(r"loss_(cls|loc|dist)_(?!.*\d_dn$).+_dn")  # parts of these


class CriterionLoss:
    """The callable that a model of transformers calls as its loss: no module, so that the model holds no part of it.

    Args:
        criterion: the criterion.
        published: the loss function whose place it takes.
        family: its family.
        align: how layers are paired, see `convert`.
    """

    def __init__(self, criterion: Criterion, published: Any, family: Family, align: str) -> None:
        self.criterion, self.published, self.family, self.align = criterion, published, family, align
        self.proposals: Proposals | None = None

    def __repr__(self) -> str:
        main = self.criterion.main if isinstance(self.criterion, Branches) else self.criterion
        rule = type(main.matching_method).__name__
        return f"{type(self.criterion).__name__} of uotod with {rule}, in place of {self.published.__name__}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.criterion, self.published.__name__, self.align, self.proposals)

    def __call__(self, *args: Any, **kwargs: Any) -> Outputs:
        """Return the loss, what it is made of, detached, and the outputs of earlier layers."""
        handed = dict(arguments_of(self.published, *args, **kwargs))
        if self.proposals is not None and self.align == "published":
            handed |= self.proposals.found
        input, target, anchors, auxiliary = converted(self.family, self.align, handed)
        count = handed.get("num_items_in_batch")
        criterion = self._criterion(input["pred_logits"], handed["config"])
        terms = _terms(criterion, count, (input, target, anchors))
        update_averages(self.criterion, terms)
        if self.align == "transformers" and self.family.misaligned:
            terms = _without_left_out(terms)
        return terms["loss"], {name: x.detach() for name, x in terms.items()}, auxiliary

    def _criterion(self, logits: Tensor, config: Any) -> Criterion:
        """Return the criterion on the device of the logits, in the mode that their number tells."""
        # groups of queries are there in training only; where there are none, gradients tell it from evaluation
        grouped = getattr(config, "group_detr", 1) > 1
        self.criterion.train(not grouped or logits.shape[1] > config.num_queries)
        return self.criterion.to(logits.device)


def _terms(criterion: Criterion, count: Any, given: tuple[Any, Any, Any]) -> dict[str, Tensor]:
    """Return the terms of the loss; a loop that counts the targets of a step says what to divide by."""
    if count is None:
        return criterion.terms(*given)
    try:
        targets = torch.as_tensor(count, dtype=torch.float32, device=given[0]["pred_logits"].device)
        return criterion.terms(*given, plan=None, masses=Masses.of_targets(targets))
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"num_items_in_batch={count}: {error}") from error


def _without_left_out(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    kept = {name: x for name, x in terms.items() if name not in LEFT_OUT and not OF_FINAL_DENOISING.fullmatch(name)}
    for name, sums in LEFT_OUT.items():
        for total in sums if name in terms else ():
            kept[total] = kept[total] - terms[name]
    return kept


def _restored(criterion: Criterion, name: str, align: str, proposals: Proposals | None) -> CriterionLoss:
    from transformers.loss.loss_utils import LOSS_MAPPING

    published: Any = next(x for x in LOSS_MAPPING.values() if x.__name__ == name)
    loss = CriterionLoss(criterion, published, family_of(published), align)
    loss.proposals = proposals
    return loss
