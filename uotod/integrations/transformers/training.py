"""The loss of a detector of transformers: a model in, the same model with a criterion of this library out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from uotod.check import check_choice
from uotod.criterion.branches import Branches
from uotod.criterion.detection import DetectionLoss
from uotod.integrations.averages import update_averages
from uotod.integrations.transformers.families import Criterion, Family, arguments_of, criterion_for, family_of
from uotod.integrations.transformers.outputs import ALIGNMENTS, auxiliary_outputs, convert
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
        TypeError: the model or the criterion is none.
        ValueError: the model is of no family that is known, a criterion is given with a matcher, or the alignment is
            unknown.
    """
    if not hasattr(model, "loss_function") or not hasattr(model, "config"):
        raise TypeError(f"model must be a detector of transformers, got {type(model).__name__}")
    if criterion is not None and not isinstance(criterion, (DetectionLoss, Branches)):
        raise TypeError(f"criterion must be a DetectionLoss or Branches, got {criterion!r}")
    if criterion is not None and matcher is not None:
        raise ValueError("matcher and criterion cannot be given together: the criterion has a matcher of its own")
    current: Any = model.loss_function
    published: Any = current.published if isinstance(current, CriterionLoss) else current
    family = family_of(published)
    criterion = criterion_for(model.config, matcher=matcher) if criterion is None else criterion
    check_choice("align", align, ALIGNMENTS)
    loss = CriterionLoss(criterion.to(model.device), published, family, align)
    if family.hides_proposals and getattr(model.config, "two_stage", False) and align == "published":
        loss.proposals = Proposals()
        model.model.register_forward_hook(loss.proposals)
    model.loss_function = loss
    return model


class Proposals:
    """A forward hook that keeps the proposals of an encoder, which its model does not hand to the loss."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def __call__(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """Keep the proposals of the last forward pass."""
        logits = getattr(outputs, "enc_outputs_class", None)
        if logits is not None:
            self.found = {"enc_outputs_class": logits, "enc_outputs_coord": outputs.enc_outputs_coord_logits.sigmoid()}

    def take(self) -> dict[str, Tensor]:
        """Return what was kept, and keep it no longer."""
        found, self.found = self.found, {}
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return Proposals, ()


# of the final layer, what the library leaves out where it pairs layers in its own way
LEFT_OUT = ("loss_loc_fgl", "loss_cls_dn", "loss_loc_dn", "loss_dist_dn")


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
        if self.proposals is not None:
            handed |= self.proposals.take()
        input, target, anchors = convert(align=self.align, **handed)
        logits, criterion = input["pred_logits"], self.criterion
        # groups of queries are there in training only, and tell it from evaluation
        queries = handed["config"].num_queries if hasattr(handed["config"], "group_detr") else 0
        criterion.train(logits.shape[1] > queries)
        criterion.to(logits.device)
        terms = criterion.terms(input, target, anchors)
        loss = terms["loss"]
        if self.align == "transformers" and self.family.misaligned:
            loss = loss - sum(terms[name] for name in LEFT_OUT if name in terms)
        update_averages(self.criterion, terms)
        return loss, {name: x.detach() for name, x in terms.items()}, auxiliary_outputs(input, handed, self.family)


def _restored(criterion: Criterion, name: str, align: str, proposals: Proposals | None) -> CriterionLoss:
    from transformers.loss.loss_utils import LOSS_MAPPING

    published: Any = next(x for x in LOSS_MAPPING.values() if x.__name__ == name)
    loss = CriterionLoss(criterion, published, family_of(published), align)
    loss.proposals = proposals
    return loss
