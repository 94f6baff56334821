"""Ranks: one reduction a training call whatever the data holds, none otherwise, and the divisors of the whole batch."""

import os
import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

from tests.support.problems import random_boxes, random_problem
from uotod.loss import (
    Branch,
    Branches,
    ByTerm,
    Classification,
    DetectionLoss,
    ImagePositiveNormalizer,
    Masses,
    MassNormalizer,
    Normalizer,
    Objectness,
    ObjectnessLoss,
    PairedTargetNormalizer,
    PerImageNormalizer,
    PositiveNormalizer,
    ScoreNormalizer,
    SigmoidFocalLoss,
    TargetNormalizer,
    TotalMassNormalizer,
)
from uotod.match import Hungarian

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="this torch has no torch.distributed")

N = "none"
RANKS = 2
P, C = 8, 4
L1 = nn.L1Loss(reduction=N)
WEIGHT = torch.tensor([0.3, 1.0, 2.0, 0.7])
COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast", "reduce", "barrier", "all_to_all")
NORMALIZERS: dict[str, Callable[[bool], Normalizer]] = {
    "mass": lambda shared: MassNormalizer(distributed=shared),
    "total": lambda shared: TotalMassNormalizer(distributed=shared),
    "targets": lambda shared: TargetNormalizer(distributed=shared),
    "positives": lambda shared: PositiveNormalizer(distributed=shared),
    "positives of images": lambda shared: ImagePositiveNormalizer(distributed=shared),
    "scores": lambda shared: ScoreNormalizer(distributed=shared),
    "pairs": lambda shared: PairedTargetNormalizer(distributed=shared),
    "images": lambda shared: PerImageNormalizer(distributed=shared),
    "by term": lambda shared: ByTerm(TargetNormalizer(distributed=shared), cls=MassNormalizer(distributed=shared)),
}
GROUPS = (2, 5)  # of denoising queries, on each rank


def good(boxes: Tensor, target_boxes: Tensor) -> Tensor:
    """Return a quality so high that no divisor falls below 1 on a rank."""
    return 1 / (1 + (boxes - target_boxes).abs().amax(-1))


def detector(normalizer: Normalizer) -> DetectionLoss:
    return DetectionLoss(
        Classification(nn.CrossEntropyLoss(WEIGHT, reduction=N), quality=good),
        L1,
        Hungarian(loc_match_module=L1),
        extra_terms=[Objectness(ObjectnessLoss(reduction=N))],
        normalizer=normalizer,
    )


def layer(images: int, preds: int = P) -> dict[str, Any]:
    return {
        "pred_logits": torch.randn(images, preds, C, dtype=torch.float64).requires_grad_(),
        "pred_boxes": random_boxes(images, preds).requires_grad_(),
        "pred_objectness": torch.randn(images, preds, dtype=torch.float64).requires_grad_(),
    }


def problem(rank: int, images: int | None = None, targets: int = 5) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return an input of two layers; the ranks have two and three images, of unequal numbers of targets."""
    torch.manual_seed(rank)
    images = 2 + rank if images is None else images
    scene = random_problem(images, P, targets, C, full=True)
    scene.target["mask"] = torch.arange(targets) < torch.tensor([[5], [3 - 2 * rank], [1]])[:images]
    return layer(images) | {"aux_outputs": [layer(images)]}, scene.target


def denoising(target: dict[str, Tensor], groups: int) -> dict[str, Any]:
    """Return the output of denoising queries: each target of an image once in each group."""
    images, targets = target["mask"].shape
    plan = torch.arange(targets).where(target["mask"], -1).repeat(1, groups)
    return layer(images, plan.shape[1]) | {"plan": plan}


def family(shared: bool = True) -> Branches:
    """Return a criterion of a main loss, proposals and denoising."""
    paired = detector(PairedTargetNormalizer(distributed=shared))
    return Branches(
        detector(TargetNormalizer(distributed=shared)),
        enc_outputs=Branch(detector(MassNormalizer(distributed=shared))),
        dn_outputs=Branch(paired, plan="given"),
    )


def grouped(group: Any) -> Branches:
    criterion = family()
    criterion.process_group = group
    return criterion


def family_case(name: str, rank: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return input and target of a case whose branches and sizes differ between the ranks."""
    if name == "an empty batch":
        input, target = problem(rank, images=0 if rank else 2)
    elif name == "no targets":
        input, target = problem(rank, targets=5)
        if rank:
            target = {key: x[:, :0] for key, x in target.items()}
    else:
        input, target = problem(rank)
    if name != "no denoising" or rank:
        input["dn_outputs"] = denoising(target, GROUPS[rank])
    if name not in ("no proposals anywhere",) and not (name == "no proposals" and rank):
        input["enc_outputs"] = layer(len(target["mask"]), 11)
    if name == "layers of branches" and rank:
        queries = input["dn_outputs"]["pred_logits"].shape[1]
        input["dn_outputs"]["aux_outputs"] = [layer(len(target["mask"]), queries)]
    return input, target


