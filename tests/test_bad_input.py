"""Bad input: an error that names the argument, what it is and what was expected, and arguments left as they were."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from arrays import DTYPES, bits_of, layer

import terngrad_kernels as tk

Call = Callable[..., Any]

# ---- arguments as they were


def snapshot(value: Any) -> Any:
    """Return the bits of every array in an argument."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.strides, np.ma.getdata(value).tobytes()
    if isinstance(value, (list, tuple)):
        return [snapshot(item) for item in value]
    if isinstance(value, (tk.Packed, tk.Counts)):
        return snapshot(value.data)
    return None


def assert_refused(call: Call, error: type[Exception], text: str, /, *positional: Any, **named: Any) -> None:
    before = snapshot([positional, list(named.values())])
    with pytest.raises(error, match=text):
        call(*positional, **named)
    assert snapshot([positional, list(named.values())]) == before


X = layer("normal", 12)
PACKED = tk.encode(X)
BUCKET = [X, X.copy()]
PACKED_BUCKET = tk.encode(BUCKET)

#: A good call of each operation, by its first argument.
CALLS: dict[str, Call] = {
    "encode": functools.partial(tk.encode, X),
    "scales": functools.partial(tk.scales, X),
    "clip": functools.partial(tk.clip, X),
    "ternarize": functools.partial(tk.ternarize, X),
    "decode": functools.partial(tk.decode, PACKED),
    "decode_sum": functools.partial(tk.decode_sum, [PACKED, PACKED]),
    "sum_trits": functools.partial(tk.sum_trits, [PACKED, PACKED]),
    "repack": functools.partial(tk.repack, [PACKED, PACKED], seed=0, offset=0),
    "pack": functools.partial(tk.pack, np.ones(12, np.int8)),
    "unpack": functools.partial(tk.unpack, np.ones(3, np.uint8), shape=12),
}
OF_LAYERS = ("encode", "scales", "clip", "ternarize")
DRAWING = ("encode", "ternarize", "repack")


def test_the_good_calls_are_good() -> None:
    for call in CALLS.values():
        call()


# ---- the first argument

NO_ARRAYS = {
    "a string": "text",
    "bytes": b"text",
    "None": None,
    "a float": 1.5,
    "an int": 3,
    "a bool": True,
    "a dict": {"x": X},
    "a set": {1.5},
    "a generator": (v for v in BUCKET),
    "a NumPy scalar": np.float32(1.5),
    "a memoryview": memoryview(b"text"),
    "a masked array": np.ma.masked_array([1.0, 2.0], [True, False], dtype=np.float32),
    "a class": np.ndarray,
    "a Layout": tk.Layout([(3,)]),
    "a Packed": PACKED,
}


@pytest.mark.parametrize("value", NO_ARRAYS.values(), ids=NO_ARRAYS)
@pytest.mark.parametrize("name", [*OF_LAYERS, "pack", "unpack"])
def test_what_is_no_array(name: str, value: Any) -> None:
    operation = CALLS[name].func  # type: ignore[attr-defined]
    argument = {"pack": "trits", "unpack": "payload"}.get(name, "x")
    more = {"shape": 3} if name == "unpack" else {}
    text = f"^{argument}: expected an array that supports DLPack, got "
    assert_refused(operation, TypeError, text, value, **more)
    if argument == "x":
        text = r"^x\[1\]: expected an array that supports DLPack, got "
        assert_refused(operation, TypeError, text, [X, value])


WRONG_DTYPES = ("int8", "int32", "int64", "uint8", "bool", "complex64", "complex128", "longdouble", "O", "S3", "U3")


@pytest.mark.parametrize("dtype", [*WRONG_DTYPES, "M8[s]", "float8_e4m3fn", "int4"])
@pytest.mark.parametrize("name", OF_LAYERS)
def test_wrong_dtypes(name: str, dtype: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.zeros(5, getattr(ml_dtypes, dtype, dtype))
    operation = CALLS[name].func  # type: ignore[attr-defined]
    assert_refused(operation, TypeError, "^x: expected float32, float16, bfloat16, float64, got numpy ", x)
    assert_refused(operation, TypeError, r"^x\[0\]: expected float32, float16, bfloat16, float64, got numpy ", [x])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "bool"])
def test_pack_wants_int8(dtype: str) -> None:
    assert_refused(tk.pack, TypeError, "^trits: ", np.zeros(5, dtype))


@pytest.mark.parametrize("dtype", ["int8", "uint16", "float32", "bool"])
def test_unpack_wants_uint8(dtype: str) -> None:
    assert_refused(tk.unpack, TypeError, "^payload: ", np.zeros(5, dtype), shape=20)


@pytest.mark.parametrize("name", OF_LAYERS)
def test_lists_of_mixed_dtypes(name: str) -> None:
    operation = CALLS[name].func  # type: ignore[attr-defined]
    text = r"^x\[1\]: expected float32 as x\[0\] is, got float64"
    assert_refused(operation, TypeError, text, [X, X.astype(np.float64)])
    nested = [X, [X]]
    assert_refused(operation, TypeError, r"^x\[1\]: expected an array that supports DLPack, got .*list", nested)


