"""The numerical contract a second time, in plain NumPy, as the oracle of the tests.

It is written from the text of ``docs/contract.md`` and shares nothing with the C++ sources: not a constant,
not a table. It is meant to be read next to that text, so each function names the section it restates, and
clarity beats speed (a million elements still encode in well under two seconds).

Arrays are flat. ``x32`` is always a float32 array, ``scale``, ``limit``, ``inv`` and ``B`` are float32
scalars. float32 arithmetic relies on NumPy keeping ``float32 op float32`` in float32, each operation
rounded to nearest even on its own; whatever is meant to be float64 is a Python float.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Float32s = NDArray[np.float32]
Float64s = NDArray[np.float64]
Bytes = NDArray[np.uint8]
Trits = NDArray[np.int8]
Integers = NDArray[np.int64]
Words = NDArray[np.uint32]
Pair = tuple[np.float32, np.float32]

ZERO = np.float32(0)
INF = np.float32(np.inf)
TWO_31 = np.float32(2.0**31)
SMALLEST_SCALE = np.float32(2.0**-60)
MASK_32 = 0xFFFFFFFF

ROW = 128
STRIPE_ROWS = 64
BINS = 256
UNIT = 2560

DTYPES: dict[str, Any] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float64": np.dtype(np.float64),
}


# ----------------------------------------------------------------------------------- dtypes (sections 1, 6)


def _bits32(x32: Float32s) -> Words:
    return x32.view(np.uint32)


def widen(x: Array, dtype_name: str, *, signed_nan: bool = False) -> Float32s:
    """Section 1: a layer of any input dtype as float32; a NaN that changes dtype becomes 0x7fc00000.

    With `signed_nan` that NaN keeps its sign, which ternarizing under a passed scale looks at.
    """
    x = np.ascontiguousarray(x, DTYPES[dtype_name]).reshape(-1)
    if dtype_name == "float32":
        return x.copy()
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype_name == "bfloat16":
            wide = (x.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            negative = x.view(np.uint16) >> 15 != 0
        else:
            wide = x.astype(np.float32)
            negative = np.signbit(x)
    bits = _bits32(wide)
    bits[np.isnan(wide)] = 0x7FC00000
    if signed_nan:
        bits[np.isnan(wide) & negative] = 0xFFC00000
    return wide


def narrow(x32: Float32s, dtype_name: str) -> Array:
    """Section 6: float32 rounded to the output dtype once, to nearest even; NaN becomes that dtype's own."""
    nan = np.isnan(x32)
    if dtype_name == "float32":
        return x32.copy()
    if dtype_name == "float64":
        with np.errstate(invalid="ignore"):
            wide = x32.astype(np.float64)
        wide.view(np.uint64)[nan] = 0x7FF8000000000000
        return wide
    if dtype_name == "float16":
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            half = x32.astype(np.float16)
        half.view(np.uint16)[nan] = 0x7E00
        return half
    # bfloat16: drop 16 bits; adding 0x7fff, and 1 more where the kept part is odd, carries exactly when the
    # dropped part is above one half, or is one half and the kept part odd. A carry out of the largest finite
    # value gives infinity. NaN is replaced afterwards (the carry may have damaged it).
    bits = _bits32(x32).astype(np.uint64)
    kept = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    kept[nan] = 0x7FC0
    return kept.view(DTYPES["bfloat16"])


def fma32(a: Any, b: Any, c: Any) -> Float32s:
    """Return a * b + c for float32 operands, rounded once to float32.

    Why this is exact. The product of two 24-bit significands has at most 48 bits and an exponent in [-298,
    256), so p = a * b is exact in float64. TwoSum (Knuth) gives s = nearest(p + c) and e with s + e = p + c
    exactly; nothing overflows (|p + c| < 2^257) and sums do not underflow. Rounding s to float32 would
    round twice, and differ where s falls on a midpoint of float32 that p + c is not on. So s is first
    turned into p + c *rounded to odd*: where e != 0, p + c lies strictly between s and its neighbour on the
    side of e, and of those two the one whose last bit is 1 is taken. A value rounded to odd with 53 bits is
    a float32 value or midpoint only if p + c is that very value (all of these have at most 25 significant
    bits, hence an even last bit), and lies on the same side of every one of them as p + c; rounding it to
    nearest even therefore gives the rounding of p + c. Subnormal results and the overflow bound 2^128 -
    2^103 are values and midpoints like all others.
    """
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        p = np.multiply(a, b, dtype=np.float64)
        c = np.asarray(c, np.float64)
        s = np.asarray(p + c)
        t = s - p
        e = np.asarray((p - (s - t)) + (c - t))
        bits = s.view(np.int64)
        # One more in the bits is one step away from zero. Where s is infinite or NaN, e is NaN: s stays.
        step = np.where((e > 0) == (s > 0), 1, -1)
        move = np.isfinite(s) & (e != 0) & (bits & 1 == 0)
        odd = np.asarray(np.where(move, bits + step, bits)).view(np.float64)
        return np.asarray(odd.astype(np.float32))


