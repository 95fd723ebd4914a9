"""CuPy's arrays, ml_dtypes' bfloat16 included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cupy

from .. import _core
from ..adapters import handle_of, queue


class _Handle:
    """A stream, given by its handle."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle


#: What was allocated while a graph was captured. CuPy's pool would give it to others, and each launch writes it again.
_captured: list[Any] = []


class CuPyAdapter:
    """See `terngrad_kernels.adapters.Adapter`. Work is done with the device of the array as the current one.

    What a call allocates while its stream captures a graph (copies, scratch, results) lives as long as the process:
    nobody is told when the graph goes.
    """

    name = "cupy"
    core = _core
    queue = queue

    def accepts(self, x: Any) -> bool:
        """Return whether `x` is an array."""
        return isinstance(x, cupy.ndarray)

    def dense(self, x: Any, argument: str) -> Any:
        """Return `x`, or a row-major copy made on its device."""
        if x.flags.c_contiguous:
            return x
        with x.device:
            return self._allocated(cupy.ascontiguousarray(x))

    def dtype(self, x: Any) -> str:
        """Return NumPy's name."""
        return str(x.dtype.name)

    def device(self, x: Any) -> Any:
        """Return the cupy.cuda.Device."""
        return x.device

    def stream(self, x: Any) -> int | None:
        """Return CuPy's current stream; 0 is the default one."""
        return int(cupy.cuda.get_current_stream(x.data.device_id).ptr)

    @contextmanager
    def on_stream(self, x: Any, stream: Any, arrays: Sequence[Any]) -> Iterator[None]:
        """CuPy records no use of memory on other streams: `arrays` must live until this stream is done."""
        with x.device:
            if not isinstance(stream, cupy.cuda.Stream):
                handle = handle_of(stream, self.name)
                if handle in (0, 1):  # CUDA's default stream, under both its names
                    stream = cupy.cuda.Stream.null
                else:
                    stream = cupy.cuda.Stream.from_external(_Handle(handle))
            if stream.device_id not in (-1, x.data.device_id):
                raise ValueError(f"stream: expected one of device {x.data.device_id}, got one of {stream.device_id}")
            with stream:
                yield

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        """Return an uninitialised array of CuPy's memory pool."""
        kind: Any = dtype
        if dtype == "bfloat16":
            import ml_dtypes

            kind = ml_dtypes.bfloat16
        with like.device:
            return self._allocated(cupy.empty(shape, kind))

    def _allocated(self, x: Any) -> Any:
        """Return `x`, which is kept if the current stream of its device is capturing."""
        if cupy.cuda.get_current_stream(x.data.device_id).is_capturing():
            _captured.append(x)
        return x

    def result(self, written: Any) -> Any:
        """Return the array itself."""
        return written

    def writable(self, x: Any, argument: str) -> Any:
        """Return the array itself: `_core` sees what it is."""
        return x

    def as_float32(self, x: Any) -> Any:
        """Return a view."""
        return x.view(cupy.float32)

    def to_numpy(self, x: Any) -> Any:
        """Return a copy; waits for the device."""
        return cupy.asnumpy(x)

    def from_numpy(self, x: Any, like: Any) -> Any:
        """Return a copy on the device of `like`."""
        with like.device:
            return cupy.asarray(x)


adapter = CuPyAdapter()