@pytest.mark.parametrize("name", OF_LAYERS)
def test_lists_of_mixed_frameworks(name: str) -> None:
    torch, jnp = pytest.importorskip("torch"), pytest.importorskip("jax.numpy")
    arrays = {"numpy": X, "torch": torch.ones(3), "jax": jnp.ones(3)}
    operation = CALLS[name].func  # type: ignore[attr-defined]
    for first, second in (("numpy", "torch"), ("torch", "jax"), ("jax", "numpy")):
        text = rf"^x\[1\]: expected a {first} array as x\[0\] is, got a {second} array"
        assert_refused(operation, TypeError, text, [arrays[first], arrays[second]])


def test_big_endian_arrays_are_taken() -> None:
    """They are not bad, only to be copied; but no result can be written to one."""
    for dtype in ("float32", "float64", "float16"):
        x = layer("normal", 9, dtype)
        swapped = x.astype(x.dtype.newbyteorder(">"))
        np.testing.assert_array_equal(tk.encode(swapped).data, tk.encode(x).data)
        assert_refused(tk.clip, TypeError, "^out: expected float32, .* or uint32, got >f", x, out=swapped)
    packed = tk.encode(X, seed=np.array(3, ">i8"), offset=np.array([5, 7, 6], ">u4")[::2])
    np.testing.assert_array_equal(packed.data, tk.encode(X, seed=3, offset=5 + (6 << 32)).data)


# ---- numbers


@pytest.mark.parametrize("name", OF_LAYERS)
@pytest.mark.parametrize(
    ("value", "error", "got"),
    [
        (0, ValueError, "0"),
        (-1, ValueError, "-1"),
        (-0.0, ValueError, "-0.0"),
        (float("nan"), ValueError, "nan"),
        (-np.inf, ValueError, "-inf"),
        (np.float32(-2), ValueError, "-2.0"),
        ("2.5", TypeError, "str"),
        (b"2", TypeError, "bytes"),
        (True, TypeError, "bool"),
        (np.True_, TypeError, "bool"),
        (1j, TypeError, "complex"),
        ([2.5], TypeError, "list"),
        (np.array([2.5, 3]), TypeError, "ndarray"),
        (10**400, TypeError, "int"),
    ],
    ids=str,
)
def test_clip(name: str, value: Any, error: type[Exception], got: str) -> None:
    assert_refused(CALLS[name], error, f"^clip: expected a number > 0 or None, got {got}", clip=value)


@pytest.mark.parametrize("name", DRAWING)
@pytest.mark.parametrize("argument", ["seed", "offset"])
@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (2**64, ValueError, r"expected an int from -2\*\*63 to 2\*\*64 - 1, got 18446744073709551616"),
        (-(2**63) - 1, ValueError, r"expected an int from -2\*\*63 to 2\*\*64 - 1, got -9223372036854775809"),
        (10**50, ValueError, r"expected an int from -2\*\*63 to 2\*\*64 - 1, got 1000"),
        (True, TypeError, "expected an int, a 0-d int64 array or a uint32 array .*, got bool"),
        (np.True_, TypeError, "expected an int, a 0-d int64 array or a uint32 array .*, got bool"),
        (1.0, TypeError, "expected an int, a 0-d int64 array or a uint32 array .*, got float"),
        (np.float64(1), TypeError, "expected an int, a 0-d int64 array or a uint32 array .*, got float64"),
        ("1", TypeError, "expected an int, a 0-d int64 array or a uint32 array .*, got str"),
        (None, TypeError, "expected an int, a 0-d int64 array or a uint32 array .*, got NoneType"),
        ([1, 2], TypeError, "expected an int, a 0-d int64 array or a uint32 array .*, got list"),
        (np.array([1, 2]), TypeError, "expected an int, a 0-d int64 array or a uint32 array .*, got ndarray"),
        (np.zeros(3, np.uint32), TypeError, "expected an int, a 0-d int64 array or a uint32 array .*, got ndarray"),
        (np.array(1, np.uint32), TypeError, "expected an int, a 0-d int64 array or a uint32 array .*, got ndarray"),
        (np.array(1.0), TypeError, "expected an int, a 0-d int64 array or a uint32 array .*, got ndarray"),
        (np.array(1, np.int32), TypeError, "int32"),
    ],
    ids=str,
)
def test_seed_and_offset(name: str, argument: str, value: Any, error: type[Exception], text: str) -> None:
    assert_refused(CALLS[name], error, f"^{argument}: .*{text}", **{argument: value})


@pytest.mark.parametrize("name", DRAWING)
@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-1, ValueError, r"expected 0 <= layer and layer \+ layers <= 2\*\*31, got -1"),
        (2**31, ValueError, r"expected 0 <= layer and layer \+ layers <= 2\*\*31, got 2147483648"),
        (2**64 + 5, ValueError, r"expected 0 <= layer and layer \+ layers <= 2\*\*31, got 18446744073709551621"),
        (-(2**70), ValueError, "expected 0 <= layer"),
        (True, TypeError, "expected an int, got bool"),
        (1.0, TypeError, "expected an int, got float"),
        ("1", TypeError, "expected an int, got str"),
        (None, TypeError, "expected an int, got NoneType"),
    ],
    ids=str,
)
def test_layer(name: str, value: Any, error: type[Exception], text: str) -> None:
    assert_refused(CALLS[name], error, f"^layer: {text}", layer=value)


