"""The functions of wenwei202/terngrad: formats and rules against plain NumPy statements of them, on every framework.

The statements here are the original's rules in the simplest code. Bytes are compared with `==`; a standard deviation,
which the kernels sum in an order of their own, is compared to 2**-20, some eight roundings of a float32.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest
from arrays import DTYPES, Array, Framework, Jax, assert_same, cast, layer
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import reference as ref
import terngrad_kernels as tk
from terngrad_kernels.frontends import terngrad

# ---- plain statements


def plain_encoder(trits: Array) -> Array:
    """Bytes of -1, 0, +1: sign + 1, padded by 4 - n mod 4 zeros, four equal quarters side by side."""
    digits = np.sign(trits).reshape(-1).astype(int) + 1
    digits = np.concatenate([digits, np.zeros(4 - digits.size % 4, int)])
    a = digits.reshape(4, -1)
    return (a[0] + 4 * a[1] + 16 * a[2] + 64 * a[3]).astype(np.uint8)


def plain_decoder(encoded: Array, scaler: float, shape: tuple[int, ...]) -> Array:
    digits = np.concatenate([encoded.astype(int) // 4**k % 4 for k in range(4)])
    return (np.float32(scaler) * (digits - 1)[: math.prod(shape)].astype(np.float32)).reshape(shape)


def plain_limit(x: Array, factor: float) -> float:
    """factor times the population standard deviation about the mean."""
    return float(factor * np.std(x.astype(np.float64)))


SHAPES = ((), (1,), (2,), (3,), (4,), (5,), (0,), (2, 0, 3), (3, 5), (16,), (7, 100), (2561,))


def random_trits(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(-1, 2, shape).astype(np.float32)


def assert_array(framework: Framework, got: Any, dtype: str, want: Array) -> None:
    assert framework.owns(got), type(got)
    assert got.dtype == framework.dtype(dtype)
    assert tuple(got.shape) == want.shape
    assert_same(framework.to_numpy(got), np.asarray(want))


# ---- the bytes


def test_known_bytes() -> None:
    """By hand: the digits 0, 1, 2 and a pad; one element takes one byte, four take two."""
    assert terngrad.ternary_encoder(np.array([-1.0, 0.0, 1.0])).tolist() == [0 + 1 * 4 + 2 * 16]
    assert terngrad.ternary_encoder(np.array([1.0])).tolist() == [2]
    assert terngrad.ternary_encoder(np.array([1.0, -1.0, 0.0, 1.0])).tolist() == [2 + 4 * 1, 0 + 4 * 2]
    assert terngrad.ternary_encoder(np.empty(0)).tolist() == [0]
    assert terngrad.ternary_decoder(np.array([2 + 1 * 4], np.uint8), 3, (2,)).tolist() == [3.0, 0.0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bytes(framework: Framework, shape: tuple[int, ...]) -> None:
    trits = random_trits(shape)
    encoded = terngrad.ternary_encoder(framework.make(trits))
    assert_array(framework, encoded, "uint8", plain_encoder(trits))
    for scaler in (0.5, np.float32(0.5), np.array([0.5]), framework.make(np.float32(0.5))):
        decoded = terngrad.ternary_decoder(encoded, scaler, shape)
        assert_array(framework, decoded, "float32", np.asarray(0.5 * trits, np.float32))


@pytest.mark.parametrize("dtype", [*DTYPES, "int8"])
def test_codes_of_any_type(framework: Framework, dtype: str) -> None:
    trits = random_trits((37,))
    x = trits.astype(ref.DTYPES.get(dtype, dtype))
    assert_array(framework, terngrad.ternary_encoder(framework.make(x)), "uint8", plain_encoder(trits))


def test_other_values_count_by_their_sign() -> None:
    x = np.array([0.3, -7, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1e-45], np.float32)
    assert_same(terngrad.ternary_encoder(x), plain_encoder(np.array([1, -1, 0, 1, -1, 0, 0, 1])))


def test_views_are_read_in_row_major_order() -> None:
    trits = random_trits((6, 10))
    for view in (trits.T, trits[::2, 1::3], trits[::-1]):
        assert_same(terngrad.ternary_encoder(view), plain_encoder(view))
    spread = np.repeat(terngrad.ternary_encoder(trits), 2)
    assert_same(terngrad.ternary_decoder(spread[::2], 1, (6, 10)), trits)


def test_any_bytes_decode() -> None:
    encoded = np.arange(256, dtype=np.uint8)
    assert_same(terngrad.ternary_decoder(encoded, 0.25, (1021,)), plain_decoder(encoded, 0.25, (1021,)))


@settings(max_examples=30)
@given(data=st.data())
def test_decoding_what_was_encoded_gives_scaler_times_trits(framework: Framework, data: st.DataObject) -> None:
    """The original's own test, of random shapes."""
    # JAX compiles for each shape.
    largest = 3 if isinstance(framework, Jax) else 9
    shape = data.draw(st.lists(st.integers(0, largest), max_size=2 if isinstance(framework, Jax) else 4).map(tuple))
    values = data.draw(st.lists(st.integers(-1, 1), min_size=math.prod(shape), max_size=math.prod(shape)))
    scaler = data.draw(st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False))
    trits = np.array(values, np.float32).reshape(shape)
    encoded = terngrad.ternary_encoder(framework.make(trits))
    decoded = terngrad.ternary_decoder(encoded, scaler, shape)
    assert tuple(decoded.shape) == shape
    np.testing.assert_array_equal(framework.to_numpy(decoded), np.float32(scaler) * trits)


