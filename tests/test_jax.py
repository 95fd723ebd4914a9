"""JAX's traced values: the same bytes under jit, vmap, grad, shard_map and export as eagerly with NumPy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arrays import DTYPES, KINDS, PACKINGS, TERNARY, Array, Jax, assert_all_same, assert_same, bucket, flat, layer

import terngrad_kernels as tk
from terngrad_kernels import _core

jax = pytest.importorskip("jax")
jnp = jax.numpy
if not hasattr(jax, "ffi"):
    pytest.skip("jax.ffi came with JAX 0.5", allow_module_level=True)

BINDINGS = Path(__file__).resolve().parents[1] / "csrc" / "bindings"


@pytest.fixture(autouse=True)
def _types_of_64_bits(request: pytest.FixtureRequest) -> Iterator[None]:
    """64-bit types everywhere but in tests that say they do without, as JAX does by default."""
    if "without_x64" in request.node.name:
        yield
        return
    with Jax().with_64_bits():
        yield


def same_results(got: Any, want: Any) -> None:
    """Assert equal structure, dtypes, shapes and bits: what is JAX's on the left, NumPy's on the right."""
    if isinstance(want, (tk.Packed, tk.Counts)):
        assert type(got) is type(want)
        assert got.layout == want.layout
        assert isinstance(want, tk.Packed) or got.workers == want.workers
        got, want = got.data, want.data
    if isinstance(want, (list, tuple)):
        assert type(got) is type(want)
        for a, b in zip(got, want, strict=True):
            same_results(a, b)
        return
    assert isinstance(got, jax.Array)
    assert got.shape == want.shape
    assert_same(np.asarray(got), want)


def check(function: Callable[..., Any], *arguments: Any) -> Any:
    """Assert that a jitted function of JAX's arrays gives what it gives of NumPy's; return the latter."""
    want = function(*arguments)
    got = jax.jit(function)(*jax.tree_util.tree_map(jnp.asarray, arguments))
    same_results(got, want)
    return want


# ---- every operation

SHAPES = ((7, 100), (5200,), (), (3, 0), (1,), (2, 3, 5, 7))


def check_operations(x: Any) -> None:
    """One array or a list of them: all operations that take layers, with own scales and with passed ones."""
    for center in (False, True):
        scales = check(partial(tk.scales, center=center), x)
        check(partial(tk.clip, clip=1.5, center=center), x)
    check(lambda x, s: tk.clip(x, scales=s), x, scales)
    check(lambda x: tk.ternarize(x, seed=7, offset=3, layer=2, clip=None), x)
    check(lambda x, s: tk.ternarize(x, seed=-7, scales=s), x, scales)
    for packing in PACKINGS:
        packed = check(partial(tk.encode, packing=packing, seed=7, offset=2**63, layer=5), x)
        check(lambda x, s, packing=packing: tk.encode(x, packing=packing, scales=s), x, scales)
        check(tk.decode, packed)
        check(lambda p: tk.decode(p, weight=-0.25, dtype="float32"), packed)
        check(lambda p: tk.decode_sum([p, p, p], weights=[0.5, -1, 2]), packed)
        assert_same(np.asarray(jax.jit(lambda p: p.scales)(packed)), packed.scales)
        assert_same(np.asarray(jax.jit(lambda p: p.payload)(packed)), packed.payload)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_array(dtype: str) -> None:
    for shape in SHAPES:
        check_operations(layer("normal", int(np.prod(shape)), dtype).reshape(shape))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_list(dtype: str) -> None:
    layers = [
        x.reshape(shape) for x, shape in zip(bucket([int(np.prod(s)) for s in SHAPES], dtype), SHAPES, strict=True)
    ]
    check_operations(layers)
    check_operations(layers[:1])
    names = ["two_bit", "base3", "float32"] * 2
    check(tk.decode, check(lambda x: tk.encode(x, packing=names), layers))
    check(lambda x: tk.encode(x, packing=names, block=2560), layers)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_every_kind(kind: str) -> None:
    """XLA's threads flush denormals; these bits do not know."""
    for dtype in DTYPES:
        x = layer(kind, 3000, dtype)
        check(tk.decode, check(tk.encode, x))
        check(tk.scales, x)
        check(tk.clip, x)


@pytest.mark.parametrize("form", ["flat", "list"])
def test_layouts(form: str) -> None:
    sizes = (15000, 0, 33)
    layers = bucket(sizes)
    layout = tk.Layout([(n,) for n in sizes], "float32", ["two_bit", "float32", "base3"], 2560, 3, form)
    packed = check(lambda x: tk.encode(x, layout=layout, seed=1), flat(layers))
    check(lambda x: tk.encode(x, layout=layout, seed=1), layers)
    check(tk.decode, packed)
    check(lambda x: tk.scales(x, layout=layout), flat(layers))
    for i in range(3):
        shard = layout.shard(i)
        x = flat([layers[piece.layer][piece.first % 15000 :][: piece.size] for piece in shard.pieces])
        part = check(partial(tk.encode, layout=shard), x)
        check(tk.decode, part)


