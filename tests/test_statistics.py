"""Statistics of the random bits and of what is quantised with them.

False alarms. Seeds are fixed, so each test passes or fails once and for all; the rates below say how likely a
right implementation was to be unlucky with them. At most `CLAIMS` p-values are computed, each two-sided and
compared with `ALPHA` = `OVERALL` / `CLAIMS` (Bonferroni): a right implementation fails anywhere with a
probability of at most 1e-6. The p-values of counts are exact binomial ones; the others are normal or
chi-square approximations with thousands of expected counts. Every kind of test also has a negative control: a
defect that the very same test must find, at the same `ALPHA`.

Exact claims. What no sample can show is computed: which bits are shared (ranks over GF(2)), the covariance
inside a word (all states of words with smaller bytes, then a formula checked against that enumeration and
evaluated at the real width), and the threshold at which an element fires. They take the 128 bits of a Philox
block for uniform and independent, and add nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

import reference
import terngrad_kernels as tk
from terngrad_kernels import _core

OVERALL = 1e-6
CLAIMS = 400
ALPHA = OVERALL / CLAIMS

Words = NDArray[np.uint32]

_claims = 0


@pytest.fixture(scope="module", autouse=True)
def _no_more_claims_than_stated() -> Iterator[None]:
    yield
    assert _claims <= CLAIMS


def claim(p: float, what: Any) -> None:
    """A p-value that a right implementation gets; spends one of `CLAIMS`."""
    global _claims
    _claims += 1
    assert p > ALPHA, f"{what}: p = {p:.3g}"


def two_sided(below: float, above: float) -> float:
    return min(1.0, 2 * min(below, above))


def p_binomial(count: int, draws: int, p: float) -> float:
    return two_sided(stats.binom.cdf(count, draws, p), stats.binom.sf(count - 1, draws, p))


def p_normal(z: float) -> float:
    return float(2 * stats.norm.sf(abs(z)))


def p_uniform(values: NDArray[Any], cells: int) -> float:
    """Chi-square of integers that should be uniform on [0, cells). Counts may be too even as well."""
    counts = np.bincount(values.astype(np.intp).reshape(-1), minlength=cells)
    expected = values.size / cells
    statistic = float(((counts - expected) ** 2).sum() / expected)
    return two_sided(stats.chi2.cdf(statistic, cells - 1), stats.chi2.sf(statistic, cells - 1))


def uniforms(n: int, *, seed: int = 0, offset: int = 0, layer: int = 0, first: int = 0) -> Words:
    return np.asarray(_core.uniforms(n, seed, offset, layer, first))


def by_position(u: Words) -> Words:
    """Whole groups of 512 elements as [word, j, block]: the 16 places in which a block has an element."""
    return u.reshape(-1, 4, 32, 4).transpose(1, 3, 0, 2).reshape(4, 4, -1)


FIELDS = {"bits 23-30": (23, 256), "bits 15-22": (15, 256), "bits 7-14": (7, 256), "bits 0-6": (0, 128)}


def field(u: Words, name: str) -> Words:
    shift, cells = FIELDS[name]
    return u >> np.uint32(shift) & np.uint32(cells - 1)


def on_24_bits(u: Words) -> Words:
    """The uniform map of many other libraries: 24 bits, the lower 7 of the 31 are gone."""
    return u & ~np.uint32(127)


def rotated(u: Words) -> Words:
    """The rejected map, u = (Wi rotated by 8j) >> 1, from ours, whose top bytes spell out Wi."""
    w = np.zeros((u.size // 512, 4, 32), np.uint64)
    for j in range(4):
        w |= (u.reshape(-1, 4, 32, 4)[..., j] >> np.uint32(23)).astype(np.uint64) << np.uint64(8 * j)
    # The top byte of element j is byte j of the word, as in ours.
    turns = [w << np.uint64(24 - 8 * j) | w >> np.uint64(8 + 8 * j) for j in range(4)]
    return (np.stack(turns, axis=-1).astype(np.uint32) >> np.uint32(1)).reshape(-1)


# -------------------------------------------------------------------------------------- each u by itself


def test_bits_are_uniform_in_each_position() -> None:
    """Each byte of u in each of the 16 positions of a block, and two neighbouring bytes in all of them."""
    u = uniforms(1 << 24, seed=11, offset=5, layer=3)
    positions = by_position(u)
    for i, j, name in itertools.product(range(4), range(4), FIELDS):
        claim(p_uniform(field(positions[i, j], name), FIELDS[name][1]), f"{name} of word {i}, byte {j}")
    for upper, lower in itertools.pairwise(FIELDS):
        cells = FIELDS[lower][1]
        pair = field(u, upper) * np.uint32(cells) + field(u, lower)
        claim(p_uniform(pair, FIELDS[upper][1] * cells), f"{upper} with {lower}")


def test_uniformity_test_finds_a_24_bit_map() -> None:
    u = on_24_bits(uniforms(1 << 20, seed=11, offset=5, layer=3))
    assert p_uniform(field(u, "bits 0-6"), 128) < ALPHA


def test_uniformity_test_finds_one_bit_that_is_set_too_often() -> None:
    """In one draw of fifty."""
    u = uniforms(1 << 20, seed=11, offset=5, layer=3)
    u = u | (np.arange(u.size) % 50 == 0).astype(np.uint32) << np.uint32(9)
    assert p_uniform(field(u, "bits 7-14"), 256) < ALPHA


RARE = (1, 2, 37, 127, 129, 2048 + 77, 2**15 - 1)
"""Thresholds T of probabilities from 2^-31 to 2^-16. 24 bits round T to a multiple of 128, up or down."""


def one() -> tk.Scales:
    """Scale 1 and no clipping: T = 2^31 * |x| without any rounding."""
    return tk.Scales(np.ones(1, np.float32), np.full(1, np.inf, np.float32))


def rare(draws: int) -> Words:
    """The u of those of so many elements that fire at T = 2^15. The kernels find them, which is fast."""
    counter = {"seed": -3, "layer": 7}
    x = np.full(1 << 22, 2.0**-16, np.float32)
    found = []
    for step in range(draws // x.size):
        trits, _ = tk.ternarize(x, scales=one(), offset=2**40 + step, **counter)
        for e in np.flatnonzero(trits):
            found.append(uniforms(1, offset=2**40 + step, first=int(e), **counter))
    return np.concatenate(found)


def test_rare_fires_have_their_exact_probability() -> None:
    """u < T in 2^29 draws, and the two 24-bit maps by the same test.

    Elements of one word share bits, but up to 2^15 two of them fire together with a probability of at most
    2^-16 p: the variance is the binomial one to 1e-4. At p near 2^-20 a 24-bit map is wrong by 6 % at the
    most, which 2e10 draws would show; `test_threshold_is_exact` finds it there without sampling.
    """
    draws = 1 << 29
    u = rare(draws)
    assert (u < 2**15).all()
    for T in (*RARE, 2**15):
        claim(p_binomial(int((u < T).sum()), draws, T / 2**31), f"T = {T}")
    up = min(p_binomial(int((u >> 7 < -(-T // 128)).sum()), draws, T / 2**31) for T in RARE)
    down = min(p_binomial(int((u >> 7 < T // 128).sum()), draws, T / 2**31) for T in RARE)
    assert up < ALPHA, "the control, a 24-bit map that rounds thresholds up, must fail"
    assert down < ALPHA, "the control, a 24-bit map that rounds thresholds down, must fail"


def test_threshold_is_exact() -> None:
    """Each element fires at the next float32 above its u and not at the one at or below it.

    With u uniform this makes P(fire) exactly T / 2^31 for every T that a float32 can express. Probabilities
    within 2^-24 of 2^-20 are among those tried: steps are drawn until eight elements have such a u.
    """
    near_seen = 0
    for offset in range(100):
        u = uniforms(1 << 22, seed=5, offset=offset, layer=2)
        near = (u >= 15 * 128) & (u < 17 * 128)
        if near.any():
            check_threshold(u, near, seed=5, offset=offset, layer=2)
            near_seen += int(near.sum())
        if near_seen >= 8:
            return
    raise AssertionError("8 elements expected in every 17 steps")


def check_threshold(u: Words, near: NDArray[np.bool_], **counter: int) -> None:
    below = u.astype(np.float32)
    below = np.where(below.astype(np.float64) > u, np.nextafter(below, np.float32(0)), below)
    above = np.nextafter(below, np.float32(np.inf))
    # From 2^24 on floats are further apart than u; below it the one above is u + 1 or a fraction above u.
    above = np.where(above < 2**24, np.floor(below) + np.float32(1), above).astype(np.float32)
    assert (below.astype(np.float64) <= u).all()
    assert (above.astype(np.float64) > u).all()
    for values, fires in ((below, 0), (above, 1)):
        x = values * np.float32(2.0**-31)
        trits, _ = tk.ternarize(x, scales=one(), **counter)
        assert (trits == fires).all()
    coarse = on_24_bits(u)
    assert (coarse[near] < below[near]).any(), "the control, a 24-bit map, must fail near 2^-20"


@pytest.mark.parametrize(("step", "p"), list(enumerate([1e-4, 0.01, 0.25, 1 / 3, 0.5, 0.75, 0.999])))
def test_layer_of_one_value_fires_at_its_rate(step: int, p: float) -> None:
    x = np.full(1 << 22, -p, np.float32)
    trits, scale = tk.ternarize(x, scales=one(), seed=17, offset=step)
    assert scale[0] == 1
    assert set(np.unique(trits)) <= {-1, 0}
    T = int(np.float64(np.float32(p)) * 2**31)
    claim(p_binomial(int(np.count_nonzero(trits)), x.size, T / 2**31), f"p = {p}")


# ------------------------------------------------------------------------------------ the quantised layer

STEPS = 2000


def gradient() -> NDArray[np.float32]:
    """Heavier tails than normal ones: a clip of 2.5 cuts one element in fifty, the scale to an eighth."""
    x = np.random.default_rng(8).standard_t(4, 4096).astype(np.float32)
    return x * np.float32(0.003)


def quantised(x: NDArray[np.float32], clip: float | None, seed: int) -> Iterator[NDArray[np.float64]]:
    """Of each step, the layer that a receiver decodes, in float64 for exact sums."""
    for step in range(STEPS):
        yield tk.decode(tk.encode(x, clip=clip, seed=seed, offset=step)).astype(np.float64)


def sums_of_trits() -> tuple[list[tk.Packed], list[float]]:
    """What a second hop meets: messages of the same gradient, and weights that give their sum many values."""
    weights = [0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05]
    return [tk.encode(gradient(), clip=5.0, seed=seed) for seed in range(8)], weights


@pytest.mark.parametrize("hop", ["encode", "repack"])
@pytest.mark.parametrize("clip", [None, 2.5])
def test_quantised_layer_has_the_right_mean_and_second_moment(clip: float | None, hop: str) -> None:
    """E[q] = g and E|q|^2 = s * |g|_1, with g the clipped gradient, or sum of messages, over `STEPS` steps."""
    if hop == "encode":
        x = gradient()
        drawn = quantised(x, clip, seed=21)
    else:
        messages, weights = sums_of_trits()
        x = tk.decode_sum(messages, weights=weights)
        again = (tk.repack(messages, weights=weights, clip=clip, seed=21, offset=step) for step in range(STEPS))
        drawn = (tk.decode(packed).astype(np.float64) for packed in again)
    g = tk.clip(x, clip=clip).astype(np.float64)
    s = float(tk.scales(x, clip=clip).scale[0])
    assert (np.abs(g) < np.abs(x)).any() == (clip is not None)

    total = np.zeros(x.size)
    squares = np.empty(STEPS)
    for step, q in enumerate(drawn):
        total += q
        squares[step] = (q * q).sum()
    variance = s * np.abs(g) - g * g  # of each element of q, if it fires with probability |g| / s

    def p_mean(expected: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
        """A weighted sum of the mean error. Weights of 1 see a shift, weights g see a shrinkage."""
        error = ((total - STEPS * expected) * weights).sum()
        return p_normal(error / np.sqrt(STEPS * (variance * weights**2).sum()))

    def p_each(expected: NDArray[np.float64]) -> float:
        """Chi-square over the elements that are expected to fire, and to stay silent, a hundred times."""
        p = np.abs(g) / s
        many = STEPS * p * (1 - p) > 100
        assert many.sum() > 500
        statistic = ((total - STEPS * expected)[many] ** 2 / (STEPS * variance[many])).sum()
        return two_sided(stats.chi2.cdf(statistic, many.sum()), stats.chi2.sf(statistic, many.sum()))

    claim(p_mean(g, np.ones(x.size)), "mean, summed over the layer")
    claim(p_mean(g, g), "mean, along the gradient")
    claim(p_mean(g, np.sign(g)), "fires, summed over the layer")
    claim(p_each(g), "mean, element by element")
    always = np.abs(g) >= s
    assert always.any()
    assert (total[always] == STEPS * s * np.sign(g[always])).all(), "as large as the scale, so always fires"

    second = s * np.abs(g).sum()
    spread = s * s * variance.sum()  # of |q|^2 = s^2 * fires, if elements fire independently
    claim(p_normal((squares.mean() - second) / np.sqrt(spread / STEPS)), "second moment")
    statistic = ((squares - second) ** 2).sum() / spread
    claim(two_sided(stats.chi2.cdf(statistic, STEPS), stats.chi2.sf(statistic, STEPS)), "variance of |q|^2")

    # Controls: a mean that is 3 % off; 1 % of the scale added and subtracted by turns, which no sum sees; and
    # with clipping the unclipped gradient.
    assert p_mean(g * 1.03, g) < ALPHA
    assert p_each(g + 0.01 * s * (-1.0) ** np.arange(x.size)) < ALPHA
    if clip is not None:
        assert p_mean(x.astype(np.float64), g) < ALPHA


def test_average_of_workers_has_the_variance_of_independent_ones() -> None:
    """E|mean of W workers - g|^2 = (s * |g|_1 - |g|^2) / W for W seeds; W times that for equal ones."""
    x = gradient()
    workers = 4
    g = x.astype(np.float64)
    expected = (np.abs(g).max() * np.abs(g).sum() - (g * g).sum()) / workers
    errors = np.zeros(STEPS)
    alone = np.zeros(STEPS)
    for step, messages in enumerate(zip(*(quantised(x, None, seed) for seed in range(workers)), strict=True)):
        errors[step] = ((sum(messages) / workers - g) ** 2).sum()
        alone[step] = ((messages[0] - g) ** 2).sum()
    claim(stats.ttest_1samp(errors, expected).pvalue, "variance of the average")
    assert stats.ttest_1samp(alone, expected).pvalue < ALPHA, "the control, workers of one seed, must fail"


def test_two_hops_of_equal_seeds_are_unbiased() -> None:
    """The second halves the probability of what the first let through: only with bits of its own."""
    x = gradient()
    own = tk.scales(x, clip=None)
    double = own._replace(scale=2 * own.scale)
    total = {"repack": np.zeros(x.size), "encode": np.zeros(x.size)}
    for step in range(STEPS):
        draw = {"seed": 41, "offset": step, "layer": 3}
        first = tk.encode(x, clip=None, **draw)
        total["repack"] += tk.decode(tk.repack([first], scales=double, **draw))
        total["encode"] += tk.decode(tk.encode(tk.decode(first), scales=double, **draw))
    g, s = x.astype(np.float64), 2 * float(own.scale[0])
    variance = s * np.abs(g) - g * g  # both fire with a probability of |g| / s
    z = {name: ((q - STEPS * g) * g).sum() / np.sqrt(STEPS * (variance * g * g).sum()) for name, q in total.items()}
    claim(p_normal(z["repack"]), "mean along the gradient, after two hops")
    assert p_normal(z["encode"]) < ALPHA, "the control, one set of bits for both hops, must fail"


# ---------------------------------------------------------------------------------------- pairs of draws


def p_pair(a: Words, b: Words) -> dict[str, float]:
    """Views on whether paired draws are independent: their top bits jointly, the exclusive or of each byte,
    and how often b fires (1 in 4) where a does (1 in 64)."""
    fired = a < 2**25
    result = {"top bits": p_uniform((a >> 27) << 4 | b >> 27, 256)}
    result |= {f"xor of {name}": p_uniform(field(a ^ b, name), FIELDS[name][1]) for name in FIELDS}
    result["fires"] = p_binomial(int((b[fired] < 2**29).sum()), int(fired.sum()), 0.25)
    return result


def claim_pair(a: Words, b: Words, what: str) -> None:
    for name, p in p_pair(a, b).items():
        claim(p, f"{what}, {name}")


BASE = {"seed": 1000, "offset": 77, "layer": 12}


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 78},
        {"offset": 77 + 2**32},
        {"offset": 77 + 2**63},
        {"layer": 13},
        {"layer": 12 + 2**30},
        {"seed": 1001},
        {"seed": 1000 + 2**32},
        {"seed": 1000 + 2**63},
        {"seed": 77, "offset": 1000},
        {"offset": 12, "layer": 77},
        {"seed": 1001, "offset": 76, "layer": 11},
    ],
    ids=str,
)
def test_steps_layers_and_seeds_are_independent(change: dict[str, int]) -> None:
    n = 1 << 20
    claim_pair(uniforms(n, **BASE), uniforms(n, **{**BASE, **change}), str(change))


def test_hops_are_independent() -> None:
    """`repack` draws with bit 31 of the layer word set."""
    n = 1 << 18
    first = uniforms(n, **BASE)
    assert np.array_equal(first[:4096], reference.uniforms(4096, **BASE))
    claim_pair(first, reference.uniforms(n, **BASE, second_hop=True), "hops")


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5, 127, 128, 129, 256, 384, 508, 512, 640, 2560, 1 << 16])
def test_elements_of_a_layer_are_independent(lag: int) -> None:
    """Elements at a distance: in one word (1 to 3), row or block (128, 256, 384), and far apart.

    Pairs do not overlap and begin at the first element of a block, so that they are independent of each other
    too: of one block only two elements are, as its four Y have an exclusive or of 0. The views of `p_pair`
    hold exactly inside a word as well, what is shared there touches none of them.
    """
    u = uniforms(1 << 22, seed=4, offset=4, layer=4)
    e = np.arange(u.size - lag)
    e = e[(e % 512 < 128) & (e % 4 == 0) & (e // lag % 2 == 0)]
    claim_pair(u[e], u[e + lag], f"lag {lag}")


def test_pair_test_finds_dependent_draws() -> None:
    u, v = uniforms(1 << 20, **BASE), uniforms(1 << 20, **{**BASE, "seed": 2})
    for name, other in {
        "equal draws": u,
        "complement": u ^ np.uint32(2**31 - 1),
        "equal top bits in half of the draws": np.where(v & 1 == 1, u & np.uint32(0x7F800000) | v >> 8, v),
        "equal low bits": v & ~np.uint32(127) | u & np.uint32(127),
        "one step on, without a cipher": u + np.uint32(12345) & np.uint32(2**31 - 1),
    }.items():
        assert min(p_pair(u, other).values()) < ALPHA, name


# ----------------------------------------------------------------------------- inside a block, exactly


def block_uniforms(words: Any, bits: int = 8) -> list[list[Any]]:
    """u[i][j] of contract section 3 for four words of four bytes each, with bytes of any number of bits."""

    def byte(v: Any, k: int) -> Any:
        return v >> bits * (k % 4) & (1 << bits) - 1

    def one_uniform(w: Any, y: Any, j: int) -> Any:
        lower = byte(y, j) << 2 * bits | byte(y, j + 1) << bits | byte(y, j + 2)
        return (byte(w, j) << 3 * bits | lower) >> 1

    rows = [(words[i], words[(i + 1) % 4] ^ words[(i + 2) % 4]) for i in range(4)]
    return [[one_uniform(w, y, j) for j in range(4)] for w, y in rows]


def test_block_uniforms_are_those_of_the_package() -> None:
    """So that what follows speaks of the code that runs. u[i][j] of block b is element 128 i + 4 b + j."""
    counter = np.zeros((32, 4), np.uint32)
    counter[:, 0] = np.arange(32, 64)
    counter[:, 1:] = (9, 3, 2)
    words = reference.philox4x32_10(counter, np.array([6, 7], np.uint32)).astype(np.int64)
    ours = np.array(block_uniforms(list(words.T)))
    theirs = uniforms(512, seed=7 << 32 | 6, offset=2 << 32 | 3, layer=9, first=512)
    assert np.array_equal(ours.transpose(0, 2, 1).reshape(-1), theirs)


def linear_map(bits: int = 8) -> dict[tuple[int, int], list[int]]:
    """Of each u, its bits as masks of the block's: shifts and exclusive ors are linear over GF(2)."""
    masks = {(i, j): [0] * (4 * bits - 1) for i in range(4) for j in range(4)}
    for k in range(16 * bits):
        words = [1 << k - 4 * bits * i if 0 <= k - 4 * bits * i < 4 * bits else 0 for i in range(4)]
        u = block_uniforms(words, bits)
        for (i, j), rows in masks.items():
            for bit in range(4 * bits - 1):
                rows[bit] |= (u[i][j] >> bit & 1) << k
    return masks


