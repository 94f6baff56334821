"""What the measurements were made on: the machine and the versions of everybody."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import uotod
from benchmarks.packages import PEERS, installed

PACKAGES = ("transformers", "torchvision", "ultralytics", "POT", "scipy", "numpy")


def environment() -> dict[str, str]:
    """Return what to say about the machine and the packages."""
    facts = {"machine": _processor(), "cores": str(os.cpu_count()), "threads": str(torch.get_num_threads())}
    facts |= {"python": platform.python_version(), "torch": torch.__version__, "uotod": uotod.__version__}
    installed("torchvision")  # makes the versions of optional peers visible
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    for found in PEERS.glob("uotod/uotod-*.dist-info"):
        facts["original uotod"] = found.name.removeprefix("uotod-").removesuffix(".dist-info")
    return facts


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
