"""README and docs show no figure that no committed JSON stands behind (bench/figures.py)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "bench" / "results").is_dir():
    pytest.skip("needs bench/results, which a source distribution has not", allow_module_level=True)


def load() -> Any:
    spec = importlib.util.spec_from_file_location("figures", ROOT / "bench" / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


figures = load()


@pytest.mark.parametrize("page", figures.pages())
def test_figures_are_those_of_the_results(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert figures.rendered(page, text) == text, "run: python bench/figures.py"
    assert figures.unknown(page, text) == []


@pytest.mark.parametrize(
    "text",
    [
        "An encode takes 4.27 us.",
        "An encode takes 4.27us.",
        "It is 0.41731 an element.",
        "| | ns |\n|---|---|\n| encode | 0.47 |\n",
        "Nanoseconds (ns):\n\n| | a |\n|---|---|\n| encode | 0.47 |\n",
        "A share of 93.21 %.",
        "It is 41.77 times faster.",
        "It is 417,717 x as fast.",
        "It moves 1234.5 GB/s.",
        "From 0.41731-0.41732 it went.",
    ],
)
def test_a_figure_of_nowhere_is_found(text: str) -> None:
    assert figures.unknown("README.md", f"See bench/results/2026-11-23-zen4-exhaustive. {text}") != []


@pytest.mark.parametrize(
    "text",
    [
        "arXiv:1705.07878, at most 1 % of the elements, 16 times, version 2.13, 2^-22, `0.41731 ns`",
        "| | accuracy |\n|---|---|\n| base3 | 1.6 |\n",
        "See 2026-11-23-demo: 15.984 and 15.98 ns and 93.7 %.",
    ],
)
def test_what_is_no_figure_or_has_its_json_passes(text: str) -> None:
    assert figures.unknown("README.md", text) == []


def test_a_page_must_name_the_folder() -> None:
    assert figures.unknown("README.md", "15.984") == ["15.984"]


def test_a_typed_block_is_seen() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    start = page.index("<!-- speed -->")
    typed = page[:start] + page[start:].replace("0.", "1.", 1)
    assert figures.rendered("README.md", typed) == page
