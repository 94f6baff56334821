"""Settings of all tests: one thread, a fixed seed, and the devices at hand."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

BCCD = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "bccd"
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

os.environ.setdefault("MPLBACKEND", "Agg")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is first imported


@pytest.fixture(autouse=True)
def seeded_single_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)
