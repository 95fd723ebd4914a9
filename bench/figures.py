"""Figures of README.md and docs/ out of bench/results: ``python bench/figures.py`` writes them, a test checks them.

A table or sentence between ``<!-- NAME -->`` and ``<!-- end of NAME -->``, NAME one of `BLOCKS`, is made anew from the
JSON. Any other figure that looks measured (`MEASURED`) must be, rounded as it is shown, a number of a JSON in a folder
of bench/results that its section names, or the page where the section names none. What is neither stands in `DERIVED`,
with what it follows from.
"""

from __future__ import annotations

import fnmatch
import importlib
import json
import math
import pathlib
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from terngrad_kernels.bench.report import bound_name, of, select

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
SUITE = "2026-11-24-zen4-suite"
KERNELS = {"avx2": "2026-11-23-zen4-avx2", "avx512": "2026-11-23-zen4-avx512"}
DEMO = "2026-11-23-demo"
NETWORK = "2026-11-24-network"
LARGE = 25_600_000


@cache
def load(path: str) -> Any:
    text = (RESULTS / path).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.endswith(".jsonl") else json.loads(text)


def suite(isa: str) -> Any:
    return load(f"{SUITE}/{isa}.json")


def kernel(isa: str, place: str, name: str) -> str:
    found = [row for row in load(f"{KERNELS[isa]}/kernels.json") if (row["place"], row["name"]) == (place, name)]
    (row,) = (row for row in found if row["isa"] in (isa, ""))
    return f"{row['ns_per_element']:.3f}"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ("---",) * len(header), *rows))


def kernels() -> str:
    rows = [
        ("`scales`", "scales", "a plain read", "read"),
        ("draw, ternarize and pack to `two_bit`", "encode two_bit", "Philox alone", "philox"),
        ("the same to `base3`", "encode base3", "Philox alone", "philox"),
        ("`decode` of `two_bit`", "decode two_bit", "a fill of the output", "memset"),
        ("`decode` of `base3`", "decode base3", "a fill of the output", "memset"),
    ]
    lines = []
    for label, name, bound, of_bound in rows:
        cells = [
            " / ".join(kernel(isa, place, what) for place in ("L2", "memory"))
            for isa in KERNELS
            for what in (name, of_bound)
        ]
        lines.append((label, *cells[:2], *cells[2:], bound))
    header = ("kernel, in L2 / from memory", "AVX2", "bound", "AVX-512", "bound", "the bound is")
    return _table(header, lines)


def speed() -> str:
    def cell(isa: str, section: str, **fields: Any) -> str:
        row = of(suite(isa), section, **fields)
        return f"{row['ns_per_element']:.3f} ({row['ratio']:.2f} x)"

    def line(label: str, section: str, **fields: Any) -> tuple[str, ...]:
        bound = bound_name(of(suite("avx512"), section, threads=1, **fields))
        return (label, *(cell(isa, section, threads=n, **fields) for isa in KERNELS for n in (1, 2)), bound)

    rows = [
        line(f"`{name}` of 25.6 million elements", "threads", operation=name, elements=LARGE, packing="two_bit")
        for name in ("scales", "encode", "decode", "decode_sum")
    ]
    for model in dict.fromkeys(row["model"] for row in select(suite("avx512"), "models")):
        first = select(suite("avx512"), "models", model=model)[0]
        rows.append(line(f"`encode` of {model}, {first['layers']} layers", "models", operation="encode", model=model))
    header = ("ns an element (of its bound)", "AVX2", "2 threads", "AVX-512", "2 threads", "the bound is")
    return _table(header, rows)


def peers() -> str:
    ours = {isa: of(suite(isa), "peers", operation="terngrad_kernels")["seconds"]["median"] for isa in KERNELS}
    rows = []
    for row in sorted(select(suite("avx512"), "peers"), key=lambda row: float(row["seconds"]["median"])):
        name = row["operation"]
        cells = []
        for isa in KERNELS:
            mine = of(suite(isa), "peers", operation=name)
            times = "" if name == "terngrad_kernels" else f" ({mine['seconds']['median'] / ours[isa]:.1f} x)"
            cells.append(f"{mine['ns_per_element']:.2f}{times}")
        check = row["check"] or {"unbiased": "no draw", "independent": "no draw"}
        draws = " and ".join(word.lower() for word in (check["unbiased"], check["independent"]) if word.isupper())
        right = f"**{draws}**" if draws else "right" if check["unbiased"] == "yes" else "none"
        rows.append((name, *cells, f"{row['bits']:g}", right, row["says"]))
    header = ("", "ns an element, AVX2", "AVX-512", "bits", "draws", "what it does")
    return _table(header, rows)


