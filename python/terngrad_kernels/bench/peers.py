"""Alternatives to this package, measured alternately with it, and whether their draws are right.

Each peer says what it computes and how it differs. A draw is checked against the peer's own rule: an element between
two levels must come out as the upper one with the probability that makes it right on average, and independently
of all others (`check`). A peer that is fast but draws wrongly is shown as such.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import terngrad_kernels as tk

from .cases import Case, row
from .measure import Clock, Effort, EventClock, Place, Timing, alternate

__all__ = ["PEERS", "Drawing", "Peer", "Verdict", "check", "grace_compress", "measure_peers", "sigma_levels"]

CLIP = 2.5
Array = NDArray[Any]


class Drawing(NamedTuple):
    """A peer, ready to work.

    ``array`` makes its input of NumPy's, ``encode`` is what is timed, ``seed`` sets its generator, ``decode`` turns
    what ``encode`` gave for so many elements into float64 values. ``levels`` gives the lower and upper level that each
    element of an input lies between, None for a rounding without a draw.
    """

    array: Callable[[Array], Any]
    encode: Callable[[Any], Any]
    seed: Callable[[int], Any]
    decode: Callable[[Any, int], Array]
    levels: Callable[[Array], tuple[Array, Array, Array]] | None
    #: On a GPU: works on a stream of its own, so that only the host's clock sees it.
    own_stream: bool = False


class Peer(NamedTuple):
    """Another implementation: where it works, modules that it needs, bits per element that it makes, how it differs."""

    name: str
    devices: tuple[str, ...]
    needs: tuple[str, ...]
    bits: float
    says: str
    build: Callable[[Place], Drawing]


# ---- what is right


def sigma_levels(x: Array) -> tuple[Array, Array, Array]:
    """Return the clipped gradient and the levels around each element, 0 and +-scale, clipped at 2.5 sigma.

    Parameters
    ----------
    x : array of float32
        A gradient.

    Returns
    -------
    tuple of three arrays of float64
        What the mean of many draws must be, the lower level and the upper one.
    """
    return _ternary_levels(x, float(CLIP * x.std(dtype=np.float64)))


def _ternary_levels(x: Array, limit: float) -> tuple[Array, Array, Array]:
    target = np.clip(x.astype(np.float64), -limit, limit)
    scale = np.abs(target).max()
    return target, np.where(target < 0, -scale, 0.0), np.where(target < 0, 0.0, scale)


def _our_levels(x: Array) -> tuple[Array, Array, Array]:
    return _ternary_levels(x, float(tk.scales(x).limit[0]))


def _rms_levels(x: Array) -> tuple[Array, Array, Array]:
    return _ternary_levels(x, CLIP * math.sqrt(np.square(x, dtype=np.float64).mean()))


def _range_levels(x: Array) -> tuple[Array, Array, Array]:
    """Four levels from the minimum to the maximum, nothing clipped."""
    low, high = float(x.min()), float(x.max())
    gap = (high - low) / 3
    below = low + gap * np.minimum(np.floor((x.astype(np.float64) - low) / gap), 2)
    return x.astype(np.float64), below, below + gap


class Verdict(NamedTuple):
    """What `check` found: words, its largest statistic in standard deviations with its name, and what it can see."""

    unbiased: str
    independent: str
    worst: str
    deviations: float | None
    #: The smallest bias of all magnitudes together that would have been seen, in units of the gap between levels.
    visible: float | None


#: Of one check as a whole: how often a right peer is called wrong.
FALSE_ALARM = 1e-6
DRAWS = 200
CHECKED = 16384
_LAGS = (1, 2, 3, 4, 8, 128)
_OCTAVES = 8


def check(draw: Callable[[int], Array], target: Array, low: Array, high: Array, draws: int = DRAWS) -> Verdict:
    """Hold many draws against what they should be on average, and against draws that are independent.

    Bias: the mean over the draws of the error outward (to the level farther from zero), summed over the elements whose
    probability lies in one octave; its spread is that of the draws themselves, so that draws which go together do not
    pass for biased; and the mean of any one element, by Chernoff's bound. Independence: the variance of a draw's sum
    over the layer, products of elements 1 to 128 apart, and the variance of each element's mean, all against those of
    independent draws. Statistics are in standard deviations; all together a right peer fails with probability 1e-6.

    Parameters
    ----------
    draw : callable
        Gives the decoded float64 values for a seed.
    target, low, high : arrays of float64
        The mean that is right, and the two levels around each element.
    draws : int
        How many.

    Returns
    -------
    Verdict
        In words, and the worst statistic.
    """
    gap = high - low
    chance = np.clip((target - low) / gap, 0, 1)
    variance = gap * gap * chance * (1 - chance)
    deviation = np.sqrt(variance, out=np.ones_like(variance), where=variance > 0)
    common = np.minimum(chance, 1 - chance) > 0.02  # whose products are not heavy-tailed
    outward = np.where(target < 0, -1.0, 1.0)
    farther = np.where(target < 0, 1 - chance, chance)
    octave = np.minimum(-np.log2(np.maximum(farther, 2.0**-_OCTAVES)).astype(int), _OCTAVES - 1)
    leaning = np.zeros((draws, _OCTAVES))
    sums = np.zeros_like(target)
    totals = np.zeros(draws)
    products = np.zeros(len(_LAGS))
    for k in range(draws):
        values = draw(k)
        off = np.minimum(np.abs(values - low), np.abs(values - high)) > 1e-4 * gap
        if off.any():
            return Verdict("WRONG LEVELS", "-", f"{off.mean():.1%} of the elements", None, None)
        lost = (variance == 0) & (np.abs(values - target) > 1e-4 * gap)
        if lost.any():
            return Verdict("BIASED", "-", "elements whose level is certain", None, None)
        error = values - target
        leaning[k] = np.bincount(octave, outward * error, _OCTAVES)
        standard = np.where(common, error / deviation, 0)
        sums += standard
        totals[k] = standard.sum() / math.sqrt(common.sum())
        products += [standard[:-lag] @ standard[lag:] for lag in _LAGS]

    biases: dict[str, float] = {}
    for i in np.flatnonzero(np.bincount(octave, farther, _OCTAVES) * draws >= 100):
        spread = float(leaning[:, i].std(ddof=1)) / math.sqrt(draws)
        t = float(leaning[:, i].mean()) / spread if spread else 0.0
        freedom = draws - 1  # Student's t to a normal's
        biases[f"mean of probabilities to 2^-{i}"] = t * (1 - 0.25 / freedom) / math.sqrt(1 + t * t / (2 * freedom))
    # No binomial mean lies farther from p, by Kullback's and Leibler's divergence d, with more than 2 exp(-draws d).
    raised = np.clip(chance + sums * deviation / (gap * draws), 0, 1)[common]
    p = chance[common]
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = raised * np.log(raised / p), (1 - raised) * np.log((1 - raised) / (1 - p))
    divergence = sum(np.where(np.isnan(part), 0, part) for part in parts)
    biases["mean of one element"] = _critical(2 * p.size * math.exp(-draws * float(np.max(divergence))))
    third = 2 / (9 * draws)  # Wilson and Hilferty: the cube root of chi-squared is nearly normal
    going = {"variance of sums": (float((totals**2).mean()) ** (1 / 3) - (1 - third)) / math.sqrt(third)}
    for lag, product in zip(_LAGS, products, strict=True):
        pairs = int((common[:-lag] & common[lag:]).sum())
        going[f"elements {lag} apart"] = float(product) / math.sqrt(draws * pairs)
    # The square of a standardised mean varies by 2 and by what the draws' fourth moment has above a normal's.
    excess = (1 / variance[common] * (gap * gap)[common] - 6) / draws
    going["variance of means"] = float((sums[common] ** 2 / draws - 1).sum() / math.sqrt((2 + excess).sum()))

    everything = biases | going
    critical = _critical(FALSE_ALARM / len(everything))
    worst = max(everything, key=lambda name: abs(everything[name]))
    return Verdict(
        "BIASED" if any(abs(value) > critical for value in biases.values()) else "yes",
        "CORRELATED" if any(abs(value) > critical for value in going.values()) else "yes",
        worst,
        everything[worst],
        critical * math.sqrt(variance.sum() / draws) / target.size / float(gap.max()),
    )


def _critical(chance: float) -> float:
    """Return what a standard normal exceeds on either side with this probability."""
    low, high = 0.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if math.erfc(middle / math.sqrt(2)) > chance else (low, middle)
    return high


# ---- the peers

_CODES = np.array([0, 1, 0, -1], np.float64)


def _unpacked(result: tuple[Any, Any], n: int) -> Array:
    """Decode int8 trits and a scale of any framework."""
    trits, scale = map(_host, result)
    return trits.reshape(-1)[:n].astype(np.float64) * float(scale.reshape(-1)[0])


def _ours(place: Place) -> Drawing:
    state = {"seed": 1}
    return Drawing(
        place.array,
        lambda x: tk.encode(x, seed=state["seed"]),
        lambda seed: state.update(seed=seed),
        lambda packed, n: _host(tk.decode(packed)).astype(np.float64),
        _our_levels,
    )


def _host(array: Any) -> Array:
    if hasattr(array, "cpu"):
        array = array.cpu()
    return np.asarray(array.get() if hasattr(array, "get") else array)


def _numpy_ternarize(x: Any, rng: Any, xp: Any = np) -> tuple[Any, Any]:
    limit = CLIP * x.std()
    clipped = xp.clip(x, -limit, limit)
    magnitude = xp.abs(clipped)
    scale = magnitude.max()
    fires = rng.random(x.shape, dtype=xp.float32) < magnitude / scale
    return (xp.sign(clipped) * fires).astype(xp.int8), scale


def _array_library(array: Callable[[Array], Any], xp: Any) -> Drawing:
    state = {"rng": xp.random.default_rng(0)}
    return Drawing(
        array,
        lambda x: _numpy_ternarize(x, state["rng"], xp),
        lambda seed: state.update(rng=xp.random.default_rng(seed)),
        _unpacked,
        sigma_levels,
    )


def _numpy(place: Place) -> Drawing:
    return _array_library(place.array, np)


def _cupy(place: Place) -> Drawing:
    cupy = importlib.import_module("cupy")
    return _array_library(cupy.asarray, cupy)  # whatever the place's own arrays are


def _numpy_packed(place: Place) -> Drawing:
    """Plain NumPy, the whole job of `encode`: four codes in a byte, quarter by quarter."""
    state = {"rng": np.random.default_rng(0)}

    def encode(x: Any) -> tuple[Any, Any]:
        limit = CLIP * np.std(x)
        clipped = np.clip(x, -limit, limit)
        scale = np.max(np.abs(clipped))
        fires = state["rng"].random(x.shape) < np.abs(clipped) / scale
        codes = (np.sign(clipped) * fires).astype(np.int8).view(np.uint8) & 3
        quarters = codes.reshape(4, -1)
        return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6, scale

    def decode(result: tuple[Any, Any], n: int) -> Array:
        payload, scale = result
        return np.concatenate([_CODES[payload >> 2 * i & 3] for i in range(4)])[:n] * float(scale)

    seed = lambda seed: state.update(rng=np.random.default_rng(seed))  # noqa: E731
    return Drawing(place.array, encode, seed, decode, sigma_levels)


def _neighbours(result: tuple[Any, Any], n: int) -> Array:
    """Decode four neighbours in a byte."""
    payload, scale = map(_host, result)
    values: Array = _CODES[payload[:, None] >> np.arange(0, 8, 2) & 3].reshape(-1)[:n]
    return values * float(scale)


def _numba(place: Place) -> Drawing:
    """Three loops and a draw of NumPy's generator, four codes in a byte; one thread."""
    numba = importlib.import_module("numba")

    @numba.njit  # type: ignore[untyped-decorator]
    def seed(value: int) -> None:
        np.random.seed(value)

    @numba.njit  # type: ignore[untyped-decorator]
    def encode(x: Any) -> tuple[Any, Any]:
        limit, scale = _numba_scale(x)
        payload = np.zeros((x.size + 3) // 4, np.uint8)
        for i in range(x.size):
            if np.random.random() * scale < min(abs(x[i]), limit):
                payload[i // 4] |= (3 if x[i] < 0 else 1) << 2 * (i % 4)
        return payload, scale

    _numba_scale = numba.njit(_loop_scale)
    return Drawing(place.array, encode, seed, _neighbours, sigma_levels)


def _loop_scale(x: Any) -> tuple[Any, Any]:
    """Limit and scale by plain loops, which Numba compiles."""
    total = 0.0
    squares = 0.0
    for value in x:
        total += value
        squares += value * value
    mean = total / x.size
    limit = np.float32(CLIP * np.sqrt(squares / x.size - mean * mean))
    scale = np.float32(0)
    for value in x:
        scale = max(scale, min(abs(value), limit))
    return limit, scale


def _numba_lcg(place: Place) -> Drawing:
    """The same with a linear congruential generator in the loop, which the step seeds."""
    numba = importlib.import_module("numba")
    state = {"seed": 1}
    _numba_scale = numba.njit(_loop_scale)

    @numba.njit  # type: ignore[untyped-decorator]
    def encode(x: Any, seed: int) -> tuple[Any, Any]:
        limit, scale = _numba_scale(x)
        payload = np.zeros((x.size + 3) // 4, np.uint8)
        word = np.uint32(seed)
        for i in range(x.size):
            word = np.uint32(word * np.uint32(1664525) + np.uint32(1013904223))
            if np.float32(word >> np.uint32(8)) * np.float32(2**-24) * scale < min(abs(x[i]), limit):
                payload[i // 4] |= (3 if x[i] < 0 else 1) << 2 * (i % 4)
        return payload, scale

    run = lambda x: encode(x, state["seed"])  # noqa: E731
    return Drawing(place.array, run, lambda seed: state.update(seed=seed), _neighbours, sigma_levels)


def _torch_array(place: Place) -> tuple[Any, Callable[[Array], Any]]:
    torch = importlib.import_module("torch")
    if place.device == "cpu":
        torch.set_num_threads(1)
        return torch, torch.from_numpy
    return torch, place.array if place.name == "torch" else lambda values: torch.from_numpy(values).cuda()


def _torch_function(torch: Any) -> Callable[[Any], tuple[Any, Any]]:
    def ternarize(x: Any) -> tuple[Any, Any]:
        limit = CLIP * x.std(unbiased=False)
        clipped = torch.clamp(x, -limit, limit)
        magnitude = clipped.abs()
        scale = magnitude.max()
        fires = torch.rand(x.shape, device=x.device) < magnitude / scale
        return (clipped.sign() * fires).to(torch.int8), scale

    return ternarize


def _triton(place: Place) -> Drawing:
    torch, array = _torch_array(place)
    encode = importlib.import_module(f"{__package__}.triton_peer").encoder(torch, CLIP)
    state = {"seed": 1}
    seed = lambda seed: state.update(seed=seed)  # noqa: E731
    return Drawing(array, lambda x: encode(x, state["seed"]), seed, _neighbours, _rms_levels)


def _torch_eager(place: Place) -> Drawing:
    torch, array = _torch_array(place)
    return Drawing(array, _torch_function(torch), torch.manual_seed, _unpacked, sigma_levels)


def _torch_compile(place: Place) -> Drawing:
    torch, array = _torch_array(place)
    torch.compiler.reset()  # another size would be compiled as a variable one
    compiled = torch.compile(_torch_function(torch), dynamic=False)
    return Drawing(array, compiled, torch.manual_seed, _unpacked, sigma_levels)


def _jax_jit(place: Place) -> Drawing:
    jax = importlib.import_module("jax")
    state = {"key": jax.random.key(0)}

    @jax.jit  # type: ignore[untyped-decorator]
    def ternarize(x: Any, key: Any) -> tuple[Any, Any]:
        limit = CLIP * x.std()
        clipped = x.clip(-limit, limit)
        magnitude = abs(clipped)
        scale = magnitude.max()
        fires = jax.random.uniform(key, x.shape) < magnitude / scale
        return (jax.numpy.sign(clipped) * fires).astype("int8"), scale

    return Drawing(
        jax.numpy.asarray,
        lambda x: jax.block_until_ready(ternarize(x, state["key"])),
        lambda seed: state.update(key=jax.random.key(seed)),
        _unpacked,
        sigma_levels,
        own_stream=True,
    )


def grace_compress(x: Any) -> tuple[Any, Any]:
    """GRACE's algorithm on torch: signs as int8, those below a uniform draw in [0, scale) set to zero by a mask.

    Parameters
    ----------
    x : torch.Tensor
        A gradient.

    Returns
    -------
    tuple of torch.Tensor
        The signs, flat, and the scale, of one element.
    """
    flat = x.flatten()
    deviation = (flat - flat.mean()).square().mean().sqrt()
    limit = (CLIP * deviation).item()
    clipped = flat.clamp(-limit, limit)
    magnitude = clipped.abs()
    scale = magnitude.max()
    signs = clipped.sign()
    draws = flat.new_empty(flat.shape).uniform_(0, scale.item())
    signs[draws >= magnitude] = 0
    return signs.char(), scale.reshape(1)


def _grace(place: Place) -> Drawing:
    torch, array = _torch_array(place)
    return Drawing(array, grace_compress, torch.manual_seed, _unpacked, sigma_levels)


def _hipress(place: Place) -> Drawing:
    torch, array = _torch_array(place)

    def compress(x: Any) -> tuple[Any, Any, Any]:
        low, high = x.aminmax()
        gap = (high - low) / 3
        draws = torch.rand(4, device=x.device)  # those of every byte: its generator is seeded like all others
        levels = ((x - low) / gap).reshape(-1, 4).add_(draws).floor_().clamp_(0, 3).to(torch.uint8)
        payload = levels[:, 0] | levels[:, 1] << 2 | levels[:, 2] << 4 | levels[:, 3] << 6
        return payload, low, gap

    def decode(result: tuple[Any, Any, Any], n: int) -> Array:
        payload, low, gap = (_host(part) for part in result)
        levels: Array = (payload[:, None] >> np.arange(0, 8, 2) & 3).reshape(-1)[:n]
        return levels * float(gap) + float(low)

    return Drawing(array, compress, torch.manual_seed, decode, _range_levels)


def _cast(name: str) -> Callable[[Place], Drawing]:
    def build(place: Place) -> Drawing:
        torch, array = _torch_array(place)
        dtype = getattr(torch, name)
        decode = lambda result, n: _host(result.double())  # noqa: E731
        return Drawing(array, lambda x: x.to(dtype), torch.manual_seed, decode, None)

    return build


ANYWHERE = ("cpu", "cuda")
_UNPACKED = "trits as int8, nothing packed; sigma about the mean"
PEERS: tuple[Peer, ...] = (
    Peer(
        "terngrad_kernels",
        ANYWHERE,
        (),
        2,
        "encode: clip, scale, draw, two-bit message; the same bits on every machine",
        _ours,
    ),
    Peer("NumPy", ("cpu",), (), 8, f"float32 throughout; {_UNPACKED}", _numpy),
    Peer(
        "NumPy, packed",
        ("cpu",),
        (),
        2,
        "the whole job, float64 draws; packed by shifts and ors; sigma about the mean",
        _numpy_packed,
    ),
    Peer("numba", ("cpu",), ("numba",), 2, "three loops, NumPy's generator element by element; packed", _numba),
    Peer(
        "numba, LCG",
        ("cpu",),
        ("numba",),
        2,
        "the same, draws by a 32-bit LCG that the step seeds: what one writes to be fast",
        _numba_lcg,
    ),
    Peer("torch eager", ANYWHERE, ("torch",), 8, f"a kernel an operator; {_UNPACKED}", _torch_eager),
    Peer("torch.compile", ANYWHERE, ("torch",), 8, f"the same, fused by Inductor; {_UNPACKED}", _torch_compile),
    Peer("JAX jit", ANYWHERE, ("jax",), 8, f"fused by XLA, Threefry draws; {_UNPACKED}", _jax_jit),
    Peer("CuPy", ("cuda",), ("cupy",), 8, f"NumPy's program on the GPU; {_UNPACKED}", _cupy),
    Peer(
        "Triton",
        ("cuda",),
        ("triton", "torch"),
        2,
        "two kernels by hand, reductions by torch between them; packed, a seed a call",
        _triton,
    ),
    Peer(
        "GRACE",
        ANYWHERE,
        ("torch",),
        8,
        "its algorithm on torch: int8 signs under a mask; waits for the host twice",
        _grace,
    ),
    Peer(
        "HiPress",
        ANYWHERE,
        ("torch",),
        2,
        "its algorithm on torch: four levels from min to max, one draw for all bytes; not ternary",
        _hipress,
    ),
    Peer("cast to float16", ANYWHERE, ("torch",), 16, "context: no quantising, rounds to nearest", _cast("float16")),
    Peer("cast to bfloat16", ANYWHERE, ("torch",), 16, "context: no quantising, rounds to nearest", _cast("bfloat16")),
)


# ---- measuring them


def set_up_frameworks() -> None:
    """Keep XLA to one thread, as the others are, and TensorFlow quiet; works before they are imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")


def built(place: Place, note: Callable[[str], None], peers: Sequence[Peer] = PEERS) -> Iterator[tuple[Peer, Drawing]]:
    """Yield the peers that can work here; note the others."""
    for peer in peers:
        if place.device not in peer.devices:
            continue
        missing = [name for name in peer.needs if importlib.util.find_spec(name) is None]
        if missing:
            note(f"peer {peer.name}: {', '.join(missing)} not installed")
            continue
        try:
            yield peer, peer.build(place)
        except Exception as error:
            note(f"peer {peer.name}: {type(error).__name__}: {error}".partition("\n")[0])


def measure_peers(
    place: Place, elements: int, effort: Effort, note: Callable[[str], None], done: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Check and measure the peers that are installed, all in alternation with ours.

    Parameters
    ----------
    place : Place
        Where.
    elements : int
        Of the gradient that is encoded; a multiple of 4.
    effort : Effort
        How long.
    note, done : callable
        Told what was left out, and each peer that has been measured.

    Yields
    ------
    dict
        A row for each peer, with ``bits``, ``says`` and ``check``.
    """
    tk.set_num_threads(1)
    some = np.random.default_rng(0).standard_normal(min(elements, 1 << 22), dtype=np.float32)
    small, large = some[:CHECKED], np.resize(some, elements)
    ready: list[tuple[Peer, Drawing, Any]] = []
    verdicts: list[Verdict | None] = []
    for peer, drawing in built(place, note):
        try:
            verdicts.append(_verdict(drawing, small))
            drawing.encode(drawing.array(large))
        except Exception as error:
            note(f"peer {peer.name}: {type(error).__name__}: {error}".partition("\n")[0])
            del verdicts[len(ready) :]
            continue
        ready.append((peer, drawing, drawing.array(large)))
    for clock in place.clocks():
        by_host = [drawing.own_stream and isinstance(clock, EventClock) for _, drawing, _ in ready]
        timings: dict[int, Timing] = {}
        for host in (False, True):
            chosen = [i for i in range(len(ready)) if by_host[i] is host]
            calls = [lambda i=i: ready[i][1].encode(ready[i][2]) for i in chosen]
            told = lambda k, chosen=chosen: done(ready[chosen[k]][0].name)  # noqa: E731
            timings |= zip(chosen, alternate(calls, Clock() if host else clock, effort, told), strict=True)
        for i, (peer, _, _) in enumerate(ready):
            case = Case("peers", peer.name, elements, packing="", device=place.device, framework=place.name)
            says = peer.says + (" (by the host's clock)" if by_host[i] else "")
            verdict = verdicts[i]
            made = row(case, timings[i], cache=clock.cache)
            yield {**made, "bits": peer.bits, "says": says, "check": verdict and verdict._asdict()}


def _verdict(drawing: Drawing, x: Array) -> Verdict | None:
    if drawing.levels is None:
        return None
    array = drawing.array(x)

    def draw(seed: int) -> Array:
        drawing.seed(seed)
        return drawing.decode(drawing.encode(array), x.size)

    return check(draw, *drawing.levels(x))
