"""Tests of the reference itself: against known answers, exact rationals and loops over single elements."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference as ref

bits32 = st.integers(0, 2**32 - 1)
sizes_lists = st.lists(st.one_of(st.integers(0, 9), st.integers(0, 40000)), max_size=6)
every_packing = st.sampled_from(["two_bit", "base3", "float32", "counts4", "counts8", "counts16"])
MOST = {"counts4": 7, "counts8": 127, "counts16": 32767}


def f32(bits: int) -> np.float32:
    return np.uint32(bits).view(np.float32)


def bits_of(x: Any) -> int:
    return int(np.float32(x).view(np.uint32))


# ----------------------------------------------------------------------------------------- exact arithmetic


def slow_round32(x: Fraction) -> np.float32:
    """Return a non-zero rational rounded to nearest even float32, from the definition."""
    magnitude = abs(x)
    # The last place: 24 bits below the power of two above the magnitude (bit lengths give it or one less).
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length() - 24
    exponent = max(-149, exponent + (magnitude >= Fraction(2) ** (exponent + 24)))
    place = Fraction(2) ** exponent
    quotient, rest = divmod(magnitude, place)
    quotient += 2 * rest > place or (2 * rest == place and quotient % 2 == 1)
    value = quotient * place
    result = np.float32(np.inf) if value >= Fraction(2) ** 128 else np.float32(float(value))
    return -result if x < 0 else result


def slow_fma(a: np.float32, b: np.float32, c: np.float32) -> np.float32:
    """Return fma of finite operands through rationals."""
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if exact:
        return slow_round32(exact)
    # An exact zero has the sign of its parts where these agree, else it is +0.
    product_negative = np.signbit(a) != np.signbit(b)
    return np.float32(-0.0 if product_negative and np.signbit(c) else 0.0)


def random_float32(rng: np.random.Generator, n: int) -> ref.Float32s:
    x = rng.integers(0, 2**32, n, dtype=np.uint32)
    # No NaN and no infinity: the largest exponent becomes the one below.
    return np.where(x & 0x7F800000 == 0x7F800000, x & 0xFF7FFFFF, x).astype(np.uint32).view(np.float32)


def assert_fma(a: ref.Float32s, b: ref.Float32s, c: ref.Float32s) -> None:
    got = ref.fma32(a, b, c)
    want = np.array([slow_fma(*abc) for abc in zip(a, b, c, strict=True)], np.float32)
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


def test_fma_of_any_bits() -> None:
    rng = np.random.default_rng(1)
    assert_fma(*(random_float32(rng, 3000) for _ in range(3)))


def test_fma_where_product_and_addend_meet() -> None:
    rng = np.random.default_rng(2)
    a, b = random_float32(rng, 6000), random_float32(rng, 6000)
    a, b = (np.ldexp(np.frexp(v)[0], rng.integers(-70, 60, v.size)).astype(np.float32) for v in (a, b))
    apart = rng.integers(-50, 50, a.size)
    c = np.frexp(random_float32(rng, a.size))[0].astype(np.float64)
    with np.errstate(over="ignore"):
        c32 = np.ldexp(c, np.frexp(a)[1] + np.frexp(b)[1] + apart).astype(np.float32)
    assert_fma(a, b, np.where(np.isfinite(c32), c32, np.float32(1)))


def test_fma_of_sums_of_squares() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal(4000).astype(np.float32)
    total = (rng.random(4000) * 2.0 ** rng.integers(-30, 30, 4000)).astype(np.float32)
    assert_fma(x, x, total)


def test_fma_close_to_midpoints() -> None:
    """The cases a float64 sum rounds twice: the exact value a hair beside a midpoint of float32."""
    rng = np.random.default_rng(4)
    n = 4000
    # c has 24 bits; the product is half of c's last place, times 1, 1 + tiny or 1 - tiny.
    c = (rng.integers(2**23, 2**24, n) * rng.choice([-1, 1], n)).astype(np.float32)
    a = (2.0 ** rng.integers(-20, 20, n)).astype(np.float32)
    offset = rng.choice([-1, 0, 1], n) * 2.0**-23
    b = (rng.choice([-1, 1], n) * (1 + offset) / (2 * a)).astype(np.float32)
    assert_fma(a, b, c)
    # The product carries 48 bits, the last of them far below float64's half place of the sum.
    a = np.full(n, 1 + 2.0**-23, np.float32)
    b = (np.float32(0.5) * rng.choice([-1, 1], n) * (1 - 2.0**-23)).astype(np.float32)
    scale = 2.0 ** rng.integers(0, 12, n)
    assert_fma(a, b, (c * scale).astype(np.float32))


def test_fma_differs_from_a_double_rounding() -> None:
    """A case known to fail without rounding to odd: the tests above would see the difference."""
    # 2^24 + 2 + (1 - 2^-46): the float64 sum has 1 ulp = 2^-28, so it rounds up to the midpoint 2^24 + 3,
    # which float32 takes to the even 2^24 + 4; the exact value belongs to 2^24 + 2.
    a, b, c = np.float32(1 + 2.0**-23), np.float32(1 - 2.0**-23), np.float32(2.0**24 + 2)
    assert np.float32(float(a) * float(b) + float(c)) == 2.0**24 + 4
    assert ref.fma32(a, b, c) == 2.0**24 + 2 == slow_fma(a, b, c)


def test_fma_of_subnormals_and_at_the_ends() -> None:
    rng = np.random.default_rng(5)
    n = 2000
    small = rng.integers(0, 2**24, n, dtype=np.uint32).view(np.float32)
    near_one = (1 + rng.integers(-8, 8, n) * 2.0**-24).astype(np.float32)
    assert_fma(small, near_one, -small[::-1].copy())
    root = np.ldexp(rng.random(n) + 1, rng.integers(-76, -70, n)).astype(np.float32)
    assert_fma(root, root, small)
    big = np.ldexp(rng.random(n) + 1, rng.integers(62, 64, n)).astype(np.float32)
    assert_fma(big, big, np.full(n, -3e38, np.float32))
    top = np.full(4, f32(0x7F7FFFFF))
    # Exactly on, just below and above the bound where nearest even becomes infinity: top + 2^103.
    half = np.float32(2.0**52)
    factor = np.array([2.0**51, 2.0**51 * (1 - 2.0**-24), 2.0**51 * (1 + 2.0**-23), 2.0**50], np.float32)
    assert_fma(np.full(4, half), factor, top)


@pytest.mark.parametrize(
    ("a", "b", "c"),
    [(np.inf, 0, 1), (np.inf, 1, -np.inf), (np.nan, 1, 1), (1, 1, np.nan), (0, np.inf, np.inf)],
)
def test_fma_nan(a: float, b: float, c: float) -> None:
    assert np.isnan(ref.fma32(np.float32(a), np.float32(b), np.float32(c)))


def test_fma_infinity_and_zero_signs() -> None:
    inf, one, zero = np.float32(np.inf), np.float32(1), np.float32(0)
    assert ref.fma32(inf, -one, one) == -inf
    assert ref.fma32(one, one, inf) == inf
    assert bits_of(ref.fma32(-one, zero, -zero)) == 0x80000000
    assert bits_of(ref.fma32(-one, zero, zero)) == 0
    assert bits_of(ref.fma32(one, one, -one)) == 0


# --------------------------------------------------------------------------------------------------- dtypes


def test_bfloat16_is_that_of_ml_dtypes() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    finite = ~np.isnan(every.astype(np.float32))
    wide = ref.widen(every, "bfloat16")
    assert (wide[finite].view(np.uint32) == every.astype(np.float32)[finite].view(np.uint32)).all()
    assert (wide[~finite].view(np.uint32) == 0x7FC00000).all()
    back = ref.narrow(wide, "bfloat16")
    assert (back.view(np.uint16)[finite] == every.view(np.uint16)[finite]).all()
    assert (back.view(np.uint16)[~finite] == 0x7FC0).all()


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_narrowing_at_and_beside_every_midpoint(name: str) -> None:
    every = np.arange(2**16, dtype=np.uint16).view(ref.DTYPES[name])
    x = np.sort(ref.widen(every, name).astype(np.float64))
    x = x[np.isfinite(x)]
    middle = ((x[:-1] + x[1:]) / 2).astype(np.float32)
    up, down = np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(-np.inf))
    for at in (middle, up, down, random_float32(np.random.default_rng(6), 20000)):
        got = ref.narrow(at, name)
        with np.errstate(over="ignore"):
            want = at.astype(ref.DTYPES[name])
        assert (got.view(np.uint16) == want.view(np.uint16)).all()
    ends = np.array([x[-1] + (x[-1] - x[-2]) / 2], np.float32)
    assert np.isinf(ref.narrow(ends, name).astype(np.float32))


def test_float16_goes_round() -> None:
    every = np.arange(2**16, dtype=np.uint16)
    back = ref.narrow(ref.widen(every.view(np.float16), "float16"), "float16").view(np.uint16)
    nan = (every & 0x7FFF) > 0x7C00
    assert (back[~nan] == every[~nan]).all()
    assert (back[nan] == 0x7E00).all()


@pytest.mark.parametrize(
    ("name", "bits", "unsigned", "canonical"),
    [
        ("float16", [0x7C01, 0xFE01], np.uint16, 0x7E00),
        ("bfloat16", [0x7F81, 0xFFC1], np.uint16, 0x7FC0),
        ("float64", [0x7FF0000000000001, 0xFFF8000000000000], np.uint64, 0x7FF8000000000000),
    ],
)
def test_nan_that_changes_dtype(name: str, bits: list[int], unsigned: Any, canonical: int) -> None:
    x = np.array(bits, unsigned).view(ref.DTYPES[name])
    assert ref.widen(x, name).view(np.uint32).tolist() == [0x7FC00000] * 2
    assert ref.widen(x, name, signed_nan=True).view(np.uint32).tolist() == [0x7FC00000, 0xFFC00000]
    odd_nans = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert ref.narrow(odd_nans, name).view(unsigned).tolist() == [canonical] * 2
    assert ref.widen(odd_nans, "float32").view(np.uint32).tolist() == [0x7F800001, 0xFFFFFFFF]
    assert ref.narrow(odd_nans, "float32").view(np.uint32).tolist() == [0x7F800001, 0xFFFFFFFF]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_float64_rounds_to_nearest_even(x: float) -> None:
    if x:
        assert bits_of(ref.widen(np.array([x]), "float64")[0]) == bits_of(slow_round32(Fraction(x)))


# ------------------------------------------------------------------------------------------ scale and limit


def slow_statistics(x: ref.Float32s, center: bool) -> tuple[int, float, float]:
    """Section 2 element by element, fma through rationals; finite inputs without overflow only."""
    d = x - x[0] if center else x
    sums = {"Q": [0.0] * 256, "S": [0.0] * 256}
    for stripe in range(-(-x.size // 8192)):
        columns: dict[str, list[Any]] = {k: [np.float32(0)] * 128 for k in sums}
        for row in range(64):
            for col in range(128):
                e = stripe * 8192 + row * 128 + col
                if e < x.size:
                    columns["Q"][col] = slow_fma(d[e], d[e], columns["Q"][col])
                    columns["S"][col] = columns["S"][col] + d[e]
        for name, column in columns.items():
            for half in (64, 32, 16, 8, 4, 2, 1):
                for i in range(half):
                    column[i] = column[i] + column[i + half]
            sums[name][stripe % 256] += float(column[0])
    for bins in sums.values():
        for half in (128, 64, 32, 16, 8, 4, 2, 1):
            for i in range(half):
                bins[i] += bins[i + half]
    top = max(int(v) & 0x7FFFFFFF for v in x.view(np.uint32))
    return top, sums["Q"][0], sums["S"][0] if center else 0.0


@pytest.mark.parametrize("n", [1, 2, 3, 127, 128, 129, 1000, 8192, 8193, 16390])
@pytest.mark.parametrize("center", [False, True])
def test_statistics_against_the_loop(n: int, center: bool) -> None:
    rng = np.random.default_rng(n)
    x = (rng.standard_normal(n) * 2.0 ** rng.integers(-20, 20, n) + 3).astype(np.float32)
    assert ref.statistics(x, center=center) == slow_statistics(x, center)


def test_statistics_beyond_256_stripes() -> None:
    """The bins wrap round: stripe 256 comes after stripe 0 in bin 0."""
    x = np.zeros(258 * 8192, np.float32)
    values = np.array([1, 2.0**-40, 2.0**-26, 3], np.float32)
    for stripe, value in zip([0, 1, 256, 257], values, strict=True):
        x[stripe * 8192] = value
    q = [float(ref.fma32(v, v, np.float32(0))) for v in values]
    assert ref.statistics(x)[1] == (q[0] + q[2]) + (q[1] + q[3])
    # A single running sum would lose the second term against the first and the last alike, bins do not:
    x[257 * 8192] = 2.0**-40
    assert ref.statistics(x)[1] == 1 + (2.0**-52 + 2.0**-79)


def assert_pair(got: ref.Pair, scale: Any, limit: Any) -> None:
    assert [bits_of(v) for v in got] == [bits_of(scale), bits_of(limit)]


def test_scale_and_limit_by_hand() -> None:
    x = np.array([3, -4, 0, 0], np.float32)
    assert_pair(ref.scale_and_limit(x, clip=None), 4, np.inf)
    assert_pair(ref.scale_and_limit(x, clip=1.0), 2.5, 2.5)
    assert_pair(ref.scale_and_limit(x), 4, 6.25)
    mean = -0.25
    sigma = math.sqrt(25 / 4 - mean**2)
    assert ref.scale_and_limit(x, clip=1.0, center=True)[1] == np.float32(sigma)
    assert_pair(ref.scale_and_limit(np.full(1000, 0.1, np.float32), center=True), np.float32(0.1), np.inf)
    assert_pair(ref.scale_and_limit(np.zeros(0, np.float32)), 0, np.inf)
    assert_pair(ref.scale_and_limit(np.zeros(5, np.float32)), 0, np.inf)


def test_scale_edges() -> None:
    below = np.nextafter(np.float32(2.0**-60), np.float32(0))
    assert ref.scale_and_limit(np.array([2.0**-60], np.float32), clip=None)[0] == 2.0**-60
    assert bits_of(ref.scale_and_limit(np.array([-below], np.float32), clip=None)[0]) == 0
    assert_pair(ref.scale_and_limit(np.array([2.0**-60], np.float32), clip=0.5), 0, np.float32(2.0**-61))
    for bad in (np.nan, np.inf, -np.inf):
        for center in (False, True):
            x = np.array([1, bad, 2], np.float32)
            assert_pair(ref.scale_and_limit(x, center=center), np.inf, np.inf)
    huge = np.array([3e38, -3e38, 1], np.float32)
    assert_pair(ref.scale_and_limit(huge), np.float32(3e38), np.inf)
    assert_pair(ref.scale_and_limit(huge, center=True), np.float32(3e38), np.inf)
    assert ref.scale_and_limit(np.ones(3, np.float32), clip=1e-60)[1] == np.inf
    assert_pair(ref.scale_and_limit(np.ones(3, np.float32), clip=1e-40), 0, np.float32(1e-40))
    assert ref.scale_and_limit(np.ones(3, np.float32), clip=1e300)[1] == np.inf


@pytest.mark.parametrize(
    ("scale", "limit", "want"),
    [
        (1, 2, (1, 2)),
        (3e38, np.inf, (3e38, np.inf)),
        (2.0**-60, 1e-40, (2.0**-60, 1e-40)),
        (-0.0, 1, (0, 1)),
        (2.0**-61, 1, (0, 1)),
        (-(2.0**-70), 1, (np.inf, np.inf)),
        (-1, 1, (np.inf, np.inf)),
        (np.nan, 1, (np.inf, np.inf)),
        (np.inf, 1, (np.inf, np.inf)),
        (1, np.nan, (np.inf, np.inf)),
        (1, -1, (np.inf, np.inf)),
        (1, 0, (np.inf, np.inf)),
        (1, -0.0, (np.inf, np.inf)),
        (0, 0, (np.inf, np.inf)),
    ],
)
def test_passed_scale_and_limit(scale: float, limit: float, want: tuple[float, float]) -> None:
    assert_pair(ref.passed_scale_and_limit(scale, limit), *want)


# ---------------------------------------------------------------------------------------------- random bits


@pytest.mark.parametrize(
    ("counter", "key", "want"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter: list[int], key: list[int], want: list[int]) -> None:
    """The three vectors that Random123 publishes for philox4x32 with 10 rounds."""
    got = ref.philox4x32_10(np.array(counter, np.uint32), np.array(key, np.uint32))
    assert got.tolist() == want


def slow_u(e: int, seed: int, offset: int, word: int) -> int:
    """Section 3 for one element, in plain integers."""
    row, col = divmod(e, 128)
    counter = [32 * (row // 4) + col // 4, word, offset % 2**32, offset // 2**32]
    w = ref.philox4x32_10(np.array(counter, np.uint32), np.array([seed % 2**32, seed // 2**32], np.uint32))
    i, j = row % 4, col % 4
    own = int(w[i]).to_bytes(4, "little")
    y = (int(w[(i + 1) % 4]) ^ int(w[(i + 2) % 4])).to_bytes(4, "little")
    parts = [own[j], y[j], y[(j + 1) % 4], y[(j + 2) % 4]]
    return int.from_bytes(bytes(parts), "big") >> 1


@given(
    first=st.integers(0, 2**36 - 3000),
    n=st.integers(1, 1500),
    seed=st.integers(0, 2**64 - 1),
    offset=st.integers(0, 2**64 - 1),
    layer=st.integers(0, 2**31 - 1),
    hop=st.booleans(),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_uniforms_against_the_definition(
    first: int, n: int, seed: int, offset: int, layer: int, hop: bool, data: st.DataObject
) -> None:
    u = ref.uniforms(n, seed=seed, offset=offset, layer=layer, first=first, second_hop=hop)
    assert u.shape == (n,)
    assert u.dtype == np.uint32
    assert int(u.max()) < 2**31
    for k in data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=4)):
        assert u[k] == slow_u(first + k, seed, offset, layer + hop * 2**31)


def test_seed_and_offset_are_taken_mod_2_64() -> None:
    a = ref.uniforms(100, seed=-1, offset=-(2**63), layer=3)
    assert (a == ref.uniforms(100, seed=2**64 - 1, offset=2**63, layer=3)).all()
    assert (a != ref.uniforms(100, seed=2**64 - 1, offset=2**63, layer=4)).any()


def test_uniforms_look_uniform() -> None:
    """Mean and variance of 10^6 u within 6 standard errors (deterministic; a map of 24 bits would pass)."""
    n = 10**6
    u = ref.uniforms(n, seed=1, offset=2, layer=3) / 2**31
    assert abs(u.mean() - 0.5) < 6 * math.sqrt(1 / 12 / n)
    assert abs(((u - 0.5) ** 2).mean() - 1 / 12) < 6 * math.sqrt(1 / 180 / n)


# ------------------------------------------------------------------------------------------------ ternarize


@given(st.integers(bits_of(2.0**-60), 0x7F7FFFFF))
def test_inv_reaches_two_31(scale_bits: int) -> None:
    """An element as large as the scale always fires, and inv is at most one float above the division's."""
    s = f32(scale_bits)
    inv, B = ref.inv_and_bound(s, np.float32(np.inf))
    assert B == 2.0**31
    assert ref.thresholds(np.array([s, -s]), s, np.float32(np.inf)).tolist() == [2**31] * 2
    exact = Fraction(2) ** 31 / Fraction(float(s))
    assert abs(Fraction(float(inv)) / exact - 1) <= Fraction(3, 2) * Fraction(2) ** -23


