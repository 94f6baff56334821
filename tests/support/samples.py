"""What the tests of several data sets share: the comparison of two samples."""

import torch
from torch import Tensor

from uotod.datasets._target import Sample


def assert_same_sample(sample: Sample, other: Sample) -> None:
    """Assert that two (image, target) pairs are equal to the last bit."""
    torch.testing.assert_close(sample[0], other[0], rtol=0, atol=0)
    assert sample[1].keys() == other[1].keys()
    for key, value in sample[1].items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(value, other[1][key], rtol=0, atol=0)
        else:
            assert value == other[1][key]
