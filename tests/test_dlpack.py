"""Arrays of anything that speaks DLPack: every kind of capsule, who owns the memory, and what results can do."""

from __future__ import annotations

import gc
import sys
import threading
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import producer
import pytest
from arrays import DTYPES, FRAMEWORKS, Array, assert_same, layer, skip_if_cuda_is_built
from producer import Producer

import reference as ref
import terngrad_kernels as tk
from terngrad_kernels import _core
from terngrad_kernels.adapters import adapter_of, dlpack

X = layer("normal", 700)
WANT = tk.encode(X, seed=7).data
VERSIONS = (None, (1, 0), (1, 3), (1, 99))


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Any:
    """Every tensor is given back to its producer."""
    yield
    if producer.live:  # held by a cycle, perhaps
        gc.collect()
    assert producer.live == {}


# ---- capsules


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_versions(version: Any, dtype: str) -> None:
    x = layer("normal", 700, dtype)
    made = Producer(x, version)
    packed = tk.encode(made, seed=7)
    assert made.calls == 1  # an array is looked at once a call
    assert_same(np.asarray(packed.data), tk.encode(x, seed=7).data)
    assert_same(np.asarray(tk.decode(packed)), tk.decode(tk.encode(x, seed=7)))
    assert producer.live == {}


def test_versions_that_are_not_known() -> None:
    for call in (lambda x: tk.encode(x), lambda x: tk.clip(X, out=x), lambda x: tk.encode(X, seed=x)):
        with pytest.raises((BufferError, TypeError), match=r"^(x|out|seed): "):
            call(Producer(X, (2, 0)))
    with pytest.raises(BufferError, match=r"^x: expected DLPack version 1, got version 2$"):
        tk.encode(Producer(X, (2, 0)))


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_outputs_must_say_that_they_are_writable(version: Any) -> None:
    """A legacy capsule cannot; a versioned one has a flag."""
    out = np.zeros(700, np.float32)
    given = Producer(out, version)
    if version is None:
        with pytest.raises(BufferError, match=r"^out: expected a writable array, got a read-only one"):
            tk.clip(Producer(X), out=given)
        assert not out.any()
    else:
        assert tk.clip(Producer(X), out=given) is given
        assert_same(out, tk.clip(X))
        out[:] = 0
    out.flags.writeable = False
    with pytest.raises(BufferError, match=r"^out: expected a writable array, got a read-only one"):
        tk.clip(Producer(X), out=given)
    assert_same(np.asarray(tk.encode(given).data), tk.encode(out).data)  # reading is another thing


def test_overlapping_outputs() -> None:
    x = X.copy()
    with pytest.raises(ValueError, match=r"^out: overlaps the memory of x"):
        tk.clip(Producer(x[1:]), out=Producer(x[:-1]))
    assert_same(x, X)
    made = Producer(x)
    assert tk.clip(made, out=made) is made
    assert_same(x, tk.clip(X))


def test_what_a_tensor_may_leave_out() -> None:
    """Strides where it is dense, and a pointer to where the data starts."""
    for version in VERSIONS:
        assert_same(np.asarray(tk.encode(Producer(X, version, strides=None), seed=7).data), WANT)
        nulls = Producer(X.reshape(7, 100), version, strides=None)
        assert tk.decode(tk.encode(nulls)).shape == (7, 100)
        shifted = Producer(X[:-10], version, byte_offset=40)
        assert_same(np.asarray(tk.encode(shifted).data), tk.encode(X[10:]).data)
        assert tk.decode(tk.encode(Producer(X[:0], version, data=None))).shape == (0,)
        assert tk.decode(tk.encode(Producer(X[:1].reshape(()), version, shape=None, strides=None))).shape == ()


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize(
    ("tensor", "error", "text"),
    [
        (
            {"device_type": producer.CUDA},
            ValueError,
            "expected an array on the CPU.*, got one on DLPack device type 2$",
        ),
        ({"device_type": 13}, ValueError, "expected an array on the CPU.*, got one on DLPack device type 13$"),
        ({"data": None}, TypeError, "expected an array with memory, got a fake, meta or wrapper tensor$"),
        ({"lanes": 4}, TypeError, r"expected float32, .* got DLPack type \(code 2, 32 bits, 4 lanes\)$"),
        ({"code": 3}, TypeError, r"expected float32, .* got DLPack type \(code 3, 32 bits, 1 lanes\)$"),
        ({"code": 17, "bits": 4}, TypeError, r"expected float32, .* got DLPack type \(code 17, 4 bits, 1 lanes\)$"),
        ({"code": 0, "bits": 24}, TypeError, r"expected float32, .* got DLPack type \(code 0, 24 bits, 1 lanes\)$"),
        ({"bits": 8}, TypeError, r"expected float32, .* got DLPack type \(code 2, 8 bits, 1 lanes\)$"),
        ({"code": 0}, TypeError, "expected float32, float16, bfloat16, float64, got dlpack int32"),
        ({"code": 5, "bits": 64}, TypeError, "expected float32, .*, got dlpack complex64"),
        ({"code": 6, "bits": 8}, TypeError, "expected float32, .*, got dlpack bool"),
    ],
    ids=str,
)
def test_tensors_that_are_refused(version: Any, tensor: Any, error: type[Exception], text: str) -> None:
    skip_if_cuda_is_built(tensor.get("device_type"))
    with pytest.raises(error, match=f"^x: {text}"):
        tk.encode(Producer(X, version, **tensor))
    with pytest.raises(error, match=rf"^x\[1\]: {text}"):
        tk.encode([Producer(X), Producer(X, version, **tensor)])


