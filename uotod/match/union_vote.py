"""Unite the matchings of decoder layers: a matcher in, one that lets the layers vote out."""

from uotod.match.base import Matcher
from uotod.match.layers import LayerMatcher
from uotod.plan import Plan
from uotod.scene.scene import Scene
from uotod.solvers.vote import unite_layers


class UnionVote(LayerMatcher):
    r"""Match all decoder layers to the union of their pairs; a prediction keeps the target with the most votes.

    .. math:: j(i) = \arg\max_{j \le T} \sum_l \hat P^{(l)}_{ij}, \qquad \text{the lowest on ties}

    Every prediction that some layer matches is matched, in all layers to the same target; the others are background or
    ignored, as their own layer says. So a target may have several predictions. Of masses other than 1 a pair carries
    the mean over the layers, each weighted by its mass: a trace in one layer is no vote. A bare cost, or an input of
    one layer, is the matcher's.

    Time O(B P (L + T)) and (B, T + 2, P) integers on top of the matcher's.

    Args:
        matcher: matches each layer, with a plan of any kind: a prediction that it splits keeps its heaviest target.
            Options such as `background` are its own.

    Raises:
        TypeError: `matcher` is not a matcher.

    References:
        Peng et al., "D-FINE", ICLR 2025; Huang et al., "DEIM", CVPR 2025: the union set ("GO") of their
        implementations, used there for localisation only.

    Examples:
        >>> import torch
        >>> from uotod.loss import DetectionLoss
        >>> from uotod.match import Hungarian
        >>> cls_loss, loc_loss = torch.nn.CrossEntropyLoss(reduction="none"), torch.nn.L1Loss(reduction="none")
        >>> criterion = DetectionLoss(cls_loss, loc_loss, UnionVote(Hungarian(loc_match_module=loc_loss)))
        >>> left, right = torch.tensor([[[0.0, 0, 1, 1]]]), torch.tensor([[[2.0, 0, 3, 1]]])
        >>> final = {"pred_logits": torch.zeros(1, 2, 2), "pred_boxes": torch.cat((left, right), dim=1)}
        >>> earlier = {"pred_logits": torch.zeros(1, 2, 2), "pred_boxes": torch.cat((right, left), dim=1)}
        >>> target = {"labels": torch.tensor([[1]]), "boxes": left}
        >>> criterion.terms(final | {"aux_outputs": [earlier]}, target)["num_pos"]
        tensor(2.)
    """

    def __init__(self, matcher: Matcher) -> None:
        super().__init__(matcher)

    def scene_plan(self, scene: Scene) -> Plan:
        """Return the united plan of all layers."""
        return unite_layers(self.matcher.scene_plan(scene), scene.layers, scene.valid_preds)
