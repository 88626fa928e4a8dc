"""The site: python -m sphinx -W --keep-going -b html docs docs/_build/html. Fetches nothing."""

import os
import pathlib
import re
import typing

typing.GENERATING_DOCUMENTATION = (
    "jaxent"  # to jaxtyping: Float[Array, '*batch'], not where Array is from
)

import jax.typing  # noqa: E402
from sphinx.util.typing import stringify_annotation  # noqa: E402

import jaxent  # noqa: E402

project = "jaxent"
copyright = "The jaxent authors"
version = release = jaxent.__version__

extensions = [
    "myst_nb",  # pages in Markdown, and the notebook as it was committed
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"jaxent {version}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # as on GitHub: page.md#a-heading
nb_execution_mode = "off"

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_rtype = False
python_display_short_literal_types = True
toc_object_entries_show_parents = "hide"

# --- pages that live outside docs/ ----------------------------------------------------------------

# They are read on GitHub too, so their links are relative files. A page here that holds the line
# "<!-- the whole of FILE -->" is that file; links to it, from wherever, lead to the page.
ROOT = pathlib.Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/RESULTS.md": "results.md",
}
INCLUDE = re.compile(r"^<!-- the whole of (\S+) -->$", re.MULTILINE)
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def relinked(text: str, file: pathlib.Path, page: pathlib.Path) -> str:
    """The text of a file with its relative links as the page, which shows it, needs them."""

    def link(found):
        target = (file.parent / found[1]).resolve()
        inside = target.relative_to(ROOT).as_posix()
        target = ROOT / "docs" / PAGES[inside] if inside in PAGES else target
        return f"]({os.path.relpath(target, page.parent)}{found[2] or ''})"

    return LINK.sub(link, text)


def read(app, docname, source):
    """Puts whole files in their places, and relative links right."""
    page = pathlib.Path(app.env.doc2path(docname)).resolve()
    if page.suffix != ".md":
        return
    text = relinked(source[0], page, page)

    def whole(found):
        app.env.note_dependency(str(ROOT / found[1]), docname=docname)
        return relinked((ROOT / found[1]).read_text(encoding="utf-8"), ROOT / found[1], page)

    source[0] = INCLUDE.sub(whole, text)


# --- signatures -----------------------------------------------------------------------------------

ARRAY_LIKE = stringify_annotation(jax.typing.ArrayLike, "smart")  # a union of nine


def readable(app, what, name, obj, options, signature, returns):
    """Calls the union of all that is like an array by its name."""
    return tuple(x and x.replace(ARRAY_LIKE, "ArrayLike") for x in (signature, returns))


def setup(app):
    """Sphinx calls it."""
    app.connect("source-read", read)
    app.connect("autodoc-process-signature", readable)
