"""What takes part in a benchmark: a criterion and the tensors it is given, as the stages that are timed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.measure import Step, resident_growth

STAGES = ("match", "forward", "full")


@dataclass(frozen=True)
class Contender:
    """A criterion on the tensors of a problem.

    Attributes:
        name: whose it is.
        rule: how it matches. Contenders of the same rule compute the same result, which is checked before they are
            timed; those of other rules show what another loss on the same tensors costs.
        result: its loss, or the plan of a solver, which are compared.
        stages: of "match", "forward" and "full" (forward and backward) those that it has.
        growth: MiB by which one step raises the peak memory of its process.
        tolerance: relative difference that its loss, or absolute one that its plan, may have from that of the first
            contender of the rule.
    """

    name: str
    rule: str
    result: Callable[[], Tensor]
    stages: dict[str, Step]
    growth: Callable[[], float]
    tolerance: float = 1e-4

    @property
    def label(self) -> str:
        """Its name among all contenders of a workload."""
        return f"{self.name}, {self.rule}"


def criterion(
    name: str, rule: str, match: Step, loss: Callable[[], Tensor], leaves: list[Tensor], *, tolerance: float = 1e-4
) -> Contender:
    """Return a criterion of this process: its matching alone, its loss, and the leaves that take gradients."""

    def full() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss().backward()

    def plan() -> None:
        with torch.no_grad():
            match()

    def result() -> Tensor:
        with torch.no_grad():
            return loss()

    stages: dict[str, Step] = {"match": plan, "forward": loss, "full": full}
    return Contender(name, rule, result, stages, lambda: resident_growth(full), tolerance)


def solver(name: str, rule: str, solve: Callable[[], Tensor], *, tolerance: float = 2e-6) -> Contender:
    """Return a solver of this process, whose only stage is the plan."""
    return Contender(name, rule, solve, {"match": solve}, lambda: resident_growth(solve), tolerance)
