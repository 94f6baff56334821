"""The shape of the package: rooms and their order, and what lives where."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "uotod"
# a file imports only from its own room or from one above it
ROOMS = ("check", "geometry", "plan", "scene", "cost", "solvers", "match", "criterion", "loss", "recipes", "utils")
OUTSIDE = ("integrations", "datasets", "eval", "plot", "report")
OPTIONAL = {"matplotlib", "PIL", "pycocotools", "faster_coco_eval", "tqdm", "torchvision", "triton", "plotly"}
KERNELS = "uotod.solvers.triton"  # modules that need Triton, and are imported as late as it is
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")
CORE = [path for path in FILES if path.relative_to(ROOT).parts[0].removesuffix(".py") in ROOMS]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


def floor(name: str) -> int:
    room = name.split(".")[1]
    return len(ROOMS) if room in OUTSIDE else ROOMS.index(room)


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else list(ast.walk(tree))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_file_imports_only_from_rooms_above_it(path: Path) -> None:
    own = floor(module_name(path))
    assert not {name for name in imports(path) if name.startswith("uotod.") and floor(name) > own}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_optional_packages_are_imported_inside_functions(path: Path) -> None:
    if not module_name(path).startswith(KERNELS) or path.name == "launch.py":
        names = imports(path, top_level=True)
        assert not {name.split(".")[0] for name in names} & OPTIONAL


def test_no_private_module_stands_at_the_root() -> None:
    found = {path.name for path in ROOT.iterdir() if path.name.startswith("_") and path.suffix in ("", ".py")}
    assert found - {"__pycache__"} == {"__init__.py"}


def test_torchvision_is_used_nowhere() -> None:
    root = ROOT.parent
    files = [*root.glob("uotod/**/*.py"), *root.glob("examples/**/*.py")]
    users = [path for path in files if any(name.split(".")[0] == "torchvision" for name in imports(path))]
    assert not users