def test_the_last_layers_word() -> None:
    tk.encode(BUCKET, layer=2**31 - 2)
    assert_refused(tk.encode, ValueError, r"^layer: expected .* got 2147483647", BUCKET, layer=2**31 - 1)
    tk.encode([], layer=2**31)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (np.nan, ValueError, "expected a number that float32 holds, got nan"),
        (np.inf, ValueError, "expected a number that float32 holds, got inf"),
        (1e39, ValueError, "expected a number that float32 holds"),
        ("1", TypeError, "expected a number, got str"),
        (None, TypeError, "expected a number, got NoneType"),
        (True, TypeError, "expected a number, got bool"),
        (1j, TypeError, "expected a number, got complex"),
        ([1.0], TypeError, "expected a number, got list"),
    ],
    ids=str,
)
def test_weight(value: Any, error: type[Exception], text: str) -> None:
    assert_refused(CALLS["decode"], error, f"^weight: {text}", weight=value)
    # The same numbers among others.
    text = text.replace("a number,", "numbers,")
    for name in ("decode_sum", "repack"):
        assert_refused(CALLS[name], error, rf"^weights(\[1\])?: {text}", weights=[1.0, value])


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (5, TypeError, "weights: expected numbers, one per message, got int"),
        (0.5, TypeError, "weights: expected numbers, one per message, got float"),
        ([], ValueError, "weights: expected 2, one per message, got 0"),
        ([1, 2, 3], ValueError, "weights: expected 2, one per message, got 3"),
        ("ab", TypeError, "weights: expected numbers, got str"),
    ],
    ids=str,
)
def test_weights(value: Any, error: type[Exception], text: str) -> None:
    for name in ("decode_sum", "repack"):
        assert_refused(CALLS[name], error, f"^{text}", weights=value)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("value", [0, 1, "default", object()], ids=["0", "1", "default", "object"])
def test_stream(name: str, value: Any) -> None:
    assert_refused(CALLS[name], ValueError, "^stream: CPU arrays have none, expected None", stream=value)


@pytest.mark.parametrize("name", CALLS)
def test_everything_but_the_first_argument_is_named(name: str) -> None:
    with pytest.raises(TypeError, match="positional"):
        CALLS[name](2.5)
    with pytest.raises(TypeError, match="unexpected keyword"):
        CALLS[name](clipping=2.5)


# ---- packing, block, layout


@pytest.mark.parametrize("name", ["encode", "pack", "unpack"])
@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        ("three_bit", ValueError, "got 'three_bit'"),
        ("", ValueError, "got ''"),
        ("counts8", ValueError, "got 'counts8'"),
        (0, TypeError, "got int"),
        (b"base3", TypeError, "got (bytes|int)"),
    ],
    ids=str,
)
def test_unknown_packings(name: str, value: Any, error: Any, text: str) -> None:
    offered = "two_bit, base3, float32" if name == "encode" else "two_bit, base3"
    if isinstance(value, int) and name == "encode":
        offered, text = "name, or one per layer", "got int"
    assert_refused(CALLS[name], error, rf"^packing(\[0\])?: expected one( of)? {offered}, {text}$", packing=value)


@pytest.mark.parametrize("name", ["pack", "unpack"])
def test_packings_that_are_for_layers(name: str) -> None:
    assert_refused(
        CALLS[name], ValueError, "^packing: expected one of two_bit, base3, got 'float32'", packing="float32"
    )
    assert_refused(CALLS[name], TypeError, "^packing: expected one of .*, got list", packing=["base3"])


def test_packings_one_a_layer() -> None:
    text = r"^packing: expected one name, or 2 \(one per layer\), got 3"
    assert_refused(tk.encode, ValueError, text, BUCKET, packing=["base3"] * 3)
    assert_refused(tk.encode, ValueError, text, BUCKET, packing=("base3",) * 3)


@pytest.mark.parametrize("name", ["encode", "scales"])
@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0, ValueError, "expected 1 <= block"),
        (-2560, ValueError, "expected 1 <= block"),
        (1000, ValueError, "1000 is not a positive multiple of 2560"),
        (2560.0, TypeError, "expected an int, got float"),
        ("2560", TypeError, "expected an int, got str"),
        (True, TypeError, "expected an int, got bool"),
        ([2560], TypeError, "expected an int, got list"),
    ],
    ids=str,
)
def test_block(name: str, value: Any, error: type[Exception], text: str) -> None:
    CALLS[name](block=2560)  # which some of the values equal
    assert_refused(CALLS[name], error, f"^block: {text}", block=value)


@pytest.mark.parametrize("name", ["encode", "scales"])
@pytest.mark.parametrize(
    ("layout", "error", "text"),
    [
        (tk.Layout([(13,)]), ValueError, "x: expected 13 elements, got 12"),
        (tk.Layout([(6,), (7,)]), ValueError, "x: expected 2 arrays, got 1"),
        (tk.Layout([]), ValueError, "x: expected 0 "),
        (tk.Layout([(12,)], "float64"), ValueError, "x: expected float64 as the layout says, got float32"),
        (tk.Layout([(12,)], shards=2).shard(1), ValueError, "x: expected 0 elements, got 12"),
        ("two_bit", TypeError, "layout: expected a Layout, got str"),
        ([(12,)], TypeError, "layout: expected a Layout, got list"),
        (PACKED.layout.geometry, TypeError, "layout: expected a Layout, got Layout"),
    ],
    ids=lambda value: "geometry" if value is PACKED.layout.geometry else str(value),
)
def test_layouts_that_do_not_fit(name: str, layout: Any, error: type[Exception], text: str) -> None:
    assert_refused(CALLS[name], error, f"^{text}", layout=layout)


