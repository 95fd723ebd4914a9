"""Draws docs/pictures/*.svg, those of docs/idea.md, from what the package computes: ``python docs/draw.py``.

Their bits are the same on every machine, so a test compares the committed files with what this draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import terngrad_kernels as tk

PICTURES = Path(__file__).parent / "pictures"

#: One layer of a worker: 16 elements, one of them far out.
GRADIENT = np.array(
    [0.12, -0.3, 0.05, 0.22, -0.08, 1.4, 0.0, -0.18, 0.34, -0.02, 0.26, -0.42, 0.09, 0.15, -0.24, 0.03], np.float32
)
STEP = 2
WIDTH = 480  # on a phone it shrinks to about 350, where text of 15 is still 11
INK, PALE, PLUS, MINUS, RED = "#1f2933", "#c3ccd5", "#1b7f5c", "#2b62b5", "#c0392b"


def text(x: float, y: float, words: str, size: int = 15, colour: str = INK, anchor: str = "middle") -> str:
    """One line of words."""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}">{words}</text>'


def box(x: float, y: float, width: float, height: float, fill: str, stroke: str = "none", radius: float = 2) -> str:
    """A rectangle."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" fill="{fill}" '
        f'stroke="{stroke}"/>'
    )


def line(x1: float, y1: float, x2: float, y2: float, colour: str = INK, more: str = "") -> str:
    """A line; `more` may give it an arrow's head or dashes."""
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}" stroke-width="1.5" {more}/>'


ARROW = 'marker-end="url(#head)"'
DASHED = 'stroke-dasharray="5 4"'


