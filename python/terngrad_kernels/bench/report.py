"""What is shown of a result: tables for the terminal, Markdown and the page, progress, comparison of two runs."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

__all__ = ["Table", "compare", "markdown", "of", "progress", "select", "show", "size_name", "tables"]

Result = dict[str, Any]
Row = dict[str, Any]


class Table(NamedTuple):
    """A title, a sentence on how to read it, names of columns, and rows of text."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def size_name(elements: int) -> str:
    """Return a number of elements as people say it: 1 K, 64 K, 25.6 M."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if elements >= unit and elements & (elements - 1) == 0:
            return f"{elements // unit} {name}"
    return f"{elements / 1e6:.4g} M" if elements >= 1e6 else str(elements)


def time_name(seconds: float) -> str:
    """Return a time with three figures and its unit."""
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}" if seconds < 1000 * unit else f"{seconds / unit:.0f} {name}"
    return f"{seconds * 1e9:.3g} ns"


def spread(row: Row) -> float:
    """Return the distance of the quartiles, as a share of the median."""
    seconds = row["seconds"]
    return float((seconds["q3"] - seconds["q1"]) / seconds["median"])


def bound_name(row: Row) -> str:
    """Say what a row's bound is, without the numbers of bytes."""
    return re.sub(r" of [\d.e+-]+ MB", "", row["bound"]["what"])


def select(result: Result, section: str, **fields: Any) -> list[Row]:
    """Return the rows of a section whose fields have these values."""
    rows = (row for row in result["rows"] if row["section"] == section)
    return [row for row in rows if all(row[key] == value for key, value in fields.items())]


def of(result: Result, section: str, **fields: Any) -> Row:
    """Return the one row of a section whose fields have these values.

    Raises
    ------
    LookupError
        If there is none, or there are several.
    """
    rows = select(result, section, **fields)
    if len(rows) != 1:
        raise LookupError(f"{section} {fields}: {len(rows)} rows")
    return rows[0]


def _operation(row: Row) -> str:
    packed = f" {row['packing']}" if row["packing"] == "base3" else ""
    return f"{row['operation']}{packed}{'' if row['cache'] == 'warm' else ', L2 flushed'}"


def _measured(row: Row) -> tuple[str, ...]:
    rate = f"{row['bytes'] / row['seconds']['median'] / 1e9:.1f}" if row.get("bytes") else ""
    ratio = f"{row['ratio']:.2f} x" if "ratio" in row else ""
    bound = bound_name(row) if "bound" in row else ""
    return (
        time_name(row["seconds"]["median"]),
        f"{spread(row):.0%}",
        f"{row['ns_per_element']:.3f}",
        rate,
        ratio,
        bound,
    )


_MEASURED = ("a call", "spread", "ns/element", "GB/s", "of bound", "bound, measured in turn")


def tables(result: Result) -> list[Table]:
    """Lay out a result.

    Parameters
    ----------
    result : dict
        As ``--json`` writes it.

    Returns
    -------
    list of Table
        Of the sections that were measured.
    """
    made = []

    def add(section: str, title: str, note: str, names: Sequence[str], first: Callable[[Row], tuple[str, ...]]) -> None:
        rows = [(*first(row), *_measured(row)) for row in select(result, section)]
        if rows:
            made.append(Table(title, note, (*names, *_MEASURED), rows))

    peers = select(result, "peers")
    if peers:
        made.append(_peers(peers))
    add(
        "operations",
        "Operations by size",
        "One thread, float32. The bound of a small call is the framework's own x + 1.",
        ("operation", "elements"),
        lambda row: (_operation(row), size_name(row["elements"])),
    )
    add(
        "dtypes",
        "Operations by dtype",
        "One thread.",
        ("operation", "dtype", "elements"),
        lambda row: (_operation(row), row["dtype"], size_name(row["elements"])),
    )
    add(
        "models",
        "Networks, all layers in one call",
        "float32, one scale per layer.",
        ("network", "layers", "elements", "operation", "threads"),
        lambda row: (
            row["model"],
            str(row["layers"]),
            f"{row['elements'] / 1e6:.1f} M",
            _operation(row),
            str(row["threads"]),
        ),
    )
    add(
        "layers",
        "Operations by layers",
        "One thread, float32, equal layers in one call, a scale each.",
        ("operation", "elements", "layers"),
        lambda row: (_operation(row), size_name(row["elements"]), str(row["layers"])),
    )
    add(
        "threads",
        "Operations by threads",
        "float32; the bound has as many threads.",
        ("operation", "elements", "threads"),
        lambda row: (_operation(row), size_name(row["elements"]), str(row["threads"])),
    )
    small = select(result, "frameworks")
    if small:
        made.append(_frameworks(small))
    add(
        "memory",
        "Memory",
        "What the same bytes take with nothing computed: the bounds are made of these.",
        ("work", "elements", "threads"),
        lambda row: (row["operation"], size_name(row["elements"]), str(row["threads"])),
    )
    return made


