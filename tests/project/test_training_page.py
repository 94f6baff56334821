"""The page about training loops: its steps have the gradient of the whole batch, in one process and in two."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

from tests.support.docs import defined_function
from uotod import recipes

PAGE = "training.rst"
RANKS, P, CLASSES = 2, 6, 3
COUNTS = ((3, 0), (1, 5))  # of targets, in the images of each rank


class Detector(nn.Module):
    """Two layers of predictions from eight numbers an image."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 16)
        self.logits = nn.Linear(16, 2 * P * CLASSES)
        self.boxes = nn.Linear(16, 2 * P * 4)

    def forward(self, images: Tensor) -> dict[str, Any]:
        hidden = self.body(images).tanh()
        logits = self.logits(hidden).view(-1, 2, P, CLASSES).unbind(1)
        center, size = self.boxes(hidden).view(-1, 2, P, 4).sigmoid().chunk(2, dim=-1)
        boxes = torch.cat((center - size / 4, center + size / 4), dim=-1).unbind(1)
        first, last = ({"pred_logits": a, "pred_boxes": b} for a, b in zip(logits, boxes, strict=True))
        return last | {"aux_outputs": [first]}


def detector() -> Detector:
    torch.manual_seed(0)
    return Detector()


def batch(rank: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(rank + 1)
    target = []
    for count in COUNTS[rank]:
        corner = torch.rand(count, 2, generator=generator) * 0.5
        boxes = torch.cat((corner, corner + 0.2 + torch.rand(count, 2, generator=generator) * 0.2), dim=1)
        target.append({"labels": torch.randint(CLASSES, (count,), generator=generator), "boxes": boxes})
    return torch.randn(len(target), 8, generator=generator), target


def whole() -> tuple[Tensor, list[dict[str, Tensor]]]:
    batches = [batch(rank) for rank in range(RANKS)]
    return torch.cat([x[0] for x in batches]), batches[0][1] + batches[1][1]


def micro_batches(images: Tensor, target: list[dict[str, Tensor]]) -> list[tuple[Tensor, list[dict[str, Tensor]]]]:
    return [(images[i : i + 1], target[i : i + 1]) for i in range(len(target))]


def gradients(model: nn.Module) -> list[Tensor]:
    found = []
    for parameter in model.parameters():
        assert parameter.grad is not None
        gradient = parameter.grad
        found.append(gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient.clone())
    return found


def still(model: nn.Module) -> torch.optim.Optimizer:
    """Return an optimiser that leaves a model as it is."""
    return torch.optim.SGD(model.parameters(), lr=0.0)


def expected(criterion: nn.Module) -> list[Tensor]:
    model = detector()
    defined_function(PAGE, "train_step")(model, criterion, still(model), *whole())
    return gradients(model)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    train_step, accumulated_step = (defined_function(PAGE, name) for name in ("train_step", "accumulated_step"))
    found = {}

    model, criterion = defined_function(PAGE, "ddp")(detector(), CLASSES)
    train_step(model, criterion, still(model), *batch(rank))
    found["ddp"] = gradients(model)
    accumulated_step(model, criterion, still(model), micro_batches(*batch(rank)))
    found["ddp, accumulated"] = gradients(model)

    mesh = distributed.device_mesh.init_device_mesh("cpu", (RANKS, 1), mesh_dim_names=("data", "tensor"))
    model, criterion = defined_function(PAGE, "fsdp")(detector(), CLASSES, mesh)
    train_step(model, criterion, still(model), *batch(rank))
    found["fsdp"] = gradients(model)

    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_have_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=RANKS)
    whole = expected(recipes.deformable_detr(CLASSES))
    assert all(x.abs().sum() > 0 for x in whole)
    for rank in range(RANKS):
        for name, found in torch.load(tmp_path / f"{rank}.pt").items():
            for a, e in zip(found, whole, strict=True):
                torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("step", ["accumulated_step", "two_pass_step"])
def test_micro_batches_have_the_gradient_of_the_whole_batch(step) -> None:
    criterion, model = recipes.deformable_detr(CLASSES), detector()
    defined_function(PAGE, step)(model, criterion, still(model), micro_batches(*whole()))
    for a, e in zip(gradients(model), expected(criterion), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-6)


def test_two_passes_serve_criteria_that_count_mass() -> None:
    criterion, model = recipes.uot_deformable_detr(CLASSES), detector()
    defined_function(PAGE, "two_pass_step")(model, criterion, still(model), micro_batches(*whole()))
    for a, e in zip(gradients(model), expected(criterion), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="got the number of targets only"):
        defined_function(PAGE, "accumulated_step")(model, criterion, still(model), micro_batches(*whole()))


def test_a_scaler_skips_the_step_of_a_prediction_that_is_not_finite() -> None:
    model, criterion = detector(), recipes.deformable_detr(CLASSES, nonfinite="propagate")
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=8.0)
    step, (images, target) = defined_function(PAGE, "scaled_step"), whole()
    before = [x.detach().clone() for x in model.parameters()]
    images[0, 0] = float("nan")
    assert step(model, criterion, optimizer, scaler, images, target).isnan()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert scaler.get_scale() == 4.0
    images[0, 0] = 0.0
    assert step(model, criterion, optimizer, scaler, images, target).isfinite()
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
