"""Counts and `sum_trits`: every sum against the reference, bit by bit, on every instruction set."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
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
    Framework,
    assert_all_same,
    assert_same,
    assert_same_but_nan,
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

OTHER = {"two_bit": "base3", "base3": "two_bit"}
MOST = ref.MOST_WORKERS


def layout_of(sizes: Sequence[int], packing: str = "two_bit", **fields: Any) -> tk.Layout:
    names: Any = packing
    if packing == "mixed":
        names = list(itertools.islice(itertools.cycle(PACKINGS), len(sizes)))
    return tk.Layout([(n,) for n in sizes], packing=names, **fields)


def other_packing(layout: tk.Layout) -> tk.Layout:
    return replace(layout, packing=tuple(OTHER.get(name, name) for name in names_of(layout)))


def shared(layout: tk.Layout, workers: int, *, turns: bool = True) -> list[tk.Packed]:
    """Messages of the shared scales 2 and 0.5 in turn; with `turns` every second one exchanges two_bit and base3."""
    other = other_packing(layout) if turns else layout
    scale = np.resize(np.float32([2, 0.5]), layout.groups)
    scales = tk.Scales(scale, np.full(layout.groups, np.inf, np.float32))
    x = layer("normal", layout.size, layout.dtype)
    return [tk.encode(np.roll(x, k), seed=k, layout=other if k % 2 else layout, scales=scales) for k in range(workers)]


def seen(message: Any) -> ref.Message:
    """A message as the reference takes it."""
    return ref.Message(np.asarray(message.data), names_of(message.layout), getattr(message, "workers", 1))


def reference_sum(messages: Sequence[Any]) -> ref.Message:
    layout = messages[0].layout
    return ref.sum_trits([seen(message) for message in messages], sizes_of(layout), **cuts_of(layout))


def assert_sum(got: Any, want: ref.Message, first: tk.Layout, what: str = "") -> None:
    """Type, workers, layout and bytes of a sum."""
    assert isinstance(got, tk.Counts)
    assert got.workers == want.workers
    assert got.layout == replace(first, packing=tuple(want.packing))
    assert got.data.shape == (got.layout.nbytes,)
    assert_same(canonical_nans(got.data, got.layout), canonical_nans(want.data, got.layout), what)


# ---- sums


@functools.lru_cache
def summed(
    sizes: tuple[int, ...], packing: str, workers: int, turns: bool = True
) -> tuple[list[tk.Packed], ref.Message]:
    messages = shared(layout_of(sizes, packing), workers, turns=turns)
    return messages, reference_sum(messages)


WORKERS = (1, 2, 3, 7, 8, 9, 30, 127, 128, 129)


@pytest.mark.parametrize("packing", [*TERNARY, "mixed"])
@pytest.mark.parametrize("workers", WORKERS)
def test_every_width_at_every_edge(packing: str, workers: int) -> None:
    messages, want = summed(EDGES, packing, workers)
    got = tk.sum_trits(messages)
    assert_sum(got, want, messages[0].layout)
    tk.validate(got)
    # Scales 2 and 0.5: decoding and adding is exact as well, but for the layers that are carried.
    if packing != "mixed":
        same = tk.decode_sum(messages[::2]) + tk.decode_sum(messages[1::2]) if workers > 1 else tk.decode(messages[0])
        np.testing.assert_array_equal(tk.decode(got), same)


@pytest.mark.parametrize("packing", TERNARY)
@pytest.mark.parametrize("workers", [1, 2, 7, 8, 127, 128, 260])
def test_messages_of_one_packing(packing: str, workers: int) -> None:
    """Kernels add these in bytes: seven messages at a time, and 127 for counts16."""
    messages, want = summed((2559, 2560, 2561, 8193), packing, workers, turns=False)
    assert {message.layout.packing for message in messages} == {packing}
    assert_sum(tk.sum_trits(messages), want, messages[0].layout)


@pytest.mark.parametrize("workers", [2, 9, 130])
def test_every_length(workers: int) -> None:
    messages, want = summed(tuple(range(2 * 512 + 3)), "two_bit", workers)
    assert_sum(tk.sum_trits(messages), want, messages[0].layout)


@pytest.mark.parametrize("packing", [*TERNARY, "mixed"])
def test_trits_and_counts_are_mixed(packing: str) -> None:
    """Sums of every width in one sum, and the same trits in one go."""
    messages, want = summed((*EDGES[:30], 2561), packing, 300)
    first = messages[0].layout
    parts: list[Any] = [
        messages[0],
        tk.sum_trits(messages[1:3]),
        tk.sum_trits(messages[3:103]),
        *messages[103:105],
        tk.sum_trits(messages[105:233]),
        tk.sum_trits(messages[233:234]),
        *messages[234:],
    ]
    assert {name for part in parts for name in names_of(part.layout)} >= {*COUNTS, *TERNARY}
    assert_sum(tk.sum_trits(parts), reference_sum(parts), first)
    backwards = tk.sum_trits(parts[::-1])
    assert_sum(backwards, reference_sum(parts[::-1]), replace(first, packing=backwards.layout.packing))
    if packing != "mixed":
        assert_same(tk.sum_trits(parts).data, want.data)
        assert_same(backwards.data, want.data)


CUTS: dict[str, dict[str, Any]] = {
    "block": {"block": 2560},
    "shards": {"shards": 3},
    "many shards": {"shards": 40},
    "block and shards": {"block": 5120, "shards": 4},
}


@functools.lru_cache
def cut_messages(cut: str, packing: str) -> tuple[list[tk.Packed], ref.Message]:
    messages = shared(layout_of((12_900, 0, 2560, 1, 5121, 640, 30_000), packing, **CUTS[cut]), 9)
    return messages, reference_sum(messages)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("packing", [*TERNARY, "mixed"])
def test_blocks_and_shards(cut: str, packing: str) -> None:
    messages, want = cut_messages(cut, packing)
    whole = tk.sum_trits(messages)
    assert_sum(whole, want, messages[0].layout)
    tk.validate(whole)
    shards = messages[0].layout.shards
    if shards > 4 or shards == 1:
        return
    # A shard of the sum is the sum of the shards.
    for index in range(shards):
        parts = [tk.Packed(m.layout.shard(index), m.data.reshape(shards, -1)[index]) for m in messages]
        part = tk.sum_trits(parts)
        assert part.layout == whole.layout.shard(index)
        assert_same(part.data, whole.data.reshape(shards, -1)[index])
        tk.validate(part)


@pytest.mark.parametrize("cut", CUTS)
def test_any_order_and_any_tree(cut: str) -> None:
    """Ternary pieces only: a poisoned one, one of an unequal scale, one of zeros among them."""
    layout = layout_of((12_900, 0, 2560, 1, 5121, 640), **CUTS[cut])
    messages = shared(layout, 20)
    for k, (message, field) in enumerate(zip(messages[3:6], (np.inf, 3.0, 1.0), strict=True)):
        piece = message.layout.pieces[k]
        message.data[piece.scale_at : piece.scale_at + 4] = np.float32([field]).view(np.uint8)
        message.data[piece.payload_at : piece.payload_at + piece.nbytes] = 0
    for message in messages:
        piece = message.layout.pieces[-1]
        message.data[piece.scale_at : piece.scale_at + 4] = 0
        message.data[piece.payload_at : piece.payload_at + piece.nbytes] = 0
    want = tk.sum_trits(messages)
    assert_sum(want, reference_sum(messages), layout)
    fields = [want.data[p.scale_at : p.scale_at + 4].view(np.float32)[0] for p in want.layout.pieces]
    assert fields.count(np.inf) == 3
    assert fields[-1] == 0
    rng = np.random.default_rng(1)
    for _ in range(6):
        parts: list[Any] = [messages[k] for k in rng.permutation(20)]
        while len(parts) > 1:
            take = int(rng.integers(1, 6))
            parts = [*parts[take:], tk.sum_trits(parts[:take])]
        assert parts[0].workers == 20
        assert_same(parts[0].data, want.data)


@pytest.mark.parametrize("packings", [("two_bit",), ("base3",), TERNARY])
@pytest.mark.parametrize("workers", [7, 127])
@pytest.mark.parametrize("sign", [1, -1])
def test_codes_at_their_ends(packings: tuple[str, ...], workers: int, sign: int) -> None:
    x = np.full(3300, sign, np.float32)
    messages = [tk.encode(x, clip=None, packing=packings[k % len(packings)]) for k in range(workers)]
    total = tk.sum_trits(messages)
    assert (tk.decode(total) == sign * workers).all()
    wider = tk.sum_trits([total, messages[0]])
    assert wider.layout.packing == {7: "counts8", 127: "counts16"}[workers]
    assert (tk.decode(wider) == sign * (workers + 1)).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_the_most_workers(sign: int) -> None:
    one = tk.encode(sign * np.ones(5, np.float32), clip=None)
    many = tk.Packed(one.layout, np.tile(one.data, (32767, 1)))
    total = tk.sum_trits(many)
    assert (total.workers, total.layout.packing) == (32767, "counts16")
    assert (tk.decode(total) == sign * 32767).all()
    tk.validate(total)
    half = tk.sum_trits(tk.Packed(one.layout, many.data[:16383]))
    assert_same(tk.sum_trits([half, one, half]).data, total.data)
    assert_same(tk.sum_trits([tk.Counts(half.layout, 16383, half.data), half, one]).data, total.data)
    for parts in ([total, one], [half, half, one, one], tk.Packed(one.layout, np.tile(one.data, (32768, 1)))):
        with pytest.raises(ValueError, match="32768"):
            tk.sum_trits(parts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["flat", "list", "array"])
def test_dtype_and_form_are_the_first_messages(dtype: str, form: str) -> None:
    shapes = [(5, 7)] if form == "array" else [(5, 7), (3,)]
    first = tk.Layout(shapes, dtype, form=form)
    x = layer("normal", first.size)
    data = tk.encode(x, layout=tk.Layout(shapes)).data
    messages = [tk.Packed(first, data), tk.Packed(tk.Layout(shapes), data)]
    total = tk.sum_trits(messages)
    assert_sum(total, reference_sum(messages), first)
    decoded = tk.decode(total)
    arrays = decoded if form == "list" else [decoded]
    assert {x.dtype.name for x in arrays} == {dtype}
    assert [x.shape for x in arrays] == ([(38,)] if form == "flat" else shapes)


def test_sums_of_nothing() -> None:
    for layout in (tk.Layout([]), tk.Layout([], shards=3), layout_of((0, 0)), layout_of((0,), "float32")):
        messages = [tk.encode(np.empty(0, np.float32), layout=layout)] * 9
        total = tk.sum_trits(messages)
        assert_sum(total, reference_sum(messages), layout)
        tk.validate(total)
        assert tk.decode(total).size == 0


def test_layers_that_are_carried_alone() -> None:
    """Nothing is counted, but the number of workers is."""
    layout = layout_of((5, 0, 70), "float32")
    messages = [tk.encode(layer("wide", 75, seed=k), layout=layout) for k in range(9)]
    total = tk.sum_trits(messages)
    assert_sum(total, reference_sum(messages), layout)
    assert total.layout.packing == "float32"
    with pytest.raises(ValueError, match="workers"):
        tk.sum_trits([tk.Counts(layout, 32760, messages[0].data), *messages])


# ---- carried values and scale fields


@pytest.mark.parametrize("n", [0, 1, 3, 7, 8, 9, 64, 1001])
def test_carried_values_are_added_in_message_order(n: int) -> None:
    layout = layout_of((n, 3), "mixed")
    layout = replace(layout, packing=("float32", "two_bit"))
    messages = [tk.encode(flat(bucket((n, 3), kind="wide", seed=k)), layout=layout) for k in range(12)]
    for k, message in enumerate(messages):
        piece = layout.pieces[0]
        values = message.data[piece.payload_at : piece.payload_at + piece.nbytes].view(np.float32)
        special = np.float32([-0.0, np.inf, 3e38, 1e-45, np.nan, -np.inf])
        values[: n // 2] = np.resize(np.roll(special, k), n // 2)
    assert_sum(tk.sum_trits(messages), reference_sum(messages), layout)
    assert_sum(tk.sum_trits(messages[::-1]), reference_sum(messages[::-1]), layout)


FIELDS = (0, 0x80000000, 1, 0x217FFFFF, 0x3F800000, 0x3F800001, 0xBF800000, 0x7F7FFFFF, 0x7F800000, 0xFF800000)
FIELDS = (*FIELDS, 0x7FC00000, 0xFFC00001)


@pytest.mark.parametrize("packing", [*TERNARY, *COUNTS])
def test_every_pair_of_scale_fields(packing: str) -> None:
    """All pairs side by side; a third message has the fields of the second."""
    pairs = list(itertools.product(FIELDS, repeat=2))
    layout = layout_of([5] * len(pairs), "two_bit" if packing in COUNTS else packing)
    ones = [tk.encode(np.ones(layout.size, np.float32), layout=layout)] * {"counts8": 60, "counts16": 128}.get(
        packing, 1
    )
    message = tk.sum_trits(ones) if packing in COUNTS else ones[0]
    parts = []
    for k in (0, 1, 1):
        data = message.data.copy()
        data[: 4 * len(pairs)] = np.array([pair[k] for pair in pairs], np.uint32).view(np.uint8)
        parts.append(replace(message, data=data))
    total = tk.sum_trits(parts)
    assert_sum(total, reference_sum(parts), message.layout)
    equal = [a == b and np.isfinite(np.uint32(a).view(np.float32)) for a, b in pairs]
    np.testing.assert_array_equal(np.isfinite(total.scales), equal)


# ---- any bytes


@pytest.mark.parametrize("packing", [*TERNARY, *COUNTS])
@pytest.mark.parametrize("workers", [3, 7, 127, 128])
def test_every_byte_in_every_place_of_a_tile(packing: str, workers: int) -> None:
    """Sums are total: of any bytes, modulo 2^bits; alone, twice, and with trits, into each width that can be."""
    own = workers if packing in COUNTS else 1
    if packing in COUNTS and ref.counts_packing(workers) != packing:
        return
    payload = (np.arange(256)[:, None] + np.arange(128)).astype(np.uint8).reshape(-1)
    per_byte = {"two_bit": 4, "base3": 5, "counts4": 2, "counts8": 1, "counts16": 0.5}[packing]
    for n in (int(payload.size * per_byte), int((payload.size - 77) * per_byte)):
        layout = layout_of([n], packing)
        data = np.zeros(layout.nbytes, np.uint8)
        data[:4] = np.float32([1]).view(np.uint8)
        data[16 : 16 + layout.pieces[0].nbytes] = payload[: layout.pieces[0].nbytes]
        data[16:] += np.uint8(n % 251)
        message: Any = tk.Counts(layout, own, data) if packing in COUNTS else tk.Packed(layout, data)
        trits = tk.encode(layer("normal", n), scales=tk.Scales(np.ones(1, np.float32), np.ones(1, np.float32)))
        fill = [trits] * max(0, workers - own - 1)
        for parts in ([message], [message, message], [trits, message, *fill], [message] * 4):
            assert_sum(tk.sum_trits(parts), reference_sum(parts), parts[0].layout)


names = st.lists(st.sampled_from(["ternary", "float32"]), max_size=4)


@given(
    names=names,
    workers=st.lists(st.one_of(st.none(), st.integers(1, 9), st.integers(100, 150)), min_size=1, max_size=5),
    block=st.sampled_from([None, 2560]),
    shards=st.integers(1, 4),
    shard=st.booleans(),
    alike=st.booleans(),
    data=st.data(),
)
@settings(max_examples=150)
def test_sums_of_any_bytes(
    names: list[str], workers: list[Any], block: Any, shards: int, shard: bool, alike: bool, data: st.DataObject
) -> None:
    sizes = [data.draw(st.one_of(st.integers(0, 40), st.integers(0, 6000))) for _ in names]
    parts = []
    for k, count in enumerate(workers):
        ternary = ref.counts_packing(count) if count else data.draw(st.sampled_from(TERNARY))
        packing = [ternary if name == "ternary" else name for name in names]
        layout = tk.Layout([(n,) for n in sizes], packing=packing, block=block, shards=shards)
        layout = layout.shard(shards - 1) if shard else layout
        parts.append(garbage(layout, data.draw(st.integers(0, 2**32)) if k == 0 or not alike else 5, count))
    assert_sum(tk.sum_trits(parts), reference_sum(parts), parts[0].layout)


@pytest.mark.parametrize("workers", [1, 7, 8, 127, 128, 3000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_counts_of_any_bytes_decode(workers: int, dtype: str) -> None:
    sizes = [*EDGES[:36], 2561]
    names = [ref.counts_packing(workers), "float32"] * (len(sizes) // 2 + 1)
    layout = tk.Layout([(n,) for n in sizes], dtype, names[: len(sizes)])
    packing = names_of(layout)
    messages = [garbage(layout, seed, workers) for seed in range(3)]
    data = [message.data for message in messages]
    for weight in (1.0, -1 / 3, 3e38):
        want = ref.decode(data[0], sizes, packing, dtype=dtype, weight=weight)
        assert_same_but_nan(tk.decode(messages[0], weight=weight), flat(want, dtype))
    start = layer("wide", layout.size, dtype)
    out = start.copy()
    assert tk.decode(messages[0], out=out, weight=0.3, accumulate=True) is out
    cut = np.split(start, np.cumsum(sizes)[:-1])
    assert_same_but_nan(out, flat(ref.decode(data[0], sizes, packing, weight=0.3, out=cut), dtype))
    messages[1] = tk.Counts(layout, min(MOST[packing[0]], workers + 1), data[1])  # other workers, one layout
    for weights in (None, [0.3, -1.0, 1e-3]):
        total = flat(ref.decode_sum(data, sizes, packing, dtype=dtype, weights=weights), dtype)
        assert_same_but_nan(tk.decode_sum(messages, weights=weights), total)
        stacked = tk.Counts(layout, workers, np.stack(data))
        assert_same_but_nan(tk.decode_sum(stacked, weights=weights), total)


# ---- forms of the input


@pytest.mark.parametrize("packing", [*TERNARY, "mixed"])
def test_messages_in_one_array(packing: str) -> None:
    layout = layout_of((700, 3, 2561), packing)
    messages = shared(layout, 9, turns=False)
    want = reference_sum(messages)
    stacked = tk.Packed(layout, np.stack([m.data for m in messages]))
    assert_sum(tk.sum_trits(stacked), want, layout)
    assert_sum(tk.sum_trits(tuple(messages)), want, layout)
    assert_sum(tk.sum_trits(messages[0]), reference_sum(messages[:1]), layout)
    one = tk.sum_trits(messages)
    rows = tk.Counts(one.layout, 9, np.stack([one.data] * 15))
    assert_sum(tk.sum_trits(rows), reference_sum([one] * 15), one.layout)
    assert_sum(tk.sum_trits(one), reference_sum([one]), one.layout)
    # Rows with gaps between them, as a slice of an array has.
    wide = np.zeros((9, layout.nbytes + 16), np.uint8)
    wide[:, : layout.nbytes] = stacked.data
    assert_sum(tk.sum_trits(tk.Packed(layout, wide[:, : layout.nbytes])), want, layout)


def test_inputs_and_outputs_at_any_address() -> None:
    layout = layout_of((5000, 3, 2561), "mixed")
    messages = shared(layout, 9)
    want = tk.sum_trits(messages)
    memory = np.full(want.data.size + 128, 0xAA, np.uint8)
    for shift in range(64):
        moved = [tk.Packed(m.layout, np.concatenate([np.zeros(shift, np.uint8), m.data])[shift:]) for m in messages]
        memory[:] = 0xAA
        out = memory[shift : shift + want.data.size]
        assert tk.sum_trits(moved, out=out).data is out
        assert_same(out, want.data)
        assert (memory[:shift] == 0xAA).all()
        assert (memory[shift + out.size :] == 0xAA).all()


def test_out_takes_every_byte() -> None:
    for layout in (layout_of((5, 0, 3)), layout_of((9000, 1), shards=5), layout_of((5,), shards=3).shard(2)):
        messages = shared(layout, 3)
        want = tk.sum_trits(messages)
        for fill in (0x00, 0xFF, 0x5A):
            out = np.full(want.layout.nbytes, fill, np.uint8)
            got = tk.sum_trits(messages, out=out)
            assert got.data is out
            assert_same(out, want.data)


def test_frameworks(framework: Framework) -> None:
    layout = layout_of((700, 3, 2561), "mixed")
    messages = shared(layout, 9)
    theirs = [tk.Packed(m.layout, framework.make(m.data)) for m in messages]
    total = tk.sum_trits(theirs)
    assert framework.owns(total.data)
    assert_sum(replace(total, data=np.asarray(framework.to_numpy(total.data))), reference_sum(messages), layout)
    tk.validate(total)
    decoded = tk.decode(total)
    assert framework.owns(decoded)
    assert_same(framework.to_numpy(decoded), tk.decode(tk.sum_trits(messages)))
    assert_same(framework.to_numpy(total.scales), np.float32([2, 0.5, 1]))
    rows = tk.Packed(layout, framework.make(np.stack([m.data for m in messages[::2]])))
    assert_same(framework.to_numpy(tk.sum_trits(rows).data), tk.sum_trits(messages[::2]).data)


@pytest.mark.host
def test_frameworks_are_not_mixed() -> None:
    torch = pytest.importorskip("torch")
    message = tk.encode(np.ones(5, np.float32))
    theirs = tk.Packed(message.layout, torch.from_numpy(message.data.copy()))
    with pytest.raises(TypeError, match=r"messages\[1\]: expected numpy data"):
        tk.sum_trits([message, theirs])
    with pytest.raises(TypeError, match="out: expected a torch array"):
        tk.sum_trits([theirs], out=np.zeros(32, np.uint8))


# ---- threads

THREADED = (3 * 2**16 + 2560 * 3 + 77, 0, 5000, 2**17 + 1, *range(100, 110), 40_000)


@functools.lru_cache
def threaded(cut: str, workers: int) -> tuple[list[tk.Packed], ref.Message]:
    fields: dict[str, Any] = {
        "whole": {},
        "blocks": {"block": 2560 * 30},
        "shards": {"shards": 3},
        "mixed": {"packing": "mixed", "block": 2560 * 77, "shards": 2},
    }[cut]
    messages = shared(layout_of(THREADED, **fields), workers)
    return messages, reference_sum(messages)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("cut", ["whole", "blocks", "shards", "mixed"])
@pytest.mark.parametrize("workers", [3, 9, 130])
def test_the_number_of_threads_changes_no_bit(cut: str, workers: int) -> None:
    if workers == 130 and cut != "mixed":
        return
    messages, want = threaded(cut, workers)
    got = tk.sum_trits(messages)
    assert_sum(got, want, messages[0].layout)
    assert_same(tk.decode(got), tk.decode_sum([got]))


# ---- Counts


def test_the_packing_is_the_narrowest_that_holds_the_workers() -> None:
    data = np.zeros(64, np.uint8)
    for packing, workers in itertools.product(COUNTS, (1, 7, 8, 127, 128, 32767)):
        layout = layout_of((5, 7), packing)
        if ref.counts_packing(workers) == packing:
            counts = tk.Counts(layout, workers, data[: layout.nbytes])
            assert counts.workers == workers
        else:
            with pytest.raises(ValueError, match=f"{ref.counts_packing(workers)}"):
                tk.Counts(layout, workers, data[: layout.nbytes])


@pytest.mark.parametrize(
    ("packing", "workers", "error", "text"),
    [
        ("counts4", 0, ValueError, "workers: .* 0"),
        ("counts4", -1, ValueError, "workers: .* -1"),
        ("counts16", 32768, ValueError, "workers: .* 32768"),
        ("float32", 32768, ValueError, "workers: .* 32768"),
        ("counts4", 2.0, TypeError, "workers: .*float"),
        ("counts4", True, TypeError, "workers: .*bool"),
        ("counts4", None, TypeError, "workers: .*NoneType"),
        ("counts4", "3", TypeError, "workers: .*str"),
        ("two_bit", 1, ValueError, r"layout\.packing: .*two_bit"),
        ("base3", 1, ValueError, r"layout\.packing: .*base3"),
        (["counts4", "two_bit"], 1, ValueError, r"layout\.packing: .*"),
        (["counts4", "counts8"], 1, ValueError, r"layout\.packing: .*"),
        (["counts4", "counts8"], 8, ValueError, r"layout\.packing: .*"),
        (["float32", "counts8"], 7, ValueError, r"layout\.packing: .*counts"),
    ],
)
def test_what_counts_are_not(packing: Any, workers: Any, error: type[Exception], text: str) -> None:
    layout = tk.Layout([(5,), (7,)], packing=packing)
    with pytest.raises(error, match=f"^{text}"):
        tk.Counts(layout, workers, np.zeros(layout.nbytes, np.uint8))


def test_where_nothing_is_counted_any_workers_go() -> None:
    for layout in (tk.Layout([]), layout_of((5,), "float32"), layout_of((0, 5), "float32", shards=2)):
        for workers in (1, 7, 8, 32767):
            data = tk.encode(np.ones(layout.size, np.float32), layout=layout).data
            counts = tk.Counts(layout, workers, data)
            tk.validate(counts)
            assert counts.workers == workers
            assert (tk.decode(counts) == 1).all()
    with pytest.raises(TypeError, match="layout: expected a Layout, got NoneType"):
        tk.Counts(None, 1, np.zeros(32, np.uint8))


def test_counts_are_compared_by_identity_and_frozen() -> None:
    total = tk.sum_trits([tk.encode(np.ones(5, np.float32))] * 2)
    assert total != replace(total)
    assert total == total
    assert len({total, replace(total)}) == 2
    with pytest.raises(AttributeError):
        total.workers = 3
    assert_same(total.scales, np.float32([1]))
    assert_same(total.payload, total.data[16:])
    assert np.shares_memory(total.payload, total.data)


@pytest.mark.parametrize("packing", COUNTS)
def test_only_sums_have_counts(packing: str) -> None:
    x = np.ones(5, np.float32)
    text = rf"^(packing|layout).*: expected .*two_bit.*, got .*{packing}"
    layout = layout_of((5,), packing)
    calls: list[Callable[[], Any]] = [
        lambda: tk.encode(x, packing=packing),
        lambda: tk.encode([x, x], packing=["two_bit", packing]),
        lambda: tk.encode(x, layout=layout),
        lambda: tk.pack(np.ones(5, np.int8), packing=packing),
        lambda: tk.unpack(np.zeros(layout.pieces[0].nbytes, np.uint8), shape=5, packing=packing),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=text):
            call()
    with pytest.raises(ValueError, match="counts"):
        tk.scales(x, layout=layout)


@pytest.mark.parametrize("packing", COUNTS)
def test_layouts_of_counts(packing: str) -> None:
    """The same pieces as those of any other packing, with payloads of their own."""
    sizes = (12_900, 0, 2561, 7)
    for fields in ({}, *CUTS.values()):
        layout = replace(layout_of(sizes, **fields), packing=(packing, packing, "float32", packing))
        plan, groups, nbytes = ref.pieces(sizes, names_of(layout), fields.get("block"), fields.get("shards", 1))
        assert (layout.groups, layout.nbytes) == (groups, nbytes)
        assert [tuple(p) for p in layout.pieces] == [tuple(p) for p in plan]
    one = layout_of((2560,), packing)
    assert one.pieces[0].nbytes == 2560 * ref.COUNT_BITS[packing] // 8


# ---- validate


def is_valid(counts: tk.Counts) -> bool:
    try:
        tk.validate(counts)
    except tk.CorruptMessage:
        return False
    return True


@pytest.mark.parametrize("workers", [1, 6, 7, 8, 126, 127, 128, 300, 32767])
@pytest.mark.parametrize("n", [1, 5, 255, 512, 1001])
def test_validate_every_code(workers: int, n: int) -> None:
    """Every byte value in some places of the payload; counts of two bytes about their ends."""
    layout = layout_of((n, 3), ref.counts_packing(workers))
    data = np.zeros(layout.nbytes, np.uint8)
    data[:8] = np.float32([1, 1]).view(np.uint8)
    counts = tk.Counts(layout, workers, data)
    sizes, packing = sizes_of(layout), names_of(layout)
    piece = layout.pieces[0]
    end = piece.payload_at + piece.nbytes
    step = max(1, piece.nbytes // 9)
    if packing[0] == "counts16":
        for at in range(piece.payload_at, end, 2 * step):
            for value in (-32768, -32767, -workers - 1, -workers, -1, 0, 255, workers, workers + 1, 32767):
                data[at : at + 2] = np.array([value]).astype("<i2").view(np.uint8)
                inside = abs(int(np.int64(value).astype(np.int16))) <= workers
                assert is_valid(counts) == inside, (at, value)
            data[at : at + 2] = 0
        return
    for at in {*range(piece.payload_at, end, step), end - 1, end} & set(range(data.size)):
        for value in range(256):
            data[at] = value
            assert is_valid(counts) == ref.validate(data, sizes, packing, workers=workers), (at, value)
        data[at] = 0


@pytest.mark.parametrize("workers", [3, 100, 300])
def test_validate_scales_of_counts(workers: int) -> None:
    fired = [tk.sum_trits([tk.encode(np.full(600, value, np.float32), clip=None)] * workers) for value in (0, 1)]
    smallest, infinity = 0x21800000, 0x7F800000
    words = [0, 1, smallest - 1, smallest, smallest + 1, infinity - 1, infinity, infinity + 1, 0x7FC00000, 0x3F800000]
    for total, word in itertools.product(fired, [*words, *(word + 2**31 for word in words)]):
        total.data[:4] = np.array([word], np.uint32).view(np.uint8)
        want = ref.validate(total.data, [600], total.layout.packing, workers=workers)
        assert is_valid(total) == want, hex(word)


@given(st.data())
@settings(max_examples=100)
def test_validate_changed_counts(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=4))
    packing = data.draw(st.lists(st.sampled_from(PACKINGS), min_size=len(sizes), max_size=len(sizes)))
    layout = tk.Layout([(n,) for n in sizes], packing=packing, shards=data.draw(st.integers(1, 3)))
    total = tk.sum_trits(shared(layout, data.draw(st.sampled_from([1, 5, 7, 8, 20, 128]))))
    tk.validate(total)
    for at in data.draw(st.lists(st.integers(0, total.layout.nbytes - 1), min_size=1, max_size=2)):
        total.data[at] = data.draw(st.integers(0, 255))
    cuts = cuts_of(layout)
    assert is_valid(total) == ref.validate(total.data, sizes, names_of(total.layout), **cuts, workers=total.workers)


# ---- what is refused

ONE = tk.encode(np.ones(12, np.float32))
COUNT = tk.sum_trits([ONE, ONE])
TWO = tk.encode([np.ones(6, np.float32)] * 2)
BLOCKS = tk.encode(np.ones(12, np.float32), block=2560)
SHARDS = tk.encode(np.ones(12, np.float32), layout=tk.Layout([(12,)], shards=2))
CARRIED = tk.encode(np.ones(12, np.float32), packing="float32")
FLAT = tk.encode(np.ones((3, 4), np.float32))


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (None, TypeError, "messages: expected .*, got NoneType"),
        (ONE.data, TypeError, "messages: expected .*, got ndarray"),
        ((m for m in [ONE]), TypeError, "messages: expected .*, got generator"),
        ([], ValueError, "messages: expected at least one message, got none"),
        ([ONE, None], TypeError, r"messages\[1\]: .*NoneType"),
        ([ONE, ONE.data], TypeError, r"messages\[1\]: .*ndarray"),
        ([ONE, TWO], ValueError, r"messages\[1\]\.layout\.shapes: "),
        ([COUNT, TWO], ValueError, r"messages\[1\]\.layout\.shapes: "),
        ([ONE, BLOCKS], ValueError, r"messages\[1\]\.layout\.block: "),
        ([ONE, ONE, SHARDS], ValueError, r"messages\[2\]\.layout\.shards: "),
        ([ONE, CARRIED], ValueError, r"messages\[1\]\.layout\.packing: "),
        ([CARRIED, COUNT], ValueError, r"messages\[1\]\.layout\.packing: "),
        ([ONE, FLAT], ValueError, r"messages\[1\]\.layout\.shapes"),
        (
            [tk.Packed(SHARDS.layout.shard(k), SHARDS.data.reshape(2, -1)[k]) for k in range(2)],
            ValueError,
            r"messages\[1\]\.layout\.",
        ),
        ([ONE, tk.Packed(ONE.layout, ONE.data[:-1])], ValueError, r"messages\[1\]: .*32.*31"),
        ([ONE, tk.Packed(ONE.layout, np.stack([ONE.data] * 2))], ValueError, r"messages\[1\].data: .*one message"),
        ([ONE, tk.Packed(ONE.layout, ONE.data.view(np.int8))], TypeError, r"messages\[1\]: .*uint8.*int8"),
        ([COUNT, tk.Counts(COUNT.layout, 2, COUNT.data[:-1])], ValueError, r"messages\[1\]: .*32.*31"),
        (tk.Packed(ONE.layout, np.zeros((0, 32), np.uint8)), ValueError, "messages: expected at least one message"),
        (tk.Packed(ONE.layout, np.zeros((2, 33), np.uint8)), ValueError, "messages.data: .*32.*33"),
        (tk.Counts(COUNT.layout, 2, np.zeros((1, 2, 32), np.uint8)), ValueError, "messages.data: .*32"),
        (tk.Packed(ONE.layout, b"text"), TypeError, "messages.data: expected an array"),
        (tk.Counts(COUNT.layout, 2, b"text"), TypeError, "messages.data: expected an array"),
        (tk.Packed(COUNT.layout, COUNT.data), ValueError, ".*counts"),
        ([ONE, tk.Packed(COUNT.layout, COUNT.data)], ValueError, r"messages\[1\]\.layout\.packing: .*counts"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_messages_that_have_no_sum(value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^{text}"):
        tk.sum_trits(value)


def test_layouts_of_messages_with_counts_agree() -> None:
    """decode_sum takes one packing; sums of other workers in the same packing go."""
    three, ten = tk.sum_trits([ONE] * 3), tk.sum_trits([ONE] * 10)
    assert (tk.decode_sum([COUNT, three]) == 5).all()
    for pair in ([COUNT, ONE], [ONE, COUNT], [three, ten]):
        with pytest.raises(ValueError, match=r"messages\[1\]\.layout\."):
            tk.decode_sum(pair)


@pytest.mark.parametrize(
    ("out", "error", "text"),
    [
        (np.zeros(31, np.uint8), ValueError, "32 elements, got 31"),
        (np.zeros(32, np.int8), TypeError, "uint8"),
        (np.zeros(64, np.uint8)[::2], ValueError, "dense"),
        (np.broadcast_to(np.uint8(0), 32), ValueError, "dense"),
        (np.frombuffer(bytes(32), np.uint8), BufferError, "writable"),
        (5, TypeError, "expected an array"),
        ("text", TypeError, "expected an array"),
        ([np.zeros(32, np.uint8)], TypeError, "expected an array"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_outputs_that_are_refused(out: Any, error: type[Exception], text: str) -> None:
    before = ONE.data.copy()
    with pytest.raises(error, match=f"^out: .*{text}"):
        tk.sum_trits([ONE, ONE], out=out)
    assert_same(ONE.data, before)


def test_an_output_must_not_overlap_a_message() -> None:
    memory = np.zeros(200, np.uint8)
    for shift in range(-40, 41):
        message = tk.Packed(ONE.layout, memory[64:96])
        memory[64:96] = ONE.data
        out = memory[64 + shift : 96 + shift]
        if abs(shift) < 32:
            with pytest.raises(ValueError, match=r"^out: "):
                tk.sum_trits([ONE, message], out=out)
            assert_same(memory[64:96], ONE.data)
        else:
            assert_same(tk.sum_trits([ONE, message], out=out).data, COUNT.data)


def test_the_stream_is_none() -> None:
    tk.sum_trits([ONE], stream=None)
    with pytest.raises(ValueError, match=r"^stream: "):
        tk.sum_trits([ONE], stream=3)
    with pytest.raises(TypeError):
        tk.sum_trits([ONE], np.zeros(32, np.uint8))  # type: ignore[misc]


def test_inputs_stay_as_they_are() -> None:
    messages = shared(layout_of((700, 3, 5), "mixed"), 9)
    before = [m.data.copy() for m in messages]
    total = tk.sum_trits(messages)
    kept = total.data.copy()
    tk.sum_trits([total, *messages])
    tk.decode(total)
    tk.validate(total)
    assert_all_same([m.data for m in messages], before)
    assert_same(total.data, kept)
