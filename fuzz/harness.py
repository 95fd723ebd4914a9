"""What all fuzzing of the self-describing message shares: seeds, a format-aware mutator, the property.

Plain Python on purpose: the atheris target runs it under coverage feedback, the test suite runs it as it is.
Offsets are those of docs/format.md.
"""

from __future__ import annotations

import math
import random
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np

import terngrad_kernels as tk

HEADER = 48
FIELDS = {
    "magic": (0, "<Q"),
    "checksum": (8, "<I"),
    "version": (12, "<H"),
    "kind": (14, "<B"),
    "dtype": (15, "<B"),
    "length": (16, "<Q"),
    "block": (24, "<Q"),
    "layers": (32, "<I"),
    "shards": (36, "<I"),
    "workers": (40, "<I"),
    "form": (44, "<B"),
    "reserved": (45, "<H"),
}
PACKINGS = {1: "two_bit", 2: "base3", 3: "float32", 4: "counts4", 5: "counts8", 6: "counts16"}
DTYPES = ("float32", "float16", "bfloat16", "float64")

# Edges of tiles, units, field widths and of the arithmetic that a careless reader does in 32 or 64 bits.
NUMBERS = (
    *(0, 1, 2, 3, 4, 5, 6, 7, 15, 16, 64, 65, 127, 128, 255, 256, 511, 512, 513, 639, 640, 641),
    *(2559, 2560, 2561, 5120, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**36, 2**36 + 1),
    *(2560 * 2**20, 2**53, 2**60, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1),
)
# +0, -0, the smallest legal scale and its neighbours, about 1, infinities, NaNs, a subnormal, the largest.
SCALE_BITS = (
    *(0x00000000, 0x80000000, 0x21800000, 0x217FFFFF, 0x21800001, 0x3F800000, 0x3F7FFFFF, 0xBF800000),
    *(0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x00000001, 0x7F7FFFFF),
)
MOST_ELEMENTS = 1 << 20  # of a layout that the mutator itself builds


def check(blob: bytes) -> bool:
    """The property: refused as corrupt, or read, decoded and written as the same bytes. True if read."""
    try:
        packed = tk.from_bytes(blob)
    except tk.CorruptMessage:
        return False
    tk.decode(packed)
    again = tk.to_bytes(packed)
    assert again == bytes(blob), f"{blob.hex()} is read, but written as {again.hex()}"
    return True


def seal(blob: bytes) -> bytes:
    """State the actual length and checksum, so that the reader gets past them."""
    if len(blob) < HEADER:
        return blob
    out = bytearray(blob)
    struct.pack_into("<Q", out, 16, len(out))
    struct.pack_into("<I", out, 8, zlib.crc32(memoryview(out)[12:]))
    return bytes(out)


def seeds() -> Iterator[tuple[str, bytes]]:
    """Small messages that between them use every code, form, flag and special scale, each with a name."""
    rng = np.random.default_rng(20)
    names = ("two_bit", "base3", "float32")

    def message(layout: tk.Layout, values: np.ndarray | None = None) -> bytes:
        x = rng.standard_normal(layout.size).astype(np.float32) if values is None else values
        return tk.to_bytes(tk.encode(x, layout=layout, seed=1))

    yield "empty-list", message(tk.Layout((), form="list"))
    mixed = ((5, 3), (0, 4), ())
    values = rng.standard_normal(16).astype(np.float32)
    data = tk.encode(values, layout=tk.Layout(mixed, "float32", names)).data
    for dtype in DTYPES:
        # The dtype is that of what decode gives back: the data does not depend on it.
        yield f"list-{dtype}", tk.to_bytes(tk.Packed(tk.Layout(mixed, dtype, names, form="list"), data))
    for packing in names:
        for size in (0, 1, 4, 5, 513, 641):
            if packing != "float32" or size < 100:
                yield f"array-{packing}-{size}", message(tk.Layout(((size,),), packing=packing, form="array"))
        small = 641 if packing != "float32" else 12
        yield f"shards-{packing}", message(tk.Layout(((small,), (7,)), packing=packing, shards=3))
    yield "blocks", message(tk.Layout(((5130,), (3,)), packing="base3", block=2560))
    layout = tk.Layout(((5130,), (3,)), packing=("two_bit", "float32"), block=5120, shards=2)
    yield "blocks-shards", message(layout)
    yield "empty-shards", message(tk.Layout(((0,), (0,)), shards=5))
    yield "zero", message(tk.Layout(((33,),)), np.zeros(33, np.float32))
    yield "poisoned", message(tk.Layout(((33,),)), np.full(33, np.nan, np.float32))
    free = np.array([np.nan, np.inf, -np.inf, -0.0], np.float32)
    yield "free-values", message(tk.Layout(((4,),), packing="float32"), free)

    def counts(layout: tk.Layout, workers: int, *values: float) -> bytes:
        x = np.resize(values or (1, -1, 0, 0.5), layout.size).astype(layout.dtype)
        packed = [tk.encode(x, layout=layout, seed=seed, clip=None) for seed in range(2)]
        return tk.to_bytes(tk.sum_trits(packed[:1] * (workers - 1) + packed[1:]))

    for packing, workers in (("counts4", 3), ("counts8", 20), ("counts16", 200)):
        for size in (0, 1, 5, 257):
            yield f"array-{packing}-{size}", counts(tk.Layout(((size,),), form="array"), workers)
        yield f"list-{packing}", counts(tk.Layout(mixed, "float16", names, form="list"), workers)
        yield f"shards-{packing}", counts(tk.Layout(((641,), (7,)), shards=3), workers)
    yield "counts-blocks", counts(tk.Layout(((5130,), (3,)), packing="base3", block=2560), 7)
    yield "counts-zero", counts(tk.Layout(((33,),)), 7, 0.0)
    yield "counts-poisoned", counts(tk.Layout(((33,),)), 127, np.nan)
    yield "counts-carried", counts(tk.Layout(((4,),), packing="float32"), 300)
    yield "counts-of-nothing", tk.to_bytes(tk.Counts(tk.Layout(()), 32767, np.zeros(0, np.uint8)))


