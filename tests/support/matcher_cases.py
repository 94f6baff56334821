"""Every matcher of the library in the settings that the contract tests, one line each."""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from uotod import match
from uotod.loss import GIoULoss, MultipleObjectiveLoss, NegativeProbLoss
from uotod.match import Matcher

COSTS = {
    "cls_match_module": NegativeProbLoss(reduction="none"),
    "loc_match_module": MultipleObjectiveLoss([nn.L1Loss(reduction="none"), GIoULoss(reduction="none")], [5.0, 2.0]),
    "background_cost": 3.0,
}


class Case(NamedTuple):
    build: Callable[..., Matcher]
    unit_rows: bool = False  # a prediction gives a mass of 1, or 0 if it is ignored
    soft: bool = False  # ties are shared
    own_cost: bool = False  # works without match modules
    geometric: bool = False  # reads more than the cost: `compute_matching` cannot say what `forward` does


CASES = {
    "ATSS": Case(lambda **o: match.ATSS(**o), unit_rows=True, own_cost=True, geometric=True),
    "ATSS-alpha": Case(
        lambda **o: match.ATSS(topk=3, alpha=0.8, is_anchor_based=False, **o),
        unit_rows=True,
        own_cost=True,
        geometric=True,
    ),
    "BalancedPOT": Case(
        lambda **o: match.BalancedPOT(**COSTS, reg=0.05, num_iter=10_000, **o), unit_rows=True, soft=True
    ),
    "BalancedPOT-log": Case(
        lambda **o: match.BalancedPOT(**COSTS, pot_method="sinkhorn_log", reg=0.05, num_iter=10_000, **o),
        unit_rows=True,
        soft=True,
    ),
    "BalancedSinkhorn": Case(lambda **o: match.BalancedSinkhorn(**COSTS, **o), unit_rows=True, soft=True),
    "BalancedSinkhorn-pot": Case(
        lambda **o: match.BalancedSinkhorn(**COSTS, solver="pot", reg=0.05, num_iter=10_000, **o),
        unit_rows=True,
        soft=True,
    ),
    "CenterRegion": Case(lambda **o: match.CenterRegion(**o), unit_rows=True, own_cost=True),
    "CenterRegion-overlap": Case(
        lambda **o: match.CenterRegion(core=0.4, min_iof=0.01, **COSTS, **o), unit_rows=True, own_cost=True
    ),
    "CenterRegion-ring": Case(
        lambda **o: match.CenterRegion(core=0.4, ring=0.8, **o), unit_rows=True, own_cost=True, geometric=True
    ),
    "ClosestPrediction": Case(lambda **o: match.ClosestPrediction(**COSTS, **o)),
    "ClosestPrediction-threshold": Case(lambda **o: match.ClosestPrediction(**COSTS, threshold=1.0, **o)),
    "ClosestPrediction-uniform": Case(lambda **o: match.ClosestPrediction(**COSTS, uniform_background=True, **o)),
    "ClosestTarget": Case(lambda **o: match.ClosestTarget(**COSTS, **o), unit_rows=True),
    "DynamicSoftLabel": Case(lambda **o: match.DynamicSoftLabel(**o), unit_rows=True, own_cost=True, geometric=True),
    "EMD": Case(lambda **o: match.EMD(**COSTS, **o), unit_rows=True, soft=True),  # ties: any vertex
    "FCOS": Case(lambda **o: match.FCOS(**o), unit_rows=True, own_cost=True),
    "FCOS-box": Case(lambda **o: match.FCOS(radius=None, **COSTS, **o), unit_rows=True, own_cost=True),
    "GridCell": Case(lambda **o: match.GridCell(**o), unit_rows=True, own_cost=True, geometric=True),
    "GridCell-anchor": Case(
        lambda **o: match.GridCell(choose="anchor", positive=0.3, negative=None, **o), unit_rows=True, own_cost=True
    ),
    "GridCell-cost": Case(lambda **o: match.GridCell(negative=None, **COSTS, **o), unit_rows=True, own_cost=True),
    "GridCell-prediction": Case(
        lambda **o: match.GridCell(choose="prediction", negative=None, **o), unit_rows=True, own_cost=True
    ),
    "Hungarian": Case(lambda **o: match.Hungarian(**COSTS, **o), unit_rows=True),
    "Hungarian-copies": Case(lambda **o: match.Hungarian(**COSTS, copies=2, **o), unit_rows=True),
    "Hungarian-rounds": Case(lambda **o: match.Hungarian(**COSTS, rounds=2, **o), unit_rows=True),
    "IoUThreshold": Case(lambda **o: match.IoUThreshold(**o), unit_rows=True, own_cost=True),
    "IoUThreshold-all": Case(
        lambda **o: match.IoUThreshold(negative=(0.05, 0.4), force_match="all_best", min_positive=0.1, **o),
        unit_rows=True,
        own_cost=True,
    ),
    "IoUThreshold-band": Case(
        lambda **o: match.IoUThreshold(positive=0.3, negative=0.1, force_match="low_quality", **o),
        unit_rows=True,
        own_cost=True,
    ),
    "IoUThreshold-none": Case(
        lambda **o: match.IoUThreshold(positive=0.2, force_match=None, **o), unit_rows=True, own_cost=True
    ),
    "Min": Case(lambda **o: match.Min(**COSTS, **o)),
    "Min-prediction": Case(lambda **o: match.Min(source="prediction", **COSTS, **o), unit_rows=True),
    "PartialOT": Case(lambda **o: match.PartialOT(**COSTS, **o), unit_rows=True, soft=True),
    "PartialOT-exact": Case(
        lambda **o: match.PartialOT(**COSTS, mass=0.7, solver="exact", **o), unit_rows=True, soft=True
    ),
    "PartialOT-part": Case(lambda **o: match.PartialOT(**COSTS, mass=0.7, **o), unit_rows=True, soft=True),
    "SharedLayers": Case(lambda **o: match.SharedLayers(match.Hungarian(**COSTS, **o)), unit_rows=True, own_cost=True),
    "OTA": Case(lambda **o: match.OTA(**o), unit_rows=True, own_cost=True, geometric=True),
    "OTA-modules": Case(lambda **o: match.OTA(**COSTS, **o), unit_rows=True, own_cost=True, geometric=True),
    "SimOTA": Case(lambda **o: match.SimOTA(**o), unit_rows=True, own_cost=True, geometric=True),
    "SimOTA-both": Case(
        lambda **o: match.SimOTA(region="box_and_center", contested="takers", **COSTS, **o),
        unit_rows=True,
        own_cost=True,
        geometric=True,
    ),
    "SoftMin": Case(lambda **o: match.SoftMin(**COSTS, **o), soft=True),
    "SoftMin-prediction": Case(
        lambda **o: match.SoftMin(source="prediction", reg=0.1, **COSTS, **o), unit_rows=True, soft=True
    ),
    "TaskAligned": Case(lambda **o: match.TaskAligned(**o), unit_rows=True, own_cost=True, geometric=True),
    "TaskAligned-e2e": Case(
        lambda **o: match.TaskAligned(topk=7, topk2=1, **o), unit_rows=True, own_cost=True, geometric=True
    ),
    "TaskAligned-tood": Case(
        lambda **o: match.TaskAligned(
            topk=13, alpha=1.0, overlap="iou", candidates="all", min_size=None, eps=1e-7, scores=None, **o
        ),
        unit_rows=True,
        own_cost=True,
        geometric=True,
    ),
    "UnbalancedPOT": Case(lambda **o: match.UnbalancedPOT(**COSTS, reg=0.1, num_iter=10_000, **o), soft=True),
    "UnbalancedSinkhorn": Case(lambda **o: match.UnbalancedSinkhorn(**COSTS, **o), soft=True),
    "UnbalancedSinkhorn-ssd": Case(
        lambda **o: match.UnbalancedSinkhorn(reg_pred=1e3, reg_target=1e-3, **COSTS, **o), soft=True
    ),
    "UnbalancedSinkhorn-pot": Case(
        lambda **o: match.UnbalancedSinkhorn(solver="pot", reg=0.1, num_iter=10_000, **COSTS, **o), soft=True
    ),
    "UnionVote": Case(lambda **o: match.UnionVote(match.Hungarian(**COSTS, **o)), unit_rows=True, own_cost=True),
    "Uniform": Case(lambda **o: match.Uniform(**o), unit_rows=True, own_cost=True, geometric=True),
    "Uniform-modules": Case(
        lambda **o: match.Uniform(topk=2, **COSTS, **o), unit_rows=True, own_cost=True, geometric=True
    ),
    "WeightedSum": Case(
        lambda **o: match.WeightedSum([match.Hungarian(**COSTS, **o), match.SoftMin(**COSTS, **o)]),
        soft=True,
        own_cost=True,
        geometric=True,
    ),
}
