"""Matchers made of matchers: what every wrapper shares, and no option of a cost that it would not read."""

from abc import abstractmethod
from collections.abc import Sequence

from uotod.check import check_flag
from uotod.match.base import Matcher
from uotod.match.schedule import Scheduled


class CompositeMatcher(Matcher, abstract=True):
    """A matcher made of others, the `members`. The options of a cost are theirs, and it has no such attributes."""

    def __init__(self, like: Matcher, validate: bool) -> None:
        Scheduled.__init__(self)  # the base class would set the options of a cost
        self.background = like.background
        self.nonfinite = like.nonfinite
        self.box_format = like.box_format
        self.validate = check_flag("validate", validate)

    @property
    @abstractmethod
    def members(self) -> Sequence[Matcher]:
        """The matchers that this one is made of."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields that the members read."""
        return tuple(dict.fromkeys(name for member in self.members for name in member.needs))
