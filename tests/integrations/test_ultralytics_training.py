"""A training by Ultralytics with our loss: model and average have it, what is saved has not, and it can be resumed."""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from benchmarks.packages import PEERS
from tests.integrations.test_ultralytics import RT_DETR, transport
from tests.support.peers import peer
from uotod.geometry.nms import nms
from uotod.integrations.ultralytics import ModelLoss, trainer
from uotod.loss import Branches
from uotod.match import UnbalancedSinkhorn

EPOCHS = 2


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Provide what the peers lack here, and leave the process as it was."""
    peer("ultralytics")
    # the operators of torchvision may not be compiled
    monkeypatch.setattr(peer("torchvision").ops, "nms", lambda boxes, scores, threshold: nms(boxes, scores, threshold))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    deterministic = torch.are_deterministic_algorithms_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return the description of a data set of red rectangles, four images for training and as many to validate."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        for index in range(4):
            image = np.full((64, 64, 3), 90, np.uint8)
            image[16:48, 8 * index : 8 * index + 24] = (200, 30, 30)
            PIL.Image.fromarray(image).save(tmp_path / "images" / split / f"{index}.png")
            row = f"{index % 2} {(8 * index + 12) / 64} 0.5 {24 / 64} 0.5\n"
            (tmp_path / "labels" / split / f"{index}.txt").write_text(row)
    names = f"path: {tmp_path}\ntrain: images/train\nval: images/val\nnames: [a, b]\n"
    (tmp_path / "data.yaml").write_text(names)
    return tmp_path / "data.yaml"


def recording(base: Any) -> tuple[Any, list[Any]]:
    """Return a subclass that notes what its model and average have for a loss, and in which epoch."""
    seen: list[Any] = []

    class Recording(base):
        def optimizer_step(self) -> None:
            seen.append((self.model.criterion, self.ema.ema.criterion, self.model.criterion.updates))
            super().optimizer_step()

        def read_results_csv(self) -> dict[str, Any]:
            return {}  # which needs a package of its own

    return Recording, seen


def train(kind: Any, model: Any, data: Path, **options: Any) -> Path:
    given = {
        "epochs": EPOCHS,
        "imgsz": 64,
        "batch": 2,
        "nbs": 2,
        "workers": 0,
        "plots": False,
        "amp": False,
        "val": False,
    }
    given |= {"project": str(data.parent / "runs"), "name": "run", "exist_ok": True, "device": "cpu", "verbose": False}
    kind(overrides={"model": model, "data": str(data), **given, **options}).train()
    return data.parent / "runs" / "run" / "weights" / "last.pt"


def load_elsewhere(path: Path) -> None:
    """Load a checkpoint in a process that cannot import this library, and run its model."""
    program = f"""
import sys
sys.modules["uotod"] = None  # importing it fails
sys.path.append({str(PEERS / "packages")!r})
import torch
library = torch.library.Library("torchvision", "FRAGMENT")
try:
    for operator in ("nms", "qnms"):
        library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
except RuntimeError:
    pass
checkpoint = torch.load({str(path)!r}, weights_only=False)
model = checkpoint["ema"] or checkpoint["model"]
assert model.criterion is None
assert model.float().eval()(torch.rand(1, 3, 64, 64))[0].isfinite().all()
"""
    environment = os.environ | {"PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=path.parent)


def test_a_training_of_yolo26_by_unbalanced_transport(data: Path) -> None:
    detect = peer("ultralytics.models.yolo.detect")
    base, seen = recording(detect.DetectionTrainer)
    kind = trainer(base, matcher=transport())
    assert issubclass(kind, base)
    last = train(kind, "yolo26n.yaml", data)
    assert len(seen) == 2 * EPOCHS
    for model, average, _ in seen:
        assert model is average
        assert isinstance(model, ModelLoss)
        assert isinstance(model.criterion, Branches)
        assert isinstance(model.criterion.main.matching_method, UnbalancedSinkhorn)
    assert [epoch for _, _, epoch in seen] == [0, 0, 1, 1]
    assert model.criterion.main_weight == pytest.approx(0.9)
    load_elsewhere(last)


def test_yolo_takes_the_trainer(data: Path) -> None:
    base, seen = recording(peer("ultralytics.models.yolo.detect").DetectionTrainer)
    options = {
        "epochs": 1,
        "imgsz": 64,
        "batch": 4,
        "nbs": 4,
        "workers": 0,
        "plots": False,
        "amp": False,
        "device": "cpu",
    }
    model = peer("ultralytics").YOLO("yolo11n.yaml", verbose=False)
    model.train(trainer=trainer(base), data=str(data), project=str(data.parent), name="run", verbose=False, **options)
    assert len(seen) == 1
    results = (data.parent / "run" / "results.csv").read_text()
    assert all(f"train/{name}_loss" in results and f"val/{name}_loss" in results for name in ("box", "cls", "dfl"))
    assert model.model.criterion is None


def test_what_is_saved_between_epochs_loads_elsewhere_and_training_goes_on_from_there(data: Path) -> None:
    base, seen = recording(peer("ultralytics.models.rtdetr.train").RTDETRTrainer)
    saved: list[Path] = []

    class Interrupted(trainer(base)):
        def save_model(self) -> Any:
            done = super().save_model()
            assert isinstance(self.ema.ema.criterion, ModelLoss)
            saved.append(self.last.rename(self.last.with_suffix(f".{self.epoch}.pt")))
            saved[-1].with_name(self.last.name).write_bytes(saved[-1].read_bytes())
            return done

    import yaml

    config = data.with_name("rtdetr-tiny.yaml")
    config.write_text(yaml.safe_dump(RT_DETR))
    train(Interrupted, str(config), data)
    assert len(saved) == EPOCHS
    load_elsewhere(saved[0])
    seen.clear()
    train(trainer(base), str(saved[0]), data, resume=str(saved[0]))
    assert [epoch for _, _, epoch in seen] == [1, 1]


def test_a_model_of_another_task_is_named_before_data_is_read(data: Path) -> None:
    base, seen = recording(peer("ultralytics.models.yolo.obb").OBBTrainer)
    with pytest.raises(TypeError, match="YOLO26 or RT-DETR, got OBBModel with the head OBB"):
        train(trainer(base), "yolo11n-obb.yaml", data)
    assert not seen
