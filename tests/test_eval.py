"""Properties of the COCO metrics: known overlaps, a slow reference, invariances, and errors that say what is wrong."""

import importlib.util
import math
import sys

import numpy as np
import pytest
import torch

from uotod.eval import coco_ap

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
EVALUATORS = [name for name in ("pycocotools", "faster_coco_eval") if importlib.util.find_spec(name) is not None]
KEYS = {"AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR"}


@pytest.fixture(params=EVALUATORS, autouse=True)
def evaluator(request, monkeypatch):
    """Run every test with each evaluator that is installed, hiding the other."""
    for package in {*EVALUATORS} - {request.param}:
        hide(monkeypatch, package)
    return request.param


def hide(monkeypatch, package):
    for name in (package, *(name for name in sys.modules if name.startswith(f"{package}."))):
        monkeypatch.setitem(sys.modules, name, None)


def target(boxes, labels=None, **rest):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.tensor(labels, dtype=torch.int64)
    return {"boxes": boxes, "labels": labels, **rest}


def prediction(boxes, scores, labels=None):
    return target(boxes, labels, scores=torch.tensor(scores, dtype=torch.float32))


def random_scene(generator, images=8, num_classes=3):
    """Return targets, and predictions around them with errors, misses, false alarms and differing scores."""
    predictions, targets = [], []
    for _ in range(images):
        count, extra = (int(torch.randint(0, 7, (), generator=generator)) for _ in range(2))
        corner = 200 * torch.rand(count + extra, 2, generator=generator)
        boxes = torch.cat((corner, corner + 5 + 120 * torch.rand(count + extra, 2, generator=generator)), dim=1)
        labels = torch.randint(0, num_classes, (count + extra,), generator=generator)
        targets.append({"boxes": boxes[:count], "labels": labels[:count]})
        moved = boxes + 6 * torch.randn(boxes.shape, generator=generator)
        moved = torch.cat((moved[:, :2], torch.maximum(moved[:, 2:], moved[:, :2])), dim=1)
        scores = torch.rand(count + extra, generator=generator)
        predictions.append({"boxes": moved, "labels": labels, "scores": scores})
    return predictions, targets


def test_perfect_predictions_have_precision_one():
    targets = [target([[0, 0, 10, 10], [30, 30, 100, 90]], [0, 2]), target([[5, 5, 200, 220]], [1])]
    predictions = [{**one, "scores": torch.ones(len(one["labels"]))} for one in targets]
    assert coco_ap(predictions, targets) == pytest.approx(dict.fromkeys(KEYS, 1))


@pytest.mark.parametrize("shift", [0, 3, 10, 20, 29, 40, 100])
def test_precision_counts_the_thresholds_below_the_overlap(shift):
    overlap = max(0, 100 - shift) / (100 + shift)
    result = coco_ap([prediction([[shift, 0, 100 + shift, 100]], [0.5])], [target([[0, 0, 100, 100]])])
    reached = [0.5 + 0.05 * step <= overlap for step in range(10)]
    assert result["AP"] == pytest.approx(sum(reached) / 10)
    assert result["AR"] == pytest.approx(sum(reached) / 10)
    assert result["AP50"] == pytest.approx(int(reached[0]))
    assert result["AP75"] == pytest.approx(int(reached[5]))


def slow_ap(predictions, targets, label, threshold):
    """Average precision of a class by its definition: greedy matching, then the mean of 101 interpolated precisions."""
    hits, total = [], 0
    for found, wanted in zip(predictions, targets, strict=True):
        boxes = wanted["boxes"][wanted["labels"] == label].tolist()
        total += len(boxes)
        rows = [
            (score, box)
            for score, box, other in zip(
                found["scores"].tolist(), found["boxes"].tolist(), found["labels"], strict=True
            )
            if other == label
        ]
        for score, (left, top, right, bottom) in sorted(rows, reverse=True):
            overlaps = []
            for x1, y1, x2, y2 in boxes:
                common = max(0, min(right, x2) - max(left, x1)) * max(0, min(bottom, y2) - max(top, y1))
                overlaps.append(common / ((right - left) * (bottom - top) + (x2 - x1) * (y2 - y1) - common))
            best = max(range(len(boxes)), key=overlaps.__getitem__, default=None)
            hit = best is not None and overlaps[best] >= threshold
            if hit:
                boxes.pop(best)
            hits.append((score, hit))
    if total == 0:
        return None
    curve, true = [], 0
    for rank, (_, hit) in enumerate(sorted(hits, reverse=True), start=1):
        true += hit
        curve.append((true / total, true / rank))
    # The recalls are COCO's own floats: 14/25 counts as at least 0.56 only if it does in floating point.
    points = [max((p for r, p in curve if r >= point), default=0) for point in np.linspace(0, 1, 101)]
    return sum(points) / 101