_NAMES = {
    "numpy": "NumPy",
    "torch": "PyTorch",
    "jax": "JAX",
    "paddle": "Paddle",
    "tensorflow": "TensorFlow",
    "array_api_strict": "array-api-strict, through `__dlpack__`",
}


def calls() -> str:
    rows = []
    for framework, name in _NAMES.items():
        mine = {row["operation"]: row for row in select(suite("avx512"), "frameworks", framework=framework)}
        us = {operation: f"{row['seconds']['median'] * 1e6:.1f}" for operation, row in mine.items()}
        encode = us["encode"] + (f"; {us['encode, jitted']} under `jax.jit`" if "encode, jitted" in us else "")
        floor = f"{mine['encode']['bound']['seconds'] * 1e6:.1f}"
        rows.append((name, encode, us.get("encode, out=", "-"), us["decode"], floor))
    return _table(("us a call", "`encode`", "`encode(out=)`", "`decode`", "`x + 1`"), rows)


def demo() -> str:
    runs = [load(f"{DEMO}/{packing}-seed{seed}.json") for packing in ("two_bit", "base3") for seed in range(5)]
    plain = [run["accuracy"]["float32"] for run in runs[:5]]
    ternary = [run["accuracy"]["terngrad"] for run in runs[:5]]
    assert ternary == [run["accuracy"]["terngrad"] for run in runs[5:]]
    ratios = [run["traffic"]["ratio"] for run in runs]
    return (
        "Five seeds of it (600 steps, 4 workers, LeNet-300-100, 1,000 test images): "
        f"float32 {statistics.mean(plain):.1%}, TernGrad {statistics.mean(ternary):.1%} on average,\n"
        f"at {ratios[0]:.2f} times less traffic with `two_bit` and {ratios[5]:.2f} times with `base3` "
        "(the same trits, so the same accuracies);\n"
        f"the default seed gives {plain[0]:.1%} and {ternary[0]:.1%} "
        f"([bench/results/{DEMO}](bench/results/{DEMO}))."
    ).replace("%", " %")


def call() -> str:
    def us(framework: str) -> str:
        row = of(suite("avx512"), "frameworks", framework=framework, operation="encode")
        return f"{row['seconds']['median'] * 1e6:.1f} us"

    return (
        f"A call of `tk.encode` on 1,024 elements takes {us('numpy')} with NumPy and {us('torch')} with PyTorch "
        "([docs/frameworks.md](docs/frameworks.md) has all)."
    )


#: Of page and name: what stands between its comments.
def _network(name: str) -> Any:
    folder = str(ROOT / "bench" / "network")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


def exchanges(what: str) -> str:
    return str(_network("network_table").summary(load(f"{NETWORK}/network.json"), what)).rstrip()


def predictions() -> str:
    model = _network("model")
    return str(model.table(model.points(load(f"{NETWORK}/network.json")))).rstrip()


BLOCKS: dict[tuple[str, str], Callable[[], str]] = {
    ("README.md", "demo"): demo,
    ("README.md", "kernels"): kernels,
    ("README.md", "speed"): speed,
    ("README.md", "peers"): peers,
    ("README.md", "call"): call,
    ("docs/frameworks.md", "calls"): calls,
    ("docs/distributed.md", "exchange"): lambda: exchanges("exchange"),
    ("docs/distributed.md", "step"): lambda: exchanges("step"),
    ("docs/performance-model.md", "points"): predictions,
}


def rendered(page: str, text: str) -> str:
    """Return the page with its blocks written anew."""
    for (where, name), make in BLOCKS.items():
        if where == page:
            start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
            before, found, rest = text.partition(start)
            assert found, f"{page}: no {start.strip()}"
            _, found, after = rest.partition(end)
            assert found, f"{page}: no {end}"
            text = f"{before}{start}{make()}\n{end}{after}"
    return text


# ---- figures that stand alone

