"""Every matcher, by the name of its case in `matcher_cases.CASES`."""

import pytest

from tests.support.matcher_cases import CASES
from uotod.match import Matcher


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def matcher(name: str) -> Matcher:
    return CASES[name].build()