@pytest.mark.parametrize("seed", range(4))
def test_precision_agrees_with_its_definition(seed):
    predictions, targets = random_scene(torch.Generator().manual_seed(seed))
    result = coco_ap(predictions, targets, class_names=["a", "b", "c"])
    thresholds = [0.5 + 0.05 * step for step in range(10)]
    table = [[slow_ap(predictions, targets, label, threshold) for threshold in thresholds] for label in range(3)]
    per_class = [sum(row) / 10 for row in table if row[0] is not None]
    assert result["AP"] == pytest.approx(sum(per_class) / len(per_class), abs=1e-9)
    assert result["AP50"] == pytest.approx(
        sum(row[0] for row in table if row[0] is not None) / len(per_class), abs=1e-9
    )
    for name, row in zip("abc", table, strict=True):
        assert row[0] is None or result[f"AP/{name}"] == pytest.approx(sum(row) / 10, abs=1e-9)


def test_precision_does_not_depend_on_the_order_of_images_or_boxes():
    generator = torch.Generator().manual_seed(11)
    predictions, targets = random_scene(generator, images=12)
    reference = coco_ap(predictions, targets, class_names=["a", "b", "c"])
    order = torch.randperm(12, generator=generator).tolist()
    shuffled = []
    for index in order:
        rows = torch.randperm(len(predictions[index]["labels"]), generator=generator)
        shuffled.append({key: value[rows] for key, value in predictions[index].items()})
    result = coco_ap(shuffled, [targets[index] for index in order], class_names=["a", "b", "c"])
    assert result == pytest.approx(reference, abs=1e-12)


def test_images_without_targets_or_predictions_are_ordinary():
    box, nothing = [[0, 0, 50, 50]], []
    predictions = [prediction(box, [0.9]), prediction(nothing, []), prediction(nothing, []), prediction(box, [0.5])]
    targets = [target(box), target(box), target(nothing), target(nothing)]
    result = coco_ap(predictions, targets)
    assert result["AR"] == 0.5
    assert result["AP"] == pytest.approx(51 / 101)  # recalls 0, 0.01, …, 0.5 are reached with precision 1


@pytest.mark.parametrize("images", [0, 1, 3])
def test_a_mean_over_no_target_is_nan(images):
    predictions = [prediction([[0, 0, 50, 50]], [0.9])] * images
    result = coco_ap(predictions, [target([])] * images, class_names=["cell"])
    assert result.keys() == KEYS | {"AP/cell"}
    assert all(math.isnan(value) for value in result.values())


def test_no_prediction_gives_zero():
    result = coco_ap([prediction([], [])], [target([[0, 0, 50, 50]])])
    assert result["AP"] == result["AR"] == result["AP_medium"] == 0
    assert math.isnan(result["AP_small"])


def test_a_class_without_targets_counts_nowhere():
    predictions = [prediction([[0, 0, 50, 50], [0, 0, 40, 40]], [0.5, 0.9], [1, 0])]
    result = coco_ap(predictions, [target([[0, 0, 50, 50]], [1])], class_names=["a", "b", "c"])
    assert [result["AP"], result["AP/b"]] == pytest.approx([1, 1])
    assert math.isnan(result["AP/a"])
    assert math.isnan(result["AP/c"])


def test_detections_of_a_crowd_are_not_counted():
    targets = target([[0, 0, 50, 50], [100, 0, 300, 200]])
    predictions = [prediction([[100, 0, 200, 100], [150, 0, 250, 100], [0, 0, 50, 50]], [0.9, 0.8, 0.7])]
    assert coco_ap(predictions, [targets])["AP"] < 0.5
    assert coco_ap(predictions, [{**targets, "iscrowd": torch.tensor([False, True])}])["AP"] == pytest.approx(1)
    assert coco_ap(predictions, [{**targets, "iscrowd": torch.tensor([0, 1])}])["AP"] == pytest.approx(1)
    assert math.isnan(coco_ap(predictions, [{**targets, "iscrowd": torch.tensor([1, 1])}])["AP"])


def test_a_given_area_decides_the_size_class():
    targets = target([[0, 0, 100, 100]])
    predictions = [prediction([[0, 0, 100, 100]], [0.9])]
    assert coco_ap(predictions, [targets])["AP_large"] == pytest.approx(1)
    result = coco_ap(predictions, [{**targets, "area": torch.tensor([900.0])}])
    assert result["AP_small"] == pytest.approx(1)
    assert math.isnan(result["AP_large"])


def test_only_the_best_detections_of_a_class_count():
    boxes = [[60 * index, 0, 60 * index + 50, 50] for index in range(6)]
    predictions = [prediction(boxes, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])]
    for kept in (1, 3, 6, 10):
        result = coco_ap(predictions, [target(boxes)], max_detections=kept)
        assert result["AR"] == pytest.approx(min(kept, 6) / 6)


