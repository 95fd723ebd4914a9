"""The pages: examples give what they show, links lead somewhere, every page and every public name can be found."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md")) + sorted(DOCS.rglob("*.rst"))
MARKDOWN = sorted(
    page for pattern in ("*.md", "*/README.md", "docs/**/*.md", ".github/**/*.md") for page in ROOT.glob(pattern)
)


def blocks_of(page: Path, kind: str) -> list[str]:
    """Return the fenced blocks of a page that say they are of a kind, a pattern."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def prose_of(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


needs_repository = pytest.mark.skipif(not (ROOT / ".ci").is_dir(), reason="an sdist leaves files out that pages name")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ---- examples


@pytest.mark.parametrize("page", [page for page in MARKDOWN if blocks_of(page, "pycon")], ids=name_of)
def test_examples(page: Path) -> None:
    """The blocks of a page with prompts run from top to bottom, in one session."""
    blocks = "\n".join(blocks_of(page, "pycon"))
    for framework in ("torch", "jax"):
        if f"import {framework}" in blocks:
            pytest.importorskip(framework)
    found = doctest.DocTestParser().get_doctest(blocks, {}, name_of(page), str(page), 0)
    report: list[str] = []
    outcome = doctest.DocTestRunner(verbose=False).run(found, out=report.append)
    assert outcome.attempted > 0
    assert outcome.failed == 0, "".join(report)


@pytest.mark.parametrize("page", MARKDOWN, ids=name_of)
def test_python_blocks_are_python(page: Path) -> None:
    for block in blocks_of(page, "python"):
        compile(block, name_of(page), "exec")


def test_examples_in_docstrings() -> None:
    modules = ["operations", "packed", "layout", "serialization"]
    attempted = 0
    for name in modules:
        outcome = doctest.testmod(importlib.import_module(f"terngrad_kernels.{name}"))
        assert outcome.failed == 0
        attempted += outcome.attempted
    assert attempted > 0


@pytest.mark.skipif(sys.byteorder != "little", reason="bytes are drawn as they are on the wire")
def test_pictures_are_what_the_package_draws() -> None:
    spec = importlib.util.spec_from_file_location("draw", DOCS / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    for name, drawing in draw.DRAWINGS.items():
        committed = (DOCS / "pictures" / f"{name}.svg").read_text(encoding="utf-8")
        assert drawing() == committed, f"{name}.svg: run python docs/draw.py"


# ---- links


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that the repository's host and the site both give to a page's headings."""
    headings = re.findall(r"^#{1,6} +(.*)$", prose_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@needs_repository
@pytest.mark.parametrize("page", MARKDOWN, ids=name_of)
def test_links_inside_the_repository(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: {link}"
        if anchor:
            assert anchor in anchors_of(target), f"{name_of(page)}: {link}"


@needs_repository
def test_files_that_contributing_names() -> None:
    """A word in angle brackets stands for any."""
    named = re.findall(
        r"`([\w.<>]+(?:/[\w.<>]+)+|CMakeLists\.txt|pyproject\.toml)`", (ROOT / "CONTRIBUTING.md").read_text()
    )
    assert len(named) > 30
    for path in named:
        if not path.startswith("build/"):
            assert list(ROOT.glob(re.sub(r"<\w+>", "*", path))), path


def test_every_page_is_in_the_table_of_contents() -> None:
    """Of the site: the entries of its toctrees, which may be patterns."""
    listed: set[Path] = {DOCS / "index.md"}
    for page in PAGES:
        in_rst = re.findall(r"^\.\. toctree::\n(.*)", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for line in "\n".join(blocks_of(page, r"\{toctree\}") + in_rst).splitlines():
            entry = re.sub(r"^.*<(.*)>$", r"\1", line.strip())
            if entry and not entry.startswith(":"):
                found = [path for suffix in (".md", ".rst") for path in page.parent.glob(entry + suffix)]
                assert found, f"{name_of(page)}: {entry}"
                listed.update(path.resolve() for path in found)
    assert set(PAGES) <= listed, [name_of(page) for page in set(PAGES) - listed]


# ---- names


#: The modules that docs/api shows. Of those that import a framework only the source is read.
MODULES = ("__init__", "torch", "torch_fsdp", "jax", "frontends/__init__", "frontends/terngrad", "frontends/grace")


def full_name(module: str) -> str:
    return ".".join(["terngrad_kernels", *(part for part in module.split("/") if part != "__init__")])


def public_names(module: str) -> set[str]:
    """Return what a module's ``__all__`` lists, as full names."""
    source = ROOT / "python" / "terngrad_kernels" / f"{module}.py"
    listed = re.search(r"^__all__ = \[(.*?)\]", source.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert listed is not None
    return {f"{full_name(module)}.{name}" for name in re.findall(r'"(\w+)"', listed[1])}


def documented_names() -> set[str]:
    """Return the names that the directives of docs/api show."""
    everything = {name for module in MODULES for name in public_names(module)}
    found = set()
    for page in sorted((DOCS / "api").glob("*.rst")):
        module = kind = ""
        for line in page.read_text(encoding="utf-8").splitlines():
            if directive := re.match(r"\.\. (\w+):: ([\w.]+)", line):
                kind, name = directive.groups()
                if kind in ("module", "currentmodule", "automodule"):
                    module = name
                elif kind in ("autofunction", "autoclass", "autoexception", "data"):
                    found.add(f"{module}.{name}")
            elif kind == "automodule" and line.strip() == ":members:":
                found.update(name for name in everything if name.rpartition(".")[0] == module)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_in_the_api_pages(module: str) -> None:
    assert public_names(module) <= documented_names()


def functions_of(module: Any) -> Iterator[tuple[str, Any]]:
    """Give the public functions of a module, and the public methods of its classes."""
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value) and not getattr(value, "_is_protocol", False):
            for method in [key for key, found in vars(value).items() if inspect.isfunction(found)]:
                if not method.startswith("_"):
                    yield f"{name}.{method}", getattr(value, method)
        elif inspect.isroutine(value):
            yield name, value


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_say_what_is_taken_and_returned(module: str) -> None:
    pytest.importorskip(module.partition("_")[0] if module in ("torch", "torch_fsdp", "jax") else "numpy")
    loaded = importlib.import_module(full_name(module))
    for name, function in functions_of(loaded):
        text = inspect.getdoc(function) or ""
        taken = inspect.signature(function) if inspect.isfunction(function) else None
        wanted = set()
        if taken and taken.parameters.keys() - {"self"}:
            wanted.add("Parameters")
        if taken and taken.return_annotation not in (None, "None"):
            wanted.add("Returns")
        found = set(re.findall(r"^(\w+)\n-+$", text, flags=re.MULTILINE))
        assert wanted <= found, (name, wanted - found)
        assert text, name
    for name in loaded.__all__:
        assert inspect.getdoc(getattr(loaded, name)), name