def test_messages_in_one_array() -> None:
    x = layer("normal", 3000)
    packed = [tk.encode(x, seed=i) for i in range(4)]
    rows = np.stack([p.data for p in packed])
    layout = packed[0].layout
    for weights in (None, [0.25] * 4, [1, 2, 3, 4]):
        want = check(partial(tk.decode_sum, weights=weights), tk.Packed(layout, rows))
        assert_same(want, tk.decode_sum(packed, weights=weights))
    check(lambda p: tk.decode_sum(p, weights=[0.25]), tk.Packed(layout, rows[:1]))


@pytest.mark.parametrize("block", [None, 2560])
def test_counts_and_second_hops(block: int | None) -> None:
    layers = bucket([6000, 0, 33])
    shared = tk.scales(layers, block=block)
    encode = partial(tk.encode, layers, scales=shared, block=block)
    packed = [encode(packing=["two_bit", "base3", "float32"], seed=i) for i in range(3)]
    counts = check(lambda p: tk.sum_trits(p), packed)
    assert isinstance(counts, tk.Counts)
    again = check(lambda p, c: tk.sum_trits([*p, c, c]), packed, counts)
    assert again.workers == 9
    rows = tk.Packed(packed[0].layout, np.stack([p.data for p in packed]))
    check(tk.sum_trits, rows)
    check(tk.sum_trits, tk.Counts(counts.layout, 3, np.stack([counts.data] * 2)))
    check(partial(tk.decode, weight=1 / 3), counts)
    check(partial(tk.decode_sum, weights=[0.5, 0.25]), [counts, counts])
    for messages in (packed, rows, [counts, counts], counts):
        check(partial(tk.repack, seed=5, offset=2**40, layer=3), messages)
        check(lambda m, s: tk.repack(m, seed=5, offset=6, scales=s, clip=1.5), messages, shared)
    weights = [0.5, 0.25, 1]
    packing = ["base3", "two_bit", "float32"]
    check(partial(tk.repack, seed=5, offset=6, clip=2.5, weights=weights, packing=packing), packed)
    seeded = jax.jit(lambda p, s, o: tk.repack(p, seed=s, offset=o))
    same_results(seeded(packed, np.int64(-5), 7), tk.repack(packed, seed=-5, offset=7))


def test_pack_and_unpack() -> None:
    trits = np.random.default_rng(0).integers(-1, 2, (7, 300)).astype(np.int8)
    for packing in TERNARY:
        payload = check(partial(tk.pack, packing=packing), trits)
        check(partial(tk.unpack, shape=(7, 300), packing=packing), payload)


def test_nothing_at_all() -> None:
    layout = tk.Layout([], form="list")
    empty = jnp.zeros(0, jnp.uint8)
    assert jax.jit(lambda data: tk.decode(tk.Packed(layout, data)))(empty) == []
    check(lambda x: tk.encode(x, layout=tk.Layout([])), np.zeros(0, np.float32))
    check(lambda x: tk.unpack(tk.pack(x), shape=0), np.zeros(0, np.int8))
    assert isinstance(jax.jit(lambda: tk.encode([]))().data, jax.Array)  # made of NumPy's, which jit returns as its own


def test_bfloat16_and_float64_results_without_x64() -> None:
    x = layer("normal", 700)
    packed = jax.jit(tk.encode)(x)
    assert_same(np.asarray(packed.data), tk.encode(x).data)
    decoded = jax.jit(lambda p: tk.decode(p, dtype="float64"))(packed)
    assert decoded.dtype == jnp.float32  # as eagerly
    assert_same(np.asarray(decoded), tk.decode(tk.encode(x)))
    half = jax.jit(lambda p: tk.decode(p, dtype=jnp.bfloat16))(packed)
    assert_same(np.asarray(half), tk.decode(tk.encode(x), dtype="bfloat16"))


# ---- seeds and offsets

X = layer("normal", 1000)


@pytest.mark.parametrize("value", [0, 5, -5, 2**63 - 1, -(2**63)])
def test_traced_words(value: int) -> None:
    x, number = jnp.asarray(X), np.array(value, np.int64)
    want = tk.encode(X, seed=value, offset=~value)
    for word in (lambda v: v, lambda v: v.reshape(1), lambda v: v.reshape(1).view(np.uint32)):
        got = jax.jit(lambda x, s, o: tk.encode(x, seed=s, offset=o))(X, word(number), word(~number))
        same_results(got, want)
    same_results(jax.jit(lambda s: tk.encode(x, seed=s, offset=~value))(number), want)
    same_results(jax.jit(lambda x: tk.encode(x, seed=number, offset=~value))(X), want)
    same_results(jax.jit(lambda x, s: tk.ternarize(x, seed=s))(X, number), tk.ternarize(X, seed=value))


