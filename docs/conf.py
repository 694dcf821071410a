"""Sphinx: the pages of this folder, and those that `generate.py` makes of parsers and READMEs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
for home in (ROOT / "export", ROOT / "training", ROOT / "benchmarks", ROOT, HERE):
    sys.path.insert(0, str(home))

import generate  # noqa: E402  (found by the path above)

import cfpose_sdk  # noqa: E402

generate.write_all(HERE / "generated")

project, author = "cfpose", "the cfpose authors"
version = release = cfpose_sdk.__version__
copyright = "the cfpose authors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
language = "en"
smartquotes = False  # they would make one dash of --option

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
default_role = "code"  # docstrings write `names` so

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_title = f"cfpose {release}"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"top_of_page_buttons": []}

_OUT_OF_DOCS = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\./[^)]*)\)")


def _name_files(app: Any, page: str, source: list[str]) -> None:
    """Links to files of the repository that are no pages become their names."""
    if page.startswith("generated/"):
        return  # their links were made for their place
    source[0] = _OUT_OF_DOCS.sub(generate.named_file, source[0])


def setup(app: Any) -> None:
    """Connect the hook."""
    app.connect("source-read", _name_files)
