"""Parse what a user passes (dicts of tensors) into validated, padded values: predictions, targets and anchors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from uotod.check import check_device, check_finite, entry, is_finite, reads_values
from uotod.geometry.anchors import Anchors, Locations, Points, parse_anchors
from uotod.geometry.boxes import full_precision
from uotod.scene.stack import stack_layers
from uotod.scene.targets import TargetInput, Targets, parse_targets

PredictionDict = Mapping[str, Any]
AnchorInput = Tensor | Anchors | Points
Index = slice | Tensor  # of (N,) positions

ALL = slice(None)


@dataclass(frozen=True)
class Predictions:
    """Predictions of `layers` decoder layers, stacked along the batch (the final layer comes last).

    Attributes:
        logits: (layers * images, P, C) class scores before softmax or sigmoid.
        boxes: (layers * images, P, 4) boxes, xyxy.
        layers: number of stacked decoder layers.
        objectness: (layers * images, P) objectness before the sigmoid, or None if there is none.
        dist: (layers * images, P, 4, K + 1) logits of the distances of the sides, zeros for layers without, or None if
            there are none.
        dist_layers: for each layer whether it has `dist`; None for all.
    """

    logits: Tensor
    boxes: Tensor
    layers: int
    objectness: Tensor | None = None
    dist: Tensor | None = None
    dist_layers: tuple[bool, ...] | None = None

    def has_dist(self, layer: int) -> bool:
        """Tell whether a layer, from 0 on, has distributions."""
        return self.dist is not None and (self.dist_layers is None or self.dist_layers[layer])


@dataclass(frozen=True)
class Scene:
    """Everything that a matcher reads: predictions, targets of the same images and, if given, anchors or points.

    Attributes:
        class_cost: (layers * images, T, P) classification cost of all pairs where it is known, or None.
    """

    predictions: Predictions
    targets: Targets
    anchors: Locations | None
    class_cost: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """The (layers * images, P, C) class scores."""
        return self.predictions.logits

    @property
    def pred_boxes(self) -> Tensor:
        """The (layers * images, P, 4) predicted boxes, xyxy."""
        return self.predictions.boxes

    @property
    def target_boxes(self) -> Tensor:
        """The (layers * images, T, 4) target boxes, xyxy."""
        return self.targets.boxes

    @property
    def mask(self) -> Tensor:
        """The (layers * images, T) bool mask of targets that are neither padding nor ignored."""
        return self.targets.mask

    @property
    def layers(self) -> int:
        """The number of stacked decoder layers."""
        return self.predictions.layers

    def layer(self, index: int) -> "Scene":
        """Return the batch of one decoder layer; a negative index counts from the final one."""
        layers = self.predictions.layers
        if layers == 1:
            return self
        images = len(self.predictions.boxes) // layers
        start = index % layers * images
        found = self.part(slice(start, start + images))
        predictions = replace(found.predictions, layers=1, dist_layers=None)
        if not self.predictions.has_dist(index % layers):
            predictions = replace(predictions, dist=None)
        return replace(found, predictions=predictions)

    def images(self, some: slice, num_targets: int) -> "Scene":
        """Return the batch of some images in all decoder layers, with the first targets of each only.

        Where `class_cost` is known the logits, which are large, have no values: they are on the device "meta".
        """
        layers = self.predictions.layers
        scene = self
        if self.class_cost is not None:
            logits = torch.empty_like(self.predictions.logits, device="meta")
            scene = replace(self, predictions=replace(self.predictions, logits=logits))
        found = scene._map(lambda x: x.view(layers, len(x) // layers, *x.shape[1:])[:, some].flatten(0, 1))
        return found.part(targets=slice(num_targets))

    def part(self, rows: slice = ALL, targets: Index = ALL, preds: Index = ALL) -> "Scene":
        """Return some of the stacked images with some of their targets and predictions; one row is of one layer."""
        found = self._map(lambda x: x[rows])
        predictions, anchors, class_cost = found.predictions, found.anchors, found.class_cost
        if len(predictions.boxes) == 1:
            predictions = replace(predictions, layers=1, dist_layers=None)
        return Scene(
            replace(predictions, **_apply(lambda x: _take(x, preds), vars(predictions))),
            found.targets.map(lambda x: _take(x, targets)),
            None if anchors is None else anchors._replace(**_apply(lambda x: _take(x, preds), anchors._asdict())),
            None if class_cost is None else _take(_take(class_cost, targets), preds, dim=2),
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Scene":
        """Return the batch with a function applied to every tensor, whose first dimension is layers * images."""
        return Scene(
            replace(self.predictions, **_apply(function, vars(self.predictions))),
            self.targets.map(function),
            None if self.anchors is None else self.anchors._replace(**_apply(function, self.anchors._asdict())),
            None if self.class_cost is None else function(self.class_cost),
        )


def parse_scene(
    input: PredictionDict,
    target: TargetInput,
    anchors: AnchorInput | None,
    *,
    nonfinite: str = "error",
    validate: bool = False,
    auxiliary: bool = False,
) -> Scene:
    """Validate `input`, `target` and `anchors`, and stack the decoder layers along the batch.

    Shapes, types and devices are always checked. Values are checked where that does not synchronise: on the CPU, or
    if `validate` asks for it. With `auxiliary` the layers in `input["aux_outputs"]` are stacked before the final one.

    Raises:
        TypeError: an argument or an entry has the wrong type or dtype.
        ValueError: a key is missing, or a shape, a device or a value is wrong.
    """
    if not isinstance(input, Mapping):
        raise TypeError(f"input must be a dict of tensors, got {type(input).__name__}")
    final = _parse_layer("input", input, None)
    layers = [final]
    aux = input.get("aux_outputs") if auxiliary else None
    if aux is not None:
        if not isinstance(aux, Sequence):
            raise TypeError(f"input['aux_outputs'] must be a list of dicts, got {type(aux).__name__}")
        layers = [*(_parse_layer(f"input['aux_outputs'][{i}]", x, final) for i, x in enumerate(aux)), final]

    count = len(layers)
    predictions = _stack(layers)
    if nonfinite == "error":
        _check_values(predictions, validate)
    targets = parse_targets(target, final.logits, predictions.boxes.dtype, validate)
    locations = None
    if anchors is not None:
        locations = parse_anchors(anchors, predictions.boxes[: len(final.boxes)], count, validate)
    return Scene(predictions, targets if count == 1 else targets.repeat(count), locations)


def _apply(function: Callable[[Tensor], Tensor], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return those fields that are tensors, with a function applied to them."""
    return {name: function(value) for name, value in fields.items() if isinstance(value, Tensor)}


