"""The self-describing message: everything that is written is read back, and nothing else is ever read.

Seeds, mutator and property come from fuzz/harness.py, so that the suite and the fuzzer agree on both.
"""

from __future__ import annotations

import array
import json
import math
import mmap
import random
import re
import struct
import sys
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import reference
import terngrad_kernels as tk
from terngrad_kernels import serialization

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "fuzz"))
import harness  # noqa: E402

SEEDS = dict(harness.seeds())
SMALL = {name: blob for name, blob in SEEDS.items() if len(blob) <= 300}
GOOD = SEEDS["list-float32"]  # layers (5, 3) two_bit, (0, 4) base3, () float32
HEADER = 48
PACKINGS = ("two_bit", "base3", "float32")
MOST_WORKERS = {"counts4": 7, "counts8": 127, "counts16": 32767}

every_seed = pytest.mark.parametrize("blob", SEEDS.values(), ids=SEEDS.keys())
every_small_seed = pytest.mark.parametrize("blob", SMALL.values(), ids=SMALL.keys())


def with_field(blob: bytes, name: str, value: int) -> bytes:
    """`blob` with one header field replaced and a checksum that fits."""
    at, code = harness.FIELDS[name]
    return with_bytes(blob, at, struct.pack(code, value))


def with_bytes(blob: bytes, at: int, new: bytes) -> bytes:
    return with_checksum(blob[:at] + new + blob[at + len(new) :])


def with_checksum(blob: bytes) -> bytes:
    return blob[:8] + struct.pack("<I", zlib.crc32(blob[12:])) + blob[12:]


def written(
    entries: bytes,
    layers: int,
    *,
    block: int = 0,
    shards: int = 1,
    form: int = 3,
    message: bytes = b"",
    kind: int = 1,
    workers: int = 1,
) -> bytes:
    """A whole file around any table and message, with a length and a checksum that fit."""
    table = entries + bytes(-len(entries) % 16)
    fields = struct.pack("<HBBQQIIIB3s", 1, kind, 1, 0, block, layers, shards, workers, form, bytes(3))
    return harness.seal(b"\x89TGK\r\n\x1a\n" + bytes(4) + fields + table + message)


def entry(*shape: int, packing: int = 1) -> bytes:
    return struct.pack(f"<BB6s{len(shape)}Q", packing, len(shape), bytes(6), *shape)


def message_at(blob: bytes) -> int:
    return len(blob) - tk.from_bytes(blob).layout.nbytes


# ------------------------------------------------------------------------------------------- what is written


