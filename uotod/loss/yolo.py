"""YOLO's composite loss on a grid: (B, S, S, C + 5) predictions and targets in, the weighted sum of its terms out."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from uotod.check import Described, check_choice, check_device, check_number, check_shares
from uotod.geometry.boxes import aligned_overlap, full_precision
from uotod.geometry.cell_coder import SIZES, CellCoder, compress_size
from uotod.loss.box_pair import BoxPairLoss
from uotod.loss.confidence import error
from uotod.loss.iou import CIoULoss, GIoULoss, IoULoss

OVERLAPS: dict[str, type[BoxPairLoss]] = {"iou": IoULoss, "giou": GIoULoss, "ciou": CIoULoss}


class Form(NamedTuple):
    """What a textbook form says otherwise than the paper; each of its terms is the mean of its own elements.

    Attributes:
        weights: of the terms "loss_loc", "loss_obj", "loss_noobj" and "loss_cls".
        box: error of the four numbers of a box.
        classes: error of a class.
        everywhere: those of "box", "confidence" and "classes" whose error is taken over all cells.
        objects: "target", cells whose confidence in the target is above 0; or "overlap", those whose two boxes have an
            IoU above 0.5.
    """

    weights: tuple[float, float, float, float]
    box: str
    classes: str
    everywhere: tuple[str, ...]
    objects: str = "target"


FORMS = {
    "mse": Form((1.0, 1.0, 1.0, 1.0), "mse", "mse", ("box", "confidence", "classes")),
    "smooth_l1": Form((5.0, 1.0, 0.5, 1.0), "smooth_l1", "bce_of_probabilities", ("box",)),
    "smooth_l1_overlap": Form((5.0, 1.0, 0.5, 1.0), "smooth_l1", "bce_of_probabilities", ("box",), "overlap"),
}


class YOLOLoss(Described):
    r"""Add up the errors of boxes, confidences and classes on a grid of cells.

    .. math::
        L = \sum_{\text{obj}} \Big[ \lambda_\text{coord} L_\text{box} + \lambda_\text{obj}\, \ell(\hat q, q)
            + \lambda_\text{class} \sum_c \ell(\hat p_c, p_c) \Big]
            + \lambda_\text{noobj} \sum_{\text{noobj}} \ell(\hat q, 0)

    A cell of the S × S grid holds `x, y, w, h, q, p_1, ..., p_C`, and so does its target:

    * `x, y`: the box's centre in its cell, in cells from the upper left corner, in [0, 1];
    * `w, h`: its size, in images, in [0, 1];
    * `q`: the confidence. In the target it is above 0 in a cell with an object, where it says what confidence the
      object shall have (1), 0 in one without, and -1 in an ignored cell, which contributes nothing;
    * `p`: the classes, in the target one-hot. They and the box are read in cells with an object only.

    `x, y, w, h` of the prediction are the values themselves, whatever activation the model gives them. `q` and `p` are
    values for the squared error, and logits for the cross-entropy.

    The defaults are YOLO v1, but for the confidence of an object, which in its paper is the IoU of its boxes:
    `obj_quality="iou"`. YOLO v3 is `YOLOLoss(1, 1, 1, 1, size="log", confidence="bce", classes="bce")`. The same is
    said for any number of predictions in a cell by `GridCell`, `ConfidenceLoss` and `DetectionLoss`:
    `uotod.recipes.yolo`. The forms that tutorials teach on the same tensors are `YOLOLoss.textbook`.

    Args:
        lambda_coord: weight of the box, at least 0.
        lambda_obj: weight of the confidence in cells with an object, at least 0.
        lambda_noobj: weight of the confidence in cells without, at least 0.
        lambda_class: weight of the classes, at least 0.
        box: "mse", the squared errors of `x, y` and the compressed `w, h`; "smooth_l1" of the same (β = 1); or "iou",
            "giou", "ciou" of the boxes as fractions of the image.
        size: what "mse" and "smooth_l1" compare: "sqrt", the root of `w` and `h`; "log"; or "linear".
        confidence: "mse" for the squared error, "bce" for the cross-entropy of a logit.
        classes: the same for each class.
        obj_quality: "iou" to multiply the target's confidence by the IoU of predicted and target box, without a
            gradient; None for the target's own.
        reduction: "mean", the sum over the number of objects of the batch, at least 1; or "sum". YOLO's paper divides
            by neither; a mean over images is the sum over B.

    Shape:
        input and target: (B, S, S, C + 5), rows from the top, C ≥ 1. Output: ().

    Raises:
        ValueError: an argument is out of its range.

    Root and logarithm continue as their tangents below 1e-6. Time and memory O(B·S²·C).

    References:
        Redmon et al., "You only look once", CVPR 2016, eq. 3; Redmon and Farhadi, "YOLOv3: an incremental improvement",
        2018, sec. 2.1.

    Examples:
        >>> target = torch.zeros(1, 2, 2, 6)
        >>> target[0, 1, 0] = torch.tensor([0.5, 0.5, 0.25, 0.25, 1.0, 1.0])  # one object, of the only class
        >>> input = target.clone()
        >>> input[0, 1, 0, 4], input[0, 0, 0, 4] = 0.5, 0.5
        >>> terms = YOLOLoss().terms(input, target)
        >>> terms["loss_loc"], terms["loss_obj"], terms["loss_noobj"], terms["loss_cls"]
        (tensor(0.), tensor(0.2500), tensor(0.1250), tensor(0.))
    """

    def __init__(
        self,
        lambda_coord: float = 5.0,
        lambda_obj: float = 1.0,
        lambda_noobj: float = 0.5,
        lambda_class: float = 1.0,
        box: str = "mse",
        *,
        size: str = "sqrt",
        confidence: str = "mse",
        classes: str = "mse",
        obj_quality: str | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_choice("box", box, ("mse", "smooth_l1", *OVERLAPS))
        check_choice("size", size, SIZES)
        check_choice("confidence", confidence, ("mse", "bce"))
        check_choice("classes", classes, ("mse", "bce"))
        check_choice("obj_quality", obj_quality, (None, "iou"))
        check_choice("reduction", reduction, ("mean", "sum"))
        self.lambda_coord = check_number("lambda_coord", lambda_coord, low=0.0)
        self.lambda_obj = check_number("lambda_obj", lambda_obj, low=0.0)
        self.lambda_noobj = check_number("lambda_noobj", lambda_noobj, low=0.0)
        self.lambda_class = check_number("lambda_class", lambda_class, low=0.0)
        self.box, self.size, self.confidence, self.classes = box, size, confidence, classes
        self.obj_quality, self.reduction = obj_quality, reduction
        self.form: str | None = None
        self.everywhere: tuple[str, ...] = ()
        self.objects = "target"

    @classmethod
    def textbook(cls, form: str) -> "YOLOLoss":
        r"""Build a form that tutorials teach, each term the mean of its own elements.

        With the four numbers `x, y, w, h` of a box, `b`, as they are, all cells `A`, those with an object `O`, and
        :math:`\operatorname{mean}` over cells and the numbers in them, 0 of no cell:

        * "mse": :math:`\operatorname{mean}_A (\hat b - b)^2 + \operatorname{mean}_A (\hat q - q)^2
          + \operatorname{mean}_A (\hat p - p)^2`. "loss_obj" is the whole second term, "loss_noobj" 0;
        * "smooth_l1": :math:`5 \operatorname{mean}_A \operatorname{smooth}_{L_1}(\hat b - b)
          + \operatorname{mean}_O (\hat q - q)^2 + 0.5 \operatorname{mean}_{A \setminus O} (\hat q - q)^2
          - \operatorname{mean}_O \left[p \ln \hat p + (1 - p) \ln(1 - \hat p)\right]`. The classes are
          probabilities, not logits; their logarithms are at least -100, as in `torch.nn.BCELoss`;
        * "smooth_l1_overlap": the same, where `O` are the cells in which predicted and target box, as fractions of the
          image, have an IoU above 0.5, whatever the target's confidence; that remains what `q` is.

        Ignored cells, a confidence of -1 in the target, are in neither set. The boxes of empty cells are read.

        Args:
            form: "mse", "smooth_l1" or "smooth_l1_overlap".

        Raises:
            ValueError: there is no such form.

        Examples:
            >>> target = torch.zeros(1, 2, 2, 6)
            >>> target[0, 1, 0] = torch.tensor([0.5, 0.5, 0.25, 0.25, 1.0, 1.0])  # one object, of the only class
            >>> input = torch.full((1, 2, 2, 6), 0.5)
            >>> terms = YOLOLoss.textbook("smooth_l1").terms(input, target)
            >>> terms["loss_loc"], terms["loss_obj"], terms["loss_noobj"], terms["loss_cls"]
            (tensor(0.4883), tensor(0.2500), tensor(0.1250), tensor(0.6931))
            >>> YOLOLoss.textbook("mse")(input, target)
            tensor(0.6953)
        """
        check_choice("form", form, tuple(FORMS))
        weights, box, classes, everywhere, objects = FORMS[form]
        loss = cls(*weights, box, size="linear")
        loss.form, loss.classes, loss.reduction = form, classes, "elements"
        loss.everywhere, loss.objects = everywhere, objects
        return loss

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of (B, S, S, C + 5) predictions against targets of the same shape.

        Raises:
            TypeError: a tensor is not floating.
            ValueError: the shapes differ or are no grid, or on the CPU a confidence of the target is neither -1 nor in
                [0, 1], or a probability that is read is not in [0, 1].
        """
        return self.terms(input, target)["loss"]

    def terms(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the loss and what it is made of. Arguments as in `forward`.

        Returns:
            "loss"; "loss_loc", "loss_obj", "loss_noobj" and "loss_cls", which add up to it; detached, "num_pos" and
            "num_neg", the numbers of cells with an object and without.
        """
        _check_grid(input, target)
        with torch.autocast(input.device.type, enabled=False):
            values = full_precision(input)
            return self._terms(values, target.to(values.dtype))

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        arguments = super().extra_repr()
        return arguments if self.form is None else f"form={self.form!r}, {arguments}"

    def _terms(self, values: Tensor, target: Tensor) -> dict[str, Tensor]:
        confidence = target[..., 4:5]  # (B, S, S, 1)
        counts, has_object = confidence >= 0, confidence > 0
        # a masked NaN would still reach the gradient: what is not read becomes harmless before the loss
        box_cells = counts if "box" in self.everywhere else has_object
        box, other = (torch.where(box_cells, x[..., :4], 0.5) for x in (values, target))
        found, wanted = (torch.where(counts, x[..., 4:5], 0.0) for x in (values, target))
        if self.obj_quality is not None or self.objects == "overlap":
            overlap = aligned_overlap(grid_boxes(box.detach()), grid_boxes(other), "iou", eps=0.0)
            overlap = overlap.clamp(max=1).unsqueeze(-1)
            if self.objects == "overlap":
                has_object = counts & (overlap > 0.5)
            else:
                wanted = wanted * overlap
        obj_cells = counts if "confidence" in self.everywhere else has_object
        class_cells = counts if "classes" in self.everywhere else has_object
        classes, labels = (torch.where(class_cells, x[..., 5:], 0.0) for x in (values, target))
        if self.classes == "bce_of_probabilities":
            check_shares("input[..., 5:]", classes, "hold probabilities in [0, 1], not logits")
        confidences = error(found, wanted, self.confidence)
        parts = {  # weight, cells (B, S, S, 1), errors (B, S, S, 1 or more)
            "loss_loc": (self.lambda_coord, box_cells, self._box_errors(box, other)),
            "loss_obj": (self.lambda_obj, obj_cells, confidences),
            "loss_noobj": (self.lambda_noobj, counts & ~obj_cells, confidences),
            "loss_cls": (self.lambda_class, class_cells, error(classes, labels, self.classes)),
        }
        num_pos, num_neg = (cells.sum().to(values.dtype) for cells in (has_object, counts & ~has_object))
        sums = {}
        for name, (weight, cells, errors) in parts.items():
            sums[name] = weight * errors.where(cells, 0.0).sum()
            if self.reduction != "sum":
                count = cells.sum() * errors.shape[-1] if self.reduction == "elements" else num_pos
                sums[name] = sums[name] / count.clamp(min=1)
        return {"loss": torch.stack(list(sums.values())).sum(), **sums, "num_pos": num_pos, "num_neg": num_neg}

    def _box_errors(self, box: Tensor, other: Tensor) -> Tensor:
        """Return the errors (B, S, S, 4 or 1) of each cell's box."""
        if self.box in OVERLAPS:
            loss: Tensor = OVERLAPS[self.box](reduction="none")(grid_boxes(box), grid_boxes(other))
            return loss.unsqueeze(-1)
        ours, theirs = (
            torch.cat((x[..., :2], compress_size(x[..., 2:], self.size, CellCoder.eps)), dim=-1) for x in (box, other)
        )
        if self.box == "mse":
            return error(ours, theirs, "mse")
        return nn.functional.smooth_l1_loss(ours, theirs, reduction="none")


def grid_boxes(values: Tensor) -> Tensor:
    """Return the boxes (B, S, S, 4), xyxy as fractions of the image, of a grid (B, S, S, ≥ 4) of `x, y, w, h`."""
    side = values.shape[1]
    center = (torch.arange(side, device=values.device).to(values.dtype) + 0.5) / side
    points = torch.stack((center.expand(side, side), center[:, None].expand(side, side)), dim=-1)  # (S, S, 2)
    return CellCoder("linear").decode(values[..., :4], points, values.new_full((), 1 / side))


def _check_grid(input: Tensor, target: Tensor) -> None:
    for name, tensor in (("input", input), ("target", target)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name} must be a floating tensor, got {kind}")
    if input.dim() != 4 or input.shape[1] != input.shape[2] or not input.shape[1] or input.shape[3] < 6:
        raise ValueError(f"input must have shape (B, S, S, C + 5) with S, C >= 1, got {tuple(input.shape)}")
    if target.shape != input.shape:
        raise ValueError(f"target must have shape {tuple(input.shape)} like input, got {tuple(target.shape)}")
    check_device("target", target, input.device)
    expected = "lie in [0, 1] or be -1 for an ignored cell"
    check_shares("target[..., 4], the confidence,", target[..., 4], expected, or_be=-1.0)
