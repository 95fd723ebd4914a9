"""Sphinx's settings; `.ci/docs` builds the site. Pages also read well as plain Markdown, as the repository has them."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.highlighting import lexers

import terngrad_kernels

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

project = "terngrad_kernels"
author = "The terngrad-kernels developers"
project_copyright = author
version = release = terngrad_kernels.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = True
lexers["hex"] = TextLexer()  # the dump of a message in format.md
default_role = "code"

autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc's sections say what is taken and given, with shapes and dtypes
autodoc_mock_imports = [name for name in ("torch", "jax") if importlib.util.find_spec(name) is None]
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

html_theme = "furo"
html_title = f"terngrad_kernels {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = html_show_sphinx = html_show_sourcelink = False
html_copy_source = False

linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_workers = 4

# ---- pages and links that leave docs/

#: Files of the repository that are pages too: what stands in docs/ under these names only says so.
PAGES = {
    "CHANGELOG.md": "changelog",
    "CONTRIBUTING.md": "contributing",
    "README.md": "readme",
    "SECURITY.md": "security",
}

#: Where the files of this commit are shown, without the slash at the end. Empty: they are copied into the site.
REPOSITORY = os.environ.get("TERNGRAD_KERNELS_REPOSITORY", "")

LINK = re.compile(r"(!?)\[([^][]*)\]\(([^():#\s]+)(#[^()\s]*)?\)")


def read_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the repository's file in place of its page, and turn relative links into ones that hold on the site.

    A file that is no page becomes a link to the repository, or a copy of it. A folder cannot be copied: without a
    repository its link leaves the text alone.
    """
    folder = (DOCS / docname).parent
    link_from = folder
    for file, page in PAGES.items():
        if page == docname:
            source[0] = (ROOT / file).read_text(encoding="utf-8")
            app.env.note_dependency(str(ROOT / file))
            link_from = ROOT

    def replace(found: re.Match[str]) -> str:
        image, text, link, anchor = found[1], found[2], found[3], found[4] or ""
        target = (link_from / link).resolve()
        if not target.exists() or not target.is_relative_to(ROOT):
            return found[0]  # which Sphinx then reports
        path = target.relative_to(ROOT).as_posix()
        if path in PAGES:
            target = DOCS / f"{PAGES[path]}.md"
        if image or (target.is_relative_to(DOCS) and target.suffix in (".md", ".rst")):  # images come from anywhere
            return f"{image}[{text}]({os.path.relpath(target, folder)}{anchor})"
        if REPOSITORY:
            return f"[{text}]({REPOSITORY}/{path}{anchor})"
        words = text.strip("`")
        return f"{{download}}`{words} <{os.path.relpath(target, folder)}>`" if target.is_file() else text

    source[0] = LINK.sub(replace, source[0])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", read_page)
