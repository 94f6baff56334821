"""Sphinx configuration of the documentation."""

import uotod

project = "uotod"
author = "The uotod authors"
release = uotod.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
html_theme = "furo"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
exclude_patterns = ["_build"]
