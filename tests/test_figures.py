"""README and docs show no figure that no committed JSON stands behind (bench/figures.py)."""

from __future__ import annotations

import importlib.util
import re
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


@pytest.mark.parametrize("page", figures.pages())
def test_a_wrong_figure_is_found_on_every_page(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for typed in ("An encode takes 4.27 us.", "It is 0.41731.", "| | ns |\n|---|---|\n| encode | 0.47 |\n"):
        assert figures.unknown(page, f"{text}\n\n{typed}\n") != []


@pytest.mark.parametrize("page", sorted({page for page, _ in figures.BLOCKS} | set(figures.PHRASES)))
def test_a_changed_figure_is_found(page: str) -> None:
    """Each digit of a phrase, and one of each block: also where another figure of the page, or of a JSON, results."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for phrase in figures.PHRASES.get(page, list)():
        (found,) = re.finditer(r"\s+".join(map(re.escape, phrase.split())), text)
        for digit in re.finditer(r"\d", found[0]):
            at = found.start() + digit.start()
            assert figures.unknown(page, text[:at] + str((int(digit[0]) + 1) % 10) + text[at + 1 :]) != []
    for where, name in figures.BLOCKS:
        if where == page:
            start = text.index(f"<!-- {name} -->")
            digit = re.compile(r"\d(?=\.\d)").search(text, start)
            changed = text[: digit.start()] + str((int(digit[0]) + 1) % 10) + text[digit.end() :]
            assert figures.rendered(page, changed) == text


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
        "15.5 times fewer bytes were sent, or 15.5 x.",
        "It takes 0.31 s.",
        "It is 0.4 points worse.",
        "It is 417,717 x as fast.",
        "It moves 1234.5 GB/s.",
        "From 0.41731-0.41732 it went.",
    ],
)
def test_a_figure_of_nowhere_is_found(text: str) -> None:
    assert figures.unknown("README.md", text) != []


@pytest.mark.parametrize(
    "text",
    [
        "arXiv:1705.07878, at most 1 % of the elements, 16 times, version 2.13, 2^-22, `0.41731 ns`",
        "| | accuracy |\n|---|---|\n| base3 | 1.6 |\n",
    ],
)
def test_what_is_no_figure_passes(text: str) -> None:
    assert figures.unknown("README.md", text) == []


def test_what_varied_is_not_shown() -> None:
    row = {"section": "peers", "framework": "numpy", "operation": "cast", "threads": 1}
    steady = {"median": 2.0, "q1": 1.5, "q3": 2.5}
    assert figures.shown(row | {"seconds": steady}, "2.0") == "2.0"
    assert figures.shown(row | {"seconds": steady | {"q3": 2.6}}, "2.0") == "unsteady"