@pytest.mark.parametrize("operation", [tk.encode, tk.scales])
def test_layouts_that_do_not_fit_a_list(operation: Call) -> None:
    for layout, text in (
        (tk.Layout([(12,)] * 3), "x: expected 3 arrays, got 2"),
        (tk.Layout([(12,), (13,)]), r"x\[1\]: expected 13 elements, got 12"),
        (tk.Layout([(24,)]), "x: expected 1 arrays, got 2"),
        (tk.Layout([(24,)], shards=2).shard(0), "x: expected one flat array for the layout of a shard, got a list"),
        (tk.Layout([(12,)] * 2, "float16"), "x: expected float16 as the layout says, got float32"),
    ):
        assert_refused(operation, ValueError, f"^{text}", BUCKET, layout=layout)


@pytest.mark.parametrize("name", ["encode", "scales"])
def test_layouts_of_counts(name: str) -> None:
    for packing, got in (
        ("counts8", "counts8"),
        (["counts8", "float32"], "counts8"),
        (["counts4", "counts8"], "c.*4, c.*8"),
    ):
        layout = tk.Layout([(12,)] if isinstance(packing, str) else [(6,)] * 2, packing=packing)
        text = f"^layout.packing: expected two_bit, base3, float32, got {got}, which sum_trits alone makes$"
        assert_refused(CALLS[name], ValueError, text, layout=layout)


def test_arguments_that_a_layout_has_already() -> None:
    layout = PACKED.layout
    assert_refused(
        CALLS["encode"],
        ValueError,
        "^packing: expected None where a layout is given, got 'two_bit'",
        layout=layout,
        packing="two_bit",
    )
    assert_refused(
        CALLS["encode"],
        ValueError,
        "^block: expected None where a layout is given, got 2560",
        layout=layout,
        block=2560,
    )
    assert_refused(
        CALLS["scales"],
        ValueError,
        "^block: expected None where a layout is given, got 2560",
        layout=layout,
        block=2560,
    )


# ---- passed scales


ONE = np.ones(1, np.float32)


@pytest.mark.parametrize("name", ["encode", "ternarize", "clip"])
@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.0, TypeError, r"scales: expected a Scales \(scale, limit\), got float"),
        ([ONE, ONE], TypeError, r"scales: expected a Scales \(scale, limit\), got list"),
        ((ONE,), TypeError, r"scales: expected a Scales \(scale, limit\), got tuple"),
        (ONE, TypeError, r"scales: expected a Scales \(scale, limit\), got ndarray"),
        (tk.Scales(1.0, ONE), TypeError, r"scales.scale: expected an array that supports DLPack, got .*float"),
        (tk.Scales(ONE, None), TypeError, r"scales.limit: expected an array that supports DLPack, got .*NoneType"),
        (tk.Scales(ONE.astype(float), ONE), TypeError, "scales.scale: expected float32, got float64"),
        (tk.Scales(ONE, ONE.astype(np.float16)), TypeError, "scales.limit: expected float32, got float16"),
        (tk.Scales(ONE, ONE.astype(np.int32)), TypeError, "scales.limit: .*int32"),
        (tk.Scales(np.ones(2, np.float32), ONE), ValueError, "scales.scale: expected 1 elements, got 2"),
        (tk.Scales(ONE, np.ones(0, np.float32)), ValueError, "scales.limit: expected 1 elements, got 0"),
    ],
    ids=str,
)
def test_scales(name: str, value: Any, error: type[Exception], text: str) -> None:
    assert_refused(CALLS[name], error, f"^{text}", scales=value)


def test_scales_by_block() -> None:
    x = layer("normal", 6000)
    assert_refused(tk.encode, ValueError, "^scales.scale: expected 3 elements, got 1", x, block=2560, scales=(ONE, ONE))


# ---- messages


