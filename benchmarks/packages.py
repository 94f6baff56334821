"""Make the packages that `make peers` has put beside the environment importable, after those of the environment."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

PEERS = Path(__file__).parents[1] / ".peers"
_FOLDER = PEERS / "packages"
_declared: list[torch.library.Library] = []


def installed(name: str) -> bool:
    """Tell whether a package can be imported, from the environment or from `.peers`."""
    add_peers()
    return find_spec(name) is not None


def add_peers() -> None:
    """Append `.peers` to the path, where it is there, and declare the operators that its torchvision lacks."""
    if not _FOLDER.is_dir() or str(_FOLDER) in sys.path:
        return
    bare = find_spec("torchvision") is None
    sys.path.append(str(_FOLDER))
    os.environ.setdefault("YOLO_CONFIG_DIR", str(PEERS))  # ultralytics writes its settings somewhere
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    if bare and torch.version.cuda is None:
        # The wheel's compiled operators need CUDA. Its Python, of which losses are made, wants two of them declared.
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)  # they are gone with it