# ---- lists of layers

LIST_SHAPES = ((3, 5), None, (1,), (300,), (), (0,))


def layers_of(framework: Framework, dtype: str = "float32", seed: int = 0) -> tuple[list[Any], list[Array | None]]:
    """Pairs of (gradient, variable), some None, and NumPy's of the gradients."""
    values: list[Array | None] = []
    for i, shape in enumerate(LIST_SHAPES):
        values.append(None if shape is None else layer("normal", math.prod(shape), dtype, seed + i).reshape(shape))
    pairs = [(None if x is None else framework.make(x), f"v{i}") for i, x in enumerate(values)]
    return pairs, values


def gradients(pairs: list[tuple[Any, Any]]) -> list[Any]:
    """What was returned for each layer; the variables went through."""
    assert isinstance(pairs, list)
    assert all(isinstance(pair, tuple) for pair in pairs)
    assert [variable for _, variable in pairs] == [f"v{i}" for i in range(len(pairs))]
    return [gradient for gradient, _ in pairs]


@pytest.mark.parametrize("smallest", [1, 2, 16, 1000])
def test_lists_of_bytes(framework: Framework, smallest: int) -> None:
    values = [None if s is None else random_trits(s, 3) for s in LIST_SHAPES]
    pairs = [(None if x is None else framework.make(x), f"v{i}") for i, x in enumerate(values)]
    encoded, shapes = terngrad.encode_to_ternary_gradients(pairs, get_shape=True, size_to_binarize=smallest)
    assert shapes == list(LIST_SHAPES)
    alone = terngrad.encode_to_ternary_gradients(pairs, size_to_binarize=smallest)
    scalers = [2.0] * len(pairs)
    decoded = terngrad.decode_from_ternary_gradients(encoded, scalers, shapes, size_to_binarize=smallest)
    for x, got, again, back in zip(values, gradients(encoded), gradients(alone), gradients(decoded), strict=True):
        if x is None:
            assert got is None
            assert again is None
            assert back is None
            continue
        small = x.size < smallest
        want = np.frombuffer(x.tobytes(), np.uint8).reshape(*x.shape, 4) if small else plain_encoder(x)
        assert_array(framework, got, "uint8", want)
        assert_array(framework, again, "uint8", want)
        np.testing.assert_array_equal(framework.to_numpy(back), x if small else 2 * x)
        assert tuple(back.shape) == x.shape
        assert back.dtype == framework.dtype("float32")


