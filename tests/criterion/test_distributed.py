"""Divisors that are averaged over ranks give the mean over all of them."""

import os
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn

from tests.support.problems import random_problem
from uotod.loss import (
    Classification,
    DetectionLoss,
    MassNormalizer,
    MovingAverageNormalizer,
    PerImageNormalizer,
    PositiveNormalizer,
    ScoreNormalizer,
    TargetNormalizer,
    TotalMassNormalizer,
)
from uotod.match import Hungarian

RANKS = 2
NORMALIZERS = {
    "mass": MassNormalizer,
    "total": TotalMassNormalizer,
    "targets": TargetNormalizer,
    "positives": PositiveNormalizer,
    "scores": ScoreNormalizer,
    "images": PerImageNormalizer,
}


def good(boxes: torch.Tensor, target_boxes: torch.Tensor) -> torch.Tensor:
    """Return a quality so high that no divisor falls below 1 on a rank."""
    return 1 / (1 + (boxes - target_boxes).abs().amax(-1))


def build(name: str, distributed_divisors: bool) -> DetectionLoss:
    normalizer = NORMALIZERS[name](distributed=distributed_divisors)
    l1 = nn.L1Loss(reduction="none")
    matcher = Hungarian(loc_match_module=l1)
    return DetectionLoss(
        Classification(nn.CrossEntropyLoss(reduction="none"), quality=good), l1, matcher, normalizer=normalizer
    )


def rank_problem(rank: int):
    torch.manual_seed(rank)
    problem = random_problem(2 + rank, 8, 4)
    if rank:
        problem.target["mask"][1] = False
    return problem


def work(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    problem = rank_problem(rank)
    losses = [build(name, True)(problem.input, problem.target).detach() for name in NORMALIZERS]
    normalizer = MovingAverageNormalizer(momentum=0.5, initial=1.0, distributed=True)
    normalizer.update(torch.tensor(3.0 + 4.0 * rank))  # 3 and 7 positives
    losses.append(normalizer.average)
    torch.save(torch.stack(losses), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="this torch has no torch.distributed")
def test_the_mean_of_the_ranks_is_the_loss_of_the_whole_batch(tmp_path: Path) -> None:
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=RANKS)
    results = torch.stack([torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)])
    mean, averages = results[:, :-1].mean(0), results[:, -1]
    assert averages.tolist() == [3.0, 3.0]  # 0.5 · 1 + 0.5 · 5 on both ranks
    problems = [rank_problem(rank) for rank in range(RANKS)]
    input = {k: torch.cat([p.input[k] for p in problems]) for k in problems[0].input}
    target = {k: torch.cat([p.target[k] for p in problems]) for k in problems[0].target}
    expected = torch.stack([build(name, False)(input, target) for name in NORMALIZERS])
    torch.testing.assert_close(mean, expected.detach())
