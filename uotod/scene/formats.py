"""Formats of boxes: what users say of theirs, and what a tensor says of itself, in; corners, xyxy, out."""

from collections.abc import Callable

from torch import Tensor

from uotod.geometry.boxes import box_cxcywh_to_xyxy, box_xywh_to_xyxy, own_format

BOX_FORMATS: dict[str, Callable[[Tensor], Tensor]] = {"cxcywh": box_cxcywh_to_xyxy, "xywh": box_xywh_to_xyxy}


def plain_boxes(name: str, boxes: Tensor, declared: str | None, option: str = "box_format") -> Tensor:
    """Return boxes without a format of their own, in the declared one; None of which is xyxy unless they state another.

    Args:
        name: what errors call the boxes.
        boxes: (..., 4) boxes.
        declared: "xyxy", "cxcywh" or "xywh" if the caller says so, or None.
        option: what errors call the option by which the caller says so.

    Raises:
        ValueError: the boxes state another format than the one that is declared, or one that is not known.
    """
    stated = own_format(boxes)
    if stated is None:
        return boxes
    if stated not in ("xyxy", *BOX_FORMATS):
        raise ValueError(f"{name} must be of the format xyxy, cxcywh or xywh, got boxes of the format {stated}")
    if declared is not None and declared != stated:
        raise ValueError(
            f"{name} state that they are {stated}, but {option}={declared!r}: say the same, or convert them"
        )
    plain: Tensor = boxes.as_subclass(Tensor)
    return plain if declared is not None or stated == "xyxy" else BOX_FORMATS[stated](plain)
