"""Sphinx configuration of the documentation."""

import sys
from pathlib import Path

from sphinx.application import Sphinx

import uotod

sys.path.insert(0, str(Path(__file__).parent))
from figures import IMAGES, draw_matchers

project = "uotod"
author = "The uotod authors"
release = uotod.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
html_theme = "furo"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates", "measured", "recipe_runs.rst"]


def setup(app: Sphinx) -> None:
    """Draw the picture of each matcher before the pages are read."""
    app.connect("builder-inited", lambda _: draw_matchers(IMAGES / "matchers"))
