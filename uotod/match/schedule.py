"""Numbers that follow the step of training: an option that is a number or a callable in, its present value out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from uotod.check import check_integer, check_number

Schedule = Callable[[int], float]


class Scheduled(nn.Module):
    """A module of which numbers may be schedules, callables of the step: the attributes hold their present values.

    The step is 0 until `set_step`, the one method that changes such a module; it is no part of the `state_dict`, so set
    it when training resumes. The module is picklable if its schedules are (a function or the instance of a class, no
    lambda).
    """

    def __init__(self) -> None:
        super().__init__()
        self.step = 0
        self._schedules: dict[str, _BoundedSchedule] = {}

    def scheduled(
        self,
        name: str,
        value: float | Schedule,
        *,
        low: float = -math.inf,
        low_open: bool = False,
        finite: bool = True,
    ) -> float:
        """Return what the attribute `name` holds: the checked number, or that of a schedule, which is kept, now.

        Raises:
            TypeError: `value` is not a number, nor a callable that returns one.
            ValueError: the number lies outside the interval of `check_number`.
        """
        if not callable(value):
            return check_number(name, value, low=low, low_open=low_open, finite=finite)
        self._schedules[name] = _BoundedSchedule(name, value, low, low_open, finite)
        return self._schedules[name].at(self.step)

    def set_step(self, step: int) -> None:
        """Set the step of training, an epoch or an iteration as the schedules count, in this module and its parts.

        Raises:
            TypeError: `step` is not an integer, or a schedule returns no number.
            ValueError: `step` is negative, or a schedule returns a number out of its range; then nothing has changed.
        """
        check_integer("step", step, low=0)
        parts = [part for part in self.modules() if isinstance(part, Scheduled)]
        present = [{name: schedule.at(step) for name, schedule in part._schedules.items()} for part in parts]
        for part, values in zip(parts, present, strict=True):
            vars(part).update(values, step=step)

    def describe_numbers(self, *names: str) -> str:
        """Return `name=value` of some attributes for `repr`, with the name of a schedule in place of its value."""
        given = {name: schedule.function for name, schedule in self._schedules.items()}
        values = {name: given.get(name, getattr(self, name)) for name in names}
        return ", ".join(f"{name}={getattr(value, '__name__', value)}" for name, value in values.items())


class _BoundedSchedule(NamedTuple):
    """A schedule and the interval in which its numbers must lie."""

    name: str
    function: Schedule
    low: float
    low_open: bool
    finite: bool

    def at(self, step: int) -> float:
        """Return the number of a step."""
        value = self.function(step)
        return check_number(f"{self.name}({step})", value, low=self.low, low_open=self.low_open, finite=self.finite)
