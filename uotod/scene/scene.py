"""The scene, everything that matchers and losses read: what users pass in, one validated value out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from uotod.check import reads_values
from uotod.geometry.anchors import Anchors, Locations, Points, parse_anchors
from uotod.geometry.boxes import largest_side
from uotod.plan import once
from uotod.scene.absent import check_background_present
from uotod.scene.formats import BOX_FORMATS
from uotod.scene.predictions import PredictionDict, check_num_classes, check_values, parse_predictions
from uotod.scene.target_labels import RIGHT
from uotod.scene.targets import TargetInput, Targets, parse_targets

AnchorInput = Tensor | Anchors | Points
Index = slice | Tensor  # of (N,) positions

ALL = slice(None)


@dataclass(frozen=True)
class Scene:
    """Predictions of stacked decoder layers, the targets of the same images and, if given, anchors or points.

    Attributes:
        logits: (S, P, C) class scores before softmax or sigmoid, of S = layers * images stacked images.
        preds: what else is read of predictions, (S, P, ...) each; those of images, `image_...`, are (S, ...).
        mask: (S, T) bool mask of targets that are neither padding nor ignored.
        targets: the targets, once for each layer.
        layers: number of stacked decoder layers; the final one comes last.
        absent: for a field that a layer lacks, where it is 0, which layers have it.
        anchors: anchors or points, once for each layer, or None.
        looks: whether values may be looked at: on a GPU, that would synchronise.
        validate: whether they may be looked at all the same.
        bg_class: class of the background among the logits, or None if it has none.
        is_mined: whether the background of plans is that of the hardest predictions only.
    """

    logits: Tensor
    preds: Mapping[str, Tensor]
    mask: Tensor
    targets: Targets
    layers: int
    absent: Mapping[str, tuple[bool, ...]]
    anchors: Locations | None
    looks: bool
    validate: bool
    bg_class: int | None = None
    is_mined: bool = False

    @property
    def images(self) -> int:
        """The number of images B, each of which is there once for each layer."""
        return len(self.mask) // self.layers

    @property
    def pred_boxes(self) -> Tensor:
        """The (S, P, 4) predicted boxes, xyxy."""
        return self.field("pred_boxes", width=4)

    @property
    def target_boxes(self) -> Tensor:
        """The (S, T, 4) target boxes, xyxy, those of ignored targets included."""
        return self.field("target_boxes", width=4)

    @property
    def anchor_boxes(self) -> Tensor:
        """The (S, P, 4) anchors, which must be given."""
        if self.anchors is None:
            raise ValueError("anchors must be given with is_anchor_based=True, got None")
        return self.anchors.boxes

    @once
    def finite(self) -> Tensor:
        """The (S, P) bool mask of predictions without NaN or infinity, and whose areas do not overflow."""
        finite: Tensor = self.logits.isfinite().all(-1)
        for name, value in self.preds.items():
            if name.startswith("pred_") and value.is_floating_point():
                here = value.isfinite()
                if name == "pred_boxes":
                    here = here & (value.abs() <= largest_side(value))
                finite = finite & (here.flatten(2).all(-1) if value.dim() > 2 else here)
        return finite

    @property
    def valid_preds(self) -> Tensor | None:
        """The (S, P) bool mask of predictions that are not padding, or None if none is."""
        return self.preds.get("pred_valid")

    def field(self, name: str, owner: object = None, *, width: int | None = None) -> Tensor:
        """Return a field by the name under which a module declares it in `needs`.

        Those of predictions are `pred_...` (S, P, ...), of targets `target_...` (S, T, ...), of images `image_...`
        (S, ...); of anchors `anchors` (S, P, 4), `centers` (S, P, 2) and `stride` (S, P).

        Args:
            name: the name.
            owner: who reads it; errors name its class.
            width: size of its last dimension: 4 for boxes that are compared; None for any.

        Raises:
            ValueError: the field is unknown, was not given or has another width.
        """
        reader = "" if owner is None or name.endswith("_boxes") else f" for {type(owner).__name__}"
        key = name.removeprefix("target_")
        where = "target" if key != name else "input"
        value: Tensor | None
        if name in ("anchors", "centers", "stride"):
            if self.anchors is None:
                raise ValueError(f"anchors must be given{reader}, got None")
            value = getattr(self.anchors, "boxes" if name == "anchors" else name)
            if value is None:
                raise ValueError(f"anchors must have strides (Anchors or Points){reader}, got none")
            return value
        if not name.startswith(("pred_", "image_", "target_")):
            raise ValueError(
                f"{type(owner).__name__}.needs must hold names of the kinds 'pred_…', 'target_…' and 'image_…', or "
                f"'anchors', 'centers' or 'stride', got {name!r}"
            )
        fields = self.targets.fields if where == "target" else self.preds
        value = self.logits if name == "pred_logits" else fields.get(name)
        if value is None:
            given = ["pred_logits" if where == "input" else "labels", *(x.removeprefix("target_") for x in fields)]
            where += f"['aux_outputs'][{self.absent[name].index(False)}]" if name in self.absent else ""
            raise ValueError(f"{where} must have the key {key!r}{reader}, got the keys {given}")
        if width not in (None, value.shape[-1]):
            expected = (*value.shape[:-1], width)
            raise ValueError(f"{where}[{key!r}] must have shape {expected} to be compared, got {tuple(value.shape)}")
        return value

    def valid(self, name: str) -> Tensor:
        """Return what of a field of targets is not padding, (S, T, ...) bool, inner sizes that differ included."""
        if name in self.targets.valid:
            return self.targets.valid[name]
        value = self.field(name)
        return self.mask.view(*self.mask.shape, *[1] * (value.dim() - 2)).expand(value.shape)

    def where_given(self, names: Sequence[str], values: Tensor) -> Tensor:
        """Return (..., S) values, 0 in the decoder layers that lack one of the named fields."""
        absent = [self.absent[name] for name in names if name in self.absent]
        if not absent:
            return values
        given = [all(column) for column in zip(*absent, strict=True)]
        parts = values.chunk(self.layers, dim=-1)
        return torch.cat([x if here else torch.zeros_like(x) for x, here in zip(parts, given, strict=True)], dim=-1)

    def layer(self, index: int) -> "Scene":
        """Return the scene of one decoder layer; a negative index counts from the final one."""
        index %= self.layers
        found = self.part(slice(index * self.images, (index + 1) * self.images))
        return replace(
            found, preds={k: x for k, x in found.preds.items() if k not in self.absent or self.absent[k][index]}
        )

    def part(self, images: Index = ALL, targets: Index = ALL, preds: Index = ALL) -> "Scene":
        """Return some of the stacked images with some of their targets and predictions, as if of one layer."""
        fields = {
            name: x[images] if name.startswith("image_") else _take(x[images], preds) for name, x in self.preds.items()
        }
        of_targets = self.targets.map(lambda x: _take(x[images], targets))
        anchors = None if self.anchors is None else self.anchors.map(lambda x: _take(x[images], preds))
        return Scene(
            _take(self.logits[images], preds),
            fields,
            of_targets.mask,
            of_targets,
            1,
            {},
            anchors,
            self.looks,
            self.validate,
            self.bg_class,
            self.is_mined,
        )

    def to_match(self) -> "Scene":
        """Return the scene that a matcher sees: of what all decoder layers have, and with the labels of the cost."""
        if not self.absent and self.targets.cost_labels is None:
            return self
        preds = {name: x for name, x in self.preds.items() if name not in self.absent}
        return replace(self, preds=preds, targets=self.targets.of_cost())

    def only_targets(self, some: Tensor) -> "Scene":
        """Return the scene in which targets are padding where (S, T) is False."""
        mask = self.mask & some
        return replace(self, mask=mask, targets=replace(self.targets, mask=mask))

    def without(self, name: str) -> "Scene":
        """Return the scene without a field of predictions."""
        return replace(self, preds={key: x for key, x in self.preds.items() if key != name})

    def check_plan(self, mass: Tensor) -> None:
        """Raise a ValueError where a plan gives padded predictions (S, P) mass on targets, where that may be looked at.

        Labels that were not looked at may stop the device.
        """
        self.assert_labels()
        valid = self.valid_preds
        if valid is None or not reads_values(mass, self.validate):
            return
        for image, pred in ((mass > 0) & ~valid).nonzero()[:1].tolist():
            raise ValueError(
                "plan must not match predictions where input['pred_valid'] is False, got prediction "
                f"{pred} in image {image % self.images}"
            )

    @property
    def wrong_labels(self) -> Tensor | None:
        """The (S, T) bool mask of targets whose label is not allowed, or None if that was looked at already."""
        unchecked = self.targets.unchecked
        return torch.stack([x != RIGHT for x in unchecked.values()]).any(0) if unchecked else None

    def assert_labels(self) -> None:
        """Let the device stop at a label that is not allowed, where that was not looked at."""
        wrong = self.wrong_labels
        if wrong is not None:
            torch._assert_async((~wrong).all(), self._expected_labels("labels"))

    def check_values(self) -> None:
        """Raise a ValueError that names a value that is not allowed, where that was not looked at; synchronises."""
        check_values({"pred_logits": self.logits, **self.preds}, self.layers)
        for key, found in self.targets.unchecked.items():
            values = found[found != RIGHT]
            if len(values):
                raise ValueError(f"{self._expected_labels(key)}, got {int(values[0])}")

    def _expected_labels(self, key: str) -> str:
        text = f"target[{key!r}] must lie in [0, {self.logits.shape[-1]}) where the mask is True"
        text += "" if self.bg_class is None else f", and not be the background class {self.bg_class}"
        return text + (", and name a class of input['image_class_mask']" if "image_class_mask" in self.preds else "")

    def with_background(self, position: str, is_mined: bool) -> "Scene":
        """Return the scene with its background class at "first" or "last" of the logits; "none" for none.

        Args:
            position: see above.
            is_mined: whether the background of plans is that of the hardest predictions only.

        Raises:
            ValueError: labels are one-hot, or a target is labelled as background.
        """
        if position == "none":
            return replace(self, is_mined=is_mined) if is_mined else self
        bg_class = 0 if position == "first" else self.logits.shape[-1] - 1
        if "image_class_mask" in self.preds:
            check_background_present(self.preds["image_class_mask"], bg_class, self.validate)
        unchecked = dict(self.targets.unchecked)
        for key, labels in self.targets.all_labels().items():
            if labels is None:
                raise ValueError(
                    f"target[{key!r}] must be integers with bg_class_position={position!r}, got one-hot labels"
                )
            is_background = (labels == bg_class) & self.mask
            if key in unchecked:
                unchecked[key] = torch.where(is_background & (unchecked[key] == RIGHT), labels, unchecked[key])
            elif count := int(is_background.sum()) // self.layers:
                raise ValueError(
                    f"target[{key!r}] must not hold the background class {bg_class} "
                    f"(bg_class_position={position!r}), got it for {count} targets"
                )
        targets = replace(self.targets, unchecked=unchecked) if unchecked else self.targets
        return replace(self, bg_class=bg_class, is_mined=is_mined, targets=targets)


def parse_scene(
    input: PredictionDict,
    target: TargetInput,
    anchors: AnchorInput | None,
    reads: Sequence[str] = (),
    *,
    nonfinite: str = "error",
    validate: bool = False,
    auxiliary: bool = False,
    box_format: str | None = None,
    target_format: str | None = None,
    classes: tuple[int, bool] | None = None,
) -> Scene:
    """Validate `input`, `target` and `anchors`, and stack the decoder layers along the batch.

    Shapes, types and devices are always checked. Values are checked where that does not synchronise: on the CPU, or
    if `validate` asks for it.

    Args:
        input: dict of predictions.
        target: dict of targets, or a list of one dict an image.
        anchors: anchors or points, or None.
        reads: fields that are read besides boxes, objectness and distributions.
        nonfinite: "error", or "propagate" to let NaN and infinity in predictions through.
        validate: whether values may be read on a GPU.
        auxiliary: stack the layers in `input["aux_outputs"]` before the final one.
        box_format: "cxcywh" or "xywh" for boxes that are no xyxy; None if they are.
        target_format: the same of target boxes where it differs; None for `box_format`.
        classes: number of classes to compare the logits with, and whether the background has one more; None for any.

    Raises:
        TypeError: an argument or an entry has the wrong type or dtype.
        ValueError: a key is missing, or a shape, a device or a value is wrong.
    """
    logits, fields, layers, absent = parse_predictions(input, reads, nonfinite, validate, auxiliary, box_format)
    if classes is not None:
        check_num_classes(logits, *classes)
    if "pred_boxes" in fields and box_format is not None:
        fields["pred_boxes"] = BOX_FORMATS[box_format](fields["pred_boxes"])
    one = logits if layers == 1 else logits[: len(logits) // layers]
    classes_of_images = fields.get("image_class_mask")
    targets = parse_targets(
        target,
        one,
        reads,
        logits.dtype,
        validate,
        box_format if target_format is None else target_format,
        "box_format" if target_format is None else "target_format",
        None if classes_of_images is None else classes_of_images[: len(one)],
    )
    targets = targets if layers == 1 else targets.repeat(layers)
    locations = None if anchors is None else parse_anchors(anchors, one, layers, validate)
    looks = all(reads_values(x, validate=False) for x in (logits, *fields.values(), targets.mask))
    return Scene(logits, fields, targets.mask, targets, layers, absent, locations, looks, validate)


def _take(tensor: Tensor, index: Index, dim: int = 1) -> Tensor:
    """Return the entries of a slice or of (N,) positions along a dimension."""
    if isinstance(index, Tensor):
        return tensor.index_select(dim, index)
    return tensor if index == ALL else tensor[(slice(None),) * dim + (index,)]