def _peers(rows: list[Row]) -> Table:
    fastest = {row["cache"]: row["seconds"]["median"] for row in rows if row["operation"] == "terngrad_kernels"}
    lines = []
    for row in sorted(rows, key=lambda row: row["seconds"]["median"]):
        verdict = row["check"]
        unbiased, independent = (verdict["unbiased"], verdict["independent"]) if verdict else ("no draw", "no draw")
        lines.append(
            (
                _operation(row),
                time_name(row["seconds"]["median"]),
                f"{spread(row):.0%}",
                f"{row['ns_per_element']:.2f}",
                f"{row['seconds']['median'] / fastest[row['cache']]:.1f} x" if row["cache"] in fastest else "",
                f"{row['bits']:g}",
                unbiased,
                independent,
                row["says"],
            )
        )
    note = (
        f"{size_name(rows[0]['elements'])} elements, one thread. Unbiased: means of 200 draws against the clipped "
        "gradient; independent: variances and products of draws against those of independent ones; a right peer is "
        "called wrong with probability 1e-6."
    )
    header = (
        "peer",
        "a call",
        "spread",
        "ns/element",
        "against ours",
        "bits",
        "unbiased",
        "independent",
        "what it does",
    )
    return Table("What one would use instead", note, header, lines)


def _frameworks(rows: list[Row]) -> Table:
    names = list(dict.fromkeys(row["framework"] for row in rows))
    operations = list(dict.fromkeys(row["operation"] for row in rows))
    lines = []
    for name in names:
        mine = {row["operation"]: row for row in rows if row["framework"] == name}
        times = [f"{mine[key]['seconds']['median'] * 1e6:.2f}" if key in mine else "" for key in operations]
        lines.append((name, *times, f"{next(iter(mine.values()))['bound']['seconds'] * 1e6:.2f}"))
    note = (
        f"Microseconds per call of {rows[0]['elements']:,} float32 elements, compared with the framework's own x + 1."
    )
    return Table("What a call costs in each framework", note, ("framework", *operations, "x + 1"), lines)


def machine_lines(result: Result) -> list[str]:
    """Describe the machine and the circumstances in a few lines."""
    machine, noise = result["machine"], result["noise"]
    devices = ", ".join(map(str, machine["devices"]))
    probes = " and ".join(f"{probe} us" for probe in noise["clock_probe_us"])
    return [
        f"{machine['processor']} (family {machine['family']}), {machine['cores']} cores, "
        f"{', '.join(machine['caches'])}",
        f"terngrad_kernels {machine['version']}, {machine['instruction_set']} of "
        f"{', '.join(machine['instruction_sets_here'])}, {machine['compiler']}, Python {machine['python']}, "
        f"NumPy {machine['numpy']}; devices: {devices}",
        f"{noise['start']} to {noise['end']}; load {noise['load_at_start']} at the start, "
        f"{noise['load_at_end']} at the end; other processes {noise['others']:.1%}, hypervisor "
        f"{noise['steal']:.1%} of the time; governor {noise['governor']}; "
        f"turbo {noise['turbo']}; clock probe {probes}",
    ]


def markdown(result: Result) -> str:
    """Return the tables as Markdown."""
    lines = ["# Benchmark results", "", *(f"- {line}" for line in machine_lines(result))]
    lines += [f"- **{warning}**" for warning in result["warnings"]] + [
        f"- left out: {what}" for what in result["left_out"]
    ]
    for table in tables(result):
        lines += ["", f"## {table.title}", "", table.note, ""]
        lines += [f"| {' | '.join(cells)} |" for cells in (table.header, ["---"] * len(table.header), *table.rows)]
    return "\n".join(lines) + "\n"


# ---- on the terminal


def _rich() -> bool:
    return importlib.util.find_spec("rich") is not None


def show(shown: Iterable[Table], lines: Sequence[str], warnings: Sequence[str]) -> None:
    """Print tables, with rich where it is installed.

    Parameters
    ----------
    shown : iterable of Table
        In this order.
    lines, warnings : sequence of str
        What comes first.
    """
    if _rich():
        from rich.console import Console
        from rich.table import Table as RichTable

        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = 160
        for line in lines:
            console.print(line, style="dim", markup=False)
        for warning in warnings:
            console.print(f"warning: {warning}", style="yellow", markup=False)
        for table in shown:
            drawn = RichTable(title=table.title, caption=table.note, title_justify="left", caption_justify="left")
            for name, cells in zip(table.header, zip(*table.rows, strict=True), strict=True):
                drawn.add_column(name, justify="right" if _numbers(cells) else "left")
            for cells in table.rows:
                wrong = any(cell in _WRONG for cell in cells)
                drawn.add_row(*cells, style="red" if wrong else None)
            console.print(drawn)
        return
    for line in [*lines, *(f"warning: {warning}" for warning in warnings)]:
        print(line)
    for table in shown:
        print(f"\n{table.title}\n{table.note}")
        right = [_numbers(cells) for cells in zip(*table.rows, strict=True)]
        widths = [max(map(len, cells)) for cells in zip(table.header, *table.rows, strict=True)]
        for row in (table.header, *table.rows):
            padded = (f"{c:>{w}}" if r else f"{c:<{w}}" for c, w, r in zip(row, widths, right, strict=True))
            print("  ".join(padded).rstrip())


