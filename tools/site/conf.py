"""Sphinx's settings for the site; tools/site/__main__.py says what it is made of."""

import os
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools" / "site"), str(ROOT / "tools")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = os.environ.get("SITE_REPOSITORY", PROJECT.get("urls", {}).get("Repository", ""))

project = "ft_notebooks"
author = "the authors of ft_notebooks"
copyright = f"{author}, Apache-2.0"
release = re.search(r'__version__ = "(.+)"', (ROOT / "ft_notebooks" / "__init__.py").read_text(encoding="utf-8"))[1]
extensions = ["myst_nb", "sphinx_mathml"]
root_doc = "index"
smartquotes = False  # a heading with quotes keeps its address
nb_execution_mode = "off"  # what a reader sees is what the tests have run
nb_mime_priority_overrides = [("html", "text/html", 0), ("html", "image/png", 1)]
myst_enable_extensions = ["dollarmath", "attrs_block", "colon_fence"]
myst_heading_anchors = 4
myst_heading_slug_func = "site_parts.slug"
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header", "misc.highlighting_failure", "toc.not_included"]
html_context = {"default_mode": "auto"}
html_theme = "sphinx_book_theme"
html_title = "ft_notebooks"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = [("messages.js", {"defer": "defer"})]
html_show_sourcelink = False
html_copy_source = False
html_math_renderer = "mathml"
html_theme_options = {
    "repository_url": REPOSITORY,
    "repository_branch": "main",
    "use_repository_button": bool(REPOSITORY),
    "use_edit_page_button": bool(REPOSITORY),
    "use_download_button": False,
    "use_fullscreen_button": False,
    "launch_buttons": {"colab_url": "https://colab.research.google.com"} if REPOSITORY else {},
    "show_navbar_depth": 1,
    "max_navbar_depth": 1,
    "collapse_navigation": True,
    "home_page_in_toc": True,
    "show_toc_level": 2,
}