def test_small_layers_keep_their_bits_as_float32(framework: Framework) -> None:
    x = np.array([np.pi, -0.0, np.inf, 1e-42, -1e30], np.float32)
    [(encoded, _)] = terngrad.encode_to_ternary_gradients([(framework.make(x), 0)], size_to_binarize=6)
    # As a transport may leave them: at an odd address of one long buffer.
    buffer = framework.make(np.concatenate([[7], framework.to_numpy(encoded).reshape(-1)]).astype(np.uint8))
    [(decoded, _)] = terngrad.decode_from_ternary_gradients([(buffer[1:], 0)], [1], [(5,)], size_to_binarize=6)
    assert_array(framework, decoded, "float32", x)
    half = cast(x[:2], "float16")
    [(encoded, _)] = terngrad.encode_to_ternary_gradients([(framework.make(half), 0)], size_to_binarize=3)
    assert_array(framework, encoded, "uint8", half.astype(np.float32).view(np.uint8).reshape(2, 4))


def test_the_module_has_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    x = random_trits((4,))
    assert terngrad.encode_to_ternary_gradients([(x, 0)])[0][0].shape == (2,)
    monkeypatch.setattr(terngrad, "size_to_binarize", 5)
    assert terngrad.encode_to_ternary_gradients([(x, 0)])[0][0].shape == (4, 4)
    assert terngrad.stochastical_binarize_gradients([(x, 0)], [9.0])[0][0] is x
    assert terngrad.encode_to_ternary_gradients([(x, 0)], size_to_binarize=1)[0][0].shape == (2,)


# ---- clipping and scalers


@pytest.mark.parametrize("dtype", DTYPES)
def test_clipping_by_stddev(framework: Framework, dtype: str) -> None:
    pairs, values = layers_of(framework, dtype)
    got = gradients(terngrad.clip_gradients_by_stddev(pairs, 1.5))
    default = gradients(terngrad.clip_gradients_by_stddev(pairs))
    for x, clipped, usual in zip(values, got, default, strict=True):
        if x is None:
            assert clipped is None
            continue
        assert_array(framework, clipped, dtype, ref.clip([x], clip=1.5, center=True)[0].reshape(x.shape))
        assert_array(framework, usual, dtype, ref.clip([x], clip=2.5, center=True)[0].reshape(x.shape))
        limit = plain_limit(x, 1.5) if x.size > 1 else math.inf  # one element has no spread: not clipped
        want = np.clip(x.astype(np.float64), -limit, limit)
        # 2**-7: half a place of bfloat16, the coarsest
        np.testing.assert_allclose(framework.to_numpy(clipped).astype(np.float64), want, rtol=2.0**-7)
        if dtype == "float32":
            np.testing.assert_allclose(framework.to_numpy(clipped), want, rtol=2.0**-20)


def test_the_mean_is_taken_off() -> None:
    x = layer("heavy mean", 5000)
    [(clipped, _)] = terngrad.clip_gradients_by_stddev([(x, 0)])
    assert (np.abs(clipped) <= plain_limit(x, 2.5) * 1.001).all(), "2.5 deviations, though the mean is a hundred"


def test_clipping_by_thresholds(framework: Framework) -> None:
    pairs, values = layers_of(framework)
    for thresholds in ([0.5] * 6, [framework.make(np.float32(0.5))] * 6, [0.5, None, 0.25, np.float32(1), 3, 1]):
        got = gradients(terngrad.clip_gradients_by_thresholds(pairs, thresholds))
        for x, clipped, t in zip(values, got, thresholds, strict=True):
            if x is None:
                assert clipped is None
            else:
                t = np.float32(t if isinstance(t, (int, float, np.float32)) else 0.5)
                assert_array(framework, clipped, "float32", np.clip(x, -t, t))


