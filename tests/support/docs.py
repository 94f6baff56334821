"""The Python of the documentation: the code-blocks of a page in, what they define out."""

import re
import textwrap
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^\.\. code-block:: python\n\n((?:(?: {3}.*)?\n)+)", flags=re.MULTILINE)


def pages() -> list[str]:
    """Return the names of the pages that have Python to run."""
    return sorted(path.name for path in DOCS.glob("*.rst") if snippets(path.name))


def snippets(page: str) -> list[str]:
    """Return the code-blocks of a page."""
    return [textwrap.dedent(block).strip() + "\n" for block in BLOCK.findall((DOCS / page).read_text() + "\n")]


def run(snippet: str) -> dict[str, Any]:
    """Run a snippet by itself, and return what it defines."""
    scope: dict[str, Any] = {"__name__": "snippet"}
    exec(compile(snippet, "snippet", "exec"), scope)
    return scope


def defined(page: str, name: str) -> Any:
    """Return what the one snippet of a page that defines a class defines under its name."""
    (found,) = [x for x in snippets(page) if f"\nclass {name}(" in x]
    return run(found)[name]


def defined_function(page: str, name: str) -> Any:
    """Return the function that the one snippet of a page that defines it defines."""
    (found,) = [x for x in snippets(page) if f"\ndef {name}(" in f"\n{x}"]
    return run(found)[name]
