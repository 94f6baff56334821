"""Matchers made of matchers: what every wrapper shares, and no option of a cost that it would not read."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from uotod.match.base import Matcher
from uotod.match.schedule import Scheduled


def of_member(name: str) -> Any:
    """Return the property that is an option of the first member, which all of them have alike."""
    return property(lambda composite: getattr(composite.members[0], name))


class CompositeMatcher(Matcher, abstract=True):
    """A matcher made of others, the `members`. The options of a cost are theirs, and it has no such attributes."""

    background = of_member("background")
    nonfinite = of_member("nonfinite")
    box_format = of_member("box_format")

    def __init__(self) -> None:
        Scheduled.__init__(self)  # the base class would set the options of a cost

    @property
    @abstractmethod
    def members(self) -> Sequence[Matcher]:
        """The matchers that this one is made of."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields that the members read."""
        return tuple(dict.fromkeys(name for member in self.members for name in member.needs))
