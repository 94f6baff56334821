"""The layers of the design: a file imports only from its own layer or from those below it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "uotod"
# the first prefix that fits names the layer
LAYERS = {
    "uotod.utils": 0,
    "uotod.solvers": 1,
    "uotod._cost": 2,
    "uotod.match": 3,
    "uotod.loss": 4,
    "uotod.recipes": 5,
    "uotod.integrations": 6,
    "uotod.plot": 6,
    "uotod.eval": 6,
    "uotod.datasets": 6,
    "uotod._": 0,
}
OPTIONAL = {"matplotlib", "PIL", "pycocotools", "faster_coco_eval", "tqdm", "torchvision", "triton"}
KERNELS = "uotod.solvers._triton"  # modules that need Triton, and are imported as late as it is
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


def layer(name: str) -> int:
    return next(level for prefix, level in LAYERS.items() if name.startswith(prefix))


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
def test_a_file_imports_only_downwards(path: Path) -> None:
    own = layer(module_name(path))
    above = {name for name in imports(path) if name.startswith("uotod.") and layer(name) > own}
    assert not above


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_optional_packages_are_imported_inside_functions(path: Path) -> None:
    if not module_name(path).startswith(KERNELS):
        names = imports(path, top_level=True)
        assert not {name.split(".")[0] for name in names} & OPTIONAL
        assert not any(name.startswith(KERNELS) for name in names)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_file_has_at_most_300_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


def test_torchvision_is_used_nowhere() -> None:
    root = ROOT.parent
    files = [*root.glob("uotod/**/*.py"), *root.glob("examples/**/*.py"), *root.glob("tests/**/*.py")]
    users = [path for path in files if any(name.split(".")[0] == "torchvision" for name in imports(path))]
    assert not users
