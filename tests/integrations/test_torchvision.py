"""Detectors of torchvision with our losses: their numbers, their evaluation, other matchers, copies and checkpoints."""

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.packages import PEERS
from tests.support.peers import peer
from uotod import recipes
from uotod.integrations.torchvision import set_criterion
from uotod.loss import DetectionLoss, IoULoss, SigmoidFocalLoss
from uotod.match import IoUThreshold, Matcher, UnbalancedSinkhorn

CLASSES = 3
OFFLINE: dict[str, Any] = {"weights": None, "weights_backbone": None}
SMALL = {"min_size": 64, "max_size": 96}
BUILD: dict[str, tuple[str, dict[str, Any]]] = {
    "ssdlite": ("ssdlite320_mobilenet_v3_large", {"num_classes": CLASSES + 1}),
    "retinanet": ("retinanet_resnet50_fpn", {"num_classes": CLASSES, **SMALL}),
    "retinanet_v2": ("retinanet_resnet50_fpn_v2", {"num_classes": CLASSES, **SMALL}),
    "fcos": ("fcos_resnet50_fpn", {"num_classes": CLASSES, **SMALL}),
}
SMALL_ONES = ("ssd", "retinanet", "retinanet_v2", "fcos")


class Levels(nn.Module):
    """Two feature maps, the second made from the first."""

    def __init__(self, channels: int | list[int]) -> None:
        super().__init__()
        self.out_channels = channels
        self.first = nn.Sequential(nn.Conv2d(3, 32, 3, stride=8, padding=1), nn.ReLU())
        self.second = nn.Conv2d(32, 32, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        first = self.first(images)
        return {"0": first, "1": self.second(first)}


def small(name: str) -> Any:
    """Return a detector on three convolutions: a step of the published ones takes seconds."""
    module = peer(f"torchvision.models.detection.{name.removesuffix('_v2')}")
    anchors = peer("torchvision.models.detection.anchor_utils")
    if name == "ssd":
        return module.SSD(Levels([32, 32]), anchors.DefaultBoxGenerator([[2], [2, 3]]), (64, 64), CLASSES + 1)
    generator = anchors.AnchorGenerator(((8,), (16,)) if name == "fcos" else ((16, 24), (32, 48)), ((1.0,),) * 2)
    options = {"anchor_generator": generator, **SMALL}
    if name == "fcos":
        return module.FCOS(Levels(32), CLASSES, **options)
    model = module.RetinaNet(Levels(32), CLASSES, **options)
    if name == "retinanet_v2":
        model.head.regression_head._loss_type = "giou"
    return model


def randomized(model: Any) -> Any:
    """Return the model with predictions that differ, so that no two negatives are as hard."""
    with torch.no_grad():
        for part in (model.head.classification_head, model.head.regression_head):
            for layer in part.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.weight.normal_(std=(2.0 / layer.weight[0].numel()) ** 0.5)
        if hasattr(model.head.regression_head, "bbox_ctrness"):
            model.head.regression_head.bbox_reg.bias.fill_(2.0)  # no box without area, where the overlap has a kink
            model.head.classification_head.cls_logits.bias.fill_(0.0)
    return model.train()


def detector(name: str) -> Any:
    torch.manual_seed(0)
    return randomized(small(name))


def published(name: str) -> Any:
    constructor, options = BUILD[name]
    torch.manual_seed(0)
    return randomized(getattr(peer("torchvision.models.detection"), constructor)(**OFFLINE, **options))


def batch(first_label: int = 1) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Return images of two sizes, one without objects, and targets that share no best anchor."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, *size, generator=generator) for size in ((64, 80), (64, 64), (80, 64))]
    boxes = [[[4.0, 6.0, 34.0, 40.0], [30.0, 10.0, 72.0, 60.0], [50.0, 2.0, 62.0, 20.0]], [], [[8.0, 9.0, 55.0, 70.0]]]
    labels = [[0, 2, 1], [], [2]]
    targets = [
        {"boxes": torch.tensor(b).view(-1, 4), "labels": torch.tensor(x, dtype=torch.long) + first_label}
        for b, x in zip(boxes, labels, strict=True)
    ]
    return images, targets


def batch_of(name: str) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    return batch(int(name.startswith("ssd")))


def losses_and_gradients(model: Any, images: Any, targets: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the losses of a training call, and their gradient at each output of the head."""
    found: dict[str, Tensor] = {}
    hook = model.head.register_forward_hook(lambda module, inputs, outputs: found.update(outputs))
    losses = model(images, targets)
    hook.remove()
    gradients = torch.autograd.grad(sum(losses.values()), list(found.values()))
    return losses, dict(zip(found, gradients, strict=True))


def compare(model: Any, name: str) -> None:
    """Compare the losses of a model, and their gradients, with those of torchvision."""
    images, targets = batch_of(name)
    theirs = losses_and_gradients(model, images, targets)
    ours = losses_and_gradients(set_criterion(model), images, targets)
    assert list(ours[0]) == [x for x in ("classification", "bbox_regression", "bbox_ctrness") if x in theirs[0]]
    for key, value in theirs[0].items():
        assert value > 0
        torch.testing.assert_close(ours[0][key], value, rtol=1e-5, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")
    for key, value in theirs[1].items():
        scale = float(value.abs().max())
        torch.testing.assert_close(ours[1][key], value, rtol=1e-4, atol=1e-5 * scale, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", BUILD)
def test_losses_and_gradients_of_published_detectors_are_those_of_torchvision(name: str) -> None:
    compare(published(name), name)


@pytest.mark.parametrize("name", SMALL_ONES)
def test_losses_and_gradients_of_ones_own_are_those_of_torchvision(name: str) -> None:
    compare(detector(name), name)


@pytest.mark.parametrize("loss", ["smooth_l1", "giou", "diou", "ciou"])
def test_every_loss_of_boxes_that_retinanet_knows_is_followed(loss: str) -> None:
    model = detector("retinanet")
    model.head.regression_head._loss_type = loss
    compare(model, "retinanet")


def test_the_numbers_of_the_model_are_those_of_the_criterion() -> None:
    ssd = detector("ssd")
    ssd.proposal_matcher = peer("torchvision.models.detection._utils").SSDMatcher(0.6)
    ssd.neg_to_pos_ratio = 5.0
    criterion = set_criterion(ssd).compute_loss.criterion
    assert (criterion.matching_method.positive, criterion.neg_to_pos_ratio, criterion.num_classes) == (
        0.6,
        5.0,
        CLASSES,
    )
    net = detector("retinanet_v2")
    net.proposal_matcher = peer("torchvision.models.detection._utils").Matcher(0.7, 0.3)
    rule = set_criterion(net).compute_loss.criterion.matching_method
    assert (rule.positive, rule.negative, rule.force_match) == (0.7, 0.3, None)
    fcos = detector("fcos")
    fcos.center_sampling_radius = 2.5
    assert set_criterion(fcos).compute_loss.criterion.matching_method.radius == 2.5


@pytest.mark.parametrize("name", SMALL_ONES)
def test_evaluation_is_untouched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ops = peer("torchvision.ops.boxes")
    monkeypatch.setattr(ops, "batched_nms", lambda boxes, scores, labels, threshold: scores.argsort(descending=True))
    images, _ = batch_of(name)
    model = detector(name).eval()
    model.score_thresh = 1e-3
    with torch.no_grad():
        expected = model(images)
        found = set_criterion(model, matcher=transport())(images)
    assert sum(len(image["scores"]) for image in found) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def transport() -> Matcher:
    return UnbalancedSinkhorn(
        reg_pred=100.0,
        reg_target=0.01,
        loc_match_module=IoULoss(reduction="none"),
        background_cost=0.5,
        is_anchor_based=True,
    )


@pytest.mark.parametrize("name", SMALL_ONES)
def test_a_step_by_unbalanced_transport_lowers_the_loss(name: str) -> None:
    model = set_criterion(detector(name), matcher=transport())
    assert isinstance(model.compute_loss.criterion.matching_method, UnbalancedSinkhorn)
    images, targets = batch_of(name)
    optimizer, values = torch.optim.SGD(model.head.parameters(), lr=1e-3), []
    for _ in range(2):
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[1] < values[0]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
@pytest.mark.parametrize("name", SMALL_ONES)
def test_a_copy_has_the_loss(name: str, copied: Callable[[Any], Any]) -> None:
    model = set_criterion(detector(name), matcher=transport())
    twin = copied(model)
    assert twin.compute_loss.criterion is not model.compute_loss.criterion
    images, targets = batch_of(name)
    for ours, theirs in zip(twin(images, targets).values(), model(images, targets).values(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert "UnbalancedSinkhorn" in repr(twin.compute_loss)


def test_a_checkpoint_is_that_of_the_model_and_loads_without_this_library(tmp_path: Path) -> None:
    plain = detector("ssd")
    names = list(plain.state_dict())
    model = set_criterion(plain, matcher=transport())
    assert list(model.state_dict()) == names
    torch.save(model.state_dict(), tmp_path / "model.pt")
    program = f"""
import sys
sys.modules["uotod"] = None  # importing it fails
sys.path.append({str(PEERS / "packages")!r})
import torch
state = torch.load({str(tmp_path / "model.pt")!r}, weights_only=True)
assert len(state) == {len(names)}
"""
    subprocess.run([sys.executable, "-c", program], check=True, env={"PATH": ""}, cwd=tmp_path)


def test_without_the_criterion_the_loss_is_theirs_again() -> None:
    images, targets = batch_of("ssd")
    model = detector("ssd")
    expected = model(images, targets)
    set_criterion(model, matcher=transport())
    assert model(images, targets)["classification"] != expected["classification"]
    del model.compute_loss
    for key, value in model(images, targets).items():
        torch.testing.assert_close(value, expected[key])


def test_a_criterion_of_ones_own_and_its_further_terms() -> None:
    model = set_criterion(detector("fcos"), recipes.atss(CLASSES, matcher=IoUThreshold(positive=0.3)))
    images, targets = batch_of("fcos")
    assert list(model(images, targets)) == ["classification", "bbox_regression", "bbox_ctrness"]
    model = set_criterion(detector("fcos"), recipes.retinanet(CLASSES))
    assert list(model(images, targets)) == ["classification", "bbox_regression"]


def test_a_moving_average_moves_with_each_step() -> None:
    model = set_criterion(detector("retinanet"), recipes.retinanet(CLASSES, style="detectron2"))
    average = model.compute_loss.criterion.normalizer.average
    before = float(average)
    model(*batch_of("retinanet"))
    assert float(average) < before


def test_a_crowd_is_ignored() -> None:
    images, targets = batch_of("ssd")
    model = set_criterion(detector("ssd"))
    whole = model(images, targets)["bbox_regression"]
    for image in targets:
        image["iscrowd"] = torch.zeros_like(image["labels"])
    torch.testing.assert_close(model(images, targets)["bbox_regression"], whole)
    targets[0]["iscrowd"][1] = 1
    assert model(images, targets)["bbox_regression"] != whole


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_boxes_and_anchors_keep_their_digits(dtype: torch.dtype) -> None:
    model = set_criterion(detector("retinanet_v2"))
    images, targets = batch_of("retinanet_v2")
    expected = model(images, targets)["bbox_regression"]
    with torch.autocast("cpu", dtype=dtype):
        found = model(images, targets)["bbox_regression"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.0)


def test_predictions_that_are_not_finite_make_the_loss_nan_as_theirs() -> None:
    for name in SMALL_ONES:
        model = detector(name)
        with torch.no_grad():
            next(x for x in model.head.classification_head.parameters()).fill_(float("nan"))
        assert model(*batch_of(name))["classification"].isnan()
        assert sum(set_criterion(model)(*batch_of(name)).values()).isnan()


def two_stage() -> Any:
    constructor = peer("torchvision.models.detection").fasterrcnn_mobilenet_v3_large_320_fpn
    return constructor(**OFFLINE, num_classes=CLASSES + 1)


def with_head(name: str, **parts: Any) -> Any:
    model = detector(name)
    for key, value in parts.items():
        setattr(model, key, value)
    return model


class OtherMatcher:
    allow_low_quality_matches = True


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: set_criterion(nn.Linear(1, 1)), TypeError, r"model must be SSD .*RetinaNet .*FCOS.*, got Linear"),
        (lambda: set_criterion(two_stage()), TypeError, r"model must be SSD .*, got FasterRCNN"),
        (
            lambda: set_criterion(with_head("fcos", head=nn.Identity())),
            TypeError,
            r"model.head must be that of torchvision, .* got Identity; give a criterion",
        ),
        (
            lambda: set_criterion(with_head("retinanet_v2", proposal_matcher=OtherMatcher())),
            TypeError,
            r"model.proposal_matcher must be the Matcher of torchvision, .* got OtherMatcher; give a matcher",
        ),
        (
            lambda: set_criterion(detector("fcos"), recipes.fcos(CLASSES), matcher=transport()),
            ValueError,
            r"criterion and matcher cannot be given together",
        ),
        (lambda: set_criterion(detector("fcos"), nn.L1Loss()), TypeError, r"criterion must be a DetectionLoss, got L1"),
        (
            lambda: set_criterion(detector("ssd"), recipes.retinanet(CLASSES + 1)),
            ValueError,
            r"criterion must have bg_class_position='first' like the model, got 'none'",
        ),
        (
            lambda: set_criterion(detector("fcos"), recipes.fcos(CLASSES, box_format="cxcywh")),
            ValueError,
            r"criterion must have box_format=None, for boxes are xyxy, got 'cxcywh'",
        ),
    ],
    ids=range(8),
)
def test_what_does_not_fit_raises(build: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


def test_a_retinanet_with_an_unknown_loss_needs_a_criterion() -> None:
    model = detector("retinanet_v2")
    model.head.regression_head._loss_type = "siou"
    with pytest.raises(TypeError, match=r"with a loss among \['l1', .*\], got RetinaNetRegressionHead with 'siou'"):
        set_criterion(model)
    set_criterion(model, recipes.retinanet(CLASSES))


def test_another_number_of_classes_is_named() -> None:
    model = set_criterion(detector("fcos"), recipes.fcos(CLASSES + 1))
    with pytest.raises(ValueError, match="logits for num_classes=4"):
        model(*batch_of("fcos"))


def test_the_loss_moves_to_the_device_of_the_model() -> None:
    """Its buffers do not follow `model.to`, for it is no module of the model."""
    loss = SigmoidFocalLoss(alpha=torch.tensor([0.1, 0.2, 0.3]), reduction="none")
    model = set_criterion(detector("fcos"), recipes.fcos(CLASSES, losses={"cls": loss}))
    moved = []
    criterion = model.compute_loss.criterion
    original = criterion.to
    criterion.to = lambda device: moved.append(device) or original(device)
    model(*batch_of("fcos"))
    assert moved == [torch.device("cpu")]


def test_a_checkpoint_of_the_whole_model_holds_the_loss() -> None:
    model = set_criterion(detector("ssd"), matcher=transport())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert isinstance(loaded.compute_loss.criterion, DetectionLoss)
