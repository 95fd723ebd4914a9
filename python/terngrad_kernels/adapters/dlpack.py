"""Other arrays that support DLPack; those on a GPU through CuPy or PyTorch, where one of them is loaded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from .. import _core
from ..adapters import Adapter, adapter_of, no_queue, no_stream

_HOST = (1, 0)  # kDLCPU, and its number
_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged


class Array(np.ndarray):
    """The type of results for such arrays: a NumPy array that exports DLPack 1 with every NumPy, bfloat16 included.

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
    """Return an array as one whose operations are known: NumPy's `Array`, or on a GPU one of a loaded framework."""
    if isinstance(x, Array):
        return x
    device = x.__dlpack_device__()[0] if hasattr(x, "__dlpack_device__") else _HOST[0]
    if device not in _CUDA or not _core.CUDA_BUILT:
        return _core.from_dlpack(x, argument).view(Array)
    for name in ("cupy", "torch"):  # the producer has its stream wait for what is on the other's way
        if module := sys.modules.get(name):
            return module.from_dlpack(x)
    raise TypeError(
        f"{argument}: expected CuPy or PyTorch to be imported, one of which reads arrays on a CUDA device "
        f"(cupy.from_dlpack, torch.from_dlpack), got a {type(x).__name__} there without them"
    )


def _known(x: Any) -> Adapter | None:
    """Return the adapter of what `_view` returned, None for the host."""
    return None if isinstance(x, Array) else adapter_of(x, "x")


class DLPackAdapter:
    """See `terngrad_kernels.adapters.Adapter`. Each array is viewed once, by `_view`.

    Operations on arrays of a GPU go on with the adapter of the framework that views them, on its current stream. The
    producer does not know of that stream: `x` must live until its work is done.
    """

    name = "dlpack"
    core = _core
    queue = no_queue

    def accepts(self, x: Any) -> bool:
        """Return whether `x` has the method; what that returns is checked later."""
        return hasattr(type(x), "__dlpack__")

    def dense(self, x: Any, argument: str) -> Any:
        """Return a view of the memory of `x`, or a copy that is row-major."""
        view = _view(x, argument)
        if known := _known(view):
            return known.dense(view, argument)
        return view if view.flags.c_contiguous else view.copy(order="C")

    def dtype(self, x: Any) -> str:
        """Return NumPy's name."""
        return str(x.dtype.name)

    def device(self, x: Any) -> Any:
        """Return the only device."""
        return "cpu"

    def stream(self, x: Any) -> int | None:
        """Return None: the host has no streams."""
        return None

    def on_stream(self, x: Any, stream: Any, arrays: Sequence[Any]) -> AbstractContextManager[Any]:
        """Make the stream current for an array on a GPU, which must outlive its work; refuse it for one on the host."""
        view = _view(x, "x")
        if known := _known(view):
            return known.on_stream(view, stream, arrays)
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
        known = _known(x)
        return known.as_float32(x) if known else x.view(np.float32)

    def to_numpy(self, x: Any) -> Any:
        """Return a view; of a GPU's array a copy."""
        known = _known(x)
        return known.to_numpy(x) if known else x.view(np.ndarray)

    def from_numpy(self, x: Any, like: Any) -> Any:
        """Return a view; for an array on a GPU a copy there."""
        view = _view(like, "like")
        known = _known(view)
        return known.from_numpy(x, view) if known else x.view(Array)


adapter = DLPackAdapter()
