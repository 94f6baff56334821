"""Padded predictions: a scene and a rule in, the plan of the others out, with rows of zeros for the padding."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from uotod.plan import Plan
from uotod.scene.scene import Scene


def plan_of_valid(scene: Scene, valid: Tensor, rule: Callable[[Scene], Plan]) -> Plan:
    """Return the plan that a rule makes as if padded predictions, where (S, P) `valid` is False, were not there.

    Images whose padding is alike are handed to the rule together. How much that is is read on the host: on a GPU this
    is one transfer.
    """
    rest, patterns = scene.without("pred_valid"), valid.cpu()
    alike: dict[bytes, list[int]] = {}
    for image, pattern in enumerate(patterns.numpy()):
        alike.setdefault(pattern.tobytes(), []).append(image)
    if len(alike) == 1 and bool(patterns.all()):
        return rule(rest)
    found = []
    for images in alike.values():
        some, preds = (x.to(valid.device) for x in (torch.tensor(images), patterns[images[0]].nonzero().squeeze(1)))
        found.append((some, preds, rule(rest.part(some, preds=preds))))
    return _join(found, valid) if found else rule(rest)


def forbid_padding(cost: Tensor, scene: Scene) -> Tensor:
    """Return a target-major cost (S, K, P), `inf` of predictions that are padding."""
    valid = scene.valid_preds
    return cost if valid is None else cost.masked_fill(~valid.unsqueeze(1), math.inf)


def _join(parts: list[tuple[Tensor, Tensor, Plan]], valid: Tensor) -> Plan:
    """Return the plan of which each part is that of some images and some predictions, both by their positions."""
    plans = [plan for _, _, plan in parts]
    if any(plan.target is None for plan in plans):
        # slots may differ, targets do not
        plans = [Plan.from_columns(plan.to_dense().transpose(1, 2), plan.num_targets) for plan in plans]
    first, (images, preds) = plans[0], valid.shape
    slots = max(plan.mass.shape[1] for plan in plans)
    mass = first.mass.new_zeros(images, slots, preds)
    target = None if first.target is None else first.target.new_zeros(images, slots, preds)
    background = None if first.background is None else first.background.new_zeros(images, preds)
    for (some, places, _), plan in zip(parts, plans, strict=True):
        image, slot = some[:, None, None], torch.arange(plan.mass.shape[1], device=valid.device)[:, None]
        mass[image, slot, places] = plan.mass
        if target is not None and plan.target is not None:
            target[image, slot, places] = plan.target
        if background is not None and plan.background is not None:
            background[some[:, None], places] = plan.background
    return Plan(mass, target, background, first.num_targets)
