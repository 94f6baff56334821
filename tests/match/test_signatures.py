"""Constructors of matchers and recipes: every option stands in the signature, with its owner's default."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from torch import nn

from uotod import match, recipes
from uotod.loss import NegativeProbLoss
from uotod.match import ALL_MATCHERS, Hungarian, Matcher
from uotod.recipes import ALL_RECIPES

COMPOSITES: dict[str, Any] = {
    "SharedLayers": {"matcher": Hungarian()},
    "UnionVote": {"matcher": Hungarian()},
    "WeightedSum": {"matchers": [Hungarian()]},
}
SINGLE = sorted(set(ALL_MATCHERS) - set(COMPOSITES))
OTHER_DEFAULTS = {("ATSS", "is_anchor_based")}  # its thresholds are those of anchors

# what a matcher of the family lacks of `UnbalancedSinkhorn`, because it is fixed there, or has a meaning of its own
SINKHORN_FAMILY = {
    "BalancedSinkhorn": {"reg_pred", "reg_target"},
    "BalancedPOT": {"reg_pred", "reg_target", "solver"},
    "UnbalancedPOT": {"solver"},
    "PartialOT": {"reg_pred", "reg_target", "pot_method", "solver"},
}
DOCUMENTED_BY = {"BalancedPOT": match.BalancedSinkhorn, "UnbalancedPOT": match.UnbalancedSinkhorn}

CHANGED = {
    "cls_match_module": NegativeProbLoss(reduction="none"),
    "loc_match_module": nn.L1Loss(reduction="none"),
    "background": False,
    "background_cost": 3.0,
    "is_anchor_based": True,
    "nonfinite": "propagate",
    "ignore_threshold": 0.25,
    "class_weight": [1.0, 2.0],
    "validate": True,
    "box_format": "cxcywh",
}


def options(build: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(build, eval_str=True).parameters  # whether or not a file postpones annotations


def documented(build: Callable[..., Any]) -> set[str]:
    """Return the arguments that the docstring has under `Args`."""
    _, _, text = inspect.getdoc(build).partition("\nArgs:\n")
    section = re.split(r"^\S", text, flags=re.MULTILINE)[0]
    return set(re.findall(r"^    (\w+):", section, flags=re.MULTILINE))


@pytest.mark.parametrize("build", [*ALL_MATCHERS.values(), *ALL_RECIPES.values()], ids=lambda build: build.__name__)
class TestEveryConstructor:
    def test_it_writes_its_options_out(self, build: Callable[..., nn.Module]) -> None:
        open_ended = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        assert not [name for name, option in options(build).items() if option.kind in open_ended]

    def test_a_misspelt_option_is_an_error_of_the_one_that_was_called(self, build: Callable[..., nn.Module]) -> None:
        needed = {"num_classes": 3} if build in ALL_RECIPES.values() else COMPOSITES.get(build.__name__, {})
        with pytest.raises(TypeError, match=rf"^{build.__name__}(\.__init__)?\(\) got an unexpected .* 'mispelt'"):
            build(**needed, mispelt=1)

    def test_its_own_options_are_documented(self, build: Callable[..., nn.Module]) -> None:
        known = documented(build)
        if build in ALL_MATCHERS.values():
            known |= set() if build.__name__ in COMPOSITES else documented(Matcher)
            known |= documented(DOCUMENTED_BY.get(build.__name__, build))
        assert set(options(build)) <= known


def test_the_base_class_documents_its_options() -> None:
    assert set(options(Matcher)) == documented(Matcher) == set(CHANGED)


@pytest.mark.parametrize("name", SINGLE)
def test_shared_options_are_those_of_the_base_class(name: str) -> None:
    own = options(ALL_MATCHERS[name])
    for key, option in options(Matcher).items():
        if (name, key) in OTHER_DEFAULTS:
            assert own[key] == option.replace(default=True)
        else:
            assert own[key] == option


@pytest.mark.parametrize("name", SINGLE)
def test_shared_options_arrive_at_the_base_class(name: str) -> None:
    rule = ALL_MATCHERS[name]
    defaults, changed = rule(), rule(**CHANGED)
    for key, option in options(Matcher).items():
        if (name, key) not in OTHER_DEFAULTS:
            assert getattr(defaults, key) == option.default
        found = getattr(changed, key)
        assert (found.tolist() if key == "class_weight" else found) == CHANGED[key]
    assert rule(is_anchor_based=False).is_anchor_based is False


@pytest.mark.parametrize("name", SINKHORN_FAMILY)
def test_the_options_of_transport_are_those_of_unbalanced_sinkhorn(name: str) -> None:
    own, owner = options(ALL_MATCHERS[name]), options(match.UnbalancedSinkhorn)
    lacks = SINKHORN_FAMILY[name]
    assert {key: own[key] for key in owner if key not in lacks} == {
        key: option for key, option in owner.items() if key not in lacks
    }
    assert not (lacks - {"solver"}) & set(own)


@pytest.mark.parametrize("name", [*SINKHORN_FAMILY, "UnbalancedSinkhorn"])
def test_the_options_of_transport_arrive(name: str) -> None:
    changed: dict[str, Any] = {"reg_dimless": 0.2, "reg": 0.3, "num_iter": 7, "tol": 0.1, "on_unconverged": "raise"}
    changed |= {"cost_scale": "median", "reg_pred": 2.0, "reg_target": 3.0}
    given = {key: value for key, value in changed.items() if key in options(ALL_MATCHERS[name])}
    matcher = ALL_MATCHERS[name](**given)
    assert {key: getattr(matcher, key) for key in given} == given


def test_the_transport_recipes_have_one_set_of_options() -> None:
    for key in ("reg_pred", "reg_target", "reg_dimless"):
        assert options(recipes.uot_detr)[key] == options(recipes.uot_deformable_detr)[key]