@pytest.mark.parametrize("inverted", [[50, 50, 0, 0], [0, 50, 50, 0], [50, 0, 0, 50], [20, 20, 20, 20]])
def test_inverted_predictions_are_false_alarms(inverted):
    targets = [target([[0, 0, 50, 50]])]
    assert coco_ap([prediction([inverted], [0.9])], targets)["AP"] == 0
    assert coco_ap([prediction([inverted, [0, 0, 50, 50]], [0.9, 0.8])], targets)["AP"] == pytest.approx(1 / 2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_any_device_and_dtype_is_read_and_nothing_is_modified(device, dtype):
    boxes = torch.tensor([[0, 0, 40, 40], [50, 50, 90, 90]], device=device)
    targets = [{"boxes": boxes, "labels": torch.tensor([0, 1], dtype=torch.int32, device=device), "image_id": 3}]
    scores = torch.tensor([0.5, 0.25], dtype=dtype, device=device, requires_grad=True)
    predictions = [{"boxes": boxes.to(dtype), "labels": torch.tensor([0, 1], device=device), "scores": scores}]
    assert coco_ap(predictions, targets)["AP"] == pytest.approx(1)
    assert targets[0].keys() == {"boxes", "labels", "image_id"}
    assert scores.requires_grad


def test_evaluation_is_silent(capfd):
    coco_ap([prediction([[0, 0, 50, 50]], [0.9])], [target([[0, 0, 50, 50]])])
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def broken(side, **change):
    """Return two images of which the second differs from a legal one by `change`; None removes a key."""
    entry = (prediction if side == "predictions" else lambda boxes, _: target(boxes))(
        [[0, 0, 5, 5], [1, 1, 4, 4]], [0.1, 0.2]
    )
    legal = dict(entry)
    entry.update(change)
    return [legal, {key: value for key, value in entry.items() if value is not None}]


@pytest.mark.parametrize("side", ["predictions", "targets"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"boxes": None}, ValueError, r" must have the key 'boxes', got the keys \['labels'.*\]"),
        ({"labels": None}, ValueError, r" must have the key 'labels', got the keys \['boxes'.*\]"),
        ({"boxes": [[0, 0, 5, 5]]}, TypeError, r"\['boxes'\] must be a tensor, got list"),
        ({"boxes": torch.zeros(2, 5)}, ValueError, r"\['boxes'\] must have shape \(N, 4\), got \(2, 5\)"),
        ({"boxes": torch.zeros(4)}, ValueError, r"\['boxes'\] must have shape \(N, 4\), got \(4,\)"),
        ({"boxes": torch.full((2, 4), math.nan)}, ValueError, r"\['boxes'\] must be finite, got 8 NaN"),
        (
            {"labels": torch.tensor([0])},
            ValueError,
            r"\['labels'\] must have shape \(2,\), one entry a box, got \(1,\)",
        ),
        ({"labels": torch.tensor([0.0, 1.0])}, TypeError, r"\['labels'\] must be integers, got torch.float32"),
        ({"labels": torch.tensor([True, False])}, TypeError, r"\['labels'\] must be integers, got torch.bool"),
        ({"labels": torch.tensor([0, -1])}, ValueError, r"\['labels'\] must lie in \[0, inf\), got \[0, -1\]"),
    ],
)
def test_what_is_wrong_with_an_entry_is_named(side, change, error, message):
    sides = {"predictions": broken("predictions"), "targets": broken("targets"), side: broken(side, **change)}
    with pytest.raises(error, match=rf"{side}\[1\]{message}"):
        coco_ap(**sides)


def test_what_is_wrong_with_one_side_only_is_named():
    predictions, targets = broken("predictions"), broken("targets")
    with pytest.raises(ValueError, match="predictions must have one entry a target, got 2 for 1 targets"):
        coco_ap(predictions, targets[:1])
    with pytest.raises(TypeError, match=r"targets\[0\] must be a mapping, got Tensor"):
        coco_ap(predictions, [torch.zeros(2, 4), targets[1]])
    with pytest.raises(ValueError, match=r"predictions\[1\] must have the key 'scores'"):
        coco_ap(broken("predictions", scores=None), targets)
    with pytest.raises(ValueError, match=r"predictions\[1\]\['scores'\] must be finite, got 1 NaN"):
        coco_ap(broken("predictions", scores=torch.tensor([0.5, math.inf])), targets)
    with pytest.raises(ValueError, match=r"targets\[1\]\['iscrowd'\] must have shape \(2,\)"):
        coco_ap(predictions, broken("targets", iscrowd=torch.tensor([1])))
    with pytest.raises(ValueError, match=r"targets\[1\]\['boxes'\] must have x2 >= x1 and y2 >= y1, got"):
        coco_ap(predictions, broken("targets", boxes=torch.tensor([[5, 5, 0, 0], [0, 0, 5, 5]])))
    with pytest.raises(ValueError, match=r"predictions\[0\]\['labels'\] must lie in \[0, 0\), got \[0, 0\]"):
        coco_ap(predictions, targets, class_names=[])
    with pytest.raises(ValueError, match=r"class_names must differ, got \['a', 'a'\]"):
        coco_ap(predictions, targets, class_names=["a", "a"])
    with pytest.raises(ValueError, match="max_detections must be at least 1, got 0"):
        coco_ap(predictions, targets, max_detections=0)


def test_without_an_evaluator_the_error_says_what_to_install(evaluator, monkeypatch):
    hide(monkeypatch, evaluator)
    for boxes in ([], [[0, 0, 5, 5]]):
        with pytest.raises(ImportError, match=r'pip install "uotod\[eval\]"'):
            coco_ap([prediction([], [])], [target(boxes)])
