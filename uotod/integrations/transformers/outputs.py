"""What a detector of transformers hands to its loss in, input, target and anchors of a criterion out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from uotod.check import check_choice
from uotod.criterion.branches import denoising_plan
from uotod.geometry.boxes import full_precision
from uotod.integrations.transformers.families import Family, family_of, published_loss
from uotod.utils import box_cxcywh_to_xyxy

Layer = dict[str, Tensor]
ALIGNMENTS = ("published", "transformers")


class Converted(NamedTuple):
    """What a criterion is called with, and what a model returns of its earlier layers.

    Attributes:
        input: the predictions.
        target: the targets of each image.
        anchors: the boxes from which distributions start, None without any.
        auxiliary: logits and boxes of the earlier layers, as models of transformers return them, None without a loss.
    """

    input: dict[str, Any]
    target: list[dict[str, Tensor]]
    anchors: Tensor | None
    auxiliary: list[Layer] | None


def convert(
    *, align: str = "published", **handed: Any
) -> tuple[dict[str, Any], list[dict[str, Tensor]], Tensor | None]:
    """Return input, target and anchors of a criterion from what a model hands to its loss.

    Boxes become xyxy. The final decoder layer is the input itself; the earlier ones, and the queries that an encoder
    selects, are its `aux_outputs` where the configuration asks for their losses; proposals are `enc_outputs`, and
    denoising queries `dn_outputs` with their plan. Further fields of the labels, such as `ignore`, `iscrowd` and
    `loss_weight`, are handed on.

    Args:
        align: "published" to give each decoder layer its own distributions, as D-FINE and DEIM are published;
            "transformers" to pair them as that library does. Families without distributions take both alike.
        handed: what the model hands over, by the names of the parameters of the loss function in transformers:
            `logits`, `labels`, `pred_boxes`, `config`, and so on.

    Raises:
        ValueError: the configuration is of no family that is known, or the alignment is unknown.
    """
    check_choice("align", align, ALIGNMENTS)
    found = converted(family_of(published_loss(handed["config"])), align, handed)
    return found.input, found.target, found.anchors


def converted(family: Family, align: str, handed: Mapping[str, Any]) -> Converted:
    """Return what a model of a family hands to its loss, converted; see `convert`."""
    config, meta = handed["config"], handed.get("denoising_meta_values")
    target = [_target(image) for image in handed["labels"]]
    layers, anchors = _layers(handed, family, align)
    noisy, noisy_anchors = list[Layer](), None
    if meta is not None:
        split = [_split(layer, meta["dn_num_split"]) for layer in layers]
        noisy, layers = [first for first, _ in split], [second for _, second in split]
        if anchors is not None:
            noisy_anchors, anchors = torch.split(anchors, meta["dn_num_split"], dim=1)
    final, earlier = layers[-1], layers[:-1]
    if anchors is not None and align == "transformers":
        # heads that lack a partner there, but for denoising queries
        earlier = earlier[: handed["predicted_corners"].shape[family.layer_dim] - 1]
    if handed.get("enc_topk_logits") is not None and config.auxiliary_loss:
        earlier = [*earlier, _layer(handed["enc_topk_logits"], handed["enc_topk_bboxes"], family)]
    input: dict[str, Any] = _nested([*earlier, final])
    if meta is not None and config.auxiliary_loss and any(len(x["labels"]) for x in target):
        plan = _denoising_plan(meta, target, noisy[-1]["pred_logits"].shape[1])
        input["dn_outputs"] = _nested(noisy) | {"plan": plan}
        if noisy_anchors is not None:
            input["dn_outputs"]["anchors"] = noisy_anchors
    if handed.get("enc_outputs_class") is not None:
        proposals = _layer(handed["enc_outputs_class"], handed["enc_outputs_coord"], family)
        input["enc_outputs"] = _with_corners(proposals)
    if handed.get("encoder_logits") is not None and config.two_stage:
        proposals = _layer(handed["encoder_logits"], handed["encoder_pred_boxes"], family)
        input["interm_outputs"] = _with_corners(proposals)
    if "label_maps" in handed:
        target = [_of_tokens(image, words) for image, words in zip(target, handed["label_maps"], strict=True)]
        input["image_class_mask"] = handed["text_mask"].flatten(1, -2).any(1)
    auxiliary = [{"logits": x["pred_logits"], "pred_boxes": x["pred_boxes"]} for x in earlier]
    return Converted(input, target, anchors, auxiliary if config.auxiliary_loss else None)


def _layers(handed: Mapping[str, Any], family: Family, align: str) -> tuple[list[Layer], Tensor | None]:
    """Return the decoder layers, boxes as they are, the final one last, and where their distributions start, xyxy."""
    dim, earlier = family.layer_dim, list[Layer]()
    final = _layer(handed["logits"], handed["pred_boxes"], family)
    if handed["config"].auxiliary_loss:
        logits, boxes = (handed[name].unbind(dim)[:-1] for name in ("outputs_class", "outputs_coord"))
        earlier = [_layer(*pair, family) for pair in zip(logits, boxes, strict=True)]
    corners = handed.get("predicted_corners")
    if corners is None or not family.misaligned:
        return [*earlier, final], None
    dists = [x.unflatten(-1, (4, -1)) for x in corners.unbind(dim)]
    if align == "transformers":  # heads before the first layer and after it share the distributions of the first
        earlier = [layer | {"pred_dist": dist} for layer, dist in zip(earlier, dists, strict=False)]
    elif earlier:
        first = len(earlier) - len(dists) + 1  # of the heads that have a distribution; those before have none
        refined = [layer | {"pred_dist": dist} for layer, dist in zip(earlier[first:], dists[:-1], strict=True)]
        earlier = [*earlier[:first], *refined]
    start = _corners(handed["initial_reference_points"].select(dim, -1).detach())
    return [*earlier, final | {"pred_dist": dists[-1]}], start


def _layer(logits: Tensor, boxes: Tensor, family: Family) -> Layer:
    return {"pred_logits": logits, "pred_boxes": boxes.clamp(min=0, max=1) if family.clamps else boxes}


def _corners(boxes: Tensor) -> Tensor:
    return box_cxcywh_to_xyxy(full_precision(boxes))  # sums in half precision would round what a model says


def _with_corners(layer: Layer) -> Layer:
    return layer | {"pred_boxes": _corners(layer["pred_boxes"])}


def _nested(layers: list[Layer]) -> dict[str, Any]:
    """Return the final layer with the earlier ones in it, all of them xyxy."""
    *earlier, final = (_with_corners(layer) for layer in layers)
    return {**final, "aux_outputs": earlier}


def _target(image: Mapping[str, Tensor]) -> dict[str, Tensor]:
    others = {key: value for key, value in image.items() if key not in ("class_labels", "boxes")}
    boxes = image["boxes"]
    corners = _corners(boxes if boxes.numel() else boxes.view(0, 4))
    return {**others, "labels": image["class_labels"], "boxes": corners}


def _of_tokens(image: Layer, words: Tensor) -> Layer:
    """Return the targets of an image whose labels are the tokens of their words; a cost is the mean over these."""
    rows = words.to(image["boxes"])[image["labels"]]
    return image | {"labels": rows, "cost_labels": rows / rows.sum(-1, keepdim=True).clamp(min=1)}


def _denoising_plan(meta: Mapping[str, Any], target: list[dict[str, Tensor]], queries: int) -> Tensor:
    """Return the plan (B, P) of denoising queries; those made from ignored targets are ignored."""
    most = max(len(image["labels"]) for image in target)
    plan = denoising_plan(list(meta["dn_positive_idx"]), meta["dn_num_group"], queries, most)
    for row, image in zip(plan, target, strict=True):
        ignored = image.get("ignore", image.get("iscrowd"))
        if ignored is not None:
            indices = ignored.to(plan.device).bool().nonzero().flatten()
            row[torch.isin(row, indices)] = -1
    return plan


def _split(layer: Layer, sizes: list[int]) -> tuple[Layer, Layer]:
    """Return the denoising queries and the others of a layer."""
    parts = {name: torch.split(value, sizes, dim=1) for name, value in layer.items()}
    return {name: x[0] for name, x in parts.items()}, {name: x[1] for name, x in parts.items()}
