"""Whether the parts of a criterion fit together: its matcher, its terms and its mining in, a clear error out."""

from collections.abc import Sequence

from uotod.criterion.normalize import MassNormalizer, Normalizer
from uotod.criterion.terms import Term
from uotod.match.base import Matcher


def check_matcher(matcher: Matcher, box_format: str | None) -> None:
    """Check that the matcher is one, and reads boxes as the criterion does."""
    if not isinstance(matcher, Matcher):
        raise TypeError(f"matching_method must be a Matcher, got {matcher!r}")
    if matcher.box_format != box_format:
        raise ValueError(
            f"matching_method must have box_format={box_format!r} like the loss, got {matcher.box_format!r}"
        )


def check_normalizer(normalizer: Normalizer | None, reduction: str) -> Normalizer:
    """Return the normaliser of a mean, `MassNormalizer` by default."""
    if normalizer is None:
        return MassNormalizer()
    if reduction == "sum":
        raise ValueError('normalizer needs reduction="mean", got reduction="sum"')
    if not isinstance(normalizer, Normalizer):
        raise TypeError(f"normalizer must be a Normalizer, got {normalizer!r}")
    return normalizer


def check_terms(terms: Sequence[Term], matcher: Matcher, bg_class_position: str) -> None:
    """Check that the terms have names of their own, and the background that they need."""
    names = [term.name for term in terms]
    if len(set(names)) < len(names):
        raise ValueError(f"terms must have different names, got {names}")
    if matcher.background:
        return
    for term in terms:
        if term.needs_background:
            raise ValueError(
                f"{type(term).__name__} needs a matching_method with background=True, or background=False itself"
            )
    if bg_class_position != "none":
        raise ValueError(
            f"bg_class_position={bg_class_position!r} needs a matching_method with background=True, "
            "got one with background=False"
        )


def check_mining(
    mines: bool, ratio: float | None, min_negatives: float, matcher: Matcher, classification: Term | None
) -> None:
    """Check that the options of mining are given with it only, and that there is a background to mine."""
    if mines != (ratio is not None):
        raise ValueError(
            "neg_to_pos_ratio must be given with use_hard_negative_mining=True, and only then, "
            f"got neg_to_pos_ratio={ratio} and use_hard_negative_mining={mines}"
        )
    if not mines:
        if min_negatives > 0:
            raise ValueError(f"min_negatives needs use_hard_negative_mining=True, got {min_negatives} without")
        return
    if not matcher.background:
        raise ValueError("use_hard_negative_mining=True needs a matching_method with background=True")
    if not getattr(classification, "background", False):
        raise ValueError("use_hard_negative_mining=True needs a Classification with background=True")
