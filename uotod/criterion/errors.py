"""Two numbers to watch in training: predictions and targets in, the class error and the cardinality error out."""

import torch
from torch import Tensor

from uotod.check import check_number
from uotod.cost.labels import fold
from uotod.criterion.detection import DetectionLoss, PlanInput
from uotod.criterion.terms import Objectness
from uotod.plan import Plan
from uotod.scene.predictions import PredictionDict
from uotod.scene.scene import AnchorInput, Scene
from uotod.scene.targets import TargetInput


@torch.no_grad()
def detection_errors(
    input: PredictionDict,
    target: TargetInput,
    criterion: DetectionLoss,
    anchors: AnchorInput | None = None,
    plan: PlanInput | None = None,
    *,
    threshold: float = 0.5,
) -> dict[str, Tensor]:
    r"""Return how often matched predictions have the wrong class, and how far the number of objects is off.

    .. math::
        E_\text{class} = 100 \left( 1 - \frac{\sum_{i, j \le T} \hat P_{ij} [\arg\max \hat c_i = c_j]}
            {\sum_{i, j \le T} \hat P_{ij}} \right), \qquad
        E_\text{card} = \frac{1}{B} \sum_b \left| \#\{i : \hat c_i \ne \varnothing\} - T_b \right|

    Both are those of the final decoder layer, and 0 of nothing. Whether a prediction is an object,
    :math:`\hat c_i \ne \varnothing`, depends on the criterion: with a class for the background its largest logit is
    another one; without, its largest sigmoid score exceeds the threshold, a score that is multiplied by that of
    objectness if the criterion trains it. Ignored targets are not counted.

    Args:
        input: as for the criterion.
        target: as for the criterion. Of labels that are not integers the value of the predicted class counts.
        criterion: says how predictions are matched and where the background is.
        anchors: as for the criterion.
        plan: as for the criterion, instead of matching.
        threshold: least score of an object in [0, 1], exclusive; without a background class.

    Returns:
        "class_error" in percent and "cardinality_error" in objects an image, without dimensions, nor a gradient.

    Raises:
        TypeError: an argument or an entry has the wrong type or dtype.
        ValueError: a key is missing, or a shape, a device or a value is wrong.

    References:
        Carion et al., "End-to-end object detection with transformers", ECCV 2020 (the logs of its implementation).

    Examples:
        >>> from uotod.loss import SigmoidFocalLoss
        >>> from uotod.match import Hungarian
        >>> l1 = torch.nn.L1Loss(reduction="none")
        >>> criterion = DetectionLoss(SigmoidFocalLoss(reduction="none"), l1, Hungarian(loc_match_module=l1), "none")
        >>> boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 2.0]]])
        >>> target = {"labels": torch.tensor([[0, 1]]), "boxes": boxes}
        >>> logits = torch.tensor([[[4.0, -4.0], [-2.0, -1.0]]])  # right twice, but only one is an object
        >>> detection_errors({"pred_logits": logits, "pred_boxes": boxes}, target, criterion)
        {'class_error': tensor(0.), 'cardinality_error': tensor(1.)}
    """
    if not isinstance(criterion, DetectionLoss):
        raise TypeError(f"criterion must be a DetectionLoss, got {criterion!r} of type {type(criterion).__name__}")
    threshold = check_number("threshold", threshold, low=0.0, high=1.0)
    scene, matched, *_ = criterion.match(input, target, anchors, plan, known=tuple(input))
    with torch.autocast(scene.logits.device.type, enabled=False):
        is_object = _is_object(scene, criterion, threshold)
        is_object = is_object if scene.valid_preds is None else is_object & scene.valid_preds
        count, real = is_object.sum(1), scene.mask.sum(1)
        off = (count - real).abs()[len(count) - scene.images :]  # of the final layer
        return {
            "class_error": _class_error(scene, matched),
            "cardinality_error": off.sum().to(scene.logits.dtype) / max(scene.images, 1),
        }


def _class_error(scene: Scene, plan: Plan) -> Tensor:
    """Return the percentage of mass on targets whose label is not the top class, in the final layer."""
    logits = scene.logits
    labels = fold(plan, scene.targets, logits.shape[-1], None)
    top = logits.argmax(-1)  # (S, P)
    if labels.index is not None:
        right = labels.positive.masked_fill(labels.index != top, 0)
    else:
        right = labels.masses().gather(-1, top.unsqueeze(-1)).squeeze(-1)
    final = slice(len(logits) - scene.images, None)
    total = labels.positive[final].sum()
    wrong = (total - right[final].sum()).clamp(min=0)  # not below by rounding
    return 100 * wrong / torch.where(total > 0, total, 1)


def _is_object(scene: Scene, criterion: DetectionLoss, threshold: float) -> Tensor:
    """Return the (S, P) bool mask of predictions that stand for an object."""
    if scene.bg_class is not None:
        return scene.logits.argmax(-1) != scene.bg_class
    score = scene.logits.amax(-1).sigmoid()
    for term in criterion.all_terms:
        if isinstance(term, Objectness):
            score = score * scene.field("pred_objectness", term).sigmoid()
    return score > threshold
