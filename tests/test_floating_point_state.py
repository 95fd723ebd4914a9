"""The same bits whatever floating-point state the host process is in, and that state is left as it was.

MXCSR belongs to the process: PyTorch offers a switch that flushes denormals, some libraries set it when they are
loaded, and any code may change the rounding mode. Everything expected is computed before the state is changed.
"""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arrays import DTYPES, KINDS, TERNARY, assert_all_same, assert_same_but_nan, bucket, layer

import reference as ref
import terngrad_kernels as tk
from terngrad_kernels import _core

DEFAULT = 0x1F80
FLAGS = 0x3F  # exceptions that have happened: not part of the state that is compared
STATES = {
    "default": DEFAULT,
    "ftz+daz": DEFAULT | 0x8040,
    "down": DEFAULT | 0x2000,
    "up": DEFAULT | 0x4000,
    "towards zero": DEFAULT | 0x6000,
    "up, ftz+daz": DEFAULT | 0x4000 | 0x8040,
}

SOURCE = """
#include <xmmintrin.h>
unsigned get_state(void) { return _mm_getcsr(); }
void set_state(unsigned state) { _mm_setcsr(state); }
float quotient(float a, float b) { volatile float x = a; return x / b; }
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A library that reads and sets this thread's state."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"MXCSR is a register of x86; this is {platform.machine()}")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler to build the helper with")
    folder: Path = tmp_path_factory.mktemp("host")
    (folder / "state.c").write_text(SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "state.so", folder / "state.c"], check=True)
    library = ctypes.CDLL(str(folder / "state.so"))
    library.get_state.restype = ctypes.c_uint
    library.quotient.restype = ctypes.c_float
    library.quotient.argtypes = [ctypes.c_float, ctypes.c_float]
    return library


@pytest.fixture(params=STATES)
def state(request: pytest.FixtureRequest, host: Any) -> Callable[[], Any]:
    """A context in that state, at the end of which it must still be set."""
    wanted = STATES[request.param]

    @contextmanager
    def changed() -> Iterator[None]:
        before = host.get_state()
        host.set_state(wanted)
        try:
            yield
            after = host.get_state()
        finally:
            host.set_state(before)
        assert after & ~FLAGS == wanted

    return changed


@pytest.mark.parametrize("name", STATES)
def test_the_states_are_what_they_are_called(host: Any, name: str) -> None:
    """Else the other tests of this file would show nothing."""
    host.set_state(STATES[name])
    try:
        third, minus_third, tiny = host.quotient(1, 3), host.quotient(-1, 3), host.quotient(1e-30, 1e12)
    finally:
        host.set_state(DEFAULT)
    nearest, below = np.float32(1 / 3), np.nextafter(np.float32(1 / 3), np.float32(0))
    assert third == (below if "down" in name or "zero" in name else nearest)
    assert minus_third == -(below if "up" in name or "zero" in name else nearest)
    assert (tiny == 0) == ("ftz" in name)


# ---- every operation on all kinds of layers, subnormal ones among them

SIZES = (3, 700, 2600)


@lru_cache
def layers_of_all_kinds(dtype: str) -> list[Any]:
    return [x for kind in KINDS for x in bucket(SIZES, dtype, kind)]


@lru_cache
def expected_message(dtype: str, packing: str) -> Any:
    return ref.encode(layers_of_all_kinds(dtype), packing=packing, seed=1)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("packing", [*TERNARY, "float32"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_encode_and_decode(dtype: str, packing: str, state: Callable[[], Any]) -> None:
    layers, message = layers_of_all_kinds(dtype), expected_message(dtype, packing)
    with state():
        packed = tk.encode(layers, packing=packing, seed=1)
        decoded = tk.decode(packed)
        tk.validate(packed)
    np.testing.assert_array_equal(packed.data, message)
    want = ref.decode(message, [x.size for x in layers], packing, dtype=dtype)
    assert_all_same(decoded, want, assert_same_but_nan)


@lru_cache
def expected_values(dtype: str) -> Any:
    layers = layers_of_all_kinds(dtype)
    return (
        ref.scales(layers, clip=1 / 3),
        ref.scales(layers, center=True),
        ref.clip(layers, clip=1 / 3),
        ref.ternarize(layers, clip=1 / 3, seed=1)[0],
    )


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", DTYPES)
def test_scales_clip_and_ternarize(dtype: str, state: Callable[[], Any]) -> None:
    layers = layers_of_all_kinds(dtype)
    want_scales, want_centred, want_clipped, want_trits = expected_values(dtype)
    with state():
        scales = tk.scales(layers, clip=1 / 3)
        centred = tk.scales(layers, center=True)
        clipped = tk.clip(layers, clip=1 / 3)
        trits, _ = tk.ternarize(layers, clip=1 / 3, seed=1)
    assert_all_same(scales, want_scales)
    assert_all_same(centred, want_centred)
    assert_all_same(clipped, want_clipped)
    assert_all_same(trits, want_trits)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight", [1 / 3, 1e-40, 1 + 2.0**-24])
def test_accumulate_and_sum(dtype: str, weight: float, state: Callable[[], Any]) -> None:
    sizes = (700, 2600, 40)
    messages = [ref.encode(bucket(sizes, kind=kind, seed=5), packing="two_bit") for kind in ("normal", "small")]
    layout = tk.Layout([(n,) for n in sizes], form="list")
    packed = [tk.Packed(layout, data) for data in messages]
    start = [layer(kind, n, dtype) for kind, n in zip(("normal", "subnormal", "wide"), sizes, strict=True)]
    out = [x.copy() for x in start]
    with state():
        tk.decode(packed[0], out=out, accumulate=True, weight=weight)
        total = tk.decode_sum(packed, weights=[weight, -weight], dtype=dtype)
        once = tk.decode(packed[1], dtype=dtype, weight=weight)
    assert_all_same(out, ref.decode(messages[0], sizes, out=start, weight=weight))
    assert_all_same(total, ref.decode_sum(messages, sizes, weights=[weight, -weight], dtype=dtype))
    assert_all_same(once, ref.decode(messages[1], sizes, weight=weight, dtype=dtype))


@lru_cache
def expected_sums(weight: float) -> Any:
    """Messages whose fields and carried values are subnormal or large as well, their sum, and second hops of both."""
    sizes, packing = (700, 2600, 40, 9, 700), ["two_bit", "base3", "float32", "two_bit", "float32"]
    messages = []
    for seed in range(3):
        x = [*bucket(sizes[:2]), *bucket(sizes[2:4], kind="subnormal", seed=seed), *bucket(sizes[4:], kind="wide")]
        given = [1 / 3, 0.7, 1, 1, 1], [np.inf] * 5
        messages.append(ref.encode(x, packing=packing, scales=given, seed=seed))
        messages[-1][12:16] = np.float32([1e-40]).view(np.uint8)  # not 0, and not to be taken for it
    total = ref.sum_trits([ref.Message(data, packing) for data in messages], sizes)
    options: dict[str, Any] = {"weights": [weight, -weight, 1 / 3], "clip": 1 / 3, "seed": 1, "offset": 2}
    again = ref.repack(messages, sizes, packing, **options)
    of_counts = ref.repack([total.data] * 3, sizes, total.packing, **options)
    return sizes, packing, messages, total, options, again, of_counts


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("weight", [1 / 3, 1e-40, 1 + 2.0**-24])
def test_sums_and_second_hops(weight: float, state: Callable[[], Any]) -> None:
    sizes, packing, messages, want, options, want_again, want_of_counts = expected_sums(weight)
    layout = tk.Layout([(n,) for n in sizes], packing=packing)
    packed = [tk.Packed(layout, data) for data in messages]
    with state():
        total = tk.sum_trits(packed)
        again = tk.repack(packed, **options)
        of_counts = tk.repack([total] * 3, **options)
    assert total.data[12:16].view(np.float32) == np.float32(1e-40)
    np.testing.assert_array_equal(total.data, want.data)
    np.testing.assert_array_equal(again.data, want_again)
    np.testing.assert_array_equal(of_counts.data, want_of_counts)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("scale", "limit"), [(1e-40, 1), (2.0**-60, 1e-42), (1, 1e-42), (3e38, 1e-38), (0.1, 0.03)])
def test_passed_scales(scale: float, limit: float, state: Callable[[], Any]) -> None:
    passed = tk.Scales(np.array([scale], np.float32), np.array([limit], np.float32))
    x = layer("wide", 3000)
    with state():
        packed = tk.encode(x, scales=passed)
        clipped = tk.clip(x, scales=passed)
    np.testing.assert_array_equal(packed.data, ref.encode([x], scales=passed))
    assert_all_same([clipped], ref.clip([x], scales=passed))


def test_inner_values(state: Callable[[], Any]) -> None:
    x = layer("wide", 3000)
    scale, limit = np.float32(0.1), np.float32(0.03)  # Python's float to C's rounds in the caller's state
    with state():
        thresholds = _core.thresholds(x, float(scale), float(limit))
        inverse = _core.inverse(float(scale), float(limit))
        statistics = _core.statistics(x, True)
    np.testing.assert_array_equal(thresholds, ref.thresholds(x, scale, limit))
    assert inverse == ref.inv_and_bound(scale, limit)
    assert statistics == ref.statistics(x, center=True)


def test_a_clip_that_denormals_are_flushed_to(state: Callable[[], Any]) -> None:
    x = layer("normal", 100)
    with state():
        packed = tk.encode(x, clip=5e-324)
    np.testing.assert_array_equal(packed.data, ref.encode([x], clip=5e-324))


@lru_cache
def long_layer() -> tuple[Any, Any]:
    x = layer("wide", 3 * 2**16 + 77)
    return x, ref.encode([x], seed=1)


@pytest.mark.usefixtures("threads")
def test_on_several_threads(state: Callable[[], Any]) -> None:
    """The pool's threads begin in the state of the thread that started them, and never take the caller's."""
    x, message = long_layer()
    with state():
        packed = tk.encode(x, seed=1)
        total = tk.decode_sum([packed, packed], weights=[1 / 3, 1e-40])
    np.testing.assert_array_equal(packed.data, message)
    assert_all_same([total], ref.decode_sum([message] * 2, [x.size], weights=[1 / 3, 1e-40]))


def test_an_error_restores_the_state_too(state: Callable[[], Any]) -> None:
    packed = tk.encode(layer("normal", 100))
    with state(), pytest.raises(ValueError, match="weight"):
        tk.decode(packed, weight=1e39)
    with state(), pytest.raises(tk.CorruptMessage):
        tk.validate(tk.Packed(packed.layout, np.full_like(packed.data, 0xAA)))


def test_under_torchs_own_switch() -> None:
    torch = pytest.importorskip("torch")
    x, message = layers_of_all_kinds("float32"), expected_message("float32", "two_bit")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        packed = tk.encode([torch.from_numpy(v) for v in x], seed=1)
        flushes = (torch.tensor([1e-40]) * 1).item() == 0
    finally:
        torch.set_flush_denormal(False)
    np.testing.assert_array_equal(packed.data.numpy(), message)
    assert flushes
