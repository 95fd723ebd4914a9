"""CuPy's arrays, ml_dtypes' bfloat16 included."""

from __future__ import annotations

from typing import Any

import cupy

from .. import _core


class CuPyAdapter:
    """See `terngrad_kernels.adapters.Adapter`. Work is done with the device of the array as the current one."""

    name = "cupy"
    core = _core

    def accepts(self, x: Any) -> bool:
        """Arrays."""
        return isinstance(x, cupy.ndarray)

    def dense(self, x: Any, argument: str) -> Any:
        """Return `x`, or a row-major copy made on its device."""
        if x.flags.c_contiguous:
            return x
        with x.device:
            return cupy.ascontiguousarray(x)

    def dtype(self, x: Any) -> str:
        """NumPy's name."""
        return str(x.dtype.name)

    def device(self, x: Any) -> Any:
        """A cupy.cuda.Device."""
        return x.device

    def stream(self, x: Any) -> int | None:
        """Return CuPy's own; 0 is the default stream."""
        with x.device:
            return int(cupy.cuda.get_current_stream().ptr)

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        """Return an uninitialised array of CuPy's memory pool."""
        kind: Any = dtype
        if dtype == "bfloat16":
            import ml_dtypes

            kind = ml_dtypes.bfloat16
        with like.device:
            return cupy.empty(shape, kind)

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
