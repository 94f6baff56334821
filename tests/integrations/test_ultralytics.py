"""Detectors of ultralytics trained by one line: with that library's numbers, and with another matcher."""

import copy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.docs import defined_function
from tests.support.peers import peer
from uotod import recipes
from uotod.integrations.ultralytics import CriterionLoss, set_matcher, trainer
from uotod.match import SimOTA, TaskAligned, UnbalancedSinkhorn

pytestmark = pytest.mark.filterwarnings("ignore")
MODELS = ["yolov8n", "yolo11n"]


def model_of(name: str) -> Any:
    torch.manual_seed(0)
    model = peer("ultralytics.nn.tasks").DetectionModel(f"{name}.yaml", ch=3, nc=3, verbose=False)
    model.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5, epochs=3)
    return model.train()


def batch(images: tuple[float, ...] = (0, 0, 1)) -> dict[str, Tensor]:
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.5], [0.3, 0.6, 0.3, 0.3], [0.6, 0.4, 0.5, 0.4]])[: len(images)]
    classes = torch.tensor([[0.0], [2.0], [1.0]])[: len(images)]
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    return {"img": pixels, "batch_idx": torch.tensor(images), "cls": classes, "bboxes": boxes}


def loss_and_gradients(criterion: Any, preds: dict[str, Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    terms, logged = criterion(preds, inputs)
    heads = [preds["boxes"], preds["scores"]]
    found = torch.autograd.grad(terms.sum(), heads, retain_graph=True)
    return [terms.detach(), torch.stack(list(logged.values())), *found]


@pytest.mark.parametrize("images", [(0, 0, 1), (1, 1, 1), ()])
@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_are_those_of_the_library(name: str, images: tuple[float, ...]) -> None:
    model, inputs = model_of(name), batch(images)
    preds = model(inputs["img"])
    expected = loss_and_gradients(model.init_criterion(), preds, inputs)
    actual = loss_and_gradients(CriterionLoss(model, None, None), preds, inputs)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-6)


def test_the_assigner_of_the_library_is_one_of_our_matchers() -> None:
    model, inputs = model_of("yolov8n"), batch()
    preds = model(inputs["img"])
    expected = loss_and_gradients(model.init_criterion(), preds, inputs)
    actual = loss_and_gradients(set_matcher(model.init_criterion(), TaskAligned()), preds, inputs)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-6)
    other = loss_and_gradients(set_matcher(model.init_criterion(), SimOTA()), preds, inputs)
    assert not torch.allclose(other[0], expected[0])
    empty = loss_and_gradients(set_matcher(model.init_criterion(), SimOTA()), preds, batch(()))
    assert empty[0].isfinite().all()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of four images of noise, each with a box."""
    cv2 = peer("cv2")
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        for index in range(2):
            pixels = np.random.default_rng(index).integers(0, 255, (64, 64, 3), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / "images" / split / f"{index}.png"), pixels)
            (tmp_path / "labels" / split / f"{index}.txt").write_text(f"{index} 0.5 0.5 0.5 0.4\n")
    page = tmp_path / "data.yaml"
    page.write_text(f"path: {tmp_path}\ntrain: images/train\nval: images/val\nnames: [a, b, c]\n")
    return page


def test_the_line_of_the_page_trains_a_model_whose_checkpoint_loads_alone(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ultralytics, base = peer("ultralytics"), peer("ultralytics.models.yolo.detect").DetectionTrainer
    # validation needs a compiled operator of torchvision, and the table of results another package
    monkeypatch.setattr(base, "read_results_csv", lambda self: {})
    monkeypatch.setattr(base, "validate", lambda self: ({}, 0.0))
    monkeypatch.setattr(base, "final_eval", lambda self: None)
    options = {"imgsz": 64, "batch": 2, "epochs": 1, "workers": 0, "device": "cpu", "plots": False, "amp": False}
    options |= {"project": str(data.parent / "runs"), "name": "one", "verbose": False}
    matcher = UnbalancedSinkhorn(loc_match_module=nn.L1Loss(reduction="none"))
    model = ultralytics.YOLO("yolov8n.yaml")
    defined_function("ultralytics.rst", "train")(model, matcher, data=str(data), **options)
    checkpoint = next(data.parent.glob("runs/**/last.pt"))
    code = f"""
import sys
sys.modules["uotod"] = None
from ultralytics import YOLO
print(len(YOLO({str(checkpoint)!r}).names))
"""
    places = [str(Path(path)) for path in sys.path if "peers" in path]
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {places}\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split()[-1] == "3"


def test_the_loss_is_copied_with_the_model() -> None:
    model, inputs = model_of("yolov8n"), batch()
    model.criterion = CriterionLoss(model, None, TaskAligned(topk=5))
    assert "TaskAligned" in repr(model.criterion)
    other = copy.deepcopy(model)
    assert torch.equal(other.loss(inputs)[0].detach(), model.loss(inputs)[0].detach())
    assert not any("criterion" in key for key in model.state_dict())


def test_what_is_not_supported_raises() -> None:
    model = model_of("yolo26n")
    with pytest.raises(TypeError, match="model must have one head with a distribution of sides"):
        CriterionLoss(model, None, None)
    with pytest.raises(TypeError, match=r"loss must have an assigner, .* got E2ELoss"):
        set_matcher(model.init_criterion(), TaskAligned())
    with pytest.raises(TypeError, match="matcher must be a Matcher"):
        set_matcher(model_of("yolov8n").init_criterion(), nn.Identity())
    with pytest.raises(TypeError, match="base must be a subclass of ultralytics' DetectionTrainer"):
        trainer(nn.Module)
    with pytest.raises(TypeError, match="criterion must be a DetectionLoss"):
        trainer(criterion=nn.Identity())
    with pytest.raises(ValueError, match="matcher and criterion cannot be given together"):
        trainer(criterion=recipes.yolov8(3), matcher=TaskAligned())
