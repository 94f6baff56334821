"""Share a matching among decoder layers: a matcher in, one that reads a single layer out."""

from uotod.check import check_integer
from uotod.match.base import Matcher
from uotod.match.layers import LayerMatcher
from uotod.plan import Plan
from uotod.scene.scene import Scene


class SharedLayers(LayerMatcher):
    """Match one decoder layer and give all of them its plan, matched, background and ignored rows alike.

    Without it each layer is matched on its own. A bare cost, or an input of one layer, is the matcher's. Time, memory
    and the transfer to the host of a matcher that needs one are those of a single layer.

    Args:
        matcher: matches the layer; options such as `background` are its own.
        layer: the layer to match, earlier ones first: 0 for the first of `aux_outputs`, -1 for the final one.

    Raises:
        TypeError: `matcher` is not a matcher, or `layer` not an integer.
        ValueError: at the call, there is no such layer.

    References:
        Lv et al., "RT-DETRv2", arXiv 2407.17140 (`share_matched_indices` of its implementation).

    Examples:
        >>> import torch
        >>> from uotod.loss import DetectionLoss
        >>> from uotod.match import Hungarian
        >>> cls_loss, loc_loss = torch.nn.CrossEntropyLoss(reduction="none"), torch.nn.L1Loss(reduction="none")
        >>> criterion = DetectionLoss(cls_loss, loc_loss, SharedLayers(Hungarian(loc_match_module=loc_loss)))
        >>> left, right = torch.tensor([[[0.0, 0, 1, 1]]]), torch.tensor([[[2.0, 0, 3, 1]]])
        >>> final = {"pred_logits": torch.zeros(1, 2, 2), "pred_boxes": torch.cat((left, right), dim=1)}
        >>> earlier = {"pred_logits": torch.zeros(1, 2, 2), "pred_boxes": torch.cat((right, left), dim=1)}
        >>> target = {"labels": torch.tensor([[1]]), "boxes": left}
        >>> terms = criterion.terms(final | {"aux_outputs": [earlier]}, target)
        >>> terms["loss_loc"], terms["loss_loc_0"]
        (tensor(0.), tensor(4.))
    """

    def __init__(self, matcher: Matcher, *, layer: int = -1) -> None:
        super().__init__(matcher)
        self.layer = check_integer("layer", layer)

    def scene_plan(self, scene: Scene) -> Plan:
        """Return the matcher's plan of the chosen layer, once for each layer."""
        layers = scene.layers
        if not -layers <= self.layer < layers:
            raise ValueError(f"layer must lie in [{-layers}, {layers}) for {layers} decoder layers, got {self.layer}")
        return self.matcher.scene_plan(scene.layer(self.layer)).repeat(layers).only(scene.valid_preds)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"layer={self.layer}"
