"""What a detector of transformers hands to its loss in, input, target and anchors of a criterion out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from uotod.check import check_choice
from uotod.criterion.branches import denoising_plan
from uotod.integrations.transformers.families import Family, family_of, published_loss
from uotod.utils import box_cxcywh_to_xyxy

Layer = dict[str, Tensor]
ALIGNMENTS = ("published", "transformers")


def convert(
    *, align: str = "published", **handed: Any
) -> tuple[dict[str, Any], list[dict[str, Tensor]], Tensor | None]:
    """Return input, target and anchors of a criterion from what a model hands to its loss.

    Boxes become xyxy. The final decoder layer is the input itself; the earlier ones, and the queries that an encoder
    selects, are its `aux_outputs` where the configuration asks for their losses; proposals are `enc_outputs`, and
    denoising queries `dn_outputs` with their plan.

    Args:
        align: "published" to give each decoder layer its own distributions, as D-FINE and DEIM are published;
            "transformers" to pair them as that library does. Families without distributions take both alike.
        handed: what the model hands over, by the names of the parameters of the loss function in transformers:
            `logits`, `labels`, `pred_boxes`, `config`, and so on.

    Raises:
        ValueError: the configuration is of no family that is known, or the alignment is unknown.
    """
    check_choice("align", align, ALIGNMENTS)
    family = family_of(published_loss(handed["config"]))
    target = [{"labels": x["class_labels"], "boxes": box_cxcywh_to_xyxy(x["boxes"])} for x in handed["labels"]]
    most = max((len(x["labels"]) for x in target), default=0)
    meta = handed.get("denoising_meta_values")
    layers, refs = _layers(handed, family, align)
    noisy: list[Layer] = []
    anchors = noisy_anchors = None if refs is None else box_cxcywh_to_xyxy(refs.detach())
    if meta is not None:
        split = [_split(layer, meta["dn_num_split"]) for layer in layers]
        noisy, layers = [first for first, _ in split], [second for _, second in split]
        if anchors is not None:
            noisy_anchors, anchors = torch.split(anchors, meta["dn_num_split"], dim=1)
    final, earlier = layers[-1], layers[:-1]
    if refs is not None and align == "transformers":
        # heads that lack a partner there, but for denoising queries
        earlier = earlier[: handed["predicted_corners"].shape[family.layer_dim] - 1]
    if handed.get("enc_topk_logits") is not None and handed["config"].auxiliary_loss:
        earlier = [*earlier, _layer(handed["enc_topk_logits"], handed["enc_topk_bboxes"], family)]
    input: dict[str, Any] = {**final, "aux_outputs": earlier}
    if meta is not None and handed["config"].auxiliary_loss and most:
        queries = noisy[-1]["pred_logits"].shape[1]
        plan = denoising_plan(list(meta["dn_positive_idx"]), meta["dn_num_group"], queries, most)
        input["dn_outputs"] = {**noisy[-1], "aux_outputs": noisy[:-1], "plan": plan}
        if noisy_anchors is not None:
            input["dn_outputs"]["anchors"] = noisy_anchors
    if handed.get("enc_outputs_class") is not None:
        input["enc_outputs"] = _layer(handed["enc_outputs_class"], handed["enc_outputs_coord"], family)
    if handed.get("encoder_logits") is not None and handed["config"].two_stage:
        input["interm_outputs"] = _layer(handed["encoder_logits"], handed["encoder_pred_boxes"], family)
    if "label_maps" in handed:
        target = [_of_tokens(image, words) for image, words in zip(target, handed["label_maps"], strict=True)]
        input["image_class_mask"] = handed["text_mask"].flatten(1, -2).any(1)
    return input, target, anchors


def auxiliary_outputs(input: Mapping[str, Any], handed: Mapping[str, Any], family: Family) -> list[Layer] | None:
    """Return the earlier decoder layers as the models of transformers return them, None where they have no loss."""
    if not handed["config"].auxiliary_loss:
        return None
    logits, boxes = (handed[name].unbind(family.layer_dim)[:-1] for name in ("outputs_class", "outputs_coord"))
    return [{"logits": a, "pred_boxes": b} for a, b in zip(logits, boxes, strict=True)]


def _layers(handed: Mapping[str, Any], family: Family, align: str) -> tuple[list[Layer], Tensor | None]:
    """Return the decoder layers, the final one last, and the boxes that distributions start from, centre and size."""
    config, dim = handed["config"], family.layer_dim
    final = _layer(handed["logits"], handed["pred_boxes"], family)
    if not config.auxiliary_loss:
        return [final], None
    logits, boxes = (handed[name].unbind(dim)[:-1] for name in ("outputs_class", "outputs_coord"))
    earlier = [_layer(*pair, family) for pair in zip(logits, boxes, strict=True)]
    corners = handed.get("predicted_corners")
    if corners is None or not family.misaligned:
        return [*earlier, final], None
    dists = [x.unflatten(-1, (4, -1)) for x in corners.unbind(dim)]
    if align == "transformers":  # heads before the first layer and after it share the distributions of the first
        earlier = [layer | {"pred_dist": dist} for layer, dist in zip(earlier, dists, strict=False)]
    else:
        first = len(earlier) - len(dists) + 1  # of the heads that have a distribution; those before have none
        refined = [layer | {"pred_dist": dist} for layer, dist in zip(earlier[first:], dists[:-1], strict=True)]
        earlier = [*earlier[:first], *refined]
    return [*earlier, final | {"pred_dist": dists[-1]}], handed["initial_reference_points"].select(dim, -1)


def _layer(logits: Tensor, boxes: Tensor, family: Family) -> Layer:
    boxes = boxes.clamp(min=0, max=1) if family.clamps else boxes
    return {"pred_logits": logits, "pred_boxes": box_cxcywh_to_xyxy(boxes)}


def _of_tokens(image: Layer, words: Tensor) -> Layer:
    """Return the targets of an image whose labels are the tokens of their words; a cost is the mean over these."""
    rows = words.to(image["boxes"])[image["labels"]]
    return image | {"labels": rows, "cost_labels": rows / rows.sum(-1, keepdim=True).clamp(min=1)}


def _split(layer: Layer, sizes: list[int]) -> tuple[Layer, Layer]:
    """Return the denoising queries and the others of a layer."""
    parts = {name: torch.split(value, sizes, dim=1) for name, value in layer.items()}
    return {name: x[0] for name, x in parts.items()}, {name: x[1] for name, x in parts.items()}