def test_inv_needs_the_next_float_up() -> None:
    s = np.linspace(1, 2, 4097, dtype=np.float32)[:-1]
    plain = np.float32(2.0**31) / s
    short = s * plain < np.float32(2.0**31)
    assert short.any()
    assert not short.all()
    for value, quotient, is_short in zip(s, plain, short, strict=True):
        inv, _ = ref.inv_and_bound(value, np.float32(np.inf))
        assert bits_of(inv) == bits_of(quotient) + is_short


@given(x=bits32, scale=st.integers(bits_of(2.0**-60), 0x7F7FFFFF), limit=st.integers(1, 0x7F800000))
@settings(max_examples=400)
def test_threshold_is_the_probability(x: int, scale: int, limit: int) -> None:
    """T / 2^31 is min(|x|, limit, s) / s to 2^-22 relative + 2^-31."""
    value, s, m = f32(x), f32(scale), f32(limit)
    T = int(ref.thresholds(np.array([value]), s, m)[0])
    assert 0 <= T <= 2**31
    if np.isnan(value):
        assert int(ref.inv_and_bound(s, m)[1]) == T
        return
    magnitude = min(abs(float(value)), float(m), float(s))
    exact = Fraction(magnitude) / Fraction(float(s))
    assert abs(Fraction(T, 2**31) - exact) <= exact * Fraction(2) ** -22 + Fraction(2) ** -31


