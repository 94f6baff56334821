"""The dialect of recipes: what a caller replaces, by the names of terms, merged over what is published."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from torch import nn

from uotod.check import check_integer, check_number
from uotod.loss import BoxSpace, GIoULoss, MultipleObjectiveLoss, SigmoidFocalCost, Term
from uotod.match import Hungarian, Matcher

Losses = Mapping[str, nn.Module]
Weights = Mapping[str, float]
Value = TypeVar("Value")

OTHER_TERMS = ("cls", "obj", "noobj", "dist")  # every other name is a part of localisation


class Parts(NamedTuple):
    """The losses of a recipe and their weights, by the names of terms and of the parts of localisation.

    Attributes:
        losses: losses by name.
        weights: weights by name.
        given: names of the losses that replace published ones.
    """

    losses: dict[str, nn.Module]
    weights: dict[str, float]
    given: frozenset[str]

    def term(self, name: str) -> nn.Module:
        """Return the loss of a term that has one, times its weight."""
        return weigh(self.losses[name], self.weights[name])

    def localization(self) -> nn.Module:
        """Return the sum of the losses of localisation, under their names where the recipe has several."""
        losses = {name: loss for name, loss in self.losses.items() if name not in OTHER_TERMS}
        return self.term("loc") if "loc" in losses else weighted_sum(losses, self.weights)

    def refuse(self, name: str, **options: Any) -> None:
        """Raise a ValueError if an option is given, not None, of a published loss that a given one replaces."""
        if name in self.given:
            refuse(f"losses[{name!r}]", **options)


def choose_parts(
    num_classes: int, losses: Losses | None, weights: Weights | None, published: Mapping[str, tuple[Any, float]]
) -> Parts:
    """Return the losses and weights of a recipe, the given ones merged over the published ones.

    Args:
        num_classes: number of classes of the recipe, which is checked here for all of them.
        losses: losses by name; "loc" replaces the sum of localisation, under a weight of 1 then.
        weights: weights by name.
        published: loss and weight by name, in the order of their sum; a loss of None for a weight that has none.

    Raises:
        TypeError: a loss is no loss, a weight no number, or the number of classes no integer.
        ValueError: a name is unknown, a weight negative, or there is no class.
    """
    check_integer("num_classes", num_classes, low=1)
    known = dict(published)
    given = by_name("losses", losses)
    if "loc" in given and "loc" not in known:
        known = {name: part for name, part in known.items() if name in OTHER_TERMS} | {"loc": (given["loc"], 1.0)}
    others = () if "loc" in known else ("loc",)  # a name of losses that is none of weights
    own = merge("losses", given, {name: loss for name, (loss, _) in known.items() if loss is not None}, others)
    for name, loss in own.items():
        if not isinstance(loss, nn.Module) or isinstance(loss, Term):
            raise TypeError(
                f"losses[{name!r}] must be a loss, a torch.nn.Module that is no Term, got {loss!r} of type "
                f"{type(loss).__name__}"
            )
    own_weights = merge_weights("weights", weights, {name: weight for name, (_, weight) in known.items()})
    return Parts(own, own_weights, frozenset(given))


def choose_matcher(
    matcher: Matcher | None, published: Callable[..., Matcher], box_format: str | None, **options: Any
) -> Matcher:
    """Return the given matcher, or the published one, made with those of its options that are given, not None.

    Raises:
        ValueError: an option is given together with a matcher, which would not read it.
    """
    if matcher is not None:
        refuse("matcher", **options)
        return matcher
    return published(box_format=box_format, **{name: value for name, value in options.items() if value is not None})


def refuse(replacement: str, **options: Any) -> None:
    """Raise a ValueError if an option is given, not None, together with the argument that replaces what reads it."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(
                f"{name} and {replacement} cannot be given together, got {name}={value!r}: it is an option of what "
                f"{replacement} replaces, and has its place there"
            )


def merge(
    argument: str, given: Mapping[str, Value] | None, published: Mapping[str, Value], others: tuple[str, ...] = ()
) -> dict[str, Value]:
    """Return the published values with the given ones in their place; `others` are further names to name in an error.

    Raises:
        TypeError: what is given is no mapping.
        ValueError: a name is unknown.
    """
    given = by_name(argument, given)
    for name in given:
        if name not in published:
            raise ValueError(f"{argument} must have names among {[*published, *others]}, got {name!r}")
    return {**published, **given}


def merge_weights(argument: str, given: Weights | None, published: Weights) -> dict[str, float]:
    """Return `merge` of weights, numbers that are at least 0."""
    merged = merge(argument, given, published)
    return {name: check_number(f"{argument}[{name!r}]", weight, low=0.0) for name, weight in merged.items()}


def by_name(argument: str, given: Mapping[str, Value] | None) -> Mapping[str, Value]:
    """Return what is given, nothing for None, after a check that it goes by names."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{argument} must be a dict by the names of terms, got {given!r} of type {type(given).__name__}"
        )
    return given


def weigh(loss: nn.Module, weight: float) -> nn.Module:
    """Return a loss times its weight, the loss itself for 1; the parts of a sum keep their names."""
    if weight == 1:
        return loss
    if isinstance(loss, MultipleObjectiveLoss):
        parts = dict(zip(loss.names, loss.losses, strict=True))
        return MultipleObjectiveLoss(parts, [weight * part for part in loss.weights])
    return MultipleObjectiveLoss([loss], [weight])


def weighted_sum(losses: Losses, weights: Weights) -> MultipleObjectiveLoss:
    """Return the sum of named losses; one of weight 0 is left out, so that what it needs may be missing.

    The first one never is.
    """
    kept = [name for i, name in enumerate(losses) if weights[name] or not i]
    return MultipleObjectiveLoss({name: losses[name] for name in kept}, [weights[name] for name in kept])


# --- detectors of sets


def box_losses() -> dict[str, nn.Module]:
    """Return the losses of boxes of DETR and its successors: L1 of centre and size, and GIoU."""
    return {"l1": BoxSpace(nn.L1Loss(reduction="none"), "cxcywh"), "giou": GIoULoss(reduction="none")}


def set_parts(name: str, loss: nn.Module, cls: float) -> dict[str, Any]:
    """Return the published losses and weights of a detector of sets, whose loss of classes is reported by a name."""
    boxes = box_losses()
    return {"cls": (MultipleObjectiveLoss({name: loss}), cls), "l1": (boxes["l1"], 5.0), "giou": (boxes["giou"], 2.0)}


def set_matcher(
    rule: Callable[..., Matcher],
    cls_cost: nn.Module,
    cls: float,
    *,
    cost_weights: Weights | None = None,
    **options: Any,
) -> Matcher:
    """Return a matcher on a cost of classes, L1 and GIoU, which weigh `cls`, 5 and 2 unless others are given."""
    weights = merge_weights("cost_weights", cost_weights, {"cls": cls, "l1": 5.0, "giou": 2.0})
    classes = MultipleObjectiveLoss({"cls": cls_cost}, [weights["cls"]])
    return rule(cls_match_module=classes, loc_match_module=weighted_sum(box_losses(), weights), **options)


def focal_hungarian(**options: Any) -> Matcher:
    """Return the Hungarian matcher on the focal cost, L1 and GIoU, of Deformable DETR and its successors."""
    return set_matcher(Hungarian, SigmoidFocalCost(alpha=0.25, gamma=2.0, reduction="none"), 2.0, **options)
