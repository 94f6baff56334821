"""Families of detectors: the configuration of a model in, the recipe with its numbers out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from uotod.loss import (
    Branches,
    DetectionLoss,
    IoUAwareBCELoss,
    MatchabilityAwareLoss,
    NegativeProbLoss,
    SigmoidFocalCost,
    SigmoidFocalLoss,
    VarifocalLoss,
)
from uotod.match import Hungarian, Matcher
from uotod.recipes import d_fine, deformable_detr, deim, detr, dino, group_detr, rt_detr
from uotod.recipes.dialect import set_matcher

Criterion = DetectionLoss | Branches
N = "none"


class Family(NamedTuple):
    """The detectors that share a loss function of transformers.

    Attributes:
        build: makes the criterion from the configuration and a matcher, None for the published one.
        layer_dim: dimension of the decoder layers in `outputs_class` and `outputs_coord`.
        clamps: whether boxes are clamped to the unit square before anything reads them.
        misaligned: whether the library pairs its layers with others than the published implementation does.
        hides_proposals: whether models of two stages keep their proposals from the loss.
    """

    build: Callable[[Any, Matcher | None], Criterion]
    layer_dim: int = 0
    clamps: bool = False
    misaligned: bool = False
    hides_proposals: bool = False


def criterion_for(config: Any, *, matcher: Matcher | None = None) -> Criterion:
    """Return the recipe of a detector of transformers with the numbers of its configuration.

    Args:
        config: configuration of a model for object detection.
        matcher: in place of the published one; its boxes are xyxy, in units of the image.

    Raises:
        ValueError: the loss of such models is not of a family that is known, or the configuration lacks its numbers.

    Examples:
        >>> from transformers import DetrConfig
        >>> criterion_for(DetrConfig(num_labels=3, eos_coefficient=0.2)).cls_loss_module.losses[0].weight
        tensor([1.0000, 1.0000, 1.0000, 0.2000])
    """
    return build(published_loss(config), config, matcher)


def build(loss: Callable[..., Any], config: Any, matcher: Matcher | None) -> Criterion:
    """Return the criterion in place of a loss function of transformers.

    Raises:
        ValueError: the loss is not known, or the configuration lacks its numbers.
    """
    family = family_of(loss)
    try:
        return family.build(config, matcher)
    except AttributeError as error:
        raise ValueError(
            f"config must have the numbers of {loss.__name__}, got {type(config).__name__}: {error}; pass a criterion "
            "that you make yourself"
        ) from error


def family_of(loss: Callable[..., Any]) -> Family:
    """Return the family of a loss function of transformers.

    Raises:
        ValueError: it is not known.
    """
    name = getattr(loss, "__name__", repr(loss))
    if name not in FAMILIES:
        raise ValueError(
            f"model must be a detector whose loss is one of {sorted(FAMILIES)}, got one with {name}: call a criterion "
            "of your own on what it returns"
        )
    return FAMILIES[name]


def published_loss(config: Any) -> Callable[..., Any]:
    """Return the loss function of transformers that models of a configuration call.

    Raises:
        ValueError: there is no such model.
    """
    from transformers.loss.loss_utils import LOSS_MAPPING
    from transformers.models.auto import modeling_auto as auto

    mappings = (auto.MODEL_FOR_OBJECT_DETECTION_MAPPING, auto.MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING)
    pairs = ((mapping, cls) for cls in type(config).__mro__ for mapping in mappings)  # a subclass is of the family, too
    found: Any = next((mapping[cls] for mapping, cls in pairs if cls in mapping), None)
    if found is None:
        raise ValueError(
            f"config must be that of a model for object detection, got {type(config).__name__}: pass the config of a "
            "model such as DetrForObjectDetection"
        )
    names = [name for name in LOSS_MAPPING if found.__name__.endswith(name)]
    if not names:
        raise ValueError(f"config must be of a model with a loss, got {type(config).__name__} of {found.__name__}")
    loss: Any = LOSS_MAPPING[max(names, key=len)]
    return loss  # type: ignore[no-any-return]


def arguments_of(loss: Callable[..., Any], *args: Any, **kwargs: Any) -> Mapping[str, Any]:
    """Return what a model hands to a loss function of transformers, by the names of its parameters."""
    bound = inspect.signature(loss).bind(*args, **kwargs)
    found = dict(bound.arguments)
    return {**found, **found.pop("kwargs", {})}


def _costs(config: Any) -> dict[str, float]:
    return {"cls": config.class_cost, "l1": config.bbox_cost, "giou": config.giou_cost}


def _boxes(config: Any) -> dict[str, float]:
    return {"l1": config.bbox_loss_coefficient, "giou": config.giou_loss_coefficient}


def _detr(config: Any, matcher: Matcher | None) -> DetectionLoss:
    costs = _costs(config) if matcher is None else None
    weights = {"cls": 1.0} | _boxes(config)
    return detr(
        config.num_labels,
        matcher=matcher,
        weights=weights,
        cost_weights=costs,
        background_weight=config.eos_coefficient,
    )


def _deformable(config: Any, matcher: Matcher | None) -> Branches:
    costs = _costs(config) if matcher is None else None
    focal = SigmoidFocalLoss(alpha=config.focal_alpha, gamma=2.0, reduction=N)
    weights = {"cls": 1.0} | _boxes(config)
    return deformable_detr(
        config.num_labels, matcher=matcher, losses={"cls": focal}, weights=weights, cost_weights=costs
    )


def _grounded(config: Any, matcher: Matcher | None) -> Branches:
    """Return a criterion whose classes are the tokens of the text."""
    costs = _costs(config) if matcher is None else None
    focal = SigmoidFocalLoss(alpha=config.focal_alpha, gamma=2.0, reduction=N)
    weights = {"cls": 2.0} | _boxes(config)
    return dino(config.max_text_len, matcher=matcher, losses={"cls": focal}, weights=weights, cost_weights=costs)


def _groups(config: Any, matcher: Matcher | None) -> Branches:
    options = {} if matcher is not None else {"cost_weights": _costs(config), "groups": config.group_detr}
    loss = IoUAwareBCELoss(alpha=config.focal_alpha, gamma=2.0, reduction=N)
    weights = {"cls": config.class_loss_coefficient} | _boxes(config)
    return group_detr(config.num_labels, matcher=matcher, losses={"cls": loss}, weights=weights, **options)


def _varifocal(config: Any, matcher: Matcher | None) -> Branches:
    loss = VarifocalLoss(alpha=config.focal_loss_alpha, gamma=config.focal_loss_gamma, form="rtdetr", reduction=N)
    return rt_detr(
        config.num_labels, matcher=matcher or _hungarian(config), losses={"cls": loss}, weights=_weights(config, "vfl")
    )


def _distributions(config: Any, matcher: Matcher | None) -> Branches:
    loss = VarifocalLoss(alpha=config.focal_loss_alpha, gamma=config.focal_loss_gamma, form="rtdetr", reduction=N)
    weights = _weights(config, "vfl") | {"fgl": config.weight_loss_fgl, "dist": config.weight_loss_ddf}
    matcher = matcher or _hungarian(config)
    return d_fine(config.num_labels, matcher=matcher, losses={"cls": loss}, weights=weights, union=False)


def _dense(config: Any, matcher: Matcher | None) -> Branches:
    loss = MatchabilityAwareLoss(
        gamma=config.focal_loss_gamma, alpha=1.0 if config.mal_alpha is None else config.mal_alpha, reduction=N
    )
    weights = _weights(config, "mal") | {"fgl": config.weight_loss_fgl, "dist": config.weight_loss_ddf}
    union, matcher = bool(config.use_dense_one_to_one), matcher or _hungarian(config)
    return deim(config.num_labels, matcher=matcher, losses={"cls": loss}, weights=weights, union=union)


def _weights(config: Any, classes: str) -> dict[str, float]:
    names = {"cls": classes, "l1": "bbox", "giou": "giou"}
    return {name: getattr(config, f"weight_loss_{theirs}") for name, theirs in names.items()}


def _hungarian(config: Any) -> Matcher:
    costs = {
        name: getattr(config, f"matcher_{x}_cost") for name, x in (("cls", "class"), ("l1", "bbox"), ("giou",) * 2)
    }
    cost: nn.Module = SigmoidFocalCost(alpha=config.matcher_alpha, gamma=config.matcher_gamma, reduction=N)
    if not config.use_focal_loss:  # the cost alone follows it: all classes are those of objects
        cost = NegativeProbLoss(reduction=N)
    return set_matcher(Hungarian, cost, 2.0, cost_weights=costs)


FAMILIES = {
    "ForObjectDetectionLoss": Family(_detr),
    "DeformableDetrForObjectDetectionLoss": Family(_deformable, hides_proposals=True),
    "GroundingDinoForObjectDetectionLoss": Family(_grounded),
    "LwDetrForObjectDetectionLoss": Family(_groups),
    "RTDetrForObjectDetectionLoss": Family(_varifocal, layer_dim=1),
    "DFineForObjectDetectionLoss": Family(_distributions, layer_dim=1, clamps=True, misaligned=True),
    "Deimv2ForObjectDetectionLoss": Family(_dense, layer_dim=1, clamps=True, misaligned=True),
}
