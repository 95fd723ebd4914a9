"""The C interface: its header, its bytes (those of the Python functions), its errors, and programs built against it."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arrays import DTYPES, PACKINGS, TERNARY, Array, assert_same, bucket, flat, layer

import reference as ref
import terngrad_kernels as tk
from terngrad_kernels import _core

ROOT = Path(__file__).resolve().parents[1]
HEADER = Path(tk.get_include()) / "terngrad_kernels.h"

# ---- the library as the header declares it

C_TYPES = {
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
    "double": ctypes.c_double,
    "tgk_status": ctypes.c_int32,
    "const char*": ctypes.c_char_p,
    "void": None,
}


def c_type(declared: str) -> Any:
    return ctypes.c_void_p if "*" in declared and declared != "const char*" else C_TYPES[declared]


def declared_functions() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Return the result and the arguments, as (type, name), of each function in the header."""
    text = " ".join(re.sub(r"/\*.*?\*/", " ", HEADER.read_text(), flags=re.DOTALL).split())
    found = {}
    for result, name, arguments in re.findall(r"TGK_API ([\w ]+?\*?) ?(tgk_\w+)\(([^()]*)\) TGK_NOEXCEPT;", text):
        pairs = [] if arguments == "void" else [argument.strip().rpartition(" ") for argument in arguments.split(",")]
        found[name] = (result, [(kind.strip(), argument) for kind, _, argument in pairs])
    return found


def numbers_of(header: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"\b(TGK_\w+) = (\d+)", header)}


FUNCTIONS = declared_functions()
NUMBERS = numbers_of(HEADER.read_text())
STATUS = {name: value for name, value in NUMBERS.items() if name == "TGK_OK" or name.startswith("TGK_ERROR")}
LIBRARY = ctypes.CDLL(tk.get_library())
for _name, (_result, _arguments) in FUNCTIONS.items():
    getattr(LIBRARY, _name).restype = c_type(_result)
    getattr(LIBRARY, _name).argtypes = [c_type(kind) for kind, _ in _arguments]


#: In the build that runs the kernels for CUDA devices on the host, where all calls go there (docs/install.md).
EMULATES = _core.EMULATED and os.environ.get("TERNGRAD_KERNELS_EMULATE") == "1"
SCRATCH = np.full(2**20, 0xAA, np.uint8)


def address(value: Any) -> Any:
    """Return what ctypes takes for an array, a list of arrays (an array of pointers) or a structure."""
    if isinstance(value, np.ndarray):
        return value.ctypes.data
    if isinstance(value, list):
        return ctypes.cast((ctypes.c_void_p * len(value))(*map(address, value)), ctypes.c_void_p)
    return ctypes.addressof(value) if isinstance(value, (ctypes.Structure, ctypes.Array)) else value


def call(name: str, /, **arguments: Any) -> Any:
    """Call a function with its arguments by the names that the header gives them."""
    order = [argument for _, argument in FUNCTIONS[name][1]]
    assert sorted(order) == sorted(arguments), f"{name} takes {order}"
    if EMULATES and arguments.get("stream", SCRATCH) is None:
        arguments["stream"] = Stream(ctypes.sizeof(Stream), 2, 0, None, SCRATCH.ctypes.data, SCRATCH.size)
    return getattr(LIBRARY, name)(*[address(arguments[argument]) for argument in order])


def last_error() -> str:
    return str(LIBRARY.tgk_last_error().decode())


def good(name: str, /, **arguments: Any) -> None:
    status = call(name, **arguments)
    assert status == 0, last_error()