FAMILY = (
    "unequal groups",
    "no denoising",
    "no proposals",
    "no proposals anywhere",
    "an empty batch",
    "no targets",
    "layers of branches",
)


class Counter:
    """Count the collectives that are called."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        for name in COLLECTIVES:
            setattr(distributed, name, self.counted(name, getattr(distributed, name)))

    def counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.calls.append(name)
            return function(*args, **options)

        return call

    def taken(self) -> list[str]:
        found, self.calls = self.calls, []
        return found


def numbers(terms: dict[str, Tensor]) -> dict[str, float]:
    return {key: float(value.detach()) for key, value in terms.items()}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    counter = Counter()
    found: dict[str, Any] = {}

    for name, make in NORMALIZERS.items():
        input, target = problem(rank)
        terms = detector(make(True)).terms(input, target)
        calls = counter.taken()
        terms["loss"].backward()
        found[name] = numbers(terms), calls, input["pred_boxes"].grad
        found[f"{name} alone"] = numbers(detector(make(False)).terms(input, target)), counter.taken()

    for name in FAMILY:
        input, target = family_case(name, rank)
        criterion = family()
        terms = criterion.terms(input, target)
        calls = counter.taken()
        terms["loss"].backward()
        found[name] = numbers(terms), calls, counter.taken()
        forward = criterion(input, target)
        found[f"{name} forward"] = float(forward), counter.taken()

    input, target = family_case("unequal groups", rank)
    criterion = family()
    found["masses"] = criterion.masses(input, target).rows, counter.taken()
    given = criterion.masses(input, target)
    found["given"] = numbers(criterion.terms(input, target, masses=given + given)), counter.taken()
    counting = Branches(criterion.main, dn_outputs=criterion.branches["dn_outputs"])
    input.pop("enc_outputs")
    found["of targets"] = numbers(counting.terms(input, target, masses=Masses.of_targets(7.0))), counter.taken()
    input, target = family_case("unequal groups", rank)
    with torch.no_grad():
        found["no_grad"] = numbers(criterion.terms(input, target)), counter.taken()
    found["eval"] = numbers(criterion.eval().terms(input, target)), counter.taken()
    if rank == 0:  # the others are not there to answer
        found["rank 0 validates"] = numbers(criterion.terms(input, target)), counter.taken()
        with torch.no_grad():
            found["rank 0 looks"] = numbers(criterion.train().terms(input, target)), counter.taken()
    criterion.train()
    mixed = Branches(detector(TargetNormalizer()), dn_outputs=Branch(detector(TargetNormalizer(distributed=True))))
    input = {key: x for key, x in input.items() if key != "enc_outputs"}
    found["only a branch"] = numbers(mixed.terms(input, target)), counter.taken()

    groups = [distributed.new_group([rank]) for rank in range(RANKS)]
    input, target = family_case("unequal groups", rank)
    for name, criterion in {"its own group": family(), "a copy": deepcopy(grouped(groups[rank]))}.items():
        criterion.process_group = groups[rank]
        assert criterion.main.process_group is groups[rank]
        found[name] = numbers(criterion.terms(input, target)), counter.taken()
    with pytest.raises(ValueError, match="process_group must have this process as a member"):
        grouped(groups[1 - rank]).terms(input, target)

    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(work, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def whole() -> tuple[dict[str, Any], dict[str, Tensor]]:
    problems = [problem(rank) for rank in range(RANKS)]
    inputs, targets = [x[0] for x in problems], [x[1] for x in problems]

    def join(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {key: join([x[key] for x in values]) for key in values[0]}
        if isinstance(values[0], list):
            return [join(list(x)) for x in zip(*values, strict=True)]
        return torch.cat([x.detach() for x in values]).requires_grad_(values[0].requires_grad)

    return join(inputs), join(targets)


@pytest.mark.parametrize("name", NORMALIZERS)
def test_the_mean_over_the_ranks_is_the_loss_of_the_whole_batch(ranks, name) -> None:
    input, target = whole()
    terms = detector(NORMALIZERS[name](False)).terms(input, target)
    for key, value in terms.items():
        if key.startswith("loss"):
            mean = torch.tensor([found[name][0][key] for found in ranks], dtype=torch.float64).mean()
            torch.testing.assert_close(mean, value.detach(), rtol=1e-12, atol=1e-12)
    terms["loss"].backward()
    gradient = torch.cat([found[name][2] for found in ranks]) / RANKS  # what DDP averages
    torch.testing.assert_close(gradient, input["pred_boxes"].grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NORMALIZERS)
def test_a_training_call_makes_one_reduction_and_none_with_divisors_of_its_own(ranks, name) -> None:
    for rank, found in enumerate(ranks):
        assert found[name][1] == ["all_reduce"]
        assert found[f"{name} alone"][1] == []
        alone = detector(NORMALIZERS[name](False)).terms(*problem(rank))
        assert found[f"{name} alone"][0] == pytest.approx(numbers(alone))


@pytest.mark.parametrize("name", FAMILY)
def test_branches_make_one_reduction_whatever_the_data_holds(ranks, name) -> None:
    for found in ranks:
        terms, calls, backward = found[name]
        assert calls == ["all_reduce"]
        assert backward == []
        assert found[f"{name} forward"] == (pytest.approx(terms["loss"]), ["all_reduce"])


def undivided(name: str, rank: int) -> dict[str, float]:
    """Return the terms of a case with a divisor of 1."""
    input, target = family_case(name, rank)
    one = [
        DetectionLoss(
            Classification(nn.CrossEntropyLoss(WEIGHT, reduction=N), quality=good),
            L1,
            Hungarian(loc_match_module=L1),
            extra_terms=[Objectness(ObjectnessLoss(reduction=N))],
            reduction="sum",
        )
        for _ in range(3)
    ]
    criterion = Branches(one[0], enc_outputs=Branch(one[1]), dn_outputs=Branch(one[2], plan="given"))
    return numbers(criterion.terms(input, target))


def count(name: str, rank: int) -> int:
    return int(family_case(name, rank)[1]["mask"].sum())


@pytest.mark.parametrize("name", FAMILY)
def test_the_main_loss_is_divided_by_the_mean_number_of_targets(ranks, name) -> None:
    divisor = max(sum(count(name, rank) for rank in range(RANKS)) / RANKS, 1)
    for rank, found in enumerate(ranks):
        expected = undivided(name, rank)
        for key in ("loss_cls", "loss_loc", "loss_obj", "loss_cls_0", "loss_loc_0", "loss_obj_0"):
            assert found[name][0][key] == pytest.approx(expected[key] / divisor, rel=1e-12)


@pytest.mark.parametrize("name", FAMILY)
def test_denoising_is_divided_by_the_mean_number_of_targets_times_its_own_groups(ranks, name) -> None:
    there = [rank for rank in range(RANKS) if "dn_outputs" in family_case(name, rank)[0]]
    for rank in there:
        expected = undivided(name, rank)
        keys = [key for key in expected if re.fullmatch(r"loss_\w+_dn", key)]
        assert len(keys) >= 3
        for key in keys:
            have = [other for other in there if key in ranks[other][name][0]]  # what a rank lacks counts 0
            mean = sum(count(name, other) for other in have) / RANKS
            divisor = max(mean * GROUPS[rank] if count(name, rank) else 0, 1)
            assert ranks[rank][name][0][key] == pytest.approx(expected[key] / divisor, rel=1e-12)
    for rank in set(range(RANKS)) - set(there):
        assert not any(key.endswith("_dn") for key in ranks[rank][name][0])


def test_evaluation_reduces_nothing_and_divides_by_what_is_here(ranks) -> None:
    for rank, found in enumerate(ranks):
        input, target = family_case("unequal groups", rank)
        expected = numbers(family(shared=False).terms(input, target))
        for name in ("no_grad", "eval"):
            terms, calls = found[name]
            assert calls == []
            assert terms == pytest.approx(expected)


def test_one_rank_may_validate_alone(ranks) -> None:
    expected = numbers(family(shared=False).terms(*family_case("unequal groups", 0)))
    for name in ("rank 0 validates", "rank 0 looks"):
        terms, calls = ranks[0][name]
        assert calls == []
        assert terms == pytest.approx(expected)
        assert name not in ranks[1]


def test_masses_that_are_given_are_not_reduced(ranks) -> None:
    for rank, found in enumerate(ranks):
        case = family_case("unequal groups", rank)
        terms, calls = found["given"]
        assert calls == []
        alone = numbers(family(shared=False).terms(*case))
        assert {"loss_enc", "loss_dn"} <= set(terms)
        for key, value in terms.items():
            assert value == pytest.approx(alone[key] / 2 if key.startswith("loss") else alone[key])
        rows, calls = found["masses"]
        assert calls == []
        torch.testing.assert_close(rows, family(shared=False).masses(*case).rows)


def test_the_number_of_targets_is_that_of_all_branches(ranks) -> None:
    for rank, found in enumerate(ranks):
        terms, calls = found["of targets"]
        assert calls == []
        expected = undivided("unequal groups", rank)
        for key in ("loss_cls", "loss_loc", "loss_loc_0"):
            assert terms[key] == pytest.approx(expected[key] / 7)
        for key in ("loss_cls_dn", "loss_loc_dn"):
            assert terms[key] == pytest.approx(expected[key] / (7 * GROUPS[rank]))


def test_the_mean_is_over_the_process_group(ranks) -> None:
    for rank, found in enumerate(ranks):
        alone = numbers(family(shared=False).terms(*family_case("unequal groups", rank)))
        for name in ("its own group", "a copy"):
            terms, calls = found[name]
            assert calls == ["all_reduce"]
            assert terms == pytest.approx(alone)


def test_a_branch_alone_may_have_divisors_over_ranks(ranks) -> None:
    mean = sum(count("unequal groups", rank) for rank in range(RANKS)) / RANKS
    for rank, found in enumerate(ranks):
        terms, calls = found["only a branch"]
        assert calls == ["all_reduce"]
        expected = undivided("unequal groups", rank)
        own = count("unequal groups", rank)
        assert terms["loss_loc"] == pytest.approx(expected["loss_loc"] / own)
        assert terms["loss_loc_dn"] == pytest.approx(expected["loss_loc_dn"] / mean)


def test_a_branch_of_more_layers_than_the_main_output_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uotod.criterion.masses.is_shared", lambda: True)
    focal = SigmoidFocalLoss(reduction=N)
    loss = DetectionLoss(focal, L1, Hungarian(loc_match_module=L1), N, normalizer=TargetNormalizer(distributed=True))
    input, target = problem(0)
    more = layer(2) | {"aux_outputs": [layer(2), layer(2)]}
    with pytest.raises(ValueError, match="a branch must have at most the 2 decoder layers of the main output, got 3"):
        Branches(loss, more_outputs=Branch(loss))(input | {"more_outputs": more}, target)
