"""Keys that nobody reads: one that looks like a mistake raises and says what was meant, any other passes."""

import re

import pytest
import torch
from torch import nn

from tests.support.problems import random_boxes, random_problem
from uotod.loss import Branch, Branches, DetectionLoss, GIoULoss, Objectness, ObjectnessLoss
from uotod.match import Hungarian
from uotod.scene.keys import is_near

N = "none"
B, P, T, C = 2, 8, 3, 4
L1 = nn.L1Loss(reduction=N)


class Masks(nn.Module):
    needs = ("pred_masks", "target_masks")

    def forward(self, pred_masks, target_masks):
        return (pred_masks - target_masks).abs().flatten(1).sum(1)


def detector(**options) -> DetectionLoss:
    return DetectionLoss(nn.CrossEntropyLoss(reduction=N), L1, Hungarian(loc_match_module=L1), **options)


def problem():
    return random_problem(B, P, T, C, full=True)


def per_image(target: dict) -> list[dict]:
    return [{key: value[b] for key, value in target.items()} for b in range(B)]


HARMLESS_INPUT = [
    "pred_masks",
    "pred_keypoints",
    "pred_angle",
    "last_hidden_state",
    "features",
    "loss_dict",
    "image_sizes",
    "interm",
    "encoder",
    "image_id",
    "proposals",
    "pred_boxes_raw",
]
HARMLESS_TARGET = [
    "image_id",
    "area",
    "size",
    "orig_size",
    "masks",
    "keypoints",
    "segmentation",
    "file_name",
    "category_id",
    "bbox",
    "caption",
    "scores",
    "pred_boxes",
    "enc_outputs",
]


@pytest.mark.parametrize("key", HARMLESS_INPUT)
def test_what_else_a_model_returns_passes(key) -> None:
    scene = problem()
    expected = detector()(scene.input, scene.target)
    for value in (torch.randn(B, P, 3), "a name", None, [1, 2], {"pred_logits": 3}):
        assert torch.equal(detector()(scene.input | {key: value}, scene.target), expected)


@pytest.mark.parametrize("key", HARMLESS_TARGET)
def test_what_else_a_data_set_carries_passes(key) -> None:
    scene = problem()
    expected = detector()(scene.input, scene.target)
    for value in (torch.randn(B, T, 3), "a name", None, 7):
        assert torch.equal(detector()(scene.input, scene.target | {key: value}), expected)
        images = [image | {key: value} for image in per_image(scene.target)]
        assert torch.equal(detector()(scene.input, images), expected)


@pytest.mark.parametrize(
    "key",
    [
        "enc_outputs",
        "dn_outputs",
        "one2many_outputs",
        "interm_outputs",
        "_outputs",
        "dn_pred_logits",
        "dn_meta",
        "dn",
        "enc",
        "enc_pred_boxes",
        "auxiliary_outputs",
        "auxiliary_loss",
        "auxiliary",
        "auxiliaryOutputs",
    ],
)
def test_an_output_that_nothing_trains_raises(key) -> None:
    scene = problem()
    message = f"input has the key {key!r}, which nothing reads, so that its loss would be missing"
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        detector()(scene.input | {key: {}}, scene.target)
    assert "'aux_outputs'" in str(error.value)  # what is read


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("pred_logit", "pred_logits"),
        ("pred_box", "pred_boxes"),
        ("pred_bboxes", "pred_boxes"),
        ("pred-boxes", "pred_boxes"),
        ("aux_output", "aux_outputs"),
        ("aux_ouputs", "aux_outputs"),
        ("axu_outputs", "aux_outputs"),
        ("aux_outputss", "aux_outputs"),
        ("auxoutputs", "aux_outputs"),
        ("pred_objectnes", "pred_objectness"),
        ("anchor", "anchors"),
        ("plans", "plan"),
    ],
)
def test_a_key_of_predictions_that_is_nearly_one_that_is_read_raises_and_names_it(key, near) -> None:
    scene = problem()
    message = f"input has the key {key!r}, which nothing reads: is {near!r} meant?"
    with pytest.raises(ValueError, match=re.escape(message)):
        detector()(scene.input | {key: torch.zeros(1)}, scene.target)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("label", "labels"),
        ("box", "boxes"),
        ("boxs", "boxes"),
        ("bboxes", "boxes"),
        ("ignored", "ignore"),
        ("ignores", "ignore"),
        ("is_crowd", "iscrowd"),
        ("iscrowds", "iscrowd"),
        ("cost_weights", "cost_weight"),
        ("los_weight", "loss_weight"),
        ("lables", "labels"),
        ("cost_wieght", "cost_weight"),
    ],
)
def test_a_key_of_targets_that_is_nearly_one_that_is_read_raises_and_names_it(key, near) -> None:
    scene = problem()
    value = torch.ones(B, T)
    with pytest.raises(ValueError, match=re.escape(f"target has the key {key!r}, which nothing reads: is {near!r}")):
        detector()(scene.input, scene.target | {key: value})
    images = per_image(scene.target)
    images[1][key] = value[1]
    with pytest.raises(ValueError, match=re.escape(f"target[1] has the key {key!r}, which nothing reads: is {near!r}")):
        detector()(scene.input, images)


