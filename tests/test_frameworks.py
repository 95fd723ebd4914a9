"""Every framework: the same bytes for the same values, results in the caller's framework, dtype and shape."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from arrays import (
    CUDA_FRAMEWORKS,
    DTYPES,
    PACKINGS,
    TERNARY,
    Array,
    Framework,
    Paddle,
    TensorFlow,
    assert_all_same,
    assert_same,
    assert_same_but_nan,
    bucket,
    flat,
    layer,
)
from producer import Producer

import reference as ref
import terngrad_kernels as tk
from terngrad_kernels import _core, adapters
from terngrad_kernels.adapters import adapter_of, handle_of

# ---- one matrix: rule x framework x dtype x arrangement, over shapes with 0 and without dimensions

ARRANGEMENTS = ("contiguous", "transposed", "sliced", "offset", "broadcast", "reshaped")


def arranged(arrangement: str, framework: Framework, x: Array) -> tuple[Any, Array]:
    """Return an array of the framework laid out in that way (where its shape allows), and NumPy's of its values."""
    if arrangement == "reshaped":
        return framework.reshaped(framework.make(x.reshape(-1)), x.shape), x
    if arrangement == "transposed" and x.ndim == 2:
        return framework.transposed(framework.make(x.T)), x
    if arrangement == "sliced" and x.ndim:
        return framework.make(np.repeat(x, 2, axis=0))[::2], x
    if arrangement == "offset" and x.ndim:
        return framework.make(np.concatenate([x[:1], x]))[min(1, len(x)) :], x
    if arrangement == "broadcast" and x.ndim and len(x):
        return framework.broadcast(framework.make(x[:1]), x.shape), np.broadcast_to(x[:1], x.shape).copy()
    return framework.make(x), x


SHAPES = ((7, 100), (640,), (), (3, 0), (1,), (2, 3, 5, 7))


def assert_of(framework: Framework, x: Any, dtype: str, shape: tuple[int, ...]) -> None:
    """Assert what a result is: of the framework, of that dtype and shape."""
    assert framework.owns(x), type(x)
    assert x.dtype == framework.dtype(dtype)
    assert tuple(x.shape) == shape


def assert_messages(framework: Framework, x: Any, values: Array, dtype: str) -> None:
    """The payloads are NumPy's, and so is what is decoded from them."""
    for packing in PACKINGS:
        packed = tk.encode(x, packing=packing, seed=7)
        want = tk.encode(values, packing=packing, seed=7)
        assert packed.layout == want.layout
        assert_of(framework, packed.data, "uint8", want.data.shape)
        assert_same(framework.to_numpy(packed.data), want.data)
        decoded = tk.decode(packed)
        assert_of(framework, decoded, dtype, values.shape)
        assert_same(framework.to_numpy(decoded), tk.decode(want))


def assert_like_numpy(framework: Framework, x: Any, values: Any, dtype: str) -> None:
    """The other operations on one array or a list of them."""
    several = isinstance(x, list)
    arrays, numpy_arrays = (x, values) if several else ([x], [values])
    shapes = [v.shape for v in numpy_arrays]
    scales, want_scales = tk.scales(x), tk.scales(values)
    for got, want in zip(scales, want_scales, strict=True):
        assert_of(framework, got, "float32", (len(arrays),))
        assert_same(framework.to_numpy(got), want)
    clipped, want_clipped = tk.clip(x, scales=scales), tk.clip(values, scales=want_scales)
    (trits, scale), (want_trits, want_scale) = tk.ternarize(x, seed=7), tk.ternarize(values, seed=7)
    assert_of(framework, scale, "float32", (len(arrays),))
    assert_same(framework.to_numpy(scale), want_scale)
    for results, wanted, name in ((clipped, want_clipped, dtype), (trits, want_trits, "int8")):
        for got, want, shape in zip(*((results, wanted) if several else ([results], [wanted])), shapes, strict=True):
            assert_of(framework, got, name, shape)
            assert_same(framework.to_numpy(got), want)