_WRONG = ("BIASED", "CORRELATED", "WRONG LEVELS", "slower")


def _numbers(cells: Sequence[str]) -> bool:
    return all(not cell or cell[0].isdigit() or cell[0] in "+-" for cell in cells)


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Show how far it is, on the standard error stream; gives what to call for each row, with its name.

    Parameters
    ----------
    total : int
        Rows that will come.

    Yields
    ------
    callable
        Takes the name of what was done.
    """
    if _rich() and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda name: bar.update(task, advance=1, description=name)
        return
    done = 0

    def step(name: str) -> None:
        nonlocal done
        done += 1
        if done * 20 // total > (done - 1) * 20 // total:
            print(f"{done} of {total}: {name}", file=sys.stderr, flush=True)

    yield step


# ---- two runs

_KEY = (
    "section",
    "operation",
    "model",
    "elements",
    "layers",
    "dtype",
    "packing",
    "framework",
    "device",
    "threads",
    "cache",
)
#: Changes below are not called changes, whatever the spread says.
LEAST_CHANGE = 0.05


class Change(NamedTuple):
    """One row in two runs: ratios of new to old, of the time and of the bound, and what that means."""

    row: Row
    time: float
    bound: float
    noise: float
    verdict: str


def compare(new: Result, old: Result) -> tuple[list[Change], list[str]]:
    """Hold a run against an older one, row by row.

    A change counts if it is more than 5 % and more than the spreads of both runs (distance of the quartiles, root of
    the sum of squares). Where the bound, measured in turn with the row, has moved likewise and takes the change away,
    the machine has changed and not the program.

    Parameters
    ----------
    new, old : dict
        As ``--json`` writes them.

    Returns
    -------
    list of Change
        ``slower``, ``faster``, ``as its bound`` or ``same``, for each row that both have.
    list of str
        What makes the two hard to compare.
    """
    before = {tuple(row[key] for key in _KEY): row for row in old["rows"]}
    changes = []
    for row in new["rows"]:
        was = before.get(tuple(row[key] for key in _KEY))
        if was is None:
            continue
        time = row["seconds"]["median"] / was["seconds"]["median"]
        noise = math.hypot(spread(row), spread(was))
        bound = 1.0
        # Reads and fills alone are the machine itself.
        if row["section"] == "memory":
            verdict = _verdict(time, noise)
            changes.append(Change(row, time, time, noise, "same" if verdict == "same" else "as its bound"))
            continue
        if "bound" in row and "bound" in was:
            bound = row["bound"]["seconds"] / was["bound"]["seconds"]
        verdict = _verdict(time, noise)
        if verdict != "same" and "bound" in row and "bound" in was:
            shares = (each["bound"]["iqr"] / each["bound"]["seconds"] for each in (row, was))
            if _verdict(time / bound, math.hypot(noise, *shares)) != verdict:
                verdict = "as its bound"
        changes.append(Change(row, time, bound, noise, verdict))
    notes = []
    for key in ("processor", "family", "cores", "instruction_set", "version", "compiler", "python", "numpy"):
        if new["machine"].get(key) != old["machine"].get(key):
            notes.append(f"{key}: {old['machine'].get(key)} before, {new['machine'].get(key)} now")
    missing = len(old["rows"]) - len(changes)
    if missing:
        notes.append(f"{missing} rows of the old run are not in this one")
    return changes, notes


def _verdict(ratio: float, noise: float) -> str:
    least = max(LEAST_CHANGE, noise)
    return "slower" if ratio > 1 + least else "faster" if ratio < 1 / (1 + least) else "same"


def change_table(changes: Sequence[Change]) -> Table:
    """Lay out what has changed; rows that have not are counted."""
    order = ("slower", "faster", "as its bound")
    lines = []
    for change in sorted(changes, key=lambda change: -change.time):
        if change.verdict == "same":
            continue
        row = change.row
        where = [
            row["model"] or size_name(row["elements"]),
            row["dtype"],
            row["framework"],
            f"{row['threads']} threads",
        ]
        lines.append(
            (
                row["section"],
                _operation(row),
                ", ".join(where),
                f"{change.time - 1:+.0%}",
                f"{change.noise:.0%}",
                f"{change.bound - 1:+.0%}" if "bound" in row else "",
                change.verdict,
            )
        )
    lines.sort(key=lambda cells: order.index(cells[-1]))
    counts = {verdict: sum(change.verdict == verdict for change in changes) for verdict in (*order, "same")}
    note = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    header = ("section", "operation", "of", "time", "spread of both", "bound", "verdict")
    return Table("Against the old run", note, header, lines or [("-",) * 7])
