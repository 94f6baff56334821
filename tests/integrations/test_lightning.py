"""The module of the page about Lightning, on a stand-in for its base class where that package is not there."""

import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.docs import defined
from tests.support.problems import random_problem


class LightningModule(nn.Module):
    """What the page uses of the class of that name."""

    global_step = 0

    def log_dict(self, values: dict[str, Tensor]) -> None:
        self.logged = values


def test_the_module_of_the_page_logs_its_terms_and_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("lightning") is None:
        stand_in = ModuleType("lightning")
        stand_in.LightningModule = LightningModule
        monkeypatch.setitem(sys.modules, "lightning", stand_in)
    problem = random_problem(classes=3, low=0, full=True, dtype=torch.float32)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(problem.input["pred_logits"].detach())

        def forward(self, images: Tensor) -> dict[str, Any]:
            return {"pred_logits": self.logits, "pred_boxes": problem.input["pred_boxes"].detach()}

    module = defined("lightning.rst", "Detector")(Model(), 3)
    monkeypatch.setattr(type(module), "log_dict", LightningModule.log_dict)
    optimizer, losses = module.configure_optimizers(), []
    for _ in range(20):
        loss = module.training_step((torch.zeros(2), problem.target), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert {"loss", "loss_cls", "loss_loc"} <= set(module.logged)
    assert not any(x.requires_grad for x in module.logged.values())