def assert_outputs(framework: Framework, x: Any, values: Array, dtype: str) -> None:
    """What is passed as `out` is written and comes back; an immutable one is refused."""
    want, want_clipped = tk.encode(values, seed=7), tk.clip(values)
    packed = tk.encode(x, seed=7)
    message, clipped = framework.make(np.zeros_like(want.data)), framework.make(np.zeros_like(values))
    decoded = framework.make(np.ones_like(values))
    if framework.immutable:
        for call, out in ((tk.encode, message), (tk.clip, clipped)):
            with pytest.raises(TypeError, match=r"^out: expected None, got a .*, which is immutable$"):
                call(x, out=out)
        with pytest.raises(TypeError, match=r"^out: expected None, got a .*, which is immutable$"):
            tk.decode(packed, out=decoded)
        return
    assert tk.encode(x, seed=7, out=message).data is message
    assert_same(framework.to_numpy(message), want.data)
    assert tk.clip(x, out=clipped) is clipped
    assert_same(framework.to_numpy(clipped), want_clipped)
    assert tk.decode(packed, out=decoded, accumulate=True, weight=0.5) is decoded
    assert_same(framework.to_numpy(decoded), tk.decode(want, out=np.ones_like(values), accumulate=True, weight=0.5))
    (trits, scale), (want_trits, want_scale) = tk.ternarize(x, seed=7), tk.ternarize(values, seed=7)
    outs = framework.make(np.zeros_like(want_trits)), framework.make(np.zeros_like(want_scale))
    assert all(got is out for got, out in zip(tk.ternarize(x, seed=7, out=outs), outs, strict=True))
    for out, got in zip(outs, (trits, scale), strict=True):
        assert_same(framework.to_numpy(out), framework.to_numpy(got))


def assert_errors(framework: Framework, x: Any, values: Array, dtype: str) -> None:
    """Errors name the argument, what it is and what was expected, and leave arguments as they were."""
    name, make = framework.name, framework.make
    foreign = np.zeros(values.shape, values.dtype)
    other = "numpy"
    if name == "numpy":
        foreign, other = Producer(foreign), "dlpack"
    packed = tk.encode(x)
    bad: list[tuple[Any, type[Exception], str]] = [
        (foreign, TypeError, f"expected a {name} array as the input is, got a {other} array"),
        ("text", TypeError, "expected an array that supports DLPack, got builtins.str"),
    ]
    if not framework.immutable:
        bad += [
            (make(np.zeros(values.size + 1, values.dtype)), ValueError, r"expected \d+ elements, got \d+"),
            (make(np.zeros(values.shape, np.int8)), TypeError, "expected .*, got int8"),
            (make(np.zeros(values.shape, np.int32)), TypeError, ".*int32|.*DLPack type"),
        ]
        if values.ndim == 2 and values.size:
            strided = framework.transposed(make(np.zeros(values.shape[::-1], values.dtype)))
            bad.append((strided, ValueError, "expected a dense row-major array, got one with other strides"))
    for out, error, text in bad:
        for call in (lambda out: tk.clip(x, out=out), lambda out: tk.decode(packed, out=out)):
            with pytest.raises(error, match=f"^out: {text}"):
                call(out)
    if type(framework) not in CUDA_FRAMEWORKS.values():
        with pytest.raises(ValueError, match=r"^stream: CPU arrays have none, expected None"):
            tk.encode(x, stream=1)
    with pytest.raises(TypeError, match=f"^x: expected float32, .*, got {name} int32"):
        tk.encode(make(np.zeros(values.shape, np.int32)))
    with pytest.raises(TypeError, match=rf"^x\[1\]: expected {dtype} as x\[0\] is, got "):
        tk.encode([x, make(np.zeros(3, "float16" if dtype == "float32" else "float32"))])
    with pytest.raises(TypeError, match=rf"^x\[1\]: expected a {name} array as x\[0\] is, got a {other} array"):
        tk.encode([x, foreign])
    assert_same(framework.to_numpy(framework.reshaped(x, values.shape)), values)


def assert_sums(framework: Framework, x: Any, values: Array, dtype: str) -> None:
    """Messages are added and repacked as NumPy's are."""
    packed, want = [tk.encode(x, seed=i) for i in range(3)], [tk.encode(values, seed=i) for i in range(3)]
    counts, want_counts = tk.sum_trits(packed), tk.sum_trits(want)
    assert counts.workers == 3
    again = tk.repack(packed, seed=7, offset=1)
    for got, wanted in ((counts, want_counts), (again, tk.repack(want, seed=7, offset=1))):
        assert got.layout == wanted.layout
        assert_of(framework, got.data, "uint8", wanted.data.shape)
        assert_same(framework.to_numpy(got.data), wanted.data)
    assert_of(framework, tk.decode(counts), dtype, values.shape)
    total = tk.decode_sum(packed, weights=[0.5] * 3)
    assert_of(framework, total, dtype, values.shape)
    assert_same(framework.to_numpy(total), tk.decode_sum(want, weights=[0.5] * 3))
    back = tk.from_bytes(tk.to_bytes(counts), like=x)
    assert_of(framework, back.data, "uint8", want_counts.data.shape)
    assert_same(framework.to_numpy(back.data), want_counts.data)