@pytest.mark.parametrize("value", [2**64 - 1, 2**63])
def test_large_ints(value: int) -> None:
    same_results(jax.jit(lambda x: tk.encode(x, seed=value))(X), tk.encode(X, seed=value))


@pytest.mark.parametrize("value", [0, 5, -5, 2**31 - 1, -(2**31)])
def test_ints_of_32_bits_without_x64(value: int) -> None:
    """What jit makes of a Python int; the same values eagerly."""
    want = tk.encode(X, seed=value, offset=value)
    same_results(jax.jit(lambda x, s: tk.encode(x, seed=s, offset=s))(X, value), want)
    same_results(tk.encode(jnp.asarray(X), seed=jnp.asarray(value), offset=jnp.int32(value)), want)


def test_keys_without_x64() -> None:
    key = jax.random.key_data(jax.random.key(7))
    low, high = (int(word) for word in key)
    same_results(jax.jit(lambda x, k: tk.encode(x, seed=k))(X, key), tk.encode(X, seed=low + (high << 32)))


def test_new_seeds_and_offsets_compile_nothing() -> None:
    traced = 0

    @jax.jit
    def encode(x: Any, seed: Any, offset: Any) -> Any:
        nonlocal traced
        traced += 1
        return tk.encode(x, seed=seed, offset=offset)

    for step in range(5):
        same_results(encode(X, np.array([step, 1], np.uint32), step), tk.encode(X, seed=step + 2**32, offset=step))
    assert traced == 1
    assert encode._cache_size() == 1


def test_steps_of_a_loop() -> None:
    """The program of a whole training loop: the offset is the loop's own counter."""
    wanted = [tk.encode(X, seed=3, offset=step).data for step in range(4)]
    _, scanned = jax.lax.scan(
        lambda x, step: (x, tk.encode(x, seed=3, offset=step).data), jnp.asarray(X), jnp.arange(4)
    )
    assert_all_same(list(np.asarray(scanned)), wanted)

    def body(step: Any, rows: Any) -> Any:
        return rows.at[step].set(tk.encode(jnp.asarray(X), seed=3, offset=step).data)

    rows = jax.lax.fori_loop(0, 4, body, jnp.zeros((4, len(wanted[0])), jnp.uint8))
    assert_all_same(list(np.asarray(rows)), wanted)
    chosen = jax.jit(lambda x, p: jax.lax.cond(p, tk.encode, lambda x: tk.encode(x, seed=1), x))
    same_results(chosen(X, True), tk.encode(X))
    same_results(chosen(X, False), tk.encode(X, seed=1))


# ---- transformations


def test_vmap_gives_what_each_row_gives_alone() -> None:
    rows = np.stack(bucket([3000] * 4))
    seeds = np.arange(4)
    wanted = [tk.encode(row, seed=3).data for row in rows]
    for jitted in (jax.jit, lambda f: f):
        encode = jitted(jax.vmap(lambda x: tk.encode(x, seed=3)))
        packed = encode(jnp.asarray(rows))
        assert packed.data.shape == (4, packed.layout.nbytes)
        assert_all_same(list(np.asarray(packed.data)), wanted)
        decoded = jitted(jax.vmap(tk.decode))(packed)
        assert_all_same(list(np.asarray(decoded)), [tk.decode(tk.encode(row, seed=3)) for row in rows])
    columns = jax.vmap(lambda x: tk.encode(x, seed=3).data, in_axes=1, out_axes=1)(jnp.asarray(rows.T))
    assert_all_same(list(np.asarray(columns).T), wanted)
    own = jax.vmap(lambda x, s: tk.encode([x, x], seed=s).data)(jnp.asarray(rows), seeds)
    pairs = zip(rows, seeds, strict=True)
    assert_all_same(list(np.asarray(own)), [tk.encode([row, row], seed=int(seed)).data for row, seed in pairs])
    drawn = jax.vmap(lambda s: tk.encode(jnp.asarray(X), seed=s).data)(seeds)
    assert_all_same(list(np.asarray(drawn)), [tk.encode(X, seed=int(seed)).data for seed in seeds])
    blocks = jax.vmap(jax.vmap(lambda x: tk.scales(x)))(jnp.asarray(rows.reshape(4, 3, 1000)))
    for got, want in zip(blocks, tk.scales(list(rows.reshape(12, 1000))), strict=True):
        assert_same(np.asarray(got).reshape(-1), want)
    sums = jax.vmap(lambda p: tk.decode_sum([p, p]))(packed)
    assert_all_same(list(np.asarray(sums)), [tk.decode_sum([tk.encode(row, seed=3)] * 2) for row in rows])