@pytest.mark.parametrize(
    ("key", "meant", "without"),
    [
        ("class_labels", "labels", "labels"),
        ("category_id", "labels", "labels"),
        ("gt_labels", "labels", "labels"),
        ("bbox", "boxes", "boxes"),
        ("gt_bboxes", "boxes", "boxes"),
        ("padding_mask", "mask", "mask"),
        ("crowd", "ignore", "ignore"),
        ("gt_crowd", "ignore", "ignore"),
        ("cost_label", "cost_labels", None),
        ("loss_weights", "loss_weight", None),
        ("box", "boxes", None),
        ("ignored", "ignore", None),
    ],
)
@pytest.mark.parametrize("layout", ["padded", "list"])
def test_another_word_for_a_key_of_targets_raises_and_names_it_unless_both_are_there(
    key, meant, without, layout
) -> None:
    scene = problem()
    ignore = torch.zeros(B, T, dtype=torch.bool)
    whole = scene.target | {"ignore": ignore, key: torch.ones(B, T)}
    if without is not None:
        assert detector()(scene.input, whole).isfinite()
        del whole[without]
    target = per_image(whole) if layout == "list" else whole
    with pytest.raises(ValueError, match=f"has the key {key!r}, which nothing reads: is {meant!r} meant"):
        detector()(scene.input, target)


@pytest.mark.parametrize("key", ["weight", "weights", "sample_weight", "target_weights"])
@pytest.mark.parametrize("layout", ["padded", "list"])
def test_a_weight_of_two_meanings_raises_and_names_both(key, layout) -> None:
    scene = problem()
    target = scene.target | {key: torch.ones(B, T)}
    target = per_image(target) if layout == "list" else target
    for reader in (detector(), Hungarian(loc_match_module=L1)):
        with pytest.raises(ValueError, match=rf"\['{key}'\] has two meanings: write 'cost_weight' .* 'loss_weight'"):
            reader(scene.input, target)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("class_mask", "image_class_mask"),
        ("image_class_masks", "image_class_mask"),
        ("valid_mask", "pred_valid"),
        ("pred_valids", "pred_valid"),
    ],
)
def test_another_word_for_a_key_of_predictions_raises_and_names_it(key, meant) -> None:
    scene = problem()
    with pytest.raises(ValueError, match=f"input has the key {key!r}, which nothing reads: is {meant!r} meant"):
        detector()(scene.input | {key: torch.ones(B, P, dtype=torch.bool)}, scene.target)


def test_what_others_call_logits_passes_beside_them_and_is_named_without_them() -> None:
    scene = problem()
    assert detector()(scene.input | {"logits": scene.input["pred_logits"]}, scene.target).isfinite()
    with pytest.raises(ValueError, match="input has the key 'logits', which nothing reads: is 'pred_logits' meant"):
        detector()({"logits": scene.input["pred_logits"], "pred_boxes": scene.input["pred_boxes"]}, scene.target)


def test_what_a_module_declares_is_read_and_what_is_near_to_it_raises() -> None:
    scene = problem()
    scene.input["pred_masks"] = torch.randn(B, P, 4, 4, dtype=torch.float64)
    scene.target["masks"] = torch.rand(B, T, 4, 4, dtype=torch.float64)
    loss = DetectionLoss(None, Masks(), Hungarian(loc_match_module=L1), N)
    assert loss(scene.input, scene.target).isfinite()
    with pytest.raises(ValueError, match="the key 'pred_mask', which nothing reads: is 'pred_masks' meant"):
        loss(scene.input | {"pred_mask": scene.input["pred_masks"]}, scene.target)
    with pytest.raises(ValueError, match="the key 'maks', which nothing reads: is 'mask"):
        loss(scene.input, scene.target | {"maks": scene.target["masks"]})
    detector()(scene.input | {"pred_mask": scene.input["pred_masks"]}, scene.target)  # nobody reads masks there


