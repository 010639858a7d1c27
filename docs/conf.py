"""Settings of the documentation's site. ``make docs`` builds it; a warning is an error. The pages load nothing else."""

from __future__ import annotations

import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_ext")]

from pygments.lexers.special import TextLexer  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402

import hetfl  # noqa: E402

project = "hetfl"
author = "the authors of hetfl"
copyright = "the authors of hetfl, Apache-2.0"
version = release = hetfl.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "mathml",
    "api_pages",
]
exclude_patterns = ["_build", "_ext", "deployment"]
html_theme = "furo"
html_title = f"hetfl {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
highlight_language = "text"  # of blocks that name no language: commands
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
html_math_renderer = "mathml"
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # notebooks are stored with their outputs
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
copybutton_exclude = ".linenos, .gp, .go"
napoleon_use_ivar = True  # attributes are described once, with their class


FILE_NAME = re.compile(r"\[(\w+)\.md\]\(((?:\.\./)*\1\.md(?:#[\w-]+)?)\)")
"""A link whose text is the name of a file; on the site it is the title of the page or section."""
NOTEBOOK = re.compile(r"\[([^\]]+)\]\((?:\.\./)?notebooks/(\w+)\.(?:ipynb|md)\)")


def link_files_elsewhere(app: Sphinx, name: str, source: list[str]) -> None:
    """Turn links to files outside of docs/ into links to their pages: notebooks is a link, which MyST would follow."""
    for file in ("CHANGELOG", "CONTRIBUTING", "SECURITY"):
        source[0] = source[0].replace(f"](../{file}.md", f"]({file.lower()}.md")
    source[0] = FILE_NAME.sub(r"[](\2)", source[0])
    source[0] = NOTEBOOK.sub(r"{doc}`\1 </notebooks/\2>`", source[0])


def setup(app: Sphinx) -> None:
    """Mark the blocks of bytes in wire.md as plain text."""
    for lexer in ("hex", "part", "submodel"):
        app.add_lexer(lexer, TextLexer)
    app.connect("source-read", link_files_elsewhere)