@st.composite
def messages(draw: st.DrawFn) -> tk.Packed | tk.Counts:
    shapes = draw(st.lists(st.lists(st.sampled_from((0, 1, 2, 5, 31, 640)), max_size=3), max_size=4))
    shapes = [shape if math.prod(shape) < 20_000 else shape[:1] for shape in shapes]
    form = draw(st.sampled_from(("list", "flat", "array") if len(shapes) == 1 else ("list", "flat")))
    layout = tk.Layout(
        tuple(map(tuple, shapes)),
        dtype="float32",
        packing=tuple(draw(st.sampled_from(PACKINGS)) for _ in shapes),
        block=draw(st.sampled_from((None, 2560, 5120))),
        shards=draw(st.integers(1, 9)),
        form=form,
    )
    x = np.random.default_rng(draw(st.integers(0, 2**32))).standard_normal(layout.size).astype(np.float32)
    if draw(st.booleans()):
        x[: x.size // 2] = draw(st.sampled_from((0.0, 2.0**-70, np.nan, np.inf)))
    seed = draw(st.integers(-(2**63), 2**64 - 1))
    packed = tk.encode(x, layout=layout, seed=seed, clip=draw(st.sampled_from((2.5, None))))
    dtype = draw(st.sampled_from(harness.DTYPES))
    # The dtype is that of what decode gives back: the data does not depend on it.
    told = tk.Layout(layout.shapes, dtype, layout.packing, layout.block, layout.shards, form)
    packed = tk.Packed(told, packed.data)
    workers = draw(st.sampled_from((None, 1, 7, 8, 127, 128, 1000)))
    return packed if workers is None else tk.sum_trits([packed] * workers)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(messages())
def test_round_trip(packed: tk.Packed | tk.Counts) -> None:
    blob = tk.to_bytes(packed)
    again = tk.from_bytes(blob)
    assert type(blob) is bytes
    assert type(again) is type(packed)
    if isinstance(packed, tk.Counts):
        assert isinstance(again, tk.Counts)
        assert again.workers == packed.workers
    assert len(blob) % 16 == 0
    assert again.layout == packed.layout
    assert type(again.data) is np.ndarray
    assert again.data.dtype == np.uint8
    assert again.data.flags.writeable
    assert np.array_equal(again.data, packed.data)
    assert tk.to_bytes(again) == blob


@every_seed
def test_seed_is_read_and_written_as_the_same_bytes(blob: bytes) -> None:
    assert harness.check(blob)


def test_no_layers() -> None:
    for form in ("list", "flat"):
        layout, data = tk.Layout((), form=form), np.zeros(0, np.uint8)
        for packed in (tk.Packed(layout, data), tk.Counts(layout, 1, data), tk.Counts(layout, 32767, data)):
            blob = tk.to_bytes(packed)
            assert len(blob) == HEADER
            again = tk.from_bytes(blob)
            assert again.layout == layout
            assert getattr(again, "workers", None) == getattr(packed, "workers", None)


def test_to_bytes_refuses_what_has_no_spelling() -> None:
    layout = tk.Layout(((5000,), (3,)), shards=2)
    packed = tk.encode(np.ones(5003, np.float32), layout=layout)
    half = layout.nbytes // 2
    with pytest.raises(TypeError, match=r"^packed: expected a Packed or a Counts, got ndarray$"):
        tk.to_bytes(packed.data)
    with pytest.raises(ValueError, match=r"^packed.layout: expected that of a whole message, got shard 1 of 2"):
        tk.to_bytes(tk.Packed(layout.shard(1), packed.data[half:]))
    with pytest.raises(ValueError, match=r"^packed.data: expected one message, shape \(\d+,\), got shape \(3, \d+\)"):
        tk.to_bytes(tk.Packed(layout, np.stack([packed.data] * 3)))
    total = tk.sum_trits([packed] * 9)
    half = total.layout.nbytes // 2
    with pytest.raises(ValueError, match=r"^packed.layout: expected that of a whole message, got shard 0 of 2"):
        tk.to_bytes(tk.Counts(total.layout.shard(0), 9, total.data[:half]))
    with pytest.raises(ValueError, match=r"^packed.data: expected one message, shape \(\d+,\), got shape \(3, \d+\)"):
        tk.to_bytes(tk.Counts(total.layout, 9, np.stack([total.data] * 3)))
    with pytest.raises(ValueError, match="counts"):
        tk.to_bytes(tk.Packed(total.layout, total.data))
    many = tk.Layout(((1,) * 65,))
    with pytest.raises(ValueError, match=r"^packed.layout.shapes\[0\]: expected at most 64 dimensions, got 65$"):
        tk.to_bytes(tk.encode(np.ones(1, np.float32), layout=many))
    most = tk.encode(np.ones(1, np.float32), layout=tk.Layout(((1,) * 64,)))
    assert tk.from_bytes(tk.to_bytes(most)).layout == most.layout


@pytest.mark.parametrize(("at", "value"), [(3, 0x80), (16, 0b10), (17, 0xFF), (31, 1)])
def test_to_bytes_seals_no_damage(at: int, value: int) -> None:
    """A negative scale, the code 10, codes behind the last element, a gap."""
    packed = tk.encode(np.ones(6, np.float32))
    data = packed.data.copy()
    data[at] = value
    with pytest.raises(tk.CorruptMessage):
        tk.to_bytes(tk.Packed(packed.layout, data))


@pytest.mark.parametrize(("at", "value"), [(3, 0x80), (16, 0x04), (17, 0xC0), (18, 0x80), (18, 0x10), (31, 1)])
def test_to_bytes_seals_no_damage_of_counts(at: int, value: int) -> None:
    """A negative scale, +4 and -4 of three workers, the lowest value, codes behind the last element, a gap."""
    total = tk.sum_trits([tk.encode(np.ones(5, np.float32))] * 3)
    tk.to_bytes(total)
    total.data[at] = value
    with pytest.raises(tk.CorruptMessage):
        tk.to_bytes(total)


def test_frameworks_write_the_same_bytes_and_are_given_back() -> None:
    packed = tk.from_bytes(GOOD)
    torch = pytest.importorskip("torch")
    there = torch.from_numpy(packed.data.copy())
    assert tk.to_bytes(tk.Packed(packed.layout, there)) == GOOD
    back = tk.from_bytes(GOOD, like=torch.zeros(1))
    assert isinstance(back.data, torch.Tensor)
    assert torch.equal(back.data, there)
    total = tk.from_bytes(SEEDS["list-counts8"], like=torch.zeros(1))
    assert isinstance(total, tk.Counts)
    assert isinstance(total.data, torch.Tensor)
    assert tk.to_bytes(total) == SEEDS["list-counts8"]
    jnp = pytest.importorskip("jax.numpy")
    assert tk.to_bytes(tk.Packed(packed.layout, jnp.asarray(packed.data))) == GOOD
    back = tk.from_bytes(GOOD, like=jnp.zeros(1))
    assert isinstance(back.data, type(jnp.zeros(1)))
    assert np.array_equal(np.asarray(back.data), packed.data)


# -------------------------------------------------------------------------------------------------- buffers


def test_any_contiguous_buffer_is_read_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "message"
    file.write_bytes(GOOD)
    words = array.array("I", GOOD)
    square = np.frombuffer(GOOD, np.float32).reshape(8, -1)
    offset = memoryview(b"\0" + GOOD)[1:]
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for buffer in (GOOD, bytearray(GOOD), memoryview(GOOD), words, square, offset, mapped):
            packed = tk.from_bytes(buffer)
            assert tk.to_bytes(packed) == GOOD
            assert bytes(memoryview(buffer).cast("B")) == GOOD


def test_result_does_not_share_memory_with_the_buffer() -> None:
    buffer = bytearray(GOOD)
    packed = tk.from_bytes(buffer)
    buffer[:] = bytes(len(buffer))
    assert tk.to_bytes(packed) == GOOD
    buffer.clear()  # a view that is still open would forbid this


def test_empty_buffers() -> None:
    for buffer in (b"", bytearray(), np.zeros((3, 0), np.uint8)):
        with pytest.raises(tk.CorruptMessage, match=r"^byte 0: the buffer ends here"):
            tk.from_bytes(buffer)


def test_error_does_not_lock_the_buffer() -> None:
    for size in (*range(HEADER + 2), len(GOOD)):
        buffer = bytearray(size * b"\0" if size < len(GOOD) else GOOD[:-1] + b"\1")
        with pytest.raises(tk.CorruptMessage) as caught:
            tk.from_bytes(buffer)
        buffer.clear()
        assert caught.value.__traceback__ is not None


@pytest.mark.parametrize("buffer", [None, 1, "text", [1, 2], object(), 2.5])
def test_no_buffer(buffer: Any) -> None:
    with pytest.raises(TypeError, match=r"^buffer: expected bytes or another buffer, got "):
        tk.from_bytes(buffer)


def test_buffer_with_gaps() -> None:
    doubled = np.repeat(np.frombuffer(GOOD, np.uint8), 2)
    for view in (doubled[::2], np.asfortranarray(doubled.reshape(2, -1)), memoryview(GOOD)[::-1]):
        with pytest.raises(BufferError, match=r"^buffer: expected C-contiguous bytes, got strides "):
            tk.from_bytes(view)


def test_unknown_like_is_refused_before_the_bytes_are_read() -> None:
    with pytest.raises(TypeError, match="like"):
        tk.from_bytes(b"", like="numpy")


# --------------------------------------------------------------------------------------------------- damage


@every_seed
def test_every_truncation_is_refused(blob: bytes) -> None:
    for size in range(len(blob)):
        with pytest.raises(tk.CorruptMessage, match=f"^byte {size}: the buffer ends here"):
            tk.from_bytes(blob[:size])
        with pytest.raises(tk.CorruptMessage):
            tk.from_bytes(harness.seal(blob[:size]))


@every_seed
def test_trailing_bytes_are_refused(blob: bytes) -> None:
    for count in range(1, 17):
        for fill in (b"\0", b"\xff", b"\x89"):
            longer = blob + count * fill
            with pytest.raises(tk.CorruptMessage, match=f"^byte {len(blob)}: {count} bytes beyond"):
                tk.from_bytes(longer)
            with pytest.raises(tk.CorruptMessage):
                tk.from_bytes(harness.seal(longer))
    with pytest.raises(tk.CorruptMessage, match=f"{len(blob)} bytes beyond"):
        tk.from_bytes(blob + blob)


@every_seed
def test_every_bit_flip_is_refused(blob: bytes) -> None:
    damaged = bytearray(blob)
    for at in range(len(blob)):
        for bit in range(8):
            damaged[at] ^= 1 << bit
            with pytest.raises(tk.CorruptMessage):
                tk.from_bytes(damaged)
            damaged[at] ^= 1 << bit
    assert damaged == blob


@every_small_seed
def test_every_bit_flip_under_a_good_checksum_is_refused_or_canonical(blob: bytes) -> None:
    start = message_at(blob)
    layout = tk.from_bytes(blob).layout
    free: set[int] = set()
    used: set[int] = set()
    for piece in layout.pieces:
        payload = range(start + piece.payload_at, start + piece.payload_at + piece.nbytes)
        used.update(payload, range(start + piece.scale_at, start + piece.scale_at + 4))
        free.update(payload if piece.packing == "float32" else ())
    fixed = {*range(8), 12, 13, 14, *range(16, 24), 45, 46, 47}
    fixed |= {*range(40, 44)} if blob[14] == 1 else set()
    for at in range(len(blob)):
        for bit in range(8):
            damaged = with_checksum(blob[:at] + bytes([blob[at] ^ 1 << bit]) + blob[at + 1 :])
            read = harness.check(damaged)
            if at in free:
                assert read, f"byte {at}: the values of a float32 layer are free"
            elif at in range(40, 44) and blob[14] == 2:
                assert read == holds(blob, struct.unpack_from("<I", damaged, 40)[0]), f"byte {at}, bit {bit}"
            elif at in range(8, 12):
                assert read  # the checksum was put right again
            elif at in fixed or (at >= start and at not in used):
                assert not read, f"byte {at}, bit {bit} has one legal value"


def holds(blob: bytes, workers: int) -> bool:
    """Whether a message of counts may state so many workers: its packing is theirs, and no count is above."""
    total = tk.from_bytes(blob)
    data = np.asarray(total.data)
    for piece in total.layout.pieces:
        if piece.packing != "float32":
            narrowest = next((name for name, most in MOST_WORKERS.items() if 1 <= workers <= most), None)
            payload = data[piece.payload_at : piece.payload_at + piece.nbytes]
            counts = reference.unpack_counts(payload, piece.size, piece.packing)
            if narrowest != piece.packing or np.abs(counts).max(initial=0) > workers:
                return False
    return 1 <= workers <= 32767


@pytest.mark.parametrize("at", range(12, HEADER))
def test_every_value_of_a_header_byte_is_refused_or_canonical(at: int) -> None:
    blobs = (GOOD, SEEDS["shards-two_bit"], SEEDS["empty-list"], SEEDS["array-base3-5"])
    for blob in (*blobs, SEEDS["list-counts4"], SEEDS["shards-counts16"], SEEDS["counts-of-nothing"]):
        read = {value for value in range(256) if harness.check(with_bytes(blob, at, bytes([value])))}
        assert blob[at] in read
        if at in (14, 15, 44):
            layers, _, workers = struct.unpack_from("<III", blob, 32)
            # A message of nothing may be of either kind, as far as the workers allow it.
            kinds = {blob[14]} if layers else {1, 2} if workers == 1 else {2}
            assert read == {14: kinds, 15: {1, 2, 3, 4}, 44: {1, 2, 3} if layers == 1 else {2, 3}}[at]


def test_each_scale_under_a_good_checksum() -> None:
    """The boundary values of a scale, over codes that are not all 0 and over codes that are."""
    for blob in (SEEDS["array-two_bit-5"], SEEDS["zero"], SEEDS["array-counts8-5"], SEEDS["counts-zero"]):
        start = message_at(blob)
        empty = not any(blob[start + 16 :])
        legal = {0x21800000, 0x21800001, 0x3F800000, 0x3F7FFFFF, 0x7F7FFFFF}
        if empty:
            legal |= {0, 0x7F800000}
        for bits in harness.SCALE_BITS:
            read = harness.check(with_bytes(blob, start, struct.pack("<I", bits)))
            assert read == (bits in legal), hex(bits)


@pytest.mark.parametrize("packing", ["two_bit", "base3", "counts4", "counts8"])
def test_each_byte_value_at_each_place_of_a_payload(packing: str) -> None:
    """A byte is legal if its codes are and those behind the last element are 0; sizes up to a tile and 1."""
    rows, base = {"two_bit": (4, 4), "base3": (5, 3), "counts4": (2, 16), "counts8": (1, 256)}[packing]
    workers = {"counts4": 5, "counts8": 100}.get(packing, 1)
    # In two's complement; base 3 has a digit 2 for -1.
    legal_digits = {t % base for t in range(-workers, workers + 1)}
    for size in (*range(1, 12), 128 * rows, 128 * rows + 1):
        x = np.ones(size, np.float32)
        counted = packing in MOST_WORKERS
        packed = tk.encode(x, packing="two_bit" if counted else packing, clip=None)
        blob = tk.to_bytes(tk.sum_trits([packed] * workers) if counted else packed)
        start = message_at(blob) + 16
        places = -(-size // rows)
        for place in {0, 1, 2, places // 2, places - 1} & set(range(places)):
            for value in range(256):
                digits = [value // base**k % base for k in range(rows)]
                whole = place < size // (128 * rows) * 128
                rest, columns, column = size % (128 * rows), -(-(size % (128 * rows)) // rows), place % 128
                held = rows if whole else sum(k * columns + column < rest for k in range(rows))
                legal = not any(digits[held:]) and legal_digits.issuperset(digits) and value < base**rows
                read = harness.check(with_bytes(blob, start + place, bytes([value])))
                assert read == legal, (size, place, value)


# ------------------------------------------------------------------------------------------ hostile headers

AT = HEADER
HOSTILE = {
    "most layers": (written(entry(1), 2**32 - 1), 32),
    "one layer more than fit": (written(entry(1) + entry(1), 5), 32),
    "layers beyond the table": (written(entry() * 2 + entry(1), 4), AT + 32),
    "2^36 elements": (written(entry(2**36), 1), AT + 16),
    "2^36 elements in blocks of 2560": (written(entry(2**36), 1, block=2560, message=bytes(32)), AT + 16),
    "2^36 + 1 elements": (written(entry(2**36 + 1), 1), AT + 8),
    "2^64 - 1 elements": (written(entry(2**64 - 1), 1), AT + 8),
    "2^32 x 2^32 elements, 0 in 64 bits": (written(entry(2**32, 2**32), 1), AT + 8),
    "64 dimensions of 2^63": (written(entry(*[2**63] * 64), 1), AT + 8),
    "empty layer of 2^60 columns": (written(entry(0, 2**60), 1, message=bytes(16)), AT + 8),
    "65 dimensions": (written(entry(*[1] * 65), 1, message=bytes(32)), AT + 1),
    "255 dimensions in 100 bytes": (written(bytes([1, 255]) + bytes(14), 1), AT + 1),
    "dimensions beyond the end": (written(bytes([1, 20]) + bytes(14), 1), AT + 8),
    "2^61 float32 elements, 2^63 bytes": (written(entry(2**61, packing=3), 1), AT + 8),
    "float32 elements by a byte": (written(entry(16, packing=3), 1, message=bytes(64)), AT + 16),
    "two_bit elements by a byte": (written(entry(1201, packing=1), 1, message=bytes(304)), AT + 16),
    "base3 elements by a byte": (written(entry(1501, packing=2), 1, message=bytes(304)), AT + 16),
    "scales of blocks by one": (
        written(entry(2560 * 5), 1, block=2560, message=bytes(640 * 5 + 16)),
        AT + 16,
    ),
    "2^36 float32 elements": (written(entry(2**36, packing=3), 1), AT + 16),
    "scales alone are too many": (written(entry(0) * 20, 20, message=bytes(64)), AT + 320),
    "most shards": (written(entry(1), 1, shards=2**31 - 1, message=bytes(32)), AT + 16),
    "shards beyond 31 bits": (written(entry(1), 1, shards=2**31, message=bytes(32)), 36),
    "no shards": (written(entry(1), 1, shards=0, message=bytes(32)), 36),
    "many shards of nothing": (written(b"", 0, shards=2**30, message=bytes(32)), AT),
    "block of 2^63 and more": (written(entry(5), 1, block=2560 * (2**63 // 2560 + 1), message=bytes(32)), 24),
    "block of 1": (written(entry(5), 1, block=1, message=bytes(32)), 24),
    "block of 2^64 - 1": (written(entry(5), 1, block=2**64 - 1, message=bytes(32)), 24),
    "counts4": (written(entry(5, packing=4), 1, message=bytes(32)), AT),
    "counts4 of 8 workers": (written(entry(5, packing=4), 1, message=bytes(32), kind=2, workers=8), AT),
    "counts8 of 7 workers": (written(entry(5, packing=5), 1, message=bytes(32), kind=2, workers=7), AT),
    "counts16 of 127 workers": (written(entry(5, packing=6), 1, message=bytes(32), kind=2, workers=127), AT),
    "counts of two packings": (
        written(entry(5, packing=4) + entry(5, packing=5), 2, message=bytes(48), kind=2, workers=7),
        AT + 16,
    ),
    "trits among counts": (
        written(entry(5, packing=4) + entry(5), 2, message=bytes(48), kind=2, workers=7),
        AT + 16,
    ),
    "counts of no workers": (written(entry(5, packing=4), 1, message=bytes(32), kind=2, workers=0), 40),
    "counts of 32768 workers": (written(entry(5, packing=6), 1, message=bytes(32), kind=2, workers=32768), 40),
    "2^32 - 1 workers of nothing": (written(b"", 0, kind=2, workers=2**32 - 1), 40),
    "2^36 counts": (written(entry(2**36, packing=6), 1, kind=2, workers=300), AT + 16),
    "packing 7": (written(entry(5, packing=7), 1, message=bytes(32), kind=2), AT),
    "packing 0": (written(entry(5, packing=0), 1, message=bytes(32)), AT),
    "reserved byte": (written(entry(5)[:7] + b"\1" + entry(5)[8:], 1, message=bytes(32)), AT + 2),
    "no table padding": (harness.seal(written(entry(), 1)[:-8]), AT + 8),
    "table padding": (written(entry() + b"\0" * 7 + b"\1", 1, message=bytes(32)), AT + 8),
    "array of two layers": (written(entry(5) + entry(5), 2, form=1, message=bytes(48)), 32),
    "array of no layers": (written(b"", 0, form=1), 32),
}


@pytest.mark.parametrize(("blob", "offset"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_header_costs_nothing(blob: bytes, offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before a layout lists a single piece, in no time and no memory to speak of."""

    def layout_was_built(*_: Any, **__: Any) -> None:
        raise AssertionError("a layout was built from fields that the bytes do not bear out")

    monkeypatch.setattr(serialization, "Layout", layout_was_built)
    seconds = []
    tracemalloc.start()
    try:
        for _ in range(5):
            start = time.perf_counter()
            with pytest.raises(tk.CorruptMessage, match=f"^byte {offset}: "):
                tk.from_bytes(blob)
            seconds.append(time.perf_counter() - start)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert min(seconds) < 0.01
    assert peak < 2**18


def test_what_layout_refuses_is_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should Layout ever be stricter than the reader, its error is still the one documented."""

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("shapes are too odd")

    monkeypatch.setattr(serialization, "Layout", refuse)
    with pytest.raises(tk.CorruptMessage, match="no layout: shapes are too odd"):
        tk.from_bytes(GOOD)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("version", 0, "byte 12: format version 0"),
        ("version", 2, "byte 12: format version 2, this reader knows version 1"),
        ("kind", 0, "byte 14: unknown kind 0"),
        ("kind", 2, "byte 48: packing two_bit, expected float32 or counts4 in a message of kind 2"),
        ("kind", 3, "byte 14: unknown kind 3"),
        ("dtype", 0, "byte 15: unknown dtype code 0"),
        ("dtype", 5, "byte 15: unknown dtype code 5"),
        ("length", 2**64 - 1, "byte 160: the buffer ends here, 18446744073709551455 bytes short"),
        ("length", 0, "byte 0: 160 bytes beyond"),
        ("block", 2561, "byte 24: a block of 2561"),
        ("layers", 2, "byte 96: these layers take 32 bytes, 64 are left"),
        ("workers", 0, "byte 40: 0 workers"),
        ("workers", 2, "byte 40: 2 workers"),
        ("form", 0, "byte 44: unknown form code 0"),
        ("form", 1, "byte 32: 3 layers"),
        ("reserved", 0x0100, "byte 45: reserved"),
    ],
)
def test_error_names_offset_and_fault(name: str, value: int, text: str) -> None:
    with pytest.raises(tk.CorruptMessage, match=text):
        tk.from_bytes(with_field(GOOD, name, value))


def test_error_of_the_message_says_where_it_starts() -> None:
    start = message_at(GOOD)
    with pytest.raises(tk.CorruptMessage, match=rf"byte 0 of the message; the message starts at byte {start}$"):
        tk.from_bytes(with_bytes(GOOD, start + 3, b"\xff"))


def test_damage_is_reported_as_damage() -> None:
    with pytest.raises(tk.CorruptMessage, match=r"byte 8: checksum 0x[0-9a-f]{8} stated, 0x[0-9a-f]{8} found"):
        tk.from_bytes(GOOD[:-1] + b"\1")


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda b: bytes(c & 0x7F for c in b), "bit 7"),
        (lambda b: b.replace(b"\r\n", b"\n"), "CR LF into LF"),
        (lambda b: b.replace(b"\n", b"\r\n"), "LF into CR LF"),
        (lambda b: b.decode("latin-1").encode(), "Latin-1"),
        (lambda b: b.decode(errors="replace").encode(), "UTF-8"),
        (lambda b: b"\x93NUMPY" + b[6:], "is not the start of a message$"),
    ],
)
def test_usual_accidents_are_named(spoil: Any, text: str) -> None:
    with pytest.raises(tk.CorruptMessage, match=f"^byte 0: .*{text}"):
        tk.from_bytes(spoil(GOOD))


def test_mutations_are_refused_or_canonical() -> None:
    """The fuzzer's mutator without coverage feedback; it must get past the checksum to be worth anything."""
    rng = random.Random(3)
    pool = list(SEEDS.values())
    read = 0
    for _ in range(4000):
        blob = harness.mutate(rng.choice(pool), rng, 4096)
        if harness.check(blob):
            read += 1
            pool.append(blob)
    assert read > 200


# ------------------------------------------------------------------------------------------- docs/format.md


def test_example_of_the_format_page() -> None:
    page = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    (listing,) = re.findall(r"^```hex\n(.*?)^```", page, re.M | re.S)
    (values,) = (json.loads(block) for block in re.findall(r"^```json\n(.*?)^```", page, re.M | re.S))
    blob = bytearray()
    for line in listing.splitlines():
        code = line.partition("#")[0].strip()
        if code:
            offset, _, digits = code.partition(":")
            assert int(offset) == len(blob), f"the page states a wrong offset in {line!r}"
            blob += bytes.fromhex(digits)
    packed = tk.from_bytes(blob)
    layout = packed.layout
    stated = values["layout"]
    assert layout == tk.Layout(
        tuple(map(tuple, stated["shapes"])),
        dtype=stated["dtype"],
        packing=tuple(stated["packing"]),
        block=stated["block"],
        shards=stated["shards"],
        form=stated["form"],
    )
    assert len(blob) - layout.nbytes == values["message_at"]
    assert [piece.payload_at for piece in layout.pieces] == values["payload_at"]
    scales = [struct.unpack_from("<f", packed.data, piece.scale_at)[0] for piece in layout.pieces]
    assert scales == values["scales"]
    decoded = tk.decode(packed)
    assert [a.dtype for a in decoded] == [np.dtype(stated["dtype"])] * 2
    assert [a.tolist() for a in decoded] == values["decoded"]
    assert tk.to_bytes(packed) == bytes(blob)


def test_codes_of_the_format_page() -> None:
    page = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")

    def codes(field: str) -> dict[int, str]:
        (row,) = re.findall(rf"^\| \d+ \| u8 \| {field} \| (.*) \|$", page, re.M)
        return {int(code): name for code, name in re.findall(r"\b(\d) `?(\w+)", row.partition(". ")[0])}

    assert codes("dtype") == {blob[15]: tk.from_bytes(blob).layout.dtype for blob in SEEDS.values()}
    assert codes("packing") == harness.PACKINGS
    for packing in (*PACKINGS, *MOST_WORKERS):
        blob = SEEDS[f"array-{packing}-5"]
        assert harness.PACKINGS[blob[HEADER]] == tk.from_bytes(blob).layout.packing == packing
    forms = {blob[44]: tk.from_bytes(blob).layout.form for blob in SEEDS.values()}
    assert codes("form") == forms


def test_field_table_of_the_format_page() -> None:
    """Names and offsets of the header on the page are those that the fuzzer and these tests act on."""
    page = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    header = page.partition("## Header")[2].partition("## ")[0]
    rows = re.findall(r"^\| (\d+) \| (u8|u16|u32|u64|\d+ bytes) \| (\w+) \|", header, re.M)
    sizes = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}
    end = 0
    for offset, kind, name in rows:
        assert int(offset) == end == harness.FIELDS[name][0]
        end += sizes.get(kind) or int(kind.split()[0])
    assert end == HEADER
    assert {name for _, _, name in rows} == set(harness.FIELDS)