# ------------------------------------------------------------------------------ scale and limit (section 2)


def _tree(columns: Array) -> Array:
    """Section 2, order of the sums: i takes i + 64 (128), i + 32, ... i + 1; along the last axis."""
    while columns.shape[-1] > 1:
        half = columns.shape[-1] // 2
        columns = columns[..., :half] + columns[..., half:]
    return columns[..., 0]


def _ordered_sum(x32: Float32s, step: Callable[[Float32s, Float32s], Float32s]) -> float:
    """Section 2, order of the sums, for `sum = step(sum, x)` going down each column of 64 rows x 128."""
    stripes = -(-x32.size // (ROW * STRIPE_ROWS))
    padded = np.zeros(stripes * STRIPE_ROWS * ROW, np.float32)
    padded[: x32.size] = x32
    rows = padded.reshape(stripes, STRIPE_ROWS, ROW)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        columns = np.zeros((stripes, ROW), np.float32)
        for row in range(STRIPE_ROWS):
            columns = step(columns, rows[:, row, :])
        stripe_sums = _tree(columns).astype(np.float64)
        bins = np.zeros(BINS, np.float64)
        for j in range(0, stripes, BINS):
            chunk = stripe_sums[j : j + BINS]
            bins[: chunk.size] += chunk
        return float(_tree(bins))


def statistics(x32: Float32s, *, center: bool = False) -> tuple[int, float, float]:
    """Section 2: the bits of top, Q and S of one layer (or block); S is 0 unless `center`."""
    if x32.size == 0:
        return 0, 0.0, 0.0
    top_bits = int((_bits32(x32) & 0x7FFFFFFF).max())
    d = x32
    S = 0.0
    if center:
        with np.errstate(over="ignore", invalid="ignore"):
            d = x32 - x32[0]
        S = _ordered_sum(d, lambda total, row: total + row)
    Q = _ordered_sum(d, lambda total, row: fma32(row, row, total))
    return top_bits, Q, S


def _limit(n: int, Q: float, S: float, clip: float | None, center: bool) -> np.float32:
    """Section 2: limit = float32(clip * rms), or +infinity where clipping is off or says nothing."""
    if clip is None or n == 0:
        return INF
    square = Q / n
    if center:
        # Infinite sums make this NaN, and Python's max then gives 0; both end in limit = +infinity.
        square = max(0.0, square - (S / n) * (S / n))
    rms = math.sqrt(square)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        limit = np.float32(clip * rms)
    if rms == 0 or limit == 0 or not np.isfinite(limit):
        return INF
    return limit


def scale_and_limit(x32: Float32s, *, clip: float | None = 2.5, center: bool = False) -> Pair:
    """Section 2: the layer's own (s, limit), as they stand in Scales and (s) in the message."""
    top_bits, Q, S = statistics(x32, center=center)
    if top_bits >= 0x7F800000:
        return INF, INF
    top = np.uint32(top_bits).view(np.float32)
    limit = _limit(x32.size, Q, S, clip, center)
    s = min(top, limit)
    return (ZERO if s < SMALLEST_SCALE else s), limit


def passed_scale_and_limit(scale: Any, limit: Any) -> Pair:
    """Section 2, scaler sharing: what a passed pair stands for."""
    scale, limit = np.float32(scale), np.float32(limit)
    if not (scale >= 0) or np.isinf(scale) or not (limit > 0):
        return INF, INF
    return (ZERO if scale < SMALLEST_SCALE else scale), limit


# ---------------------------------------------------------------------------------- random bits (section 3)


def philox4x32_10(counter: Words, key: Words) -> Words:
    """Section 3: Philox4x32-10 of counters (..., 4) under keys (..., 2)."""
    c0, c1, c2, c3 = (np.asarray(counter)[..., k].astype(np.uint64) for k in range(4))
    k0, k1 = (np.asarray(key)[..., k].astype(np.uint64) for k in range(2))
    mask, half = np.uint64(MASK_32), np.uint64(32)
    for _ in range(10):
        product0 = c0 * np.uint64(0xD2511F53)
        product1 = c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (product1 >> half) ^ c1 ^ k0,
            product1 & mask,
            (product0 >> half) ^ c3 ^ k1,
            product0 & mask,
        )
        k0 = (k0 + np.uint64(0x9E3779B9)) & mask
        k1 = (k1 + np.uint64(0xBB67AE85)) & mask
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def _u_of_blocks(words: Words) -> Words:
    """Section 3: the 16 values u of each block, [..., i, j] for row i and column j of its 4 x 4 elements."""

    def byte(v: Words, k: int) -> Words:
        return v >> np.uint32(8 * (k % 4)) & np.uint32(0xFF)

    u = np.empty((*words.shape[:-1], 4, 4), np.uint32)
    for i in range(4):
        w = words[..., i]
        y = words[..., (i + 1) % 4] ^ words[..., (i + 2) % 4]
        for j in range(4):
            u[..., i, j] = (byte(w, j) << 24 | byte(y, j) << 16 | byte(y, j + 1) << 8 | byte(y, j + 2)) >> 1
    return u


