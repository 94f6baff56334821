"""Checks of the arguments of a detection loss that depend on each other."""

from torch import nn

from uotod.check import check_flag, check_number
from uotod.criterion.normalize import MassNormalizer, Normalizer
from uotod.match.base import Matcher


def check_background(bg_class_position: str, matching_method: Matcher, cls_background: bool) -> None:
    """Check that plans have the background that classification needs.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: there is no background for the class of the background.
    """
    if not isinstance(matching_method, Matcher):
        raise TypeError(f"matching_method must be a Matcher, got {matching_method!r}")
    check_flag("cls_background", cls_background)
    if bg_class_position != "none" and not matching_method.background:
        raise ValueError(
            f"bg_class_position={bg_class_position!r} needs a matching_method with background=True, "
            "got one with background=False"
        )


def check_objectness(
    obj_loss_module: nn.Module | None, obj_quality: object, obj_background: bool, matching_method: Matcher
) -> None:
    """Check that arguments of objectness have a loss of objectness, and this the background that it needs.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a combination has no meaning.
    """
    check_flag("obj_background", obj_background)
    if obj_loss_module is None:
        if obj_quality is not None:
            raise ValueError(f"obj_quality needs an obj_loss_module, got {obj_quality!r} without")
        if not obj_background:
            raise ValueError("obj_background=False needs an obj_loss_module, got none")
    elif obj_background and not matching_method.background:
        raise ValueError("obj_loss_module needs a matching_method with background=True, or obj_background=False")


def check_mining(
    use_hard_negative_mining: bool,
    neg_to_pos_ratio: float | None,
    min_negatives: float,
    matching_method: Matcher,
    cls_background: bool,
) -> tuple[float | None, float]:
    """Return the ratio and the least mass of negatives, checked.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range, or a combination has no meaning.
    """
    check_flag("use_hard_negative_mining", use_hard_negative_mining)
    if use_hard_negative_mining != (neg_to_pos_ratio is not None):
        raise ValueError(
            "neg_to_pos_ratio must be given with use_hard_negative_mining=True, and only then, "
            f"got neg_to_pos_ratio={neg_to_pos_ratio} and use_hard_negative_mining={use_hard_negative_mining}"
        )
    if use_hard_negative_mining and not matching_method.background:
        raise ValueError("use_hard_negative_mining=True needs a matching_method with background=True")
    if use_hard_negative_mining and not cls_background:
        raise ValueError("use_hard_negative_mining=True needs cls_background=True, got False")
    least = check_number("min_negatives", min_negatives, low=0.0)
    if least > 0 and not use_hard_negative_mining:
        raise ValueError(f"min_negatives needs use_hard_negative_mining=True, got {min_negatives} without")
    ratio = None if neg_to_pos_ratio is None else check_number("neg_to_pos_ratio", neg_to_pos_ratio, low=0.0)
    return ratio, least


def check_normalizer(normalizer: Normalizer | None, reduction: str) -> Normalizer:
    """Return the normaliser, `MassNormalizer()` for None.

    Raises:
        TypeError: it is of another type.
        ValueError: there is no mean to divide.
    """
    if normalizer is None:
        return MassNormalizer()
    if reduction == "sum":
        raise ValueError('normalizer needs reduction="mean", got reduction="sum"')
    if not isinstance(normalizer, Normalizer):
        raise TypeError(f"normalizer must be a Normalizer, got {normalizer!r}")
    return normalizer