@pytest.mark.parametrize("operation", [tk.decode, tk.validate])
@pytest.mark.parametrize("value", [None, PACKED.data, b"", [PACKED], PACKED.layout, 5], ids=lambda v: type(v).__name__)
def test_what_is_no_message(operation: Call, value: Any) -> None:
    text = f"^packed: expected a Packed or a Counts, got {type(value).__name__}"
    assert_refused(operation, TypeError, text, value)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (None, TypeError, "messages: expected Packed or Counts messages, got NoneType"),
        (PACKED.data, TypeError, "messages: expected Packed or Counts messages, got ndarray"),
        ((p for p in [PACKED]), TypeError, "messages: expected Packed or Counts messages, got generator"),
        ([], ValueError, "messages: expected at least one message, got none"),
        ([PACKED, None], TypeError, r"messages\[1\]: expected a Packed or a Counts, got NoneType"),
        (
            [PACKED, PACKED_BUCKET],
            ValueError,
            r"messages\[1\].layout.shapes: expected 1 layers as messages\[0\] has, got 2",
        ),
        (
            [PACKED, tk.Packed(PACKED.layout, PACKED.data[:-1])],
            ValueError,
            r"messages\[1\]: expected 32 elements, got 31",
        ),
        (
            [PACKED, tk.Packed(PACKED.layout, PACKED.data.view(np.int8))],
            TypeError,
            r"messages\[1\]: expected uint8, got int8",
        ),
        (
            tk.Packed(PACKED.layout, np.zeros((2, 33), np.uint8)),
            ValueError,
            r"messages.data: expected shape \(W, 32\), got shape \(2, 33\)",
        ),
        (
            tk.Packed(PACKED.layout, np.zeros((1, 2, 32), np.uint8)),
            ValueError,
            r"messages.data: expected shape \(W, 32\), got shape \(1, 2, 32\)",
        ),
        (
            tk.Packed(PACKED.layout, np.zeros((0, 32), np.uint8)),
            ValueError,
            "messages: expected at least one message, got none",
        ),
        (tk.Packed(PACKED.layout, np.array(5, np.uint8)), ValueError, r"messages.data: expected shape \(W, 32\)"),
        (
            tk.Packed(PACKED.layout, b"text"),
            TypeError,
            "messages.data: expected an array that supports DLPack, got builtins.bytes",
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_messages(value: Any, error: type[Exception], text: str) -> None:
    assert_refused(tk.decode_sum, error, f"^{text}", value)


def differing(shapes: Any = ((6,), (6,)), **fields: Any) -> tk.Packed:
    layout = tk.Layout(shapes, **fields)
    return tk.Packed(layout, np.zeros(layout.nbytes, np.uint8))


TWO = ["two_bit", "two_bit"]
MIXED = ["base3", "float32"]


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        ({}, {"shapes": [(6,)]}, "shapes: expected 2 layers as .* has, got 1"),
        ({}, {"shapes": [(6,), (3, 2)]}, r"shapes\[1\]: expected \(6,\) as .* has, got \(3, 2\)"),
        ({}, {"block": 2560}, "block: expected None as .* has, got 2560"),
        ({"block": 5120}, {"block": 2560}, "block: expected 5120 as .* has, got 2560"),
        ({}, {"shards": 2}, "shards: expected 1 as .* has, got 2"),
        ({"shards": 2, "index": 0}, {"shards": 2, "index": 1}, "index: expected 0 as .* has, got 1"),
        ({"shards": 2, "index": 0}, {"shards": 2}, "index: expected 0 as .* has, got None"),
        ({}, {"packing": "float32"}, "packing: expected 'two_bit' as .* has, got 'float32'"),
        ({}, {"packing": MIXED[::-1]}, r"packing\[0\]: expected 'two_bit' as .* has, got 'float32'"),
        ({"packing": MIXED}, {"packing": "base3"}, r"packing\[1\]: expected 'float32' as .* has, got 'base3'"),
    ],
    ids=str,
)
def test_messages_that_differ(first: Any, second: Any, text: str) -> None:
    """The text names the first field that matters: for `sum_trits` not how trits are packed."""
    messages = [differing(**first), differing(**first), differing(**second)]
    text = rf"^messages\[2\].layout.{text.replace('.*', 'messages.0.')}$"
    for operation in (tk.decode_sum, tk.sum_trits, functools.partial(tk.repack, seed=0, offset=0)):
        assert_refused(operation, ValueError, text, messages)


def test_messages_whose_trits_are_packed_in_other_ways() -> None:
    messages = [differing(), differing(packing="base3")]
    text = r"^messages\[1\].layout.packing: expected 'two_bit' as messages\[0\] has, got 'base3'$"
    assert_refused(tk.decode_sum, ValueError, text, messages)
    assert tk.sum_trits(messages).workers == 2
    # What is packed in another way in the first layer is not what keeps these from being added.
    messages = [differing(packing=TWO), differing(packing=MIXED)]
    text = r"^messages\[1\].layout.packing\[1\]: expected 'two_bit' as messages\[0\] has, got 'float32'$"
    assert_refused(tk.sum_trits, ValueError, text, messages)


