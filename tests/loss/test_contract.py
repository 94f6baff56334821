"""The contract of every sub-loss; a new loss enters it by one line of `loss_cases.CASES`."""

import copy
import pickle
import re

import pytest
import torch
from torch import Tensor, nn

from tests.support.docs import DOCS
from tests.support.loss_cases import CASES, Arguments, rows
from uotod import loss

CRITERIA = {"Branches", "DetectionLoss", "YOLOLoss"}  # of whole scenes
TEACHERS = {"DistillationLoss"}  # of all layers at once


def value(name: str, reduction: str, arguments: Arguments) -> Tensor:
    return CASES[name].build(reduction=reduction)(*arguments[0], **arguments[1])


def tensors(arguments: Arguments) -> list[Tensor]:
    return [*arguments[0], *arguments[1].values()]


def cast(arguments: Arguments, dtype: torch.dtype) -> Arguments:
    given, fields = arguments
    given = tuple(x.to(dtype) if x.is_floating_point() else x for x in given)
    return given, {key: x.to(dtype) for key, x in fields.items()}


def test_every_loss_is_in_the_contract() -> None:
    assert {case.split("-")[0] for case in CASES} == set(loss.ALL_LOSSES) - CRITERIA - TEACHERS


def test_every_loss_is_documented() -> None:
    page = (DOCS / "losses.rst").read_text()
    assert set(loss.ALL_LOSSES) <= set(re.findall(r"^\.\. autoclass:: (\w+)$", page, flags=re.MULTILINE))


@pytest.mark.parametrize("name", CASES)
def test_mean_and_sum_reduce_the_rows(name: str) -> None:
    arguments = rows(name)
    none = value(name, "none", arguments)
    assert len(none) == 6
    assert none.isfinite().all()
    torch.testing.assert_close(value(name, "mean", arguments), none.mean())
    torch.testing.assert_close(value(name, "sum", arguments), none.sum())
    torch.testing.assert_close(CASES[name].build()(*arguments[0], **arguments[1]), none.mean())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", CASES)
def test_the_mean_of_nothing_is_zero_with_a_gradient(name: str, reduction: str) -> None:
    arguments = rows(name, 0)
    result = value(name, reduction, arguments)
    result.backward()
    assert result.detach() == 0
    assert any(x.grad is not None for x in tensors(arguments))


@pytest.mark.parametrize("name", CASES)
def test_every_row_has_a_finite_gradient(name: str) -> None:
    arguments = rows(name)
    value(name, "sum", arguments).backward()
    gradients = [x.grad for x in tensors(arguments) if x.grad is not None]
    assert gradients
    assert all(x.isfinite().all() for x in gradients)
    assert any((x.flatten(1).abs().sum(1) > 0).all() for x in gradients)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    half = cast(rows(name, dtype=torch.float32), dtype)
    result = value(name, "none", half)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, value(name, "none", cast(half, torch.float32)))


@pytest.mark.parametrize("name", CASES)
def test_copies_are_equal_and_a_call_changes_nothing(name: str) -> None:
    module, (given, fields) = CASES[name].build(reduction="none"), rows(name)
    others: list[nn.Module] = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    expected = module(*given, **fields)
    for other in [module, *others]:
        assert repr(other) == repr(module)
        assert torch.equal(other(*given, **fields), expected)
    for key, state in module.state_dict().items():
        assert torch.equal(state, others[0].state_dict()[key])


@pytest.mark.parametrize("name", CASES)
def test_a_reduction_that_is_none_raises(name: str) -> None:
    with pytest.raises(ValueError, match=r"reduction must be one of \['none', 'mean', 'sum'\], got 'avg'"):
        CASES[name].build(reduction="avg")