def test_thresholds_of_zero(framework: Framework) -> None:
    """What is all zeros stays so (a shared scaler of such a layer is 0); other values become the smallest number."""
    pairs = [(framework.make(np.zeros(3, np.float32)), 0), (framework.make(np.array([1.0, -2.0, 0.0], np.float32)), 1)]
    zero, other = terngrad.clip_gradients_by_thresholds(pairs, [0.0, 0])
    assert_array(framework, zero[0], "float32", np.zeros(3, np.float32))
    assert_array(framework, other[0], "float32", np.array([2.0**-149, -(2.0**-149), 0], np.float32))
    assert float(tk.scales(other[0]).scale[0]) == 0


@pytest.mark.parametrize("factor", [2.5, 0.7, 1e-5, 0.0, -1.0])
def test_scalers(framework: Framework, factor: float) -> None:
    """clip_factor times the deviation where clip_factor > 1e-5, even where no element is as large; else max-abs."""
    pairs, values = layers_of(framework)
    for x, scaler in zip(values, terngrad.gradient_binarizing_scalers(pairs, factor), strict=True):
        if x is None:
            assert scaler is None
            continue
        assert framework.owns(scaler)
        assert scaler.dtype == framework.dtype("float32")
        assert tuple(scaler.shape) == ()
        largest = np.abs(x).max(initial=0)
        if factor > 1e-5 and x.size > 1:
            assert float(scaler) == pytest.approx(plain_limit(x, factor), rel=2.0**-20)
        else:
            assert float(scaler) == largest
    several = [layer("normal", 3000), layer("outlier", 3000)]
    large, small = terngrad.gradient_binarizing_scalers([(x, 0) for x in several], 9.0)
    assert large > np.abs(several[0]).max(), "it is not the smaller of the two"
    assert small < np.abs(several[1]).max()


def test_layers_without_spread_and_with_infinities() -> None:
    constant, single = np.full(100, -0.3, np.float32), np.array([2.0], np.float32)
    poisoned = np.array([1.0, np.inf, 2.0], np.float32)
    pairs = [(constant, 0), (single, 1), (poisoned, 2)]
    for (clipped, _), (x, _) in zip(terngrad.clip_gradients_by_stddev(pairs), pairs, strict=True):
        assert_same(clipped, x)
    scalers = terngrad.gradient_binarizing_scalers(pairs, 2.5)
    assert [float(s) for s in scalers] == [np.float32(0.3), 2.0, np.inf]
    codes = terngrad.stochastical_binarize_gradients(pairs, scalers)
    assert (codes[0][0] == -1).all()
    assert (codes[2][0] == 0).all()
    decoded = terngrad.decode_from_ternary_gradients(
        terngrad.encode_to_ternary_gradients(codes), scalers, [x.shape for x, _ in pairs]
    )
    assert np.isnan(decoded[2][0]).all(), "an overflow is seen and not dropped"
    assert terngrad.clip_gradients_by_stddev([]) == terngrad.clip_gradients_by_stddev([])
    assert terngrad.gradient_binarizing_scalers([(None, 0)], 2.5) == [None]


# ---- drawing


@pytest.mark.parametrize("dtype", DTYPES)
def test_codes(framework: Framework, dtype: str) -> None:
    """The reference's trits under these scales, in the dtype of the gradient; layer words count those drawn."""
    pairs, values = layers_of(framework, dtype)
    scalers = [0.5, None, framework.make(np.float32(3)), np.float32(2), 1, 7.0]
    numbers = [0.5, 3, 2, 1]
    got = gradients(terngrad.stochastical_binarize_gradients(pairs, scalers, seed=5, offset=9))
    drawn = [x.reshape(-1) for x in values if x is not None and x.size]
    passed = np.array(numbers, np.float32), np.full(4, np.inf, np.float32)
    want = iter(ref.ternarize(drawn, seed=5, offset=9, scales=passed)[0])
    for (gradient, _), x, codes in zip(pairs, values, got, strict=True):
        if x is None or x.size == 0:  # fewer elements than size_to_binarize, 1
            assert codes is gradient
        else:
            assert_array(framework, codes, dtype, cast(next(want), dtype).reshape(x.shape))


