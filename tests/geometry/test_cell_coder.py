"""The parts of YOLO's loss: cells and their offsets, and the confidence of objects and of the background."""

import pytest
import torch

from tests.oracles import yolo as oracle
from tests.support.problems import random_boxes
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


@pytest.mark.parametrize("kind", ["bce", "mse"])
def test_confidence_passes_gradcheck(kind: str) -> None:
    x, t = torch.randn(6, 1, dtype=torch.float64, requires_grad=True), torch.rand(6, 1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: ConfidenceLoss(kind=kind, reduction="none")(x, t), (x,))


@pytest.mark.parametrize("kind", ["bce", "mse"])
@pytest.mark.parametrize("value", [-1e4, 0.0, 1e4])
def test_confidence_is_finite_at_extreme_values(kind: str, value: float) -> None:
    x = torch.full((3, 1), value, requires_grad=True)
    loss = ConfidenceLoss(kind=kind, reduction="sum")(x, torch.tensor([[0.0], [0.5], [1.0]]))
    assert loss.isfinite()
    assert torch.autograd.grad(loss, x)[0].isfinite().all()


@pytest.mark.parametrize("kind", ["bce", "mse"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_confidence_of_half_precision_is_computed_in_float32(kind: str, dtype: torch.dtype) -> None:
    x, t = torch.randn(6, 1).to(dtype), torch.rand(6, 1).to(dtype)
    loss = ConfidenceLoss(kind=kind, reduction="none")
    assert loss(x, t).dtype == torch.float32
    torch.testing.assert_close(loss(x, t), loss(x.float(), t.float()), rtol=0, atol=0)
