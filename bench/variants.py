"""Turn alternating runs of two states of the kernels into a Markdown table: ``python bench/variants.py FOLDER``.

The folder holds ``before-*.json`` and ``after-*.json``, as ``bench_kernels`` prints them.
"""

from __future__ import annotations

import json
import pathlib
import sys

Key = tuple[str, str, str]


def runs(folder: pathlib.Path, state: str) -> list[dict[Key, float]]:
    return [
        {(row["place"], row["isa"], row["name"]): row["fastest"] for row in json.loads(path.read_text())}
        for path in sorted(folder.glob(f"{state}-*.json"))
    ]


def table(folder: pathlib.Path) -> str:
    """Return the fastest round of each kernel, as the runs of each state have it, ns an element."""
    before, after = runs(folder, "before"), runs(folder, "after")
    lines = ["| where | isa | kernel | before | after |", "|---|---|---|---|---|"]
    for place, isa, name in before[0]:
        key = (place, isa, name)
        if isa == "scalar" or key not in after[0]:
            continue
        ns = [", ".join(f"{run[key]:.3f}" for run in state) for state in (before, after)]
        lines.append(f"| {place} | {isa} | {name} | {ns[0]} | {ns[1]} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(pathlib.Path(sys.argv[1])), end="")
