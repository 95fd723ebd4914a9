"""Memory: what is read and written lies inside the arrays, outputs are whole, inputs stay, nothing leaks."""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arrays import (
    DTYPES,
    PACKINGS,
    TERNARY,
    Array,
    assert_same,
    bits_of,
    bucket,
    flat,
    layer,
    skip_if_cuda_is_built,
)

import reference as ref
import terngrad_kernels as tk
from terngrad_kernels import _core

# ---- memory between two pages that no one may touch

PROT_NONE, PROT_READ, PROT_WRITE = 0, 1, 2
CANARY = 0xC3


class Pages:
    """Memory whose every neighbour faults, and which can be made read-only."""

    def __init__(self, count: int) -> None:
        self._map = mmap.mmap(-1, (count + 2) * mmap.PAGESIZE)
        self._anchor = ctypes.c_char.from_buffer(self._map)
        self._start = ctypes.addressof(self._anchor) + mmap.PAGESIZE
        self._size = count * mmap.PAGESIZE
        for guard in (self._start - mmap.PAGESIZE, self._start + self._size):
            self._protect(guard, mmap.PAGESIZE, PROT_NONE)
        self.bytes = np.frombuffer(self._map, np.uint8)[mmap.PAGESIZE : -mmap.PAGESIZE]

    @staticmethod
    def _protect(address: int, size: int, protection: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), protection) == 0

    def writable(self, value: bool) -> None:
        self._protect(self._start, self._size, PROT_READ | (PROT_WRITE if value else 0))

    def at(self, alignment: int, end: bool, nbytes: int) -> slice:
        """Return where `nbytes` bytes go: an address of that alignment mod 64, as near to a guard as it allows."""
        start = alignment
        if end:
            last = self._size - nbytes
            start = last - (last - alignment) % 64
        return slice(start, start + nbytes)

    def hold(self, x: Array, alignment: int, end: bool) -> Array:
        """Return a read-only copy of `x` there; writing to it, flags or no flags, is a fault."""
        place = self.at(alignment, end, x.nbytes)
        self.writable(True)
        self.bytes[place] = x.reshape(-1).view(np.uint8)
        self.writable(False)
        return self.bytes[place].view(x.dtype)


class Output:
    """A place for an output: surrounded by canaries, then by guards."""

    def __init__(self, count: int) -> None:
        self.pages = Pages(count)

    def make(self, dtype: Any, size: int, alignment: int, end: bool) -> Array:
        self.pages.bytes[:] = CANARY
        self.place = self.pages.at(alignment, end, size * np.dtype(dtype).itemsize)
        return self.pages.bytes[self.place].view(dtype)

    def check(self, want: Array) -> None:
        """Assert that `want` was written, and nothing beside it."""
        data = self.pages.bytes
        assert_same(data[self.place], np.ascontiguousarray(want).reshape(-1).view(np.uint8))
        assert (data[: self.place.start] == CANARY).all()
        assert (data[self.place.stop :] == CANARY).all()


def test_the_guards_are_there() -> None:
    pages = Pages(2)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    permissions = {int(line[0].split("-")[0], 16): line[1] for line in maps}
    ends = {int(line[0].split("-")[1], 16): line[1] for line in maps}
    assert ends[pages._start].startswith("---")
    assert permissions[pages._start + pages._size].startswith("---")
    pages.writable(False)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    assert {int(line[0].split("-")[0], 16): line[1] for line in maps}[pages._start].startswith("r--")


LENGTHS = (0, 1, 2, 3, 5, 8, 31, 33, 127, 129, 511, 512, 513, 641, 2561)


class Placed:
    """Guarded inputs and outputs, one of each kind; made once, since mapping memory takes longer than using it."""

    def __init__(self) -> None:
        self.x, self.data, self.passed = Pages(6), Pages(6), Pages(1)
        self.out, self.scale = Output(6), Output(1)


@pytest.fixture(scope="module")
def placed() -> Placed:
    return Placed()


#: Of host arrays: their copies on a GPU all begin alike. What starts anywhere there is tests/test_cuda.py's.
ALIGNMENTS = [(alignment, end) for alignment in range(64) for end in (False, True)]