_NUMBER = r"(?<![\w.^-])(\d[\d,]*(?:\.\d+)?)"
#: What looks measured: a number with a unit of time or rate, a share with a decimal, a decimal of three places or more,
#: and how many times faster something is. (How many times fewer bytes are sent is counted, not measured.)
MEASURED = re.compile(
    rf"{_NUMBER}(?= ?(?:ns|us|ms|GB/s|TB/s)\b| ?%(?<=\d\.\d %)| (?:x|times) (?:as|faster|slower)\b)"
    r"|(?<![\w.])(\d{1,3}\.\d{3,})(?![\w.])|(?<![\w.])(\d+\.\d+)(?= ?%)"
)
#: In a table that has such a unit in its header or in the paragraph above it, every decimal is.
UNIT = re.compile(r"\b(?:ns|us|ms|GB/s|TB/s)\b")
DECIMAL = re.compile(r"(?<![\w.])(\d+\.\d+)(?![\w.])")
#: Pages of mathematics and of bytes.
UNMEASURED = ("docs/contract.md", "docs/format.md")
#: Neither measured nor rendered: page, figure, and what it follows from.
DERIVED: dict[tuple[str, str], str] = {
    ("docs/design.md", "65.5"): "of a prototype that is not in this repository, and is said to be",
    ("docs/performance-model.md", "65.5"): "the same prototype's",
    ("docs/performance-model.md", "45"): "the same prototype's",
    ("docs/convergence.md", "0.5"): "per cent of bytes, which are counted",
}
#: Pages with blocks between such comments that another script writes, which has a test of its own.
ELSEWHERE = {"docs/convergence.md": "bench/convergence/tables.py"}


def pages() -> list[str]:
    """Every page whose figures are held to this."""
    found = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
    return [page for page in found if page not in UNMEASURED]


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        yield float(value)


@cache
def known(folders: frozenset[str]) -> tuple[float, ...]:
    """Numbers of every JSON in these folders."""
    paths = (path for folder in folders for path in sorted((RESULTS / folder).rglob("*.json*")))
    return tuple(number for path in paths for number in _numbers(load(path.relative_to(RESULTS).as_posix())))


#: What a number of a JSON is multiplied by to be shown in a unit: JSON has seconds, ns and bytes.
SCALES = {"ns": (1, 1e9), "us": (1, 1e6), "ms": (1, 1e3), "GB/s": (1, 1e-9), "TB/s": (1, 1e-12), "%": (1, 100)}


def _figures(text: str) -> Iterator[tuple[str, str]]:
    """Yield the figures that look measured, with their units."""
    for found in MEASURED.finditer(text):
        figure = next(group for group in found.groups() if group).replace(",", "")
        unit = re.match(r" ?(ns|us|ms|GB/s|TB/s|%)", text[found.end() :])
        yield figure, unit[1] if unit else ""
    for table in re.finditer(r"([^\n]+\n)?\n?((?:\|[^\n]*\n)+)", text):
        header, _, rows = table[2].partition("\n")
        units = UNIT.findall((table[1] or "") + header)
        for figure in DECIMAL.findall(rows) if units else ():
            yield figure, units[0]


def _named(text: str) -> frozenset[str]:
    """Folders of results that a text names."""
    names = set(re.findall(r"[\d*]+-[\w*-]+", text))
    folders = (path.name for path in RESULTS.iterdir() if path.is_dir())
    return frozenset(folder for folder in folders if any(fnmatch.fnmatch(folder, name) for name in names))


def unknown(page: str, text: str) -> list[str]:
    """Return the figures of a page that look measured and that no JSON of the folders named there has."""
    for where, name in BLOCKS:
        if where == page:
            text = re.sub(rf"<!-- {name} -->.*?<!-- end of {name} -->", "", text, flags=re.DOTALL)
    if page in ELSEWHERE:
        text = re.sub(r"<!-- ([\w -]+) -->.*?<!-- end of \1 -->", "", text, flags=re.DOTALL)
    wrong = []
    for section in re.split(r"(?m)^(?=#+ )", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        numbers = known(_named(section) or _named(text))
        for figure, unit in _figures(re.sub(r"`[^`\n]*`", "", section)):
            places = len(figure.partition(".")[2])
            shown = (f"{number * scale:.{places}f}" for number in numbers for scale in SCALES.get(unit, (1,)))
            if (page, figure) not in DERIVED and figure not in shown:
                wrong.append(figure)
    return wrong


def main() -> None:
    """Write the blocks of every page anew, and name the figures that nothing stands behind."""
    for page in pages():
        path = ROOT / page
        before = path.read_text(encoding="utf-8")
        after = rendered(page, before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"{page}: written anew")
        for figure in unknown(page, after):
            print(f"{page}: {figure} is in no JSON of the folders that it names")


if __name__ == "__main__":
    main()
