"""The pages: every public name has its place in the API's, and relative links lead somewhere."""

import importlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *DOCS.glob("*.md"),
        *DOCS.glob("api/*.md"),
        *ROOT.glob("*.md"),
        *(ROOT / "benchmarks").glob("*.md"),
    ]
)

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the pages are not in an sdist")

# In packages and in jaxent itself what they re-export is public, in other modules what they define.
MODULES = (
    "jaxent",
    "jaxent.weights",
    "jaxent.train",
    "jaxent.sampled",
    "jaxent.probabilities",
    "jaxent.debug",
    "jaxent.plot",
    "jaxent.compat.torch",
    "jaxent.compat.tensorflow.nn",
    "jaxent.compat.tensorflow.losses",
    "jaxent.compat.tensorflow.random",
    "jaxent.compat.keras",
    "jaxent.compat.optax",
)
# What one file offers another; and a name that jaxent itself has, too.
ELSEWHERE = {"jaxent.weights.lookup", "jaxent.plot.house_style", "jaxent.weights.class_weights"}


def public(module):
    """Full names of the functions and classes of a module that are for users."""
    found = importlib.import_module(module)
    for name, thing in vars(found).items():
        if name.startswith("_") or not callable(thing):
            continue
        home = getattr(thing, "__module__", None) or ""
        if home == module or (hasattr(found, "__path__") and home.startswith(f"{module}.")):
            yield f"{module}.{name}"


def documented():
    """Full names that the API pages describe, as often as they do."""
    pages = sorted((DOCS / "api").glob("*.md"))
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    return re.findall(r"^\.\. auto(?:function|class|exception):: (\S+)$", text, flags=re.M)


def test_every_public_name_is_on_an_api_page_once():
    names = {name for module in MODULES for name in public(module)} - ELSEWHERE
    assert len(names) > 100
    there = documented()
    assert sorted(names - set(there)) == [], "not on any page of docs/api"
    assert sorted(set(there) - names) == [], "on a page, but no public name"
    assert len(there) == len(set(there)), "on two pages"


def test_every_public_module_introduces_its_page():
    text = "\n".join(p.read_text(encoding="utf-8") for p in (DOCS / "api").glob("*.md"))
    assert set(MODULES) <= set(re.findall(r"^\.\. automodule:: (\S+)$", text, flags=re.M))


def test_every_page_is_in_the_table_of_contents():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^[\w/-]+$", index, flags=re.M))
    pages = [*DOCS.glob("*.md"), *DOCS.glob("*.ipynb"), *DOCS.glob("api/*.md")]
    names = {page.relative_to(DOCS).with_suffix("").as_posix() for page in pages}
    assert names == listed | {"index"}


def headings(page):
    """Anchors as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for title in re.findall(r"^#+ (.+)$", text, flags=re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", title).strip().lower()
        yield re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for path, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        if anchor:
            assert anchor in set(headings(target)), f"{path}#{anchor}"


def test_jaxent_offers_its_public_names_and_no_others():
    import jaxent

    assert {"cross_entropy", "LogitStats", "weights"} <= set(jaxent.__all__)
    for name in {*dir(jaxent)} - {"__version__"}:
        assert getattr(jaxent, name).__doc__, name
    assert not {"importlib", "_LAZY", "Array"} & set(dir(jaxent))
