"""Turn the JSON of the bare kernels into a Markdown table: ``python bench/table.py kernels.json``."""

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


if __name__ == "__main__":
    print("\n## Kernels, float32, one thread, no Python (median of 15 rounds, all rows in turn)\n")
    print("\n".join(kernel_rows(json.loads(pathlib.Path(sys.argv[1]).read_text()))))
