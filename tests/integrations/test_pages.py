"""The snippets of the pages about torchvision and ultralytics train what they are given."""

from typing import Any

from torch import nn

from tests.integrations.test_torchvision import batch_of, small
from tests.support.docs import defined_function
from tests.support.peers import peer
from uotod.match import UnbalancedSinkhorn


def test_the_line_of_torchvision_trains_a_model() -> None:
    images, targets = batch_of("retinanet")
    losses = defined_function("torchvision.rst", "train")(small("retinanet").train(), [(images, targets)] * 20)
    assert losses[-1] < losses[0]


def test_the_line_of_ultralytics_hands_a_trainer_over() -> None:
    base = peer("ultralytics.models.yolo.detect").DetectionTrainer

    class Model:
        def train(self, **options: Any) -> dict[str, Any]:
            return options

    matcher = UnbalancedSinkhorn(loc_match_module=nn.L1Loss(reduction="none"))
    options = defined_function("ultralytics.rst", "train")(Model(), matcher, data="coco8.yaml")
    assert issubclass(options["trainer"], base)
    assert options["data"] == "coco8.yaml"