def test_a_declared_key_never_raises_whatever_it_is_called() -> None:
    class Strange(nn.Module):
        needs = ("pred_logit", "pred_outputs", "target_label", "target_iscrowds")

        def forward(self, **fields):
            return sum(fields.values())

    scene = problem()
    scene.input |= {"pred_logit": torch.randn(B, P), "pred_outputs": torch.randn(B, P)}
    scene.target |= {"label": torch.randn(B, T), "iscrowds": torch.zeros(B, T)}
    assert DetectionLoss(None, Strange(), Hungarian(loc_match_module=L1), N)(scene.input, scene.target).isfinite()
    cost = Hungarian(loc_match_module=Strange())
    assert DetectionLoss(None, L1, cost, N)(scene.input, scene.target).isfinite()


def test_a_branch_is_read_and_what_is_near_to_it_raises() -> None:
    scene = problem()
    criterion = Branches(detector(), enc_outputs=Branch(detector()))
    criterion(scene.input | {"enc_outputs": dict(scene.input)}, scene.target)
    with pytest.raises(ValueError, match="the key 'enc_output', which nothing reads: is 'enc_outputs' meant"):
        criterion(scene.input | {"enc_output": dict(scene.input)}, scene.target)
    with pytest.raises(ValueError, match="the key 'dn_outputs', which nothing reads, so that its loss would be"):
        criterion(scene.input | {"dn_outputs": dict(scene.input)}, scene.target)


def test_the_keys_of_a_branch_are_checked_and_the_branch_is_named() -> None:
    scene = problem()
    criterion = Branches(detector(), enc_outputs=Branch(detector()))
    for key, what in (("pred_box", "is 'pred_boxes' meant"), ("dn_outputs", "its loss would be missing")):
        branch = dict(scene.input) | {key: torch.zeros(1)}
        with pytest.raises(ValueError, match=re.escape(f"input['enc_outputs']: input has the key {key!r}")) as error:
            criterion(scene.input | {"enc_outputs": branch}, scene.target)
        assert what in str(error.value)


def test_the_keys_of_earlier_layers_are_checked() -> None:
    scene = problem()
    layer = dict(scene.input) | {"pred_box": random_boxes(B, P)}
    with pytest.raises(ValueError, match=re.escape("input['aux_outputs'][1] has the key 'pred_box', which nothing")):
        detector()(scene.input | {"aux_outputs": [dict(scene.input), layer]}, scene.target)


def test_objectness_is_standard() -> None:
    scene = problem()
    scene.input["pred_objectness"] = torch.randn(B, P)
    assert detector()(scene.input, scene.target).isfinite()
    loss = detector(extra_terms=[Objectness(ObjectnessLoss(reduction=N))])
    assert "loss_obj" in loss.terms(scene.input, scene.target)
    with pytest.raises(ValueError, match="is 'pred_objectness' meant"):
        loss(scene.input | {"pred_objectnes": scene.input["pred_objectness"]}, scene.target)


def edits(a: str, b: str) -> int:
    """Return the edit distance with swaps of neighbours, by the textbook's table."""
    table = {(i, 0): i for i in range(len(a) + 1)} | {(0, j): j for j in range(len(b) + 1)}
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            same = a[i - 1] == b[j - 1]
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (not same))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                table[i, j] = min(table[i, j], table[i - 2, j - 2] + 1)
    return table[len(a), len(b)]


def test_near_is_one_edit_or_a_plural() -> None:
    words = ["", "a", "ab", "ba", "abc", "acb", "bac", "abcd", "abdc", "abx", "xab", "abab", "baba", "aab", "abb"]
    words += ["box", "boxes", "boxs", "bxo", "obx", "labels", "label", "lables", "labelss", "plan", "plans", "planes"]
    for a in words:
        for b in words:
            plural = a in (b + "s", b + "es") or b in (a + "s", a + "es")
            assert is_near(a, b) == (edits(a, b) <= 1 or plural), (a, b)


def test_a_criterion_and_its_matcher_read_the_same_keys() -> None:
    scene = problem()
    loss = DetectionLoss(nn.CrossEntropyLoss(reduction=N), GIoULoss(reduction=N), Hungarian(loc_match_module=Masks()))
    scene.input["pred_masks"] = torch.randn(B, P, 2, dtype=torch.float64)
    scene.target["masks"] = torch.randn(B, T, 2, dtype=torch.float64)
    assert loss(scene.input, scene.target).isfinite()
    with pytest.raises(ValueError, match="is 'pred_masks' meant"):
        loss(scene.input | {"pred_maskss": 1}, scene.target)