def test_inputs_are_data_outside_differentiation() -> None:
    x = jnp.asarray(X)
    quantised = tk.decode(tk.encode(X))

    def through(x: Any) -> Any:
        return tk.decode(tk.encode(x))

    for jitted in (jax.jit, lambda f: f):
        value, gradient = jitted(jax.value_and_grad(lambda x: (through(x) * x).sum()))(x)
        assert_same(np.asarray(gradient), quantised)  # of the second factor alone
        assert np.isfinite(value)
        primal, tangent = jax.jvp(jitted(through), (x,), (jnp.ones_like(x),))
        assert_same(np.asarray(primal), quantised)
        assert not tangent.any()
        for other in (
            lambda x: tk.clip(x).sum(),
            lambda x: tk.scales(x).scale.sum(),
            lambda x: tk.ternarize(x)[1].sum(),
        ):
            assert not jax.grad(jitted(other))(x).any()
        limits = jax.grad(lambda s: tk.clip(x, scales=tk.Scales(s, s)).sum())
        assert not limits(jnp.ones(1, jnp.float32)).any()
    # The straight-through estimator, as docs/jax.md spells it.
    straight = jax.grad(lambda x: (x + jax.lax.stop_gradient(through(x) - x)).sum())(x)
    assert_same(np.asarray(straight), np.ones_like(X))


def test_donated_arrays() -> None:
    for function in (tk.clip, lambda x: tk.decode(tk.encode(x))):
        x = jnp.array(X)
        got = jax.jit(function, donate_argnums=0)(x)
        assert x.is_deleted()
        assert_same(np.asarray(got), function(X))
    residual = jnp.zeros_like(X)

    def step(x: Any, residual: Any) -> Any:
        packed = tk.encode(x + residual)
        return packed, x + residual - tk.decode(packed)

    packed, left = jax.jit(step, donate_argnums=1)(jnp.array(X), residual)
    assert residual.is_deleted()
    same_results(packed, tk.encode(X))
    assert_same(np.asarray(left), X - tk.decode(tk.encode(X)))


def test_equal_calls_become_one_and_unused_ones_none() -> None:
    """No side effects: a compiler may do with them what it does with its own operations."""

    def text_of(function: Callable[..., Any]) -> str:
        return str(jax.jit(function).lower(X).compile().as_text())

    calls = r'custom_call_target="terngrad_kernels.encode.v1"'
    assert text_of(lambda x: (tk.encode(x).data, tk.encode(x).data + 1)).count(calls) == 1
    assert text_of(lambda x: (x, tk.encode(x))[0]).count(calls) == 0


def test_exported_programs_run_elsewhere(tmp_path: Path) -> None:
    """In another process: a layout is part of the program."""
    export = pytest.importorskip("jax.export")
    pytest.importorskip("flatbuffers")
    allowed = [export.DisabledSafetyCheck.custom_call(f"terngrad_kernels.{n}.v1") for n in ("encode", "decode")]
    function = jax.jit(lambda x, s: tk.decode(tk.encode(x, seed=s, packing="base3", block=2560)))
    x = layer("normal", 10000)
    program = export.export(function, disabled_checks=allowed)(x, np.array([1, 2], np.uint32))
    (tmp_path / "program").write_bytes(program.serialize())
    np.save(tmp_path / "x.npy", x)
    code = f"""
        import jax, jax.export, numpy as np
        import terngrad_kernels as tk

        x = np.load({str(tmp_path / "x.npy")!r})
        jax.eval_shape(tk.encode, x)  # so that XLA knows the handlers
        program = jax.export.deserialize(open({str(tmp_path / "program")!r}, "rb").read())
        got = program.call(x, np.array([3, 4], np.uint32))
        want = tk.decode(tk.encode(x, seed=3 + (4 << 32), packing="base3", block=2560))
        assert (np.asarray(got) == want).all()
        print("equal")
    """
    assert output_of(code) == "equal"


