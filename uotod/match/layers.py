"""What matchers for stacked decoder layers share: the matcher of one layer that they wrap."""

from torch import Tensor

from uotod.match.base import Matcher
from uotod.match.composite import CompositeMatcher, of_member
from uotod.scene.scene import Scene


class LayerMatcher(CompositeMatcher, abstract=True):
    """Change how a matcher treats decoder layers; of a single layer the plan is that of the matcher."""

    validate = of_member("validate")

    def __init__(self, matcher: Matcher) -> None:
        if not isinstance(matcher, Matcher):
            raise TypeError(f"matcher must be a Matcher, got {matcher!r} of type {type(matcher).__name__}")
        super().__init__()
        self.matcher = matcher

    @property
    def members(self) -> list[Matcher]:
        """The matcher that is wrapped."""
        return [self.matcher]

    def compute_matching(self, cost_matrix: Tensor, target_mask: Tensor) -> Tensor:
        """Return the matcher's plan of one layer's cost; see `Matcher.compute_matching`."""
        return self.matcher.compute_matching(cost_matrix, target_mask)

    def cost(self, scene: Scene) -> Tensor:
        """Return the matcher's cost of each layer."""
        return self.matcher.cost(scene)
