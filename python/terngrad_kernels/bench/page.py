"""One self-contained page of a result: what stands out, plots (by matplotlib, as SVG in the page), and all tables."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from .report import Result, Row, Table, bound_name, machine_lines, select, size_name, time_name

__all__ = ["PLOTS", "render"]

# Stand-ins in the SVG for what the page's style sets, in light and in dark.
_INK, _FAINT, _PAPER = "#010203", "#040506", "#070809"
_COLOURS = {
    "encode": "#2f6fde",
    "decode": "#d9822b",
    "scales": "#3a9d5d",
    "decode_sum": "#a855c7",
    "sum_trits": "#c0392b",
    "repack": "#6b7a90",
    "ternarize": "#1798a5",
    "accumulate": "#b58900",
    "clip": "#8d5524",
    "pack": "#e377a2",
    "unpack": "#7f9f3f",
}
_KINDS = ("#2f6fde", "#d9822b", "#9dbcf2", "#3a9d5d")
_WRONG = "#d64545"
_OURS = _COLOURS["encode"]
_NEUTRAL = "#8fa0b8"


def _axes(height: float = 3.9, width: float = 5.6) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.grid(True, color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0, which="both")
    for side, line in axes.spines.items():
        line.set_visible(side == "bottom")
        line.set_color(_INK)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    return figure, axes


def _svg(figure: Any, name: str, title: str) -> str:
    """Return the SVG element, in the page's colours and letters, with ids of its own."""
    import matplotlib

    buffer = io.BytesIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 11}
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{title}">', text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = text.replace(_INK, "var(--ink)").replace(_FAINT, "var(--line)").replace(_PAPER, "var(--paper)")
    return re.sub(r"\d+\.\d{4,}", lambda number: f"{float(number[0]):.3f}".rstrip("0").rstrip("."), text)


def _legend(axes: Any, columns: int = 3) -> None:
    """Below the plot, where no data are."""
    axes.figure.legend(frameon=False, labelcolor=_INK, loc="outside lower center", ncols=columns, fontsize=9.5)


def _sizes(axes: Any, sizes: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [size_name(size) for size in sizes], rotation=30, ha="right")
    axes.minorticks_off()


