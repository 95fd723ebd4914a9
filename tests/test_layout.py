"""Layout: what it accepts, how it compares, and that its geometry is the reference's."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import time
from typing import Any

import numpy as np
import pytest
from arrays import DTYPES, PACKINGS, TERNARY
from hypothesis import example, given, settings
from hypothesis import strategies as st

import reference as ref
import terngrad_kernels as tk
from terngrad_kernels import _core
from terngrad_kernels import layout as layout_module

EXAMPLES = (
    tk.Layout([]),
    tk.Layout([()], form="array"),
    tk.Layout([(0, 7), (3, 4)], "float16", ("float32", "base3"), form="list"),
    tk.Layout([(10000,), (30,)], "bfloat16", block=2560, shards=3),
    tk.Layout([(10000,), (30,)], "float64", "base3", block=5120, shards=3).shard(1),
)

# ---- fields


@pytest.mark.parametrize(
    "shapes",
    [
        [[2, 3], [4]],
        ((2, 3), (4,)),
        iter([iter([2, 3]), range(4, 5)]),
        np.array([[2, 3], [4, 1]])[:, :1].tolist() and [np.array([2, 3]), (np.int64(4),)],
    ],
    ids=["lists", "tuples", "iterators", "numpy integers"],
)
def test_shapes_become_tuples_of_ints(shapes: Any) -> None:
    layout = tk.Layout(shapes)
    assert layout.shapes == ((2, 3), (4,))
    assert {type(size) for shape in layout.shapes for size in shape} == {int}


@pytest.mark.parametrize(
    ("packing", "normal"),
    [
        ("base3", "base3"),
        (["base3", "base3"], "base3"),
        (["base3", "float32"], ("base3", "float32")),
        (iter(["two_bit", "float32"]), ("two_bit", "float32")),
    ],
)
def test_packings_that_agree_become_one_name(packing: Any, normal: Any) -> None:
    layout = tk.Layout([(2,), (3,)], packing=packing)
    assert layout.packing == normal
    assert layout == tk.Layout([(2,), (3,)], packing=normal)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_become_names(dtype: str) -> None:
    assert tk.Layout([(2,)], ref.DTYPES[dtype]).dtype == dtype
    assert tk.Layout([(2,)], ref.DTYPES[dtype].type).dtype == dtype
    assert tk.Layout([(2,)], ref.DTYPES[dtype].newbyteorder(">")).dtype == dtype


def test_fields_of_other_integers_become_ints() -> None:
    layout = tk.Layout([(9000,)], block=np.int64(2560), shards=np.uint8(2), index=np.int32(1))
    assert [type(n) for n in (layout.block, layout.shards, layout.index)] == [int] * 3
    assert layout.form == "flat"


def test_no_layers() -> None:
    layout = tk.Layout([], packing=[])
    assert layout == tk.Layout([])
    assert (layout.nbytes, layout.size, layout.sizes, layout.groups, layout.pieces) == (0, 0, (), 0, ())
    assert layout.offsets == ()
    assert layout.ratio == 1.0
    assert tk.Layout([], shards=3).nbytes == 48


# ---- comparison, copies, immutability


@pytest.mark.parametrize("layout", EXAMPLES)
def test_equality_hash_and_copies(layout: tk.Layout) -> None:
    values = [getattr(layout, field.name) for field in dataclasses.fields(layout)]
    for twin in (tk.Layout(*values), copy.copy(layout), copy.deepcopy(layout), eval(repr(layout), vars(tk))):
        assert twin == layout
        assert hash(twin) == hash(layout)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        twin = pickle.loads(pickle.dumps(layout, protocol))
        assert twin == layout
        assert twin.pieces == layout.pieces
    assert layout != tuple(values)


@pytest.mark.parametrize(
    "change",
    [
        {"shapes": [(9000,)]},
        {"shapes": [(9000, 1), (5,)]},
        {"dtype": "float16"},
        {"packing": "base3"},
        {"packing": ("base3", "two_bit")},
        {"block": 2560},
        {"shards": 3},
        {"form": "list"},
        {"index": 1},
    ],
    ids=str,
)
def test_every_field_counts(change: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"shapes": [(9000,), (5,)], "shards": 2}
    layout, other = tk.Layout(**fields), tk.Layout(**(fields | change))
    assert layout != other
    assert len({layout, other, tk.Layout(**fields)}) == 2
    assert layout.same_message(other) == (not change.keys() - {"dtype", "form"})


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(tk.Layout)] + ["size", "other"])
def test_a_layout_does_not_change(name: str) -> None:
    layout = tk.Layout([(4,)])
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(layout, name, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        delattr(layout, name)


# ---- errors


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"shapes": 5}, TypeError, "shapes: expected a sequence of shapes, got int"),
        ({"shapes": "23"}, TypeError, "shapes: expected a sequence of shapes, got str"),
        ({"shapes": None}, TypeError, "shapes: expected a sequence of shapes, got NoneType"),
        ({"shapes": [(2,), 5]}, TypeError, r"shapes\[1\]: expected a sequence of ints, got int"),
        ({"shapes": ["23"]}, TypeError, r"shapes\[0\]: expected a sequence of ints, got str"),
        ({"shapes": [(2.0,)]}, TypeError, r"shapes\[0\]: expected ints, got float"),
        ({"shapes": [(True,)]}, TypeError, r"shapes\[0\]: expected ints, got bool"),
        ({"shapes": [(2, -1)]}, ValueError, r"shapes\[0\]: expected sizes >= 0, got -1"),
        ({"shapes": [(2**36 + 1,)]}, ValueError, r"shapes\[0\]: expected at most 2\*\*36 elements, got \("),
        ({"shapes": [(2**35, 0, 4)]}, ValueError, r"shapes\[0\]: expected at most 2\*\*36 elements, got \("),
        ({"shapes": [(2**62, 2**62)]}, ValueError, r"shapes\[0\]: expected at most 2\*\*36 elements, got \("),
        ({"shapes": [(2**100,)]}, ValueError, r"shapes\[0\]: expected at most 2\*\*36 elements, got \("),
        ({"dtype": "int32"}, TypeError, "dtype: expected one of float32, .*, got 'int32'"),
        ({"dtype": np.int8}, TypeError, "dtype: expected one of float32, .*, got 'int8'"),
        ({"dtype": None}, TypeError, "dtype: expected one of float32, .*, got None"),
        ({"dtype": 3}, TypeError, "dtype: expected one of float32, .*, got '3'"),
        ({"dtype": {}}, TypeError, "dtype: expected one of float32, "),
        ({"packing": "three_bit"}, ValueError, "packing: expected one of two_bit, .*, got 'three_bit'"),
        ({"packing": ["base3", "b"]}, ValueError, r"packing\[1\]: expected one of two_bit, .*, got 'b'"),
        ({"packing": ["base3", 1]}, TypeError, r"packing\[1\]: expected one of two_bit, .*, got int"),
        ({"packing": ["base3"]}, ValueError, r"packing: expected one name, or 2 \(one per layer\), got 1"),
        ({"packing": None}, TypeError, "packing: expected one name, or one per layer, got NoneType"),
        ({"block": 0}, ValueError, "block: expected 1 <= block"),
        ({"block": -2560}, ValueError, "block: expected 1 <= block"),
        ({"block": 512}, ValueError, "block: 512 is not a positive multiple of 2560"),
        ({"block": 2560.0}, TypeError, "block: expected an int, got float"),
        ({"block": True}, TypeError, "block: expected an int, got bool"),
        ({"block": 2560 * 2**63}, ValueError, "block: expected 1 <= block"),
        ({"shards": 0}, ValueError, "shards: expected 1 <= shards < 2147483648, got 0"),
        ({"shards": 2**31}, ValueError, "shards: expected 1 <= shards < 2147483648, got 2147483648"),
        ({"shards": "2"}, TypeError, "shards: expected an int, got str"),
        ({"shards": False}, TypeError, "shards: expected an int, got bool"),
        ({"form": "dict"}, ValueError, "form: expected one of array, list, flat, got 'dict'"),
        ({"form": None}, ValueError, "form: expected one of array, list, flat, got None"),
        ({"form": "array"}, ValueError, "form: expected 'list' or 'flat' for 2 layers, got 'array'"),
        ({"index": 1}, ValueError, "index: expected 0 <= index < 1, got 1"),
        ({"index": -1, "shards": 4}, ValueError, "index: expected 0 <= index < 4, got -1"),
        ({"index": 0.5, "shards": 4}, TypeError, "index: expected an int, got float"),
    ],
    ids=str,
)
def test_errors(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        tk.Layout(**({"shapes": [(2, 3), (4,)]} | arguments))


def test_more_elements_than_a_bucket_may_have() -> None:
    # Weights of 16 times as much, times the shards, still fit the 128 bits that the cuts are computed in.
    with pytest.raises(ValueError, match=r"shapes: more than 2\*\*56 elements"):
        _core.Layout([2**36] * (2**20 + 1), [0], 0, 1, -1)


def test_shard_errors() -> None:
    layout = tk.Layout([(10000,)], shards=3)
    for index, error in ((3, ValueError), (-1, ValueError), ("0", TypeError), (True, TypeError)):
        with pytest.raises(error, match="index: expected"):
            layout.shard(index)
    with pytest.raises(ValueError, match=r"^shard: expected the layout of a whole message, got that of shard 1$"):
        layout.shard(1).shard(0)


# ---- geometry


def assert_geometry(layout: tk.Layout, sizes: list[int], packing: Any, index: int | None = None) -> None:
    pieces, groups, nbytes = ref.pieces(sizes, packing, layout.block, layout.shards, index)
    assert [tuple(piece) for piece in layout.pieces] == [tuple(piece) for piece in pieces]
    assert (layout.groups, layout.nbytes) == (groups, nbytes)
    assert layout.offsets == tuple(piece.payload_at for piece in pieces)
    own = [0] * len(sizes)
    for piece in pieces:
        own[piece.layer] += piece.size
    assert layout.sizes == tuple(own)
    assert layout.size == sum(own)
    if nbytes:
        width = ref.DTYPES[layout.dtype].itemsize
        assert layout.ratio == layout.size * width / nbytes


size = st.one_of(
    st.integers(0, 9),
    st.integers(0, 40000),
    st.builds(lambda units, d: max(0, 2560 * units + d), st.integers(0, 40), st.integers(-1, 1)),
)


@given(
    sizes=st.lists(size, max_size=7),
    packings=st.lists(st.sampled_from(PACKINGS), min_size=7, max_size=7),
    one_packing=st.booleans(),
    block=st.one_of(st.none(), st.integers(1, 6).map(lambda units: 2560 * units)),
    shards=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=400)
@example([2560], ["base3"] * 7, True, 2560, 1, "float32")
@example([2561, 0, 5120], ["float32", "two_bit", "base3"] + ["base3"] * 4, False, 2560, 2, "float16")
@example([0, 0, 0], ["two_bit"] * 7, True, None, 4, "float64")
def test_geometry_is_the_references(
    sizes: list[int], packings: list[str], one_packing: bool, block: int | None, shards: int, dtype: str
) -> None:
    packing: Any = packings[0] if one_packing else packings[: len(sizes)]
    layout = tk.Layout([(n,) for n in sizes], dtype, packing, block, shards)
    assert_geometry(layout, sizes, packing)
    total = 0
    for index in range(shards):
        shard = layout.shard(index)
        assert (shard.form, shard.index, shard.shards) == ("flat", index, shards)
        assert_geometry(shard, sizes, packing, index)
        total += shard.size
    assert total == layout.size


@given(shape=st.lists(st.integers(0, 12), max_size=5))
@settings(max_examples=60)
def test_a_layer_has_the_product_of_its_shape(shape: list[int]) -> None:
    assert tk.Layout([shape], form="array").sizes == (math.prod(shape),)


def test_many_shards_of_little() -> None:
    assert_geometry(tk.Layout([(7,), (2561,)], shards=1000), [7, 2561], "two_bit")


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_largest_layer(packing: str) -> None:
    n = 2**36
    payload = {"two_bit": n // 4, "base3": -(-n // 5), "float32": 4 * n}[packing]
    layout = tk.Layout([(2**18, 2**18)], packing=packing)
    assert layout.size == n
    assert layout.pieces == ((0, 0, n, packing, 0, 0, 16, payload),)
    assert layout.nbytes == 16 + -(-payload // 16) * 16


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 1000, 2**12 + 1])
def test_shards_of_the_largest_layers(shards: int) -> None:
    """The cuts by the contract's formula, at sizes that the reference's list of units is too long for."""
    sizes, packings = (2**36, 3, 2**36 - 1), ("two_bit", "two_bit", "float32")
    weights = [n * (16 if name == "float32" else 1) for n, name in zip(sizes, packings, strict=True)]
    before = [sum(weights[:i]) for i in range(3)]
    layout = tk.Layout([(n,) for n in sizes], packing=packings, shards=shards)

    def shard_of(layer: int, first: int) -> int:
        weight = before[layer] + first * weights[layer] // sizes[layer]
        return min(shards - 1, shards * weight // sum(weights))

    length = layout.nbytes // shards
    expected_first = [0, 0, 0]
    for piece in layout.pieces:
        shard = shard_of(piece.layer, piece.first)
        assert piece.scale_at // length == shard
        if piece.first > 0:
            assert piece.first % 2560 == 0
            assert shard_of(piece.layer, piece.first - 2560) < shard
        last_unit = piece.first + (piece.size - 1) // 2560 * 2560
        assert shard_of(piece.layer, last_unit) == shard
        assert piece.first == expected_first[piece.layer]
        expected_first[piece.layer] += piece.size
    assert tuple(expected_first) == sizes
    assert layout.sizes == sizes


def test_ten_thousand_layers_are_quick() -> None:
    sizes = np.random.default_rng(0).integers(0, 5000, 10_000).tolist()
    packings = [PACKINGS[n % 3] for n in sizes]
    shapes = [(n,) for n in sizes]
    start = time.perf_counter()
    layout = tk.Layout(shapes, "float16", packings, None, 4, "list")
    assert layout.nbytes > 0
    first = time.perf_counter() - start
    start = time.perf_counter()
    assert tk.Layout(shapes, "float16", packings, None, 4, "list") == layout
    again = time.perf_counter() - start
    assert_geometry(layout, sizes, packings)
    # Some tens of milliseconds; the bound only has to tell that from anything quadratic, on any machine.
    assert first < 2
    assert again < 2


@pytest.mark.parametrize("packing", TERNARY)
def test_ratio_comes_close_to_the_packings_own(packing: str) -> None:
    full = {"two_bit": 16, "base3": 20}[packing]
    assert tk.Layout([(10**7,)], packing=packing).ratio == pytest.approx(full, rel=1e-3)
    assert tk.Layout([(10**7,)], "float64", packing).ratio == pytest.approx(2 * full, rel=1e-3)
    assert tk.Layout([(10**7,)], "bfloat16", packing).ratio == pytest.approx(full / 2, rel=1e-3)


def test_a_layout_without_layers_has_one_spelling() -> None:
    assert tk.Layout((), packing="base3") == tk.Layout(()) == tk.Layout((), packing=())


def test_what_is_kept_of_large_geometries_is_bounded() -> None:
    """A stranger's message may have any number of layers: what stays behind must not grow with them."""
    for groups, most in ((5000, 4), (70_000, 0)):
        before = [cache.cache_info().currsize for cache in layout_module._caches.values()]
        for n in range(10):
            tk.Layout([(i,) for i in range(n, n + groups)])
            tk.Layout([(2560 * groups - n,)], block=2560)
        small, large = (cache.cache_info().currsize for cache in layout_module._caches.values())
        assert small == before[0]
        assert large == (most or before[1])


@pytest.mark.parametrize("groups", [3, 5000])
def test_a_layout_that_is_made_again_has_the_same_geometry(groups: int) -> None:
    """A GPU keeps its tables beside the geometry: what is made anew for each call is uploaded for each call."""
    x = np.ones(2560 * groups, np.float32)
    layouts = [tk.Layout([x.shape], block=2560, form="array") for _ in range(2)]
    layers, names = list(x.reshape(groups, -1)), ["two_bit", "base3", *["float32"] * (groups - 2)]
    encoded = [tk.encode(layers, packing=packing).layout for packing in (names, list(names), tuple(names))]
    for made in (layouts, encoded):
        assert all(layout.geometry is made[0].geometry for layout in made)