def _take(tensor: Tensor, index: Index, dim: int = 1) -> Tensor:
    """Return the entries of a slice or of (N,) positions along a dimension."""
    if isinstance(index, Tensor):
        return tensor.index_select(dim, index)
    return tensor[(slice(None),) * dim + (index,)]


def _stack(layers: list[Predictions]) -> Predictions:
    """Stack the predictions of several decoder layers along the batch, in at least float32."""
    objectness = [x.objectness for x in layers if x.objectness is not None]
    final, given = layers[-1].dist, tuple(x.dist is not None for x in layers)
    dist = None if final is None else [torch.zeros_like(final) if x.dist is None else x.dist for x in layers]
    return Predictions(
        full_precision(stack_layers([x.logits for x in layers])),
        full_precision(stack_layers([x.boxes for x in layers])),
        len(layers),
        full_precision(stack_layers(objectness)) if objectness else None,
        full_precision(stack_layers(dist)) if dist else None,
        None if all(given) else given,
    )


def _check_values(predictions: Predictions, validate: bool) -> None:
    """Raise a ValueError that names the layer, unless all predictions are finite."""
    layers = predictions.layers
    for key in ("logits", "boxes", "objectness", "dist"):
        tensor = getattr(predictions, key)
        if tensor is None or not reads_values(tensor, validate) or is_finite(tensor):
            continue
        for layer, part in enumerate(tensor.chunk(layers)):
            name = "input" if layer == layers - 1 else f"input['aux_outputs'][{layer}]"
            hint = ' (nonfinite="propagate" lets them through)'
            check_finite(f"{name}['pred_{key}']", part, validate, hint=hint)


