"""A dry run in words: it says what is read and how, and leaves no trace."""

import copy
import re
import warnings

import pytest
import torch
from torch import nn

from tests.support.problems import random_problem
from tests.support.recipe_cases import CASES, CLASSES, layered, problem_for
from uotod.loss import (
    Branch,
    Branches,
    DetectionLoss,
    MovingAverageNormalizer,
    PerImageNormalizer,
    SigmoidFocalLoss,
    TargetNormalizer,
)
from uotod.match import Hungarian, IoUThreshold, SimOTA
from uotod.recipes import ALL_RECIPES
from uotod.utils import box_xyxy_to_cxcywh

N = "none"
L1 = nn.L1Loss(reduction=N)


def build(matcher=None, **options) -> DetectionLoss:
    matcher = Hungarian(loc_match_module=L1) if matcher is None else matcher
    return DetectionLoss(SigmoidFocalLoss(reduction=N), L1, matcher, "none", **options)


def lines(text: str) -> dict[str, str]:
    return dict(re.split(r"  +", line, maxsplit=1) for line in text.splitlines() if "  " in line)


@pytest.mark.parametrize("name", CASES)
def test_every_recipe_describes_itself_without_a_trace(name) -> None:
    criterion, problem = ALL_RECIPES[name](CLASSES), layered(name)
    before, given = copy.deepcopy(criterion), copy.deepcopy(criterion.__dict__)
    random = torch.get_rng_state()
    text = criterion.describe(problem.input, problem.target, problem.anchors)
    found = lines(text)
    assert found["layers"] == "2"
    assert "6, beside 0 ignored and 0 of padding; 3 an image" in found["targets"]
    assert {"predictions", "boxes", "input", "target", "plan", "mass a target", "divisor of cls"} <= set(found)
    assert repr(criterion) == repr(before)
    assert set(criterion.__dict__) == set(given)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(x.grad is None for x in problem.input.values() if isinstance(x, torch.Tensor))


def test_it_says_what_is_read_and_what_is_not() -> None:
    problem = problem_for("yolox")
    problem.input["hidden"], problem.target["area"] = torch.zeros(1), torch.zeros(2, 3)
    found = lines(build().describe(problem.input, problem.target))
    assert found["input"] == "read pred_boxes (float64), pred_logits (float64); unread hidden, pred_objectness"
    assert found["target"] == "read boxes (float64), labels (int64), mask (bool); unread area"
    read = lines(build(SimOTA()).describe(problem.input, problem.target, problem.anchors))["input"]
    assert "pred_objectness (float64); unread hidden" in read


def test_a_list_of_targets_has_the_keys_of_all_images() -> None:
    input = {"pred_logits": torch.zeros(2, 3, 4), "pred_boxes": torch.rand(2, 3, 4)}
    one = {"labels": torch.tensor([2]), "boxes": torch.tensor([[0.0, 0.0, 1.0, 1.0]]), "image_id": torch.tensor(1)}
    none = {"labels": torch.zeros(0).long(), "boxes": torch.zeros(0, 4), "iscrowd": torch.zeros(0).long()}
    found = lines(build().describe(input, [one, none]))
    assert found["target"] == "read boxes (float32), iscrowd (int64), labels (int64); unread image_id"
    assert found["targets"] == "1, beside 0 ignored and 1 of padding; 0 to 1 an image; labels 2"


def test_it_counts_ignored_padded_and_starved_targets() -> None:
    problem = random_problem(2, 9, 4, 3, low=0, full=True)
    problem.target["mask"][0, 0] = False
    problem.target["ignore"] = torch.zeros(2, 4, dtype=torch.bool)
    problem.target["ignore"][1, :2] = True
    criterion = build(IoUThreshold(positive=1.0, force_match=None))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the text says it: a warning would say it twice
        found = lines(criterion.describe(problem.input, problem.target))
    assert found["targets"].startswith("5, beside 2 ignored and 1 of padding; 2 to 3 an image")
    assert found["mass a target"] == "least 0, median 0; 5 of 5 starved, with less than 0.5"
    assert found["plan"].startswith("of IoUThreshold: 0 % positive, ")