def test_several_devices() -> None:
    """In a process of its own, which sees four: the workers' loop under shard_map, and arrays that are sharded."""
    code = """
        import jax, numpy as np
        import jax.numpy as jnp
        import terngrad_kernels as tk
        from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

        shard_map = jax.shard_map if hasattr(jax, "shard_map") else None
        if shard_map is None:
            from jax.experimental.shard_map import shard_map
        assert len(jax.devices()) == 4
        mesh = Mesh(np.array(jax.devices()), ("worker",))
        x = np.random.default_rng(0).standard_normal((4, 100000)).astype(np.float32)
        sharded = jax.device_put(x, NamedSharding(mesh, P("worker")))

        def step(x, offset):
            packed = tk.encode(x[0], seed=jax.lax.axis_index("worker"), offset=offset)
            everyones = tk.Packed(packed.layout, jax.lax.all_gather(packed.data, "worker"))
            return tk.decode_sum(everyones, weights=[0.25] * 4)[None], packed.data[None]

        run = jax.jit(shard_map(step, mesh=mesh, in_specs=(P("worker"), P()), out_specs=(P("worker"), P("worker"))))
        for offset in range(3):
            means, data = run(sharded, offset)
            packed = [tk.encode(row, seed=worker, offset=offset) for worker, row in enumerate(x)]
            want = tk.decode_sum(packed, weights=[0.25] * 4)
            for worker in range(4):
                assert (np.asarray(data[worker]) == packed[worker].data).all()
                assert (np.asarray(means[worker]) == want).all()

        whole = jax.jit(tk.encode)(sharded)  # gathered: one message of all
        assert (np.asarray(whole.data) == tk.encode(x).data).all()
        on_last = jax.device_put(x[3], jax.devices()[3])
        packed = jax.jit(tk.encode)(on_last)
        assert packed.data.devices() == {jax.devices()[3]}
        assert (np.asarray(packed.data) == tk.encode(x[3]).data).all()
        print("equal")
    """
    assert output_of(code, XLA_FLAGS="--xla_force_host_platform_device_count=4") == "equal"