def uniforms(
    n: int, *, seed: int, offset: int, layer: int, first: int = 0, second_hop: bool = False
) -> NDArray[np.uint32]:
    """Section 3: u of elements first ... first + n - 1 of the layer with the word `layer` (base and all)."""
    if n == 0:
        return np.empty(0, np.uint32)
    seed %= 2**64
    offset %= 2**64
    first_group = first // (4 * ROW)
    groups = (first + n - 1) // (4 * ROW) - first_group + 1
    counter = np.empty((groups * 32, 4), np.uint32)
    counter[:, 0] = np.arange(32 * first_group, 32 * (first_group + groups), dtype=np.uint64)
    counter[:, 1] = layer | (0x80000000 if second_hop else 0)
    counter[:, 2] = offset & MASK_32
    counter[:, 3] = offset >> 32
    key = np.array([seed & MASK_32, seed >> 32], np.uint32)
    u = _u_of_blocks(philox4x32_10(counter, key)).reshape(groups, 32, 4, 4)
    # [group, block, i, j] is row 4 * group + i, column 4 * block + j.
    ordered = u.transpose(0, 2, 1, 3).reshape(-1)
    skip = first - first_group * 4 * ROW
    return ordered[skip : skip + n].copy()


# ------------------------------------------------------------------------------------ ternarize (section 4)


def inv_and_bound(scale: np.float32, limit: np.float32) -> Pair:
    """Section 4: inv and B. A zero or poisoned layer has every code 0, which inv = B = +0 expresses."""
    if scale == 0 or np.isinf(scale):
        return ZERO, ZERO
    with np.errstate(over="ignore", under="ignore"):
        inv = TWO_31 / scale
        if scale * inv < TWO_31:
            inv = np.nextafter(inv, INF)
        return inv, min(TWO_31, limit * inv)


def thresholds(x32: Float32s, scale: np.float32, limit: np.float32) -> Words:
    """Section 4: T of each element."""
    inv, B = inv_and_bound(scale, limit)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        product = np.abs(x32) * inv
    bounded = np.where(product < B, product, B)
    return np.trunc(bounded).astype(np.float64).astype(np.uint32)


def trits(x32: Float32s, scale: np.float32, limit: np.float32, u: Words) -> Trits:
    """Section 4: t of each element."""
    fires = u < thresholds(x32, scale, limit)
    sign = np.where(np.signbit(x32), -1, 1)
    return np.where(fires, sign, 0).astype(np.int8)


# -------------------------------------------------------------------------------------- packing (section 5)

TILE_ROWS = {"two_bit": 4, "base3": 5}
COUNT_BITS = {"counts4": 4, "counts8": 8, "counts16": 16}
MOST_WORKERS = {"counts4": 7, "counts8": 127, "counts16": 32767}
# The place value of each row of a tile, and what the digits are taken modulo.
PLACE = {"two_bit": (1, 4, 16, 64), "base3": (1, 3, 9, 27, 81), "counts4": (1, 16)}
BASE = {"two_bit": 4, "base3": 3, "counts4": 16}
# The digit of t = 0, +1, -1 at index t (Python's index -1 is the last); and back, code 10 counting as 0.
DIGIT = {"two_bit": (0, 1, 3), "base3": (0, 1, 2)}
TRIT = {"two_bit": (0, 1, 0, -1), "base3": (0, 1, -1)}