def rank(rows: list[int]) -> int:
    pivots: dict[int, int] = {}
    for row in rows:
        while row and row.bit_length() in pivots:
            row ^= pivots[row.bit_length()]
        if row:
            pivots[row.bit_length()] = row
    return len(pivots)


def test_ranks_of_one_and_two_elements() -> None:
    """A linear map of uniform bits is uniform on its range: full rank is uniformity, of pairs independence.

    Elements of two different words are exactly independent. Two of one word lack 15 of 62 bits where their
    bytes are neighbours, 14 where they are opposite: the bytes of Y that both draw on, less the lowest bits
    that the shift drops.
    """
    masks = linear_map()
    for rows in masks.values():
        assert rank(rows) == 31
    for (a, b), (c, d) in itertools.combinations(masks, 2):
        shared = 62 - rank(masks[a, b] + masks[c, d])
        assert shared == (0 if a != c else 14 if abs(b - d) == 2 else 15)


def test_rank_test_finds_the_rotation() -> None:
    """The rejected map: the four u of a word are the same 32 bits, turned."""
    u = [[(1 << (k + 24 - 8 * j) % 32) >> 1 for j in range(4)] for k in range(32)]
    masks = [[sum((u[k][j] >> bit & 1) << k for k in range(32)) for bit in range(31)] for j in range(4)]
    assert [rank(rows) for rows in masks] == [31] * 4
    assert rank(masks[0] + masks[1]) == 32