def test_zero_and_poisoned_layers_never_fire() -> None:
    x = np.array([0, 1, -1, np.inf, np.nan], np.float32)
    for pair in ((np.float32(0), np.float32(1)), (np.float32(np.inf), np.float32(np.inf))):
        assert ref.thresholds(x, *pair).tolist() == [0] * 5
        assert ref.trits(x, *pair, np.zeros(5, np.uint32)).tolist() == [0] * 5


def test_nan_and_infinity_under_a_passed_scale() -> None:
    x = np.array([np.nan, -np.nan, np.inf, -np.inf], np.float32)
    assert np.signbit(x).tolist() == [False, True, False, True]
    last = np.full(4, 2**31 - 1, np.uint32)
    assert ref.trits(x, np.float32(1), np.float32(np.inf), last).tolist() == [1, -1, 1, -1]
    assert ref.thresholds(x, np.float32(2), np.float32(0.5)).tolist() == [2**29] * 4


def test_ternary_layer_comes_back_unchanged() -> None:
    rng = np.random.default_rng(7)
    for s in rng.random(50).astype(np.float32) * np.float32(3):
        x = rng.integers(-1, 2, 3001).astype(np.float32) * s
        x[0] = s
        data = ref.encode([x], clip=None, seed=9)
        assert (ref.decode(data, [x.size])[0] == x).all()