class Options(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("clip", ctypes.c_double),
        ("seed", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("layer", ctypes.c_int64),
        ("scale", ctypes.c_void_p),
        ("limit", ctypes.c_void_p),
        ("seed_at", ctypes.c_void_p),
        ("offset_at", ctypes.c_void_p),
    )


class Stream(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("handle", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("scratch_nbytes", ctypes.c_int64),
    )


class Piece(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        *((name, ctypes.c_int64) for name in ("layer", "first", "size", "at", "group")),
        *((name, ctypes.c_int64) for name in ("scale_at", "payload_at", "payload_nbytes")),
        ("packing", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    )


def options(
    clip: float = 2.5, seed: int = 0, offset: int = 0, layer: int = 0, scales: tuple[Array, Array] | None = None
) -> Options:
    scale, limit = (x.ctypes.data for x in scales) if scales else (None, None)
    return Options(ctypes.sizeof(Options), clip, seed, offset, layer, scale, limit)


class CLayout:
    """A tgk_layout of the same geometry as a Layout."""

    def __init__(self, layout: tk.Layout) -> None:
        names = (layout.packing,) if isinstance(layout.packing, str) else layout.packing
        sizes = np.array([np.prod(shape, dtype=np.int64) for shape in layout.shapes], np.int64)
        handle = ctypes.c_void_p()
        good(
            "tgk_layout_create",
            sizes=sizes,
            layers=sizes.size,
            packings=np.array([PACKINGS.index(name) for name in names], np.int32),
            packing_count=len(names),
            block=layout.block or 0,
            shards=layout.shards,
            shard=-1 if layout.index is None else layout.index,
            layout=ctypes.addressof(handle),
        )
        self.handle = handle.value

    def __del__(self) -> None:
        call("tgk_layout_destroy", layout=self.handle)


def test_the_header_was_understood() -> None:
    assert len(FUNCTIONS) == HEADER.read_text().count("\nTGK_API ")
    assert {"tgk_encode", "tgk_decode", "tgk_encode_layer", "tgk_layout_create"} <= FUNCTIONS.keys()
    assert [name for _, name in FUNCTIONS["tgk_pack"][1]] == ["trits", "n", "packing", "payload", "nbytes", "stream"]


def test_the_library_has_what_the_header_declares_and_nothing_else() -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm to look with")
    shown = subprocess.run([nm, "-D", "--defined-only", tk.get_library()], check=True, capture_output=True, text=True)
    assert set(re.findall(r" T (tgk_\w+)", shown.stdout)) == FUNCTIONS.keys()
    # With the version that programs are linked to: one of another TGK_ABI_VERSION does not load.
    assert set(re.findall(r" T tgk_\w+@@(\w+)", shown.stdout)) <= {f"TGK_{call('tgk_abi_version')}"}


def test_the_library_is_the_one_that_the_module_uses() -> None:
    before = tk.get_num_threads()
    try:
        good("tgk_set_num_threads", count=7)
        assert tk.get_num_threads() == 7
        tk.set_num_threads(3)
        assert call("tgk_get_num_threads") == 3
    finally:
        tk.set_num_threads(before)
    assert call("tgk_isa").decode() == tk.build_info()["instruction_set"]
    assert call("tgk_version").decode() == tk.__version__


def test_statuses_have_names() -> None:
    assert sorted(STATUS.values()) == list(range(8))
    for name, value in STATUS.items():
        assert call("tgk_status_name", status=value).decode() == name
    assert call("tgk_status_name", status=8) == call("tgk_status_name", status=-1) == b"unknown"


# ---- bytes: those of the Python functions

LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {"shapes": [(1000,)]},
    "empty": {"shapes": [(0,)]},
    "none": {"shapes": []},
    "base3": {"shapes": [(641,)], "packing": "base3"},
    "carried": {"shapes": [(33,)], "packing": "float32"},
    "mixed": {"shapes": [(129, 3), (0,), (), (2561,)], "packing": ("base3", "two_bit", "float32", "two_bit")},
    "blocks": {"shapes": [(6000,), (2560,)], "block": 2560},
    "shards": {"shapes": [(9000,), (17,), (5121,)], "packing": ("two_bit", "float32", "base3"), "shards": 3},
    "threads": {"shapes": [(200_003,), (70_000,)], "packing": ("base3", "two_bit")},
}


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> tk.Layout:
    return tk.Layout(**LAYOUTS[request.param])


def spread(layout: tk.Layout, dtype: str, seed: int = 1) -> tuple[list[Array], Array]:
    """Return layers of a layout, and all of them in one array."""
    layers = bucket(layout.sizes, dtype, seed=seed)
    return layers, flat(layers, dtype)


def encoded(
    made: CLayout, x: list[Array], dtype: str, nbytes: int, told: Options | None = None, stream: Any = None
) -> Array:
    data = np.full(nbytes, 0xAA, np.uint8)
    good(
        "tgk_encode",
        layout=made.handle,
        x=x,
        count=len(x),
        dtype=DTYPES.index(dtype),
        options=told,
        data=data,
        nbytes=nbytes,
        stream=stream,
    )
    return data


def test_layouts_agree(layout: tk.Layout) -> None:
    for each in (layout, *(layout.shard(i) for i in range(layout.shards))):
        made = CLayout(each)
        names = ("nbytes", "size", "groups")
        assert [call(f"tgk_layout_{name}", layout=made.handle) for name in names] == [getattr(each, n) for n in names]
        assert call("tgk_layout_layers", layout=made.handle) == len(each.shapes)
        assert call("tgk_layout_pieces", layout=made.handle) == len(each.pieces)
        at = 0
        for i, want in enumerate(each.pieces):
            piece = Piece(ctypes.sizeof(Piece))
            good("tgk_layout_piece", layout=made.handle, index=i, piece=piece)
            got = {name: getattr(piece, name) for name, _ in Piece._fields_}
            assert got.pop("at") == at
            assert got.pop("struct_size") == ctypes.sizeof(Piece)
            assert got.pop("reserved") == 0
            got |= {"packing": PACKINGS[got["packing"]], "nbytes": got.pop("payload_nbytes")}
            assert got == want._asdict()
            at += want.size
    for name in ("nbytes", "size", "layers", "groups", "pieces"):
        assert call(f"tgk_layout_{name}", layout=None) == -1


@pytest.mark.parametrize("dtype", DTYPES)
def test_encode(layout: tk.Layout, dtype: str) -> None:
    layout = tk.Layout(layout.shapes, dtype, layout.packing, layout.block, layout.shards)
    made = CLayout(layout)
    layers, all_of_them = spread(layout, dtype)
    want = tk.encode(all_of_them, layout=layout, seed=-7, offset=2**40, layer=5).data
    told = options(seed=2**64 - 7, offset=2**40, layer=5)
    assert_same(encoded(made, [all_of_them], dtype, layout.nbytes, told), want, "flat")
    assert_same(encoded(made, layers, dtype, layout.nbytes, told), want, "a layer each")
    assert_same(encoded(made, layers, dtype, layout.nbytes), tk.encode(all_of_them, layout=layout).data, "defaults")
    unclipped = tk.encode(all_of_them, layout=layout, clip=None).data
    assert_same(encoded(made, layers, dtype, layout.nbytes, options(clip=0.0)), unclipped, "no clipping")


def test_encode_of_a_shard_and_with_passed_scales(layout: tk.Layout) -> None:
    _, x = spread(layout, "float32")
    own = tk.scales(x, layout=layout)
    shared = own._replace(scale=own.scale * np.float32(1.5))
    want = tk.encode(x, layout=layout, seed=3, scales=shared).data
    assert_same(encoded(CLayout(layout), [x], "float32", layout.nbytes, options(seed=3, scales=shared)), want)
    for each in (layout.shard(i) for i in range(layout.shards)):
        part = x[: each.size]
        want = tk.encode(part, layout=each, seed=3).data
        assert_same(encoded(CLayout(each), [part], "float32", each.nbytes, options(seed=3)), want)


@pytest.mark.parametrize("size", [24, 40])
def test_host_streams(layout: tk.Layout, size: int) -> None:
    """Also of a program that was built with the first header, whose structure ended with `handle`."""
    _, x = spread(layout, "float32")
    stream = Stream(size, NUMBERS["TGK_DEVICE_CPU"], 0, None, *((4096, 1) if size == 24 else ()))
    want = tk.encode(x, layout=layout).data
    assert_same(encoded(CLayout(layout), [x], "float32", layout.nbytes, None, stream), want)


def test_seeds_that_lie_in_memory(layout: tk.Layout) -> None:
    _, x = spread(layout, "float32")
    want = tk.encode(x, layout=layout, seed=-7, offset=2**40).data
    for seed, offset in ((2**64 - 7, None), (None, 2**40), (2**64 - 7, 2**40)):
        held = [None if word is None else np.array([word], np.uint64) for word in (seed, offset)]
        told = options(seed=2**64 - 7 if seed is None else 1, offset=2**40 if offset is None else 1)
        told.seed_at, told.offset_at = (None if word is None else word.ctypes.data for word in held)
        assert_same(encoded(CLayout(layout), [x], "float32", layout.nbytes, told), want)


def test_scratch(layout: tk.Layout) -> None:
    """What a call with a device needs: the same as Python says, and nothing without kernels for devices."""
    made = CLayout(layout)
    for measured, pointers in ((0, 1), (1, 1), (0, 200), (1, 10_000)):
        found = np.full(1, -1, np.int64)
        good("tgk_scratch_nbytes", layout=made.handle, measured=measured, pointers=pointers, nbytes=found)
        assert found[0] == layout.geometry.scratch_nbytes(bool(measured), pointers)
        assert (found[0] > 0) == ((measured == 1 or pointers > 192) and (_core.CUDA_BUILT or _core.EMULATED))


@pytest.mark.parametrize("dtype", DTYPES)
def test_decode_accumulate_and_decode_sum(layout: tk.Layout, dtype: str) -> None:
    made = CLayout(layout)
    packed = [tk.encode(spread(layout, "float32", seed)[1], layout=layout, seed=seed) for seed in range(3)]
    common = {"layout": made.handle, "nbytes": layout.nbytes, "dtype": DTYPES.index(dtype), "stream": None}
    separate = [np.empty(size, ref.DTYPES[dtype]) for size in layout.sizes]
    together = np.empty(layout.size, ref.DTYPES[dtype])
    for out in ([together], separate):
        into = {**common, "out": out, "out_count": len(out)}
        good("tgk_decode", data=packed[0].data, weight=1.0, **into)
        assert_same(flat(out, dtype), tk.decode(packed[0], dtype=dtype), "decode")
        good("tgk_accumulate", data=packed[1].data, weight=-0.3, **into)
        want = tk.decode(packed[0], dtype=dtype)
        tk.decode(packed[1], out=want, weight=-0.3, accumulate=True)
        assert_same(flat(out, dtype), want, "accumulate")
        messages = [one.data for one in packed]
        weights = np.array([0.5, 0.25, -1.0])
        good("tgk_decode_sum", messages=messages, count=3, weights=weights, **into)
        assert_same(flat(out, dtype), tk.decode_sum(packed, weights=weights.tolist(), dtype=dtype), "decode_sum")
        good("tgk_decode_sum", messages=messages, count=3, weights=None, **into)
        assert_same(flat(out, dtype), tk.decode_sum(packed, dtype=dtype), "decode_sum, weights 1")


def with_ternary(made: CLayout, packing: int) -> CLayout:
    """Return the same layout with other packings, as tgk_layout_with_ternary makes it."""
    handle = ctypes.c_void_p()
    good("tgk_layout_with_ternary", layout=made.handle, packing=packing, result=ctypes.addressof(handle))
    other = CLayout.__new__(CLayout)
    other.handle = handle.value
    return other


@pytest.mark.parametrize(("workers", "packing"), [(1, 3), (7, 3), (8, 4), (127, 4), (128, 5), (32767, 5)])
def test_counts_packing(workers: int, packing: int) -> None:
    found = np.zeros(1, np.int32)
    good("tgk_counts_packing", workers=workers, packing=found)
    assert found[0] == packing


def test_sum_trits_and_repack(layout: tk.Layout) -> None:
    for each in (layout, *(layout.shard(i) for i in range(layout.shards))):
        made = CLayout(each)
        x = [spread(layout, "float32", seed)[1][: each.size] for seed in range(3)]
        shared = tk.Scales(np.ones(each.groups, np.float32), np.full(each.groups, np.inf, np.float32))
        packed = [tk.encode(x[i], layout=each, seed=i, scales=shared) for i in range(3)]
        counts = tk.sum_trits(packed)
        others = with_ternary(made, NUMBERS["TGK_PACKING_COUNTS4"])
        assert call("tgk_layout_nbytes", layout=others.handle) == counts.layout.nbytes

        # All at once; and two of them, then the third with what came out: trits and counts together.
        at_once, in_steps, half = np.full((3, counts.layout.nbytes), 0xAA, np.uint8)
        common: dict[str, Any] = {"result": others.handle, "stream": None}
        sums = {**common, "nbytes": counts.layout.nbytes}
        messages = [one.data for one in packed]
        trits = {"layouts": [made.handle] * 3, "messages": messages, "workers": None}
        good("tgk_sum_trits", count=3, data=at_once, **trits, **sums)
        assert_same(at_once, counts.data, "at once")
        good("tgk_sum_trits", count=2, data=half, **trits, **sums)
        mixed = {"layouts": [others.handle, made.handle], "messages": [half, packed[2].data]}
        good("tgk_sum_trits", workers=np.array([2, 1]), count=2, data=in_steps, **mixed, **sums)
        if "float32" not in str(each.packing):  # whose sums have an order
            assert_same(in_steps, counts.data, "in steps")
        good("tgk_validate", layout=others.handle, data=in_steps, nbytes=half.size, workers=3, stream=None)
        out = np.empty(each.size, np.float32)
        into = {"layout": others.handle, "out": [out], "out_count": 1, "dtype": 0, "stream": None}
        good("tgk_decode", data=at_once, nbytes=at_once.size, weight=0.5, **into)
        assert_same(out, tk.decode(counts, weight=0.5))

        weights = np.array([0.5, 0.25, 0.25])
        two_bit = with_ternary(made, NUMBERS["TGK_PACKING_TWO_BIT"])
        data = np.full(call("tgk_layout_nbytes", layout=two_bit.handle), 0xAA, np.uint8)
        told = {**common, "result": two_bit.handle, "data": data, "data_nbytes": data.size, "layout": made.handle}
        told |= {"messages": messages, "count": 3, "nbytes": each.nbytes, "weights": weights}
        for given, asked in [
            (options(clip=0.0, seed=5, offset=6, layer=7), {"seed": 5, "offset": 6, "layer": 7}),
            (options(clip=2.0, seed=5), {"seed": 5, "offset": 0, "clip": 2.0}),
            (options(seed=5, scales=shared), {"seed": 5, "offset": 0, "scales": shared}),
            (None, {"seed": 0, "offset": 0}),
        ]:
            good("tgk_repack", options=given, **told)
            want = tk.repack(packed, weights=weights.tolist(), packing="two_bit", **asked)
            assert_same(data, want.data, str(asked))


@pytest.mark.parametrize("center", [False, True])
def test_scales_and_clip(layout: tk.Layout, center: bool) -> None:
    made = CLayout(layout)
    layers, x = spread(layout, "float32")
    scale, limit = np.empty((2, layout.groups), np.float32)
    common = {"layout": made.handle, "dtype": 0, "clip": 1.25, "center": center, "stream": None}
    good("tgk_scales", x=layers, count=len(layers), scale=scale, limit=limit, **common)
    want = tk.scales(x, layout=layout, clip=1.25, center=center)
    assert_same(scale, want.scale, "scale")
    assert_same(limit, want.limit, "limit")
    if layout.block or not isinstance(layout.packing, str) or layout.packing == "float32" or not layers:
        return  # tk.clip knows layers alone
    out = [np.empty_like(each) for each in layers]
    clipped = tk.clip(layers, clip=1.25, center=center)
    good("tgk_clip", x=layers, count=len(layers), limit=None, out=out, out_count=len(out), **common)
    assert_same(flat(out), flat(clipped), "measured")
    half = limit / np.float32(2)
    clipped = tk.clip(layers, scales=tk.Scales(scale, half))
    good("tgk_clip", x=layers, count=len(layers), limit=half, out=layers, out_count=len(layers), **common)
    assert_same(flat(layers), flat(clipped), "passed, in place")


@pytest.mark.parametrize("dtype", DTYPES)
def test_ternarize(dtype: str) -> None:
    layout = tk.Layout([(1000,), (0,), (2561,)], dtype)
    made = CLayout(layout)
    layers, _ = spread(layout, dtype)
    trits = [np.full(size, 9, np.int8) for size in layout.sizes]
    scale = np.empty(layout.groups, np.float32)
    good(
        "tgk_ternarize",
        layout=made.handle,
        x=layers,
        count=len(layers),
        dtype=DTYPES.index(dtype),
        options=options(seed=1, layer=9),
        trits=trits,
        trits_count=len(trits),
        scale=scale,
        stream=None,
    )
    want, want_scale = tk.ternarize(layers, seed=1, layer=9)
    assert_same(flat(trits, "int8"), flat(want, "int8"))
    assert_same(scale, want_scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("n", [0, 1, 127, 641, 5000, 150_001])
def test_one_layer(n: int, packing: str, dtype: str) -> None:
    x = layer("outlier", n, dtype)
    want = tk.encode(x, packing=packing, clip=2.0, seed=4, offset=5, layer=6)
    code, kind = PACKINGS.index(packing), DTYPES.index(dtype)
    nbytes = np.zeros(1, np.int64)
    good("tgk_layer_nbytes", n=n, packing=code, nbytes=nbytes)
    assert nbytes[0] == want.layout.nbytes
    common = {"n": n, "packing": code, "dtype": kind, "nbytes": nbytes[0], "stream": None}
    data = np.full(nbytes[0], 0xAA, np.uint8)
    good("tgk_encode_layer", x=x, clip=2.0, seed=4, offset=5, layer=6, data=data, **common)
    assert_same(data, want.data)
    out = np.empty_like(x)
    good("tgk_decode_layer", data=data, weight=0.5, out=out, **common)
    decoded = tk.decode(want, weight=0.5)
    assert_same(out, decoded)
    good("tgk_accumulate_layer", data=data, weight=0.5, out=out, **common)
    tk.decode(want, weight=0.5, accumulate=True, out=decoded)
    assert_same(out, decoded)


@pytest.mark.parametrize("packing", TERNARY)
@pytest.mark.parametrize("n", [0, 1, 639, 4000])
def test_pack_and_unpack(n: int, packing: str) -> None:
    trits = np.random.default_rng(n).integers(-128, 128, n).astype(np.int8)
    want = tk.pack(trits, packing=packing)
    code = PACKINGS.index(packing)
    nbytes = np.zeros(1, np.int64)
    good("tgk_payload_nbytes", n=n, packing=code, nbytes=nbytes)
    assert nbytes[0] == want.size
    payload, back = np.full(want.size, 0xAA, np.uint8), np.full(n, 9, np.int8)
    common = {"n": n, "packing": code, "nbytes": want.size, "stream": None}
    good("tgk_pack", trits=trits, payload=payload, **common)
    assert_same(payload, want)
    good("tgk_unpack", payload=payload, trits=back, **common)
    assert_same(back, np.sign(trits))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packing", PACKINGS)
def test_any_address(packing: str, dtype: str) -> None:
    """No pointer needs an alignment; on a CUDA device no other than its element's."""
    layout = tk.Layout([(5000,)], dtype, packing)
    x = layer("normal", 5000, dtype)
    want = tk.encode(x, packing=packing)
    width = x.itemsize
    for shift in (1, 3):
        shift_x = shift * width if EMULATES else shift
        odd = np.zeros(5000 * width + shift_x, np.uint8)[shift_x:]
        odd[:] = x.view(np.uint8)
        data = np.zeros(layout.nbytes + shift, np.uint8)[shift:]
        out = np.zeros(5000 * width + shift_x, np.uint8)[shift_x:]
        common = {"n": 5000, "packing": PACKINGS.index(packing), "dtype": DTYPES.index(dtype)}
        common |= {"nbytes": layout.nbytes, "stream": None}
        good("tgk_encode_layer", x=odd, clip=2.5, seed=0, offset=0, layer=0, data=data, **common)
        assert_same(data, want.data)
        for name in ("tgk_decode_layer", "tgk_accumulate_layer"):
            good(name, data=data, weight=1.0, out=out, **common)
        want_out = tk.decode(want)
        tk.decode(want, out=want_out, accumulate=True)
        assert_same(out, want_out.view(np.uint8))


def test_null_for_no_elements() -> None:
    nothing: dict[str, Any] = {"n": 0, "packing": 0, "stream": None}
    data = np.ones(16, np.uint8)
    coded = {**nothing, "dtype": 0, "nbytes": 16}
    good("tgk_encode_layer", x=None, clip=2.5, seed=0, offset=0, layer=0, data=data, **coded)
    assert not data.any()
    good("tgk_decode_layer", data=data, weight=1.0, out=None, **coded)
    good("tgk_accumulate_layer", data=data, weight=1.0, out=None, **coded)
    good("tgk_pack", trits=None, payload=None, nbytes=0, **nothing)
    good("tgk_unpack", trits=None, payload=None, nbytes=0, **nothing)
    for layers in (0, 2):
        sizes = tk.Layout([(0,)] * layers)
        made = CLayout(sizes)
        data = np.ones(sizes.nbytes, np.uint8)
        at = {"layout": made.handle, "dtype": 0, "stream": None}
        for x in (None, [None] * layers):
            for count in {1, layers}:
                bare = x if count == layers else None
                good("tgk_encode", x=bare, count=count, options=None, data=data, nbytes=data.size, **at)
                out = {"out": bare, "out_count": count}
                good("tgk_decode", data=data, nbytes=data.size, weight=1.0, **out, **at)
    call("tgk_layout_destroy", layout=None)


# ---- errors: the code, the text, and outputs as they were

N = 12


class Memory:
    """Good arguments of every function, over buffers of their own."""

    def __init__(self) -> None:
        self.layout = tk.Layout([(N,), (3,)], packing=("two_bit", "base3"))
        self.made = CLayout(self.layout)
        self.counts = with_ternary(self.made, 3)
        self.sums = np.full(call("tgk_layout_nbytes", layout=self.counts.handle), 0xAA, np.uint8)
        x = layer("normal", 32)
        self.x = [x[:N], x[N : N + 3]]
        self.flat = x[: N + 3]
        self.message = tk.encode(self.flat, layout=self.layout).data
        self.nbytes = self.layout.nbytes
        one = tk.encode(self.flat[:N]).data
        self.out = [np.full(N, 7.0, np.float32), np.full(3, 7.0, np.float32)]
        self.trits = [np.full(N, 9, np.int8), np.full(3, 9, np.int8)]
        self.data = np.full(self.nbytes, 0xAA, np.uint8)
        self.scale, self.limit = np.full(2, 7.0, np.float32), np.full(2, 7.0, np.float32)
        self.passed = np.full(2, 0.5, np.float32)
        self.number = np.full(1, 77, np.int64)
        self.piece = Piece(ctypes.sizeof(Piece), reserved=5)
        self.options = options(scales=(self.passed, self.passed))
        bucket_in = {"layout": self.made.handle, "x": self.x, "count": 2, "dtype": 0, "stream": None}
        bucket_out = {"layout": self.made.handle, "out": self.out, "out_count": 2, "dtype": 0, "stream": None}
        coded = {"n": N, "packing": 0, "dtype": 0, "nbytes": one.size, "stream": None}
        packed = {"n": N, "packing": 0, "nbytes": 3, "stream": None}
        message = {"data": self.message, "nbytes": self.nbytes}
        messages = {"messages": [self.message, self.message], "count": 2, "nbytes": self.nbytes}
        drawn = {"seed": 0, "offset": 0, "layer": 0}
        into = {"data": self.data, "nbytes": self.nbytes}
        self.calls: dict[str, dict[str, Any]] = {
            "tgk_layer_nbytes": {"n": N, "packing": 0, "nbytes": self.number},
            "tgk_payload_nbytes": {"n": N, "packing": 0, "nbytes": self.number},
            "tgk_scratch_nbytes": {"layout": self.made.handle, "measured": 1, "pointers": 2, "nbytes": self.number},
            "tgk_encode_layer": {"x": self.x[0], "clip": 2.5, **drawn, "data": self.data, **coded},
            "tgk_decode_layer": {"data": one, "weight": 1.0, "out": self.out[0], **coded},
            "tgk_accumulate_layer": {"data": one, "weight": 1.0, "out": self.out[0], **coded},
            "tgk_layout_create": {
                "sizes": np.array([N, 3], np.int64),
                "layers": 2,
                "packings": np.array([0, 1], np.int32),
                "packing_count": 2,
                "block": 0,
                "shards": 1,
                "shard": -1,
                "layout": self.number,
            },
            "tgk_layout_piece": {"layout": self.made.handle, "index": 1, "piece": self.piece},
            "tgk_scales": {"clip": 2.5, "center": 0, "scale": self.scale, "limit": self.limit, **bucket_in},
            "tgk_clip": {"clip": 2.5, "center": 0, "limit": self.passed, "out": self.out, "out_count": 2, **bucket_in},
            "tgk_ternarize": {
                "options": self.options,
                "trits": self.trits,
                "trits_count": 2,
                "scale": self.scale,
                **bucket_in,
            },
            "tgk_encode": {"options": self.options, **into, **bucket_in},
            "tgk_decode": {"weight": 1.0, **message, **bucket_out},
            "tgk_accumulate": {"weight": 1.0, **message, **bucket_out},
            "tgk_decode_sum": {"weights": np.ones(2), **messages, **bucket_out},
            "tgk_repack": {
                "layout": self.made.handle,
                "weights": np.ones(2),
                "options": self.options,
                "result": self.made.handle,
                "data": self.data,
                "data_nbytes": self.nbytes,
                "stream": None,
                **messages,
            },
            "tgk_counts_packing": {"workers": 3, "packing": self.number},
            "tgk_sum_trits": {
                "layouts": [self.made.handle] * 2,
                "messages": [self.message, self.message],
                "workers": np.ones(2, np.int64),
                "count": 2,
                "result": self.counts.handle,
                "data": self.sums,
                "nbytes": self.sums.size,
                "stream": None,
            },
            "tgk_layout_with_ternary": {"layout": self.made.handle, "packing": 3, "result": self.number},
            "tgk_validate": {"layout": self.made.handle, "workers": 1, "stream": None, **message},
            "tgk_pack": {"trits": np.ones(N, np.int8), "payload": self.data, **packed},
            "tgk_unpack": {"payload": np.ones(3, np.uint8), "trits": self.trits[0], **packed},
            "tgk_set_num_threads": {"count": call("tgk_get_num_threads")},
        }

    def state(self) -> list[bytes]:
        """Return the bytes of everything that could be written."""
        arrays = [
            *self.x,
            self.message,
            *self.out,
            *self.trits,
            self.data,
            self.sums,
            self.scale,
            self.limit,
            self.passed,
        ]
        return [x.tobytes() for x in (*arrays, self.number)] + [bytes(self.piece), bytes(self.options)]


def takers(*names: str) -> list[str]:
    """Return the functions with an argument of one of these names."""
    return [name for name, (_, pairs) in FUNCTIONS.items() if {argument for _, argument in pairs} & set(names)]


Change = Callable[[Memory], dict[str, Any]]
PACKED = [name for name in takers("packing") if name != "tgk_counts_packing"]
MESSAGES = takers("messages")
WITH_STREAM, WITH_LAYOUT = takers("stream"), [name for name in takers("stream") if name in takers("layout")]
BUCKETS = [name for name in takers("x") if name in takers("count")]
VALUE, TYPE, CORRUPT, UNSUPPORTED = "TGK_ERROR_VALUE", "TGK_ERROR_TYPE", "TGK_ERROR_CORRUPT", "TGK_ERROR_UNSUPPORTED"


def told(**fields: Any) -> Change:
    """Return options with fields of them changed."""

    def change(memory: Memory) -> dict[str, Any]:
        for name, value in fields.items():
            setattr(memory.options, name, value)
        return {"options": memory.options}

    return change


def stream_of(
    device_type: int = 1, device_id: int = 0, handle: int | None = None, size: int = 40, scratch: int | None = None
) -> Change:
    return lambda memory: {"stream": Stream(size, device_type, device_id, handle, scratch)}


def younger(kind: type[ctypes.Structure], argument: str, value: int) -> Change:
    """Return a structure with a field more than this version knows."""

    def change(memory: Memory) -> dict[str, Any]:
        made = np.zeros(ctypes.sizeof(kind) + 8, np.uint8)
        known = getattr(memory, argument, None) or Stream(ctypes.sizeof(Stream), 1)
        made[:-8] = np.frombuffer(bytes(known), np.uint8)
        made[:8].view(np.uint64)[0] = made.size
        made[-8] = value
        memory.younger = made  # type: ignore[attr-defined]
        return {argument: made}

    return change


ERRORS: list[tuple[list[str], Change, str, str]] = [
    (WITH_STREAM, stream_of(3), UNSUPPORTED, "stream.device_type: this build has kernels for host memory alone"),
    *(
        [(WITH_STREAM, stream_of(2, -1), VALUE, "stream.device_id: expected 0 or more, got -1")]
        if _core.CUDA_BUILT or _core.EMULATED
        else [(WITH_STREAM, stream_of(2), UNSUPPORTED, "stream.device_type: this build has kernels for host memory")]
    ),
    (WITH_STREAM, stream_of(scratch=4096), VALUE, "stream.scratch: expected NULL for host memory"),
    (["tgk_scratch_nbytes"], lambda _: {"measured": 2}, VALUE, "measured: expected 0 or 1, got 2"),
    (["tgk_scratch_nbytes"], lambda _: {"pointers": -1}, VALUE, "pointers: expected 0 or more, got -1"),
    (["tgk_scratch_nbytes"], lambda _: {"layout": None}, VALUE, "layout: expected a layout, got NULL"),
    (["tgk_scratch_nbytes"], lambda _: {"nbytes": None}, VALUE, "nbytes: expected where to write, got NULL"),
    (WITH_STREAM, stream_of(1, 1), VALUE, "stream.device_id: expected 0 for host memory, got 1"),
    (WITH_STREAM, stream_of(1, 0, 4096), VALUE, "stream.handle: expected NULL"),
    (WITH_STREAM, stream_of(size=8), VALUE, "stream.struct_size: expected at least 24, got 8"),
    (WITH_STREAM, younger(Stream, "stream", 1), UNSUPPORTED, "stream: a field at byte 40 is set that this version"),
    (WITH_LAYOUT, lambda _: {"layout": None}, VALUE, "layout: expected a layout, got NULL"),
    (["tgk_layout_piece", "tgk_layout_with_ternary"], lambda _: {"layout": None}, VALUE, "layout: expected a layout"),
    (["tgk_repack", "tgk_sum_trits"], lambda _: {"result": None}, VALUE, "result: expected a layout, got NULL"),
    (["tgk_layout_with_ternary"], lambda _: {"result": None}, VALUE, "result: expected where to write, got NULL"),
    (["tgk_counts_packing"], lambda _: {"packing": None}, VALUE, "packing: expected where to write, got NULL"),
    (["tgk_counts_packing", "tgk_validate"], lambda _: {"workers": 0}, VALUE, "workers: expected 1 to 32767, got 0"),
    (["tgk_counts_packing"], lambda _: {"workers": 32768}, VALUE, "workers: expected 1 to 32767, got 32768"),
    (["tgk_sum_trits"], lambda _: {"layouts": None}, VALUE, "layouts: expected 2, got NULL"),
    (["tgk_sum_trits"], lambda m: {"layouts": [m.made.handle, None]}, VALUE, "layouts[1]: expected a layout, got NULL"),
    (["tgk_sum_trits"], lambda _: {"workers": np.array([1, 0])}, VALUE, "messages[1]: expected 1 to 32767 workers"),
    (["tgk_sum_trits"], lambda _: {"workers": np.array([4, 4])}, VALUE, "messages: 8 workers"),
    (["tgk_sum_trits"], lambda m: {"result": m.made.handle, "nbytes": m.nbytes}, VALUE, "packing: expected counts for"),
    (
        ["tgk_repack"],
        lambda m: {"result": m.counts.handle},
        VALUE,
        "packing: counts are made by sum",
    ),
    (
        ["tgk_encode"],
        lambda m: {"layout": m.counts.handle},
        VALUE,
        "packing: counts are made by sum_trits",
    ),
    (
        ["tgk_encode_layer"],
        lambda _: {"packing": 4, "nbytes": 32},
        VALUE,
        "packing: counts are made by sum_trits alone",
    ),
    (["tgk_repack"], lambda _: {"data_nbytes": 0}, VALUE, "data_nbytes: expected 48, got 0"),
    (["tgk_repack"], lambda m: {"data": m.message}, VALUE, "data: overlaps the memory of messages[0]"),
    (["tgk_sum_trits"], lambda m: {"messages": [m.message, m.sums]}, VALUE, "data: overlaps the memory of messages[1]"),
    (["tgk_repack"], lambda m: {"data": m.passed}, VALUE, "data: overlaps the memory of options.scale"),
    (takers("dtype"), lambda _: {"dtype": 4}, TYPE, "dtype: unknown code 4"),
    (takers("dtype"), lambda _: {"dtype": -1}, TYPE, "dtype: unknown code -1"),
    (PACKED, lambda _: {"packing": 6}, VALUE, "packing: unknown code 6"),
    (PACKED, lambda _: {"packing": -1}, VALUE, "packing: unknown code -1"),
    (["tgk_layout_with_ternary"], lambda _: {"packing": 2}, VALUE, "packing: expected that of trits or counts"),
    (takers("n"), lambda _: {"n": -1}, VALUE, "n: expected 0 <= n <= 2**"),
    (takers("n"), lambda _: {"n": 2**62}, VALUE, "n: expected 0 <= n <= 2**"),
    (
        ["tgk_layer_nbytes", "tgk_encode_layer"],
        lambda _: {"n": 2**36 + 1},
        VALUE,
        "n: expected 0 <= n <= 2**36, got 687",
    ),
    (takers("clip"), lambda _: {"clip": -1.0}, VALUE, "clip: expected a number > 0, or 0 for none, got -1"),
    (takers("clip"), lambda _: {"clip": float("nan")}, VALUE, "clip: expected a number > 0, or 0 for none, got "),
    (takers("clip"), lambda _: {"clip": -5e-324}, VALUE, "clip: expected a number > 0, or 0 for none, got -4.9"),
    (takers("options"), told(clip=-1.0), VALUE, "clip: expected a number > 0, or 0 for none, got -1"),
    (takers("center"), lambda _: {"center": 2}, VALUE, "center: expected 0 or 1, got 2"),
    (takers("layer"), lambda _: {"layer": -1}, VALUE, "layer: expected 0 <= layer and layer + layers <= 2**31, got -1"),
    (takers("layer"), lambda _: {"layer": 2**31}, VALUE, "layer: expected 0 <= layer and layer + layers <= 2**31"),
    (takers("options"), told(layer=2**31 - 1), VALUE, "layer: expected 0 <= layer and layer + layers <= 2**31"),
    (takers("options"), told(limit=None), VALUE, "options.limit: expected 2 elements, got NULL"),
    (takers("options"), told(scale=None), VALUE, "options.scale: expected 2 elements, got NULL"),
    (takers("options"), told(struct_size=0), VALUE, "options.struct_size: expected at least 56, got 0"),
    (takers("options"), younger(Options, "options", 1), UNSUPPORTED, "options: a field at byte 72 is set that this"),
    (
        takers("weight"),
        lambda _: {"weight": float("inf")},
        VALUE,
        "weight: expected a number that float32 holds, got inf",
    ),
    (takers("weight"), lambda _: {"weight": 1e39}, VALUE, "weight: expected a number that float32 holds"),
    (
        ["tgk_decode_sum", "tgk_repack"],
        lambda _: {"weights": np.array([1, np.nan])},
        VALUE,
        "weights[1]: expected a number that",
    ),
    (MESSAGES, lambda _: {"count": 0}, VALUE, "count: expected 1 <= count < 2**31, got 0"),
    (
        MESSAGES,
        lambda m: {"messages": [m.message, None]},
        VALUE,
        "messages[1]: expected 48 elements, got NULL",
    ),
    (MESSAGES, lambda m: {"messages": None}, VALUE, "messages[0]: expected 48 elements, got NULL"),
    (
        ["tgk_encode", "tgk_decode", "tgk_accumulate", *MESSAGES],
        lambda m: {"nbytes": 47},
        VALUE,
        "nbytes: expected",
    ),
    (["tgk_encode_layer", "tgk_decode_layer"], lambda _: {"nbytes": 31}, VALUE, "nbytes: expected 32, got 31"),
    (["tgk_pack", "tgk_unpack"], lambda _: {"nbytes": 4}, VALUE, "nbytes: expected 3, got 4"),
    (
        ["tgk_pack", "tgk_unpack"],
        lambda _: {"packing": 2, "nbytes": 48},
        VALUE,
        "packing: expected 'two_bit' or 'base3'",
    ),
    (["tgk_layer_nbytes", "tgk_payload_nbytes"], lambda _: {"nbytes": None}, VALUE, "nbytes: expected where to write"),
    (BUCKETS, lambda _: {"count": 3}, VALUE, "x: expected 1 pointer"),
    (BUCKETS, lambda m: {"x": [m.x[0], None]}, VALUE, "x[1]: expected 3 elements, got NULL"),
    (BUCKETS, lambda _: {"x": None}, VALUE, "x[0]: expected 12 elements, got NULL"),
    (BUCKETS, lambda _: {"x": [None], "count": 1}, VALUE, "x: expected 15 elements, got NULL"),
    (
        takers("out_count"),
        lambda _: {"out_count": 0},
        VALUE,
        "out: expected 1 pointer (a flat array) or 2 (the layers), got 0",
    ),
    (takers("out_count"), lambda m: {"out": [None, m.out[1]]}, VALUE, "out[0]: expected 12 elements, got NULL"),
    (
        ["tgk_ternarize"],
        lambda _: {"trits_count": -2},
        VALUE,
        "trits: expected 1 pointer (a flat array) or 2 (the layers)",
    ),
    (["tgk_ternarize"], lambda m: {"trits": [m.trits[0], None]}, VALUE, "trits[1]: expected 3 elements, got NULL"),
    (["tgk_scales", "tgk_ternarize"], lambda _: {"scale": None}, VALUE, "scale: expected 2 elements, got NULL"),
    (["tgk_scales"], lambda _: {"limit": None}, VALUE, "limit: expected 2 elements, got NULL"),
    (["tgk_encode_layer"], lambda _: {"x": None}, VALUE, "x: expected 12 elements, got NULL"),
    (
        ["tgk_encode", "tgk_encode_layer", "tgk_decode", "tgk_validate"],
        lambda _: {"data": None},
        VALUE,
        "data: expected ",
    ),
    (["tgk_pack"], lambda _: {"trits": None}, VALUE, "trits: expected 12 elements, got NULL"),
    (["tgk_pack", "tgk_unpack"], lambda _: {"payload": None}, VALUE, "payload: expected 3 elements, got NULL"),
    # overlaps
    (["tgk_encode_layer"], lambda m: {"data": m.x[0]}, VALUE, "data: overlaps the memory of x"),
    (["tgk_encode"], lambda m: {"data": m.flat}, VALUE, "data: overlaps the memory of x[0]"),
    (["tgk_decode_layer"], lambda m: {"data": m.out[0]}, VALUE, "out: overlaps the memory of data"),
    (
        ["tgk_decode", "tgk_accumulate"],
        lambda m: {"out": [m.message, m.out[1]]},
        VALUE,
        "out[0]: overlaps the memory of data",
    ),
    (["tgk_decode_sum"], lambda m: {"out": [m.message, m.out[1]]}, VALUE, "out[0]: overlaps the memory of messages[0]"),
    (["tgk_decode"], lambda m: {"out": [m.out[0], m.out[0][2:]]}, VALUE, "out[1]: overlaps the memory of out[0]"),
    (["tgk_clip"], lambda m: {"out": [m.x[1], m.out[1]]}, VALUE, "out[0]: overlaps the memory of x["),
    (["tgk_clip"], lambda m: {"out": m.x, "limit": m.x[1]}, VALUE, "out[1]: overlaps the memory of limit"),
    (["tgk_scales"], lambda m: {"limit": m.scale}, VALUE, "limit: overlaps the memory of scale"),
    (["tgk_ternarize"], lambda m: {"scale": m.passed}, VALUE, "scale: overlaps the memory of options.scale"),
    (["tgk_ternarize"], lambda m: {"trits": [m.x[0], m.trits[1]]}, VALUE, "trits[0]: overlaps the memory of x[0]"),
    # layouts
    (["tgk_layout_create"], lambda _: {"layout": None}, VALUE, "layout: expected where to write, got NULL"),
    (["tgk_layout_create"], lambda _: {"layers": -1}, VALUE, "layers: expected 0 <= layers <= 2**31, got -1"),
    (["tgk_layout_create"], lambda _: {"layers": 2**40}, VALUE, "layers: expected 0 <= layers <= 2**31"),
    (["tgk_layout_create"], lambda _: {"sizes": None}, VALUE, "sizes: expected 2, got NULL"),
    (["tgk_layout_create"], lambda _: {"sizes": np.array([1, -1])}, VALUE, "sizes[1]: expected 0 to 2**36, got -1"),
    (["tgk_layout_create"], lambda _: {"sizes": np.array([2**36 + 1, 1])}, VALUE, "sizes[0]: expected 0 to 2**36, got"),
    (["tgk_layout_create"], lambda _: {"packings": None}, VALUE, "packings: expected 2, got NULL"),
    (
        ["tgk_layout_create"],
        lambda _: {"packing_count": 3},
        VALUE,
        "packing_count: expected 1 or 2 (one per layer), got 3",
    ),
    (["tgk_layout_create"], lambda _: {"packings": np.array([0, 9], np.int32)}, VALUE, "packings[1]: unknown code 9"),
    (["tgk_layout_create"], lambda _: {"block": 100}, VALUE, "block: 100 is not a positive multiple of 2560"),
    (["tgk_layout_create"], lambda _: {"shards": 0}, VALUE, "shards: expected 1 <= shards < 2**31"),
    (["tgk_layout_create"], lambda _: {"shard": 1}, VALUE, "shard: expected -1 (all of them) or 0 <= shard < 1, got 1"),
    (
        ["tgk_layout_create"],
        lambda _: {"shard": -2},
        VALUE,
        "shard: expected -1 (all of them) or 0 <= shard < 1, got -2",
    ),
    (["tgk_layout_piece"], lambda _: {"index": 2}, VALUE, "index: expected 0 <= index < 2, got 2"),
    (["tgk_layout_piece"], lambda _: {"index": -1}, VALUE, "index: expected 0 <= index < 2, got -1"),
    (["tgk_layout_piece"], lambda _: {"piece": None}, VALUE, "piece: expected where to write, got NULL"),
    (["tgk_layout_piece"], lambda _: {"piece": Piece(16)}, VALUE, "piece.struct_size: expected at least 80, got 16"),
    # the rest
    (["tgk_validate"], lambda m: {"data": np.full(m.nbytes, 0xAA, np.uint8)}, CORRUPT, " of the message"),
    (["tgk_validate"], lambda _: {"nbytes": 47}, CORRUPT, "expected 48 bytes, got 47"),
    (["tgk_validate"], lambda _: {"nbytes": -1}, VALUE, "nbytes: expected 0 or more, got -1"),
    (["tgk_set_num_threads"], lambda _: {"count": 0}, VALUE, "n: expected 1 <= n <= 1024, got 0"),
]


def test_the_good_arguments_are_good() -> None:
    memory = Memory()
    for name, arguments in memory.calls.items():
        assert call(name, **arguments) == 0, f"{name}: {last_error()}"


def test_every_function_has_errors() -> None:
    tried = {name for names, *_ in ERRORS for name in names}
    harmless = {"tgk_status_name", "tgk_last_error", "tgk_abi_version", "tgk_version", "tgk_isa"}
    assert tried == {name for name, (result, _) in FUNCTIONS.items() if result == "tgk_status"} - harmless


@pytest.mark.parametrize(("names", "change", "status", "text"), ERRORS, ids=[f"{e[0][0]}-{e[3][:40]}" for e in ERRORS])
def test_errors(names: list[str], change: Change, status: str, text: str) -> None:
    for name in names:
        memory = Memory()
        arguments = {**memory.calls[name], **change(memory)}
        before = memory.state()
        assert call(name, **arguments) == STATUS[status], f"{name}: {last_error()}"
        assert text in last_error(), name
        assert memory.state() == before, name


@pytest.mark.parametrize(
    ("names", "change"),
    [
        (WITH_STREAM, younger(Stream, "stream", 0)),
        (takers("options"), younger(Options, "options", 0)),
        (["tgk_layout_piece"], younger(Piece, "piece", 0)),
    ],
)
def test_younger_callers_that_ask_for_nothing_new(names: list[str], change: Change) -> None:
    for name in names:
        memory = Memory()
        assert call(name, **{**memory.calls[name], **change(memory)}) == 0, f"{name}: {last_error()}"


def test_a_success_leaves_the_last_error() -> None:
    assert call("tgk_set_num_threads", count=-3) == STATUS[VALUE]
    good("tgk_set_num_threads", count=call("tgk_get_num_threads"))
    assert last_error() == "n: expected 1 <= n <= 1024, got -3"


def test_errors_are_of_their_thread() -> None:
    assert call("tgk_set_num_threads", count=-1) == STATUS[VALUE]
    seen: list[str] = []
    barrier = threading.Barrier(2)

    def fail(count: int) -> None:
        seen.append(last_error())
        barrier.wait()
        for _ in range(200):
            call("tgk_set_num_threads", count=count)
            if last_error() != f"n: expected 1 <= n <= 1024, got {count}":
                seen.append(last_error())

    threads = [threading.Thread(target=fail, args=(count,)) for count in (-10, -20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["", ""]
    assert last_error() == "n: expected 1 <= n <= 1024, got -1"


# ---- the environment, in processes that load the library and nothing else of this package

ALONE = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.tgk_isa.restype = library.tgk_last_error.restype = ctypes.c_char_p
print(library.tgk_isa(), library.tgk_get_num_threads(), library.tgk_set_num_threads(5), end=" ")
print(library.tgk_last_error().decode())
"""


def alone(**environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TERNGRAD_")}
    command = [sys.executable, "-c", ALONE, tk.get_library()]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**kept, **environment})
    return done.stdout.strip()


def test_environment() -> None:
    assert alone(TERNGRAD_KERNELS_ISA="scalar", TERNGRAD_KERNELS_NUM_THREADS="3") == "b'scalar' 3 0"
    widest = tk.build_info()["instruction_sets_here"][-1]
    assert alone().startswith(f"b'{widest}' ")
    wrong = alone(TERNGRAD_KERNELS_ISA="sse9")
    assert wrong.startswith("None 0 1 TERNGRAD_KERNELS_ISA: instruction set 'sse9' cannot run here; choices: scalar")
    wrong = alone(TERNGRAD_KERNELS_NUM_THREADS="many")
    assert wrong == "None 0 1 TERNGRAD_KERNELS_NUM_THREADS: expected a whole number from 1 to 1024, got 'many'"


# ---- programs

STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]


def compiler(language: str) -> str:
    names = {"c": (os.environ.get("CC"), "cc", "gcc", "clang"), "c++": (os.environ.get("CXX"), "c++", "g++", "clang++")}
    for name in names[language]:
        if name and shutil.which(name):
            return name
    pytest.skip(f"no {language} compiler")


def run(*command: str | Path, **options: Any) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize(
    ("language", "standard"), [("c", "c99"), ("c", "c11"), ("c++", "c++11"), ("c++", "c++17"), ("c++", "c++20")]
)
def test_the_header_compiles(language: str, standard: str, tmp_path: Path) -> None:
    """By itself, twice, in either language, with structures of the sizes that the tests above take."""
    sizes = {"tgk_options": Options, "tgk_stream": Stream, "tgk_piece": Piece}
    checks = [
        f"typedef char {name}_[sizeof({name}) == {ctypes.sizeof(kind)} ? 1 : -1];" for name, kind in sizes.items()
    ]
    made = [f"{name} {name}_made = {name.upper()}_INIT;" for name in sizes]
    source = tmp_path / ("header.c" if language == "c" else "header.cpp")
    source.write_text("\n".join(["#include <terngrad_kernels.h>", "#include <terngrad_kernels.h>", *checks, *made, ""]))
    target = tmp_path / "header.o"
    run(compiler(language), f"-std={standard}", *STRICT, "-I", tk.get_include(), "-c", source, "-o", target)


def program(tmp_path: Path, text: str, *, language: str = "c", name: str = "program") -> Path:
    """Compile a program as docs/c_api.md says."""
    source = tmp_path / f"{name}.{'c' if language == 'c' else 'cpp'}"
    source.write_text(text)
    library = Path(tk.get_library())
    standard = "-std=c99" if language == "c" else "-std=c++17"
    linked = [library, f"-Wl,-rpath,{library.parent}"]
    run(compiler(language), standard, *STRICT, "-I", tk.get_include(), source, "-o", tmp_path / name, *linked)
    return tmp_path / name


def test_the_program_of_the_guide(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "c_api.md").read_text()
    programs = re.findall(r"```c\n(#include.*?)```", text, re.DOTALL)
    assert len(programs) == 1
    assert "0 wrong" in run(program(tmp_path, programs[0]))


def test_the_examples(tmp_path: Path) -> None:
    """Built through the CMake package of the installed wheel, and run."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("no cmake")
    flags = " ".join(STRICT)
    run(
        *(cmake, *(["-G", "Ninja"] if shutil.which("ninja") else [])),
        *("-S", ROOT / "examples" / "c", "-B", tmp_path, f"-Dterngrad_kernels_DIR={tk.get_cmake_dir()}"),
        *(f"-DCMAKE_C_COMPILER={compiler('c')}", f"-DCMAKE_CXX_COMPILER={compiler('c++')}"),
        *(f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}"),
    )
    run(cmake, "--build", tmp_path)
    assert "as expected" in run(tmp_path / "one_layer")
    assert "as expected" in run(tmp_path / "parameter_server")


COUNTED = r"""
#define _GNU_SOURCE
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <terngrad_kernels.h>

/* The C library's own, under names that this program's definitions do not hide. */
extern void* __libc_malloc(size_t);
extern void __libc_free(void*);

static long left = -1; /* allocations until one fails; negative: none does */
static size_t now, most;

void* malloc(size_t size) {
  void* made;
  if (left == 0) return NULL;
  if (left > 0) --left;
  made = __libc_malloc(size);
  if (made) {
    const size_t after = __atomic_add_fetch(&now, malloc_usable_size(made), __ATOMIC_RELAXED);
    if (after > most) most = after;
  }
  return made;
}

void free(void* pointer) {
  if (pointer) __atomic_sub_fetch(&now, malloc_usable_size(pointer), __ATOMIC_RELAXED);
  __libc_free(pointer);
}

#define N 4000000
#define LAYERS 40
static float x[N], out[N];
static unsigned char data[2 * N];
static tgk_layout* bucket; /* of layers each too small for several threads, which are given out */

static tgk_status run(int which, int64_t nbytes) {
  const void* from[1];
  void* into[1];
  from[0] = x;
  into[0] = out;
  switch (which) {
    case 3: return tgk_encode(bucket, from, 1, TGK_FLOAT32, NULL, data, tgk_layout_nbytes(bucket), NULL);
    case 4: return tgk_clip(bucket, from, 1, TGK_FLOAT32, 2.5, 0, NULL, into, 1, NULL);
    case 0: return tgk_encode_layer(x, N, TGK_FLOAT32, TGK_PACKING_BASE3, 2.5, 1, 2, 3, data, nbytes, NULL);
    case 1: return tgk_decode_layer(data, nbytes, TGK_PACKING_BASE3, 1.0, out, N, TGK_FLOAT32, NULL);
    default: return tgk_accumulate_layer(data, nbytes, TGK_PACKING_BASE3, 1.0, out, N, TGK_FLOAT32, NULL);
  }
}

int main(void) {
  int which, threads;
  int64_t i, nbytes;
  long failing, failures;
  size_t before;
  tgk_status status;
  int64_t sizes[LAYERS];
  const int32_t packing = TGK_PACKING_TWO_BIT;
  for (i = 0; i < N; ++i) x[i] = (float)(i % 1001 - 500);
  for (i = 0; i < LAYERS; ++i) sizes[i] = N / LAYERS;
  if (tgk_layout_create(sizes, LAYERS, &packing, 1, 0, 1, -1, &bucket) != TGK_OK) return 1;
  if (tgk_layer_nbytes(N, TGK_PACKING_BASE3, &nbytes) != TGK_OK) return 1;
  for (threads = 1; threads <= 4; threads += 3) {
    tgk_set_num_threads(threads);
    for (which = 0; which < 5; ++which) {
      if (run(which, nbytes) != TGK_OK) return 1; /* once, so that the pool has started */
      before = most = now;
      if (run(which, nbytes) != TGK_OK) return 1;
      printf("%d %d %lu %ld\n", threads, which, (unsigned long)(most - before), (long)now - (long)before);
    }
  }
  for (which = 0; which < 5; ++which) {
    for (failing = failures = 0;; ++failing, ++failures) {
      left = failing;
      status = run(which, nbytes);
      left = -1;
      if (status == TGK_OK) break;
      if (status != TGK_ERROR_MEMORY || failing > 1000) return 1;
    }
    printf("%ld\n", failures);
  }
  tgk_layout_destroy(bucket);
  return 0;
}
"""


def test_what_calls_allocate(tmp_path: Path) -> None:
    """Bookkeeping alone (docs/c_api.md says how much), all of it freed; without memory for it they fail and say so."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("the program counts by names that glibc has")
    if "asan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("AddressSanitizer has an allocator of its own")
    lines = [list(map(int, line.split())) for line in run(program(tmp_path, COUNTED)).splitlines()]
    for threads, which, most, kept in (line for line in lines if len(line) == 4):
        layers = 40 if which > 2 else 1
        assert most <= 1024 + 200 * layers + (8192 * threads if threads > 1 else 0)
        assert kept == 0
    assert [len(line) for line in lines] == [4] * 10 + [1] * 5