def svg(height: int, title: str, parts: Iterator[str]) -> str:
    """A whole picture, on a light card of its own, so that it also shows on a dark page."""
    head = (
        f'<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{INK}"/></marker>'
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif" role="img">',
        f"<title>{title}</title>",
        f"<defs>{head}</defs>",
        box(0.5, 0.5, WIDTH - 1, height - 1, "#fdfdfb", PALE, 8),
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def column(i: int) -> float:
    """Middle of element i's column, where 16 stand side by side."""
    return 52 + 26 * i


def bars(values: np.ndarray, zero: float, unit: float, colour: str, width: float = 16) -> Iterator[str]:
    """A bar an element, up or down from `zero`; `unit` is the height of 1."""
    for i, value in enumerate(values.tolist()):
        height = abs(value) * unit
        if height:
            yield box(column(i) - width / 2, zero - height if value > 0 else zero, width, height, colour)


def draw_gradient() -> str:
    """The layer, its limits, and what clipping takes away."""
    scale, limit = (float(field[0]) for field in tk.scales(GRADIENT))
    clipped = tk.clip(GRADIENT)
    zero, unit = 185, 95

    def parts() -> Iterator[str]:
        yield text(20, 30, "A layer's gradient g, clipped to ± 2.5 times its root mean square", 14, anchor="start")
        yield from bars(GRADIENT, zero, unit, "#f0b7ae")
        yield from bars(clipped, zero, unit, "#52606d")
        yield line(36, zero, 462, zero)
        for sign in (1, -1):
            y = zero - sign * limit * unit
            yield line(36, y, 462, y, RED, DASHED)
            yield text(462, y - 6, f"{'+' if sign > 0 else '&#8722;'} {limit:.3f}", 13, RED, "end")
        yield text(20, 310, f"scale s = largest |g| after clipping = {scale:.3f}", 14, anchor="start")

    return svg(328, "A gradient of 16 elements, one of them clipped", parts())


def draw_trits() -> str:
    """The chance of each element to fire, and what four steps drew."""
    scale = float(tk.scales(GRADIENT).scale[0])
    chance = np.abs(tk.clip(GRADIENT)) / np.float32(scale)
    zero, unit = 140, 85

    def parts() -> Iterator[str]:
        yield text(20, 30, "Each element fires with the chance |g| / s ...", 14, anchor="start")
        for i in range(16):
            yield box(column(i) - 8, zero - unit, 16, unit, "#eef1f4")
        yield from bars(chance, zero, unit, "#52606d")
        yield line(36, zero, 462, zero)
        yield text(30, zero - unit + 5, "1", 13, anchor="end")
        yield text(30, zero + 5, "0", 13, anchor="end")
        yield text(20, 176, "... and then sends its sign. Four steps drew:", 14, anchor="start")
        for step in range(4):
            trits = tk.ternarize(GRADIENT, seed=0, offset=STEP + step)[0]
            y = 192 + 34 * step
            for i, trit in enumerate(trits.tolist()):
                colour = {1: PLUS, 0: "#eef1f4", -1: MINUS}[trit]
                yield box(column(i) - 12, y, 24, 26, colour, radius=4)
                yield text(
                    column(i), y + 18, {1: "+1", 0: "0", -1: "&#8722;1"}[trit], 13, INK if trit == 0 else "#ffffff"
                )
            yield text(34, y + 18, str(STEP + step), 13, anchor="end")

    return svg(340, "Chances to fire, and the trits drawn in four steps", parts())


def draw_bytes() -> str:
    """The message of the first of those steps, every byte of it."""
    packed = tk.encode(GRADIENT, seed=0, offset=STEP)
    trits = tk.ternarize(GRADIENT, seed=0, offset=STEP)[0]
    scale_at, payload_at = packed.layout.pieces[0].scale_at, packed.layout.pieces[0].payload_at
    assert (scale_at, payload_at, packed.layout.nbytes) == (0, 16, 32)

    def parts() -> Iterator[str]:
        yield text(20, 30, "Two bits a trit: 01 is +1, 11 is &#8722;1, 00 is 0. Four share a byte", 14, anchor="start")
        for row in range(4):
            for col in range(4):
                trit = int(trits[4 * row + col])
                x, y = 140 + 70 * col, 48 + 32 * row
                yield box(x, y, 58, 26, {1: PLUS, 0: "#eef1f4", -1: MINUS}[trit], radius=4)
                colour = INK if trit == 0 else "#ffffff"
                yield text(x + 29, y + 18, {1: "01", 0: "00", -1: "11"}[trit], 15, colour)
            yield text(128, 66 + 32 * row, f"elements {4 * row} to {4 * row + 3}", 12, anchor="end")
        for col in range(4):
            yield line(169 + 70 * col, 178, 169 + 70 * col, 200, more=ARROW)
            yield text(169 + 70 * col, 218, f"0x{int(packed.data[payload_at + col]):02x}", 15)
        yield text(20, 256, "The message: what any collective can carry", 14, anchor="start")
        for i, value in enumerate(packed.data.tolist()):
            x, y = 32 + 26 * (i % 16), 270 + 34 * (i // 16)
            field = "#ffe3a8" if i < 4 else "#cfe8dd" if payload_at <= i < payload_at + 4 else "#f4f6f8"
            yield box(x, y, 26, 28, field, PALE, 0)
            yield text(x + 13, y + 19, f"{value:02x}", 13)
        yield box(32, 346, 14, 14, "#ffe3a8", PALE)
        yield text(52, 358, "scale, a float32", 13, anchor="start")
        yield box(182, 346, 14, 14, "#cfe8dd", PALE)
        yield text(202, 358, "trits", 13, anchor="start")
        yield box(262, 346, 14, 14, "#f4f6f8", PALE)
        yield text(282, 358, "zeros up to multiples of 16", 13, anchor="start")

    return svg(376, "The codes of 16 trits, the four bytes they make, and the message", parts())


def draw_average() -> str:
    """What the average of several workers' messages comes to."""
    clipped = tk.clip(GRADIENT)

    def parts() -> Iterator[str]:
        yield text(20, 30, "The average of workers closes in on the gradient", 14, anchor="start")
        for row, workers in enumerate((1, 8, 64, 512)):
            zero, unit = 96 + 112 * row, 60
            sent = [tk.encode(GRADIENT, seed=worker, offset=STEP) for worker in range(workers)]
            mean = tk.decode_sum(sent, weights=[1 / workers] * workers)
            yield text(20, zero - 46, f"{workers} worker{'s' if workers > 1 else ''}", 13, anchor="start")
            yield from bars(mean, zero, unit, "#9fd0ba")
            for i, value in enumerate(clipped.tolist()):
                yield line(column(i) - 11, zero - unit * value, column(i) + 11, zero - unit * value)
            yield line(36, zero, 462, zero, PALE)
        yield box(32, 486, 14, 14, "#9fd0ba")
        yield text(52, 498, "average of the decoded messages", 13, anchor="start")
        yield line(296, 493, 318, 493)
        yield text(326, 498, "clipped gradient", 13, anchor="start")

    return svg(516, "Averages of 1, 8, 64 and 512 workers beside the gradient", parts())


def draw_exchange() -> str:
    """Four workers, one collective."""
    colours = ("#52606d", PLUS, MINUS, "#9a6a1c")

    def parts() -> Iterator[str]:
        yield text(20, 30, "1. Every worker encodes its own gradient", 14, anchor="start")
        yield text(20, 132, "2. One collective moves uint8", 14, anchor="start")
        for worker, colour in enumerate(colours):
            x = 78 + 108 * worker
            yield box(x - 44, 44, 88, 26, "#eef1f4", colour, 4)
            yield text(x, 62, f"gradient {worker}", 13)
            yield line(x, 72, x, 90, more=ARROW)
            yield box(x - 22, 94, 44, 14, colour, radius=3)
            for other in range(4):
                yield line(x, 142, 78 + 108 * other, 186, colour, 'opacity="0.55"')
            for other, own in enumerate(colours):
                yield box(x - 22, 192 + 18 * other, 44, 14, own, radius=3)
            yield line(x, 300, x, 318, more=ARROW)
            yield box(x - 44, 322, 88, 26, "#cfe8dd", PALE, 4)
            yield text(x, 340, "mean", 13)
        yield text(20, 290, "3. decode_sum: all of them in one pass", 14, anchor="start")
        yield text(240, 374, "the same bits on every worker", 13)

    return svg(390, "Four workers encode, exchange their messages, and decode the mean", parts())


DRAWINGS: dict[str, Callable[[], str]] = {
    "gradient": draw_gradient,
    "trits": draw_trits,
    "bytes": draw_bytes,
    "average": draw_average,
    "exchange": draw_exchange,
}

if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        (PICTURES / f"{name}.svg").write_text(draw(), encoding="utf-8")
