"""Turn the JSON of `bench/run` into a Markdown table: ``python bench/table.py FOLDER``."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any


def kernel_rows(kernels: list[dict[str, Any]]) -> list[str]:
    by_key = {(row["place"], row["isa"], row["name"]): row["ns_per_element"] for row in kernels}
    lines = ["| where | isa | kernel | ns an element | against |", "|---|---|---|---|---|"]
    for (place, isa, name), ns in by_key.items():
        against = ""
        if name.startswith(("encode", "ternarize")) and (place, isa, "philox") in by_key:
            against = f"{ns / by_key[place, isa, 'philox']:.2f} x philox"
        elif name == "scales":
            against = f"{ns / by_key[place, '', 'read']:.2f} x read"
        elif name.startswith("decode"):
            against = f"{ns / by_key[place, '', 'memset']:.2f} x memset"
        lines.append(f"| {place} | {isa} | {name} | {ns:.3f} | {against} |")
    return lines


def call_rows(benchmarks: list[dict[str, Any]]) -> list[str]:
    medians = {}
    for item in benchmarks:
        name = item["name"].partition("[")[0].removeprefix("test_")
        params = item.get("params") or {}
        extra = ", ".join(f"{value}" for key, value in params.items() if key != "x")
        label = f"{name} {extra}".strip().replace("_", " ")
        medians[label, item["extra_info"]["elements"]] = item["stats"]["median"]
    lines = ["| call | elements | us a call | ns an element | encode of the same run is |", "|---|---|---|---|---|"]
    for (label, elements), seconds in sorted(medians.items(), key=lambda row: (row[0][1], row[0][0])):
        ours = medians.get(("encode two bit", elements))
        ratio = f"{seconds / ours:.1f} x as fast" if ours and label.startswith("peer") else ""
        lines.append(f"| {label} | {elements:,} | {seconds * 1e6:,.1f} | {seconds * 1e9 / elements:.3f} | {ratio} |")
    return lines


def main(folder: pathlib.Path) -> None:
    machine = json.loads((folder / "machine.json").read_text())
    kernels = json.loads((folder / "kernels.json").read_text())
    calls = json.loads((folder / "calls.json").read_text())
    lines = ["# Benchmark results", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in machine.items()]
    lines += ["", "## Kernels, float32, one thread, no Python (median of 15 rounds, all rows in turn)", ""]
    lines += kernel_rows(kernels)
    lines += ["", "## Calls from Python, float32, one thread unless named (median)", ""]
    lines += call_rows(calls["benchmarks"])
    (folder / "table.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
