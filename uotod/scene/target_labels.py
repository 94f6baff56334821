"""Labels of targets: integers or rows that a user passes in, values that are safe to read as an index out."""

from typing import NoReturn

import torch
from torch import Tensor

from uotod.check import check_range, reads_values
from uotod.geometry.boxes import full_precision

RIGHT = torch.iinfo(torch.int64).min  # stands for a label that is allowed


def parse_labels(
    key: str,
    labels: Tensor,
    mask: Tensor,
    num_classes: int,
    dtype: torch.dtype,
    validate: bool,
    present: Tensor | None,
    unchecked: dict[str, Tensor],
) -> Tensor:
    """Return integer labels (B, T) or one-hot ones (B, T, C), zeros under the mask.

    Where values may not be looked at, a label that is not allowed becomes 0, and is written into `unchecked`.
    """
    name, looks = f"target[{key!r}]", reads_values(labels, validate)
    if labels.dim() == 3:
        one_hot = full_precision(labels.to(dtype)).masked_fill(~mask.unsqueeze(-1), 0)
        if looks and not ((one_hot >= 0) & (one_hot <= 1)).all():
            raise ValueError(f"{name} must hold one-hot values in [0, 1], got a value outside")
        absent = torch.zeros_like(one_hot) if present is None else one_hot.masked_fill(present.unsqueeze(1), 0)
        if looks and present is not None and bool(absent.any()):
            _refuse_absent(name, *(int(x) for x in absent.nonzero()[0][[0, 2]]))
        if not looks and present is not None:
            unchecked[key] = torch.where(absent.any(-1), absent.argmax(-1), RIGHT)
        return one_hot
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        if labels.numel():  # an empty tensor has no dtype to object to
            raise TypeError(f"{name} of shape (B, T) must have an integer dtype, got {labels.dtype}")
        labels = labels.long()
    index = labels.long().masked_fill(~mask, 0)
    if not index.numel():
        return index
    if looks:
        check_range(name, index, num_classes, note=" where the mask is True")
    wrong = ((index < 0) | (index >= num_classes)) & mask
    safe = index if looks else index.masked_fill(wrong, 0)
    if present is not None:
        wrong = wrong | (~present.gather(1, safe) & mask)
        if looks and bool(wrong.any()):
            image, target = (int(x) for x in wrong.nonzero()[0])
            _refuse_absent(name, image, int(index[image, target]))
    if not looks:
        unchecked[key] = index.where(wrong, RIGHT)
    return safe


def _refuse_absent(name: str, image: int, label: int) -> NoReturn:
    raise ValueError(
        f"{name} must name classes for which input['image_class_mask'] is True, got the absent class {label} in image "
        f"{image}"
    )
