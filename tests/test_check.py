"""Checks of constructor arguments: which numbers they take, and what they return."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from uotod.check import Described, check_integer, check_number
from uotod.match import Hungarian, UnbalancedSinkhorn


@pytest.mark.parametrize(
    "value", [2, 2.0, np.int64(2), np.uint8(2), np.float16(2), np.float32(2), np.float64(2), Fraction(2)]
)
def test_a_real_number_of_any_kind_becomes_a_float(value: float) -> None:
    checked = check_number("reg", value, low=0.0)
    assert type(checked) is float
    assert checked == 2.0


@pytest.mark.parametrize("value", [3, np.int64(3), np.int32(3), np.uint8(3)])
def test_an_integer_of_any_kind_becomes_an_int(value: int) -> None:
    checked = check_integer("topk", value, low=1)
    assert type(checked) is int
    assert checked == 3


@pytest.mark.parametrize("value", [True, np.bool_(True), "1", None, 1j, np.complex64(1), np.ones(1), [1]])
def test_what_is_no_number_raises(value: object) -> None:
    with pytest.raises(TypeError, match="reg must be a real number, got "):
        check_number("reg", value)
    with pytest.raises(TypeError, match="topk must be an integer, got "):
        check_integer("topk", value)


@pytest.mark.parametrize("value", [1.0, np.float32(1), np.float64(1), Fraction(1)])
def test_a_real_number_is_no_integer(value: float) -> None:
    with pytest.raises(TypeError, match="topk must be an integer, got "):
        check_integer("topk", value)


@pytest.mark.parametrize("kind", [float, np.float32, np.float64])
def test_an_interval_holds_for_every_kind_of_number(kind: type[float]) -> None:
    for bad in (math.nan, math.inf, -1.0, 0.0):
        with pytest.raises(ValueError, match=r"reg must lie in \(0.0, inf\), got "):
            check_number("reg", kind(bad), low=0.0, low_open=True)
    assert check_number("reg", kind(math.inf), low=0.0, finite=False) == math.inf
    with pytest.raises(ValueError, match="topk must be at least 1, got 0"):
        check_integer("topk", np.int64(0), low=1)


def test_matchers_take_scalars_of_numpy() -> None:
    assert repr(UnbalancedSinkhorn(reg_pred=np.float32(0.5))) == repr(UnbalancedSinkhorn(reg_pred=0.5))
    assert repr(Hungarian(copies=np.int64(2))) == repr(Hungarian(copies=2))


class Kept(Described):
    def __init__(self, module: nn.Module, kind: str, *, scale: float = 2.0, weights: int = 0) -> None:
        super().__init__()
        self.kind, self.other, self.scale, self.module = kind, 1, scale, module
        self.register_buffer("weights", torch.zeros(weights))


class KeptMore(Kept):
    def __init__(self, *, gamma: float, kind: str = "a") -> None:
        super().__init__(nn.Identity(), kind)
        self.gamma = gamma


def test_the_arguments_that_a_module_keeps_are_shown_in_the_order_of_its_constructor() -> None:
    assert Kept(nn.Identity(), "a").extra_repr() == "kind='a', scale=2.0, weights=[]"
    assert KeptMore(gamma=0.5).extra_repr() == "gamma=0.5, kind='a'"
    assert Described().extra_repr() == ""
