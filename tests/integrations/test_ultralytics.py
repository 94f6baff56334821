"""Detectors of Ultralytics with our losses: their numbers, other matchers, and copies."""

import copy
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.peers import peer
from uotod import recipes
from uotod.integrations.ultralytics import ModelLoss, set_criterion, set_matcher, trainer
from uotod.loss import GIoULoss, MovingAverageNormalizer, SigmoidFocalLoss
from uotod.match import Matcher, TaskAligned, UnbalancedSinkhorn

CLASSES, SIZE, EPOCHS = 3, 64, 5
RT_DETR = {
    "nc": CLASSES,
    "scales": {"l": [1.0, 1.0, 64]},
    "backbone": [
        [-1, 1, "Conv", [16, 3, 8]],
        [-1, 1, "Conv", [32, 3, 2]],
    ],
    "head": [[[0, 1], 1, "RTDETRDecoder", ["nc", 32, 20, 4, 4, 2, 64]]],
}
YOLOS = ("yolov8n.yaml", "yolov10n.yaml", "yolo11n.yaml", "yolo26n.yaml")
ALL = (*YOLOS, "rtdetr")


def args(**options: Any) -> SimpleNamespace:
    return SimpleNamespace(**({"box": 7.5, "cls": 0.5, "dfl": 1.5, "epochs": EPOCHS} | options))


def detector(name: str) -> Any:
    """Return a model in training with predictions that differ from place to place."""
    tasks = peer("ultralytics.nn.tasks")
    torch.manual_seed(0)
    if name == "rtdetr":
        model = tasks.RTDETRDetectionModel(copy.deepcopy(RT_DETR), nc=CLASSES, verbose=False)
    else:
        model = tasks.DetectionModel(name, nc=CLASSES, verbose=False)
        head = model.model[-1]
        heads = (head.cv2, head.cv3, getattr(head, "one2one_cv2", None), getattr(head, "one2one_cv3", None))
        with torch.no_grad():
            for layer in (level[-1] for part in heads if part is not None for level in part):
                layer.weight.normal_(std=0.5)
                layer.bias.fill_(2.0 if layer.weight.shape[0] == 4 else 0.0)
    model.args, model.nc = args(), CLASSES
    return model.train()


def batch() -> dict[str, Tensor]:
    """Return four images with 3, 0, 1 and 2 targets, in no order."""
    generator = torch.Generator().manual_seed(3)
    corner, size = torch.rand(6, 2, generator=generator) * 0.5, 0.2 + 0.3 * torch.rand(6, 2, generator=generator)
    return {
        "img": torch.rand(4, 3, SIZE, 2 * SIZE, generator=generator),
        "batch_idx": torch.tensor([0.0, 3.0, 0.0, 2.0, 3.0, 0.0]),
        "cls": torch.tensor([0, 2, 1, 2, 0, 1]).float().unsqueeze(-1),
        "bboxes": torch.cat((corner + size / 2, size), dim=-1),
    }


def ordered() -> dict[str, Tensor]:
    """Return the batch with its targets in the order of the images, as RT-DETR needs them."""
    found = batch()
    order = found["batch_idx"].argsort(stable=True)
    return {key: x if key == "img" else x[order] for key, x in found.items()}


def outputs(model: Any, values: dict[str, Tensor]) -> tuple[Any, list[Tensor]]:
    """Return what the head predicts, and its tensors that have a gradient."""
    if type(model).__name__ == "RTDETRDetectionModel":
        counts = [int((values["batch_idx"] == i).sum()) for i in range(len(values["img"]))]
        labels = values["cls"].long().view(-1)
        known = {
            "cls": labels,
            "bboxes": values["bboxes"],
            "batch_idx": values["batch_idx"].long(),
            "gt_groups": counts,
        }
        torch.manual_seed(1)
        preds = model.predict(values["img"], batch=known)
        return preds, list(preds[:4])
    preds = model(values["img"])
    heads = (preds["one2one"], preds["one2many"]) if "one2one" in preds else (preds,)
    return preds, [head[key] for head in heads for key in ("boxes", "scores")]


def compare(model: Any, values: dict[str, Tensor], change: Callable[[Any], Any] = set_criterion) -> None:
    """Compare the loss of a model, what it shows and its gradients at the head with those of Ultralytics."""
    preds, leaves = outputs(model, values)
    model.criterion = None
    theirs, their_items = model.loss(values, preds)
    change(model)
    ours, items = model.loss(values, preds)
    assert theirs.sum() > 0
    torch.testing.assert_close(ours.sum(), theirs.sum(), rtol=1e-5, atol=1e-5)
    assert set(items) == set(their_items)
    for key, value in their_items.items():
        torch.testing.assert_close(items[key], value, rtol=1e-5, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
    gradients = [torch.autograd.grad(x.sum(), leaves, retain_graph=True) for x in (ours, theirs)]
    for a, e in zip(*gradients, strict=True):
        assert e.abs().sum() > 0
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4 * float(e.abs().max()))