def output_of(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_many_threads_at_once() -> None:
    """Jitted and eager calls share the pool of threads; layouts are made while others are looked up."""
    x = [layer("normal", 100000 + i) for i in range(4)]
    wanted = [tk.encode(item, seed=i).data for i, item in enumerate(x)]
    encode = jax.jit(lambda x, s: tk.encode(x, seed=s).data)
    failures = []

    def work(i: int) -> None:
        for _ in range(10):
            got = encode(x[i], i) if i % 2 else tk.encode(jnp.asarray(x[i]), seed=i).data
            if not np.array_equal(np.asarray(got), wanted[i]):
                failures.append(i)

    threads = [threading.Thread(target=work, args=(i % 4,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_layouts_of_any_size_and_number() -> None:
    """More than handlers keep, of both."""
    sizes = range(1, 200)
    layers = bucket(list(sizes))
    got = jax.jit(lambda x: [tk.encode(item).data for item in x])(layers)
    assert_all_same(got, [tk.encode(item).data for item in layers])
    layout = tk.Layout([(1,)] * 100000)
    x = layer("normal", 100000)
    encode = jax.jit(lambda x: tk.encode(x, layout=layout).data)
    for _ in range(2):
        assert_same(np.asarray(encode(x)), tk.encode(x, layout=layout).data)


# ---- errors

MESSAGE = tk.encode(X)

#: What is found while tracing: the error of the eager call where there is one.
REFUSED: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "clip": (lambda x: tk.encode(x, clip=-1), ValueError, r"^clip: expected a number > 0 or None, got -1"),
    "clip of scales": (lambda x: tk.scales(x, clip="a"), TypeError, r"^clip: expected a number > 0 or None, got str"),
    "traced clip": (lambda x: tk.clip(x, clip=x[0]), TypeError, r"^clip: expected a number > 0 or None, got \w*Tracer"),
    "layer": (lambda x: tk.encode(x, layer=2**31), ValueError, r"^layer: expected 0 <= layer"),
    "layer of a list": (lambda x: tk.encode([x, x], layer=2**31 - 1), ValueError, r"^layer: expected 0 <= layer"),
    "seed": (lambda x: tk.encode(x, seed=1.5), TypeError, r"^seed: expected an int, .*, got float"),
    "large offset": (lambda x: tk.encode(x, offset=2**64), ValueError, r"^offset: expected an int from -2\*\*63"),
    "traced seed": (lambda x: tk.encode(x, seed=x[0]), TypeError, r"^seed: .*, got float32 of shape \(\)"),
    "traced offset": (lambda x: tk.ternarize(x, offset=x.astype("uint32")), TypeError, r"^offset: .*, got uint32 of"),
    "weight": (lambda x: tk.decode(tk.encode(x), weight="a"), TypeError, r"^weight: expected a number, got str"),
    "traced weight": (lambda x: tk.decode(tk.encode(x), weight=x[0]), TypeError, r"^weight: expected a number, got"),
    "weights": (
        lambda x: tk.decode_sum([tk.encode(x)] * 2, weights=[1, float("inf")]),
        ValueError,
        r"^weights\[1\]: expected a number that float32 holds, got inf",
    ),
    "number of weights": (lambda x: tk.decode_sum([tk.encode(x)], weights=[]), ValueError, r"^weights: expected 1"),
    "size": (lambda x: tk.encode(x, layout=tk.Layout([(3,)])), ValueError, r"^x: expected 3 elements, got 1000"),
    "size in a list": (
        lambda x: tk.encode([x, x], layout=tk.Layout([(1000,), (3,)])),
        ValueError,
        r"^x\[1\]: expected 3 elements, got 1000",
    ),
    "scales' size": (
        lambda x: tk.encode(x, scales=tk.Scales(x, x)),
        ValueError,
        r"^scales.scale: expected 1 elements, got 1000",
    ),
    "scales' dtype": (
        lambda x: tk.encode(x, scales=tk.Scales(x[:1], x[:1].astype("int32"))),
        TypeError,
        r"^scales.limit: expected float32, got int32",
    ),
    "dtype": (lambda x: tk.encode(x.astype("int32")), TypeError, r"^x: expected float32, .*, got jax int32"),
    "message's size": (
        lambda x: tk.decode(tk.Packed(MESSAGE.layout, x.astype("uint8"))),
        ValueError,
        r"^packed.data: expected \d+ elements, got 1000",
    ),
    "message's dtype": (
        lambda x: tk.decode(tk.Packed(MESSAGE.layout, x[: MESSAGE.layout.nbytes])),
        TypeError,
        r"^packed.data: expected uint8, got float32",
    ),
    "messages' dtype": (
        lambda x: tk.decode_sum([tk.Packed(MESSAGE.layout, x[: MESSAGE.layout.nbytes])]),
        TypeError,
        r"^messages\[0\]: expected uint8, got float32",
    ),
    "counts": (
        lambda x: tk.sum_trits([tk.Packed(MESSAGE.layout, x[: MESSAGE.layout.nbytes])]),
        TypeError,
        r"^messages\[0\]: expected uint8, got float32",
    ),
    "second hop's seed": (
        lambda x: tk.repack([tk.encode(x)], seed=None, offset=0),
        TypeError,
        r"^seed: expected an int, .*, got NoneType",
    ),
    "second hop's weights": (
        lambda x: tk.repack([tk.encode(x)], seed=0, offset=0, weights=["a"]),
        TypeError,
        r"^weights: expected numbers, got str",
    ),
    "trits": (lambda x: tk.pack(x), TypeError, r"^trits: expected int8, got float32"),
    "payload": (lambda x: tk.unpack(x, shape=4000), TypeError, r"^payload: expected uint8, got float32"),
    "out": (lambda x: tk.encode(x, out=x), TypeError, r"^out: expected None, got a JAX array, which is immutable"),
    "accumulate": (
        lambda x: tk.decode(tk.encode(x), accumulate=True),
        ValueError,
        r"^out: expected what accumulate adds to, got None",
    ),
    "NumPy beside": (lambda x: tk.encode([x, X]), TypeError, r"^x\[1\]: expected a jax array .*, got a numpy array"),
    "validate": (
        lambda x: tk.validate(tk.encode(x)),
        TypeError,
        r"^packed.data: expected known bytes, got a traced value; call validate outside jax.jit",
    ),
    "to_bytes": (
        lambda x: tk.to_bytes(tk.encode(x)),
        TypeError,
        r"^packed.data: expected known bytes, got a traced value; call validate outside jax.jit",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_while_tracing(name: str) -> None:
    function, error, text = REFUSED[name]
    with pytest.raises(error, match=text):
        jax.jit(function)(X)


def test_traced_and_concrete_arrays_together() -> None:
    x = jnp.asarray(X)
    same_results(jax.jit(lambda y: tk.encode([x, y]))(X), tk.encode([X, X]))
    same_results(jax.jit(lambda y: tk.encode([y, x]))(X), tk.encode([X, X]))
    own = tk.scales(x)
    same_results(jax.jit(lambda y: tk.encode(y, scales=own))(X), tk.encode(X))
    same_results(jax.jit(lambda s: tk.encode(x, scales=s))(own), tk.encode(X))
    message = tk.encode(x)
    same_results(jax.jit(lambda p: tk.decode_sum([p, message]))(message), tk.decode_sum([MESSAGE] * 2))


def call_of(name: str, result: tuple[int, str] = (1, "uint8")) -> Callable[..., Any]:
    jax.eval_shape(lambda x: tk.encode(x), X)  # so that XLA knows the handlers
    shape = jax.ShapeDtypeStruct(result[:1], result[1])
    return lambda *operands, **attributes: jax.block_until_ready(
        jax.jit(lambda *o: jax.ffi.ffi_call(f"terngrad_kernels.{name}.v1", shape)(*o, **attributes))(*operands)
    )


def test_damaged_programs_are_errors_of_xla() -> None:
    """Handlers trust no program: what a call lacks, or has of another size, is an error with our text."""
    layout = tk.Layout([(1000,)])
    numbers = layout.geometry.description
    right = {"layout": numbers, "weight": np.float64(1)}
    decode = call_of("decode", (1000, "float32"))
    assert_same(np.asarray(decode(MESSAGE.data, **right)), tk.decode(MESSAGE))
    damaged: list[tuple[tuple[Array, ...], dict[str, Any], str]] = [
        ((MESSAGE.data[:5],), right, "packed.data: expected 272 elements, got 5"),
        ((X,), right, "packed.data: expected uint8, got float32"),
        ((X.astype(np.int16),), right, "packed.data: expected a type that terngrad_kernels reads, got another one"),
        ((), right, "packed.data: missing in the custom call"),
        ((MESSAGE.data,), {"layout": numbers}, "weight: missing in the attributes"),
        ((MESSAGE.data,), {**right, "weight": np.float32(1)}, "weight: missing in the attributes of .* another type"),
        ((MESSAGE.data,), {**right, "weight": np.float64("inf")}, "weight: expected a number that float32 holds"),
        ((MESSAGE.data,), {**right, "layout": np.int64(5)}, "layout: missing in the attributes"),
        ((MESSAGE.data,), {**right, "layout": numbers[:4]}, "layout: not the description of one"),
        ((MESSAGE.data,), {**right, "layout": numbers[:1]}, "layout: not the description of one"),
        ((MESSAGE.data,), {**right, "layout": np.array([0, 1, -1, -5, 1000, 0])}, "layout: not the description of one"),
        ((MESSAGE.data,), {**right, "layout": np.array([0, 1, -1, 9, 1000, 0])}, "layout: not the description of one"),
        ((MESSAGE.data,), {**right, "layout": np.array([0, 1, -1, 1, 1000, 77])}, "packing: unknown code 77"),
        ((MESSAGE.data,), {**right, "layout": np.array([0, 1, -1, 1, -1000, 0])}, "expected 0 to 2"),
        ((MESSAGE.data,), {**right, "layout": np.array([7, 1, -1, 1, 1000, 0])}, "block: 7 is not a positive multiple"),
    ]
    for operands, attributes, text in damaged:
        with pytest.raises(Exception, match=f"INVALID_ARGUMENT: .*{text}"):
            decode(*operands, **attributes)
    wrong = {"layout": numbers, "clip": np.float64(2.5), "layer": np.int64(0), "scaled": np.int64(0)}
    with pytest.raises(Exception, match=r"INVALID_ARGUMENT: .*seed: expected 0-d int64 or uint32"):
        call_of("encode", (272, "uint8"))(X, np.zeros(3, np.uint32), np.zeros(2, np.uint32), **wrong)


def test_an_older_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    from terngrad_kernels.adapters import jax as module

    monkeypatch.setattr(module, "_registered", False)
    monkeypatch.delattr(jax, "ffi")
    with pytest.raises(
        TypeError, match=r"^traced values and a GPU's need jax 0.5 or newer, which has jax.ffi; this is "
    ):
        jax.jit(lambda x: tk.encode(x))(X)


# ---- the handlers, and the interface that they are written against


def test_handlers_have_names_with_versions() -> None:
    handlers = _core.xla_handlers()
    operations = ("scales", "clip", "ternarize", "encode", "decode", "decode_sum", "sum_trits", "repack")
    operations += ("pack", "unpack")
    assert set(handlers) == ({"cpu", "CUDA"} if _core.CUDA_BUILT else {"cpu"})
    for of_platform in handlers.values():
        assert set(of_platform) == {f"terngrad_kernels.{operation}.v1" for operation in operations}


#: Our structure, XLA's, and (our field, XLA's) of all fields, in order. Names are those of jaxlib 0.11.
STRUCTURES = {
    ("Extension", "InternalExtension"): "struct_size type next",
    ("Version", "Api_Version"): "struct_size extensions:extension_start major_version minor_version",
    ("ErrorArguments", "Error_Create_Args"): "struct_size extensions:extension_start message code:errc",
    ("Api", "Api"): "struct_size extensions:extension_start version:api_version internal:internal_api "
    "create_error:XLA_FFI_Error_Create get_message:XLA_FFI_Error_GetDetails destroy_error:XLA_FFI_Error_Destroy "
    "get_stream:XLA_FFI_Stream_Get allocate:XLA_FFI_DeviceMemory_Allocate free:XLA_FFI_DeviceMemory_Free "
    "get_ordinal:XLA_FFI_DeviceOrdinal_Get",
    ("ErrorText", "Error_GetDetails_Args"): "struct_size extensions:extension_start error message code:errc",
    ("DestroyedError", "Error_Destroy_Args"): "struct_size extensions:extension_start error",
    ("StreamArguments", "Stream_Get_Args"): "struct_size extensions:extension_start context:ctx stream",
    ("AllocateArguments", "DeviceMemory_Allocate_Args"): "struct_size extensions:extension_start context:ctx size "
    "alignment data",
    ("FreeArguments", "DeviceMemory_Free_Args"): "struct_size extensions:extension_start context:ctx size data",
    ("OrdinalArguments", "DeviceOrdinal_Get_Args"): "struct_size extensions:extension_start context:ctx "
    "ordinal:device_ordinal",
    ("Buffer", "Buffer"): "struct_size extensions:extension_start type:dtype data rank dimensions:dims",
    ("Text", "ByteSpan"): "data:ptr size:len",
    ("ScalarAttribute", "Scalar"): "type:dtype value",
    ("ArrayAttribute", "Array"): "type:dtype size data",
    ("Buffers", "Args"): "struct_size extensions:extension_start size kinds:types buffers:args",
    ("Buffers", "Rets"): "struct_size extensions:extension_start size kinds:types buffers:rets",
    ("Attributes", "Attrs"): "struct_size extensions:extension_start size kinds:types names values:attrs",
    ("Frame", "CallFrame"): "struct_size extensions:extension_start api context:ctx stage operands:args results:rets "
    "attributes:attrs",
    ("Metadata", "Metadata"): "struct_size version:api_version traits",
    ("MetadataExtension", "Metadata_Extension"): "extension:extension_base metadata",
}
#: Of these, more follows in XLA's.
CONTINUED = {"Api", "Frame", "Metadata"}
CONSTANTS = {
    "kMajorVersion": "XLA_FFI_API_MAJOR",
    "kBuffer": "XLA_FFI_ArgType_BUFFER",
    "kMetadataExtension": "XLA_FFI_Extension_Metadata",
    "kCommandBufferCompatible": "XLA_FFI_HANDLER_TRAITS_COMMAND_BUFFER_COMPATIBLE",
    "ErrorCode::invalid_argument": "XLA_FFI_Error_Code_INVALID_ARGUMENT",
    "ErrorCode::resource_exhausted": "XLA_FFI_Error_Code_RESOURCE_EXHAUSTED",
    "AttributeKind::array": "XLA_FFI_AttrType_ARRAY",
    "AttributeKind::scalar": "XLA_FFI_AttrType_SCALAR",
    "Stage::execute": "XLA_FFI_ExecutionStage_EXECUTE",
    "DataType::int8": "XLA_FFI_DataType_S8",
    "DataType::int64": "XLA_FFI_DataType_S64",
    "DataType::uint8": "XLA_FFI_DataType_U8",
    "DataType::uint32": "XLA_FFI_DataType_U32",
    "DataType::float16": "XLA_FFI_DataType_F16",
    "DataType::float32": "XLA_FFI_DataType_F32",
    "DataType::float64": "XLA_FFI_DataType_F64",
    "DataType::bfloat16": "XLA_FFI_DataType_BF16",
}


def assertions() -> Iterator[str]:
    for (own, theirs), fields in STRUCTURES.items():
        own, theirs = f"ours::{own}", f"XLA_FFI_{theirs}"
        pairs = [field.split(":") for field in fields.split()]
        for field, other in ((pair[0], pair[-1]) for pair in pairs):
            yield f"offsetof({own}, {field}) == offsetof({theirs}, {other})"
            yield f"sizeof({own}::{field}) == sizeof({theirs}::{other})"
        if own.removeprefix("ours::") not in CONTINUED:
            yield f"sizeof({own}) == sizeof({theirs})"
    for constant, other in CONSTANTS.items():
        yield f"static_cast<int>(ours::{constant}) == static_cast<int>({other})"
    yield "sizeof(ours::Frame) == XLA_FFI_CallFrame_STRUCT_SIZE"
    yield "ours::kBuffer == XLA_FFI_RetType_BUFFER"
    yield "ours::kOldestMinorVersion <= XLA_FFI_API_MINOR"
    yield "sizeof(ours::ErrorArguments) >= XLA_FFI_Error_Create_Args_STRUCT_SIZE"


def test_structures_are_those_of_jaxlib(tmp_path: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    header = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    if not compiler:
        pytest.skip("no C++ compiler to compare the headers with")
    if not header.is_file():
        pytest.skip("this jaxlib came without its headers")
    source = tmp_path / "compare.cpp"
    given = header.read_text()
    wanted = list(assertions())
    if "XLA_FFI_DeviceOrdinal_Get" not in given:  # not in jaxlib 0.5, for which it is not asked
        wanted = [text for text in wanted if "Ordinal" not in text]
    if "XLA_FFI_Error_GetDetails" not in given:  # before jaxlib 0.11, without the code
        wanted = [text for text in wanted if "errc" not in text or "GetDetails" not in text]
        wanted = [text for text in wanted if not text.startswith("sizeof(ours::ErrorText) ==")]
        wanted = [text.replace("Error_GetDetails", "Error_GetMessage") for text in wanted]
    if "XLA_FFI_InternalExtension" not in given:
        wanted = [text.replace("InternalExtension", "Extension_Base") for text in wanted]
    lines = "".join(f'static_assert({text}, "");\n' for text in wanted)
    source.write_text(f'#include "{BINDINGS}/xla_ffi.h"\n#include "{header}"\nnamespace ours = terngrad::xla;\n{lines}')
    done = subprocess.run(
        [compiler, "-std=c++17", "-fsyntax-only", "-Wno-invalid-offsetof", source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
