"""Every recipe on two ranks of which one lacks something: together they have the loss of one process that saw all."""

import os
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing, nn

from tests.support.rank_cases import ABSENT, RANKS, Part, branches_of, part_of, union
from tests.support.recipe_cases import CLASSES, main_of
from uotod.loss import DetectionLoss, Normalizer
from uotod.recipes import ALL_RECIPES

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="this torch has no torch.distributed")

CASES = [(name, absent) for name in ALL_RECIPES for absent in ABSENT]


def terms_of(name: str, part: Part) -> dict[str, float]:
    criterion = ALL_RECIPES[name](CLASSES)
    for module in main_of(criterion).modules():
        if isinstance(module, Normalizer):
            module.least = 1e-6  # scores of random predictions are less than 1, where the least divisor would count
    terms = criterion.terms(part.input, part.target, part.anchors)
    return {key: float(value) for key, value in terms.items()}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    torch.save({case: terms_of(case[0], part_of(*case, rank)) for case in CASES}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], dict[str, float]]]:
    """The terms of each case that each rank found: both walk all recipes in one life."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(work, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def owner(criterion: nn.Module, key: str) -> tuple[DetectionLoss, str]:
    """Return the criterion and the term that a key of `terms` is from."""
    for name, branch in branches_of(criterion).items():
        if key.endswith("_" + name.removesuffix("_outputs")):
            return branch.loss, key.split("_")[1]
    return main_of(criterion), key.split("_")[1]


def is_global(criterion: nn.Module, key: str) -> bool:
    """Tell whether the published divisor of a term is that of all ranks; a mean of its own is not."""
    loss, name = owner(criterion, key)
    members = loss.normalizer._modules
    normalizer = members.get(name, members.get("default")) or loss.normalizer
    (term,) = (x for x in loss.all_terms if x.name == name)
    return bool(normalizer.distributed) and not term.is_mean  # type: ignore[union-attr]


def given(key: str) -> bool:
    """Tell whether it is a loss of denoising queries, whose plan is given."""
    return key.endswith("_dn")


def is_of_parts(key: str) -> bool:
    """Tell whether it is a loss of a term in a layer, no sum over the terms of a branch."""
    return key.startswith("loss_") and key.split("_")[1] in ("cls", "loc", "obj", "dist")


@pytest.mark.parametrize(("name", "absent"), CASES)
def test_the_mean_over_the_ranks_is_the_loss_of_one_process_that_saw_the_union(
    ranks: list[dict[Any, dict[str, float]]], name: str, absent: str
) -> None:
    criterion = ALL_RECIPES[name](CLASSES)
    parts = [part_of(name, absent, rank) for rank in range(RANKS)]
    both, alone = terms_of(name, union(parts)), [terms_of(name, part) for part in parts]
    found = [terms[name, absent] for terms in ranks]
    keys = [key for key in dict.fromkeys(key for terms in found for key in terms) if is_of_parts(key)]
    assert len(keys) >= 2
    for key in keys:
        if not is_global(criterion, key):
            for here, own in zip(found, alone, strict=True):
                assert here.get(key, 0.0) == pytest.approx(own.get(key, 0.0), rel=1e-9, abs=1e-12), key
        elif absent == "all targets of a rank" and given(key):
            # a rank without targets has no groups of queries, and divides its negatives by the least divisor
            assert found[0][key] == pytest.approx(RANKS * alone[0][key], rel=1e-9), key
            assert found[1][key] == pytest.approx(alone[1][key], rel=1e-9), key
        else:
            # what a rank lacks counts 0 there, so that the others are alone with it
            expected = both[key] if key in both else sum(terms.get(key, 0.0) for terms in alone)
            mean = sum(terms.get(key, 0.0) for terms in found) / RANKS
            assert mean == pytest.approx(expected, rel=1e-9, abs=1e-12), key


@pytest.mark.parametrize(("name", "absent"), CASES)
def test_the_loss_of_each_rank_is_finite_and_the_sum_of_its_terms(
    ranks: list[dict[Any, dict[str, float]]], name: str, absent: str
) -> None:
    criterion = ALL_RECIPES[name](CLASSES)
    suffixes = [key.removesuffix("_outputs") for key in branches_of(criterion)]
    for terms in ranks:
        found = terms[name, absent]
        assert torch.tensor(list(found.values())).isfinite().all()
        assert found["loss"] >= 0
        for suffix in suffixes:
            assert (f"loss_{suffix}" in found) == any(is_of_parts(k) and k.endswith(f"_{suffix}") for k in found)
