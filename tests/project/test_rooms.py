"""The shape of the package: rooms and their order, and what lives where."""

import ast
import re
import sys
import tokenize
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "uotod"
# a file imports only from its own room or from one above it
ROOMS = ("check", "geometry", "plan", "scene", "cost", "solvers", "match", "criterion", "loss", "recipes", "utils")
OUTSIDE = ("integrations", "datasets", "eval", "plot", "report")
RULES = {"atss", "emd", "fcos", "focal", "ota", "partial_ot", "pot", "sinkhorn", "task_aligned", "yolo"}
ALWAYS_THERE = {*sys.stdlib_module_names, "uotod", "torch", "numpy", "scipy", "ot"}
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
        assert {name.split(".")[0] for name in names} <= ALWAYS_THERE


def test_no_private_module_stands_at_the_root() -> None:
    found = {path.name for path in ROOT.iterdir() if path.name.startswith("_") and path.suffix in ("", ".py")}
    assert found - {"__pycache__"} == {"__init__.py"}


def code(path: Path) -> str:
    """Return the code of a file, without comments and strings."""
    with path.open("rb") as file:
        tokens = [x for x in tokenize.tokenize(file.readline) if x.type not in (tokenize.COMMENT, tokenize.STRING)]
    return " ".join(x.string for x in tokens[1:])


def code_lines(path: Path) -> int:
    """Return the lines that hold code, without blank lines, comments and docstrings."""
    tree, kept = ast.parse(path.read_text()), set[int]()
    left_out = set[int]()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
            left_out |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    blank = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    with path.open("rb") as file:
        for token in list(tokenize.tokenize(file.readline))[1:]:
            if token.type not in blank:
                kept |= set(range(token.start[0], token.end[0] + 1))
    return len(kept - left_out)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_file_has_at_most_250_lines_of_code(path: Path) -> None:
    assert code_lines(path) <= 250


@pytest.mark.parametrize("path", CORE, ids=module_name)
def test_devices_blocks_and_caches_are_known_to_costs_and_solvers_only(path: Path) -> None:
    room, text = module_name(path).split(".")[1], code(path)
    if room in ("check", "cost", "solvers"):
        return
    assert not re.search(r"\bis_cuda\b|device \. type [!=]=|\bMAX_[A-Z_]+\b|\bnumpy\b|\bcuda\b", text)
    if room in ("match", "criterion", "loss", "recipes"):  # these do not even ask whether values may be read
        assert not re.search(r"\breads_values\b|\blooks\b|\bknown_positive\b|\bis_compiling\b|\bblocks\b", text)


@pytest.mark.parametrize("path", CORE, ids=module_name)
def test_nobody_asks_a_plan_for_its_class(path: Path) -> None:
    if module_name(path) != "uotod.plan":  # which takes plans of users in several forms
        assert not re.search(r"isinstance \( [^()]* , (Plan|\( [^()]*\bPlan\b)", code(path))


def test_two_rooms_have_files_of_one_name_for_one_rule_only() -> None:
    count = Counter(path.stem for path in CORE if path.stem != "__init__")
    assert {name for name, number in count.items() if number > 1} <= RULES


def test_criteria_know_sub_losses_by_their_adapters() -> None:
    for path in (ROOT / "criterion").glob("*.py"):
        assert not any(name.startswith("uotod.loss") for name in imports(path))


def test_torchvision_is_used_by_its_integration_only() -> None:
    root, own = ROOT.parent, ROOT / "integrations" / "torchvision.py"
    files = [path for path in (*root.glob("uotod/**/*.py"), *root.glob("examples/**/*.py")) if path != own]
    users = [path for path in files if any(name.split(".")[0] == "torchvision" for name in imports(path))]
    assert not users
