"""CuPy's adapter: on arrays over the host's memory, which need no GPU to be looked at, and on real ones."""

from __future__ import annotations

import importlib
import warnings
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from arrays import no_cuda

import terngrad_kernels as tk
from terngrad_kernels.adapters import adapter_of


@pytest.fixture
def cupy() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy warns where it finds no CUDA
        return pytest.importorskip("cupy")


def posing(cupy: Any, values: Any) -> Any:
    """Return a CuPy array that takes NumPy's memory for that of device 0."""
    memory = cupy.cuda.UnownedMemory(values.ctypes.data, max(values.nbytes, 1), values, device_id=0)
    return cupy.ndarray(values.shape, values.dtype, cupy.cuda.MemoryPointer(memory, 0))


def test_what_an_array_is(cupy: Any) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for dtype in ("float32", "float16", "float64", "int8", "uint8", "int32", ml_dtypes.bfloat16):
        for shape in ((), (0,), (3, 0), (4, 6)):
            x = posing(cupy, np.zeros(shape, dtype))
            adapter = adapter_of(x, "x")
            assert adapter.name == "cupy"
            assert adapter.dtype(x) == np.dtype(dtype).name
            assert adapter.dense(x, "x") is x
            assert adapter.writable(x, "x") is x
            assert adapter.device(x) == cupy.cuda.Device(0)
            assert adapter.device(x) != cupy.cuda.Device(1)
    x = posing(cupy, np.zeros(32, np.uint8))
    assert adapter_of(x, "x").as_float32(x[..., :8]).shape == (2,)
    assert adapter_of(x, "x").as_float32(x[..., :8]).data.ptr == x.data.ptr


def test_arrays_on_several_devices(cupy: Any) -> None:
    values = np.zeros(3, np.float32)
    memory = cupy.cuda.UnownedMemory(values.ctypes.data, values.nbytes, values, device_id=1)
    other = cupy.ndarray((3,), np.float32, cupy.cuda.MemoryPointer(memory, 0))
    text = r"^x\[1\]: expected device <CUDA Device 0> as x\[0\] is on, got <CUDA Device 1>"
    with pytest.raises(ValueError, match=text):
        tk.encode([posing(cupy, values), other])


def test_wrong_types(cupy: Any) -> None:
    with pytest.raises(TypeError, match=r"^x: expected float32, .*, got cupy int32"):
        tk.encode(posing(cupy, np.zeros(3, np.int32)))
    with pytest.raises(TypeError, match=r"^x\[1\]: expected a cupy array as x\[0\] is, got a numpy array"):
        tk.encode([posing(cupy, np.zeros(3, np.float32)), np.zeros(3, np.float32)])


def test_what_a_graph_writes_again_is_kept(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy's pool would give it to others: here of a stream that only says whether it is capturing."""
    values, stream = np.zeros(4, np.float32), SimpleNamespace(capturing=False)
    stream.is_capturing = lambda: stream.capturing
    x = SimpleNamespace(device=nullcontext(), flags=SimpleNamespace(c_contiguous=False))
    module = importlib.import_module("terngrad_kernels.adapters.cupy")
    monkeypatch.setattr(module, "_captured", [])
    monkeypatch.setattr(cupy, "empty", lambda shape, kind: posing(cupy, values))
    monkeypatch.setattr(cupy, "ascontiguousarray", lambda x: posing(cupy, values))
    monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda device: stream)
    for stream.capturing in (False, True):
        made = [module.adapter.dense(x, "x"), module.adapter.empty((4,), "float32", x)]
        assert [id(kept) for kept in module._captured] == [id(array) for array in made if stream.capturing]


@pytest.mark.cuda
def test_on_a_gpu(cupy: Any) -> None:
    if reason := no_cuda():
        pytest.skip(reason)
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    x = cupy.asarray(values)
    adapter = adapter_of(x, "x")
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        assert adapter.stream(x) == stream.ptr
    assert adapter.dense(x.T, "x").flags.c_contiguous
    for dtype in ("float32", "bfloat16", "uint8"):
        assert adapter.empty((2, 3), dtype, x).dtype.name == dtype
    cupy.cuda.Device().synchronize()
    for given in (None, stream, stream.ptr, 0, 1, cupy.cuda.Stream.null):
        for there, here in ((x, values), (x.T, values.T)):
            packed = tk.encode(there, seed=3, stream=given)
            cupy.cuda.Device().synchronize()
            assert cupy.asnumpy(packed.data).tobytes() == tk.encode(here, seed=3).data.tobytes()
    with pytest.raises(TypeError, match=r"^stream: expected an int or a stream of cupy, got str"):
        tk.encode(x, stream="default")