def _entries(blob: bytes | bytearray) -> list[tuple[int, int]]:
    """Offset and number of dimensions of each entry of the table that lies wholly inside the bytes."""
    if len(blob) < HEADER:
        return []
    (layers,) = struct.unpack_from("<I", blob, 32)
    found: list[tuple[int, int]] = []
    at = HEADER
    while len(found) < min(layers, 64) and at + 8 <= len(blob) and at + 8 + 8 * blob[at + 1] <= len(blob):
        found.append((at, blob[at + 1]))
        at += 8 + 8 * blob[at + 1]
    return found


def _message_at(blob: bytes | bytearray) -> int:
    entries = _entries(blob)
    end = entries[-1][0] + 8 + 8 * entries[-1][1] if entries else HEADER
    return min(-(-end // 16) * 16, len(blob))


def fit(blob: bytes) -> bytes:
    """Cut or pad the message to the length that header and table ask for, where they describe a layout."""
    entries = _entries(blob)
    if len(blob) < HEADER or len(entries) != struct.unpack_from("<I", blob, 32)[0]:
        return blob
    block, _, shards = struct.unpack_from("<QII", blob, 24)
    shapes = [struct.unpack_from(f"<{dimensions}Q", blob, at + 8) for at, dimensions in entries]
    try:
        if shards > 64 or sum(math.prod(d for d in shape if d) for shape in shapes) > MOST_ELEMENTS:
            return blob
        layout = tk.Layout(
            tuple(shapes),
            packing=tuple(PACKINGS.get(blob[at], "two_bit") for at, _ in entries),
            block=block or None,
            shards=shards,
        )
    except ValueError:
        return blob
    end = _message_at(blob)
    return blob[:end].ljust(end, b"\0") + blob[end : end + layout.nbytes].ljust(layout.nbytes, b"\0")


def mutate(blob: bytes, rng: random.Random, max_size: int, raw: Callable[[bytes, int], bytes] | None = None) -> bytes:
    """One to three changes that know the format, or `raw` (a fuzzer's own mutator) now and then; after them,
    mostly, a length and a checksum that fit."""
    out = bytearray(blob)
    for _ in range(rng.randint(1, 3)):
        choice = rng.randrange(8)
        if choice == 0 and raw is not None:
            out = bytearray(raw(bytes(out), max_size))
        elif choice <= 1:
            _change_header(out, rng)
        elif choice == 2:
            _change_entry(out, rng)
        elif choice == 3:
            _change_layers(out, rng)
        elif choice == 4:
            _change_scale(out, rng)
        elif choice == 5:
            at = rng.randrange(len(out) + 1)
            out[at:at] = bytes(rng.choice((1, 2, 8, 16)))
        elif choice == 6 and out:
            at = rng.randrange(len(out))
            del out[at : at + rng.choice((1, 2, 8, 16))]
        elif out:
            start = _message_at(out)
            at = rng.randrange(start if start < len(out) else 0, len(out))
            out[at] = rng.choice((out[at] ^ 1 << rng.randrange(8), 0, rng.randrange(256)))
    changed = bytes(out)
    if rng.random() < 0.5:
        changed = fit(changed)
    changed = changed[:max_size]
    return seal(changed) if rng.random() < 0.9 else changed


def _change_header(out: bytearray, rng: random.Random) -> None:
    at, code = FIELDS[rng.choice(list(FIELDS))]
    if at + struct.calcsize(code) <= len(out):
        old = struct.unpack_from(code, out, at)[0]
        new = rng.choice((rng.choice(NUMBERS), old + 1, old - 1, old ^ 1 << rng.randrange(64)))
        struct.pack_into(code, out, at, new % (1 << 8 * struct.calcsize(code)))


def _change_entry(out: bytearray, rng: random.Random) -> None:
    entries = _entries(out)
    if not entries:
        return
    at, dimensions = rng.choice(entries)
    if dimensions and rng.random() < 0.7:
        where = at + 8 + 8 * rng.randrange(dimensions)
        (old,) = struct.unpack_from("<Q", out, where)
        struct.pack_into("<Q", out, where, rng.choice((rng.choice(NUMBERS), old + 1, old - 1)) % 2**64)
    else:
        out[at + rng.randrange(8)] = rng.choice((*range(8), 64, 65, 255))


def _change_layers(out: bytearray, rng: random.Random) -> None:
    """Repeat or drop an entry and count it."""
    entries = _entries(out)
    if not entries:
        return
    at, dimensions = rng.choice(entries)
    end = at + 8 + 8 * dimensions
    more = rng.random() < 0.5
    if more:
        out[at:at] = out[at:end]
    else:
        del out[at:end]
    struct.pack_into("<I", out, 32, max(0, len(entries) + (1 if more else -1)))


def _change_scale(out: bytearray, rng: random.Random) -> None:
    start = _message_at(out)
    if start + 4 <= len(out):
        at = start + 4 * rng.randrange(min(8, (len(out) - start) // 4))
        struct.pack_into("<I", out, at, rng.choice(SCALE_BITS))