def test_parts_of_a_message_that_are_none() -> None:
    with pytest.raises(TypeError, match=r"^layout: expected a Layout, got str$"):
        tk.Packed("x", PACKED.data)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^layout: expected a Layout, got NoneType$"):
        tk.Counts(None, 1, PACKED.data)  # type: ignore[arg-type]
    counts = tk.Packed(tk.Layout([(12,)], packing="counts8"), PACKED.data)
    text = "^packed.layout.packing: expected two_bit, base3, float32 in a Packed, got counts8$"
    assert_refused(tk.decode, ValueError, text, counts)
    text = r"^messages: expected at most 32767 workers together, got 65534$"
    layout = tk.Layout([(12,)], packing="counts16")
    assert_refused(tk.sum_trits, ValueError, text, [tk.Counts(layout, 32767, np.zeros(layout.nbytes, np.uint8))] * 2)


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (PACKED.data[:-1], ValueError, "packed.data: expected 32 elements, got 31"),
        (np.zeros(48, np.uint8), ValueError, "packed.data: expected 32 elements, got 48"),
        (np.zeros(0, np.uint8), ValueError, "packed.data: expected 32 elements, got 0"),
        (np.zeros((2, 32), np.uint8), ValueError, r"packed.data: expected one .* \(32,\), got shape \(2, 32\)"),
        (np.zeros(32, np.int8), TypeError, "packed.data: expected uint8, got int8"),
        (np.zeros(8, np.float32), TypeError, "packed.data: expected uint8, got float32"),
        (np.zeros(8, np.int32), TypeError, "packed.data: .*int32"),
        (b"0" * 32, TypeError, "packed.data: expected an array that supports DLPack, got builtins.bytes"),
        (None, TypeError, "packed.data: expected an array that supports DLPack, got builtins.NoneType"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_data_of_a_message(data: Any, error: type[Exception], text: str) -> None:
    packed = tk.Packed(PACKED.layout, data)
    assert_refused(tk.decode, error, f"^{text}", packed)
    if error is TypeError:
        assert_refused(tk.validate, error, f"^{text}", packed)
    else:
        assert_refused(tk.validate, error, "expected ", packed)


@pytest.mark.parametrize("packing", ["two_bit", "base3"])
@pytest.mark.parametrize("size", [0, 1, 4, 100])
def test_a_payload_of_the_wrong_length(packing: str, size: int) -> None:
    text = rf"^payload: expected 3 bytes for shape \(3, 4\) in {packing}, got {size}"
    assert_refused(tk.unpack, ValueError, text, np.zeros(size, np.uint8), shape=(3, 4), packing=packing)


@pytest.mark.parametrize(
    ("shape", "error", "text"),
    [
        ("12", TypeError, "expected a sequence of ints, got str"),
        (None, TypeError, "expected a sequence of ints, got NoneType"),
        (12.0, TypeError, "expected a sequence of ints, got float"),
        ((3, 4.0), TypeError, "expected ints, got float"),
        (True, TypeError, "expected ints, got bool"),
        ((-12,), ValueError, "expected sizes >= 0, got -12"),
        (-12, ValueError, "expected sizes >= 0, got -12"),
        ((2**40,), ValueError, r"expected at most 2\*\*36 elements, got \(1099511627776,\)"),
    ],
    ids=str,
)
def test_shape(shape: Any, error: type[Exception], text: str) -> None:
    assert_refused(tk.unpack, error, f"^shape: {text}", np.zeros(3, np.uint8), shape=shape)


@pytest.mark.parametrize("name", ["decode", "decode_sum"])
@pytest.mark.parametrize("dtype", ["int8", np.int32, "float", "f4", 5, np.complex64, "no such type"], ids=str)
def test_dtype(name: str, dtype: Any) -> None:
    assert_refused(CALLS[name], TypeError, "^dtype: expected one of float32, .*, float64, got ", dtype=dtype)


# ---- outputs


def bad_outputs(dtype: Any, size: int) -> Iterator[tuple[Any, type[Exception], str]]:
    """Everything that is wrong for an output of that dtype and size, and what is said about it."""
    good = np.zeros(size, dtype)
    name = good.dtype.name
    read_only = good.copy()
    read_only.flags.writeable = False
    yield read_only, BufferError, "expected a writable array, got a read-only one"
    yield np.zeros(2 * size, dtype)[::2], ValueError, "expected a dense row-major array, got one with other strides"
    yield np.zeros(size, dtype)[::-1], ValueError, "expected a dense row-major array, got one with other strides"
    yield np.broadcast_to(np.zeros((), dtype), size), ValueError, "expected a dense row-major array"
    yield np.zeros(size + 1, dtype), ValueError, f"expected {size} elements, got {size + 1}"
    yield np.zeros(size - 1, dtype), ValueError, f"expected {size} elements, got {size - 1}"
    wrong = np.dtype(np.int8 if name != "int8" else np.uint8)
    yield np.zeros(size, wrong), TypeError, f"(expected .*, got {wrong.name})"
    yield np.zeros(size, np.int32), TypeError, "int32"
    yield np.zeros(size, np.complex64), TypeError, "complex64"
    yield "text", TypeError, "expected an array that supports DLPack, got builtins.str"
    yield 5, TypeError, "expected an array that supports DLPack, got builtins.int"
    yield np.ma.zeros(size, dtype), TypeError, "expected an array that supports DLPack, got .*MaskedArray"
    if name != "float32":
        return
    yield np.zeros(size, ">f4"), TypeError, ">f4"


SCALE = np.ones(1, np.float32)
OUTPUTS: dict[str, tuple[Any, int, str, Callable[[Any], Any]]] = {
    "encode": (np.uint8, 32, "out", lambda out: tk.encode(X, out=out)),
    "clip": (np.float32, 12, "out", lambda out: tk.clip(X, out=out)),
    "clip, a list": (np.float32, 12, r"out\[1\]", lambda out: tk.clip(BUCKET, out=[X.copy(), out])),
    "ternarize": (np.int8, 12, "out", lambda out: tk.ternarize(X, out=(out, SCALE))),
    "ternarize, a list": (
        np.int8,
        12,
        r"out\[1\]",
        lambda out: tk.ternarize(BUCKET, out=([np.zeros(12, np.int8), out], np.ones(2, np.float32))),
    ),
    "ternarize, scale": (np.float32, 1, r"out\[1\]", lambda out: tk.ternarize(X, out=(np.zeros(12, np.int8), out))),
    "scales, scale": (np.float32, 1, "out.scale", lambda out: tk.scales(X, out=tk.Scales(out, SCALE))),
    "scales, limit": (np.float32, 1, "out.limit", lambda out: tk.scales(X, out=tk.Scales(SCALE, out))),
    "decode": (np.float32, 12, "out", lambda out: tk.decode(PACKED, out=out)),
    "decode, float16": (np.float16, 12, "out", lambda out: tk.decode(PACKED, out=out)),
    "decode, a list": (np.float32, 12, r"out\[1\]", lambda out: tk.decode(PACKED_BUCKET, out=[X.copy(), out])),
    "accumulate": (np.float32, 12, "out", lambda out: tk.decode(PACKED, out=out, accumulate=True)),
    "decode_sum": (np.float32, 12, "out", lambda out: tk.decode_sum([PACKED], out=out)),
    "pack": (np.uint8, 3, "out", lambda out: tk.pack(np.ones(12, np.int8), out=out)),
    "unpack": (np.int8, 12, "out", lambda out: tk.unpack(np.ones(3, np.uint8), shape=12, out=out)),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs(name: str) -> None:
    dtype, size, argument, call = OUTPUTS[name]
    call(np.zeros(size, dtype))
    for out, error, text in bad_outputs(dtype, size):
        if size == 1 and "row-major" in text:
            continue  # one element is dense however its strides are
        before = snapshot([X, BUCKET, PACKED, SCALE, out])
        assert_refused(call, error, f"^{argument}: .*{text}", out)
        assert snapshot([X, BUCKET, PACKED, SCALE, out]) == before


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: tk.clip(BUCKET, out=X), TypeError, "out: expected a list of 2 arrays, got ndarray"),
        (lambda: tk.clip(BUCKET, out=[X.copy()]), ValueError, "out: expected 2 arrays, got 1"),
        (lambda: tk.clip(X, out=[X.copy()]), TypeError, "out: expected an array that supports DLPack, got .*list"),
        (lambda: tk.ternarize(X, out=X), TypeError, r"out: expected a tuple \(trits, scale\), got ndarray"),
        (lambda: tk.ternarize(X, out=(X,)), TypeError, r"out: expected a tuple \(trits, scale\), got tuple"),
        (lambda: tk.scales(X, out=SCALE), TypeError, r"out: expected a Scales \(scale, limit\), got ndarray"),
        (lambda: tk.decode(PACKED_BUCKET, out=X), TypeError, "out: expected a list of 2 arrays, got ndarray"),
        (lambda: tk.decode(PACKED_BUCKET, out=[X.copy()]), ValueError, "out: expected 2 arrays, got 1"),
        (lambda: tk.decode(PACKED_BUCKET, out=[]), (TypeError, ValueError), "out: expected "),
        (lambda: tk.decode(PACKED, out=[X]), TypeError, "out: expected one array for .* form 'array', got list"),
        (
            lambda: tk.decode(PACKED, out=X.copy(), dtype="float16"),
            TypeError,
            "out: expected float16 as dtype says, got float32",
        ),
        (
            lambda: tk.decode(PACKED_BUCKET, out=[X.copy(), X.astype(np.float64)]),
            TypeError,
            r"out\[1\]: expected float32, got float64",
        ),
        (lambda: tk.decode(PACKED, accumulate=True), ValueError, "out: expected what accumulate adds to, got None"),
    ],
)
def test_forms_of_out(call: Call, error: Any, text: str) -> None:
    assert_refused(call, error, f"^{text}")


