"""The options that all recipes share act in each of them: a walk over every recipe and every option."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.guards import take_gpu_path
from tests.support.recipe_cases import CASES, CLASSES, SUMS, layered, problem_for, value_of
from uotod.loss import Branches, DetectionLoss
from uotod.recipes import ALL_RECIPES
from uotod.utils import box_xyxy_to_cxcywh, box_xyxy_to_xywh


def build(name: str, **options: Any) -> nn.Module:
    return ALL_RECIPES[name](CLASSES, **options)


def nonfinite_acts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_for(name)
    with torch.no_grad():
        problem.input["pred_logits"][0, 0] = math.nan
    for options in ({}, {"nonfinite": "error"}):
        with pytest.raises(ValueError, match=r"input\['pred_logits'\] .*propagate"):
            value_of(build(name, **options), problem)
    assert value_of(build(name, nonfinite="propagate"), problem).isnan()


def validate_acts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take_gpu_path(monkeypatch)
    problem = problem_for(name)
    problem.target["boxes"] = problem.target["boxes"][..., [2, 3, 0, 1]]
    value_of(build(name), problem)  # as on a GPU nothing is looked at
    with pytest.raises(ValueError, match=r"target\['boxes'\] must have x1 <= x2"):
        value_of(build(name, validate=True), problem)


def layer_weights_act(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = layered(name)
    terms = build(name).terms(problem.input, problem.target, problem.anchors)
    weighted = build(name, layer_weights=[0.0, 2.0]).terms(problem.input, problem.target, problem.anchors)
    final = [key for key in terms if key in ("loss_cls", "loss_loc", "loss_dist")]
    torch.testing.assert_close(weighted["loss"], 2 * sum(terms[key] for key in final))
    with pytest.raises(ValueError, match="layer_weights must hold 2 numbers"):
        value_of(build(name, layer_weights=[1.0, 1.0, 1.0]), problem)


def box_format_acts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_for(name)
    expected = value_of(build(name), problem)
    for box_format, convert in (("cxcywh", box_xyxy_to_cxcywh), ("xywh", box_xyxy_to_xywh)):
        input = problem.input | {"pred_boxes": convert(problem.input["pred_boxes"])}
        target = problem.target | {"boxes": convert(problem.target["boxes"])}
        torch.testing.assert_close(build(name, box_format=box_format)(input, target, problem.anchors), expected)


def min_negatives_act(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_for(name)
    problem.target["mask"] = torch.zeros_like(problem.target["mask"])
    losses = []
    for least in (0.0, 5.0):
        terms = build(name, min_negatives=least).terms(problem.input, problem.target, problem.anchors)
        torch.testing.assert_close(terms["num_neg"], 2 * torch.tensor(least).double())
        losses.append(float(terms["loss"].detach()))
    assert losses[0] == 0.0 < losses[1]
    with pytest.raises(ValueError, match="min_negatives must"):
        build(name, min_negatives=-1.0)


ACTS: dict[str, Callable[[str, pytest.MonkeyPatch], None]] = {
    "nonfinite": nonfinite_acts,
    "validate": validate_acts,
    "layer_weights": layer_weights_act,
    "box_format": box_format_acts,
    "min_negatives": min_negatives_act,
}


def mines(name: str) -> bool:
    criterion = build(name)
    losses = [criterion.main] if isinstance(criterion, Branches) else [criterion]
    return any(x.use_hard_negative_mining for x in losses if isinstance(x, DetectionLoss))


@pytest.mark.parametrize("option", ACTS)
@pytest.mark.parametrize("name", CASES)
def test_an_option_acts_in_every_recipe_that_has_a_use_for_it(name, option, monkeypatch) -> None:
    has_use = {"layer_weights": name in SUMS, "min_negatives": mines(name)}.get(option, True)
    assert (option in inspect.signature(ALL_RECIPES[name]).parameters) == has_use
    if has_use:
        ACTS[option](name, monkeypatch)
    else:
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
            build(name, **{option: None})
