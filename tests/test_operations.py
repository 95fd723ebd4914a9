"""Every operation against the reference, bit by bit, on every instruction set."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from arrays import (
    BITS,
    DTYPES,
    EDGES,
    KINDS,
    PACKINGS,
    TERNARY,
    Array,
    assert_all_same,
    assert_same,
    assert_same_but_nan,
    bits_of,
    bucket,
    cast,
    flat,
    from_bits,
    layer,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

import reference as ref
import terngrad_kernels as tk
from terngrad_kernels import _core

pytestmark = pytest.mark.usefixtures("isa")

DRAW = {"seed": 0x0123456789ABCDEF, "offset": 0xFEDCBA9876543210, "layer": 5}


def pair(scale: Any, limit: Any, n: int = 1) -> tk.Scales:
    """Passed scales; reference functions take them as well."""
    with np.errstate(over="ignore"):
        return tk.Scales(np.full(n, scale, np.float32), np.full(n, limit, np.float32))


def mixed(n: int, names: Sequence[str] = PACKINGS) -> list[str]:
    return list(itertools.islice(itertools.cycle(names), n))


def packing_of(name: str, n: int) -> Any:
    return mixed(n) if name == "mixed" else name


# ---- encode


@lru_cache
def encoded_edges(dtype: str, packing: str, clip: float | None) -> Array:
    return ref.encode(edges(dtype), packing=packing_of(packing, len(EDGES)), clip=clip, **DRAW)


@lru_cache
def edges(dtype: str) -> list[Array]:
    return bucket(EDGES, dtype)


@pytest.mark.parametrize("packing", [*PACKINGS, "mixed"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clip", [2.5, 0.75, None])
def test_encode_at_every_edge(dtype: str, packing: str, clip: float | None) -> None:
    packed = tk.encode(edges(dtype), packing=packing_of(packing, len(EDGES)), clip=clip, **DRAW)
    assert packed.layout.nbytes == packed.data.size
    assert_same(packed.data, encoded_edges(dtype, packing, clip))


@lru_cache
def every_length() -> tuple[list[Array], tk.Scales, dict[str, Array]]:
    layers = bucket(range(2 * 2560 // 4 + 3), kind="small")
    scales = pair(0.003, 0.002, len(layers))
    return layers, scales, {name: ref.encode(layers, packing=name, scales=scales) for name in TERNARY}


@pytest.mark.parametrize("packing", TERNARY)
def test_encode_every_length(packing: str) -> None:
    layers, scales, want = every_length()
    assert_same(tk.encode(layers, packing=packing, scales=scales).data, want[packing])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_encode_every_kind(kind: str, dtype: str) -> None:
    sizes = (1, 5, 700, 2600)
    for clip in (2.5, None, 1e-6):
        layers = bucket(sizes, dtype, kind)
        got = tk.encode(layers, packing=mixed(4), clip=clip, **DRAW)
        assert_same(got.data, ref.encode(layers, packing=mixed(4), clip=clip, **DRAW), f"clip={clip}")


@pytest.mark.parametrize("draw", [(0, 0, 0), (2**64 - 1, 1, 2**31 - 2), (-1, -(2**63), 7), (2**32, 2**32, 1)])
@pytest.mark.parametrize("packing", TERNARY)
def test_encode_draws_by_seed_offset_and_layer(draw: tuple[int, int, int], packing: str) -> None:
    settings = dict(zip(("seed", "offset", "layer"), draw, strict=True))
    layers = bucket((3000, 700))
    assert_same(tk.encode(layers, packing=packing, **settings).data, ref.encode(layers, packing=packing, **settings))


@lru_cache
def cut_message(block: int | None, shards: int, packing: str, dtype: str) -> tuple[list[int], Array]:
    sizes = [12_900, 0, 2560, 1, 5121, 640, 30_000]
    layers = bucket(sizes, dtype, "outlier")
    return sizes, ref.encode(layers, packing=packing_of(packing, len(sizes)), block=block, shards=shards, **DRAW)


@pytest.mark.parametrize("packing", [*TERNARY, "mixed"])
@pytest.mark.parametrize(("block", "shards"), [(2560, 1), (7680, 1), (None, 2), (None, 5), (2560, 3), (5120, 40)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_encode_blocks_and_shards(packing: str, block: int | None, shards: int, dtype: str) -> None:
    sizes, want = cut_message(block, shards, packing, dtype)
    layers = bucket(sizes, dtype, "outlier")
    packings = packing_of(packing, len(sizes))
    layout = tk.Layout([(n,) for n in sizes], dtype, packings, block, shards)
    packed = tk.encode(flat(layers), layout=layout, **DRAW)
    assert packed.layout is layout
    assert_same(packed.data, want)
    assert_same(tk.encode(layers, layout=layout, **DRAW).data, want)
    if shards == 1:
        assert_same(tk.encode(layers, packing=packings, block=block, **DRAW).data, want)
    tk.validate(packed)
    decoded = ref.decode(want, sizes, packings, dtype=dtype, block=block, shards=shards)
    assert_same_but_nan(tk.decode(packed), flat(decoded))


@pytest.mark.parametrize("packing", [*TERNARY, "mixed"])
@pytest.mark.parametrize("passed", [False, True])
def test_encode_and_decode_one_shard(packing: str, passed: bool) -> None:
    """Its statistics go by piece, its random bits by the position in the layer."""
    sizes = [12_900, 0, 2560, 1, 5121, 640, 30_000]
    packings = packing_of(packing, len(sizes))
    whole = tk.Layout([(n,) for n in sizes], packing=packings, block=7680, shards=4)
    layers = bucket(sizes, kind="outlier")
    for index in range(4):
        layout = whole.shard(index)
        parts = [layers[p.layer][p.first : p.first + p.size] for p in layout.pieces]
        scales = pair(3, 2, len(parts)) if passed else None
        cut = {"packing": packings, "block": 7680, "shards": 4, "index": index}
        want = ref.encode(parts, sizes=sizes, scales=scales, **cut, **DRAW)
        packed = tk.encode(flat(parts), layout=layout, scales=scales, **DRAW)
        assert_same(packed.data, want)
        assert_same(tk.decode(packed), flat(ref.decode(want, sizes, **cut)))
        if passed and packing != "mixed":
            whole_message = tk.encode(layers, layout=whole, scales=pair(3, 2, whole.groups), **DRAW)
            assert_same(whole_message.data.reshape(4, -1)[index], packed.data)


UNUSABLE = (0.0, -0.0, -1e-30, -1.0, np.nan, -np.inf)
SPECIAL_SCALES = (1.0, 0.25, 3e38, 2.0**-60, 2.0**-61, 1e-40, np.inf, *UNUSABLE)
SPECIAL_LIMITS = (np.inf, 1.0, 0.1, 1e-38, 1e-42, 3e38, *UNUSABLE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packing", ["two_bit", "base3", "float32"])
def test_encode_with_passed_scales(dtype: str, packing: str) -> None:
    """Every special scale with every special limit; the layer holds NaNs and infinities of both signs."""
    x = layer("normal", 900, dtype)
    x[:40] = cast(np.tile([np.nan, -np.nan, np.inf, -np.inf], 10), dtype)
    layers = [x] * (len(SPECIAL_SCALES) * len(SPECIAL_LIMITS))
    both = np.array(list(itertools.product(SPECIAL_SCALES, SPECIAL_LIMITS)), np.float32)
    scales = tk.Scales(np.ascontiguousarray(both[:, 0]), np.ascontiguousarray(both[:, 1]))
    got = tk.encode(layers, packing=packing, scales=scales, clip=1e-9)
    assert_same(got.data, ref.encode(layers, packing=packing, scales=scales))
    if packing == "two_bit":
        trits, scale = tk.ternarize(layers, scales=scales)
        want_trits, want_scale = ref.ternarize(layers, scales=scales)
        assert_all_same(trits, want_trits)
        assert_same(scale, want_scale)


@pytest.mark.parametrize("packing", TERNARY)
@pytest.mark.parametrize(
    ("dtype", "value"), [*((dtype, 0.37) for dtype in DTYPES), ("float16", 2.0**-24), ("bfloat16", 2.0**-60)]
)
def test_a_ternary_layer_comes_back_unchanged(packing: str, dtype: str, value: float) -> None:
    x = cast(np.float32(value) * np.random.default_rng(3).integers(-1, 2, 5000), dtype)
    x = np.where(x == 0, np.zeros_like(x), x)  # no -0, whose sign a code of 0 does not keep
    for seed in range(5):
        assert_same(tk.decode(tk.encode(x, clip=None, packing=packing, seed=seed)), x)


float_bits = {name: st.integers(0, 2 ** (8 * np.dtype(word).itemsize) - 1) for name, word in BITS.items()}


@st.composite
def layers_of_any_bits(draw: Any) -> tuple[str, list[Array]]:
    dtype = draw(st.sampled_from(DTYPES))
    spare = 64 - 8 * ref.DTYPES[dtype].itemsize
    lengths = draw(st.lists(st.one_of(st.integers(0, 40), st.integers(0, 1500)), max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    finite = draw(st.booleans())
    layers = []
    for n in lengths:
        x = from_bits(rng.integers(0, 2**64, n, dtype=np.uint64) >> spare, dtype)
        if finite:
            with np.errstate(all="ignore"):
                x = np.where(np.isfinite(x), x, np.ones_like(x))
                x = x * cast(draw(st.sampled_from([1.0, 2.0**-10, 2.0**-100])), dtype)
        given = draw(st.lists(float_bits[dtype], max_size=min(n, 6)))
        x[: len(given)] = from_bits(given, dtype)
        layers.append(x)
    return dtype, layers


@given(
    made=layers_of_any_bits(),
    packings=st.lists(st.sampled_from(PACKINGS), min_size=4, max_size=4),
    clip=st.one_of(st.none(), st.floats(1e-3, 100), st.floats(5e-324, 1.7e308)),
    seed=st.integers(-(2**63), 2**64 - 1),
    offset=st.integers(-(2**63), 2**64 - 1),
    first=st.integers(0, 2**31 - 4),
)
@settings(max_examples=120)
def test_any_bits(
    made: tuple[str, list[Array]], packings: list[str], clip: float | None, seed: int, offset: int, first: int
) -> None:
    dtype, layers = made
    names = packings[: len(layers)]
    draw = {"seed": seed, "offset": offset, "layer": first}
    layout = tk.Layout([(x.size,) for x in layers], dtype, names, form="list")
    packed = tk.encode(layers, clip=clip, layout=layout, **draw) if layers else tk.encode(layers)
    assert_same(packed.data, ref.encode(layers, packing=names, clip=clip, **draw))
    tk.validate(packed)
    sizes = [x.size for x in layers]
    assert_all_same(tk.decode(packed), ref.decode(packed.data, sizes, names, dtype=dtype), assert_same_but_nan)
    for center in (False, True):
        got, want = tk.scales(layers, clip=clip, center=center), ref.scales(layers, clip=clip, center=center)
        assert_all_same(got, want)
        assert_all_same(tk.clip(layers, clip=clip, center=center), ref.clip(layers, clip=clip, center=center))


@given(scale=float_bits["float32"], limit=float_bits["float32"], x=st.lists(float_bits["float32"], max_size=60))
@example(scale=0x3F800000, limit=0x7F800000, x=[0x3F800000, 0xBF800000, 0x7FC00000, 0xFFC00000])
@settings(max_examples=200)
def test_any_passed_scale(scale: int, limit: int, x: list[int]) -> None:
    values = from_bits(x, "float32")
    passed = tk.Scales(from_bits([scale], "float32"), from_bits([limit], "float32"))
    want = ref.encode([values], scales=passed)
    assert_same(tk.encode(values, scales=passed).data, want)
    assert_same(tk.clip(values, scales=passed), ref.clip([values], scales=passed)[0])
    numbers = [float(field[0]) for field in passed]
    decided = ref.passed_scale_and_limit(*numbers)
    assert_same(_core.thresholds(values, *numbers), ref.thresholds(values, *decided))
    assert _core.inverse(*numbers) == ref.inv_and_bound(*decided)


# ---- all 65,536 patterns of the 16-bit types


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("limit", [np.inf, 0.3])
def test_every_pattern_goes_in(dtype: str, limit: float) -> None:
    x = from_bits(np.arange(2**16), dtype)
    passed = pair(1.5, limit)
    for packing in PACKINGS:
        want = ref.encode([x], packing=packing, scales=passed)
        assert_same(tk.encode(x, packing=packing, scales=passed).data, want)
    assert_same(tk.clip(x, scales=passed), ref.clip([x], scales=passed)[0])
    assert_same(tk.decode(tk.encode(x, packing="float32")), ref.narrow(ref.widen(x, dtype), dtype))
    with np.errstate(invalid="ignore"):
        finite = x[np.isfinite(x)]
    assert_all_same(tk.scales(finite), ref.scales([finite]))
    assert_same(tk.encode(finite).data, ref.encode([finite]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_every_pattern_comes_out(dtype: str) -> None:
    """Each 16-bit value, the midpoint above it, and the float32 values beside both."""
    bits = from_bits(np.arange(2**16), "float16" if dtype == "float16" else "bfloat16")
    around = ref.widen(bits, bits.dtype.name).view(np.uint32).astype(np.int64)
    half = 1 << (15 if dtype != "float16" else 12)
    steps = np.array([-1, 0, 1, half - 1, half, half + 1])
    wide = (around[:, None] + steps).reshape(-1) % 2**32
    x = from_bits(wide, "float32")
    packed = tk.encode(x, packing="float32")
    assert_same(tk.decode(packed, dtype=dtype), ref.narrow(x, dtype))


# ---- decode


@lru_cache
def some_messages(count: int) -> tuple[tuple[int, ...], list[str], list[Array]]:
    """Messages of one layout with layers of several scales, zero ones, and special values carried."""
    sizes = (*EDGES[:20], 511, 512, 513, 641, 2560, 2561, 5200)
    packings = mixed(len(sizes))
    messages = []
    for seed in range(count):
        layers = bucket(sizes, seed=seed)
        layers[-1] *= np.float32(2.0**-20)
        layers[-2][:] = 0
        layers[-6][:4] = [np.nan, -np.inf, -0.0, 1e-42]
        messages.append(ref.encode(layers, packing=packings, seed=seed))
    return sizes, packings, messages


def packed_of(sizes: Sequence[int], packings: Any, data: Array, form: str = "flat") -> tk.Packed:
    return tk.Packed(tk.Layout([(n,) for n in sizes], packing=packings, form=form), data)


WEIGHTS = (1.0, 0.5, -1.0, 1 / 3, 0.0, -0.0, 1e-40, 3e38, 1 + 2.0**-24, 1e-300)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_decode(dtype: str, weight: float) -> None:
    sizes, packings, (data,) = some_messages(1)
    packed = packed_of(sizes, packings, data, "list")
    same = assert_same_but_nan
    got = tk.decode(packed, dtype=dtype, weight=weight)
    assert_all_same(got, ref.decode(data, sizes, packings, dtype=dtype, weight=weight), same)

    start = bucket(sizes, dtype, "wide", 9)
    out = [x.copy() for x in start]
    assert tk.decode(packed, out=out, weight=weight, accumulate=True) is out
    assert_all_same(out, ref.decode(data, sizes, packings, weight=weight, out=start), same)
    assert tk.decode(packed, out=out, weight=weight) is out
    assert_all_same(out, got, same)


def weights_of(count: int) -> list[float]:
    return list(itertools.islice(itertools.cycle((0.1, -1.0, 1 / 3, 0.0, 1.0)), count))


@lru_cache
def summed(count: int, dtype: str, weighted: bool) -> Array:
    sizes, packings, messages = some_messages(65)
    weights = weights_of(count) if weighted else None
    return flat(ref.decode_sum(messages[:count], sizes, packings, dtype=dtype, weights=weights))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 5, 64, 65])
@pytest.mark.parametrize("weighted", [False, True])
def test_decode_sum(dtype: str, count: int, weighted: bool) -> None:
    sizes, packings, messages = some_messages(65)
    weights = weights_of(count) if weighted else None
    packed = [packed_of(sizes, packings, data) for data in messages[:count]]
    got = tk.decode_sum(packed, weights=weights, dtype=dtype)
    assert_same_but_nan(got, summed(count, dtype, weighted))
    stacked = tk.Packed(packed[0].layout, np.stack(messages[:count]))
    assert_same(tk.decode_sum(stacked, weights=weights, dtype=dtype), got)
    out = layer("nan", got.size, dtype)
    assert tk.decode_sum(tuple(packed), weights=weights and iter(weights), out=out) is out
    assert_same(out, got)


def test_decode_sum_is_not_a_sum_of_decodes() -> None:
    """It starts at +0, keeps float32 between the messages and rounds once at the end."""
    x = np.ones(3, np.float32)
    packed = [tk.encode(s * x, clip=None) for s in (1.0, 2.0**-9, -1.0)]
    assert_same(tk.decode_sum(packed, dtype="float16"), np.full(3, 2.0**-9, np.float16))
    zero = tk.encode(-0 * x)
    assert_same(tk.decode_sum([zero], weights=[-1]), 0 * x)
    assert_same(tk.decode(zero, weight=-1), -0.0 * x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("field", [np.nan, np.inf, -np.inf, 0xFF812345])
@pytest.mark.parametrize("packing", TERNARY)
def test_a_scale_that_is_not_finite_gives_the_canonical_nan(dtype: str, field: Any, packing: str) -> None:
    sizes = (5, 700, 9)
    packings = [packing, packing, "float32"]
    good = ref.encode(bucket(sizes), packing=packings)
    bad = good.copy()
    at = slice(4, 8), slice(8, 12)
    for place in at:
        bad[place] = np.array([field], np.uint32 if isinstance(field, int) else np.float32).view(np.uint8)
    canonical = {"float32": 0x7FC00000, "float16": 0x7E00, "bfloat16": 0x7FC0, "float64": 0x7FF8 << 48}[dtype]
    out = bucket(sizes, dtype)
    packed = packed_of(sizes, packings, bad, "list")
    good_packed = packed_of(sizes, packings, good, "list")
    results = [
        tk.decode(packed, dtype=dtype, weight=-0.5),
        tk.decode(packed, out=out, accumulate=True),
        tk.decode_sum([good_packed, packed], dtype=dtype),
        tk.decode_sum([packed, good_packed], dtype=dtype, weights=[0, 1]),
    ]
    for first, second, third in results:
        assert (bits_of(second) == canonical).all()
        assert np.isfinite(first).all()
        assert np.isfinite(third).all()


@pytest.mark.parametrize("packing", TERNARY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_decode_is_total(packing: str, dtype: str) -> None:
    """All 256 values of a byte in every position of a tile; then in last, partial tiles of every length."""
    payload = (np.arange(256)[:, None] + np.arange(128)).astype(np.uint8).reshape(-1)
    rows = ref.TILE_ROWS[packing]
    n = payload.size * rows
    data = np.concatenate([np.array([0.5, 0, 0, 0], np.float32).view(np.uint8), payload])
    packed = packed_of([n], packing, data)
    assert_same(tk.decode(packed, dtype=dtype), ref.decode(data, [n], packing, dtype=dtype)[0])
    start = layer("normal", n, dtype)
    out = start.copy()
    tk.decode(packed, out=out, accumulate=True)
    assert_same(out, ref.decode(data, [n], packing, out=[start])[0])
    total = ref.decode_sum([data, data], [n], packing, dtype=dtype)[0]
    assert_same(tk.decode_sum([packed, packed], dtype=dtype), total)
    if dtype == "float32":
        assert_same(tk.unpack(payload, shape=n, packing=packing), ref.unpack(payload, n, packing))
        for length in range(1, rows * 128):
            part = payload[: -(-length // rows)] + np.uint8(length % 256)
            assert_same(tk.unpack(part, shape=length, packing=packing), ref.unpack(part, length, packing))


@given(st.data())
@settings(max_examples=100)
def test_decode_of_any_bytes(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 700), max_size=4))
    packings = data.draw(st.lists(st.sampled_from(PACKINGS), min_size=len(sizes), max_size=len(sizes)))
    shards = data.draw(st.integers(1, 3))
    dtype = data.draw(st.sampled_from(DTYPES))
    weight = data.draw(st.floats(-10, 10))
    layout = tk.Layout([(n,) for n in sizes], dtype, packings, shards=shards)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    message = rng.integers(0, 256, layout.nbytes, dtype=np.uint8)
    packed = tk.Packed(layout, message)
    cut = {"packing": packings, "shards": shards}
    want = ref.decode(message, sizes, **cut, dtype=dtype, weight=weight)
    assert_same_but_nan(tk.decode(packed, weight=weight), flat(want, dtype))
    total = ref.decode_sum([message, message], sizes, **cut, dtype=dtype, weights=[weight, 1])
    assert_same_but_nan(tk.decode_sum([packed, packed], weights=[weight, 1]), flat(total, dtype))


# ---- scales, clip, ternarize


@lru_cache
def edge_scales(dtype: str, center: bool) -> Any:
    return ref.scales(edges(dtype), center=center)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("center", [False, True])
def test_scales_at_every_edge(dtype: str, center: bool) -> None:
    got = tk.scales(edges(dtype), center=center)
    assert isinstance(got, tk.Scales)
    assert_all_same(got, edge_scales(dtype, center))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_scales_and_clip_of_every_kind(kind: str, dtype: str) -> None:
    layers = bucket((1, 700, 9000), dtype, kind)
    for clip, center in itertools.product((2.5, None, 1e-3, 1e300), (False, True)):
        assert_all_same(tk.scales(layers, clip=clip, center=center), ref.scales(layers, clip=clip, center=center))
        want = ref.clip(layers, clip=clip, center=center)
        assert_all_same(tk.clip(layers, clip=clip, center=center), want)
        in_place = [x.copy() for x in layers]
        assert tk.clip(in_place, clip=clip, center=center, out=in_place) is in_place
        assert_all_same(in_place, want)


@pytest.mark.parametrize("block", [None, 2560, 10_240])
def test_scales_by_block_and_layout(block: int | None) -> None:
    sizes = (20_000, 0, 2560, 5)
    layers = bucket(sizes, kind="outlier")
    assert_all_same(tk.scales(layers, block=block), ref.scales(layers, block=block))
    packings = ["two_bit", "base3", "float32", "two_bit"]
    layout = tk.Layout([(n,) for n in sizes], packing=packings, block=block, shards=3)
    want = ref.scales(layers, block=block, packing=packings)
    for x in (layers, flat(layers)):
        assert_all_same(tk.scales(x, layout=layout), want)
    own = tk.scales(layers, layout=layout)
    assert_same(tk.encode(layers, layout=layout, scales=own).data, tk.encode(layers, layout=layout).data)


#: Stripe 256 adds to bin 0 again; the last stripe is a partial one.
LONG = 8192 * 256 + 8192 + 130


@lru_cache
def long_statistics(dtype: str, center: bool) -> tuple[int, float, float]:
    return ref.statistics(ref.widen(layer("normal", LONG, dtype), dtype), center=center)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("center", [False, True])
def test_statistics_beyond_256_stripes(dtype: str, center: bool) -> None:
    assert _core.statistics(layer("normal", LONG, dtype), center) == long_statistics(dtype, center)


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_at_every_edge(dtype: str) -> None:
    for x in edges(dtype):
        for center in (False, True):
            want = ref.statistics(ref.widen(x, dtype), center=center)
            assert _core.statistics(x, center) == want


@given(
    seed=st.integers(-(2**63), 2**64 - 1),
    offset=st.integers(-(2**63), 2**64 - 1),
    word=st.integers(0, 2**32 - 1),
    first=st.one_of(st.integers(0, 5000), st.integers(0, 2**36 - 2000)),
    n=st.integers(0, 1100),
)
@settings(max_examples=60)
def test_uniforms(seed: int, offset: int, word: int, first: int, n: int) -> None:
    want = ref.uniforms(n, seed=seed, offset=offset, layer=word, first=first)
    assert_same(_core.uniforms(n, seed, offset, word, first), want)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=6, max_size=6))
def test_philox(words: list[int]) -> None:
    got = _core.philox(*words)
    want = ref.philox4x32_10(np.array(words[:4], np.uint32), np.array(words[4:], np.uint32))
    assert list(got) == want.tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limit", SPECIAL_LIMITS)
def test_clip_to_passed_limits(dtype: str, limit: float) -> None:
    x = layer("wide", 900, dtype)
    x[:4] = cast([np.nan, np.inf, -np.inf, -0.0], dtype)
    for scale in (1.0, np.nan):  # of which nothing is said
        assert_same(tk.clip(x, scales=pair(scale, limit)), ref.clip([x], scales=pair(scale, limit))[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_ternarize_at_every_edge(dtype: str) -> None:
    trits, scale = tk.ternarize(edges(dtype), **DRAW)
    want, want_scale = ternarized_edges(dtype)
    assert_all_same(trits, want)
    assert_same(scale, want_scale)
    # The same trits that encode packs.
    decoded = tk.decode(tk.encode(edges(dtype), **DRAW), dtype="float32")
    assert_all_same([t * s for t, s in zip(trits, scale, strict=True)], decoded, assert_equal_values)


def assert_equal_values(got: Array, want: Array, what: str) -> None:
    np.testing.assert_array_equal(got.astype(np.float32), want.reshape(got.shape), what)


@lru_cache
def ternarized_edges(dtype: str) -> Any:
    return ref.ternarize(edges(dtype), **DRAW)


# ---- pack, unpack


@pytest.mark.parametrize("packing", TERNARY)
def test_pack_and_unpack_every_length(packing: str) -> None:
    values = np.random.default_rng(5).integers(-128, 128, 1300).astype(np.int8)
    values[::3] = 0
    for n in range(values.size):
        payload = tk.pack(values[:n], packing=packing)
        assert_same(payload, ref.pack(values[:n], packing))
        assert_same(tk.unpack(payload, shape=(n,), packing=packing), np.sign(values[:n]))


@pytest.mark.parametrize("packing", TERNARY)
def test_pack_takes_the_sign_of_all_256_values(packing: str) -> None:
    values = np.arange(-128, 128).astype(np.int8)
    for shift in range(5):
        rolled = np.roll(values, shift)
        assert_same(tk.pack(rolled, packing=packing), ref.pack(rolled, packing))


def test_pack_and_unpack_keep_no_shape_but_the_one_given() -> None:
    trits = np.random.default_rng(6).integers(-1, 2, (3, 5, 7)).astype(np.int8)
    payload = tk.pack(trits)
    assert payload.shape == (27,)
    assert_same(payload, tk.pack(trits.reshape(-1)))
    for shape in ((3, 5, 7), (105,), 105, [21, 5]):
        got = tk.unpack(payload, shape=shape)
        assert got.shape == (tuple(shape) if not isinstance(shape, int) else (shape,))
        np.testing.assert_array_equal(got.reshape(-1), trits.reshape(-1))
    assert tk.unpack(tk.pack(np.array(-1, np.int8)), shape=()) == -1


# ---- validate


@pytest.mark.parametrize("packing", TERNARY)
@pytest.mark.parametrize("n", [5, 512, 640, 1000])
def test_validate_every_byte_value_in_every_position(packing: str, n: int) -> None:
    x = layer("normal", n)
    data = tk.encode(x, packing=packing).data
    packed = packed_of([n], packing, data)
    step = 1 if n == 5 else 7
    for at, value in itertools.product(range(16, data.size, step), range(256)):
        old = data[at]
        data[at] = value
        valid = ref.validate(data, [n], packing) if n == 5 else canonical_byte(packing, n, at - 16, value)
        assert is_valid(packed) == valid, (at, value)
        data[at] = old


def canonical_byte(packing: str, n: int, at: int, value: int) -> bool:
    """Whether a payload of n elements may have that byte there; the reference, for one byte."""
    rows = ref.TILE_ROWS[packing]
    total = -(-n // rows)
    whole = total // 128 * 128
    if at >= total:
        return value == 0
    columns = 128 if at < whole else total - whole
    rest = rows * 128 if at < whole else n - whole * rows
    used = sum((at % 128) + row * columns < rest for row in range(rows))
    if packing == "two_bit":
        codes = [value >> 2 * row & 3 for row in range(4)]
        exists = 2 not in codes
    else:
        codes = [value // 3**row % 3 for row in range(5)]
        exists = value <= 242
    return exists and not any(codes[used:])


def is_valid(packed: tk.Packed) -> bool:
    try:
        tk.validate(packed)
    except tk.CorruptMessage:
        return False
    return True


@pytest.mark.parametrize("fired", [False, True])
def test_validate_scales(fired: bool) -> None:
    smallest = 0x21800000  # 2^-60
    infinity = 0x7F800000
    edges = [0, 1, smallest - 1, smallest, smallest + 1, infinity - 1, infinity, infinity + 1, 0x7FC00000]
    bits = np.concatenate([edges, np.random.default_rng(7).integers(0, 2**31, 2000)])
    data = tk.encode(np.full(600, fired, np.float32), clip=None).data
    for word in np.concatenate([bits, bits + 2**31]).astype(np.uint32):
        data[:4] = np.array([word]).view(np.uint8)
        assert is_valid(packed_of([600], "two_bit", data)) == ref.validate(data, [600])


@given(st.data())
@settings(max_examples=150)
def test_validate_a_changed_message(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=4))
    packings = data.draw(st.lists(st.sampled_from(PACKINGS), min_size=len(sizes), max_size=len(sizes)))
    shards = data.draw(st.integers(1, 3))
    layout = tk.Layout([(n,) for n in sizes], packing=packings, shards=shards)
    message = tk.encode(bucket(sizes), layout=layout).data
    tk.validate(tk.Packed(layout, message))
    for at in data.draw(st.lists(st.integers(0, layout.nbytes - 1), min_size=1, max_size=2)):
        message[at] = data.draw(st.integers(0, 255))
    assert is_valid(tk.Packed(layout, message)) == ref.validate(message, sizes, packings, shards=shards)


@pytest.mark.parametrize("change", [-32, -1, 1, 16])
def test_validate_lengths(change: int) -> None:
    packed = tk.encode(layer("normal", 50))
    data = np.zeros(packed.data.size + change, np.uint8)
    data[: packed.data.size] = packed.data[: data.size]
    with pytest.raises(tk.CorruptMessage, match=f"expected {packed.data.size} bytes, got {data.size}"):
        tk.validate(tk.Packed(packed.layout, data))


# ---- outputs that the caller gives


@pytest.mark.parametrize("packing", PACKINGS)
def test_encode_into_out(packing: str) -> None:
    layers = bucket((700, 0, 33))
    want = tk.encode(layers, packing=packing)
    for shape in (want.data.shape, (want.data.size // 16, 16)):
        out = np.full(shape, 0xAA, np.uint8)
        packed = tk.encode(layers, packing=packing, out=out)
        assert packed.data is out
        assert_same(out, want.data)


@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_of_every_form(dtype: str) -> None:
    shapes = ((2, 3), (0, 4), ())
    layers = [x.reshape(shape) for x, shape in zip(bucket((6, 0, 1), dtype), shapes, strict=True)]
    trits = [np.full(x.shape, 7, np.int8) for x in layers]
    scale = np.full(3, np.nan, np.float32)
    got = tk.ternarize(layers, out=(trits, scale))
    assert got[0] is trits
    assert got[1] is scale
    want = tk.ternarize(layers)
    assert_all_same(trits, want[0])
    assert_same(scale, want[1])

    measured = tk.Scales(np.full(3, np.nan, np.float32), np.full(3, np.nan, np.float32))
    returned = tk.scales(layers, out=measured)
    assert returned.scale is measured.scale
    assert returned.limit is measured.limit
    assert_all_same(measured, tk.scales(layers))

    clipped = [np.empty_like(x) for x in layers]
    assert tk.clip(layers, out=clipped) is clipped
    assert_all_same(clipped, tk.clip(layers))

    packed = tk.encode(layers)
    decoded = tk.decode(packed)
    assert tuple(x.shape for x in decoded) == shapes
    for out in (tuple(np.empty_like(x) for x in layers), [np.empty(x.size, x.dtype) for x in layers]):
        assert tk.decode(packed, out=out) is out
        assert_all_same(out, decoded)
    one = tk.encode(layers[0])
    out = np.empty(6, layers[0].dtype)
    assert tk.decode(one, out=out) is out
    assert_same(out, decoded[0])
    assert tk.decode(one).shape == (2, 3)

    payload = np.full(2, 0xAA, np.uint8)
    assert tk.pack(trits[0], out=payload) is payload
    assert_same(payload, tk.pack(trits[0]))
    unpacked = np.full((3, 2), 7, np.int8)
    assert tk.unpack(payload, shape=(2, 3), out=unpacked) is unpacked
    assert_same(unpacked, trits[0])


def test_parts_of_a_message() -> None:
    layers = bucket((700, 0, 33))
    packed = tk.encode(layers, packing=["two_bit", "base3", "float32"])
    assert_same(packed.scales, np.append(tk.scales(layers[:2]).scale, np.float32(1)))
    assert np.shares_memory(packed.scales, packed.data)
    assert_same(packed.payload, packed.data[16:])
    assert np.shares_memory(packed.payload, packed.data)
    stacked = tk.Packed(packed.layout, np.stack([packed.data] * 2))
    assert stacked.scales.shape == (2, 3)
    assert stacked.payload.shape == (2, packed.layout.nbytes - 16)
    layout = tk.Layout([(9000,)], shards=2)
    cut = tk.encode(layer("normal", 9000), layout=layout)
    for name in ("scales", "payload"):
        with pytest.raises(ValueError, match=f"^{name}: expected a message of one shard, got 2 shards"):
            getattr(cut, name)
    shard = tk.Packed(layout.shard(1), cut.data[layout.nbytes // 2 :])
    assert shard.scales == cut.data[:4].view(np.float32)
    empty = tk.encode([])
    assert (empty.scales.size, empty.payload.size, empty.data.size) == (0, 0, 0)


def test_nothing_goes_in_and_out() -> None:
    assert tk.decode(tk.encode([])) == []
    assert tk.clip([]) == []
    trits, scale = tk.ternarize([])
    assert trits == []
    assert_same(scale, np.empty(0, np.float32))
    assert_all_same(tk.scales([]), [np.empty(0, np.float32)] * 2)
    tk.validate(tk.encode([]))
    assert tk.decode_sum([tk.encode([])] * 3) == []
    assert tk.pack(np.empty(0, np.int8)).size == 0
    assert tk.unpack(np.empty(0, np.uint8), shape=(3, 0)).shape == (3, 0)


# ---- threads


# More than 64 K elements a thread, so that three work; with small layers among them, that share a thread.
THREADED = (3 * 2**16 + 2560 * 3 + 77, 0, 5000, 2**17 + 1, *range(100, 110), 40_000)


@lru_cache
def threaded(dtype: str, cut: str) -> tuple[dict[str, Any], list[Array], Array, list[Array]]:
    fields: dict[str, Any] = {
        "whole": {},
        "blocks": {"block": 2560 * 30},
        "shards": {"shards": 3},
        "mixed": {"packing": mixed(len(THREADED)), "block": 2560 * 77, "shards": 2},
        "base3": {"packing": "base3"},
    }[cut]
    layers = bucket(THREADED, dtype, "outlier")
    message = ref.encode(layers, **fields, **DRAW)
    sum_of_two = ref.decode_sum([message, message], THREADED, **fields, weights=[0.3, -1], dtype=dtype)
    return fields, layers, message, sum_of_two


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("cut", ["whole", "blocks", "shards", "mixed", "base3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_number_of_threads_changes_no_bit(dtype: str, cut: str) -> None:
    fields, layers, message, sum_of_two = threaded(dtype, cut)
    layout = tk.Layout([x.shape for x in layers], dtype, **fields, form="list")
    for x in (layers, flat(layers)):
        packed = tk.encode(x, layout=layout, **DRAW)
        assert_same(packed.data, message)
    assert_all_same(tk.decode_sum([packed, packed], weights=[0.3, -1]), sum_of_two)
    plain = tk.decode_sum([packed])
    assert_all_same(tk.decode(packed), plain, assert_equal_values)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("center", [False, True])
def test_the_number_of_threads_changes_no_statistics(center: bool) -> None:
    assert _core.statistics(layer("normal", LONG), center) == long_statistics("float32", center)


@lru_cache
def threaded_results() -> Any:
    layers = bucket(THREADED, kind="outlier")
    return layers, ref.scales(layers), ref.clip(layers), ref.ternarize(layers, **DRAW)


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_no_other_result() -> None:
    layers, scales, clipped, (trits, scale) = threaded_results()
    assert_all_same(tk.scales(layers), scales)
    assert_all_same(tk.clip(layers), clipped)
    got_trits, got_scale = tk.ternarize(layers, **DRAW)
    assert_all_same(got_trits, trits)
    assert_same(got_scale, scale)


@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "misaligned"])
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("threads", [1], indirect=True)
def test_large_outputs(shift: int) -> None:
    """From 16 MiB on, aligned float32 outputs are written past the caches: by other code, so the same bits again."""
    n = 4 * 1024 * 1024 + 512 * 3 + 77
    x = np.random.default_rng(5).standard_normal(n, dtype=np.float32)
    messages = [tk.encode(x, seed=seed) for seed in range(3)]
    memory = np.full(n + 64, np.nan, np.float32)
    start = -memory.ctypes.data // 4 % 16 + shift
    out = memory[start : start + n]
    weights = [0.25, -1.5, 3.0]
    units = [ref.unpack(np.asarray(m.payload[: -(-n // 4)]), n, "two_bit").astype(np.float32) for m in messages]
    scale = messages[0].scales[0]
    tk.decode(messages[0], out=out, weight=0.25)
    assert out.tobytes() == (np.float32(0.25) * scale * units[0]).tobytes()
    tk.decode_sum(messages, weights=weights, out=out)
    want = np.zeros(n, np.float32)
    for weight, trits in zip(weights, units, strict=True):
        want += np.float32(weight) * scale * trits  # the product is exact: an addition is the fma
    assert out.tobytes() == want.tobytes()
    assert np.isnan(memory[:start]).all()
    assert np.isnan(memory[start + n :]).all()
