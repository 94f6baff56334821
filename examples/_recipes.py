"""A recipe on the model of a training program: its name comes in; the head that it needs and its criterion go out."""

from typing import NamedTuple

import torch
from _options import Options, fail
from common import Detector, Outputs
from torch import Tensor, nn

from uotod.loss import Branches, DetectionLoss
from uotod.match import GridCell, Uniform
from uotod.recipes import ALL_RECIPES
from uotod.utils import Anchors

BINS = 17  # of the distribution of a distance, 0 to 16 strides, where a recipe reads one


class Head(NamedTuple):
    """What a model predicts at each place.

    Attributes:
        num_classes: number of classes, without the background.
        background: where the logits have a class for the background: "first", "last" or, for sigmoids, "none".
        objectness: whether there is a logit of objectness or centerness, too.
        bins: number of bins of the distances of the sides; 0 if the box is predicted itself.
        shapes: whether there are anchors of several shapes at a place.
    """

    num_classes: int
    background: str
    objectness: bool = False
    bins: int = 0
    shapes: bool = True

    @property
    def num_logits(self) -> int:
        """Return the number of classification logits."""
        return self.num_classes + (self.background != "none")

    def scores(self, outputs: Outputs) -> Tensor:
        """Return the (B, P, C) scores of the classes, without the background."""
        logits: Tensor = outputs["pred_logits"].float()
        if self.background == "none":
            scores = logits.sigmoid()
        else:
            scores = logits.softmax(-1)
            scores = scores[..., 1:] if self.background == "first" else scores[..., :-1]
        if "pred_objectness" in outputs:
            scores = scores * outputs["pred_objectness"].float().sigmoid().unsqueeze(-1)
        return scores


class RecipeCriterion(nn.Module):
    """The criterion of a recipe, which takes what a model of these programs returns.

    It moves labels beyond a background class in front, and where the outputs have an "image_size" (height, width), it
    states boxes and anchors in pixels: rules that count strides or sizes need a unit that is the same in both axes.
    """

    def __init__(self, name: str, num_classes: int) -> None:
        super().__init__()
        self.name = name
        self.criterion = ALL_RECIPES[name](num_classes)
        main = self.criterion.main if isinstance(self.criterion, Branches) else self.criterion
        assert isinstance(main, DetectionLoss)
        self.main: DetectionLoss = main
        matcher = main.matching_method
        reads = {field for term in main.all_terms for field in term.needs}
        self.head = Head(
            num_classes,
            main.bg_class_position,
            objectness="pred_objectness" in reads,
            bins=BINS if "pred_dist" in reads else 0,
            shapes=matcher.is_anchor_based or isinstance(matcher, (GridCell, Uniform)),
        )

    def forward(self, outputs: Outputs, targets: dict[str, Tensor], anchors: Tensor | None = None) -> Tensor:
        """Return the loss of outputs and padded targets, both with boxes as fractions of the image."""
        loss: Tensor = self.criterion(*self.convert(outputs, targets, anchors))
        return loss

    def plan(self, outputs: Outputs, targets: dict[str, Tensor], anchors: Tensor | None = None) -> Tensor:
        """Return the plan. Arguments as in `forward`."""
        plan: Tensor = self.main.matching_method(*self.convert(outputs, targets, anchors))
        return plan

    def convert(
        self, outputs: Outputs, targets: dict[str, Tensor], anchors: Tensor | None
    ) -> tuple[Outputs, dict[str, Tensor], Anchors | None]:
        """Return what the criterion reads."""
        labels = targets["labels"] + (self.head.background == "first")
        if "image_size" not in outputs:
            return outputs, {**targets, "labels": labels}, None
        height, width = outputs["image_size"]
        size = outputs["pred_boxes"].new_tensor([width, height, width, height])
        targets = {**targets, "labels": labels, "boxes": targets["boxes"] * size}
        places = None if anchors is None else Anchors(anchors * size, outputs["stride"])
        pixels = {"pred_boxes": outputs["pred_boxes"] * size, "image_size": size[:2].expand(len(labels), -1)}
        return {**outputs, **pixels}, targets, places


class DoesNotFitError(SystemExit):
    """A recipe that a program cannot train; as every error of the programs, it ends them with one line."""


def check_fit(detector: Detector, options: Options, *, reads_anchors: bool) -> None:
    """Run the model and the loss once on an empty image with a target.

    Raises:
        DoesNotFitError: the recipe needs what the model does not predict, or it does not read the anchors that it has.
    """
    targets = {"labels": torch.zeros(1, 1).long(), "boxes": torch.tensor([[[0.3, 0.3, 0.6, 0.6]]])}
    height, width = options.size
    refusal = f"error: --recipe {options.recipe} does not fit {options.program}:"
    with torch.no_grad():
        outputs = detector.model(torch.zeros(1, 3, height, width))
        try:
            detector.criterion(outputs, targets, outputs.get("anchors"))
        except (TypeError, ValueError) as error:
            raise DoesNotFitError(f"{refusal} {error}") from error
        if not reads_anchors:
            return
        try:
            detector.criterion(outputs, targets, None)
        except ValueError:  # what it needs is there
            return
    raise DoesNotFitError(f"{refusal} it reads no anchors, train_detr trains it")


def recipe_criterion(options: Options, num_classes: int) -> RecipeCriterion:
    """Return the criterion of `--recipe`; the program ends with a one-line error if it cannot be built."""
    assert options.recipe is not None
    try:
        return RecipeCriterion(options.recipe, num_classes)
    except (TypeError, ValueError) as error:
        fail(f"--recipe {options.recipe}: {error}")