def test_a_part_of_out_that_is_wrong_leaves_the_rest() -> None:
    out = [np.full(12, 7, np.float32), np.full(13, 7, np.float32)]
    assert_refused(tk.decode, ValueError, r"^out\[1\]: expected 12 elements, got 13", PACKED_BUCKET, out=out)
    assert_refused(tk.clip, ValueError, r"^out\[1\]: expected 12 elements, got 13", BUCKET, out=out)
    message = np.full(PACKED.data.shape, 7, np.uint8)
    for bad in ({"clip": -1}, {"seed": 2**64}, {"layer": -1}, {"scales": (ONE, 1.0)}, {"stream": 3}):
        assert_refused(tk.encode, (TypeError, ValueError), f"^{next(iter(bad))}", X, out=message, **bad)


# ---- PyTorch


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def strange_tensors(torch: Any) -> dict[str, Any]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    class Wrapper(torch.Tensor):  # type: ignore[misc]
        @staticmethod
        def __new__(cls, *size: int) -> Any:
            return torch.Tensor._make_wrapper_subclass(cls, size)

        @classmethod
        def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            raise NotImplementedError(function)

    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fake, fake_empty = torch.empty(12), torch.empty(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both are announced as prototypes
        nested = torch.nested.nested_tensor([torch.ones(5), torch.ones(7)])
        jagged = torch.nested.nested_tensor([torch.ones(5), torch.ones(7)], layout=torch.jagged)
    return {
        "fake": fake,
        "fake, empty": fake_empty,
        "meta": torch.empty(12, device="meta"),
        "meta, empty": torch.empty(0, device="meta"),
        "wrapper": Wrapper(12),
        "sparse": torch.ones(12).to_sparse(),
        "sparse rows": sparse_rows(torch),
        "nested": nested,
        "jagged": jagged,
        "mkldnn": torch.ones(3, 4).to_mkldnn(),
    }


def sparse_rows(torch: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # announced as a prototype
        return torch.ones(3, 4).to_sparse_csr()


STRANGE = (
    "fake",
    "fake, empty",
    "meta",
    "meta, empty",
    "wrapper",
    "sparse",
    "sparse rows",
    "nested",
    "jagged",
    "mkldnn",
)


@pytest.mark.parametrize("kind", STRANGE)
def test_tensors_without_memory_of_their_own(kind: str, torch: Any, capfd: pytest.CaptureFixture[str]) -> None:
    tensor = strange_tensors(torch)[kind]
    for operation in (tk.encode, tk.scales, tk.clip, tk.ternarize):
        assert_refused(operation, TypeError, "^x: ", tensor)
        assert_refused(operation, (TypeError, ValueError), r"^x\[1\]: ", [torch.ones(12), tensor])
    packed = tk.encode(torch.ones(12))
    assert_refused(tk.decode, TypeError, "^out: ", packed, out=tensor)
    assert_refused(tk.clip, TypeError, "^out: ", torch.ones(12), out=tensor)
    assert_refused(tk.encode, TypeError, "^out: ", torch.ones(12), out=tensor)
    assert capfd.readouterr().err == ""  # PyTorch warns there of pointers that should not be looked at


def test_tensors_of_function_transforms(torch: Any) -> None:
    text = "^x: expected an array with dense memory of its own, got a Tensor without$"
    with pytest.raises(TypeError, match=text):
        torch.func.vmap(lambda x: tk.encode(x).data)(torch.ones(3, 12))
    with pytest.raises(TypeError, match=text):
        torch.func.grad(lambda x: tk.encode(x).data.sum().float())(torch.ones(12))


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8", "bool", "complex64", "float8_e4m3fn"])
def test_tensors_of_wrong_dtypes(dtype: str, torch: Any) -> None:
    x = torch.zeros(12).to(getattr(torch, dtype))
    for operation in (tk.encode, tk.scales, tk.clip, tk.ternarize):
        text = f"^x: expected float32, float16, bfloat16, float64, got torch {dtype}"
        assert_refused(operation, TypeError, text, x)


def test_conjugated_tensors(torch: Any) -> None:
    x = torch.ones(12, dtype=torch.complex64).conj()
    assert_refused(tk.encode, TypeError, "^x: expected float32, .* got torch complex64", x)


def test_outputs_of_torch(torch: Any) -> None:
    packed = tk.encode(torch.ones(12))
    for out, error, text in (
        (np.zeros(12, np.float32), TypeError, "expected a torch array as the input is, got a numpy array"),
        (torch.zeros(24)[::2], ValueError, "expected a dense row-major array"),
        (torch.zeros(1).expand(12), ValueError, "expected a dense row-major array"),
        (torch.zeros(13), ValueError, "expected 12 elements, got 13"),
        (torch.zeros(12, dtype=torch.int8), TypeError, "got int8"),
        (torch.zeros(12, dtype=torch.complex64), TypeError, "complex64"),
        (torch._neg_view(torch.zeros(12)), ValueError, "got a lazily negated view"),
    ):
        assert_refused(tk.decode, error, f"^out: .*{text}", packed, out=out)
    assert_refused(CALLS["decode"], TypeError, "^out: expected a numpy array as the input is", out=torch.zeros(12))


# ---- JAX


@pytest.fixture
def jax() -> Any:
    return pytest.importorskip("jax")


def test_traced_seeds(jax: Any) -> None:
    with pytest.raises(TypeError, match=r"^seed: "):
        jax.jit(lambda seed: tk.encode(X, seed=seed).data)(jax.numpy.zeros(2, "uint32"))


def test_jax_arrays_are_no_outputs(jax: Any) -> None:
    jnp = jax.numpy
    x = jnp.ones(12)
    packed, floats = tk.encode(x), jnp.ones(1)
    for call in (
        lambda: tk.encode(x, out=jnp.zeros(32, jnp.uint8)),
        lambda: tk.decode(packed, out=jnp.zeros(12)),
        lambda: tk.decode(packed, out=jnp.zeros(12), accumulate=True),
        lambda: tk.decode_sum([packed], out=jnp.zeros(12)),
        lambda: tk.clip(x, out=x),
        lambda: tk.clip([x], out=[x]),
        lambda: tk.ternarize(x, out=(jnp.zeros(12, jnp.int8), floats)),
        lambda: tk.scales(x, out=tk.Scales(floats, floats)),
        lambda: tk.pack(jnp.ones(12, jnp.int8), out=jnp.zeros(3, jnp.uint8)),
        lambda: tk.unpack(jnp.ones(3, jnp.uint8), shape=12, out=jnp.zeros(12, jnp.int8)),
    ):
        with pytest.raises(
            TypeError, match=r"^out(\[0\]|\.scale)?: expected None, got a JAX array, which is immutable$"
        ):
            call()
    assert_refused(tk.decode, TypeError, "^out: expected a jax array as the input is", packed, out=X.copy())
    with pytest.raises(TypeError, match=r"^out: expected a numpy array as the input is, got a jax array"):
        tk.decode(PACKED, out=x)


def test_jax_arrays_that_are_gone_or_of_other_types(jax: Any) -> None:
    jnp = jax.numpy
    x = jnp.ones(12)
    x.delete()
    with pytest.raises(ValueError, match=r"^x: expected an array with memory, got one that was deleted or donated"):
        tk.encode(x)
    with pytest.raises(TypeError, match=r"^x: expected float32, float16, bfloat16, float64, got jax key<fry>"):
        tk.encode(jax.random.key(1))
    for dtype in ("int8", "int32", "uint8", "bool", "complex64"):
        with pytest.raises(TypeError, match=f"^x: expected float32, .*, got jax {dtype}"):
            tk.encode(jnp.zeros(3, dtype))
    with pytest.raises(TypeError, match=r"^seed: "):
        tk.encode(jnp.ones(3), seed=jnp.array([5], "int32"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_was_changed_by_all_this(dtype: str) -> None:
    """The module's own arrays, which nearly every call above was given."""
    assert bits_of(X).tolist() == bits_of(layer("normal", 12)).tolist()
    assert bits_of(tk.encode(layer("normal", 12, dtype)).data).size == 32