def _plain_log(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _one_cache(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["cache"] == "warm"]


def roofline(result: Result) -> Any:
    """Elements a second against elements a byte moved, under what memory and arithmetic allow."""
    rows = _one_cache(select(result, "operations"))
    sizes = sorted(
        {row["elements"] for row in rows if row.get("bytes") and "bound" in row and row["elements"] >= 1 << 14}
    )
    if not sizes:
        return None
    figure, axes = _axes(height=5)
    small, large = min(sizes, key=lambda size: abs(size - (1 << 16))), sizes[-1]
    reach = (0.06, 1.2)
    for size, style, where in ((large, "-", "memory"), (small, "--", "the L2 cache")):
        for row in _one_cache(select(result, "memory", elements=size, threads=1, operation="read")):
            rate = row["bytes"] / row["seconds"]["median"] / 1e9
            axes.plot(reach, [rate * x for x in reach], style, color=_INK, linewidth=1.2)
            label = f"read from {where}: {rate:.0f} GB/s"
            place = {"xytext": (-4, 6), "textcoords": "offset points", "ha": "right", "fontsize": 9}
            axes.annotate(label, (reach[1], rate * reach[1]), color=_INK, **place)
    for name, color in _COLOURS.items():
        for row in rows:
            if (row["operation"], row["packing"]) == (name, "two_bit") and row["elements"] in (small, large):
                filled = row["elements"] == large
                axes.plot(
                    row["elements"] / row["bytes"],
                    row["elements"] / row["seconds"]["median"] / 1e9,
                    "o",
                    markersize=8,
                    color=color,
                    markerfacecolor=color if filled else "none",
                    label=name if filled else None,
                )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([0.0625, 0.125, 0.25, 0.5, 1], ["1/16", "1/8", "1/4", "1/2", "1"])
    axes.minorticks_off()
    _plain_log(axes.yaxis)
    axes.set_xlabel("elements for each byte moved")
    axes.set_ylabel("billion elements a second")
    _legend(axes)
    return figure


def sizes(result: Result) -> Any:
    """Time an element against size, with the bound of encode."""
    rows = [row for row in _one_cache(select(result, "operations")) if row["packing"] == "two_bit"]
    if not rows:
        return None
    figure, axes = _axes()
    for name in ("scales", "encode", "decode", "decode_sum", "sum_trits", "repack"):
        color = _COLOURS[name]
        line = sorted((row for row in rows if row["operation"] == name), key=lambda row: int(row["elements"]))
        x = [row["elements"] for row in line]
        scale = [1e9 / row["elements"] for row in line]
        axes.plot(x, [row["ns_per_element"] for row in line], "o-", color=color, linewidth=2, markersize=4, label=name)
        low = [row["seconds"]["q1"] * each for row, each in zip(line, scale, strict=True)]
        high = [row["seconds"]["q3"] * each for row, each in zip(line, scale, strict=True)]
        axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
        if name in ("encode", "decode"):
            bound = [row["bound"]["seconds"] * each for row, each in zip(line, scale, strict=True)]
            axes.plot(x, bound, ":", color=color, linewidth=1.6, label=f"bound of {name}")
    _sizes(axes, sorted({row["elements"] for row in rows}))
    axes.set_yscale("log")
    _plain_log(axes.yaxis)
    axes.set_xlabel("elements")
    axes.set_ylabel("ns an element")
    _legend(axes)
    return figure


def peers(result: Result) -> Any:
    """Bars of what one would use instead; those whose draws are wrong are hatched."""
    rows = sorted(_one_cache(select(result, "peers")), key=lambda row: -float(row["seconds"]["median"]))
    if not rows:
        return None
    figure, axes = _axes(height=0.36 * len(rows) + 1)
    for i, row in enumerate(rows):
        verdict = row["check"] or {"unbiased": "", "independent": ""}
        wrong = [word for word in (verdict["unbiased"], verdict["independent"]) if word.isupper()]
        ours = row["operation"] == "terngrad_kernels"
        color = _OURS if ours else _WRONG if wrong else _NEUTRAL
        seconds = row["seconds"]
        axes.barh(i, row["ns_per_element"], 0.68, color=color, hatch="////" if wrong else None, edgecolor=_PAPER)
        ends = [row["ns_per_element"] * seconds[key] / seconds["median"] for key in ("q1", "q3")]
        axes.plot(ends, [i, i], color=_INK, linewidth=1.4)
        label = " ".join([f" {row['ns_per_element']:.3g}", *(f"· {word.lower()}" for word in wrong)])
        axes.annotate(
            label, (max(ends), i), xytext=(3, 0), textcoords="offset points", va="center", color=_INK, fontsize=9
        )
    axes.set_yticks(range(len(rows)), [row["operation"] for row in rows])
    axes.set_xscale("log")
    axes.set_xlim(min(row["ns_per_element"] for row in rows) / 2, max(row["ns_per_element"] for row in rows) * 4)
    _plain_log(axes.xaxis)
    axes.grid(False, axis="y")
    axes.set_xlabel("ns an element (shorter is faster; a logarithmic scale)")
    return figure


def threads(result: Result) -> Any:
    """Time an element against threads, with bounds."""
    rows = select(result, "threads")
    size = max((row["elements"] for row in rows), default=0)
    if len({row["threads"] for row in rows}) < 2:
        return None
    figure, axes = _axes()
    rows = [row for row in rows if row["elements"] == size]
    for name in ("scales", "encode", "decode", "decode_sum"):
        color = _COLOURS[name]
        line = sorted((row for row in rows if row["operation"] == name), key=lambda row: int(row["threads"]))
        x = [row["threads"] for row in line]
        axes.plot(x, [row["ns_per_element"] for row in line], "o-", color=color, linewidth=2, label=name)
        axes.plot(x, [r["bound"]["seconds"] / size * 1e9 for r in line], ":", color=color, linewidth=1.4)
    counts = sorted({row["threads"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("threads (dotted: the bound with as many)")
    axes.set_ylabel("ns an element")
    _legend(axes)
    return figure


def layers(result: Result) -> Any:
    """Time an element against the number of layers that the same elements are shared out to."""
    rows = _one_cache(select(result, "layers"))
    if not rows:
        return None
    figure, axes = _axes()
    for name in dict.fromkeys(row["operation"] for row in rows):
        line = [row for row in rows if row["operation"] == name]
        x, color = [row["layers"] for row in line], _COLOURS[name]
        axes.plot(x, [row["ns_per_element"] for row in line], "o-", color=color, linewidth=2, label=name)
        axes.plot(x, [row["bound"]["seconds"] / row["elements"] * 1e9 for row in line], ":", color=color, linewidth=1.4)
    counts = sorted({row["layers"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"layers of {size_name(rows[0]['elements'])} elements in all (dotted: the bound)")
    axes.set_ylabel("ns an element")
    _legend(axes)
    return figure


def models(result: Result) -> Any:
    """Time an element of each network's layers, in one call."""
    rows = [row for row in _one_cache(select(result, "models")) if row["operation"] in ("encode", "decode")]
    if not rows:
        return None
    figure, axes = _axes()
    names = list(dict.fromkeys(row["model"] for row in rows))
    kinds = list(dict.fromkeys((row["operation"], row["threads"]) for row in rows))
    kinds.sort()
    width = 0.8 / len(kinds)
    shades = {"encode": ("#2f6fde", "#9dbcf2"), "decode": ("#d9822b", "#f0c79b")}
    for k, (operation, count) in enumerate(kinds):
        fields = [r for n in names for r in rows if (r["model"], r["operation"], r["threads"]) == (n, operation, count)]
        x = [names.index(row["model"]) + (k - (len(kinds) - 1) / 2) * width for row in fields]
        color = shades[operation][0 if count == 1 else 1]
        label = f"{operation}, {count} thread{'s' if count > 1 else ''}"
        axes.bar(x, [row["ns_per_element"] for row in fields], width * 0.92, color=color, label=label)
        for where, row in zip(x, fields, strict=True):
            bound = row["bound"]["seconds"] / row["elements"] * 1e9
            axes.plot([where - width * 0.46, where + width * 0.46], [bound, bound], color=_INK, linewidth=1.6)
    layers = {row["model"]: (row["layers"], row["elements"]) for row in rows}
    labels = [f"{name}\n{layers[name][0]} layers\n{layers[name][1] / 1e6:.1f} M" for name in names]
    axes.set_xticks(range(len(names)), labels, fontsize=9)
    axes.grid(False, axis="x")
    axes.set_ylabel("ns an element (line: the bound)")
    _legend(axes)
    return figure


def frameworks(result: Result) -> Any:
    """What a call of 1,024 elements costs in each framework."""
    rows = select(result, "frameworks")
    if not rows:
        return None
    names = list(dict.fromkeys(row["framework"] for row in rows))[::-1]
    kinds = list(dict.fromkeys(row["operation"] for row in rows))
    figure, axes = _axes(height=0.62 * len(names) + 1.2)
    width = 0.8 / len(kinds)
    for k, kind in enumerate(kinds):
        mine = [row for row in rows if row["operation"] == kind]
        y = [names.index(row["framework"]) - (k - (len(kinds) - 1) / 2) * width for row in mine]
        axes.barh(y, [row["seconds"]["median"] * 1e6 for row in mine], width * 0.9, color=_KINDS[k], label=kind)
    for i, name in enumerate(names):
        floor = next(row["bound"]["seconds"] for row in rows if row["framework"] == name) * 1e6
        axes.plot(
            [floor, floor], [i - 0.42, i + 0.42], color=_INK, linewidth=1.8, label="own x + 1" if i == 0 else None
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_xscale("log")
    _plain_log(axes.xaxis)
    axes.grid(False, axis="y")
    axes.set_xlabel("microseconds a call (a logarithmic scale)")
    _legend(axes)
    return figure


#: Name, title, caption, and what draws it.
PLOTS: tuple[tuple[str, str, str, Callable[[Result], Any]], ...] = (
    (
        "peers",
        "What one would use instead",
        "Encoding the same gradient on one thread, all in alternation. Hatched red: its draws failed the check, with "
        "the reason next to the bar. Casts quantise nothing and are there for context.",
        peers,
    ),
    (
        "roofline",
        "Roofline",
        "Filled: from memory; open: in the L2 cache; lines: a plain read, one thread. What is on its line is bound "
        "by memory; what draws random bits (encode, ternarize, repack) is bound by arithmetic in the cache.",
        roofline,
    ),
    (
        "sizes",
        "Time against size",
        "One thread. Small calls pay for the call itself, large ones for memory. Bands: quartiles of the rounds; "
        "dotted: the bound, measured in turn.",
        sizes,
    ),
    ("models", "Networks", "All layers in one call, one scale per layer.", models),
    ("layers", "Layers", "The same elements, shared out to one layer and to thousands in one call.", layers),
    ("threads", "Threads", "The same work shared out; memory is shared too.", threads),
    (
        "frameworks",
        "A small call",
        "1,024 elements: the cost of the call, in the arrays of each framework.",
        frameworks,
    ),
)

_STYLE = """
:root { --ink: #1c2733; --soft: #5b6b7c; --line: #dfe5ec; --paper: #ffffff; --wash: #f5f7fa; --accent: #2f6fde;
  --wrong: #c23b3b; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e9f0; --soft: #9fb0c2; --line: #2e3946; --paper: #12181f;
  --wash: #1a222c; --accent: #7fa8f5; --wrong: #f08080; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 0 0 .25rem; }
p { margin: .25rem 0; }
.soft, figcaption { color: var(--soft); font-size: .875rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: .75rem; margin: 1.5rem 0; }
.tile { background: var(--wash); border-radius: 10px; padding: .9rem 1rem; }
.tile b { display: block; font-size: 1.6rem; line-height: 1.25; color: var(--accent); }
.warn { border-left: 4px solid #d9822b; background: var(--wash); padding: .6rem 1rem; margin: 1rem 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 2rem 2.5rem; }
figure { margin: 0; min-width: 0; }
svg { width: 100%; height: auto; display: block; margin: .5rem 0; font-family: inherit; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
details { border-top: 1px solid var(--line); padding: .6rem 0; }
summary { cursor: pointer; font-weight: 600; }
.scroll { overflow-x: auto; margin-top: .5rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .3rem .7rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; }
th:first-child, td:first-child, .text { text-align: left; }
tr.wrong td { color: var(--wrong); }
tr.ours td { font-weight: 600; }
section { margin-top: 2.5rem; }
"""


def _tiles(result: Result) -> list[tuple[str, str]]:
    """What stands out: a figure and what it is of."""
    tiles = []
    rows = [row for row in _one_cache(select(result, "operations")) if row["packing"] == "two_bit"]
    if rows:
        large = max(row["elements"] for row in rows)
        for name in ("encode", "decode"):
            for row in (row for row in rows if row["operation"] == name and row["elements"] == large):
                of_bound = f"{row['ratio']:.2f} x its bound ({bound_name(row)})"
                what = f"{name} of {size_name(large)} elements, one thread: {of_bound}"
                tiles.append((f"{row['ns_per_element']:.3f} ns", f"an element: {what}"))
    others = _one_cache(select(result, "peers"))
    ours = next((row for row in others if row["operation"] == "terngrad_kernels"), None)
    right = [
        row
        for row in others
        if row is not ours
        and row["check"]
        and (row["check"]["unbiased"], row["check"]["independent"]) == ("yes", "yes")
    ]
    if ours and right:
        best = min(right, key=lambda row: float(row["seconds"]["median"]))
        times = best["seconds"]["median"] / ours["seconds"]["median"]
        tiles.append((f"{times:.0f} x as fast", f"as the fastest peer whose draws are right, {best['operation']}"))
    for row in select(result, "frameworks", framework="numpy", operation="encode, out="):
        tiles.append(
            (time_name(row["seconds"]["median"]), f"a call of {row['elements']:,} elements from Python, NumPy")
        )
    return tiles


def _table(table: Table) -> str:
    lines = [f"<details><summary>{html.escape(table.title)}</summary><p class=soft>{html.escape(table.note)}</p>"]
    text = [any(cells[i][:1].isalpha() for cells in table.rows) for i in range(len(table.header))]
    kind = [" class=text" if is_text else "" for is_text in text]
    lines.append("<div class=scroll><table><thead><tr>")
    lines += [f"<th{how}>{html.escape(name)}</th>" for name, how in zip(table.header, kind, strict=True)]
    lines.append("</tr></thead><tbody>")
    for cells in table.rows:
        wrong = any(cell in ("BIASED", "CORRELATED", "WRONG LEVELS", "slower") for cell in cells)
        mark = " class=wrong" if wrong else " class=ours" if cells[0] == "terngrad_kernels" else ""
        inside = "".join(f"<td{how}>{html.escape(cell)}</td>" for cell, how in zip(cells, kind, strict=True))
        lines.append(f"<tr{mark}>{inside}</tr>")
    lines.append("</tbody></table></div></details>")
    return "".join(lines)


def render(result: Result, shown: Sequence[Table]) -> str:
    """Return the page.

    Parameters
    ----------
    result : dict
        As ``--json`` writes it.
    shown : sequence of Table
        The tables below the plots.

    Returns
    -------
    str
        HTML that loads nothing.
    """
    lines = [html.escape(line) for line in machine_lines(result)]
    body = ["<h1>terngrad_kernels, measured</h1>", *(f"<p class=soft>{line}</p>" for line in lines)]
    if result["warnings"]:
        body.append(f"<div class=warn>{'<br>'.join(map(html.escape, result['warnings']))}</div>")
    body.append("<div class=tiles>")
    body += [f"<div class=tile><b>{html.escape(b)}</b>{html.escape(text)}</div>" for b, text in _tiles(result)]
    body.append("</div><div class=plots>")
    for name, title, caption, draw in PLOTS:
        figure = draw(result)
        if figure is not None:
            drawn = _svg(figure, name, title)
            body.append(
                f"<figure id={name}><h2>{title}</h2>{drawn}<figcaption>{html.escape(caption)}</figcaption></figure>"
            )
    body.append("</div><section><h2>All figures</h2>")
    body += map(_table, shown)
    body.append(
        "</section><section><h2>How it was measured</h2><p>Everything in one table row group took turns, round "
        "after round; a figure is the median of its rounds, its spread the distance of the quartiles over the "
        "median. A bound is what a plain read (memchr), fill (memset) or both take for the bytes that the "
        "operation must move, in the same rounds. On a shared machine only ratios of one run mean anything.</p>"
    )
    if result["left_out"]:
        body.append(
            "<p>Left out:</p><ul>" + "".join(f"<li>{html.escape(what)}</li>" for what in result["left_out"]) + "</ul>"
        )
    body.append("<p class=soft>Made by <code>python -m terngrad_kernels bench</code>.</p></section>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>terngrad_kernels, measured</title><style>{_STYLE}</style></head>\n<body><main>"
        + "\n".join(body)
        + "</main></body></html>\n"
    )