def _parse_layer(name: str, layer: PredictionDict, like: Predictions | None) -> Predictions:
    if not isinstance(layer, Mapping):
        raise TypeError(f"{name} must be a dict of tensors, got {type(layer).__name__}")
    logits, boxes = entry(name, layer, "pred_logits"), entry(name, layer, "pred_boxes")
    for key, tensor in (("pred_logits", logits), ("pred_boxes", boxes)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name}[{key!r}] must have a floating dtype, got {tensor.dtype}")
    if logits.dim() != 3 or not logits.shape[-1]:
        raise ValueError(f"{name}['pred_logits'] must have shape (B, P, C) with C >= 1, got {tuple(logits.shape)}")
    if boxes.shape != (*logits.shape[:2], 4):
        raise ValueError(
            f"{name}['pred_boxes'] must have shape {(*logits.shape[:2], 4)} to fit its logits, got {tuple(boxes.shape)}"
        )
    check_device(f"{name}['pred_boxes']", boxes, logits.device)
    if like is not None:
        if logits.shape != like.logits.shape:
            raise ValueError(
                f"{name}['pred_logits'] must have shape {tuple(like.logits.shape)} like the final layer, "
                f"got {tuple(logits.shape)}"
            )
        check_device(f"{name}['pred_logits']", logits, like.logits.device)
        if ("pred_objectness" in layer) != (like.objectness is not None):
            raise ValueError(f"{name} must have the key 'pred_objectness' if and only if the final layer has it")
        if "pred_dist" in layer and like.dist is None:
            raise ValueError(f"{name} must have the key 'pred_dist' only if the final layer has it")
    objectness = _parse_objectness(name, layer, logits) if "pred_objectness" in layer else None
    dist = _parse_dist(name, layer, logits, None if like is None else like.dist) if "pred_dist" in layer else None
    return Predictions(logits, boxes, layers=1, objectness=objectness, dist=dist)


def _parse_objectness(name: str, layer: PredictionDict, logits: Tensor) -> Tensor:
    objectness = entry(name, layer, "pred_objectness")
    if not objectness.is_floating_point():
        raise TypeError(f"{name}['pred_objectness'] must have a floating dtype, got {objectness.dtype}")
    if objectness.shape != logits.shape[:2]:
        raise ValueError(
            f"{name}['pred_objectness'] must have shape {tuple(logits.shape[:2])} to fit its logits, "
            f"got {tuple(objectness.shape)}"
        )
    check_device(f"{name}['pred_objectness']", objectness, logits.device)
    return objectness


def _parse_dist(name: str, layer: PredictionDict, logits: Tensor, like: Tensor | None) -> Tensor:
    dist = entry(name, layer, "pred_dist")
    if not dist.is_floating_point():
        raise TypeError(f"{name}['pred_dist'] must have a floating dtype, got {dist.dtype}")
    if dist.dim() != 4 or dist.shape[:3] != (*logits.shape[:2], 4) or dist.shape[3] < 2:
        raise ValueError(
            f"{name}['pred_dist'] must have shape {(*logits.shape[:2], 4)} + (K + 1,) with K >= 1 to fit its logits, "
            f"got {tuple(dist.shape)}"
        )
    if like is not None and dist.shape != like.shape:
        raise ValueError(
            f"{name}['pred_dist'] must have shape {tuple(like.shape)} like the final layer, got {tuple(dist.shape)}"
        )
    check_device(f"{name}['pred_dist']", dist, logits.device)
    return dist
