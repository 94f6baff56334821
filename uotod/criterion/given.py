"""A plan that is given instead of matched: masses or target indices in, the validated plan of all layers out."""

import torch
from torch import Tensor

from uotod.check import check_device, check_finite, reads_values
from uotod.plan import AssignedPlan, DensePlan, Plan
from uotod.scene.predictions import Scene


def given_plan(plan: Tensor, scene: Scene, background: bool, validate: bool) -> Plan:
    """Return the plan of a batch that a user states; decoder layers share it.

    Shape, dtype and device are always checked, values on the CPU or with `validate`.

    Args:
        plan: (B, P, T + 1) masses, (B, P, T) without background, or (B, P) integer indices: the target of each
            prediction, T for the background, -1 for an ignored prediction.
        scene: predictions and targets, of one or more decoder layers.
        background: whether plans have a background.
        validate: whether values may be read on a GPU.

    Raises:
        TypeError: the plan is not a tensor, or has the wrong dtype.
        ValueError: its shape, its device or a value is wrong.
    """
    if not isinstance(plan, Tensor):
        raise TypeError(f"plan must be a tensor, got {type(plan).__name__}")
    layers, boxes = scene.layers, scene.pred_boxes
    images, preds, num_targets = len(boxes) // layers, boxes.shape[1], scene.mask.shape[1]
    mask = scene.mask[:images]
    dense, assigned = (images, preds, num_targets + background), (images, preds)
    if tuple(plan.shape) not in (dense, assigned):
        raise ValueError(f"plan must have shape {dense} (masses) or {assigned} (indices), got {tuple(plan.shape)}")
    check_device("plan", plan, boxes.device)
    if plan.dim() == 3:
        if not plan.is_floating_point():
            raise TypeError(f"plan of shape {dense} must have a floating dtype, got {plan.dtype}")
        _check_masses(plan, mask, validate)
        mass = plan.detach().to(boxes.dtype).transpose(1, 2).contiguous()
        return DensePlan.from_columns(mass, num_targets).repeat(layers)
    if plan.is_floating_point() or plan.is_complex() or plan.dtype == torch.bool:
        raise TypeError(f"plan of shape {assigned} must have an integer dtype, got {plan.dtype}")
    index = plan.long()
    _check_indices(index, mask, background, validate)
    mass = boxes.new_ones(index.shape)
    return AssignedPlan(index, mass, num_targets, has_background=background).repeat(layers)


def _check_masses(plan: Tensor, mask: Tensor, validate: bool) -> None:
    """Check the values of (B, P, T + 1) masses: finite, not negative, none on padded or ignored targets."""
    if not reads_values(plan, validate) or not plan.numel():
        return
    check_finite("plan", plan, validate)
    lowest = float(plan.detach().amin())
    if lowest < 0:
        raise ValueError(f"plan must not be negative, got {lowest}")
    on_padding = (plan.detach()[..., : mask.shape[1]] != 0) & ~mask.unsqueeze(1)
    if bool(on_padding.any()):
        image, pred, target = (int(x) for x in on_padding.nonzero()[0])
        value = float(plan[image, pred, target])
        raise ValueError(
            f"plan must be 0 where target['mask'] is False or a target is ignored, "
            f"got {value} in image {image}, prediction {pred}, target {target}"
        )


def _check_indices(index: Tensor, mask: Tensor, background: bool, validate: bool) -> None:
    """Check the values of (B, P) indices: in range, and none of a padded or ignored target."""
    if not reads_values(index, validate) or not index.numel():
        return
    num_targets = mask.shape[1]
    high = num_targets if background else num_targets - 1
    low, top = (int(x) for x in torch.aminmax(index))
    if low < -1 or top > high:
        raise ValueError(f"plan must hold indices in [-1, {high}], got {low if low < -1 else top}")
    allowed = torch.cat((mask, mask.new_ones(len(mask), 2)), dim=1)  # the background, and -1 taken from the end
    on_padding = ~allowed.gather(1, index.remainder(num_targets + 2))
    if bool(on_padding.any()):
        image, pred = (int(x) for x in on_padding.nonzero()[0])
        raise ValueError(
            "plan must not match targets where target['mask'] is False or a target is ignored, "
            f"got target {int(index[image, pred])} in image {image}, prediction {pred}"
        )