def test_layers_of_several_dtypes_and_frameworks_draw_different_bits() -> None:
    torch = pytest.importorskip("torch")
    x = np.full(4096, 0.5, np.float32)
    arrays = [x, x.astype(np.float64), torch.from_numpy(x.copy()), x]
    pairs = terngrad.stochastical_binarize_gradients([(a, 0) for a in arrays], [1.0] * 4, seed=1, offset=2)
    assert [type(got) for got, _ in pairs] == [type(a) for a in arrays]
    assert [got.dtype for got, _ in pairs] == [a.dtype for a in arrays]
    codes = [np.asarray(got).astype(np.float32) for got, _ in pairs]
    for i in range(4):
        for j in range(i):
            assert (codes[i] != codes[j]).mean() > 0.4


def test_small_layers_are_not_drawn(framework: Framework) -> None:
    pairs, values = layers_of(framework)
    got = gradients(terngrad.stochastical_binarize_gradients(pairs, [9.0] * 6, size_to_binarize=16))
    for (gradient, _), codes, x in zip(pairs, got, values, strict=True):
        if x is None or x.size < 16:
            assert codes is gradient
        else:
            assert set(np.unique(framework.to_numpy(codes))) <= {-1, 0, 1}


def test_scalers_that_are_no_magnitudes() -> None:
    x = np.array([1.0, -2.0, 3.0], np.float32)
    for scaler in (0, 0.0, -1.0, np.nan, np.inf, -np.inf, 2.0**-61, np.float64(1e300)):
        [(codes, _)] = terngrad.stochastical_binarize_gradients([(x, 0)], [scaler])
        assert_same(codes, np.zeros(3, np.float32))
    [(codes, _)] = terngrad.stochastical_binarize_gradients([(x, 0)], [1.0])
    assert_same(codes, np.array([1, -1, 1], np.float32), "beyond the scaler it always fires")


#: A right implementation fails `test_codes_are_unbiased` with a probability of at most 2 * ALPHA (two p-values).
ALPHA = 1e-7


def test_codes_are_unbiased() -> None:
    """E[scaler * code] = clipped gradient: a weighted sum of the errors, and a chi-square of all; with controls."""
    x = np.random.default_rng(3).standard_t(4, 2000).astype(np.float32)
    [(g, _)] = terngrad.clip_gradients_by_stddev([(x, 0)])
    scalers = terngrad.gradient_binarizing_scalers([(g, 0)], 0.0)
    s, steps, total = float(scalers[0]), 500, np.zeros(x.size)
    for step in range(steps):
        codes = terngrad.stochastical_binarize_gradients([(g, 0)], scalers, seed=77, offset=step)
        [(encoded, _)], shapes = terngrad.encode_to_ternary_gradients(codes, True)
        total += terngrad.ternary_decoder(encoded, scalers[0], shapes[0])
    wide = g.astype(np.float64)
    variance = s * np.abs(wide) - wide**2

    def p_values(expected: Array) -> tuple[float, float]:
        error = total - steps * expected
        z = (error * wide).sum() / np.sqrt(steps * (variance * wide**2).sum())
        often = variance > 0.05 * s * s
        chi = (error[often] ** 2 / (steps * variance[often])).sum()
        below, above = stats.chi2.cdf(chi, often.sum()), stats.chi2.sf(chi, often.sum())
        return 2 * stats.norm.sf(abs(z)), min(1.0, 2 * min(below, above))

    assert min(p_values(wide)) > ALPHA
    assert min(p_values(1.05 * wide)) < ALPHA, "the control, a mean that is 5 % off, must fail"
    assert min(p_values(x.astype(np.float64))) < ALPHA, "the control, what was not clipped, must fail"


# ---- across workers