RULES = {
    "messages": assert_messages,
    "sums": assert_sums,
    "other operations": assert_like_numpy,
    "outputs": assert_outputs,
    "errors": assert_errors,
}


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_rules(framework: Framework, rule: str, dtype: str, arrangement: str) -> None:
    for shape in SHAPES:
        x, values = arranged(arrangement, framework, layer("normal", int(np.prod(shape)), dtype).reshape(shape))
        assert values.shape == shape
        RULES[rule](framework, x, values, dtype)


def lists_of(framework: Framework, dtype: str) -> tuple[list[Any], list[Array]]:
    layers = bucket([int(np.prod(shape)) for shape in SHAPES], dtype)
    shaped = [x.reshape(shape) for x, shape in zip(layers, SHAPES, strict=True)]
    pairs = [arranged(name, framework, x) for name, x in zip(ARRANGEMENTS, shaped, strict=True)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_list(framework: Framework, dtype: str) -> None:
    x, values = lists_of(framework, dtype)
    names = ["two_bit", "base3", "float32"] * 2
    for kind in (list, tuple):
        packed = tk.encode(kind(x), packing=names, seed=7)
        want = tk.encode(values, packing=names, seed=7)
        assert packed.layout == want.layout
        assert_of(framework, packed.data, "uint8", want.data.shape)
        assert_same(framework.to_numpy(packed.data), want.data)
    decoded = tk.decode(packed)
    assert isinstance(decoded, list)
    for got, shape in zip(decoded, SHAPES, strict=True):
        assert_of(framework, got, dtype, shape)
    assert_all_same([framework.to_numpy(got) for got in decoded], tk.decode(want))
    assert_like_numpy(framework, x, values, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["flat", "list"])
def test_a_flat_array_with_a_layout(framework: Framework, dtype: str, form: str) -> None:
    sizes = (5200, 0, 33)
    values = flat(bucket(sizes, dtype))
    for shards in (1, 3):
        layout = tk.Layout([(n,) for n in sizes], dtype, ["two_bit", "float32", "base3"], 2560, shards, form)
        x = framework.make(values)
        packed, want = tk.encode(x, layout=layout), tk.encode(values, layout=layout)
        assert packed.layout is layout
        assert_of(framework, packed.data, "uint8", (layout.nbytes,))
        assert_same(framework.to_numpy(packed.data), want.data)
        decoded = tk.decode(packed)
        parts, wanted = (decoded, tk.decode(want)) if form == "list" else ([decoded], [tk.decode(want)])
        for part, size in zip(parts, sizes if form == "list" else (values.size,), strict=True):
            assert_of(framework, part, dtype, (size,))
        assert_all_same([framework.to_numpy(part) for part in parts], wanted)


@pytest.mark.parametrize("packing", TERNARY)
def test_pack_and_unpack(framework: Framework, packing: str) -> None:
    trits = np.random.default_rng(0).integers(-1, 2, (33, 21)).astype(np.int8)
    cases = [arranged(name, framework, trits) for name in ARRANGEMENTS]
    for x, values in (*cases, (framework.make(trits[:0]), trits[:0])):
        payload = tk.pack(x, packing=packing)
        want = tk.pack(values, packing=packing)
        assert_of(framework, payload, "uint8", want.shape)
        assert_same(framework.to_numpy(payload), want)
        unpacked = tk.unpack(payload, shape=values.shape, packing=packing)
        assert_of(framework, unpacked, "int8", values.shape)
        assert_same(framework.to_numpy(unpacked), values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_decode_to_other_dtypes(framework: Framework, dtype: str) -> None:
    x = layer("normal", 700)
    packed, want = tk.encode(framework.make(x)), tk.encode(x)
    for given in (dtype, framework.dtype(dtype), ref.DTYPES[dtype]):
        for got in (tk.decode(packed, dtype=given), tk.decode_sum([packed], dtype=given)):
            assert_of(framework, got, dtype, (700,))
        assert_same(framework.to_numpy(tk.decode(packed, dtype=given)), tk.decode(want, dtype=dtype))


def test_messages_of_several_workers(framework: Framework) -> None:
    values = [layer("normal", 700, seed=i).reshape(7, 100) for i in range(4)]
    packed = [tk.encode(framework.make(x), seed=i) for i, x in enumerate(values)]
    want = tk.decode_sum([tk.encode(x, seed=i) for i, x in enumerate(values)], weights=[0.25] * 4)
    rows = framework.make(np.stack([framework.to_numpy(p.data) for p in packed]))
    for messages in (packed, tuple(packed), tk.Packed(packed[0].layout, rows)):
        mean = tk.decode_sum(messages, weights=[0.25] * 4)
        assert_of(framework, mean, "float32", (7, 100))
        assert_same(framework.to_numpy(mean), want)


def test_outputs(framework: Framework) -> None:
    if framework.immutable:
        return  # nothing to write to: test_rules
    x = framework.make(layer("normal", 700).reshape(7, 100))
    packed = tk.encode(x)
    message = framework.make(np.zeros(packed.layout.nbytes, np.uint8))
    assert tk.encode(x, out=message).data is message
    assert_same(framework.to_numpy(message), framework.to_numpy(packed.data))
    out = framework.make(np.ones((7, 100), np.float64))
    assert tk.decode(packed, out=out, accumulate=True, weight=0.5) is out
    want = np.float32(1) + np.float32(0.5) * framework.to_numpy(tk.decode(packed))
    assert_same(framework.to_numpy(out), want.astype(np.float64))
    want = framework.to_numpy(tk.clip(x))
    assert tk.clip(x, out=x) is x
    assert_same(framework.to_numpy(x), want)
    part = framework.make(np.zeros((9, 100), np.float32))
    tk.decode(packed, out=part[1:-1])
    assert_same(framework.to_numpy(part[1:-1]), framework.to_numpy(tk.decode(packed)))


def test_parts_of_a_message(framework: Framework) -> None:
    x = [framework.make(v) for v in bucket((700, 33))]
    packed, want = tk.encode(x), tk.encode(bucket((700, 33)))
    assert_of(framework, packed.scales, "float32", (2,))
    assert_of(framework, packed.payload, "uint8", want.payload.shape)
    assert_same(framework.to_numpy(packed.scales), want.scales)
    assert_same(framework.to_numpy(packed.payload), want.payload)
    tk.validate(packed)


# ---- scaler sharing, as a training step does it


def test_scaler_sharing(framework: Framework) -> None:
    workers = [bucket((700, 2600), seed=10 * w) for w in range(3)]
    own = [tk.scales([framework.make(x) for x in layers]) for layers in workers]
    shared = np.max([framework.to_numpy(scales.scale) for scales in own], axis=0)
    for layers, scales in zip(workers, own, strict=True):
        arrays = [framework.make(x) for x in layers]
        packed = tk.encode(arrays, scales=scales._replace(scale=framework.make(shared)))
        assert_same(framework.to_numpy(packed.scales), shared)
        assert_same(framework.to_numpy(packed.data), ref.encode(layers, scales=(shared, ref.scales(layers)[1])))


# ---- seeds


def test_seeds_as_arrays(framework: Framework) -> None:
    x = layer("normal", 3000)
    seed, offset = 0x0123456789ABCDEF, 2**64 - 5
    want = tk.encode(x, seed=seed, offset=offset).data
    halves = [np.array([word % 2**32, word >> 32], np.uint32) for word in (seed, offset)]
    wholes = [np.array(word, np.uint64).astype(np.int64) for word in (seed, offset)]
    for words in (halves, wholes, [halves[0], wholes[1]]):
        if any(word.dtype.type not in framework.words for word in words):
            continue  # Paddle has no uint32
        for numbers in ([framework.make(word) for word in words], words):
            packed = tk.encode(framework.make(x), seed=numbers[0], offset=numbers[1])
            assert_same(framework.to_numpy(packed.data), want)
    trits, _ = tk.ternarize(framework.make(x), seed=framework.make(wholes[0]))
    assert_same(framework.to_numpy(trits), tk.ternarize(x, seed=seed)[0])


def test_jax_keys_are_seeds_without_64_bit_types() -> None:
    jax = pytest.importorskip("jax")
    assert not jax.config.jax_enable_x64
    key = jax.random.key_data(jax.random.key(7))
    low, high = (int(word) for word in key)
    x = layer("normal", 3000)
    assert_same(np.asarray(tk.encode(jax.numpy.asarray(x), seed=key).data), tk.encode(x, seed=low + (high << 32)).data)
    # And a decoding into what JAX has only with 64-bit types comes in what it has.
    assert tk.decode(tk.encode(jax.numpy.asarray(x)), dtype="float64").dtype == jax.numpy.float32


# ---- PyTorch's own ways


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def test_tensors_that_require_grad(torch: Any) -> None:
    """They are data: nothing is recorded, nothing is changed."""
    x = torch.randn(700)
    want = tk.encode(x).data
    leaf = x.clone().requires_grad_()
    for tensor in (leaf, torch.nn.Parameter(x.clone()), leaf * 1, (2 * leaf).view(7, 100) / 2):
        packed = tk.encode(tensor)
        assert torch.equal(packed.data, want)
        assert not packed.data.requires_grad
        assert not tk.decode(packed).requires_grad
        assert not tk.clip(tensor).requires_grad
    leaf.sum().backward()
    assert torch.equal(tk.encode(leaf.grad, clip=None).scales, torch.ones(1))
    out = torch.zeros(700, requires_grad=True)
    assert tk.decode(packed, out=out) is out
    assert torch.equal(out.detach(), tk.decode(packed).view(-1))
    with torch.inference_mode():
        assert torch.equal(tk.encode(x * 1).data, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_lazy_views(torch: Any, dtype: str) -> None:
    z = torch.view_as_complex(torch.randn(700, 2).double())
    negative = torch._neg_view(z.real.to(getattr(torch, dtype)))
    assert negative.is_neg()
    assert torch.equal(tk.encode(negative).data, tk.encode(negative.resolve_neg().clone()).data)
    imaginary = z.conj().imag
    assert imaginary.is_neg()
    assert torch.equal(tk.encode(imaginary).data, tk.encode(imaginary.clone().resolve_neg()).data)


@pytest.mark.parametrize("dtype", DTYPES)
def test_channels_last(torch: Any, dtype: str) -> None:
    """Row-major order counts, whatever the strides are."""
    x = torch.randn(2, 3, 5, 7).to(getattr(torch, dtype))
    last = x.to(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    packed = tk.encode(last, seed=3)
    assert torch.equal(packed.data, tk.encode(x, seed=3).data)
    decoded = tk.decode(packed)
    assert decoded.is_contiguous()
    assert decoded.shape == x.shape
    assert torch.equal(tk.clip(last), tk.clip(x))


def test_subclasses_of_tensors(torch: Any) -> None:
    class Named(torch.Tensor):  # type: ignore[misc]
        pass

    x = torch.randn(700)
    packed = tk.encode(x.as_subclass(Named))
    assert torch.equal(packed.data, tk.encode(x).data)
    assert torch.equal(tk.decode(packed), tk.decode(tk.encode(x)))


def test_tensors_in_shared_memory(torch: Any) -> None:
    x = torch.randn(700).share_memory_()
    assert torch.equal(tk.encode(x).data, tk.encode(x.clone()).data)


# ---- TensorFlow's own ways


@pytest.fixture
def tf() -> Any:
    return TensorFlow().tf


def test_tensorflow_variables_are_read(tf: Any) -> None:
    x = layer("normal", 700)
    variable = tf.Variable(x)
    packed = tk.encode(variable, seed=7)
    assert_same(packed.data.numpy(), tk.encode(x, seed=7).data)
    variable.assign(2 * x)
    assert_same(packed.data.numpy(), tk.encode(x, seed=7).data)
    with pytest.raises(TypeError, match=r"^out: expected None, got a TensorFlow tensor, which is immutable$"):
        tk.decode(packed, out=variable)


def test_tensorflow_results_live_on(tf: Any) -> None:
    x = tf.constant(layer("normal", 700))
    decoded = tk.decode(tk.encode(x))
    want = decoded.numpy().copy()
    assert decoded.device == x.device
    assert_same((decoded + 0).numpy(), want)
    assert_same(tf.function(lambda v: 2 * v, autograph=False)(decoded).numpy(), 2 * want)
    assert_same(tf.Variable(decoded).assign_add(decoded).numpy(), 2 * want)
    assert_same(decoded.numpy(), want)


def test_tensorflow_graphs(tf: Any) -> None:
    """A symbolic tensor has no values yet; a function that TensorFlow calls when it has them does."""
    x = tf.constant(layer("normal", 700))
    with pytest.raises(TypeError, match=r"^x: expected an eager tensor, got a symbolic one of a tf.function"):
        tf.function(lambda v: tk.encode(v).data, autograph=False)(x)
    later = tf.function(lambda v: tf.py_function(lambda e: tk.encode(e).data, [v], tf.uint8), autograph=False)
    assert_same(later(x).numpy(), tk.encode(x).data.numpy())


def test_tensorflow_values_that_are_not_dense(tf: Any) -> None:
    slices = tf.IndexedSlices(tf.ones((2, 3)), tf.constant([0, 1]))
    for value in (slices, tf.sparse.from_dense([1.0, 0.0]), tf.ragged.constant([[1.0], []])):
        with pytest.raises(TypeError, match=r"^x: expected an array that supports DLPack, got tensorflow\."):
            tk.encode(value)
    with pytest.raises(TypeError, match=r"^x: expected float32, .*, got tensorflow string"):
        tk.encode(tf.constant(["text"]))


# ---- Paddle's own ways


@pytest.fixture
def paddle() -> Any:
    return Paddle().paddle


def test_paddle_tensors_that_require_grad(paddle: Any) -> None:
    x = layer("normal", 700)
    want = tk.encode(x, seed=7).data
    leaf = paddle.to_tensor(x, stop_gradient=False)
    parameter = paddle.create_parameter([700], "float32")
    parameter.set_value(x)
    for tensor in (leaf, leaf * 1, parameter, (2 * leaf).reshape([7, 100]) / 2):
        packed = tk.encode(tensor, seed=7)
        assert_same(packed.data.numpy(), want)
        assert packed.data.stop_gradient
        assert tk.decode(packed).stop_gradient
    assert tk.encode(leaf.reshape([7, 100]).T).data.stop_gradient  # which is made dense
    leaf.sum().backward()
    assert_same(tk.encode(leaf.grad, clip=None).scales.numpy(), np.ones(1, np.float32))


def test_paddle_tensors_that_are_not_dense(paddle: Any) -> None:
    sparse = paddle.sparse.sparse_coo_tensor([[0, 1]], [1.0, 2.0], [3])
    with pytest.raises(TypeError, match=r"^x: expected a dense tensor, got one that is sparse"):
        tk.encode(sparse)
    with pytest.raises(TypeError, match=r"^out: expected a dense tensor, got one that is sparse"):
        tk.clip(paddle.ones([3]), out=sparse)
    paddle.enable_static()
    try:
        with paddle.static.program_guard(paddle.static.Program()):
            symbolic = paddle.static.data("x", [3], "float32")
            with pytest.raises(
                TypeError, match=r"^x: expected an eager tensor, got a symbolic value of a static graph$"
            ):
                tk.encode(symbolic)
    finally:
        paddle.disable_static()


# ---- streams


def test_streams_are_ints_or_any_frameworks_own() -> None:
    class Protocol:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, 7

    for stream in (7, Protocol(), SimpleNamespace(cuda_stream=7), SimpleNamespace(ptr=7)):
        assert handle_of(stream, "some") == 7
    for stream in ("7", True, 7.0, object()):
        with pytest.raises(TypeError, match=r"^stream: expected an int or a stream of some, got "):
            handle_of(stream, "some")


def test_a_named_stream_is_the_current_one_for_everything_that_a_call_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies, outputs and memory of its own too; then the one before is current again, whatever happened."""
    log: list[Any] = []
    numpy = adapter_of(np.empty(0), "x")

    class Streams:
        queue = adapters.queue
        current = "own"

        def __getattr__(self, name: str) -> Any:
            log.append((name, self.current))
            return getattr(numpy, name)

        def stream(self, x: Any) -> None:
            log.append(("stream", self.current))

        @contextmanager
        def on_stream(self, x: Any, stream: Any, arrays: Any) -> Iterator[None]:
            given.extend(arrays)
            self.current = stream
            try:
                yield
            finally:
                self.current = "own"

    given: list[Any] = []
    streams: Any = Streams()
    monkeypatch.setitem(adapters._by_type, np.ndarray, streams)
    x, scales, out = layer("normal", 12).reshape(3, 4).T, tk.scales(layer("normal", 12)), np.empty(32, np.uint8)
    log.clear()
    tk.encode(x, scales=scales, out=out, stream="other")
    assert {name for name, _ in log} >= {"dense", "writable", "stream", "core"}
    assert {stream for _, stream in log} == {"other"}
    assert [id(item) for item in given if isinstance(item, np.ndarray)] == list(map(id, (x, *scales, out)))
    with pytest.raises(TypeError, match=r"^out: "):
        tk.decode_sum([tk.encode(layer("normal", 12))], out=out, stream="other")
    assert streams.current == "own"


# ---- NumPy's own ways


def test_subclasses_of_arrays() -> None:
    x = layer("normal", 12).reshape(3, 4)
    for kind in (np.matrix, type("Own", (np.ndarray,), {})):
        other = x.view(kind)
        assert_same(tk.encode(other).data, tk.encode(x).data)


def test_arrays_that_are_not_aligned_or_not_writable() -> None:
    x = layer("normal", 700)
    memory = np.zeros(x.nbytes + 1, np.uint8)
    odd = memory[1:].view(np.float32)
    odd[:] = x
    odd.flags.writeable = False
    assert not odd.flags.aligned
    assert_same(tk.encode(odd).data, tk.encode(x).data)
    mapped = np.frombuffer(x.tobytes(), np.float32)
    assert_same(tk.encode(mapped).data, tk.encode(x).data)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_order_of_axes(dtype: str) -> None:
    x = layer("normal", 4 * 5 * 6, dtype).reshape(4, 5, 6)
    for view in (x[::-1], x[:, ::-1, ::2], x.transpose(2, 0, 1), np.asfortranarray(x), x[..., None].swapaxes(0, 3)):
        packed = tk.encode(view)
        assert_same(packed.data, tk.encode(view.copy()).data)
        assert tk.decode(packed).shape == view.shape


def test_ml_dtypes_bfloat16() -> None:
    import ml_dtypes

    x = layer("normal", 700).astype(ml_dtypes.bfloat16)
    packed = tk.encode(x)
    assert packed.layout.dtype == "bfloat16"
    decoded = tk.decode(packed)
    assert decoded.dtype == ml_dtypes.bfloat16
    assert_same_but_nan(decoded, ref.decode(packed.data, [700], dtype="bfloat16")[0])


# ---- JAX's own ways


def test_jax_results_live_on() -> None:
    """They are arrays like others: in jitted functions, after what they came from is gone, donated."""
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    x = jnp.asarray(layer("normal", 700))
    packed = tk.encode(x)
    decoded = tk.decode(packed)
    want = np.asarray(decoded).copy()
    data = packed.data
    del packed
    assert_same(np.asarray(jax.jit(lambda v: v + 0)(decoded)), want)
    assert_same(np.asarray(decoded), want)
    assert decoded.devices() == x.devices()
    assert int(jnp.sum(data, dtype=jnp.uint32)) == int(np.asarray(data).sum(dtype=np.uint32))
    assert_same(np.asarray(jax.jit(lambda v: 2 * v, donate_argnums=0)(decoded)), 2 * want)
    again = tk.decode_sum([tk.Packed(tk.encode(x).layout, data)] * 2)
    assert_same(np.asarray(again), 2 * want)


def test_jax_views_of_numpy_memory() -> None:
    jax = pytest.importorskip("jax")
    values = layer("normal", 700)
    packed = tk.encode(jax.numpy.asarray(values))
    assert_same(np.asarray(packed.data), tk.encode(values).data)


# ---- pytrees: data is the leaf, the layout is static


def packed_or_counts(x: Any, counts: bool) -> Any:
    packed = tk.encode(x)
    return tk.sum_trits([packed] * 9) if counts else packed


@pytest.mark.parametrize("counts", [False, True])
def test_messages_are_jax_pytrees(counts: bool) -> None:
    jax = pytest.importorskip("jax")
    packed = packed_or_counts(jax.numpy.ones((7, 100)), counts)
    leaves, structure = jax.tree_util.tree_flatten({"message": packed})
    assert [leaf is packed.data for leaf in leaves] == [True]
    again = jax.tree_util.tree_unflatten(structure, leaves)["message"]
    assert again.layout == packed.layout
    others = [packed_or_counts(jax.numpy.zeros(shape), counts) for shape in ((7, 100), (700,))]
    assert structure == jax.tree_util.tree_structure({"message": others[0]})
    assert structure != jax.tree_util.tree_structure({"message": others[1]})
    if counts:  # the number of workers is static
        assert structure != jax.tree_util.tree_structure({"message": tk.Counts(packed.layout, 10, packed.data)})
    through = jax.jit(lambda p: p)(packed)
    assert type(through) is type(packed)
    assert through.layout == packed.layout
    assert getattr(through, "workers", None) == (9 if counts else None)
    assert_same(np.asarray(tk.decode(through)), np.asarray(tk.decode(packed)))
    stacked = jax.tree_util.tree_map(lambda *rows: jax.numpy.stack(rows), packed, packed)
    assert_same(np.asarray(tk.decode_sum(stacked)), 2 * np.asarray(tk.decode(packed)))


@pytest.mark.parametrize("counts", [False, True])
def test_messages_are_torch_pytrees(torch: Any, counts: bool) -> None:
    import torch.utils._pytree as pytree

    packed = packed_or_counts(torch.ones(7, 100), counts)
    leaves, structure = pytree.tree_flatten([packed, 5])
    assert leaves[0] is packed.data
    assert leaves[1] == 5
    again = pytree.tree_unflatten(leaves, structure)[0]
    assert type(again) is type(packed)
    assert again.layout == packed.layout
    assert getattr(again, "workers", None) == (9 if counts else None)
    copied = pytree.tree_map_only(torch.Tensor, torch.clone, packed)
    assert torch.equal(tk.decode(copied), tk.decode(packed))


def test_scales_are_a_tuple_to_everyone(framework: Framework) -> None:
    scales = tk.scales(framework.make(layer("normal", 700)))
    assert isinstance(scales, tuple)
    assert scales._fields == ("scale", "limit")
    again = pickle.loads(pickle.dumps(scales))
    assert type(again) is tk.Scales


@pytest.mark.parametrize("counts", [False, True])
def test_messages_are_pickled_with_their_layout(framework: Framework, counts: bool) -> None:
    packed = packed_or_counts(framework.make(layer("normal", 700)), counts)
    again = pickle.loads(pickle.dumps(packed))
    assert type(again) is type(packed)
    assert again.layout == packed.layout
    assert getattr(again, "workers", None) == (9 if counts else None)
    assert framework.owns(again.data)
    assert again != packed  # by identity: bytes are compared as bytes
    assert packed == packed
    assert len({packed, again}) == 2
    assert_same(framework.to_numpy(again.data), framework.to_numpy(packed.data))


# ---- README's table


def features(framework: Framework) -> str:
    """Return the framework's row, from what its arrays turn out to do."""

    def address(x: Any) -> int:
        array = x if isinstance(x, np.ndarray) else _core.from_dlpack(x, "x")
        return int(array.ctypes.data)

    x = framework.make(layer("normal", 700))
    adapter = adapter_of(x, "x")
    dense = adapter.dense(x, "x")
    written = adapter.empty((700,), "float32", dense)
    place = address(written)
    in_place = [address(dense) == address(x), address(adapter.result(written)) == place]
    worked = []
    for dtype in DTYPES:
        decoded = tk.decode(tk.encode(framework.make(layer("normal", 700, dtype))))
        worked += [dtype] * (decoded.dtype == framework.dtype(dtype))
    try:
        tk.clip(x, out=framework.make(np.zeros(700, np.float32)))
        out = "yes"
    except TypeError:
        out = "immutable"
    dtypes = "all four" if worked == list(DTYPES) else ", ".join(worked)
    return " | ".join(["", framework.title, dtypes, *("yes" if yes else "copied" for yes in in_place), out, ""]).strip()


@pytest.mark.host  # README has no rows of those on a GPU, whose addresses are looked at in other ways
def test_the_table_of_frameworks(framework: Framework) -> None:
    rows = (Path(__file__).parent.parent / "README.md").read_text().splitlines()
    assert features(framework) in rows


# ---- the import

FRAMEWORKS = ("torch", "jax", "jaxlib", "cupy", "tensorflow", "paddle", "ml_dtypes", "scipy")


def run_python(code: str) -> str:
    """Return what a fresh process prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_the_import_loads_no_framework() -> None:
    """Nor does the work on NumPy arrays, of which bfloat16 takes ml_dtypes along by itself."""
    shown = f"print([name for name in {FRAMEWORKS} if name in sys.modules])"
    assert run_python(f"import sys, terngrad_kernels; {shown}") == "[]"
    work = "tk.decode(tk.encode(numpy.ones(9, 'f4'))); tk.build_info()"
    assert run_python(f"import sys, numpy, terngrad_kernels as tk; {work}; {shown}") == "[]"


@pytest.mark.parametrize("order", ["torch, jax", "terngrad_kernels, jax, torch"])
def test_frameworks_in_any_order(order: str) -> None:
    for name in ("torch", "jax"):
        pytest.importorskip(name)
    code = f"""
import numpy, {order}
import terngrad_kernels as tk
x = numpy.linspace(-1, 1, 1000, dtype="f4")
print(len({{bytes(numpy.asarray(tk.encode(v).data)) for v in (x, torch.from_numpy(x), jax.numpy.asarray(x))}}))
"""
    assert run_python(code) == "1"


def test_the_import_is_quick() -> None:
    """What it adds to NumPy's own import: a few hundredths of a second; the bound is for busy machines."""
    code = (
        "import time, numpy; start = time.perf_counter(); import terngrad_kernels; print(time.perf_counter() - start)"
    )
    assert min(float(run_python(code)) for _ in range(3)) < 0.5


def test_one_call_is_quick(framework: Framework) -> None:
    """A small encode takes microseconds; the bound only tells it from what looks for something in vain each time."""
    x = framework.make(layer("normal", 1024))
    tk.encode(x)
    start = time.perf_counter()
    for _ in range(200):
        tk.encode(x)
    assert (time.perf_counter() - start) / 200 < 5e-3