def test_mean_and_second_moment() -> None:
    """E[q] = g and E|q|^2 = s |g|_1 over 200 seeds, each within 5 standard errors."""
    rng = np.random.default_rng(8)
    g = rng.standard_normal(5000).astype(np.float32)
    s = float(ref.scale_and_limit(g, clip=None)[0])
    runs = 200
    q = np.array([ref.decode(ref.encode([g], clip=None, seed=k), [g.size])[0] for k in range(runs)], float)
    p = np.abs(g.astype(float)) / s
    error = (q.mean(axis=0) - g).sum()
    assert abs(error) < 5 * s * math.sqrt((p * (1 - p)).sum() / runs)
    second = (q**2).sum(axis=1).mean() - s * np.abs(g.astype(float)).sum()
    assert abs(second) < 5 * s**2 * math.sqrt((p * (1 - p)).sum() / runs)


# -------------------------------------------------------------------------------------------------- packing


#: Rows of a tile, and what a row's place value is a power of; counts of 8 bits and more are tiles of one row.
TILES = {"two_bit": (4, 4), "base3": (5, 3), "counts4": (2, 16), "counts8": (1, 256), "counts16": (1, 65536)}


def slow_pack(values: list[int], packing: str) -> bytes:
    """Section 5 element by element."""
    rows, base = TILES[packing]
    whole = len(values) // (128 * rows)
    out = [0] * -(-len(values) // rows)
    for e, t in enumerate(values):
        tile, i = divmod(e, 128 * rows)
        q = min(128 * rows, len(values) - tile * 128 * rows)
        columns = 128 if tile < whole else -(-q // rows)
        # Two's complement, and base 3's digit 2 for -1.
        out[tile * 128 + i % columns] += t % base * base ** (i // columns)
    return b"".join(value.to_bytes(2 if packing == "counts16" else 1, "little") for value in out)


@pytest.mark.parametrize("packing", TILES)
@pytest.mark.parametrize(
    "n",
    [*range(24), 127, 128, 129, 255, 256, 257, 509, 511, 512, 513, 639, 640, 641, 1023, 1280, 2559, 2560, 2561, 3333],
)
def test_pack_against_the_loop(packing: str, n: int) -> None:
    most = MOST.get(packing, 1)
    t = np.random.default_rng(n).integers(-most, most + 1, n)
    if packing in MOST:
        t[:1] = -most - 1
        payload = ref.pack_counts(t, packing)
        unpacked = ref.unpack_counts(payload, n, packing)
    else:
        payload = ref.pack(t.astype(np.int8), packing)
        unpacked = ref.unpack(payload, n, packing)
    assert payload.size == ref.payload_nbytes(n, packing)
    assert payload.tobytes() == slow_pack(t.tolist(), packing)
    assert (unpacked == t).all()


@pytest.mark.parametrize("packing", MOST)
def test_counts_are_taken_modulo_two_to_the_bits(packing: str) -> None:
    most = MOST[packing]
    for value, want in ((most + 1, -most - 1), (most + 2, -most), (-most - 2, most), (2 * most + 2, 0)):
        payload = ref.pack_counts(np.full(3, value), packing)
        assert (ref.unpack_counts(payload, 3, packing) == want).all()
    with pytest.raises(ValueError, match="bytes for 3 elements"):
        ref.unpack_counts(payload[:-1], 3, packing)


def test_the_narrowest_packing_holds_the_workers() -> None:
    names = {1: "counts4", 7: "counts4", 8: "counts8", 127: "counts8", 128: "counts16", 32767: "counts16"}
    assert {workers: ref.counts_packing(workers) for workers in names} == names
    for workers in (0, -1, 32768):
        with pytest.raises(ValueError, match="workers"):
            ref.counts_packing(workers)


def test_pack_takes_signs() -> None:
    assert (ref.unpack(ref.pack(np.array([-128, 127, 0, 5], np.int8), "base3"), 4, "base3") == [-1, 1, 0, 1]).all()


def test_unpack_is_total() -> None:
    every = np.arange(256, dtype=np.uint8)
    two_bit = ref.unpack(every, 1024, "two_bit").reshape(2, 4, 128)
    base3 = ref.unpack(every, 1280, "base3").reshape(2, 5, 128)
    for b in range(256):
        assert two_bit[b // 128, :, b % 128].tolist() == [(0, 1, 0, -1)[b >> 2 * k & 3] for k in range(4)]
        assert base3[b // 128, :, b % 128].tolist() == [(0, 1, -1)[b // 3**k % 3] for k in range(5)]
    with pytest.raises(ValueError, match="3 bytes"):
        ref.unpack(every[:3], 16, "two_bit")


# ------------------------------------------------------------------------------------------------- geometry


@given(
    sizes=sizes_lists,
    packing=st.lists(every_packing, min_size=6, max_size=6),
    block=st.sampled_from([None, 2560, 5120, 12800]),
    shards=st.integers(1, 9),
)
@settings(max_examples=150, deadline=None)
def test_geometry(sizes: list[int], packing: list[str], block: int | None, shards: int) -> None:
    packings = packing[: len(sizes)]
    plan, groups, nbytes = ref.pieces(sizes, packings, block, shards)
    # Elements: every layer's once, in order, cut at multiples of a unit; groups in order, none empty.
    for layer, size in enumerate(sizes):
        own = [p for p in plan if p.layer == layer]
        assert own[0].first == 0
        assert own[-1].first + own[-1].size == size
        assert all(a.first + a.size == b.first and b.first % 2560 == 0 for a, b in itertools.pairwise(own))
        assert all(p.size > 0 for p in own) or (size == 0 and len(own) == 1)
        if block is not None:
            assert all(p.first // block == max(p.first, p.first + p.size - 1) // block for p in own)
    assert sorted({p.group for p in plan}) == list(range(groups))
    assert [p.group for p in plan] == sorted(p.group for p in plan)
    # Bytes: N equal parts; in each the scale fields lie at its start, payloads aligned, in order, apart.
    assert nbytes % (16 * shards) == 0
    length = nbytes // shards
    used = np.zeros(nbytes, int)
    for p in plan:
        used[p.scale_at : p.scale_at + 4] += 1
        used[p.payload_at : p.payload_at + p.nbytes] += 1
        assert p.payload_at % 16 == 0
        per_byte = {"two_bit": 4, "base3": 5, "counts4": 2, "counts8": 1, "counts16": 0.5, "float32": 0.25}
        assert p.nbytes == math.ceil(p.size / per_byte[p.packing])
    assert used.max(initial=0) <= 1
    tails = []
    for shard in range(shards):
        own = [p for p in plan if p.scale_at // length == shard] if length else []
        assert [p.scale_at for p in own] == [shard * length + 4 * k for k in range(len(own))]
        at = shard * length + 4 * len(own)
        for p in own:
            assert 0 <= p.payload_at - at < 16
            at = p.payload_at + p.nbytes
        tails.append((shard + 1) * length - at)
        alone, count, bytes_alone = ref.pieces(sizes, packings, block, shards, shard)
        assert bytes_alone == length
        assert count == len(own)
        start = shard * length
        assert alone == [
            p._replace(group=k, scale_at=p.scale_at - start, payload_at=p.payload_at - start) for k, p in enumerate(own)
        ]
    assert min(tails) < 16 or (length == 16 and shards > 1)
    # Balance: apart from its last unit, no shard holds more weight than its share.
    weight = [p.size * (16 if p.packing == "float32" else 1) for p in plan]
    for shard in range(shards):
        own_weight = sum(w for w, p in zip(weight, plan, strict=True) if length and p.scale_at // length == shard)
        assert own_weight <= sum(weight) / shards + 16 * 2560


def test_geometry_by_hand() -> None:
    assert ref.pieces([], "two_bit") == ([], 0, 0)
    assert ref.pieces([], "two_bit", None, 3) == ([], 0, 48)
    assert ref.pieces([0]) == ([ref.Piece(0, 0, 0, "two_bit", 0, 0, 16, 0)], 1, 16)
    plan, groups, nbytes = ref.pieces([5, 0, 70], ["two_bit", "base3", "float32"])
    assert plan == [
        ref.Piece(0, 0, 5, "two_bit", 0, 0, 16, 2),
        ref.Piece(1, 0, 0, "base3", 1, 4, 32, 0),
        ref.Piece(2, 0, 70, "float32", 2, 8, 32, 280),
    ]
    assert (groups, nbytes) == (3, 320)
    # Units 2560, 2560, 880 of layer 0 and 100 of layer 1; total 6100, shares of 3050.
    plan, groups, nbytes = ref.pieces([6000, 100], "two_bit", None, 2)
    assert plan == [
        ref.Piece(0, 0, 5120, "two_bit", 0, 0, 16, 1280),
        ref.Piece(0, 5120, 880, "two_bit", 0, 1296, 1296 + 16, 220),
        ref.Piece(1, 0, 100, "two_bit", 1, 1300, 1296 + 240, 25),
    ]
    assert (groups, nbytes) == (2, 2 * 1296)


# ------------------------------------------------------------------------------------------- whole messages


def bucket(rng: np.random.Generator, sizes: list[int], dtype: str) -> list[ref.Array]:
    return [ref.narrow(rng.standard_normal(n).astype(np.float32), dtype) for n in sizes]


def unpadded(layers: list[ref.Array], packing: Any, seed: int, layer: int, scales: Any) -> list[ref.Array]:
    """Each layer's trits times scale (or the values of a float32 layer), without any message."""
    out = []
    for k, x in enumerate(layers):
        x32 = ref.widen(x, x.dtype.name)
        if packing[k] == "float32":
            out.append(x32)
            continue
        u = ref.uniforms(x.size, seed=seed, offset=0, layer=layer + k)
        s, limit = scales[0][k], scales[1][k]
        out.append(ref.trits(x32, s, limit, u).astype(np.float32) * s)
    return out


@given(
    sizes=sizes_lists,
    packing=st.lists(st.sampled_from(["two_bit", "base3", "float32"]), min_size=6, max_size=6),
    shards=st.integers(1, 5),
    dtype=st.sampled_from(["float32", "float16", "bfloat16", "float64"]),
    seed=st.integers(0, 2**64 - 1),
)
@settings(max_examples=40, deadline=None)
def test_round_trip(sizes: list[int], packing: list[str], shards: int, dtype: str, seed: int) -> None:
    packings = packing[: len(sizes)]
    layers = bucket(np.random.default_rng(seed), sizes, dtype)
    data = ref.encode(layers, packing=packings, seed=seed, layer=5, shards=shards)
    assert ref.validate(data, sizes, packings, None, shards)
    decoded = ref.decode(data, sizes, packings, shards=shards)
    want = unpadded(layers, packings, seed, 5, ref.scales(layers))
    for got, expected in zip(decoded, want, strict=True):
        assert (got == expected).all()
    # Encoding what was decoded changes nothing (clipping off), but for layers where nothing fired.
    again = ref.encode(decoded, packing=packings, seed=seed + 1, clip=None, shards=shards)
    for a, b in zip(ref.decode(again, sizes, packings, shards=shards), decoded, strict=True):
        assert (a == b).all()


@pytest.mark.parametrize("block", [None, 2560])
def test_shards_are_slices(block: int | None) -> None:
    """A shard's message, from its pieces and their scales, is that part of the whole message."""
    sizes = [9000, 0, 3, 30000]
    packings = ["two_bit", "two_bit", "float32", "base3"]
    layers = bucket(np.random.default_rng(9), sizes, "float32")
    layout = (packings, block, 4)
    whole = ref.encode(layers, packing=packings, block=block, shards=4, seed=3, layer=7)
    plan, _, nbytes = ref.pieces(sizes, *layout)
    decoded = ref.decode(whole, sizes, packings, block=block, shards=4)
    for index in range(4):
        own = [k for k, p in enumerate(plan) if p.scale_at // (nbytes // 4) == index]
        pieces = [ref.cut(layers, *layout)[k] for k in own]
        part = whole[index * nbytes // 4 : (index + 1) * nbytes // 4]
        scale, limit = ref.scales(layers, packing=packings, block=block)
        groups = [plan[k].group for k in own]
        data = ref.encode(
            pieces, packing=packings, block=block, shards=4, index=index, sizes=sizes, seed=3, layer=7,
            scales=(scale[groups], limit[groups]),
        )  # fmt: skip
        assert (data == part).all()
        assert ref.validate(part, sizes, packings, block, 4, index)
        got = ref.decode(part, sizes, packings, block=block, shards=4, index=index)
        for a, k in zip(got, own, strict=True):
            p = plan[k]
            assert (a == decoded[p.layer][p.first : p.first + p.size]).all()


def test_packings_and_blocks_share_their_trits() -> None:
    x = bucket(np.random.default_rng(10), [10000], "float32")
    want = ref.decode(ref.encode(x, scales=([2], [1.5])), [10000])[0]
    other = ref.encode(x, packing="base3", scales=([2] * 4, [1.5] * 4), block=2560)
    assert (ref.decode(other, [10000], "base3", block=2560)[0] == want).all()


def test_poisoned_layer_decodes_to_nan() -> None:
    layers = [np.array([1, np.nan, 2], np.float32), np.ones(5, np.float32)]
    data = ref.encode(layers)
    assert data[:4].view("<f4") == np.inf
    assert not data[16:32].any()
    canonical = {"float32": (np.uint32, 0x7FC00000), "float16": (np.uint16, 0x7E00)}
    canonical |= {"bfloat16": (np.uint16, 0x7FC0), "float64": (np.uint64, 0x7FF8000000000000)}
    for dtype, (unsigned, bits) in canonical.items():
        first, second = ref.decode(data, [3, 5], dtype=dtype)
        assert first.view(unsigned).tolist() == [bits] * 3
        assert (second == np.ones(5)).all()
        first = ref.decode(data, [3, 5], out=[first, second])[0]
        assert first.view(unsigned).tolist() == [bits] * 3
    good = ref.encode([np.ones(3, np.float32), np.ones(5, np.float32)])
    for messages in ([data, good], [good, data]):
        total = ref.decode_sum(messages, [3, 5])
        assert total[0].view(np.uint32).tolist() == [0x7FC00000] * 3
        assert (total[1] == 2).all()


def test_decode_sum_is_a_chain_of_accumulates() -> None:
    rng = np.random.default_rng(11)
    sizes, packings = [700, 9], ["base3", "float32"]
    messages = [ref.encode(bucket(rng, sizes, "float32"), packing=packings, seed=k) for k in range(5)]
    total = [np.zeros(n, np.float32) for n in sizes]
    weights = [0.2, -1.0, 1 / 3, 1e-30, 7.0]
    for data, w in zip(messages, weights, strict=True):
        total = ref.decode(data, sizes, packings, weight=w, out=total)
    for a, b in zip(total, ref.decode_sum(messages, sizes, packings, weights=weights), strict=True):
        assert (a == b).all()
    once = ref.decode_sum(messages, sizes, packings, weights=weights, dtype="float16")
    assert all((a == ref.narrow(b, "float16")).all() for a, b in zip(once, total, strict=True))


def test_decode_weight() -> None:
    data = ref.encode([np.array([3, -3, 0], np.float32)], clip=None)
    tripled = ref.decode(data, [3], weight=-0.1)[0]
    ws = np.float32(-0.1) * np.float32(3)
    assert tripled.view(np.uint32).tolist() == [bits_of(v) for v in (ws, -ws, -0.0)]
    for bad in (np.nan, np.inf, 1e39):
        with pytest.raises(ValueError, match="finite"):
            ref.decode(data, [3], weight=bad)


def test_float32_layer_is_carried() -> None:
    bits = np.array([0x7F800001, 0xFFC12345, 0x80000000, 0x7F800000, 1], np.uint32)
    data = ref.encode([bits.view(np.float32)], packing="float32", scales=([np.nan], [0.0]))
    assert data[:4].view("<f4") == 1
    assert (ref.decode(data, [5], "float32")[0].view(np.uint32) == bits).all()
    half = ref.decode(data, [5], "float32", dtype="float16")[0].view(np.uint16)
    assert half.tolist() == [0x7E00, 0x7E00, 0x8000, 0x7C00, 0]


def test_clip() -> None:
    x = np.array([1, -100, np.nan, 3, -0.0, np.inf], np.float16)
    (out,) = ref.clip([x], scales=([9], [2.0004883]))
    assert out.view(np.uint16).tolist() == np.array([1, -2, np.nan, 2, -0.0, 2], np.float16).view(np.uint16).tolist()
    (same,) = ref.clip([x])
    assert (same.view(np.uint16) == x.view(np.uint16)).all()
    for bad in (np.nan, -1, 0):
        assert ref.clip([x], scales=([1], [bad]))[0].view(np.uint16).tolist() == [0x7E00] * 6
    wide = np.array([1 + 2.0**-40, 1e300, -7.0])
    assert ref.clip([wide], scales=([1], [4]))[0].tolist() == [1 + 2.0**-40, 4, -4]
    g = np.random.default_rng(12).standard_normal(1000).astype(np.float32)
    limit = ref.scale_and_limit(g, clip=1.0)[1]
    assert (ref.clip([g], clip=1.0)[0] == np.clip(g, -limit, limit)).all()


# -------------------------------------------------------------------------------------------- sums of trits


def shared(rng: np.random.Generator, sizes: list[int], workers: int, **layout: Any) -> list[ref.Message]:
    """Messages of so many workers, all of the scales 2 and 0.5 in turn, in every second one packed otherwise."""
    groups = ref.pieces(sizes, **layout)[1]
    scales = (np.tile(np.float32([2, 0.5]), groups)[:groups], np.full(groups, np.inf))
    messages = []
    for k in range(workers):
        names = ref._packings(layout.get("packing", "two_bit"), len(sizes))
        if k % 2:
            names = [{"two_bit": "base3", "base3": "two_bit"}.get(name, name) for name in names]
        data = ref.encode(bucket(rng, sizes, "float32"), scales=scales, seed=k, **{**layout, "packing": names})
        messages.append(ref.Message(data, names))
    return messages


@pytest.mark.parametrize("workers", [1, 2, 7, 8, 127, 128, 300])
def test_sum_trits_element_by_element(workers: int) -> None:
    sizes, packing = [700, 0, 3, 257], ["two_bit", "two_bit", "float32", "base3"]
    messages = shared(np.random.default_rng(workers), sizes, workers, packing=packing)
    total = ref.sum_trits(messages, sizes)
    assert total.workers == workers
    counts = ref.counts_packing(workers)
    assert total.packing == [counts, counts, "float32", counts]
    assert ref.validate(total.data, sizes, total.packing, workers=workers)
    decoded = [ref.decode(m.data, sizes, m.packing) for m in messages]
    for k, p in enumerate(ref.pieces(sizes, total.packing)[0]):
        field = total.data[p.scale_at : p.scale_at + 4].view("<f4")[0]
        payload = total.data[p.payload_at : p.payload_at + p.nbytes]
        if p.packing == "float32":
            want = np.float32([0] * p.size)
            for values in decoded:
                for e in range(p.size):
                    want[e] = slow_fma(np.float32(1), values[k][e], want[e])
            assert field == 1
            assert payload.tobytes() == want.tobytes()
        else:
            scale = (2, 0.5)[k % 2]
            sums = [sum(int(values[k][e] / scale) for values in decoded) for e in range(p.size)]
            assert field == scale
            assert payload.tobytes() == slow_pack(sums, counts)
            assert ref.decode(total.data, sizes, total.packing)[k].tolist() == [scale * t for t in sums]


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ([0x3F800000, 0x3F800000], 0x3F800000),
        ([0x3F800000, 0x3F800001], 0x7F800000),
        ([0x3F800000, 0xBF800000], 0x7F800000),
        ([0xBF800000, 0xBF800000], 0xBF800000),
        ([0x00000001, 0x00000001], 0x00000001),
        ([0x00000000, 0x00000000], 0x00000000),
        ([0x80000000, 0x80000000], 0x00000000),
        ([0x00000000, 0x80000000], 0x7F800000),
        ([0x00000000, 0x3F800000], 0x7F800000),
        ([0x7F800000, 0x7F800000], 0x7F800000),
        ([0xFF800000, 0xFF800000], 0x7F800000),
        ([0x7FC00000, 0x7FC00000], 0x7F800000),
        ([0x7F800000, 0x3F800000], 0x7F800000),
        ([0x7F7FFFFF, 0x7F7FFFFF], 0x7F7FFFFF),
    ],
)
@pytest.mark.parametrize("counts", [False, True])
def test_scale_fields_of_a_sum(fields: list[int], want: int, counts: bool) -> None:
    """Codes stay only under a finite field that is not 0; the neighbour is not touched."""
    sizes = [5, 5]
    x = [np.ones(5, np.float32)] * 2
    messages = []
    for bits in fields:
        message = ref.Message(ref.encode(x))
        message = ref.sum_trits([message], sizes) if counts else message
        message.data[:4] = np.array([bits], "<u4").view(np.uint8)
        messages.append(message)
    total = ref.sum_trits(messages, sizes)
    assert int(total.data[:4].view("<u4")[0]) == want
    first = np.isfinite(f32(want)) and want != 0
    assert total.data[16:19].tolist() == ([0x22, 0x22, 0x02] if first else [0, 0, 0])
    assert total.data[4:8].view("<f4") == 1
    assert total.data[32:35].tolist() == [0x22, 0x22, 0x02]
    assert not total.data[35:].any()


def test_a_sum_takes_any_codes() -> None:
    """Code 10 as 0, base-3 bytes mod 3, the lowest count as what it is; modulo 16 in the end."""
    field = np.array([1, 0, 0, 0], "<f4").view(np.uint8)

    def message(byte: int, packing: str, workers: int = 1) -> ref.Message:
        payload = np.zeros(16, np.uint8)
        payload[0] = byte
        return ref.Message(np.concatenate([field, payload]), packing, workers)

    for parts, want in (
        ([message(0b10, "two_bit"), message(0b01, "two_bit")], 0x1),
        ([message(0b11, "two_bit"), message(0b11, "two_bit")], 0xE),
        ([message(255, "base3"), message(254, "base3")], 0xF),  # 255 mod 3 = 0, 254 mod 3 = 2
        ([message(0x8, "counts4", 3)], 0x8),
        ([message(0x8, "counts4", 3), message(0xFF, "counts4", 3)], 0x7),
        ([message(0x7, "counts4", 3), message(0x01, "two_bit")], 0x8),
    ):
        assert ref.sum_trits(parts, [1]).data[16:].tolist() == [want] + [0] * 15
    low = ref.sum_trits([message(0x80, "counts8", 100), message(0x08, "counts4", 7)], [1])
    assert low.packing == ["counts8"]
    assert low.data[16] == 0x78
    wide = ref.sum_trits([message(0x80, "counts8", 100), message(0x80, "counts8", 100)], [1])
    assert wide.data[16:18].view("<i2") == -256


@pytest.mark.parametrize("cuts", [{}, {"block": 2560}, {"shards": 3}, {"block": 2560, "shards": 2, "index": 1}])
def test_sums_are_order_free(cuts: dict[str, Any]) -> None:
    rng = np.random.default_rng(21)
    sizes = [6000, 0, 33, 2561]
    layout = {key: value for key, value in cuts.items() if key != "index"}
    messages = shared(rng, sizes, 20, **layout)
    if "index" in cuts:
        length = ref.pieces(sizes, **layout)[2] // 2
        messages = [m._replace(data=m.data[length:].copy()) for m in messages]
    # Worker 3 has another scale in the first piece, worker 5 is poisoned in the last.
    for worker, k, field in ((3, 0, 3), (5, -1, np.inf)):
        piece = ref.pieces(sizes, messages[worker].packing, **cuts)[0][k]
        ref._put(messages[worker].data, piece, field, np.zeros(piece.nbytes, np.uint8))
    want = ref.sum_trits(messages, sizes, **cuts)
    assert ref.validate(want.data, sizes, want.packing, **cuts, workers=20)
    assert np.isinf(ref._scale_field(want.data, ref.pieces(sizes, want.packing, **cuts)[0][0]))
    for _ in range(5):
        parts = [messages[k] for k in rng.permutation(20)]
        while len(parts) > 1:
            take = int(rng.integers(1, 5))
            parts = [*parts[take:], ref.sum_trits(parts[:take], sizes, **cuts)]
        assert parts[0].workers == 20
        assert parts[0].data.tobytes() == want.data.tobytes()


def test_a_sum_of_shards_is_a_shard_of_the_sum() -> None:
    sizes, packing = [9000, 4, 30000], ["two_bit", "float32", "base3"]
    messages = shared(np.random.default_rng(22), sizes, 9, packing=packing, shards=4)
    whole = ref.sum_trits(messages, sizes, shards=4)
    parts = []
    for index in range(4):
        own = [m._replace(data=m.data.reshape(4, -1)[index]) for m in messages]
        parts.append(ref.sum_trits(own, sizes, shards=4, index=index).data)
    assert np.concatenate(parts).tobytes() == whole.data.tobytes()


def test_a_sum_of_too_many_workers() -> None:
    message = ref.sum_trits([ref.Message(ref.encode([np.ones(1, np.float32)]))], [1])
    most = ref.sum_trits([message._replace(workers=32766), message], [1])
    assert most.workers == 32767
    with pytest.raises(ValueError, match="32768 workers"):
        ref.sum_trits([most, message], [1])


# ---------------------------------------------------------------------------------------------- second hops


@pytest.mark.parametrize("to", ["two_bit", "base3", None])
@pytest.mark.parametrize("passed", [False, True])
def test_repack_element_by_element(to: str | None, passed: bool) -> None:
    """Sum through rationals, limit and T by their definitions, u with bit 31 of the layer word set."""
    rng = np.random.default_rng(23)
    sizes = [600, 40]
    weights = [0.3, -0.7, 1 / 3]
    messages = [ref.encode(bucket(rng, sizes, "float32"), packing="base3", seed=k) for k in range(3)]
    decoded = [ref.decode(m, sizes, "base3") for m in messages]
    fields = [m[:8].view("<f4") for m in messages]
    scales = (np.float32([1.25, 0.5]), np.float32([0.75, np.inf])) if passed else None
    drawn = {"seed": 2**63 + 5, "offset": 2**40 + 3, "layer": 2**31 - 2}
    data = ref.repack(messages, sizes, "base3", weights=weights, clip=1.5, scales=scales, to=to, **drawn)
    packing = to or "base3"
    assert ref.validate(data, sizes, packing)
    for k, n in enumerate(sizes):
        x = np.zeros(n, np.float32)
        for weight, field, layers in zip(weights, fields, decoded, strict=True):
            ws = slow_round32(Fraction(float(np.float32(weight))) * Fraction(float(field[k])))
            for e in range(n):
                t = np.sign(layers[k][e])
                x[e] = slow_fma(ws, t, x[e])
        if scales is None:
            limit = np.float32(1.5 * math.sqrt(slow_statistics(x, False)[1] / n))
            scale = min(np.abs(x).max(), limit)
        else:
            scale, limit = scales[0][k], scales[1][k]
        assert data[4 * k : 4 * k + 4].view("<f4") == scale
        inv, B = ref.inv_and_bound(scale, limit)
        got = ref.decode(data, sizes, packing)[k]
        for e in range(n):
            T = int(min(np.abs(x[e]) * inv, B))
            fires = slow_u(e, drawn["seed"], drawn["offset"], drawn["layer"] + k + 2**31) < T
            assert got[e] == fires * np.sign(x[e]) * scale


def test_repack_of_counts_is_that_of_the_trits() -> None:
    """Scales 2 and 0.5, weights a power of two: the sums are exact either way."""
    sizes, packing = [700, 3, 50], ["two_bit", "float32", "two_bit"]
    messages = shared(np.random.default_rng(24), sizes, 9, packing=packing)
    mates = [m for m in messages if m.packing == packing]
    total = ref.sum_trits(mates, sizes)
    drawn = {"seed": 1, "offset": 2, "clip": 2.5}
    want = ref.repack([m.data for m in mates], sizes, packing, weights=[0.25] * 5, **drawn)
    # The sum of the float32 layer is rounded elsewhere: put what the other has.
    got = ref.repack([total.data], sizes, total.packing, weights=[0.25], **drawn)
    assert ref.validate(got, sizes, packing)
    at = ref.pieces(sizes, packing)[0][1]
    assert got[: at.payload_at].tobytes() == want[: at.payload_at].tobytes()
    assert got[at.payload_at + 16 :].tobytes() == want[at.payload_at + 16 :].tobytes()
    again = ref.repack([total.data, total.data], sizes, total.packing, to="base3", weights=[0.125] * 2, **drawn)
    decoded = ref.decode(again, sizes, ["base3", "float32", "base3"]), ref.decode(got, sizes, packing)
    for a, b in zip(*decoded, strict=True):
        assert (a == b).all()


def test_repack_keeps_the_float32_layers() -> None:
    sizes, packing = [5, 4], ["two_bit", "float32"]
    values = np.float32([1, -0.0, np.inf, 3])
    data = ref.encode([np.ones(5, np.float32), values], packing=packing)
    for to in (None, "base3", ["base3", "float32"]):
        again = ref.repack([data, data], sizes, packing, seed=0, offset=0, weights=[1, -0.5], to=to)
        first, second = ref.decode(again, sizes, ["two_bit" if to is None else "base3", "float32"])
        assert (first == 0.5).all()
        assert second[[0, 1, 3]].view(np.uint32).tolist() == [bits_of(v) for v in (0.5, 0.0, 1.5)]
        assert np.isnan(second[2])
    for to in (["two_bit", "base3"], ["float32", "float32"], "float32"):
        with pytest.raises(ValueError, match="float32 layers"):
            ref.repack([data], sizes, packing, seed=0, offset=0, to=to)


@pytest.mark.parametrize("field", [np.inf, -np.inf, np.nan])
def test_repack_of_poisoned_pieces(field: float) -> None:
    """Measured scales poison the group, passed ones the piece alone."""
    sizes = [9000, 30]
    layers = bucket(np.random.default_rng(25), sizes, "float32")
    good = ref.encode(layers, shards=2)
    bad = good.copy()
    plan = ref.pieces(sizes, shards=2)[0]
    assert [(p.layer, p.group) for p in plan] == [(0, 0), (0, 0), (1, 1)]
    bad[plan[1].scale_at : plan[1].scale_at + 4] = np.array([field], "<f4").view(np.uint8)
    for messages in ([good, bad], [bad, good], [bad]):
        for scales, poisoned in ((None, [True, True, False]), (([0, 1], [1, 1]), [False, True, False])):
            data = ref.repack(messages, sizes, seed=3, offset=4, scales=scales, shards=2)
            assert ref.validate(data, sizes, shards=2)
            assert [bool(np.isposinf(ref._scale_field(data, p))) for p in plan] == poisoned
    # An empty piece has no element to show it.
    empty = ref.encode([np.zeros(0, np.float32)])
    assert ref.repack([empty], [0], seed=3, offset=4)[:4].tobytes() == bytes(4)
    empty[:4] = np.array([field], "<f4").view(np.uint8)
    assert np.isposinf(ref.repack([empty], [0], seed=3, offset=4)[:4].view("<f4"))
    # By itself a shard has its pieces to measure: another scale for the same layer.
    half = good.size // 2
    measured = [
        ref.repack([good[k * half : (k + 1) * half]], sizes, seed=3, offset=4, shards=2, index=k, clip=1.0)
        for k in range(2)
    ]
    assert measured[0][:4].tobytes() != measured[1][:4].tobytes()


def test_a_nan_of_the_sum_has_no_sign() -> None:
    """fl(weight * s) overflows, and infinity times t = 0 is NaN with the machine's sign."""
    data = ref.encode([np.float32([0, 0, 3e38, -3e38])], clip=None)
    scales = ([1.0], [0.5])
    for weight in (100.0, -100.0):
        fired = np.zeros(4, int)
        for seed in range(64):
            again = ref.repack([data], [4], seed=seed, offset=0, weights=[weight], scales=scales)
            fired += ref.decode(again, [4])[0].astype(int)
        # P = 1/2 each: 64 elements that all stay 0, or change their sign, have a probability of 2^-64 each.
        assert (np.sign(fired) == [1, 1, np.sign(weight), -np.sign(weight)]).all()
        assert (np.abs(fired) < 64).all()
    assert np.isinf(ref.repack([data], [4], seed=0, offset=0, weights=[100.0])[:4].view("<f4"))


# ----------------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize("packing", ["two_bit", "base3"])
@pytest.mark.parametrize("n", [1, 6, 130, 511, 700])
def test_validate_knows_every_change_of_the_last_byte(packing: str, n: int) -> None:
    """A changed payload byte is canonical exactly if it is what some other trits give."""
    x = bucket(np.random.default_rng(n), [n], "float32")
    data = ref.encode(x, packing=packing)
    plan, _, _ = ref.pieces([n], packing)
    at = plan[0].payload_at + plan[0].nbytes - 1
    for b in range(256):
        data[at] = b
        payload = data[plan[0].payload_at : at + 1]
        again = ref.pack(ref.unpack(payload, n, packing), packing)
        assert ref.validate(data, [n], packing) == (again == payload).all()


@pytest.mark.parametrize("workers", [1, 6, 7, 8, 126, 127, 128, 300])
@pytest.mark.parametrize("n", [1, 2, 257, 300])
def test_validate_counts(workers: int, n: int) -> None:
    """Every value of a code in the last element: within +-workers; and of the unused bits: 0."""
    packing = ref.counts_packing(workers)
    data = np.zeros(ref.pieces([n], packing)[2], np.uint8)
    data[:4] = np.float32([1]).view(np.uint8)
    end = 16 + ref.payload_nbytes(n, packing)
    most = MOST[packing]
    for value in {*range(-most - 1, most + 1)} if most < 200 else (-32768, -301, -300, -1, 0, 299, 300, 301, 32767):
        sums = np.zeros(n, np.int64)
        sums[-1] = value
        data[16:end] = ref.pack_counts(sums, packing)
        assert ref.validate(data, [n], packing, workers=workers) == (abs(value) <= workers)
    data[16:end] = 0
    if packing == "counts4" and n % 2:
        data[end - 1] |= 0x10
        assert not ref.validate(data, [n], packing, workers=workers)


@pytest.mark.parametrize(
    ("scale", "fired", "want"),
    [
        (1.0, True, True),
        (2.0**-60, True, True),
        (3.4e38, True, True),
        (2.0**-60 * (1 - 2.0**-24), True, False),
        (1e-45, False, False),
        (0.0, False, True),
        (0.0, True, False),
        (-0.0, False, False),
        (np.inf, False, True),
        (np.inf, True, False),
        (-np.inf, False, False),
        (np.nan, False, False),
        (-1.0, True, False),
    ],
)
def test_validate_scales(scale: float, fired: bool, want: bool) -> None:
    data = ref.encode([np.full(5, fired, np.float32)])
    counts = ref.sum_trits([ref.Message(data)] * 200, [5])
    for message in (data, counts.data):
        message[:4] = np.array([scale], "<f4").view(np.uint8)
    assert ref.validate(data, [5]) is want
    assert ref.validate(counts.data, [5], counts.packing, workers=200) is want


def test_validate_gaps_lengths_and_float32_scale() -> None:
    sizes, packings = [5, 7], ["two_bit", "float32"]
    data = ref.encode(bucket(np.random.default_rng(13), sizes, "float32"), packing=packings)
    assert ref.validate(data, sizes, packings)
    assert not ref.validate(data[:-16], sizes, packings)
    assert not ref.validate(np.append(data, np.zeros(16, np.uint8)), sizes, packings)
    used = set(range(8)) | {16, 17} | set(range(32, 60))
    for at in set(range(data.size)) - used:
        bad = data.copy()
        bad[at] = 1
        assert not ref.validate(bad, sizes, packings)
    bad = data.copy()
    bad[4] ^= 1
    assert not ref.validate(bad, sizes, packings)