@pytest.mark.parametrize("name", ALL)
def test_losses_and_gradients_are_those_of_ultralytics(name: str) -> None:
    compare(detector(name), ordered())


def test_targets_may_come_in_any_order() -> None:
    model = set_criterion(detector("yolo26n.yaml"))
    preds, _ = outputs(model, batch())
    torch.testing.assert_close(model.loss(batch(), preds)[0], model.loss(ordered(), preds)[0])


@pytest.mark.parametrize("name", ["yolov8n.yaml", "yolo26n.yaml"])
def test_numbers_are_those_of_the_model(name: str) -> None:
    model = detector(name)
    model.args = args(box=5.0, cls=1.5, dfl=0.5)
    model.class_weights = torch.tensor([0.5, 1.0, 1.5])
    compare(model, ordered())


@pytest.mark.parametrize("name", ALL)
def test_a_batch_without_targets_is_that_of_ultralytics(name: str) -> None:
    values = {key: x if key == "img" else x[:0] for key, x in batch().items()}
    model = detector(name)
    preds, leaves = outputs(model, values)
    theirs = model.loss(values, preds)[0].sum()
    model.criterion = None
    ours = set_criterion(model).loss(values, preds)[0].sum()
    torch.testing.assert_close((3 if name == "rtdetr" else 1) * ours, theirs)  # whose focal loss differs, see `rt_detr`
    assert all(x.isfinite().all() for x in torch.autograd.grad(ours, leaves, allow_unused=True) if x is not None)


def test_the_weights_of_the_heads_follow_the_epochs_as_theirs() -> None:
    models, values = [detector("yolo26n.yaml") for _ in range(2)], ordered()
    set_criterion(models[1])
    preds, _ = outputs(models[0], values)
    for _ in range(EPOCHS + 1):
        theirs, ours = (model.loss(values, preds)[0].sum() for model in models)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        for model in models:
            model.criterion.update()


@pytest.mark.parametrize("name", ALL)
def test_in_evaluation_the_loss_is_shown_and_the_predictions_are_untouched(name: str) -> None:
    model, values = detector(name).eval(), ordered()
    with torch.no_grad():
        expected = model(values["img"])
        items = model.loss(values, expected)[1]
        model.criterion = None
        found = set_criterion(model)(values["img"])
        assert torch.equal(found[0], expected[0])
        for key, value in model.loss(values, found)[1].items():
            torch.testing.assert_close(value, items[key], rtol=1e-5, atol=1e-5)


def transport() -> Matcher:
    return UnbalancedSinkhorn(
        reg_pred=10.0,
        reg_target=0.1,
        loc_match_module=GIoULoss(reduction="none"),
        cls_match_module=SigmoidFocalLoss(reduction="none"),
        background_cost=1.0,
    )


@pytest.mark.parametrize("name", ["yolo11n.yaml", "yolo26n.yaml", "rtdetr"])
def test_a_step_by_unbalanced_transport_lowers_the_loss(name: str) -> None:
    model = set_criterion(detector(name), matcher=transport())
    optimizer, found = torch.optim.SGD(model.model[-1].parameters(), lr=1e-4), []
    for _ in range(2):
        torch.manual_seed(1)  # of denoising
        loss = model.loss(ordered())[0].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    assert found[1] < found[0]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
@pytest.mark.parametrize("name", ["yolo26n.yaml", "rtdetr"])
def test_a_copy_has_the_loss_and_no_state_of_it(name: str, copied: Callable[[Any], Any]) -> None:
    plain = detector(name)
    names = list(plain.state_dict())
    model = set_criterion(plain, matcher=transport())
    model.criterion.set_step(2)
    twin = copied(model)
    assert list(twin.state_dict()) == names
    assert isinstance(twin.criterion, ModelLoss)
    assert twin.criterion.criterion is not model.criterion.criterion
    losses = []
    for one in (model, twin):
        torch.manual_seed(1)
        losses.append(one.loss(ordered())[0].sum())
    torch.testing.assert_close(*losses)
    assert "UnbalancedSinkhorn" in repr(twin.criterion)


def test_a_criterion_of_ones_own_shows_its_terms() -> None:
    model = set_criterion(detector("yolo11n.yaml"), recipes.tood(CLASSES, matcher=transport()))
    assert set(model.loss(ordered())[1]) == {"cls_loss", "box_loss"}
    criterion = recipes.rt_detr(CLASSES, losses={"loc": GIoULoss(reduction="none")})
    model = set_criterion(detector("rtdetr"), criterion)
    items = model.loss(ordered())[1]
    assert items["l1_loss"] > 0
    assert items["giou_loss"] == 0
    model = set_criterion(detector("yolo26n.yaml"), recipes.yolov8(CLASSES))
    with pytest.raises(ValueError, match="input has the key 'one2many_outputs', which nothing reads"):
        model.loss(ordered())


