"""Detectors of torchvision trained by one line: with that library's numbers, and with another matcher."""

import copy
import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.docs import defined_function
from tests.support.peers import peer
from uotod import recipes
from uotod.integrations.torchvision import set_criterion
from uotod.match import UnbalancedSinkhorn

CLASSES = 3
MODELS = ["ssd", "retinanet", "retinanet_v2", "fcos"]


class Backbone(nn.Module):
    """Two small feature maps."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 8, 8), nn.Conv2d(32, 32, 2, 2)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        first = self.first(images).relu()
        return OrderedDict([("0", first), ("1", self.second(first).relu())])


def model_of(name: str) -> Any:
    torch.manual_seed(0)
    detection = "torchvision.models.detection"
    utils = peer(f"{detection}.anchor_utils")
    if name == "ssd":
        generator = utils.DefaultBoxGenerator([[2], [2]])
        head = peer(f"{detection}.ssd").SSDHead([32, 32], generator.num_anchors_per_location(), CLASSES + 1)
        model = peer(f"{detection}.ssd").SSD(Backbone(), generator, (64, 64), CLASSES + 1, head=head)
    else:
        sizes = ((8,), (16,)) if name == "fcos" else ((12, 20), (24, 40))
        ratios = ((1.0,),) * 2 if name == "fcos" else ((0.5, 1.0, 2.0),) * 2
        options = {"anchor_generator": utils.AnchorGenerator(sizes, ratios), "min_size": 64, "max_size": 64}
        module = peer(f"{detection}.{name.removesuffix('_v2')}")
        model = getattr(module, "FCOS" if name == "fcos" else "RetinaNet")(Backbone(), CLASSES, **options)
        if name == "retinanet_v2":
            model.head.regression_head._loss_type = "giou"
    return model.train()


def batch(name: str) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Return images and targets, one image without; each target overlaps anchors, and none shares its best one."""
    first = int(name == "ssd")
    boxes = torch.tensor([[4.0, 4.0, 24.0, 28.0], [30.0, 33.0, 60.0, 58.0]])
    images = list(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    full = {"boxes": boxes, "labels": torch.tensor([first, first + 2])}
    return images, [full, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}]


def losses_and_gradients(model: Any, name: str) -> tuple[dict[str, Tensor], list[Tensor]]:
    losses = model(*batch(name))
    gradients = torch.autograd.grad(sum(losses.values()), list(model.parameters()))
    return {key: x.detach() for key, x in losses.items()}, list(gradients)


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_are_those_of_the_library(name: str) -> None:
    model = model_of(name)
    expected, wanted = losses_and_gradients(model, name)
    actual, found = losses_and_gradients(set_criterion(model), name)
    assert set(actual) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=1e-5, atol=1e-6)
    for a, e in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_another_matcher_trains_it(name: str) -> None:
    matcher = UnbalancedSinkhorn(loc_match_module=nn.L1Loss(reduction="none"))
    model = set_criterion(model_of(name), matcher=matcher)
    losses, gradients = losses_and_gradients(model, name)
    assert all(x.isfinite() for x in losses.values())
    assert any(x.abs().sum() > 0 for x in gradients)
    assert "UnbalancedSinkhorn" in repr(model.compute_loss)


@pytest.mark.parametrize("name", MODELS)
def test_the_model_stays_as_it_was_but_for_its_loss(name: str) -> None:
    model, other = model_of(name), set_criterion(model_of(name))
    assert list(model.state_dict()) == list(other.state_dict())
    images, _ = batch(name)
    if name != "ssd":  # whose suppression of what it finds is compiled
        for a, e in zip(other.eval()(images), model.eval()(images), strict=True):
            assert all(torch.equal(a[key], e[key]) for key in e)
    expected, _ = losses_and_gradients(other.train(), name)
    for copied in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        assert losses_and_gradients(copied, name)[0] == expected
    del other.compute_loss
    assert losses_and_gradients(other, name)[0] == losses_and_gradients(model.train(), name)[0]


def test_the_line_of_the_page_trains_a_model() -> None:
    losses = defined_function("torchvision.rst", "train")(model_of("retinanet"), [batch("retinanet")] * 150)
    assert losses[-1] < 0.9 * losses[0]


def test_what_is_no_such_detector_raises() -> None:
    with pytest.raises(TypeError, match="model must be an SSD, a RetinaNet or an FCOS"):
        set_criterion(nn.Linear(1, 1))
    model = model_of("retinanet")
    with pytest.raises(ValueError, match="matcher and criterion cannot be given together"):
        set_criterion(model, recipes.retinanet(CLASSES), matcher=UnbalancedSinkhorn())
    with pytest.raises(TypeError, match="criterion must be a DetectionLoss"):
        set_criterion(model, nn.Identity())
    model.head.regression_head._loss_type = "other"
    with pytest.raises(ValueError, match=r"model must have a box loss among .* got 'other'"):
        set_criterion(model)