def test_scalers_across_workers(framework: Framework) -> None:
    towers = [[1.0, None, 0.1], [3.0, None, 0.2], [2.0, None, 0.4]]
    arrays = [[None if s is None else framework.make(np.float32(s)) for s in tower] for tower in towers]
    mixed = [arrays[0], towers[1], [None if s is None else np.float32(s) for s in towers[2]]]
    total = np.float32(0.1) + np.float32(0.2) + np.float32(0.4)
    for given_scalers in (arrays, mixed):
        largest, mean = terngrad.max_scalers(given_scalers), terngrad.average_scalers(given_scalers)
        for got, want in ((largest, [3.0, None, 0.4]), (mean, [2.0, None, total / 3])):
            assert got[1] is None
            assert_array(framework, got[0], "float32", np.float32(want[0]))
            assert_array(framework, got[2], "float32", np.asarray(np.float32(want[2])))
    assert terngrad.max_scalers([[1, 2.5]]) == [1, 2.5]


def test_a_poisoned_worker_poisons_the_layer() -> None:
    assert terngrad.max_scalers([[1.0], [np.inf]]) == [np.inf]


@pytest.mark.parametrize("dtype", DTYPES)
def test_average_of_gradients(framework: Framework, dtype: str) -> None:
    towers = [layers_of(framework, dtype, seed) for seed in range(3)]
    own = [[(g, f"v{i} of {w}") for i, (g, _) in enumerate(pairs)] for w, (pairs, _) in enumerate(towers)]
    got = terngrad.average_gradients([pairs for pairs, _ in towers])
    wide = np.float64 if dtype == "float64" else np.float32
    wanted = []
    for i, mean in enumerate(gradients(got)):
        terms = [values[i] for _, values in towers]
        if terms[0] is None:
            assert mean is None
            wanted.append(None)
            continue
        total = (terms[0].astype(wide) + terms[1].astype(wide)) + terms[2].astype(wide)
        # Compilers of some frameworks multiply by 1 / 3: one place of difference.
        assert framework.owns(mean)
        assert mean.dtype == framework.dtype(dtype)
        np.testing.assert_allclose(
            framework.to_numpy(mean).astype(np.float64),
            (total / 3).astype(np.float64),
            rtol={"float64": 1e-15, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype],
        )
        assert tuple(mean.shape) == terms[0].shape
        wanted.append(framework.to_numpy(mean))
    several = terngrad.average_gradients2(own)
    assert len(several) == 3
    for w, pairs in enumerate(several):
        assert [variable for _, variable in pairs] == [f"v{i} of {w}" for i in range(len(pairs))]
        for (mean, _), want in zip(pairs, wanted, strict=True):
            assert (mean is None) == (want is None)
            if want is not None:
                assert_same(framework.to_numpy(mean), want)
    assert [variable for _, variable in terngrad.average_gradients(own)] == [f"v{i} of 0" for i in range(6)]


def test_a_round_of_training(framework: Framework) -> None:
    """As the original's training loop calls them: every worker's codes under one scaler, averaged where they arrive."""
    towers = [layers_of(framework, seed=10 * w)[0] for w in range(2)]
    clipped = [terngrad.clip_gradients_by_stddev(pairs, 2.5) for pairs in towers]
    scalers = terngrad.max_scalers([terngrad.gradient_binarizing_scalers(pairs, 0.0) for pairs in clipped])
    received = []
    for w, pairs in enumerate(clipped):
        codes = terngrad.stochastical_binarize_gradients(pairs, scalers, seed=w)
        encoded, shapes = terngrad.encode_to_ternary_gradients(codes, get_shape=True)
        received.append(terngrad.decode_from_ternary_gradients(encoded, scalers, shapes))
    for i, (mean, variable) in enumerate(terngrad.average_gradients(received)):
        assert variable == f"v{i}"
        if LIST_SHAPES[i] is not None and math.prod(LIST_SHAPES[i]):
            steps = framework.to_numpy(mean) / (float(scalers[i]) / 2)
            assert set(np.unique(np.round(steps, 5))) <= {-2, -1, 0, 1, 2}


# ---- under JAX's compiler


