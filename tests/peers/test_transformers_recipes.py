"""The recipes have the loss and the gradient of the criteria of transformers, on the same tensors."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.support.problems import random_boxes
from tests.support.set_outputs import (
    CLASSES,
    Layer,
    assert_same,
    auxiliary,
    denoising,
    published,
    random_layers,
    random_targets,
    stacked,
)
from uotod import recipes
from uotod.utils import box_xyxy_to_cxcywh

pytest.importorskip("transformers")
PROBLEMS = 20
SIZES = [(3, 20, 4), (1, 30, 1), (2, 12, 0), (3, 15, 9), (2, 4, 6)]  # images, predictions, most targets


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layers", [1, 3])
def test_detr(size, layers) -> None:
    from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

    criterion = recipes.detr(CLASSES)
    reference = ImageLoss(HungarianMatcher(1, 5, 2), CLASSES, 0.1, ["labels", "boxes"]).double()
    images, preds, most = size
    for _ in range(PROBLEMS):
        outputs, targets = random_layers(layers, images, preds, CLASSES + 1), random_targets(images, most)
        losses = reference(auxiliary(outputs), published(targets))
        expected = weighted(losses, (1, 5, 2))
        terms = criterion.terms(stacked(outputs), targets)
        torch.testing.assert_close(terms["loss_cls"], losses["loss_ce"])
        torch.testing.assert_close(terms["loss_loc_giou"], 2 * losses["loss_giou"])
        assert_same(terms["loss"], expected, outputs)


def weighted(losses: dict[str, Tensor], weights: tuple[float, float, float]) -> Tensor:
    """Return the weighted sum of the losses of all layers, whatever their suffix."""
    named = dict(zip(("loss_ce", "loss_bbox", "loss_giou"), weights, strict=True))
    return sum(w * v for k, v in losses.items() for name, w in named.items() if k.startswith(name))


def deformable_loss():
    """Return the criterion of Deformable DETR, which is also that of DINO and H-DETR."""
    from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss

    return DeformableDetrImageLoss(DeformableDetrHungarianMatcher(2, 5, 2), CLASSES, 0.25, ["labels", "boxes"])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("weights", [(1.0, 5.0, 2.0), (2.0, 5.0, 2.0)])
def test_deformable_detr(size, weights) -> None:
    """transformers gives the classes a weight of 1, the published implementation 2."""
    from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss

    criterion = recipes.deformable_detr(CLASSES, loss_weights=weights)
    names = {"class_cost": 2, "bbox_cost": 5, "giou_cost": 2, "num_labels": CLASSES, "focal_alpha": 0.25}
    names |= {"bbox_loss_coefficient": weights[1], "giou_loss_coefficient": weights[2]}
    config = SimpleNamespace(**names, auxiliary_loss=True, decoder_layers=3)
    images, preds, most = size
    for _ in range(PROBLEMS):
        outputs, targets = random_layers(3, images, preds), random_targets(images, most)
        expected, losses, _ = DeformableDetrForObjectDetectionLoss(
            outputs[-1].logits,
            published(targets),
            "cpu",
            outputs[-1].boxes,
            config,
            outputs_class=torch.stack([x.logits for x in outputs]),
            outputs_coord=torch.stack([x.boxes for x in outputs]),
        )
        expected = expected + weighted(losses, (weights[0] - 1, 0, 0))
        assert_same(criterion(stacked(outputs), targets), expected, outputs)


@pytest.mark.parametrize("size", SIZES)
def test_the_proposals_of_deformable_detr(size) -> None:
    """The first stage has the label 0 for every target, as the published implementation does with a copy of them."""
    criterion, reference = recipes.deformable_detr(CLASSES), deformable_loss()
    images, preds, most = size
    for _ in range(PROBLEMS):
        outputs, (proposals,) = random_layers(2, images, preds), random_layers(1, images, 2 * preds)
        targets = random_targets(images, most)
        binary = [x | {"class_labels": torch.zeros_like(x["class_labels"])} for x in published(targets)]
        expected = weighted(reference(auxiliary(outputs), published(targets)), (2, 5, 2))
        encoder = weighted(reference(proposals.theirs(), binary), (2, 5, 2))
        terms = criterion.terms(stacked(outputs) | {"enc_outputs": proposals.ours()}, targets)
        torch.testing.assert_close(terms["loss_enc"], encoder)
        assert_same(terms["loss"], expected + encoder, [*outputs, proposals])


@pytest.mark.parametrize("size", [(3, 20, 4), (1, 30, 1), (3, 15, 9)])
@pytest.mark.parametrize("groups", [1, 3])
def test_dino(size, groups) -> None:
    """The criterion of each output is that of Deformable DETR; denoising has its pairs and `targets · groups`."""
    criterion, reference, weights = recipes.dino(CLASSES), deformable_loss(), (1, 5, 2)
    images, preds, most = size
    for _ in range(PROBLEMS):
        outputs, (selected,) = random_layers(3, images, preds), random_layers(1, images, preds)
        targets = random_targets(images, most)
        plan, positive = denoising(targets, groups)
        noisy = random_layers(3, images, plan.shape[1])
        pairs = [(i, plan[b, i]) for b, i in enumerate(positive)]
        total = groups * sum(len(x["labels"]) for x in targets)
        expected = weighted(reference(auxiliary(outputs), published(targets)), weights)
        expected = expected + weighted(reference(selected.theirs(), published(targets)), weights)
        for layer in noisy:
            for name in ("labels", "boxes"):
                losses = reference.get_loss(name, layer.theirs(), published(targets), pairs, total)
                expected = expected + weighted(losses, weights)
        extra = {"interm_outputs": selected.ours(), "dn_outputs": stacked(noisy) | {"plan": plan}}
        assert_same(criterion(stacked(outputs) | extra, targets), expected, [*outputs, selected, *noisy])


@pytest.mark.parametrize("size", [(3, 20, 3), (1, 30, 1), (2, 12, 0), (2, 24, 4)])
@pytest.mark.parametrize("copies", [2, 5])
def test_h_detr(size, copies) -> None:
    """The published implementation repeats the targets of the one-to-many branch."""
    criterion, reference = recipes.h_detr(CLASSES, copies=copies, one2many_weight=0.7), deformable_loss()
    images, preds, most = size
    for _ in range(PROBLEMS):
        outputs, (proposals,) = random_layers(2, images, preds), random_layers(1, images, preds)
        many, targets = random_layers(2, images, preds + 7), random_targets(images, most)
        repeated = [{k: torch.cat([v] * copies) for k, v in x.items()} for x in published(targets)]
        binary = [x | {"class_labels": torch.zeros_like(x["class_labels"])} for x in published(targets)]
        expected = sum(
            factor * weighted(reference(output, labels), (2, 5, 2))
            for factor, output, labels in (
                (1, auxiliary(outputs), published(targets)),
                (1, proposals.theirs(), binary),
                (0.7, auxiliary(many), repeated),
            )
        )
        extra = {"enc_outputs": proposals.ours(), "one2many_outputs": stacked(many)}
        assert_same(criterion(stacked(outputs) | extra, targets), expected, [*outputs, proposals, *many])


@pytest.mark.parametrize("size", [(3, 20, 4), (1, 30, 1), (2, 12, 0), (2, 4, 6)])
@pytest.mark.parametrize("groups", [1, 3, 13])
@pytest.mark.parametrize("training", [True, False])
def test_group_detr(size, groups, training) -> None:
    from transformers.loss.loss_lw_detr import LwDetrHungarianMatcher, LwDetrImageLoss

    matcher = LwDetrHungarianMatcher(2, 5, 2)
    reference = LwDetrImageLoss(matcher, CLASSES, 0.25, ["labels", "boxes"], groups).train(training)
    criterion = recipes.group_detr(CLASSES, groups=groups).train(training)
    images, preds, most = size
    for _ in range(PROBLEMS // 2):
        outputs = random_layers(2, images, preds * groups)
        (proposals,), targets = random_layers(1, images, preds * groups), random_targets(images, most)
        losses = reference(auxiliary(outputs) | {"enc_outputs": proposals.theirs()}, published(targets))
        actual = criterion(stacked(outputs) | {"enc_outputs": proposals.ours()}, targets)
        assert_same(actual, weighted(losses, (1, 5, 2)), [*outputs, proposals])


def family(name: str, **settings) -> torch.nn.Module:
    """Return the criterion of a model of the RT-DETR family with its published settings."""
    import transformers
    from transformers.loss import loss_d_fine, loss_deimv2, loss_rt_detr

    config, criterion = {
        "rt_detr": ("RTDetrConfig", loss_rt_detr.RTDetrLoss),
        "d_fine": ("DFineConfig", loss_d_fine.DFineLoss),
        "deim": ("Deimv2Config", loss_deimv2.Deimv2Loss),
    }[name]
    values = getattr(transformers, config)()
    for key, value in ({"num_labels": CLASSES} | settings).items():
        setattr(values, key, value)
    return criterion(values)


def vote_ties(criterion: torch.nn.Module, layers: list[Layer], targets: list[dict[str, Tensor]]) -> bool:
    """Tell whether two targets have as many votes for a prediction, of which the reference takes an arbitrary one."""
    votes = sum(criterion.main.matching_method(x.ours(), targets)[..., :-1] for x in layers)
    if votes.shape[-1] < 2:
        return False
    best = votes.topk(2).values
    return bool(((best[..., 0] == best[..., 1]) & (best[..., 0] > 0)).any())


@pytest.mark.parametrize("size", [(3, 20, 4), (1, 30, 1), (2, 12, 0), (3, 24, 9), (2, 4, 6)])
@pytest.mark.parametrize("groups", [0, 1, 3])
@pytest.mark.parametrize(
    ("name", "settings", "options"),
    [
        ("rt_detr", {}, {}),
        ("d_fine", {}, {"union": False, "dist_weights": None}),
        ("deim", {"use_dense_one_to_one": False, "focal_loss_gamma": 1.5}, {"union": False, "dist_weights": None}),
        ("deim", {"use_dense_one_to_one": True, "focal_loss_gamma": 1.5}, {"dist_weights": None}),
    ],
    ids=["rt_detr", "d_fine", "deim", "deim-union"],
)
def test_the_rt_detr_family(name, settings, options, size, groups) -> None:
    """Outputs without distributions; the encoder's queries are one of the auxiliary layers, as in the reference."""
    reference, criterion = family(name, **settings), recipes.ALL_RECIPES[name](CLASSES, **options)
    images, preds, most = size
    for _ in range(PROBLEMS // 4):
        spread = 0.3 if name == "deim" else 1.0
        outputs, targets = random_layers(4, images, preds, spread=spread), random_targets(images, most)
        while name == "deim" and vote_ties(criterion, outputs, targets):
            outputs, targets = random_layers(4, images, preds, spread=spread), random_targets(images, most)
        theirs, ours, noisy = auxiliary(outputs), stacked(outputs), []
        if groups and most:  # without targets there is nothing to denoise
            plan, positive = denoising(targets, groups)
            noisy = random_layers(2, images, plan.shape[1])
            theirs["dn_auxiliary_outputs"] = [x.theirs() for x in noisy]
            theirs["denoising_meta_values"] = {"dn_positive_idx": positive, "dn_num_group": groups}
            ours["dn_outputs"] = stacked(noisy) | {"plan": plan}
        losses = reference(theirs, published(targets))
        assert_same(criterion(ours, targets), sum(losses.values()), [*outputs, *noisy])


def with_distributions(layers: list[Layer], anchors: Tensor) -> tuple[list[dict], list[dict], list[Tensor]]:
    """Return our and their dicts of layers that refine distributions, and these; the last layer is the teacher."""
    dists = [torch.randn(*x.boxes.shape[:2], 4, 33, requires_grad=True) for x in layers]
    ours = [x.ours() | {"pred_dist": d} for x, d in zip(layers, dists, strict=True)]
    shared = {"teacher_corners": dists[-1].flatten(2), "teacher_logits": layers[-1].logits}
    shared["ref_points"] = box_xyxy_to_cxcywh(anchors)
    theirs = [x.theirs() | {"pred_corners": d.flatten(2)} | shared for x, d in zip(layers, dists, strict=True)]
    return ours, theirs, dists


@pytest.mark.parametrize("size", [(3, 20, 4), (1, 30, 1), (2, 12, 0), (3, 24, 9)])
@pytest.mark.parametrize("groups", [0, 2])
@pytest.mark.parametrize(
    ("name", "settings", "options"),
    [("d_fine", {}, {"union": False}), ("deim", {"focal_loss_gamma": 1.5}, {})],
    ids=["d_fine", "deim"],
)
def test_the_distributions_of_d_fine_and_deim(name, settings, options, size, groups) -> None:
    """In float32, the only dtype in which the reference runs, and without the distribution of its final layer.

    The encoder's queries have a vote for the union, but no distribution.
    """
    criterion, reference = recipes.ALL_RECIPES[name](CLASSES, **options), family(name, **settings)
    images, preds, most = size

    def leaves_of(count: int, queries: int) -> list[Layer]:
        layers = random_layers(count, images, queries, spread=0.3)
        return [Layer(*(x.detach().float().requires_grad_() for x in layer)) for layer in layers]

    def targets_of(images: int, most: int) -> list[dict[str, Tensor]]:
        return [x | {"boxes": x["boxes"].float()} for x in random_targets(images, most)]

    for _ in range(PROBLEMS // 4):
        outputs, targets = leaves_of(4, preds), targets_of(images, most)
        while name == "deim" and vote_ties(criterion, outputs, targets):
            outputs, targets = leaves_of(4, preds), targets_of(images, most)
        anchors = random_boxes(images, preds, dtype=torch.float32)
        ours, theirs, leaves = with_distributions(outputs[1:], anchors)
        encoder, (*earlier, final) = outputs[0], ours
        input = final | {"aux_outputs": [*earlier, encoder.ours()]}
        output = outputs[-1].theirs() | {"auxiliary_outputs": [*theirs[:-1], encoder.theirs()]}
        leaves = [*leaves, *(leaf for layer in outputs for leaf in layer)]
        if groups and most:
            plan, positive = denoising(targets, groups)
            noisy, noisy_anchors = leaves_of(2, plan.shape[1]), random_boxes(*plan.shape, dtype=torch.float32)
            ours, theirs, dists = with_distributions(noisy, noisy_anchors)
            output |= {"dn_auxiliary_outputs": theirs}
            output["denoising_meta_values"] = {"dn_positive_idx": positive, "dn_num_group": groups}
            input["dn_outputs"] = ours[-1] | {"aux_outputs": ours[:-1], "plan": plan, "anchors": noisy_anchors}
            leaves = [*leaves, *dists, *(leaf for layer in noisy for leaf in layer)]
        terms, losses = criterion.terms(input, targets, anchors), reference(output, published(targets))
        for k in range(2):
            torch.testing.assert_close(terms[f"loss_loc_fgl_{k}"], losses[f"loss_fgl_aux_{k}"], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(terms[f"loss_dist_{k}"], losses[f"loss_ddf_aux_{k}"], rtol=1e-4, atol=1e-5)
        actual, expected = terms["loss"] - terms["loss_loc_fgl"], sum(losses.values())
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
        gradients = (torch.autograd.grad(x, leaves, materialize_grads=True) for x in (actual, expected))
        for a, e in zip(*gradients, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)
