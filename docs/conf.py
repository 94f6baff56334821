"""Sphinx configuration of the documentation."""

import sys
from pathlib import Path

from sphinx.application import Sphinx

import uotod

sys.path.insert(0, str(Path(__file__).parent))
from figures import IMAGES, draw_matchers, draw_rooms

project = "uotod"
author = "The uotod authors"
release = uotod.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
html_theme = "furo"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates", "measured", "recipe_runs.rst"]


def draw(app: Sphinx) -> None:
    """Draw the rooms of the package as they are, and what each matcher makes of a scene."""
    draw_rooms(IMAGES / "rooms.png", Path(uotod.__file__).parent)
    draw_matchers(IMAGES / "matchers")


def setup(app: Sphinx) -> None:
    """Have the pictures drawn before the pages are read."""
    app.connect("builder-inited", draw)