def test_under_jit_seed_and_offset_must_be_given() -> None:
    jax = Jax().jax
    x = jax.numpy.ones(4)
    for given_words, name in (({}, "seed"), ({"seed": 1}, "offset")):
        with pytest.raises(ValueError, match=f"{name}: expected a value under jax.jit"):
            jax.jit(lambda x, words=given_words: terngrad.stochastical_binarize_gradients([(x, 0)], [1.0], **words))(x)


# ---- names and errors

SIGNATURES = {
    "ternary_encoder": "(input)",
    "ternary_decoder": "(encoded, scaler, shape)",
    "encode_to_ternary_gradients": "(grads_and_vars, get_shape=False, *, size_to_binarize=None)",
    "decode_from_ternary_gradients": "(grads_and_vars, scalers, shapes, *, size_to_binarize=None)",
    "clip_gradients_by_stddev": "(grads_and_vars, clip_factor=2.5)",
    "clip_gradients_by_thresholds": "(grads_and_vars, thresholds)",
    "gradient_binarizing_scalers": "(grads_and_vars, clip_factor)",
    "stochastical_binarize_gradients": "(grads_and_vars, scalers, *, seed=None, offset=None, size_to_binarize=None)",
    "max_scalers": "(tower_scalers)",
    "average_scalers": "(tower_scalers)",
    "average_gradients": "(tower_grads)",
    "average_gradients2": "(tower_grads)",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str) -> None:
    """The original's positional arguments; ours beyond them by keyword alone."""
    signature = inspect.signature(getattr(terngrad, name))
    plain = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
    assert str(signature.replace(parameters=plain, return_annotation=signature.empty)) == SIGNATURES[name]
    assert set(SIGNATURES) | {"manual_seed", "size_to_binarize"} == set(terngrad.__all__)


G = np.ones(4, np.float32)
BYTES = np.zeros(2, np.uint8)