def test_unknown_arrays_on_a_gpu_are_looked_at_through_a_loaded_framework(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here NumPy stands in for CuPy: what is seen, and what results come in, are its arrays."""
    monkeypatch.setattr(_core, "CUDA_BUILT", True)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(from_dlpack=lambda x: x.array))
    x, want = Producer(X, device_type=2), tk.encode(X, seed=3)
    packed = tk.encode([x, x], seed=3)
    assert type(packed.data) is np.ndarray
    assert_same(packed.data, tk.encode([X, X], seed=3).data)
    assert_same(tk.decode(tk.encode(x, seed=3)), tk.decode(want))
    assert_same(tk.clip(x, scales=tk.scales(x)), tk.clip(X))
    blob = tk.to_bytes(want)
    assert_same(tk.from_bytes(blob, like=x).data, want.data)
    with pytest.raises(ValueError, match=r"^stream: CPU arrays have none"):
        tk.encode(x, stream=3)  # which NumPy says
    told: list[Any] = []
    with monkeypatch.context() as patched:
        patched.setattr(adapter_of(X, "x"), "on_stream", lambda x, stream, arrays: nullcontext(told.extend(arrays)))
        out = np.zeros_like(want.data)
        tk.encode(x, seed=3, out=out, stream=3)
    assert any(array is out for array in told)  # whose memory may be the framework's own
    assert_same(out, want.data)
    for name in ("cupy", "torch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        TypeError, match=r"^x: expected CuPy or PyTorch to be imported, .* got a Producer there without them$"
    ):
        tk.encode(x)


def test_what_is_no_producer() -> None:
    class Broken:
        def __init__(self, result: Any) -> None:
            self.result = result

        def __dlpack__(self, **_: Any) -> Any:
            if isinstance(self.result, Exception):
                raise self.result
            return self.result

    with pytest.raises(
        BufferError, match=r"^x: expected an unused DLPack capsule from __dlpack__ of Broken, got none$"
    ):
        tk.encode(Broken(None))
    used = Producer(X).__dlpack__()
    tk.encode(Broken(used))
    with pytest.raises(
        BufferError, match=r"^x: expected an unused DLPack capsule from __dlpack__ of Broken, got none$"
    ):
        tk.encode(Broken(used))
    with pytest.raises(RuntimeError, match=r"^its own$"):
        tk.encode(Broken(RuntimeError("its own")))
    for value in (Broken, Producer):  # a class has the function, but no array
        with pytest.raises(TypeError, match=r"^x: expected an array that supports DLPack, got builtins.type"):
            tk.encode(value)


# ---- memory


def test_inputs_are_not_copied_and_not_kept() -> None:
    x = np.ones(700, np.float32)
    made = Producer(x)
    view = _core.from_dlpack(made, "x")
    assert np.shares_memory(view, x)
    assert len(producer.live) == 1
    part = view[3:]
    del view
    assert len(producer.live) == 1  # the part keeps it
    del part
    assert producer.live == {}


def test_an_error_gives_tensors_back() -> None:
    with pytest.raises(ValueError, match="clip"):
        tk.encode([Producer(X), Producer(X, None)], clip=-1)
    assert producer.live == {}


def test_many_threads() -> None:
    made = Producer(X)
    results: list[Any] = []

    def work() -> None:
        results.extend(tk.encode(made, seed=7).data for _ in range(50))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({bytes(data) for data in results}) == 1


# ---- results


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("framework", ["torch", "jax", "paddle", "tensorflow"], indirect=True)
def test_results_are_taken_over(framework: Any, dtype: str) -> None:
    """Other frameworks take results without a copy, whatever capsules they know, and keep the memory."""
    take = {
        "torch": lambda x: framework.torch.from_dlpack(x),
        "jax": lambda x: framework.jax.dlpack.from_dlpack(x),
        "paddle": lambda x: framework.paddle.from_dlpack(x),
        "tensorflow": lambda x: framework.tf.experimental.dlpack.from_dlpack(x.__dlpack__()),
    }[framework.name]
    decoded = tk.decode(tk.encode(Producer(layer("normal", 700, dtype).reshape(7, 100)), seed=7))
    want = np.asarray(decoded).copy()
    taken = take(decoded)
    assert taken.dtype == framework.dtype(dtype)
    assert_same(framework.to_numpy(taken), want)
    if framework.name in ("torch", "paddle"):
        assert taken.data_ptr() == decoded.ctypes.data
    del decoded
    assert_same(framework.to_numpy(taken), want)


def test_results_are_numpy_arrays() -> None:
    decoded = tk.decode(tk.encode(Producer(X), seed=7))
    assert isinstance(decoded, np.ndarray)
    assert decoded.ctypes.data % 64 == 0  # so that every consumer takes them over
    assert np.from_dlpack(decoded).ctypes.data == decoded.ctypes.data
    assert type(decoded[3:]) is dlpack.Array
    assert memoryview(decoded).nbytes == 4 * 700


@pytest.mark.parametrize("dtype", [*DTYPES, "int8", "uint8"])
def test_exports(dtype: str) -> None:
    """Of any strides; the capsule says whether the memory may be written."""
    x = np.arange(24).astype(ref.DTYPES.get(dtype, dtype)).reshape(4, 6).view(dlpack.Array)
    for view in (x, x.T, x[::2, ::-1], x[1:1], x[0, 0:1].reshape(())):
        assert view.__dlpack_device__() == (1, 0)
        again = _core.from_dlpack(view, "x")
        assert again.shape == view.shape
        assert_same(again, np.asarray(view))
        assert again.flags.writeable
    x.flags.writeable = False
    assert not _core.from_dlpack(x, "x").flags.writeable
    with pytest.raises(BufferError, match="read-only"):
        x.__dlpack__()
    assert not np.shares_memory(_core.from_dlpack(Asked(x, copy=True), "x"), x)
    with pytest.raises(BufferError, match=r"^dl_device: "):
        x.__dlpack__(dl_device=(2, 0))
    with pytest.raises(ValueError, match=r"^stream: "):
        x.__dlpack__(stream=1)


class Asked:
    """An array that is asked for its capsule with other arguments."""

    def __init__(self, x: Array, **more: Any) -> None:
        self.x, self.more = x, more

    def __dlpack__(self, **more: Any) -> Any:
        return self.x.__dlpack__(**more, **self.more)


def test_capsules_that_nobody_takes() -> None:
    x = np.ones(3, np.float32).view(dlpack.Array)
    for _ in range(100):
        x.__dlpack__()
        x.__dlpack__(max_version=(1, 0))
    assert sys.getrefcount(x) == 2


# ---- other packages


def test_array_api_strict() -> None:
    xp = pytest.importorskip("array_api_strict")
    packed = tk.encode(xp.asarray(X), seed=7)
    assert_same(np.asarray(packed.data), WANT)
    decoded = xp.from_dlpack(tk.decode(packed))
    assert decoded.shape == (700,)
    out = xp.zeros(700, dtype=xp.float32)
    assert tk.decode(packed, out=out) is out
    assert_same(np.from_dlpack(out), np.asarray(tk.decode(packed)))


def test_pyarrow() -> None:
    """Legacy capsules of memory that nobody may write."""
    pa = pytest.importorskip("pyarrow")
    x = pa.array(X)
    assert_same(np.asarray(tk.encode(x, seed=7).data), WANT)
    with pytest.raises(BufferError, match=r"^out: expected a writable array, got a read-only one"):
        tk.clip(x, out=x)


def test_tvm_ffi() -> None:
    tvm_ffi = pytest.importorskip("tvm_ffi")
    x = tvm_ffi.from_dlpack(X.copy())
    packed = tk.encode(x, seed=7)
    assert_same(np.asarray(packed.data), WANT)
    assert_same(np.from_dlpack(tvm_ffi.from_dlpack(packed.data)), WANT)
    assert tk.clip(x, out=x) is x
    assert_same(np.from_dlpack(x), tk.clip(X))


def test_frameworks_are_known_by_their_own_adapters() -> None:
    assert set(FRAMEWORKS) - {"dlpack"} <= {"numpy", "torch", "jax", "paddle", "tensorflow"}
    with pytest.raises(TypeError, match=r"^x\[1\]: expected a dlpack array as x\[0\] is, got a numpy array"):
        tk.encode([Producer(X), X])
