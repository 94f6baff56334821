"""Settings of all tests: one thread a worker, a fixed seed, and the devices and other libraries at hand."""

import os
from pathlib import Path

# Before numpy is imported, whose BLAS reads them once; the programs that tests start inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

from benchmarks.packages import PEERS, add_peers

BCCD = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "bccd"
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

os.environ.setdefault("MPLBACKEND", "Agg")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is first imported
# ultralytics writes its settings when it is imported: a folder a worker
os.environ.setdefault("YOLO_CONFIG_DIR", str(PEERS / "settings" / os.environ.get("PYTEST_XDIST_WORKER", "main")))
add_peers()
torch.set_num_threads(1)

# A draw is a batch of 20 examples (`tests/support/strategies.py`): 8 draws are 160 a matcher, 3,840 of all matchers
# together a property of plans, the same ones in every run.
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
settings.register_profile("test", max_examples=8, derandomize=True, deadline=None, suppress_health_check=SLOW)
# `make fuzz`: EXAMPLES other ones in every run; a failure prints what repeats it.
DRAWS = int(os.environ.get("EXAMPLES", "100000")) // 20
settings.register_profile("fuzz", max_examples=DRAWS, deadline=None, print_blob=True, suppress_health_check=SLOW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "test"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Count the cores that this process may use: psutil, which comes with the peers, would count physical ones."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.fixture(autouse=True)
def seeded_single_thread() -> None:
    torch.set_num_threads(1)  # a library may have set another number
    torch.manual_seed(0)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)