@pytest.mark.host
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", LENGTHS)
def test_floating_point_inputs_at_every_alignment(n: int, dtype: str, placed: Placed) -> None:
    x = layer("normal", n, dtype)
    measured, clipped = tk.scales(x), tk.clip(x)
    trits, _ = tk.ternarize(x)
    messages = {packing: tk.encode(x, packing=packing) for packing in PACKINGS}
    shared = tk.encode(x, scales=measured).data
    for alignment, end in ALIGNMENTS:
        held = placed.x.hold(x, alignment, end)
        for packing, message in messages.items():
            size = message.data.size
            tk.encode(held, packing=packing, out=placed.out.make(np.uint8, size, alignment, end))
            placed.out.check(message.data)
        scale = placed.passed.hold(np.concatenate(measured), alignment, end)
        out = placed.out.make(np.uint8, shared.size, alignment, end)
        tk.encode(held, scales=tk.Scales(scale[:1], scale[1:]), out=out)
        placed.out.check(shared)
        tk.clip(held, out=placed.out.make(x.dtype, n, alignment, end))
        placed.out.check(clipped)
        trits_out = placed.out.make(np.int8, n, alignment, end)
        tk.ternarize(held, out=(trits_out, placed.scale.make(np.float32, 1, alignment, end)))
        placed.out.check(trits)
        placed.scale.check(measured.scale)


@pytest.mark.host
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", LENGTHS)
def test_messages_and_outputs_at_every_alignment(n: int, dtype: str, placed: Placed) -> None:
    for packing in PACKINGS:
        packed = tk.encode(layer("normal", n), packing=packing)
        start = layer("small", n, dtype)
        decoded, total = tk.decode(packed, dtype=dtype), tk.decode_sum([packed] * 2, dtype=dtype)
        accumulated = start.copy()
        tk.decode(packed, out=accumulated, accumulate=True)
        for alignment, end in ALIGNMENTS:
            held = tk.Packed(packed.layout, placed.data.hold(packed.data, alignment, end))
            tk.decode(held, out=placed.out.make(start.dtype, n, alignment, end))
            placed.out.check(decoded)
            tk.decode_sum([held, held], out=placed.out.make(start.dtype, n, alignment, end))
            placed.out.check(total)
            out = placed.out.make(start.dtype, n, alignment, end)
            out[:] = start
            tk.decode(held, out=out, accumulate=True)
            placed.out.check(accumulated)
            tk.validate(held)


@pytest.mark.host
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("packing", TERNARY)
@pytest.mark.parametrize("n", LENGTHS)
def test_pack_and_unpack_at_every_alignment(n: int, packing: str, placed: Placed) -> None:
    trits = np.random.default_rng(n).integers(-1, 2, n).astype(np.int8)
    payload = tk.pack(trits, packing=packing)
    for alignment, end in ALIGNMENTS:
        held = placed.x.hold(trits, alignment, end)
        tk.pack(held, packing=packing, out=placed.out.make(np.uint8, payload.size, alignment, end))
        placed.out.check(payload)
        held = placed.data.hold(payload, alignment, end)
        tk.unpack(held, shape=n, packing=packing, out=placed.out.make(np.int8, n, alignment, end))
        placed.out.check(trits)


@pytest.mark.host
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("n", LENGTHS)
def test_sums_and_second_hops_at_every_alignment(n: int, packing: str, placed: Placed) -> None:
    """Counts of every width are read at each place, and written to it."""
    packed = tk.encode(layer("normal", n), packing=packing)
    sums = [tk.sum_trits([packed] * workers) for workers in (7, 127, 200)]
    draw = {"seed": 1, "offset": 2}
    passed = tk.Scales(np.ones(1, np.float32), np.full(1, np.inf, np.float32))
    results: list[Any] = []
    for message in (packed, *sums):
        summed = [tk.sum_trits([message]), tk.sum_trits([message, packed]).data, tk.sum_trits([packed, message]).data]
        second = [tk.repack([message], **draw).data, tk.repack([message] * 2, scales=passed, **draw).data]
        results.append((message, summed, second, tk.decode(message)))
    for alignment, end in ALIGNMENTS:
        for message, (alone, first, last), (measured, given), decoded in results:
            held = replace(message, data=placed.data.hold(np.asarray(message.data), alignment, end))

            def out(want: Array, at: int = alignment, end: bool = end) -> Array:
                return placed.out.make(want.dtype, want.size, at, end)

            tk.sum_trits([held], out=out(alone.data))
            placed.out.check(alone.data)
            tk.sum_trits([held, packed], out=out(first))
            placed.out.check(first)
            tk.sum_trits([packed, held], out=out(last))
            placed.out.check(last)
            tk.repack([held], out=out(measured), **draw)
            placed.out.check(measured)
            tk.repack([held, held], scales=passed, out=out(given), **draw)
            placed.out.check(given)
            tk.decode(held, out=out(decoded))
            placed.out.check(decoded)
            tk.validate(held)


