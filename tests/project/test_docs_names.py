"""What the documentation names exists: every option in a call between backticks."""

import ast
import inspect
import re

import pytest

from tests.support.docs import DOCS
from uotod import loss, match, recipes, utils

PAGES = [*sorted(DOCS.glob("*.rst")), DOCS.parent / "README.md", DOCS.parent / "CHANGELOG.md"]
ROOMS = (loss, match, utils, recipes)
EXPORTS = {name: value for room in ROOMS for name, value in vars(room).items() if callable(value)}


def calls(text: str) -> list[tuple[str, list[str]]]:
    """Return the calls of exports between backticks, nested ones too, each with its options."""
    found = []
    for code in re.findall(r"`([\w.]+\([^`]*\))`", text):
        try:
            tree = ast.parse(code)
        except SyntaxError:  # shorthand, such as `name(a, …)`
            continue
        for node in ast.walk(tree):
            name = ast.unparse(node.func).removeprefix("recipes.") if isinstance(node, ast.Call) else ""
            if name in EXPORTS and isinstance(node, ast.Call):
                found.append((name, [x.arg for x in node.keywords if x.arg]))
    return found


def unknown(text: str) -> list[str]:
    """Return the options in a text that there are not."""
    missing = []
    for name, options in calls(text):
        parameters = inspect.signature(EXPORTS[name]).parameters
        takes_any = any(x.kind is x.VAR_KEYWORD for x in parameters.values())
        missing += [f"{name}({x}=)" for x in options if x not in parameters and not takes_any]
    return missing


def test_an_option_that_there_is_not_is_found() -> None:
    text = '``recipes.detr(91, matcher=Min(origin="target"))`` and `Min(source="target")`, or `IoULoss(kind=…)`'
    assert calls(text) == [("detr", ["matcher"]), ("Min", ["origin"]), ("Min", ["source"])]
    assert unknown(text) == ["Min(origin=)"]


def test_pages_name_options() -> None:
    assert sum(len(options) for page in PAGES for _, options in calls(page.read_text())) > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda x: x.name)
def test_every_option_that_a_page_names_exists(page) -> None:
    assert unknown(page.read_text()) == []