def payload_nbytes(n: int, packing: str) -> int:
    """Section 5: bytes of the payload of n elements."""
    if packing == "float32":
        return 4 * n
    if packing in COUNT_BITS:
        return -(-n * COUNT_BITS[packing] // 8)
    return -(-n // TILE_ROWS[packing])


def _in_tiles(digits: NDArray[np.uint8], packing: str) -> Bytes:
    """Section 5: digits in element order, in tiles of rows x 128 columns and a last, partial one."""
    place = np.array(PLACE[packing], np.uint8)[:, None]
    rows = len(place)
    whole = digits.size // (rows * ROW) * rows * ROW
    tiles = digits[:whole].reshape(-1, rows, ROW)
    columns = payload_nbytes(digits.size - whole, packing)
    last = np.zeros(rows * columns, np.uint8)
    last[: digits.size - whole] = digits[whole:]
    return np.concatenate(
        [
            (tiles * place).sum(axis=1, dtype=np.uint8).reshape(-1),
            (last.reshape(rows, columns) * place).sum(axis=0, dtype=np.uint8),
        ]
    )


def _digits(payload: Bytes, packing: str) -> NDArray[np.uint8]:
    """Section 5: every digit of the payload in element order, those behind the last element too."""
    place = np.array(PLACE[packing], np.uint8)[:, None]
    # A last tile of 128 columns is laid out like a whole one, so the bytes alone tell where tiles end.
    whole = payload.size // ROW * ROW
    tiles = payload[:whole].reshape(-1, 1, ROW) // place % BASE[packing]
    last = payload[None, whole:] // place % BASE[packing]
    return np.concatenate([tiles.reshape(-1), last.reshape(-1)]).astype(np.uint8)


def _require_length(payload: Bytes, n: int, packing: str) -> None:
    if payload.size != payload_nbytes(n, packing):
        raise ValueError(f"payload of {payload.size} bytes for {n} elements in {packing}")


def pack(trits: Trits, packing: str) -> Bytes:
    """Section 5: the payload of the signs of `trits`."""
    return _in_tiles(np.array(DIGIT[packing], np.uint8)[np.sign(trits.reshape(-1))], packing)


def unpack(payload: Bytes, n: int, packing: str) -> Trits:
    """Section 5 backwards; total: code 10 gives 0 and a base-3 byte its five digits mod 3."""
    _require_length(payload, n, packing)
    return np.array(TRIT[packing], np.int8)[_digits(payload, packing)[:n]]


def counts_packing(workers: int) -> str:
    """Section 5: the narrowest packing that holds the sums of so many workers."""
    if not 1 <= workers <= 32767:
        raise ValueError(f"{workers} workers")
    return next(name for name, most in MOST_WORKERS.items() if workers <= most)


def pack_counts(sums: Integers, packing: str) -> Bytes:
    """Section 5: the payload of integers, taken modulo 2^bits."""
    bits = COUNT_BITS[packing]
    codes = sums % 2**bits
    if bits == 4:
        return _in_tiles(codes.astype(np.uint8), packing)
    return codes.astype(f"<u{bits // 8}").view(np.uint8)


def unpack_counts(payload: Bytes, n: int, packing: str) -> Integers:
    """Section 5 backwards: two's complement, the lowest value too."""
    _require_length(payload, n, packing)
    bits = COUNT_BITS[packing]
    codes = _digits(payload, packing)[:n] if bits == 4 else payload.view(f"<u{bits // 8}")
    half = 2 ** (bits - 1)
    return (codes.astype(np.int64) + half) % 2**bits - half


# ----------------------------------------------------------------------------- message geometry (section 5)


class Piece(NamedTuple):
    """One run of one group inside one shard; offsets in bytes from the start of the data."""

    layer: int
    first: int
    size: int
    packing: str
    group: int
    scale_at: int
    payload_at: int
    nbytes: int


class _Unit(NamedTuple):
    layer: int
    first: int
    size: int
    group: int
    weight: int


def _aligned(at: int) -> int:
    return -(-at // 16) * 16


def _packings(packing: str | Sequence[str], layers: int) -> list[str]:
    names = [packing] * layers if isinstance(packing, str) else list(packing)
    if len(names) != layers:
        raise ValueError(f"{len(names)} packings for {layers} layers")
    return names


def _units(sizes: Sequence[int], packings: Sequence[str], block: int | None) -> list[_Unit]:
    """Section 5, `shards`: the units of all layers, in order, with the group each belongs to."""
    units = []
    group = -1
    for layer, size in enumerate(sizes):
        for first in range(0, max(size, 1), UNIT):
            if first == 0 or (block is not None and first % block == 0):
                group += 1
            n = min(UNIT, size - first)
            units.append(_Unit(layer, first, n, group, n * (16 if packings[layer] == "float32" else 1)))
    return units


def pieces(
    sizes: Sequence[int],
    packing: str | Sequence[str] = "two_bit",
    block: int | None = None,
    shards: int = 1,
    index: int | None = None,
) -> tuple[list[Piece], int, int]:
    """Section 5: the pieces in message order, the number of scale groups, and the length of the data.

    With `index` the data is that one shard, and each of its pieces is a group of its own.
    """
    packings = _packings(packing, len(sizes))
    units = _units(sizes, packings, block)
    total = sum(unit.weight for unit in units)
    # Units of one group in one shard, joined: [shard][k] = [layer, first, size, group].
    runs: list[list[list[int]]] = [[] for _ in range(shards)]
    before = 0
    for unit in units:
        shard = min(shards - 1, shards * before // total) if total else 0
        before += unit.weight
        if runs[shard] and runs[shard][-1][3] == unit.group:
            runs[shard][-1][2] += unit.size
        else:
            runs[shard].append([unit.layer, unit.first, unit.size, unit.group])

    laid_out = []
    longest = 16 if shards > 1 else 0
    for shard_runs in runs:
        placed = []
        at = _aligned(4 * len(shard_runs))
        for k, (layer, first, size, group) in enumerate(shard_runs):
            nbytes = payload_nbytes(size, packings[layer])
            placed.append(Piece(layer, first, size, packings[layer], group, 4 * k, at, nbytes))
            at = _aligned(at + nbytes)
        laid_out.append(placed)
        longest = max(longest, at)

    if index is not None:
        own = [piece._replace(group=k) for k, piece in enumerate(laid_out[index])]
        return own, len(own), longest
    message = [
        piece._replace(scale_at=shard * longest + piece.scale_at, payload_at=shard * longest + piece.payload_at)
        for shard, placed in enumerate(laid_out)
        for piece in placed
    ]
    groups = units[-1].group + 1 if units else 0
    return message, groups, shards * longest


def cut(
    layers: Sequence[Array],
    packing: str | Sequence[str] = "two_bit",
    block: int | None = None,
    shards: int = 1,
    index: int | None = None,
) -> list[Array]:
    """Section 5: the elements of each piece, in message order."""
    plan, _, _ = pieces([x.size for x in layers], packing, block, shards, index)
    return [layers[p.layer].reshape(-1)[p.first : p.first + p.size] for p in plan]


# ------------------------------------------------------------------------------- whole messages (section 5)


def _group_arrays(layers: Sequence[Array], packings: Sequence[str], block: int | None) -> tuple[list[Array], list[str]]:
    """Section 5, `block`: the elements and the packing of each scale group."""
    arrays, names = [], []
    for x, name in zip(layers, packings, strict=True):
        flat = x.reshape(-1)
        step = max(flat.size, 1) if block is None else block
        for first in range(0, max(flat.size, 1), step):
            arrays.append(flat[first : first + step])
            names.append(name)
    return arrays, names


def scales(
    layers: Sequence[Array],
    *,
    clip: float | None = 2.5,
    center: bool = False,
    block: int | None = None,
    packing: str | Sequence[str] = "two_bit",
) -> tuple[Float32s, Float32s]:
    """Section 2: (scale, limit) of each group; a `float32` layer is not measured: (1, +infinity)."""
    arrays, names = _group_arrays(layers, _packings(packing, len(layers)), block)
    scale = np.ones(len(arrays), np.float32)
    limit = np.full(len(arrays), np.inf, np.float32)
    for k, (x, name) in enumerate(zip(arrays, names, strict=True)):
        if name != "float32":
            scale[k], limit[k] = scale_and_limit(widen(x, x.dtype.name), clip=clip, center=center)
    return scale, limit


def _payload(x: Array, piece: Piece, pair: Pair, draw: dict[str, Any]) -> Bytes:
    """Sections 3 to 5: the payload of one piece with the elements x."""
    if piece.packing == "float32":
        return widen(x, x.dtype.name).astype("<f4").view(np.uint8)
    x32 = widen(x, x.dtype.name, signed_nan=True)
    return pack(trits(x32, *pair, uniforms(x.size, first=piece.first, **draw)), piece.packing)


def _put(data: Bytes, piece: Piece, field: Any, payload: Bytes) -> None:
    """Section 5: the scale field and the payload of one piece, where they belong."""
    data[piece.scale_at : piece.scale_at + 4] = np.array([field], "<f4").view(np.uint8)
    data[piece.payload_at : piece.payload_at + piece.nbytes] = payload


def encode(
    layers: Sequence[Array],
    *,
    packing: str | Sequence[str] = "two_bit",
    clip: float | None = 2.5,
    seed: int = 0,
    offset: int = 0,
    layer: int = 0,
    scales: tuple[Any, Any] | None = None,
    block: int | None = None,
    shards: int = 1,
    index: int | None = None,
    sizes: Sequence[int] | None = None,
    center_scales: bool = False,
    second_hop: bool = False,
) -> Bytes:
    """Section 5: the message of a bucket.

    With `index`, `layers` are the pieces of that shard (see `cut`), and `sizes` and `packing` those of the
    layers of the whole bucket. `scales` = (scale, limit), one entry a group. With `center_scales` the
    measured limits are those about the mean. `second_hop` sets bit 31 of the layer words.
    """
    whole = [x.size for x in layers] if sizes is None else list(sizes)
    plan, groups, nbytes = pieces(whole, packing, block, shards, index)
    if index is None:
        runs = cut(layers, packing, block, shards)
        packings: Sequence[str] = _packings(packing, len(layers))
    else:
        runs = [x.reshape(-1) for x in layers]
        packings, block = [p.packing for p in plan], None
    if scales is None:
        pairs = _own_pairs(layers, packings, block, clip, center_scales)
    else:
        pairs = [passed_scale_and_limit(s, m) for s, m in zip(*scales, strict=True)]
    if len(pairs) != groups:
        raise ValueError(f"{len(pairs)} scales for {groups} groups")

    data = np.zeros(nbytes, np.uint8)
    for x, p in zip(runs, plan, strict=True):
        pair = (np.float32(1), INF) if p.packing == "float32" else pairs[p.group]
        draw = {"seed": seed, "offset": offset, "layer": layer + p.layer, "second_hop": second_hop}
        _put(data, p, pair[0], _payload(x, p, pair, draw))
    return data


def _own_pairs(
    layers: Sequence[Array], packings: Sequence[str], block: int | None, clip: float | None, center: bool
) -> list[Pair]:
    return list(zip(*scales(layers, clip=clip, center=center, block=block, packing=packings), strict=True))


def ternarize(
    layers: Sequence[Array],
    *,
    clip: float | None = 2.5,
    seed: int = 0,
    offset: int = 0,
    layer: int = 0,
    scales: tuple[Any, Any] | None = None,
) -> tuple[list[Trits], Float32s]:
    """Section 4 for each layer of a bucket: its trits, not packed, and the scales."""
    if scales is None:
        pairs = _own_pairs(layers, ["two_bit"] * len(layers), None, clip, False)
    else:
        pairs = [passed_scale_and_limit(s, m) for s, m in zip(*scales, strict=True)]
    out = []
    for k, (x, pair) in enumerate(zip(layers, pairs, strict=True)):
        u = uniforms(x.size, seed=seed, offset=offset, layer=layer + k)
        out.append(trits(widen(x, x.dtype.name, signed_nan=True), *pair, u))
    return out, np.array([pair[0] for pair in pairs], np.float32)


def clip(
    layers: Sequence[Array],
    *,
    clip: float | None = 2.5,
    center: bool = False,
    scales: tuple[Any, Any] | None = None,
) -> list[Array]:
    """Section 2: elements beyond +-limit become +-limit in their dtype, all others keep their bits."""
    if scales is None:
        limits = [pair[1] for pair in _own_pairs(layers, ["two_bit"] * len(layers), None, clip, center)]
    else:
        limits = [np.float32(limit) for limit in scales[1]]
    return [_clip_layer(x.reshape(-1), limit) for x, limit in zip(layers, limits, strict=True)]


def _clip_layer(x: Array, limit: np.float32) -> Array:
    name = x.dtype.name
    if not limit > 0:
        return narrow(np.full(x.size, np.nan, np.float32), name)
    x32 = widen(x, name)
    out = x.copy()
    beyond = np.abs(x32) > limit
    out[beyond] = narrow(np.copysign(limit, x32[beyond]).astype(np.float32), name)
    return out


# --------------------------------------------------------------------------------------- decode (section 6)


def _canonical_nan(n: int) -> Float32s:
    return np.full(n, 0x7FC00000, np.uint32).view(np.float32)


def _scale_field(data: Bytes, piece: Piece) -> np.float32:
    return np.float32(data[piece.scale_at : piece.scale_at + 4].copy().view("<f4")[0])


def _piece_values(data: Bytes, piece: Piece) -> tuple[np.float32, Float32s]:
    """Section 6: (s, t) of a piece; a `float32` piece has s = 1 and t = the values."""
    payload = data[piece.payload_at : piece.payload_at + piece.nbytes].copy()
    if piece.packing == "float32":
        return np.float32(1), payload.view("<f4").astype(np.float32)
    return _scale_field(data, piece), _integers(payload, piece).astype(np.float32)


def _integers(payload: Bytes, piece: Piece) -> Array:
    """Section 6: the trits or the counts of a ternary piece."""
    return (unpack_counts if piece.packing in COUNT_BITS else unpack)(payload, piece.size, piece.packing)


def _weight(weight: float) -> np.float32:
    with np.errstate(over="ignore"):
        w = np.float32(weight)
    if not np.isfinite(w):
        raise ValueError(f"weight {weight} is not finite in float32")
    return w


def _targets(sizes: Sequence[int], plan: Sequence[Piece], index: int | None) -> tuple[list[int], list[slice]]:
    """Which flat array each piece belongs to, and where in it: the layer, or for a shard the piece itself."""
    if index is None:
        return [p.layer for p in plan], [slice(p.first, p.first + p.size) for p in plan]
    return list(range(len(plan))), [slice(0, p.size) for p in plan]


def decode(
    data: Bytes,
    sizes: Sequence[int],
    packing: str | Sequence[str] = "two_bit",
    *,
    dtype: str = "float32",
    block: int | None = None,
    shards: int = 1,
    index: int | None = None,
    weight: float = 1.0,
    out: Sequence[Array] | None = None,
) -> list[Array]:
    """Section 6: a flat array a layer (a piece, for a shard); with `out`, new arrays that accumulate."""
    plan, _, nbytes = pieces(sizes, packing, block, shards, index)
    if data.size != nbytes:
        raise ValueError(f"{data.size} bytes where the layout has {nbytes}")
    w = _weight(weight)
    owner, where = _targets(sizes, plan, index)
    lengths = [p.size for p in plan] if index is not None else list(sizes)
    if out is None:
        results = [np.zeros(n, np.float32) for n in lengths]
        names = [dtype] * len(lengths)
    else:
        results = [widen(x.reshape(-1), x.dtype.name) for x in out]
        names = [x.dtype.name for x in out]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for p, target, span in zip(plan, owner, where, strict=True):
            s, t = _piece_values(data, p)
            if not np.isfinite(s):
                value = _canonical_nan(p.size)
            elif out is not None:
                value = fma32(w * s, t, results[target][span])
            elif p.packing == "float32" and w == 1:
                value = t
            else:
                value = (w * s) * t
            results[target][span] = value
    return [narrow(x, name) for x, name in zip(results, names, strict=True)]


def decode_sum(
    messages: Sequence[Bytes],
    sizes: Sequence[int],
    packing: str | Sequence[str] = "two_bit",
    *,
    dtype: str = "float32",
    block: int | None = None,
    shards: int = 1,
    index: int | None = None,
    weights: Sequence[float] | None = None,
) -> list[Array]:
    """Section 6: the weighted sum of messages, from +0, in their order, rounded to `dtype` at the end."""
    plan, _, _ = pieces(sizes, packing, block, shards, index)
    owner, where = _targets(sizes, plan, index)
    lengths = [p.size for p in plan] if index is not None else list(sizes)
    total: list[Array] = [np.zeros(n, np.float32) for n in lengths]
    for data, weight in zip(messages, [1.0] * len(messages) if weights is None else weights, strict=True):
        total = decode(data, sizes, packing, block=block, shards=shards, index=index, weight=weight, out=total)
    for data in messages:
        for p, target, span in zip(plan, owner, where, strict=True):
            if p.packing != "float32" and not np.isfinite(_scale_field(data, p)):
                total[target][span] = _canonical_nan(p.size)
    return [narrow(x, dtype) for x in total]


# ----------------------------------------------------------------------- sums and second hops (section 6)


class Message(NamedTuple):
    """Bytes with what `sum_trits` needs of their layout beside what all messages have in common."""

    data: Bytes
    packing: str | Sequence[str] = "two_bit"
    workers: int = 1


def sum_trits(
    messages: Sequence[Message],
    sizes: Sequence[int],
    block: int | None = None,
    shards: int = 1,
    index: int | None = None,
) -> Message:
    """Section 6: the sum of messages of trits and of counts, as counts."""
    workers = sum(message.workers for message in messages)
    counts = counts_packing(workers)
    names = _packings(messages[0].packing, len(sizes))
    packings = ["float32" if name == "float32" else counts for name in names]
    plan, _, nbytes = pieces(sizes, packings, block, shards, index)
    data = np.zeros(nbytes, np.uint8)
    plans = [pieces(sizes, message.packing, block, shards, index)[0] for message in messages]
    for k, p in enumerate(plan):
        parts = [(message.data, own[k]) for message, own in zip(messages, plans, strict=True)]
        _put(data, p, *(_sum_of_values(parts) if p.packing == "float32" else _sum_of_trits(parts, p)))
    return Message(data, packings, workers)


def _sum_of_values(parts: Sequence[tuple[Bytes, Piece]]) -> tuple[np.float32, Bytes]:
    """Section 6: the field and the payload of a `float32` piece of a sum."""
    total = np.zeros(parts[0][1].size, np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for data, piece in parts:
            total = total + _piece_values(data, piece)[1]
    return np.float32(1), total.astype("<f4").view(np.uint8)


def _sum_of_trits(parts: Sequence[tuple[Bytes, Piece]], piece: Piece) -> tuple[np.float32, Bytes]:
    """Section 6: the field and the payload of a ternary piece of a sum."""
    nothing = np.zeros(piece.nbytes, np.uint8)
    fields = [_scale_field(*part) for part in parts]
    if len({field.tobytes() for field in fields}) > 1 or not np.isfinite(fields[0]):
        return INF, nothing
    if fields[0] == 0:
        return ZERO, nothing
    total = np.zeros(piece.size, np.int64)
    for data, own in parts:
        total += _integers(data[own.payload_at : own.payload_at + own.nbytes].copy(), own)
    return fields[0], pack_counts(total, piece.packing)


def repack(
    messages: Sequence[Bytes],
    sizes: Sequence[int],
    packing: str | Sequence[str] = "two_bit",
    *,
    seed: int,
    offset: int,
    layer: int = 0,
    weights: Sequence[float] | None = None,
    clip: float | None = None,
    scales: tuple[Any, Any] | None = None,
    to: str | Sequence[str] | None = None,
    block: int | None = None,
    shards: int = 1,
    index: int | None = None,
) -> Bytes:
    """Section 6: the second hop. `packing` is the messages', `to` the result's (None: section 6's default)."""
    cuts: dict[str, Any] = {"block": block, "shards": shards, "index": index}
    names = _packings(packing, len(sizes))
    if to is None:
        target = ["two_bit" if name in COUNT_BITS else name for name in names]
    elif isinstance(to, str):
        target = ["float32" if name == "float32" else to for name in names]
    else:
        target = _packings(to, len(sizes))
    if [name == "float32" for name in target] != [name == "float32" for name in names]:
        raise ValueError("the float32 layers are others than the messages'")
    total = decode_sum(messages, sizes, packing, weights=weights, **cuts)
    for x in total:
        x[np.isnan(x)] = _canonical_nan(1)
    drawn = {"clip": clip, "seed": seed, "offset": offset, "layer": layer, "scales": scales}
    data = encode(total, packing=target, sizes=sizes, second_hop=True, **drawn, **cuts)
    before, after = (pieces(sizes, each, **cuts)[0] for each in (names, target))
    for p, q in zip(before, after, strict=True):
        if p.packing != "float32" and not all(np.isfinite(_scale_field(m, p)) for m in messages):
            _put(data, q, INF, np.zeros(q.nbytes, np.uint8))
    return data


# ------------------------------------------------------------------------------- validation (sections 5, 7)


def _canonical_codes(payload: Bytes, piece: Piece, workers: int) -> bool:
    """Sections 5 and 7: no invalid code, and unused bits and digits 0."""
    if piece.packing in COUNT_BITS:
        sums = unpack_counts(payload, piece.size, piece.packing)
        again = pack_counts(sums, piece.packing)
        return bool((np.abs(sums) <= workers).all() and (again == payload).all())
    digits = _digits(payload, piece.packing)
    invalid = digits == 2 if piece.packing == "two_bit" else payload > 242
    return not (invalid.any() or digits[piece.size :].any())


def _canonical_piece(data: Bytes, piece: Piece, workers: int) -> bool:
    s = _scale_field(data, piece)
    if piece.packing == "float32":
        return bool(s == 1)
    payload = data[piece.payload_at : piece.payload_at + piece.nbytes]
    if not _canonical_codes(payload, piece, workers):
        return False
    if s == 0 or np.isposinf(s):
        return not np.signbit(s) and not payload.any()
    return bool(np.isfinite(s) and s >= SMALLEST_SCALE)


def validate(
    data: Bytes,
    sizes: Sequence[int],
    packing: str | Sequence[str] = "two_bit",
    block: int | None = None,
    shards: int = 1,
    index: int | None = None,
    workers: int = 1,
) -> bool:
    """Sections 5 and 7: whether the bytes are a canonical message of the layout (and number of workers)."""
    plan, _, nbytes = pieces(sizes, packing, block, shards, index)
    if data.size != nbytes:
        return False
    gap = np.ones(nbytes, bool)
    for p in plan:
        gap[p.scale_at : p.scale_at + 4] = False
        gap[p.payload_at : p.payload_at + p.nbytes] = False
    return not data[gap].any() and all(_canonical_piece(data, p, workers) for p in plan)
