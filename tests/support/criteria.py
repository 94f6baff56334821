"""A detection loss whose terms are stated flatly, for tests that vary what each of them sees."""

from torch import nn

from uotod.loss import Classification, DetectionLoss, Localization, Objectness
from uotod.match import Matcher


def detection_loss(
    cls: nn.Module,
    loc: nn.Module,
    matcher: Matcher,
    position: str = "none",
    *,
    quality=None,
    loc_quality=None,
    obj_quality=None,
    cls_background: bool = True,
    obj_background: bool = True,
    obj_loss: nn.Module | None = None,
    union: bool = False,
    **options,
) -> DetectionLoss:
    extra = [] if obj_loss is None else [Objectness(obj_loss, quality=obj_quality, background=obj_background)]
    return DetectionLoss(
        Classification(cls, quality=quality, background=cls_background),
        Localization(loc, quality=loc_quality, union=union),
        matcher,
        position,
        extra_terms=extra,
        **options,
    )