def test_the_shares_are_those_of_the_plan() -> None:
    problem = random_problem(2, 10, 2, 3, low=0, full=True)
    found = lines(build().describe(problem.input, problem.target))
    assert found["plan"] == "of Hungarian: 20 % positive, 80 % background, 0 % ignored"
    index = torch.full((2, 10), 2).index_fill(1, torch.arange(5), -1)
    plain = Branches(build(), dn_outputs=Branch(build(), plan="given"))
    text = plain.describe(problem.input | {"dn_outputs": problem.input | {"plan": index}}, problem.target)
    assert "0 % positive, 50 % background, 50 % ignored" in text


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"reduction": "sum"}, 'none, with reduction="sum"'),
        ({"normalizer": TargetNormalizer()}, "6, by TargetNormalizer"),
        ({"normalizer": PerImageNormalizer()}, "6, by PerImageNormalizer"),
        ({"normalizer": MovingAverageNormalizer(momentum=0.5, initial=10)}, "8, by MovingAverageNormalizer"),
    ],
)
def test_the_divisors_are_those_of_the_normalizer(options, expected) -> None:
    problem = random_problem(2, 10, 3, 3, low=0, full=True)
    found = lines(build(**options).describe(problem.input, problem.target))
    assert found["divisor of cls"] == found["divisor of loc"] == expected


def test_formats_and_ranges_of_boxes() -> None:
    boxes = torch.tensor([[[2.0, 2.0, 6.0, 8.0]]])
    input = {"pred_logits": torch.zeros(1, 1, 2), "pred_boxes": box_xyxy_to_cxcywh(boxes)}
    criterion = build(Hungarian(loc_match_module=L1, box_format="cxcywh"), box_format="cxcywh", target_format="xyxy")
    found = lines(criterion.describe(input, {"labels": torch.tensor([[1]]), "boxes": boxes}, boxes[0] * 2))
    assert found["boxes"] == (
        "predicted in [2, 8], given as cxcywh; targets in [2, 8], given as xyxy; anchors in [4, 16]"
    )


@pytest.mark.parametrize(("images", "preds", "targets"), [(0, 3, 2), (2, 0, 2), (2, 3, 0), (0, 0, 0), (1, 1, 1)])
def test_small_batches(images, preds, targets) -> None:
    problem = random_problem(images, preds, targets, 3, low=0, full=True)
    found = lines(build().describe(problem.input, problem.target))
    assert found["targets"].startswith(f"{images * targets}, beside 0 ignored")
    assert ("no target" in found["mass a target"]) == (images * targets == 0)


def test_branches_are_described_one_by_one() -> None:
    problem = random_problem(2, 8, 3, 4, low=0, full=True)
    criterion = Branches(
        build(layer_weights=[2.0]), enc_outputs=Branch(build(), 0.5, class_agnostic=True), dn_outputs=Branch(build())
    )
    text = criterion.describe(problem.input | {"enc_outputs": problem.input}, problem.target)
    assert text.splitlines()[0] == "main"
    assert "enc_outputs, of weight 0.5, class-agnostic" in text.splitlines()
    assert "dn_outputs: not in the input" in text.splitlines()
    assert re.search(r"^layers +1, of the weights 2$", text, flags=re.MULTILINE)
    assert text.count("mass a target") == 2


def test_what_is_wrong_raises_as_in_training() -> None:
    problem = random_problem(1, 4, 2, 3, low=0, full=True)
    with pytest.raises(ValueError, match="auxiliary_outputs"):
        build().describe(problem.input | {"auxiliary_outputs": []}, problem.target)


def test_it_exchanges_nothing_with_other_ranks(monkeypatch) -> None:
    def refuse(*args, **kwargs) -> None:
        raise AssertionError("a collective")

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", refuse)
    problem = random_problem(2, 10, 3, 3, low=0, full=True)
    assert build(normalizer=TargetNormalizer(distributed=True)).describe(problem.input, problem.target)
