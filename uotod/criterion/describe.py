"""A dry run of a criterion on one batch: predictions and targets in, a text that says what is read, and how, out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from uotod.criterion.starved import STARVED
from uotod.criterion.terms import Term
from uotod.scene.padding import CROWD, MISSING
from uotod.scene.predictions import PredictionDict
from uotod.scene.scene import Scene
from uotod.scene.targets import TargetInput

if TYPE_CHECKING:
    from uotod.criterion.detection import DetectionLoss, Matched


def describe_matched(
    criterion: DetectionLoss, matched: Matched, input: PredictionDict, target: TargetInput, known: Collection[str] = ()
) -> str:
    """Return a text of one line a subject about what a criterion makes of a batch.

    Args:
        criterion: the criterion.
        matched: what it has matched.
        input: the predictions, as they were given.
        target: the targets, as they were given.
        known: keys of the input that others read.
    """
    scene, final = matched.scene, matched.scene.layer(-1)
    reads = {"labels", "aux_outputs", CROWD, *MISSING, *_reads(criterion), *known}
    first = target if isinstance(target, Mapping) else {key: image[key] for image in target for key in image}
    lines = {
        "predictions": f"{_count(len(final.logits), 'image')}, {_count(final.logits.shape[1], 'prediction')}, "
        f"{_count(final.logits.shape[2], 'logit')}{_background(final)}; computed in {_dtype(scene.logits)} on "
        f"{scene.logits.device}",
        "layers": f"{scene.layers}{_weights(criterion)}",
        "targets": _targets(final),
        "boxes": _boxes(criterion, final),
        "input": _keys(input, reads),
        "target": _keys(first, reads),
        "plan": _shares(criterion, matched, len(final.mask)),
        "mass a target": _masses(matched, final),
    }
    for term in criterion.all_terms:
        lines[f"divisor of {term.name}"] = _divisor(criterion, matched, term)
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}}  {text}" for name, text in lines.items() if text)


def _reads(criterion: DetectionLoss) -> set[str]:
    """Return the fields that the parts of a criterion read, where they are given; those of targets by their keys."""
    matcher = criterion.matching_method
    needs = {*criterion.needs} | {x for module in matcher.modules() for x in getattr(module, "reads_if_given", ())}
    return {"pred_logits", "pred_boxes", "boxes", *(x.removeprefix("target_") for x in needs)}


def _background(scene: Scene) -> str:
    if scene.bg_class is None:
        return ", none for the background"
    return f", the {'last' if scene.bg_class else 'first'} for the background"


def _weights(criterion: DetectionLoss) -> str:
    weights = criterion.layer_weights
    return "" if weights is None else f", of the weights {', '.join(f'{x:g}' for x in weights)}"


def _targets(scene: Scene) -> str:
    real, labels = scene.mask, scene.targets.labels
    ignored = 0 if scene.targets.ignored is None else int(scene.targets.ignored.sum())
    text = f"{int(real.sum())}, beside {ignored} ignored and {real.numel() - int(real.sum()) - ignored} of padding"
    if len(real):
        text += f"; {_range(real.sum(1))} an image"
    if labels is None:
        return f"{text}; one-hot labels"
    return f"{text}; labels {_range(labels[real])}" if bool(real.any()) else text


def _boxes(criterion: DetectionLoss, scene: Scene) -> str:
    """Return format and range of predicted boxes, target boxes and anchors."""
    own = criterion.box_format or "xyxy"
    found = []
    if "pred_boxes" in scene.preds:
        found.append(f"predicted{_extent(scene.preds['pred_boxes'])}, given as {own}")
    if "target_boxes" in scene.targets.fields:
        boxes = scene.targets.fields["target_boxes"][scene.mask]
        found.append(f"targets{_extent(boxes)}, given as {criterion.target_format or own}")
    if scene.anchors is not None:
        found.append(f"anchors{_extent(scene.anchors.boxes)}")
    return "; ".join(found)


def _extent(boxes: Tensor) -> str:
    return f" in [{float(boxes.amin()):.4g}, {float(boxes.amax()):.4g}]" if boxes.numel() else " of nothing"


def _keys(given: Mapping[str, Any], reads: Collection[str]) -> str:
    """Return the keys that are read, with their dtypes, and those that are not."""
    shown = {key: f"{key} ({_dtype(x)})" if isinstance(x, Tensor) else f"{key}" for key, x in given.items()}
    read = sorted(text for key, text in shown.items() if key in reads)
    unread = sorted(f"{key}" for key in shown if key not in reads)
    return f"read {', '.join(read)}; unread {', '.join(unread) or 'none'}"


def _shares(criterion: DetectionLoss, matched: Matched, images: int) -> str:
    plan = matched.plan
    positive, background = plan.positive[-images:], plan.background_mass()[-images:]
    if not positive.numel():
        return f"of {type(criterion.matching_method).__name__}, without predictions"
    nothing = "ignored" if plan.background is not None else "unmatched"
    nothing += " or not mined" if matched.scene.is_mined else ""
    shares = {"positive": positive, "background": background, nothing: positive + background <= 0}
    text = ", ".join(f"{float(100 * share.double().mean()):.3g} % {name}" for name, share in shares.items())
    return f"of {type(criterion.matching_method).__name__}: {text}"


def _masses(matched: Matched, scene: Scene) -> str:
    mass = matched.plan.target_mass()[-len(scene.mask) :][scene.mask] if len(scene.mask) else scene.logits.new_zeros(0)
    if not len(mass):
        return "no target"
    starved = int((mass < STARVED).sum())
    return (
        f"least {float(mass.amin()):.3g}, median {float(mass.median()):.3g}; {starved} of {len(mass)} starved, "
        f"with less than {STARVED:g}"
    )


def _divisor(criterion: DetectionLoss, matched: Matched, term: Term) -> str:
    """Return what the final layer of a term is divided by in this process."""
    if criterion.reduction == "sum":
        return 'none, with reduction="sum"'
    if term.is_mean:
        return "none, it is a mean"
    own = matched.masses.total()
    divisor = criterion.normalizer(term.name, matched.masses, own, own)
    return f"{_range(divisor[..., -1, :])}, by {type(criterion.normalizer).__name__}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _range(values: Tensor) -> str:
    if not values.numel():
        return "of nothing"
    low, high = (float(x) for x in torch.aminmax(values))
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
