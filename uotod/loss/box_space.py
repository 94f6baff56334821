"""Localisation losses in another parameterisation: boxes in, the loss of their centres and sizes, or of deltas, out."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from uotod.check import Described, check_choice, check_number
from uotod.cost.adapters import Adapting, adapt
from uotod.cost.kinds import Adapter, Pair
from uotod.geometry.boxes import box_xyxy_to_cxcywh, full_precision
from uotod.geometry.coders import BoxCoder
from uotod.loss.box_pair import BoxPairLoss, check_rows


class BoxSpace(Described, Adapting):
    r"""Evaluate a coordinate-wise loss on boxes in another parameterisation.

    .. math:: L(\varphi(\hat b), \varphi(b))

    Boxes arrive as xyxy, whatever a detector predicts. DETR's L1 loss compares `"cxcywh"` of normalised boxes, the
    smooth L1 loss of SSD and R-CNN compares deltas from anchors, `DeltaCoder()`, and distances from points are
    `DistanceCoder()`. Coders need the `anchors` of a `DetectionLoss`.

    Args:
        loss: a loss of values, not of boxes: `L1Loss`, `SmoothL1Loss`, `MSELoss`, `BalancedL1Loss` and the like. Its
            `reduction` is that of the whole.
        space: "xyxy", "cxcywh" or a `BoxCoder`.
        image_size: width and height by which coordinates are divided first, in the units of the boxes; "input" for
            those of each image in `input["image_size"]` (B, 2); None if they are to be left as they are. With a coder
            anchors would have to be divided as well, so it must be None.

    Shape:
        input and target: (..., 4) boxes, xyxy; anchors: (..., 4); image_size: (..., 2). Output: that of `loss`.

    Raises:
        TypeError: `loss` is not a module, or `space` neither a string nor a coder.
        ValueError: `loss` compares boxes, `space` is unknown, or `image_size` does not fit.

    References:
        Carion et al., "End-to-end object detection with transformers", ECCV 2020, appendix A.2; Liu et al., "SSD",
        ECCV 2016, eq. 2.

    Examples:
        >>> import torch
        >>> loss = BoxSpace(nn.L1Loss(reduction="none"), "cxcywh", image_size=(8, 4))
        >>> loss(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([[0.0, 0.0, 8.0, 4.0]]))
        tensor([[0.2500, 0.0000, 0.5000, 0.0000]])
    """

    def __init__(
        self, loss: nn.Module, space: str | BoxCoder, *, image_size: Sequence[float] | str | None = None
    ) -> None:
        super().__init__()
        if not isinstance(loss, nn.Module):
            raise TypeError(f"loss must be a torch.nn.Module, got {loss!r}")
        for part in adapt(loss):
            if isinstance(part.module, BoxPairLoss):
                raise ValueError(f"loss must compare values one by one, got {type(part.module).__name__} of boxes")
        if not isinstance(space, BoxCoder):
            if not isinstance(space, str):
                raise TypeError(f"space must be a string or a BoxCoder, got {space!r} of type {type(space).__name__}")
            check_choice("space", space, ("xyxy", "cxcywh"))
        if image_size is not None and isinstance(space, BoxCoder):
            raise ValueError(f"image_size must be None with a coder, got {image_size!r}")
        self.loss = loss
        self.space = space
        self.image_size = None if image_size is None else _check_size(image_size)

    @property
    def needs(self) -> tuple[str, ...]:
        """Return the fields of each row that `forward` takes besides the boxes."""
        if isinstance(self.space, BoxCoder):
            return self.space.needs
        return ("image_size",) if self.image_size == "input" else ()

    @property
    def reduction(self) -> str:
        """Return the reduction of the loss."""
        reduction: str = getattr(self.loss, "reduction", "none")
        return reduction

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        anchors: Tensor | None = None,
        stride: Tensor | None = None,
        image_size: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of (..., 4) boxes against the targets in the same rows, all xyxy.

        Args:
            input: (..., 4) boxes.
            target: (..., 4) boxes.
            anchors: (..., 4) boxes; needed with a coder.
            stride: (...) strides; needed with a coder that measures in strides.
            image_size: (..., 2) width and height; needed with `image_size="input"`.

        Raises:
            ValueError: the shapes differ, or what a coder or the size of images needs is missing.
        """
        check_rows(input, target)
        if isinstance(self.space, BoxCoder):
            if anchors is None:
                raise ValueError(f"anchors must be given to a BoxSpace with {type(self.space).__name__}, got None")
            anchors = anchors.to(full_precision(input).dtype)
            values = [self.space.encode(boxes, anchors, stride) for boxes in (input, target)]
        else:
            values = [self._convert(boxes, image_size) for boxes in (input, target)]
        loss: Tensor = self.loss(*values)
        return loss

    def adapter(self) -> Adapter:
        """Return how the loss takes part: by pairs of boxes in the other parameterisation, or by rows with sizes."""
        return Adapter(self) if self.image_size == "input" else Pair(self, self.pairwise)

    def pairwise(self, boxes: Tensor, target_boxes: Tensor, image_size: Tensor | None = None) -> Tensor:
        """Return the unreduced loss (B, T, P) of all pairs of (B, P, 4) boxes and (B, T, 4) targets.

        Sizes of images are (B, 2).

        Raises:
            ValueError: the space is a coder, which has no cost of all pairs.
        """
        if isinstance(self.space, BoxCoder):
            raise ValueError(f"a BoxSpace with {type(self.space).__name__} cannot be a matching cost: it needs anchors")
        size = None if image_size is None else image_size.unsqueeze(1)
        fields = {"pred_boxes": self._convert(boxes, size), "target_boxes": self._convert(target_boxes, size)}
        shape = (len(boxes), target_boxes.shape[1], boxes.shape[1])
        costs = [part.weight * part.adapter.pair_cost(fields, shape) for part in self.adapted["loss"]]
        return costs[0] if len(costs) == 1 else torch.stack(costs).sum(0)

    def _convert(self, boxes: Tensor, image_size: Tensor | None = None) -> Tensor:
        boxes = full_precision(boxes)
        if self.image_size == "input":
            if image_size is None:
                raise ValueError('image_size must be given to a BoxSpace with image_size="input", got None')
            boxes = boxes / torch.cat((image_size, image_size), dim=-1).to(boxes.dtype)
        elif self.image_size is not None:
            # number by number: a tensor of the sizes would be a transfer that synchronises with a GPU
            boxes = torch.stack([x / n for x, n in zip(boxes.unbind(-1), 2 * self.image_size, strict=True)], dim=-1)
        return box_xyxy_to_cxcywh(boxes) if self.space == "cxcywh" else boxes


def _check_size(size: Sequence[float] | str) -> tuple[float, ...] | Literal["input"]:
    """Return width and height, or "input"."""
    if size == "input":
        return "input"
    if isinstance(size, str) or len(size) != 2:
        raise ValueError(f"image_size must hold width and height, or be 'input', got {size!r}")
    return tuple(check_number(f"image_size[{i}]", x, low=0.0, low_open=True) for i, x in enumerate(size))
