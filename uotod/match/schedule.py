"""The weight of the entropy: a number, or a schedule of it over training whose step the user sets."""

from __future__ import annotations

import math
from collections.abc import Callable

from uotod.check import check_number
from uotod.match.base import Matcher

Regularization = float | Callable[[int], float]


class RegularizedMatcher(Matcher, abstract=True):
    """A matcher with an entropy, whose weight `reg` or `reg_dimless` may be a callable of the step.

    The step is 0 until `set_step`, the one method that changes a matcher; it is no part of the `state_dict`, so set it
    when training resumes. A matcher is picklable if its schedule is (a function or the instance of a class, no lambda).
    """

    reg_dimless: Regularization
    reg: Regularization | None
    step: int

    def set_step(self, step: int) -> None:
        """Set the step of training at which a schedule is read: an epoch or an iteration, as the schedule counts.

        Raises:
            TypeError: `step` is not an integer, or the schedule returns no number.
            ValueError: `step` is negative, or the schedule returns a number that is not finite and positive.
        """
        super().set_step(step)
        _at_step("reg_dimless", self.reg_dimless, step)
        if self.reg is not None:
            _at_step("reg", self.reg, step)
        self.step = step

    def _set_regularization(self, reg_dimless: Regularization, reg: Regularization | None) -> None:
        self.reg_dimless = _check("reg_dimless", reg_dimless)
        self.reg = None if reg is None else _check("reg", reg)
        self.step = 0

    def _regularization(self, preds: int) -> float:
        """Return the weight of the entropy at the current step."""
        if self.reg is not None:
            return _at_step("reg", self.reg, self.step)
        return _at_step("reg_dimless", self.reg_dimless, self.step) / (math.log(2 * max(preds, 1)) + 1)

    def _regularization_repr(self) -> str:
        name, value = ("reg_dimless", self.reg_dimless) if self.reg is None else ("reg", self.reg)
        return f"{name}={getattr(value, '__name__', value)}"


def _check(name: str, value: Regularization) -> Regularization:
    return value if callable(value) else check_number(name, value, low=0.0, low_open=True)


def _at_step(name: str, value: Regularization, step: int) -> float:
    return check_number(f"{name}({step})", value(step), low=0.0, low_open=True) if callable(value) else value