@pytest.mark.parametrize("name", ["yolo11n.yaml", "rtdetr"])
def test_a_moving_average_moves_with_each_step(name: str) -> None:
    average = MovingAverageNormalizer(initial=1000.0)
    recipe = recipes.rt_detr if name == "rtdetr" else recipes.yolov8
    model = set_criterion(detector(name), recipe(CLASSES, normalizer=average))
    model.loss(ordered())
    assert float(average.average) < 1000


@pytest.mark.parametrize("name", ["yolov8n.yaml", "yolo11n.yaml"])
def test_their_loss_with_our_form_of_its_assigner_is_the_same(name: str) -> None:
    def change(model: Any) -> None:
        model.criterion = model.init_criterion()
        assert set_matcher(model.criterion, TaskAligned()) is model.criterion

    compare(detector(name), ordered(), change)


def test_so_it_is_for_each_head_and_for_pairs() -> None:
    def heads(model: Any) -> None:
        model.criterion = model.init_criterion()
        set_matcher(model.criterion.one2many, TaskAligned())
        set_matcher(model.criterion.one2one, TaskAligned(topk=7, topk2=1))

    def pairs(model: Any) -> None:
        model.criterion = model.init_criterion()
        set_matcher(model.criterion, recipes.rt_detr(CLASSES).main.matching_method)

    compare(detector("yolo26n.yaml"), ordered(), heads)
    compare(detector("rtdetr"), ordered(), pairs)


@pytest.mark.parametrize("targets", [0, 6])
def test_their_loss_takes_every_plan(targets: int) -> None:
    values = {key: x if key == "img" else x[:targets] for key, x in ordered().items()}
    model = detector("yolo11n.yaml")
    model.criterion = set_matcher(model.init_criterion(), transport())
    loss, items = model.loss(values)
    assert loss.sum().isfinite()
    assert (items["box_loss"] > 0) == (targets > 0)


def test_the_loss_of_rt_detr_takes_pairs_only() -> None:
    model = detector("rtdetr")
    model.criterion = set_matcher(model.init_criterion(), transport())
    with pytest.raises(ValueError, match="got a plan of UnbalancedSinkhorn that splits their mass; set_criterion"):
        model.loss(ordered())


def wrapped(module: str, name: str) -> Any:
    """Return an untrained model of another task."""
    return getattr(peer("ultralytics.nn.tasks"), module)(name, nc=CLASSES, verbose=False)


def without_args() -> Any:
    model = detector("yolo26n.yaml")
    model.args = {"box": 7.5}
    return model


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: set_criterion(nn.Linear(1, 1)),
            TypeError,
            "model must be a model of Ultralytics for boxes.*got Linear",
        ),
        (
            lambda: set_criterion(wrapped("SegmentationModel", "yolo11n-seg.yaml")),
            TypeError,
            "YOLO26 or RT-DETR, got SegmentationModel with the head Segment",
        ),
        (
            lambda: set_criterion(wrapped("OBBModel", "yolo11n-obb.yaml")),
            TypeError,
            "YOLO26 or RT-DETR, got OBBModel with the head OBB",
        ),
        (
            lambda: set_criterion(without_args()),
            ValueError,
            r"model.args must hold the numbers of a training, got none for \['cls', 'dfl', 'epochs'\]",
        ),
        (
            lambda: set_criterion(detector("rtdetr"), nn.L1Loss()),
            TypeError,
            "criterion must be a DetectionLoss or Branches, got L1Loss",
        ),
        (
            lambda: set_criterion(detector("rtdetr"), recipes.rt_detr(3), matcher=transport()),
            ValueError,
            "criterion and matcher cannot be given together",
        ),
        (lambda: trainer(nn.Module), TypeError, "base must be a DetectionTrainer of Ultralytics.*got <class"),
        (lambda: trainer(matcher="hungarian"), TypeError, "matcher must be a Matcher, got 'hungarian' of type str"),
        (lambda: set_matcher(detector("yolo11n.yaml").init_criterion(), 1), TypeError, "matcher must be a Matcher"),
        (
            lambda: set_matcher(detector("yolo26n.yaml").init_criterion(), TaskAligned()),
            TypeError,
            r"loss must be a v8DetectionLoss \(of an E2ELoss its one2many or one2one\) .*, got E2ELoss",
        ),
    ],
    ids=range(10),
)
def test_what_does_not_fit_raises(build: Callable[[], Any], error: type[Exception], message: str) -> None:
    peer("ultralytics.nn.tasks")
    with pytest.raises(error, match=message):
        build()