def test_pairs_of_words_by_enumeration() -> None:
    """All 2^16 states of a block whose bytes have one bit: each pair of different words is exactly uniform,
    and of one word those are not whose bytes are neighbours."""
    states = np.arange(1 << 16)
    u = block_uniforms([states >> 4 * i & 15 for i in range(4)], bits=1)
    for (a, b), (c, d) in itertools.combinations(itertools.product(range(4), range(4)), 2):
        counts = np.bincount(u[a][b] << 3 | u[c][d], minlength=64)
        assert (counts == 1024).all() == (a != c or abs(b - d) == 2)


def covariances(j: int, k: int, bits: int) -> NDArray[np.int64]:
    """cov(u_j < T, u_k < T') of one word, times 2^(2 * width), for all T and T', from all states.

    Only bytes j and k of the word itself and the four of Y matter, so that 6 * bits bits are all states.
    """
    states = np.arange(1 << 6 * bits)
    mask = (1 << bits) - 1
    w = (states & mask) << bits * j | (states >> bits & mask) << bits * k
    u = block_uniforms([w, states >> 2 * bits, np.zeros_like(states), np.zeros_like(states)], bits)[0]
    width = 4 * bits - 1
    joint = np.bincount(u[j] << width | u[k], minlength=1 << 2 * width).reshape(1 << width, -1)
    below = np.zeros(((1 << width) + 1,) * 2, np.int64)
    below[1:, 1:] = joint.cumsum(0).cumsum(1)
    T = np.arange((1 << width) + 1)
    # Both marginals exactly uniform, else the product below would not be the product of the probabilities.
    assert (below[-1] == T << 6 * bits - width).all()
    assert (below[:, -1] == T << 6 * bits - width).all()
    return (below << 2 * width - 6 * bits) - np.multiply.outer(T, T)


