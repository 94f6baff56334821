"""The parts of YOLO's loss: cells and their offsets, and the confidence of objects and of the background."""

import pytest
import torch

from tests.oracles import yolo as oracle
from tests.problems import random_boxes
from uotod.loss import ConfidenceLoss, ObjectnessLoss
from uotod.utils import CellCoder


@pytest.mark.parametrize("size", ["sqrt", "log", "linear"])
def test_cell_coder_inverts_itself_and_offsets_lie_in_the_cell(size: str) -> None:
    boxes, coder = random_boxes(200), CellCoder(size)
    stride = torch.full((200,), 1 / 7, dtype=torch.float64)
    corner = ((boxes[:, :2] + boxes[:, 2:]) / 2 * 7).floor() / 7
    anchors = torch.cat((corner, corner + 1 / 7), dim=-1)
    values = coder.encode(boxes, anchors, stride)
    assert ((values[:, :2] >= 0) & (values[:, :2] <= 1)).all()
    torch.testing.assert_close(coder.decode(values, anchors, stride), boxes)
    with pytest.raises(ValueError, match="stride must be given to a CellCoder, got None"):
        coder.encode(boxes, anchors)


def test_cell_coder_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"size must be one of \['sqrt', 'log', 'linear'\], got 'cube'"):
        CellCoder("cube")
    with pytest.raises(ValueError, match=r'anchors must have shape \(..., 4\) with size="log", got \(1, 2\)'):
        CellCoder("log").encode(torch.zeros(1, 4), torch.zeros(1, 2), torch.ones(1))


@pytest.mark.parametrize("kind", ["bce", "mse"])
def test_confidence_of_hard_targets_weighs_objects_and_background(kind: str) -> None:
    x, t = torch.randn(9, 1, dtype=torch.float64), (torch.arange(9) % 2).double().unsqueeze(-1)
    loss = ConfidenceLoss(kind=kind, positive_weight=2.0, negative_weight=0.5, reduction="none")
    expected = torch.stack([oracle.error(a, b, kind) for a, b in zip(x, t, strict=True)]) * (0.5 + 1.5 * t)
    torch.testing.assert_close(loss(x, t), expected)
    if kind == "bce":
        other = ObjectnessLoss(positive_weight=2.0, negative_weight=0.5, reduction="none")
        torch.testing.assert_close(loss(x, t), other(x, t))
