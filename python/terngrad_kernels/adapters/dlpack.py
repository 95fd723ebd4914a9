"""Arrays of anything else that speaks DLPack, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from .. import _core
from . import no_stream

_HOST = (1, 0)  # kDLCPU, and its number


class Array(np.ndarray):
    """What results for such arrays come in: a NumPy array that speaks DLPack 1 with every NumPy, and in bfloat16 too.

    ``framework.from_dlpack(result)`` makes it an array of another framework, without a copy.
    """

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None
    ) -> Any:
        """Return a capsule: versioned where the consumer takes one, read-only where the array is."""
        if stream is not None:
            raise ValueError("stream: CPU arrays have none, expected None")
        if dl_device is not None and tuple(dl_device) != _HOST:
            raise BufferError(f"dl_device: expected {_HOST}, the CPU, got {dl_device}")
        return _core.to_dlpack(self.copy() if copy else self, max_version)

    def __dlpack_device__(self) -> tuple[int, int]:  # type: ignore[override]
        """Return the CPU's."""
        return _HOST


def _view(x: Any, argument: str) -> Any:
    return x if isinstance(x, Array) else _core.from_dlpack(x, argument).view(Array)


class DLPackAdapter:
    """See `terngrad_kernels.adapters.Adapter`. Arrays are looked at once, as an `Array` of their memory."""

    name = "dlpack"
    core = _core

    def accepts(self, x: Any) -> bool:
        """Whatever has the method; what it gives is seen when it is called."""
        return hasattr(type(x), "__dlpack__")

    def dense(self, x: Any, argument: str) -> Any:
        """Return a view of the memory of `x`, or a copy that is row-major."""
        view = _view(x, argument)
        return view if view.flags.c_contiguous else view.copy(order="C")

    def dtype(self, x: Any) -> str:
        """NumPy's name."""
        return str(x.dtype.name)

    def device(self, x: Any) -> Any:
        """There is one."""
        return "cpu"

    def stream(self, x: Any) -> int | None:
        """There is none."""
        return None

    def on_stream(self, x: Any, stream: Any, arrays: Sequence[Any]) -> AbstractContextManager[Any]:
        """There is none."""
        raise no_stream()

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        """Return memory aligned so that every consumer can take it over without a copy."""
        return _view(_core.Buffer(list(shape), dtype), "out")

    def result(self, written: Any) -> Any:
        """Return the array itself."""
        return written

    def writable(self, x: Any, argument: str) -> Any:
        """Return a view of the memory of `x`, read-only where its capsule does not say that it may be written."""
        return _view(x, argument)

    def as_float32(self, x: Any) -> Any:
        """Return a view."""
        return x.view(np.float32)

    def to_numpy(self, x: Any) -> Any:
        """Return a view."""
        return x.view(np.ndarray)

    def from_numpy(self, x: Any, like: Any) -> Any:
        """Return a view."""
        return x.view(Array)


adapter = DLPackAdapter()
