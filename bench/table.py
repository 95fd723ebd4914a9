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
        elif name.startswith("decode "):
            against = f"{ns / by_key[place, '', 'memset']:.2f} x memset"
        if name.endswith(" base3"):
            against = ", ".join(
                filter(None, [against, f"{ns / by_key[place, isa, name[:-5] + 'two_bit']:.2f} x two_bit"])
            )
        lines.append(f"| {place} | {isa} | {name} | {ns:.3f} | {against} |")
    return lines


def bounds(kernels: list[dict[str, Any]], isa: str, threads: int) -> dict[str, float]:
    """Return what calls on memory are held against, in ns an element: reads, memset, and pass 2 in the L2 cache."""
    by_key = {(row["place"], row["isa"], row["name"]): row["ns_per_element"] for row in kernels}
    suffix = "" if threads == 1 else f", {threads} threads"
    read = by_key["memory", "", f"read{suffix}"]
    pass2 = by_key["L2", isa, "encode two_bit"] / threads
    return {
        "encode": read + max(read, pass2),
        "encode resnet50": read + pass2,
        "decode": by_key["memory", "", f"memset{suffix}"],
    }


def against_bound(label: str, ns: float, limits: dict[str, float]) -> str:
    """Return the ratio of a call from memory to its bound, where it has one."""
    for name, what in (("encode resnet50", "read + pass 2 in L2"), ("encode", "read + max(read, pass 2 in L2)")):
        if label.startswith(name):
            return f"{ns / limits[name]:.2f} x ({what})"
    return f"{ns / limits['decode']:.2f} x memset" if label.startswith("decode ") and "sum" not in label else ""


def call_rows(benchmarks: list[dict[str, Any]], kernels: list[dict[str, Any]], isa: str) -> list[str]:
    medians = {}
    threads = {}
    for item in benchmarks:
        name = item["name"].partition("[")[0].removeprefix("test_")
        params = item.get("params") or {}
        extra = ", ".join(f"{value}" for key, value in params.items() if key != "x")
        label = f"{name} {extra}".strip().replace("_", " ")
        medians[label, item["extra_info"]["elements"]] = item["stats"]["median"]
        threads[label] = item["extra_info"].get("threads", 1)
    lines = [
        "| call | elements | us a call | ns an element | encode of the same run is; against |",
        "|---|---|---|---|---|",
    ]
    for (label, elements), seconds in sorted(medians.items(), key=lambda row: (row[0][1], row[0][0])):
        ours = medians.get(("encode two bit", elements))
        ratio = f"{seconds / ours:.1f} x as fast" if ours and label.startswith("peer") else ""
        if elements >= 10_000_000 and "scales" not in label:  # from memory
            ratio = ratio or against_bound(label, seconds * 1e9 / elements, bounds(kernels, isa, threads[label]))
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
    lines += call_rows(calls["benchmarks"], kernels, machine["instruction_set"])
    (folder / "table.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
