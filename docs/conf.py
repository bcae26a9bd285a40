"""Sphinx's configuration: the pages of this folder as a site.

Build it strictly, into a folder outside the repository::

    sphinx-build --fail-on-warning --keep-going docs /tmp/site
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_site"))

from semantik_realtime import __version__

project = "semantik-realtime"
author = "the semantik-realtime authors"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_design",
    "docstring_names",
    "repository_links",
]
exclude_patterns = ["_site"]

# A reference that leads nowhere is a warning, and the build fails on warnings.
nitpicky = True
show_warning_types = True
# An abridged example (`{"op": …}`) is not JSON, and need not be.
suppress_warnings = ["misc.highlighting_failure"]

# The pages are Markdown that a forge shows too: GitHub's anchors, and a few of MyST's fences.
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

repository_url = ""
"""Where files outside this folder are linked to; empty: a copy of them is part of the site."""
if "GITHUB_REPOSITORY" in os.environ:
    repository_url = "/".join(
        (
            os.environ["GITHUB_SERVER_URL"],
            os.environ["GITHUB_REPOSITORY"],
            "blob",
            os.environ["GITHUB_SHA"],
        )
    )

html_theme = "furo"
html_title = project
html_static_path = ["_site/static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#1b66c9",
        "color-brand-content": "#1b66c9",
    },
    "dark_css_variables": {
        "color-brand-primary": "#6cb0ff",
        "color-brand-content": "#6cb0ff",
    },
}
