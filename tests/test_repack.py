"""`repack`, the second hop: every message against the reference, bit by bit, on every instruction set."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from arrays import (
    COUNTS,
    DTYPES,
    EDGES,
    PACKINGS,
    TERNARY,
    Array,
    Framework,
    assert_all_same,
    assert_same,
    bucket,
    canonical_nans,
    cuts_of,
    flat,
    garbage,
    layer,
    names_of,
    sizes_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import reference as ref
import terngrad_kernels as tk

pytestmark = pytest.mark.usefixtures("isa")

DRAW = {"seed": 0x0123456789ABCDEF, "offset": 0xFEDCBA9876543210, "layer": 5}
WEIGHTS = (0.25, -1.0, 1 / 3, 0.0, 1e-3)


def layout_of(sizes: Sequence[int], packing: str = "two_bit", **fields: Any) -> tk.Layout:
    names: Any = packing
    if packing == "mixed":
        names = list(itertools.islice(itertools.cycle(PACKINGS), len(sizes)))
    return tk.Layout([(n,) for n in sizes], packing=names, **fields)


def messages_of(layout: tk.Layout, count: int, kind: str = "normal") -> list[tk.Packed]:
    """Messages of different layers, each of its own scales."""
    return [tk.encode(layer(kind, layout.size, layout.dtype, k), layout=layout, seed=k) for k in range(count)]


def counts_of(layout: tk.Layout, workers: int, count: int) -> list[tk.Counts]:
    """Sums of `workers` messages each."""
    sums = []
    for k in range(count):
        x = layer("normal", layout.size, layout.dtype, k)
        own = tk.scales(x, layout=layout)
        shared = [tk.encode(np.roll(x, w), layout=layout, seed=w, scales=own) for w in range(workers)]
        sums.append(tk.sum_trits(shared))
    return sums


def in_turn(count: int, weights: Sequence[float] = WEIGHTS) -> list[float]:
    return list(itertools.islice(itertools.cycle(weights), count))


def target_of(layout: tk.Layout, packing: Any) -> list[str]:
    names = names_of(layout)
    if packing is None:
        return ["two_bit" if name in COUNTS else name for name in names]
    if isinstance(packing, str):
        return ["float32" if name == "float32" else packing for name in names]
    return list(packing)


def reference_repack(messages: Sequence[Any], packing: Any = None, **options: Any) -> Array:
    layout = messages[0].layout
    data = [np.asarray(message.data) for message in messages]
    return ref.repack(data, sizes_of(layout), names_of(layout), to=packing, **cuts_of(layout), **options)


def assert_repacked(got: Any, want: Array, first: tk.Layout, packing: Any = None, what: str = "") -> None:
    """Type, layout and bytes; and that they are canonical."""
    assert isinstance(got, tk.Packed)
    assert got.layout == replace(first, packing=tuple(target_of(first, packing)))
    assert got.data.shape == (got.layout.nbytes,)
    assert_same(canonical_nans(got.data, got.layout), canonical_nans(want, got.layout), what)
    tk.validate(got)


# ---- what is repacked


@functools.lru_cache
def repacked(packing: str, count: int, to: str | None, clip: float | None) -> tuple[list[Any], Array]:
    layout = layout_of(EDGES, packing)
    messages = messages_of(layout, count)
    return messages, reference_repack(messages, to, weights=in_turn(count), clip=clip, **DRAW)


@pytest.mark.parametrize("packing", [*TERNARY, "mixed"])
@pytest.mark.parametrize(("count", "to", "clip"), [(1, None, None), (3, "base3", 2.5), (5, "two_bit", 0.75)])
def test_every_edge(packing: str, count: int, to: str | None, clip: float | None) -> None:
    messages, want = repacked(packing, count, to, clip)
    got = tk.repack(messages, weights=in_turn(count), clip=clip, packing=to, **DRAW)
    assert_repacked(got, want, messages[0].layout, to)


@functools.lru_cache
def repacked_counts(workers: int, to: str | None) -> tuple[list[Any], Array]:
    messages = counts_of(layout_of((*EDGES[:40], 2560, 2561), "mixed"), workers, 2)
    return messages, reference_repack(messages, to, weights=[1 / workers, -0.5], clip=2.0, **DRAW)


@pytest.mark.parametrize("workers", [1, 7, 8, 127, 128])
@pytest.mark.parametrize("to", [None, "two_bit", "base3"])
def test_counts(workers: int, to: str | None) -> None:
    messages, want = repacked_counts(workers, to)
    got = tk.repack(messages, weights=[1 / workers, -0.5], clip=2.0, packing=to, **DRAW)
    assert_repacked(got, want, messages[0].layout, to)


def test_counts_of_different_workers() -> None:
    """decode_sum and repack want one packing, and ask for nothing else."""
    one, three = (counts_of(layout_of((700, 3)), workers, 1)[0] for workers in (1, 3))
    assert_repacked(tk.repack([one, three], **DRAW), reference_repack([one, three], **DRAW), one.layout)


CUTS: dict[str, dict[str, Any]] = {
    "block": {"block": 2560},
    "shards": {"shards": 3},
    "many shards": {"shards": 40},
    "block and shards": {"block": 5120, "shards": 4},
}


@functools.lru_cache
def cut_messages(cut: str, packing: str) -> tuple[list[tk.Packed], Array]:
    messages = messages_of(layout_of((12_900, 0, 2560, 1, 5121, 640, 30_000), packing, **CUTS[cut]), 3, "outlier")
    return messages, reference_repack(messages, weights=in_turn(3), clip=2.5, **DRAW)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("packing", [*TERNARY, "mixed"])
def test_blocks_and_shards(cut: str, packing: str) -> None:
    """Pieces of one group share its scale; a message of counts is cut like one of trits."""
    messages, want = cut_messages(cut, packing)
    assert_repacked(tk.repack(messages, weights=in_turn(3), clip=2.5, **DRAW), want, messages[0].layout)


@functools.lru_cache
def shard_messages(packing: str, counts: bool, index: int) -> tuple[list[Any], Array, Array, tk.Scales]:
    whole = layout_of((12_900, 0, 2560, 1, 5121, 640, 30_000), packing, block=7680, shards=4)
    messages: list[Any] = counts_of(whole, 3, 2) if counts else messages_of(whole, 2)
    own = [replace(m, layout=m.layout.shard(index), data=m.data.reshape(4, -1)[index]) for m in messages]
    groups = own[0].layout.groups
    passed = tk.Scales(np.full(groups, 3, np.float32), np.resize(np.float32([np.inf, 2]), groups))
    to = "base3" if counts else None
    measured = reference_repack(own, to, clip=2.0, **DRAW)
    return own, measured, reference_repack(own, to, scales=passed, **DRAW), passed


@pytest.mark.parametrize("packing", [*TERNARY, "mixed"])
@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("index", range(4))
def test_one_shard(packing: str, counts: bool, index: int) -> None:
    """Its statistics go by piece, its random bits by the position in the layer."""
    own, measured, with_passed, passed = shard_messages(packing, counts, index)
    to = "base3" if counts else None
    assert_repacked(tk.repack(own, clip=2.0, packing=to, **DRAW), measured, own[0].layout, to)
    assert_repacked(tk.repack(own, scales=passed, packing=to, **DRAW), with_passed, own[0].layout, to)


@pytest.mark.parametrize("packing", [*TERNARY, "mixed"])
def test_shards_put_together_are_the_whole(packing: str) -> None:
    """Scales being equal: the reduce-scatter and the all-gather of a second hop."""
    layout = layout_of((12_900, 0, 2560, 1, 5121, 640, 30_000), packing, shards=4)
    messages = messages_of(layout, 3)
    passed = tk.Scales(np.full(7, 2, np.float32), np.full(7, 1.5, np.float32))
    whole = tk.repack(messages, scales=passed, **DRAW)
    for index in range(4):
        own = [tk.Packed(layout.shard(index), m.data.reshape(4, -1)[index]) for m in messages]
        pieces = own[0].layout.groups
        scales = tk.Scales(np.full(pieces, 2, np.float32), np.full(pieces, 1.5, np.float32))
        part = tk.repack(own, scales=scales, **DRAW)
        assert part.layout == whole.layout.shard(index)
        assert_same(part.data, whole.data.reshape(4, -1)[index])


@pytest.mark.parametrize("draw", [(0, 0, 0), (2**64 - 1, 1, 2**31 - 2), (-1, -(2**63), 7), (2**32, 2**32, 1)])
def test_draws_by_seed_offset_and_layer(draw: tuple[int, int, int]) -> None:
    options = dict(zip(("seed", "offset", "layer"), draw, strict=True))
    messages = messages_of(layout_of((3000, 700)), 2)
    assert_repacked(tk.repack(messages, **options), reference_repack(messages, **options), messages[0].layout)


def test_the_second_hop_draws_other_bits_than_the_first() -> None:
    x = layer("normal", 5000)
    packed = tk.encode(x, packing="float32")
    ternary = replace(packed.layout, packing="two_bit")
    sums = tk.decode_sum([tk.encode(x, seed=k) for k in range(3)])
    first = tk.encode(sums, layout=ternary, clip=None, seed=1, offset=2)
    second = tk.repack([tk.encode(x, seed=k) for k in range(3)], seed=1, offset=2)
    assert_same(first.scales, second.scales)
    assert (np.asarray(first.payload) != np.asarray(second.payload)).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["flat", "list", "array"])
def test_dtype_and_form_are_the_first_messages(dtype: str, form: str) -> None:
    """They play no part in the bytes."""
    shapes = [(5, 7)] if form == "array" else [(5, 7), (3,)]
    first = tk.Layout(shapes, dtype, form=form)
    plain = tk.Layout(shapes)
    data = tk.encode(layer("normal", first.size), layout=plain).data
    messages = [tk.Packed(first, data), tk.Packed(plain, data)]
    again = tk.repack(messages, **DRAW)
    assert_repacked(again, reference_repack(messages, **DRAW), first)
    decoded = tk.decode(again)
    arrays = decoded if form == "list" else [decoded]
    assert {x.dtype.name for x in arrays} == {dtype}


def test_nothing_is_repacked() -> None:
    for layout in (tk.Layout([]), tk.Layout([], shards=3), layout_of((0, 0)), layout_of((0,), "float32")):
        messages = [tk.encode(np.empty(0, np.float32), layout=layout)] * 3
        for parts, packing in itertools.product((messages, [tk.sum_trits(messages)]), (None, "base3")):
            again = tk.repack(parts, packing=packing, **DRAW)
            assert_repacked(again, reference_repack(parts, packing, **DRAW), parts[0].layout, packing)


# ---- packings


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("to", [None, "two_bit", "base3", ("base3", "two_bit", "float32", "base3"), "a list"])
def test_packings_of_the_result(to: Any, counts: bool) -> None:
    """All hold the same trits."""
    layout = tk.Layout([(700,), (9,), (33,), (2561,)], packing=("two_bit", "base3", "float32", "two_bit"))
    messages: list[Any] = counts_of(layout, 9, 2) if counts else messages_of(layout, 2)
    packing = ["two_bit", "base3", "float32", "base3"] if to == "a list" else to
    again = tk.repack(messages, packing=packing, clip=2.5, **DRAW)
    assert_repacked(again, reference_repack(messages, packing, clip=2.5, **DRAW), messages[0].layout, packing)
    assert_same(tk.decode(again), tk.decode(tk.repack(messages, clip=2.5, **DRAW)))


@pytest.mark.parametrize(
    ("packing", "error"),
    [
        ("float32", ValueError),
        ("counts4", ValueError),
        ("counts16", ValueError),
        ("three_bit", ValueError),
        (5, TypeError),
        (["two_bit"], ValueError),
        (["two_bit", "two_bit", "float32"], ValueError),
        (["two_bit", "two_bit"], ValueError),
        (["float32", "float32"], ValueError),
        (["float32", "two_bit"], ValueError),
        (["counts4", "float32"], ValueError),
        (["two_bit", 5], TypeError),
    ],
    ids=str,
)
def test_packings_that_are_refused(packing: Any, error: type[Exception]) -> None:
    layout = tk.Layout([(5,), (6,)], packing=("two_bit", "float32"))
    for message in (messages_of(layout, 1)[0], counts_of(layout, 2, 1)[0]):
        with pytest.raises(error, match=r"^packing"):
            tk.repack([message], packing=packing, **DRAW)


# ---- scales

SPECIAL = (0.0, -0.0, 1e-45, 2.0**-61, 2.0**-60, 0.3, 1.0, 3e38, np.inf, -np.inf, np.nan, -1.0)


@pytest.mark.parametrize("packing", TERNARY)
def test_passed_scales(packing: str) -> None:
    """Every special scale with every special limit; only they decide."""
    both = np.array(list(itertools.product(SPECIAL, SPECIAL)), np.float32)
    scales = tk.Scales(np.ascontiguousarray(both[:, 0]), np.ascontiguousarray(both[:, 1]))
    layout = layout_of([150] * len(both), packing)
    messages = messages_of(layout, 3)
    for weights in (None, [1.0, -0.5, 1e30]):
        got = tk.repack(messages, scales=scales, clip=1e-9, weights=weights, **DRAW)
        assert_repacked(got, reference_repack(messages, scales=scales, weights=weights, **DRAW), layout)


@pytest.mark.parametrize("clip", [None, 2.5, 1.0, 1e-3, 1e300])
@pytest.mark.parametrize("kind", ["normal", "outlier", "zero", "ternary", "wide", "squares overflow", "nan"])
def test_measured_scales(clip: float | None, kind: str) -> None:
    layout = layout_of((1, 5, 700, 2600), "mixed")
    messages = messages_of(layout, 3, kind)
    for weights in (None, [1e-20, 1.0, -1.0], [2.0**-40] * 3, [3e38] * 3):
        got = tk.repack(messages, clip=clip, weights=weights, **DRAW)
        want = reference_repack(messages, clip=clip, weights=weights, **DRAW)
        assert_repacked(got, want, layout, what=f"weights={weights}")


def test_measured_scales_are_those_of_the_sum() -> None:
    layout = layout_of((12_900, 0, 2561), block=2560)
    messages = messages_of(layout, 4)
    total = tk.decode_sum(messages, weights=WEIGHTS[:4])
    for clip in (None, 2.5):
        again = tk.repack(messages, weights=WEIGHTS[:4], clip=clip, **DRAW)
        assert_same(again.scales, tk.scales(total, layout=layout, clip=clip).scale)


@pytest.mark.parametrize("field", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("passed", [False, True])
@pytest.mark.parametrize("counts", [False, True])
def test_poisoned_pieces(field: float, passed: bool, counts: bool) -> None:
    """Measured scales poison a whole group, passed ones no more than the piece; whatever the weights."""
    layout = layout_of((12_900, 0, 5, 2561), shards=3)
    good: list[Any] = counts_of(layout, 3, 3) if counts else messages_of(layout, 3)
    pieces = good[0].layout.pieces
    scales = tk.Scales(np.float32([1, 0, 1, 0.5]), np.full(4, np.inf, np.float32)) if passed else None
    for k, weights in itertools.product(range(len(pieces)), (None, [0.0, 0.0, 1.0])):
        bad = [replace(message, data=message.data.copy()) for message in good]
        bad[1].data[pieces[k].scale_at : pieces[k].scale_at + 4] = np.float32([field]).view(np.uint8)
        got = tk.repack(bad, scales=scales, weights=weights, **DRAW)
        assert_repacked(got, reference_repack(bad, scales=scales, weights=weights, **DRAW), good[0].layout)
        fields = [got.data[p.scale_at : p.scale_at + 4].view(np.float32)[0] for p in got.layout.pieces]
        hit = [p == pieces[k] if passed else p.group == pieces[k].group for p in pieces]
        assert np.isposinf(fields).tolist() == hit


def test_a_nan_of_the_sum_has_no_sign() -> None:
    """fl(weight * s) overflows; infinity times t = 0 is NaN of any sign, which fires as +1 under passed scales."""
    x = np.zeros(700, np.float32)
    x[::3], x[1::3] = 3e38, -3e38
    packed = tk.encode(x, clip=None)
    scales = tk.Scales(np.ones(1, np.float32), np.full(1, np.inf, np.float32))
    for weight in (100.0, -100.0):
        got = tk.repack([packed], scales=scales, weights=[weight], **DRAW)
        sign = np.float32(np.sign(weight))
        want = np.where(x == 0, np.float32(1), np.sign(x) * sign)
        assert_same(tk.decode(got), want.astype(np.float32))
        assert_repacked(got, reference_repack([packed], scales=scales, weights=[weight], **DRAW), packed.layout)
        pair = tk.repack([packed, packed], scales=scales, weights=[weight, -weight], **DRAW)
        assert_same(tk.decode(pair), np.ones(700, np.float32))
        poisoned = tk.repack([packed], weights=[weight], **DRAW)
        assert np.isposinf(poisoned.scales).all()


def test_carried_layers_are_the_float32_sum() -> None:
    layout = layout_of((9, 700, 33), "mixed")
    messages = messages_of(layout, 4, "wide")
    for weights in (None, in_turn(4), [0.0] * 4):
        again = tk.repack(messages, weights=weights, **DRAW)
        total = tk.decode_sum(messages, weights=weights)
        assert_same(tk.decode(again)[709:], total[709:])
        assert again.scales[2] == 1


# ---- any bytes


@given(
    names=st.lists(st.sampled_from(["ternary", "float32"]), max_size=4),
    workers=st.one_of(st.none(), st.sampled_from([1, 7, 8, 127, 128, 4000])),
    count=st.integers(1, 4),
    block=st.sampled_from([None, 2560]),
    shards=st.integers(1, 4),
    shard=st.booleans(),
    clip=st.one_of(st.none(), st.floats(1e-3, 100)),
    passed=st.booleans(),
    to=st.sampled_from([None, *TERNARY]),
    seed=st.integers(-(2**63), 2**64 - 1),
    offset=st.integers(-(2**63), 2**64 - 1),
    first=st.integers(0, 2**31 - 4),
    data=st.data(),
)
@settings(max_examples=150)
def test_any_bytes(
    names: list[str],
    workers: int | None,
    count: int,
    block: int | None,
    shards: int,
    shard: bool,
    clip: float | None,
    passed: bool,
    to: str | None,
    seed: int,
    offset: int,
    first: int,
    data: st.DataObject,
) -> None:
    sizes = [data.draw(st.one_of(st.integers(0, 40), st.integers(0, 6000))) for _ in names]
    ternary = ref.counts_packing(workers) if workers else data.draw(st.sampled_from(TERNARY))
    packing = [ternary if name == "ternary" else name for name in names]
    layout = tk.Layout([(n,) for n in sizes], packing=packing, block=block, shards=shards)
    layout = layout.shard(shards - 1) if shard else layout
    base = data.draw(st.integers(0, 2**32))
    messages = [garbage(layout, base + k, workers) for k in range(count)]
    options: dict[str, Any] = {"seed": seed, "offset": offset, "layer": first, "clip": clip}
    options["weights"] = data.draw(st.one_of(st.none(), st.lists(st.floats(-4, 4), min_size=count, max_size=count)))
    if passed:
        rng = np.random.default_rng(base)
        fields = [rng.choice(np.float32([*SPECIAL, 1, 2, 3]), layout.groups) for _ in range(2)]
        options["scales"] = tk.Scales(*fields)
    got = tk.repack(messages, packing=to, **options)
    want = reference_repack(messages, to, **options)
    first_layout = messages[0].layout
    assert got.layout == replace(first_layout, packing=tuple(target_of(first_layout, to)))
    assert_same(canonical_nans(got.data, got.layout), canonical_nans(want, got.layout))


# ---- forms of the input


@pytest.mark.parametrize("counts", [False, True])
def test_messages_in_one_array(counts: bool) -> None:
    layout = layout_of((700, 3, 2561), "mixed")
    messages: list[Any] = counts_of(layout, 9, 5) if counts else messages_of(layout, 5)
    want = tk.repack(messages, weights=WEIGHTS, **DRAW).data
    stacked = replace(messages[0], data=np.stack([m.data for m in messages]))
    assert_same(tk.repack(stacked, weights=WEIGHTS, **DRAW).data, want)
    assert_same(tk.repack(tuple(messages), weights=iter(WEIGHTS), **DRAW).data, want)
    assert_same(tk.repack(messages[0], **DRAW).data, tk.repack(messages[:1], **DRAW).data)


def test_inputs_and_outputs_at_any_address() -> None:
    layout = layout_of((5000, 3, 2561), "mixed")
    messages = messages_of(layout, 3)
    passed = tk.Scales(np.ones(3, np.float32), np.ones(3, np.float32))
    for scales in (None, passed):
        want = tk.repack(messages, scales=scales, **DRAW)
        memory = np.full(want.data.size + 128, 0xAA, np.uint8)
        for shift in range(64):
            moved = [tk.Packed(m.layout, np.concatenate([np.zeros(shift, np.uint8), m.data])[shift:]) for m in messages]
            memory[:] = 0xAA
            out = memory[shift : shift + want.data.size]
            assert tk.repack(moved, scales=scales, out=out, **DRAW).data is out
            assert_same(out, want.data)
            assert (memory[:shift] == 0xAA).all()
            assert (memory[shift + out.size :] == 0xAA).all()


@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x5A])
def test_out_takes_every_byte(fill: int) -> None:
    for layout in (layout_of((5, 0, 3)), layout_of((9000, 1), shards=5), layout_of((5,), shards=3).shard(2)):
        for messages in (messages_of(layout, 2), messages_of(layout, 2, "nan"), counts_of(layout, 2, 1)):
            want = tk.repack(messages, **DRAW)
            out = np.full(want.layout.nbytes, fill, np.uint8)
            assert tk.repack(messages, out=out, **DRAW).data is out
            assert_same(out, want.data)


def test_frameworks(framework: Framework) -> None:
    layout = layout_of((700, 3, 2561), "mixed")
    messages = messages_of(layout, 3)
    theirs = [tk.Packed(m.layout, framework.make(m.data)) for m in messages]
    seeds = {"seed": framework.make(np.array(DRAW["seed"], np.int64)), "offset": 77}
    again = tk.repack(theirs, clip=2.5, **seeds)
    assert framework.owns(again.data)
    want = tk.repack(messages, clip=2.5, seed=DRAW["seed"], offset=77)
    assert_same(framework.to_numpy(again.data), want.data)
    passed = tk.Scales(np.ones(3, np.float32), np.full(3, 0.5, np.float32))
    given = tk.Scales(*(framework.make(x) for x in passed))
    total = tk.sum_trits(theirs)
    got = tk.repack([total], scales=given, packing="base3", **seeds)
    want = tk.repack([tk.sum_trits(messages)], scales=passed, packing="base3", seed=DRAW["seed"], offset=77)
    assert_same(framework.to_numpy(got.data), want.data)


# ---- threads

THREADED = (3 * 2**16 + 2560 * 3 + 77, 0, 5000, 2**17 + 1, *range(100, 110), 40_000)


@functools.lru_cache
def threaded(cut: str, counts: bool) -> tuple[list[Any], Array, Array, tk.Scales]:
    fields: dict[str, Any] = {
        "whole": {},
        "blocks": {"block": 2560 * 30},
        "shards": {"shards": 3},
        "mixed": {"packing": "mixed", "block": 2560 * 77, "shards": 2},
    }[cut]
    layout = layout_of(THREADED, **fields)
    messages: list[Any] = counts_of(layout, 3, 2) if counts else messages_of(layout, 2, "outlier")
    passed = tk.Scales(np.full(layout.groups, 2, np.float32), np.full(layout.groups, 1.5, np.float32))
    measured = reference_repack(messages, weights=[0.3, -1], clip=2.5, **DRAW)
    return messages, measured, reference_repack(messages, weights=[0.3, -1], scales=passed, **DRAW), passed


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("cut", ["whole", "blocks", "shards", "mixed"])
@pytest.mark.parametrize("counts", [False, True])
def test_the_number_of_threads_changes_no_bit(cut: str, counts: bool) -> None:
    messages, measured, with_passed, passed = threaded(cut, counts)
    assert_same(tk.repack(messages, weights=[0.3, -1], clip=2.5, **DRAW).data, measured)
    assert_same(tk.repack(messages, weights=[0.3, -1], scales=passed, **DRAW).data, with_passed)


# ---- what is refused

ONE = tk.encode(layer("normal", 12))
COUNT = tk.sum_trits([ONE, ONE])
TWO = tk.encode(bucket((6, 6)))
ONES = np.ones(1, np.float32)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (None, TypeError, "messages: expected .*, got NoneType"),
        ([], ValueError, "messages: expected at least one message, got none"),
        ([ONE, None], TypeError, r"messages\[1\]: .*NoneType"),
        ([ONE, TWO], ValueError, r"messages\[1\]\.layout\.shapes: expected 1 "),
        ([ONE, COUNT], ValueError, r"messages\[1\]\.layout\.packing: expected 'two_bit' .* 'counts4'"),
        ([COUNT, ONE], ValueError, r"messages\[1\]\.layout\.packing: expected 'counts4' .* 'two_bit'"),
        ([COUNT, tk.sum_trits([ONE] * 8)], ValueError, r"messages\[1\]\.layout\.packing: .*, got 'counts8'"),
        ([ONE, tk.encode(layer("normal", 12), packing="base3")], ValueError, r"messages\[1\]\.layout\.packing: "),
        ([ONE, tk.Packed(ONE.layout, ONE.data[:-1])], ValueError, r"messages\[1\]: .*32.*31"),
        (tk.Packed(ONE.layout, np.zeros((0, 32), np.uint8)), ValueError, "messages: expected at least one message"),
        (tk.Counts(COUNT.layout, 2, np.zeros((2, 33), np.uint8)), ValueError, "messages.data: .*32.*33"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_messages_that_have_no_sum(value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^{text}"):
        tk.repack(value, seed=0, offset=0)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"seed": 2**64}, ValueError, "seed"),
        ({"seed": 1.5}, TypeError, "seed"),
        ({"offset": -(2**63) - 1}, ValueError, "offset"),
        ({"layer": -1}, ValueError, "layer"),
        ({"layer": 2**31}, ValueError, "layer"),
        ({"clip": 0}, ValueError, "clip"),
        ({"clip": np.nan}, ValueError, "clip"),
        ({"clip": "2"}, TypeError, "clip"),
        ({"weights": [1.0]}, ValueError, "weights"),
        ({"weights": [1.0, np.nan]}, ValueError, "weights"),
        ({"weights": [1.0, 1e39]}, ValueError, "weights"),
        ({"weights": 1.0}, TypeError, "weights"),
        ({"scales": (ONES, 1.0)}, TypeError, "scales.limit"),
        ({"scales": ONES}, TypeError, "scales"),
        ({"scales": (np.ones(2, np.float32), np.ones(2, np.float32))}, ValueError, "scales.scale"),
        ({"scales": (ONES.astype(np.float64), ONES)}, TypeError, "scales.scale"),
        ({"stream": 3}, ValueError, "stream"),
        ({"out": np.zeros(31, np.uint8)}, ValueError, "out"),
        ({"out": np.zeros(32, np.int8)}, TypeError, "out"),
        ({"out": np.frombuffer(bytes(32), np.uint8)}, BufferError, "out"),
        ({"out": ONE.data}, ValueError, "out"),
        ({"out": 5}, TypeError, "out"),
    ],
    ids=str,
)
def test_options_that_are_refused(options: dict[str, Any], error: type[Exception], text: str) -> None:
    before = ONE.data.copy()
    out = np.full(32, 7, np.uint8)
    with pytest.raises(error, match=f"^{text}"):
        tk.repack([ONE, ONE], **{"seed": 0, "offset": 0, "out": out, **options})
    assert_same(ONE.data, before)
    assert (out == 7).all()


def test_seed_and_offset_are_asked_for() -> None:
    for options in ({}, {"seed": 1}, {"offset": 1}):
        with pytest.raises(TypeError, match=r"seed|offset"):
            tk.repack([ONE], **options)
    with pytest.raises(TypeError):
        tk.repack([ONE], 0, 0)  # type: ignore[misc]


def test_the_last_layers_word() -> None:
    tk.repack([TWO], seed=0, offset=0, layer=2**31 - 2)
    with pytest.raises(ValueError, match=r"^layer"):
        tk.repack([TWO], seed=0, offset=0, layer=2**31 - 1)


def test_inputs_stay_as_they_are() -> None:
    messages = messages_of(layout_of((700, 3, 5), "mixed"), 3)
    before = [m.data.copy() for m in messages]
    passed = tk.Scales(np.ones(3, np.float32), np.ones(3, np.float32))
    tk.repack(messages, scales=passed, **DRAW)
    tk.repack(messages, clip=1.0, **DRAW)
    assert_all_same([m.data for m in messages], before)
    assert_all_same(passed, [np.ones(3, np.float32)] * 2)
    assert flat([]).size == 0
