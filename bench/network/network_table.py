"""Turn the JSON of bench/network/run.py into a table and a plot: ``python bench/network/network_table.py JSON``."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

from links import HEADERS, SEGMENT

#: On paper, against a float32 ring (docs/distributed.md): two_bit, by strategy and workers.
PAPER = {
    ("gather", "2"): 16.0,
    ("gather", "4"): 8.0,
    ("sum", "2"): 4 / (1 / 4 + 1 / 2) * 2,
    ("sum", "4"): 4 / (1 / 4 + 1 / 2) * 2,
    ("requantize", "2"): 16.0,
    ("requantize", "4"): 16.0,
    # Two nodes of two, per node: a ring sends 6 bytes an element, each of two ranks a quarter of its half.
    ("hierarchical", "2x2"): 24.0,
}


def on_paper(case: str, workers: str) -> float | None:
    """How many times fewer bytes than float32's a strategy sends by its formula."""
    strategy, _, rest = case.partition(" ")
    ratio = PAPER.get((strategy, workers))
    if ratio is None or not rest.startswith("base3"):
        return ratio
    if strategy != "sum":
        return 1.25 * ratio
    return 4 * 2 / (1 / 5 + 1 / 2)


def rows(piece: dict[str, Any], what: str) -> list[str]:
    found = [row for row in piece["rows"] if row["what"] == what]
    plain = next((row for row in found if row["case"] == "float32" and "seconds" in row), None)
    lines = []
    for row in found:
        name = row["case"] if row["by"] == "ours" else f"{row['case']} ({row['by']})"
        if "failed" in row:
            said = row["failed"].replace("|", "/")
            lines.append(f"| {name} | {said if len(said) < 130 else said[:127] + '...'} | | | | | | |")
            continue
        ratio = plain["seconds"] / row["seconds"] if plain else 0
        paper = on_paper(row["case"], piece["workers"])
        reached = f"{ratio / paper:.2f} of {paper:.1f} x" if paper and what == "exchange" else ""
        fewer = plain["sent"] / row["sent"] if plain else 0
        computed = f"{row['computed'] / 1e6:,.3f}" if row.get("computed") else ""
        alone = f"{row['alone_seconds']:.3f}" if "alone_seconds" in row else ""
        spread = f"{row['least']:.4f} to {row['most']:.4f}"
        lines.append(
            f"| {name} | {row['seconds']:.4f} | {spread} | {ratio:.2f} x | {reached or alone} | "
            f"{row['sent'] / 1e6:,.3f} | {computed} | {fewer:.2f} x |"
        )
    return lines


def table(found: dict[str, Any]) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    lines = [
        "# Averaging over shaped links",
        "",
        f"{found['elements']:,} elements. {machine}. Seconds: median of the rounds, from the first process's start to "
        "the last one's end. Bytes a node sent: its interface's counter, beside those computed. TCP/IP's own come to "
        f"{HEADERS} bytes a frame of {SEGMENT}, {100 * HEADERS / SEGMENT:.1f} %, as the shaper charges; the counter "
        "sees larger packets before they are cut into frames, and so less of it.",
    ]
    for piece in found["pieces"]:
        title = f"{piece['gbit']:g} Gbit/s, {piece['workers']} workers"
        if piece["delay_ms"]:
            title += f", {piece['delay_ms']:g} ms"
        lines += ["", f"## {title}", ""]
        if "failed" in piece:
            lines.append(f"Not measured: {piece['failed']}")
            continue
        link = piece["link"]
        if "bandwidth" in link:
            lines.append(
                f"Link, by `measure_link`: {link['bandwidth'] / 1e9:.3f} Gbit/s, {1e3 * link['latency']:.2f} ms."
            )
        for what, fifth in (("exchange", "of its ratio on paper"), ("step", "s without averaging")):
            body = rows(piece, what)
            if body:
                lines += [
                    "",
                    f"| {what} | s | from, to | against float32 | {fifth} | MB sent | computed | fewer bytes |",
                    "|---|---|---|---|---|---|---|---|",
                    *body,
                ]
    return "\n".join(lines) + "\n"


def summary(found: dict[str, Any], what: str) -> str:
    """Return the table of docs/distributed.md: seconds, and how many times as fast as float32."""
    pieces = [piece for piece in found["pieces"] if not piece["delay_ms"]]
    by_case: dict[str, list[str]] = {}
    columns = []
    for piece in pieces:
        measured = [row for row in piece["rows"] if row["what"] == what]
        plain = next((row["seconds"] for row in measured if row["case"] == "float32" and "seconds" in row), None)
        if plain is None:
            continue
        for row in measured:
            cells = by_case.setdefault(row["case"], [])
            cells += [""] * (len(columns) - len(cells))
            if "failed" in row:
                cells.append("ends the process" if row["failed"].startswith("a process died") else "refuses")
            else:
                cells.append(f"{row['seconds']:.3f} s, {plain / row['seconds']:.1f} x")
        columns.append(f"{piece['workers']} workers, {piece['gbit']:g} Gbit/s")
    lines = [f"| {what} | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for case, cells in by_case.items():
        lines.append(f"| {case} | {' | '.join(cells + [''] * (len(columns) - len(cells)))} |")
    return "\n".join(lines) + "\n"


def plot(found: dict[str, Any], path: pathlib.Path) -> None:
    """Speed-ups of an exchange over float32's, by rate, one panel a number of workers."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "terngrad", "svg.fonttype": "none"}
    import matplotlib.pyplot as plt

    pieces = [piece for piece in found["pieces"] if "rows" in piece and not piece["delay_ms"] and "failed" not in piece]
    panels = sorted({piece["workers"] for piece in pieces})
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 4.2), sharey=True, squeeze=False)
    names = list(dict.fromkeys(row["case"] for piece in pieces for row in piece["rows"] if row["what"] == "exchange"))
    colors = dict(zip(names, plt.get_cmap("tab20").colors, strict=False))
    for axis, workers in zip(axes[0], panels, strict=True):
        for name in names:
            points = []
            for piece in pieces:
                by_case = {row["case"]: row for row in piece["rows"] if row["what"] == "exchange" and "seconds" in row}
                if piece["workers"] == workers and name in by_case and "float32" in by_case:
                    points.append((piece["gbit"], by_case["float32"]["seconds"] / by_case[name]["seconds"]))
            if points:
                ours = any(name.startswith(each) for each in ("gather", "sum", "requantize", "hierarchical"))
                axis.plot(*zip(*sorted(points), strict=True), "o-" if ours else "s--", color=colors[name], label=name)
        axis.set(xscale="log", yscale="log", title=f"{workers} workers", xlabel="Gbit/s a worker")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("times as fast as float32's exchange")
    handles = {label: line for axis in axes[0] for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="center right", fontsize=7)
    figure.tight_layout(rect=(0, 0, 1 - 0.19 * 3 / (len(panels) + 1), 1))
    figure.savefig(path, metadata={"Date": None})


def main(path: pathlib.Path) -> None:
    found = json.loads(path.read_text())
    (path.parent / "table.md").write_text(table(found))
    plot(found, path.parent / "plot.svg")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