# ---- every byte of an output is written

SIZES = (12_900, 0, 2561, 1, 640, 7)
LAYOUTS = (
    tk.Layout([(n,) for n in SIZES]),
    tk.Layout([(n,) for n in SIZES], "bfloat16", "base3", block=2560),
    tk.Layout(
        [(n,) for n in SIZES], "float64", ["float32", "base3", "two_bit", "float32", "base3", "two_bit"], shards=5
    ),
    tk.Layout([(n,) for n in SIZES], "float16", block=5120, shards=3).shard(1),
    tk.Layout([(3,), (0,)], shards=9),
    tk.Layout([]),
)
POISONS = (0x00, 0xAA, 0x55, 0xFF)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["normal", "zero", "nan"])
def test_no_byte_of_an_output_is_left_as_it_was(layout: tk.Layout, kind: str) -> None:
    x = layer(kind, layout.size, layout.dtype)
    results = []
    for poison in POISONS:

        def filled(size: int, dtype: Any, poison: int = poison) -> Array:
            return np.full(size * np.dtype(dtype).itemsize, poison, np.uint8).view(dtype)

        packed = tk.encode(x, layout=layout, out=filled(layout.nbytes, np.uint8))
        scales = tk.Scales(*(filled(layout.groups, np.float32) for _ in range(2)))
        tk.scales(x, layout=layout, out=scales)
        trits, scale = tk.ternarize(x, out=(filled(layout.size, np.int8), filled(1, np.float32)))
        values = (
            packed.data,
            *scales,
            trits,
            scale,
            tk.clip(x, out=filled(layout.size, x.dtype)),
            tk.decode(packed, out=filled(layout.size, x.dtype)),
            tk.decode_sum([packed, packed], out=filled(layout.size, x.dtype)),
            tk.sum_trits([packed, packed], out=filled(tk.sum_trits([packed] * 2).layout.nbytes, np.uint8)).data,
            tk.sum_trits([packed] * 200, out=filled(tk.sum_trits([packed] * 200).layout.nbytes, np.uint8)).data,
            tk.repack([packed, packed], seed=0, offset=0, out=filled(layout.nbytes, np.uint8)).data,
            *(
                part
                for packing, rows in ref.TILE_ROWS.items()
                for payload in [tk.pack(trits, packing=packing, out=filled(-(-trits.size // rows), np.uint8))]
                for part in (
                    payload,
                    tk.unpack(payload, shape=trits.size, packing=packing, out=filled(trits.size, np.int8)),
                )
            ),
        )
        results.append([bits_of(value).tobytes() for value in values])
    assert all(result == results[0] for result in results[1:])


# ---- overlap


def overlapping(a: slice, b: slice) -> bool:
    return a.start < b.stop and b.start < a.stop and a.start < a.stop and b.start < b.stop


def sweep(reads: int, writes: int) -> Iterator[tuple[Array, Array, bool]]:
    """Two parts of one buffer, the second from 300 bytes before the first to 300 behind it."""
    memory = np.zeros(2 * (reads + writes + 300), np.uint8)
    first = slice(writes + 300, writes + 300 + reads)
    for offset in range(-writes - 256, reads + 257):
        second = slice(first.start + offset, first.start + offset + writes)
        memory[:] = 0
        yield memory[first], memory[second], overlapping(first, second)


N = 70


@lru_cache
def message_of(n: int) -> tk.Packed:
    return tk.encode(layer("normal", n))


def passed_from(part: Array) -> tk.Scales:
    part.view(np.float32)[:] = 1
    return tk.Scales(part[:4].view(np.float32), part[4:].view(np.float32))


#: Bytes that are read and written, and a call on both.
OVERLAPS: dict[str, tuple[int, int, Callable[[Array, Array], Any]]] = {
    "encode": (4 * N, 48, lambda x, out: tk.encode(x.view(np.float32), out=out)),
    "encode, scales": (8, 48, lambda s, out: tk.encode(layer("normal", N), scales=passed_from(s), out=out)),
    "decode": (48, 4 * N, lambda x, out: tk.decode(tk.Packed(message_of(N).layout, x), out=out.view(np.float32))),
    "decode_sum": (
        48,
        2 * N,
        lambda x, out: tk.decode_sum([message_of(N), tk.Packed(message_of(N).layout, x)], out=out.view(np.float16)),
    ),
    "sum_trits": (48, 64, lambda x, out: tk.sum_trits([message_of(N), tk.Packed(message_of(N).layout, x)], out=out)),
    "repack": (
        48,
        48,
        lambda x, out: tk.repack([message_of(N), tk.Packed(message_of(N).layout, x)], seed=0, offset=0, out=out),
    ),
    "repack, scales": (
        8,
        48,
        lambda s, out: tk.repack([message_of(N)], seed=0, offset=0, scales=passed_from(s), out=out),
    ),
    "ternarize": (2 * N, N, lambda x, out: tk.ternarize(x.view(np.float16), out=(out.view(np.int8), one()))),
    "ternarize, scale": (
        4 * N,
        4,
        lambda x, out: tk.ternarize(x.view(np.float32), out=(np.empty(N, np.int8), out.view(np.float32))),
    ),
    "scales": (4 * N, 4, lambda x, out: tk.scales(x.view(np.float32), out=tk.Scales(out.view(np.float32), one()))),
    "scales, limit": (
        4 * N,
        4,
        lambda x, out: tk.scales(x.view(np.float32), out=tk.Scales(one(), out.view(np.float32))),
    ),
    "clip, scales": (8, 4 * N, lambda s, out: tk.clip(layer("zero", N), scales=passed_from(s), out=out.view("f4"))),
    "pack": (N, 18, lambda x, out: tk.pack(x.view(np.int8), out=out)),
    "unpack": (18, N, lambda x, out: tk.unpack(x, shape=N, out=out.view(np.int8))),
    "ternarize, both outputs": (
        4,
        N,
        lambda s, out: tk.ternarize(layer("normal", N), out=(out.view(np.int8), s.view(np.float32))),
    ),
    "decode, two layers": (
        8,
        8,
        lambda a, b: tk.decode(tk.encode([np.ones(2, np.float32)] * 2), out=[a.view("f4"), b.view("f4")]),
    ),
}


def one() -> Array:
    return np.empty(1, np.float32)


@pytest.mark.parametrize("name", OVERLAPS)
def test_overlapping_outputs_are_refused(name: str) -> None:
    reads, writes, call = OVERLAPS[name]
    # clip with passed scales reads its limits, the second half of them, alone.
    begin = reads // 2 if name == "clip, scales" else 0
    refused = 0
    for first, second, overlap in sweep(reads, writes):
        if begin:
            overlap = np.shares_memory(first[begin:], second)
        if not overlap:
            call(first, second)
            continue
        refused += 1
        with pytest.raises(ValueError, match=r"out.*: overlaps the memory of "):
            call(first, second)
    assert refused == reads - begin + writes - 1


def test_clip_may_work_in_place_but_not_nearly() -> None:
    nbytes = 4 * N
    for first, second, overlap in sweep(nbytes, nbytes):
        x, out = first.view(np.float32), second.view(np.float32)
        if overlap and x.ctypes.data != out.ctypes.data:
            with pytest.raises(ValueError, match="out: overlaps the memory of x"):
                tk.clip(x, out=out)
        else:
            tk.clip(x, out=out)
    a, b = layer("outlier", 50), layer("outlier", 60)
    want = [tk.clip(a), tk.clip(b)]
    with pytest.raises(ValueError, match=r"out\[1\]: overlaps the memory of x\[0\]|out\[0\]: overlaps"):
        tk.clip([a, a[::1]], out=[a[::1], a])
    both = [a, b]
    tk.clip(both, out=both)
    assert_same(flat(both), flat(want))


def test_lists_that_overlap_anywhere_are_refused() -> None:
    """Of many arrays in one memory: as comparing each with each says, but for an output that is its input."""
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        count = int(rng.integers(1, 7))
        sizes = rng.integers(0, 4, count)
        memory = np.zeros(12 * count, np.float32)
        x, out = (
            [memory[at : at + n] for at, n in zip(rng.integers(0, 8 * count, count), sizes, strict=True)] for _ in "xo"
        )
        for i in range(count):
            if rng.integers(3) == 0:
                out[i] = x[i]
        overlaps = any(
            np.shares_memory(a, out[j]) and (i != j or a.ctypes.data != out[j].ctypes.data)
            for i, a in enumerate(x)
            for j in range(count)
        ) or any(np.shares_memory(out[i], out[j]) for i in range(count) for j in range(i))
        if not overlaps:
            tk.clip(x, out=out)
            continue
        refused += 1
        with pytest.raises(ValueError, match=r"^out(\[\d\])?: overlaps the memory of (x|out)(\[\d\])?$"):
            tk.clip(x, out=out)
    assert 50 < refused < 250


def test_what_is_empty_overlaps_nothing() -> None:
    x = np.ones((4, 0), np.float32)
    assert tk.clip(x, out=x) is x
    packed = tk.encode(x)
    tk.decode(packed, out=packed.data[3:3].view(np.float32))


# ---- inputs


@pytest.mark.usefixtures("isa", "threads")
def test_inputs_are_never_written() -> None:
    """Threads included: all inputs lie in read-only memory."""
    n = 3 * 2**16 + 77
    pages = [Pages(-(-4 * n // mmap.PAGESIZE)) for _ in range(3)]
    x = pages[0].hold(layer("outlier", n), 0, False)
    passed = tk.scales(x)
    held = tk.Scales(*np.split(pages[1].hold(np.concatenate(passed), 0, False), 2))
    for packing in PACKINGS:
        packed = tk.encode(x, packing=packing, scales=held, seed=3)
        data = pages[2].hold(packed.data, 0, False)
        packed = tk.Packed(packed.layout, data)
        tk.decode(packed)
        tk.decode_sum([packed, packed])
        tk.validate(packed)
    trits, _ = tk.ternarize(x, scales=held)
    tk.clip(x, scales=held)
    tk.clip(x)
    trits = pages[0].hold(trits, 0, False)
    payload = pages[1].hold(tk.pack(trits), 0, False)
    assert_same(tk.unpack(payload, shape=n), trits)
    seed = pages[2].hold(np.array(3), 0, False)
    assert_same(tk.encode(layer("normal", 9), seed=seed.reshape(())).data, tk.encode(layer("normal", 9), seed=3).data)


# ---- DLPack: a producer of our own, so that every field of what it gives can be wrong


class DLDevice(ctypes.Structure):
    _fields_ = (("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


class DLDataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", DLDevice),
        ("ndim", ctypes.c_int32),
        ("dtype", DLDataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
CapsuleDestructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Legacy(ctypes.Structure):
    _fields_ = (("dl_tensor", DLTensor), ("manager_ctx", ctypes.c_void_p), ("deleter", Deleter))


class Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", Deleter),
        ("flags", ctypes.c_uint64),
        ("dl_tensor", DLTensor),
    )


PyCapsule_New = ctypes.pythonapi.PyCapsule_New
PyCapsule_New.restype = ctypes.py_object
PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, CapsuleDestructor]
# Given addresses, since a capsule that is being destroyed must not be held again.
PyCapsule_GetName = ctypes.pythonapi.PyCapsule_GetName
PyCapsule_GetName.restype = ctypes.c_char_p
PyCapsule_GetName.argtypes = [ctypes.c_void_p]
PyCapsule_GetPointer = ctypes.pythonapi.PyCapsule_GetPointer
PyCapsule_GetPointer.restype = ctypes.c_void_p
PyCapsule_GetPointer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]

READ_ONLY = 1
INT8 = (0, 8)


class Producer:
    """An array of bytes that speaks DLPack as the given fields say, and counts how often its deleter runs."""

    def __init__(self, data: Array, code: tuple[int, int] = INT8, legacy: bool = False, **fields: Any) -> None:
        self.data, self.legacy, self.given = data, legacy, fields.pop("given", None)
        self.name = fields.pop("name", b"dltensor" if legacy else b"dltensor_versioned")
        self.fields: dict[str, Any] = {"code": code[0], "bits": code[1], "lanes": 1} | fields
        self.made = self.deleted = 0

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.fields.get("device_type", 1), 0

    def __dlpack__(self, *, max_version: Any = None, stream: Any = None, **others: Any) -> Any:
        if isinstance(self.given, Exception):
            raise self.given
        if self.given is not None:
            return self.given
        self.made += 1
        export = Export(self)
        alive[export.address] = export
        return PyCapsule_New(export.address, self.name, destroy_capsule)


class Export:
    """What one capsule holds."""

    def __init__(self, producer: Producer) -> None:
        self.producer = producer
        fields = producer.fields
        self.managed = Legacy() if producer.legacy else Versioned(fields.get("major", 1), 1)
        self.address = ctypes.addressof(self.managed)
        tensor = self.managed.dl_tensor
        shape = fields.get("shape", producer.data.shape)
        self.shape = (ctypes.c_int64 * len(shape))(*shape)
        tensor.shape = self.shape
        tensor.ndim = len(shape)
        if "strides" in fields:
            self.strides = (ctypes.c_int64 * len(shape))(*fields["strides"])
            tensor.strides = self.strides
        tensor.data = fields.get("address", producer.data.ctypes.data)
        tensor.device.device_type = fields.get("device_type", 1)
        tensor.dtype = DLDataType(fields["code"], fields["bits"], fields["lanes"])
        tensor.byte_offset = fields.get("byte_offset", 0)
        if not producer.legacy:
            self.managed.flags = fields.get("flags", 0)
        if fields.get("deleter", True):
            self.managed.deleter = delete


#: Exports that no one has deleted, by address.
alive: dict[int, Export] = {}


@Deleter
def delete(address: int) -> None:
    alive.pop(address).producer.deleted += 1


@CapsuleDestructor
def destroy_capsule(capsule: int) -> None:
    """Free the tensor of a capsule that no one has taken over, as DLPack asks of producers."""
    name = PyCapsule_GetName(capsule)
    export = alive.get(PyCapsule_GetPointer(capsule, name))
    if export is not None and export.producer.name == name:
        delete(export.address)


class OldProducer(Producer):
    """From before max_version."""

    def __dlpack__(self, stream: Any = None) -> Any:  # type: ignore[override]
        return super().__dlpack__()


TRITS = np.array([1, -1, 0, 1, 1, 0, 0, 0, -1], np.int8)
PAYLOAD = ref.pack(TRITS, "two_bit")


def packed_trits(producer: Any) -> Array:
    out = np.full(PAYLOAD.shape, 0xAA, np.uint8)
    _core.pack(producer, 0, out)
    return out


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"legacy": True},
        {"deleter": False},
        {"deleter": False, "legacy": True},
        {"flags": READ_ONLY},
        {"strides": (1,)},
        {"shape": (3, 3), "strides": (3, 1)},
        {"shape": (9, 1), "strides": (1, 12345)},
        {"shape": (1, 9, 1, 1), "strides": (-7, 1, 0, 99)},
        {"shape": (1,) * 31 + (9,)},
        {"byte_offset": 16},
        {"device_type": 3},  # page-locked host memory
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [Producer, OldProducer])
def test_what_a_producer_may_give(kind: type[Producer], fields: dict[str, Any]) -> None:
    data = TRITS
    if "byte_offset" in fields:
        data = np.concatenate([np.full(16, 77, np.int8), TRITS])
        fields = fields | {"shape": TRITS.shape}
    producer = kind(data, **fields)
    assert_same(packed_trits(producer), PAYLOAD)
    gc.collect()
    assert producer.made == 1
    assert producer.deleted == (1 if fields.get("deleter", True) else 0)


BOGUS = 0xDEAD0000  # an address that faults if it is looked at


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"name": b"dltensor_"}, BufferError, "expected an unused DLPack capsule from __dlpack__ of .*, got none"),
        (
            {"name": b"used_dltensor_versioned"},
            BufferError,
            "expected an unused DLPack capsule from __dlpack__ of .*, got none",
        ),
        (
            {"name": b"used_dltensor", "legacy": True},
            BufferError,
            "expected an unused DLPack capsule from __dlpack__ of .*, got none",
        ),
        ({"major": 2, "address": BOGUS}, BufferError, "expected DLPack version 1, got version 2"),
        ({"major": 0, "address": BOGUS}, BufferError, "expected DLPack version 1, got version 0"),
        ({"device_type": 2, "address": BOGUS}, ValueError, "DLPack device type 2"),
        ({"device_type": 10, "address": BOGUS, "legacy": True}, ValueError, "DLPack device type 10"),
        ({"address": 0}, TypeError, "expected an array with memory, got a fake"),
        ({"code": (1, 8), "address": BOGUS}, TypeError, "expected int8, got uint8"),
        ({"strides": (2,), "address": BOGUS}, ValueError, "expected a dense row-major array"),
        ({"strides": (-1,), "address": BOGUS}, ValueError, "expected a dense row-major array"),
        ({"strides": (0,), "address": BOGUS}, ValueError, "expected a dense row-major array"),
        ({"shape": (3, 3), "strides": (1, 3), "address": BOGUS}, ValueError, "expected a dense row-major array"),
        ({"shape": (3, 3), "strides": (6, 1), "address": BOGUS, "legacy": True}, ValueError, "row-major"),
        ({"given": 5}, BufferError, "expected an unused DLPack capsule from __dlpack__ of .*, got none"),
        ({"given": "text"}, BufferError, "expected an unused DLPack capsule from __dlpack__ of .*, got none"),
        ({"given": ValueError("mine")}, ValueError, "mine"),
        ({"given": TypeError("mine")}, TypeError, "mine"),
        ({"given": RuntimeError("mine")}, RuntimeError, "mine"),
    ],
    ids=str,
)
def test_what_a_producer_may_not_give(fields: dict[str, Any], error: type[Exception], text: str) -> None:
    skip_if_cuda_is_built(fields.get("device_type"))
    producer = Producer(TRITS, **fields)
    out = np.full(PAYLOAD.shape, 0xAA, np.uint8)
    with pytest.raises(error, match=text):
        _core.pack(producer, 0, out)
    gc.collect()
    assert producer.deleted == producer.made
    assert (out == 0xAA).all()


def test_a_producer_without_the_method() -> None:
    with pytest.raises(TypeError, match="trits: expected an array, got object"):
        packed_trits(object())


def test_a_capsule_that_is_given_twice() -> None:
    once = Producer(TRITS)
    capsule = once.__dlpack__()
    again = Producer(TRITS, given=capsule)
    assert_same(packed_trits(again), PAYLOAD)
    with pytest.raises(BufferError, match=r"expected an unused DLPack capsule from __dlpack__ of .*, got none"):
        packed_trits(again)
    assert once.deleted == 1


def test_a_deleter_that_runs_when_other_arguments_are_wrong() -> None:
    producer = Producer(TRITS)
    with pytest.raises(ValueError, match="out: expected 3 elements, got 4"):
        _core.pack(producer, 0, np.empty(4, np.uint8))
    with pytest.raises(TypeError, match="out: expected an array, got int"):
        _core.pack(producer, 0, 7)
    gc.collect()
    assert producer.deleted == producer.made == 2


@pytest.mark.parametrize("legacy", [False, True])
def test_every_other_dlpack_type_is_refused_before_its_memory_is_read(legacy: bool) -> None:
    for code in range(9):
        for bits in (0, 1, 8, 16, 32, 64, 128):
            for lanes in (0, 1, 2):
                if (code, bits, lanes) == (*INT8, 1):
                    continue
                producer = Producer(TRITS, (code, bits), legacy, lanes=lanes, address=BOGUS)
                with pytest.raises(TypeError, match="trits: "):
                    packed_trits(producer)
                assert producer.deleted == producer.made == 1


@pytest.mark.parametrize("fields", [{"legacy": True}, {"flags": READ_ONLY}], ids=str)
def test_a_producer_that_may_not_be_written(fields: dict[str, Any]) -> None:
    target = np.full(9, 7, np.int8)
    producer = Producer(target, **fields)
    with pytest.raises(BufferError, match="out: expected a writable array, got a read-only one"):
        _core.unpack(PAYLOAD, 0, producer)
    assert (target == 7).all()
    gc.collect()
    assert producer.deleted == 1


def test_a_producer_that_is_written() -> None:
    target = np.full(9, 7, np.int8)
    producer = Producer(target)
    _core.unpack(PAYLOAD, 0, producer)
    assert_same(target, TRITS)
    assert producer.deleted == 1


def test_a_buffer_that_no_one_takes_over_frees_itself() -> None:
    for version in (None, (0, 8), (1, 0), (1, 1), (2, 0)):
        capsule = _core.Buffer([3, 4], "float32").__dlpack__(max_version=version)
        assert ("versioned" in repr(capsule)) == (version is not None and version[0] >= 1)
        del capsule
    for shape, text in (([-1], "expected sizes >= 0"), ([2**20, 2**20], r"more than 2\*\*36 elements")):
        with pytest.raises(ValueError, match=text):
            _core.Buffer(shape, "float32")
    with pytest.raises(ValueError, match=r"^dtype: expected float32, .* or uint32, got 'complex64'$"):
        _core.Buffer([3], "complex64")


# ---- leaks


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def assert_does_not_grow(call: Callable[[], Any], calls: int = 10_000) -> None:
    """Assert that memory grows by less than 1 MB: 100 bytes a call would show. A leak grows every time."""
    if "libasan" in Path("/proc/self/maps").read_text():
        pytest.skip("AddressSanitizer keeps freed memory, and finds leaks by itself")
    for _ in range(calls // 10):
        call()
    grown = []
    for _ in range(3):
        gc.collect()
        before = resident()
        for _ in range(calls):
            call()
        gc.collect()
        grown.append(resident() - before)
        if grown[-1] < 2**20:
            return
    pytest.fail(f"{calls} calls take {grown} bytes")


def quietly(call: Callable[[], Any], error: type[Exception]) -> Callable[[], None]:
    def called() -> None:
        with pytest.raises(error):
            call()

    return called


def numpy_calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    layers = bucket((700, 33, 0))
    packed = tk.encode(layers)
    broken = tk.Packed(packed.layout, np.full_like(packed.data, 0xAA))
    yield "encode", lambda: tk.encode(layers, seed=np.array(3), scales=tk.scales(layers))
    yield "decode", lambda: tk.decode(packed)
    yield "decode_sum", lambda: tk.decode_sum([packed] * 70)
    yield "sum_trits and repack", lambda: tk.repack([tk.sum_trits([packed] * 9)] * 2, seed=0, offset=0, clip=2.5)
    yield "ternarize and clip", lambda: (tk.ternarize(layers), tk.clip(layers))
    yield "pack and unpack", lambda: tk.unpack(tk.pack(TRITS), shape=9)
    yield "layouts", lambda: tk.Layout([(next(numbers),)]).pieces
    yield "an error", quietly(lambda: tk.encode(layers, clip=-1), ValueError)
    yield "a corrupt message", quietly(lambda: tk.validate(broken), tk.CorruptMessage)


numbers = iter(range(1 << 40))
NUMPY_CALLS = dict(numpy_calls())


@pytest.mark.parametrize("name", NUMPY_CALLS)
def test_numpy_calls_do_not_leak(name: str) -> None:
    assert_does_not_grow(NUMPY_CALLS[name], 3000)


@pytest.mark.parametrize("legacy", [False, True])
def test_capsules_do_not_leak(legacy: bool) -> None:
    producer = Producer(TRITS, legacy=legacy)
    wrong = Producer(TRITS, (5, 64), legacy=legacy)
    assert_does_not_grow(lambda: packed_trits(producer))
    assert_does_not_grow(quietly(lambda: packed_trits(wrong), TypeError))
    assert producer.deleted == producer.made > 10_000
    assert wrong.deleted == wrong.made > 10_000


def test_buffers_do_not_leak() -> None:
    assert_does_not_grow(lambda: _core.Buffer([5000], "float32").__dlpack__(max_version=(1, 0)))


def test_jax_arrays_do_not_leak() -> None:
    jnp = pytest.importorskip("jax.numpy")
    x = jnp.ones(1000)
    packed = tk.encode(x)
    assert_does_not_grow(lambda: tk.validate(packed))
    assert_does_not_grow(lambda: tk.decode(tk.encode(x)), 3000)
    assert_does_not_grow(quietly(lambda: tk.encode(x, seed=x), TypeError), 3000)
    references = sys.getrefcount(x)
    tk.encode(x)
    assert sys.getrefcount(x) == references


def test_torch_tensors_do_not_leak() -> None:
    torch = pytest.importorskip("torch")
    x = torch.ones(1000)
    assert_does_not_grow(lambda: tk.decode(tk.encode(x)), 3000)
    references = sys.getrefcount(x)
    tk.encode(x)
    assert sys.getrefcount(x) == references