ERRORS: dict[str, tuple[Any, type[Exception], str]] = {
    "no array": (lambda: terngrad.ternary_encoder([1, 0]), TypeError, r"input: expected .* got builtins.list"),
    "length": (
        lambda: terngrad.ternary_decoder(BYTES, 1, (8,)),
        ValueError,
        r"encoded: expected 3 bytes for shape \(8,\), got 2",
    ),
    "type": (lambda: terngrad.ternary_decoder(G, 1, (4,)), TypeError, "encoded: expected uint8, got numpy float32"),
    "shape": (lambda: terngrad.ternary_decoder(BYTES, 1, 4), TypeError, "shape: expected a sequence of ints, got int"),
    "scaler": (
        lambda: terngrad.ternary_decoder(BYTES, G, (4,)),
        ValueError,
        r"scaler: expected one number, got shape \(4,\)",
    ),
    "text": (lambda: terngrad.ternary_decoder(BYTES, "1", (4,)), TypeError, "scaler: expected .* got builtins.str"),
    "no pairs": (
        lambda: terngrad.clip_gradients_by_stddev(7),
        TypeError,
        r"grads_and_vars: expected pairs \(gradient, variable\), got int",
    ),
    "no pair": (
        lambda: terngrad.clip_gradients_by_stddev([(G, 0), G]),
        TypeError,
        r"grads_and_vars\[1\]: expected a pair \(gradient, variable\), got ndarray",
    ),
    "three": (
        lambda: terngrad.clip_gradients_by_stddev([(G, 0, 0)]),
        TypeError,
        r"grads_and_vars\[0\]: expected a pair \(gradient, variable\), got 3 values",
    ),
    "integers": (
        lambda: terngrad.clip_gradients_by_stddev([(None, 0), (BYTES, 1)]),
        TypeError,
        r"grads_and_vars\[1\]\[0\]: expected float32, float16, bfloat16, float64, got numpy uint8",
    ),
    "factor": (
        lambda: terngrad.clip_gradients_by_stddev([(G, 0)], 0),
        ValueError,
        "clip_factor: expected a finite number > 0, got 0",
    ),
    "factor of text": (
        lambda: terngrad.gradient_binarizing_scalers([(G, 0)], "x"),
        TypeError,
        "clip_factor: expected a number, got str",
    ),
    "factor of nan": (
        lambda: terngrad.gradient_binarizing_scalers([(G, 0)], math.nan),
        ValueError,
        "clip_factor: expected a finite number, got nan",
    ),
    "thresholds": (
        lambda: terngrad.clip_gradients_by_thresholds([(G, 0)], [1, 2]),
        ValueError,
        "thresholds: expected 1, one per layer, got 2",
    ),
    "threshold": (
        lambda: terngrad.clip_gradients_by_thresholds([(None, 0), (G, 0)], [1, None]),
        TypeError,
        r"thresholds\[1\]: expected .* got builtins.NoneType",
    ),
    "scalers": (
        lambda: terngrad.stochastical_binarize_gradients([(G, 0)], 3),
        TypeError,
        "scalers: expected a sequence of one per layer, got int",
    ),
    "scalers of a layer": (
        lambda: terngrad.stochastical_binarize_gradients([(G, 0)], [G]),
        ValueError,
        r"scalers\[0\]: expected one number, got shape \(4,\)",
    ),
    "seed": (lambda: terngrad.stochastical_binarize_gradients([(G, 0)], [1], seed="a"), TypeError, "seed: "),
    "size_to_binarize": (
        lambda: terngrad.encode_to_ternary_gradients([(G, 0)], size_to_binarize=1.5),
        TypeError,
        "size_to_binarize: expected an int, got float",
    ),
    "shapes": (
        lambda: terngrad.decode_from_ternary_gradients([(BYTES, 0)], [1], []),
        ValueError,
        "shapes: expected 1, one per layer, got 0",
    ),
    "shapes of a layer": (
        lambda: terngrad.decode_from_ternary_gradients([(BYTES, 0)], [1], [(9,)]),
        ValueError,
        r"grads_and_vars\[0\]\[0\]: expected 3 bytes for shape \(9,\), got 2",
    ),
    "small": (
        lambda: terngrad.decode_from_ternary_gradients([(BYTES, 0)], [1], [(9,)], size_to_binarize=10),
        ValueError,
        r"grads_and_vars\[0\]\[0\]: expected 36 bytes for shape \(9,\), got 2",
    ),
    "no towers": (
        lambda: terngrad.max_scalers([]),
        ValueError,
        "tower_scalers: expected at least one worker's, got none",
    ),
    "towers": (
        lambda: terngrad.average_scalers([[1], [1, 2]]),
        ValueError,
        r"tower_scalers\[1\]: expected 1 layers as tower_scalers\[0\] has, got 2",
    ),
    "None in one": (
        lambda: terngrad.average_gradients([[(G, 0)], [(None, 0)]]),
        ValueError,
        r"tower_grads\[1\]\[0\]\[0\]: expected an array as tower_grads\[0\]\[0\]\[0\] is, got None",
    ),
    "shapes of towers": (
        lambda: terngrad.average_gradients([[(G, 0)], [(G[1:], 0)]]),
        ValueError,
        r"tower_grads\[1\]\[0\]\[0\]: expected shape \(4,\), got \(3,\)",
    ),
    "dtypes of towers": (
        lambda: terngrad.average_gradients([[(G, 0)], [(G.astype(np.float64), 0)]]),
        TypeError,
        r"tower_grads\[1\]\[0\]\[0\]: expected float32 as tower_grads\[0\]\[0\]\[0\] is, got float64",
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors_name_the_argument(what: str) -> None:
    call, kind, message = ERRORS[what]
    with pytest.raises(kind, match=message):
        call()


def test_errors_name_the_framework() -> None:
    torch = pytest.importorskip("torch")
    t = torch.ones(4)
    with pytest.raises(TypeError, match=r"scalers\[0\]: expected a number or a numpy array, got a torch array"):
        terngrad.stochastical_binarize_gradients([(G, 0)], [t[0]])
    with pytest.raises(TypeError, match=r"tower_grads\[1\]\[0\]\[0\]: expected a numpy array as .* got a torch array"):
        terngrad.average_gradients([[(G, 0)], [(t, 0)]])