def covariance(T: NDArray[Any], S: NDArray[Any], apart: int, bits: int) -> NDArray[np.float64]:
    """cov(u_j < T, u_(j + apart) < S) for bytes of any number of bits, by counting.

    u < T is (W_j, R) < (t, r) in lexicographic order with R the bytes of Y and 2T = t * 2^(3 bits) + r. The
    bytes W_j are independent, so that the lower bytes decide only where both W_j tie, with a probability of
    2^(-2 bits), and cov = 2^(-2 bits) * cov(R < r, R' < s). Those two share two bytes p, q of Y and have one
    each of their own; for every p and q the own ones are counted.

    `apart` = 1: R = (own, p, q), R' = (p, q, own). The own byte is independent of R', and p, q matter to R
    only where it ties: the covariance is at most 2^-bits / 4 there, 2^(-3 bits) / 4 in all.
    `apart` = 2: R = (p, own, q), R' = (q, own, p). Without their last bytes R and R' share nothing, and the
    last byte matters only where two others tie: at most 2^(-4 bits) in all.
    """
    one = 1 << bits
    p, q = (v.astype(np.int64).reshape(1, -1) for v in np.divmod(np.arange(one * one), one))
    r, s = ((2 * np.asarray(v, np.int64) & (1 << 3 * bits) - 1).reshape(-1, 1) for v in (T, S))

    def digits(v: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        return v >> 2 * bits, v >> bits & one - 1, v & one - 1

    (a, b, c), (d, e, f) = digits(r), digits(s)
    if apart == 1:
        own = a + (one * p + q < one * b + c)
        other = np.where(one * p + q < one * d + e, one, np.where(one * p + q == one * d + e, f, 0))
    else:
        own = np.where(p < a, one, np.where(p == a, b + (q < c), 0))
        other = np.where(q < d, one, np.where(q == d, e + (p < f), 0))
    both = (own * other).sum(axis=1)  # of 2^(4 bits)
    difference = (both << 2 * bits) - (r * s).reshape(-1)  # cov(R < r, R' < s) times 2^(6 bits), exactly
    return difference / 2.0 ** (6 * bits) / 2.0 ** (2 * bits)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_covariance_inside_a_word_by_enumeration(bits: int) -> None:
    """Bytes of 1, 2, 3 bits: over all states and thresholds the covariance is at most 2^(-3 bits), the
    analogue of 2^-24, in truth a quarter of it; and `covariance` gives these numbers, of 3 bits a grid."""
    width = 4 * bits - 1
    grid = np.arange(0, 1 << width, 37 if bits == 3 else 1)
    T, S = (v.reshape(-1) for v in np.meshgrid(grid, grid))
    worst = {1: 0.0, 2: 0.0}
    for j, k in itertools.permutations(range(4), 2):
        apart = (k - j) % 4
        exact = covariances(j, k, bits) / 2.0 ** (2 * width)
        if apart == 3:  # one behind: the pair that the loop also meets the other way round
            apart = 1
        else:
            assert np.array_equal(covariance(T, S, apart, bits), exact[T, S])
        worst[apart] = max(worst[apart], float(np.abs(exact).max()))
    assert 0 < worst[1] <= 2.0 ** (-3 * bits) / 4
    assert worst[2] <= 2.0 ** (-4 * bits)


def test_covariance_inside_a_word_at_the_real_width() -> None:
    """Bytes of 8 bits: powers of two, ties at the worst place, halves of bytes, and random thresholds."""
    special = [*(2**k for k in range(0, 31, 5)), 2**31 - 1, 2**30 - 1]
    special += [0x40404040, 0x3FBFBFBF, 0x00404040, 0x00004000]
    special += [t << 23 | b << 15 | rest for t in (0, 77) for b in (0, 128) for rest in (0, 2**14, 2**15 - 1)]
    rng = np.random.default_rng(1)
    T, S = (v.reshape(-1) for v in np.meshgrid(special, special))
    T = np.concatenate([T, rng.integers(0, 2**31, 300)])
    S = np.concatenate([S, rng.integers(0, 2**31, 300)])
    worst = {1: 0.0, 2: 0.0}
    for apart in worst:
        for part in np.array_split(np.arange(T.size), 40):
            worst[apart] = max(worst[apart], float(np.abs(covariance(T[part], S[part], apart, 8)).max()))
    assert 2.0**-26.1 < worst[1] <= 2.0**-26, "a quarter of the bound, and the thresholds tried come close to it"
    assert worst[2] <= 2.0**-32


def neighbours(u: Words) -> dict[tuple[int, int], tuple[int, int]]:
    """Of each two bytes: how often the second fires (1 in 4) where the first does (1 in 1000)."""
    word = by_position(u).transpose(1, 0, 2).reshape(4, -1)
    result = {}
    for j, k in itertools.permutations(range(4), 2):
        fired = word[j] < int(0.001 * 2**31)
        result[j, k] = int((word[k][fired] < 2**29).sum()), int(fired.sum())
    return result


def test_neighbours_in_a_word_fire_independently() -> None:
    """A sample of the above; and the rejected rotation, of which the same sample sees the 2^-10."""
    u = uniforms(1 << 23, seed=31, offset=1)
    for (j, k), (count, draws) in neighbours(u).items():
        claim(p_binomial(count, draws, 0.25), f"byte {k} where byte {j} fired")
    turned = neighbours(rotated(u))
    count, draws = max(turned.values(), key=lambda pair: pair[0] / pair[1])
    assert p_binomial(count, draws, 0.25) < ALPHA, "the control, the rotation, must fail"
    assert count / draws > 0.95
