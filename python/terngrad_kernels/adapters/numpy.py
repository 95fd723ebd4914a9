"""NumPy arrays, ml_dtypes' bfloat16 included."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from .. import _core
from ..adapters import no_queue, no_stream

_DTYPES = {name: np.dtype(name) for name in ("float32", "float16", "float64", "int8", "uint8")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class NumpyAdapter:
    """See `terngrad_kernels.adapters.Adapter`."""

    name = "numpy"
    core = _core
    queue = no_queue

    def accepts(self, x: Any) -> bool:
        """Return whether `x` is an array; not a masked one, whose mask would be lost."""
        return isinstance(x, np.ndarray) and not isinstance(x, np.ma.MaskedArray)

    def dtype(self, x: Any) -> str:
        """Return the name without the byte order, which `dense` makes the machine's."""
        name = _NAMES.get(x.dtype)
        return x.dtype.name if name is None else name

    def device(self, x: Any) -> Any:
        """Return the only device."""
        return "cpu"

    def dense(self, x: Any, argument: str) -> Any:
        """Return `x`, or a copy that is row-major and of the machine's byte order."""
        if x.flags.c_contiguous and x.dtype.isnative:
            return x
        return x.astype(x.dtype.newbyteorder("="), order="C")

    def stream(self, x: Any) -> int | None:
        """Return None: the host has no streams."""
        return None

    def on_stream(self, x: Any, stream: Any, arrays: Sequence[Any]) -> AbstractContextManager[Any]:
        """Refuse: the host has no streams."""
        raise no_stream()

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        """Return an uninitialised array."""
        known = _DTYPES.get(dtype)
        if known is None:
            import ml_dtypes

            known = _DTYPES[dtype] = np.dtype(ml_dtypes.bfloat16)
        return np.empty(shape, known)

    def result(self, written: Any) -> Any:
        """Return the array itself."""
        return written

    def writable(self, x: Any, argument: str) -> Any:
        """Return the array itself: `_core` sees what it is."""
        return x

    def as_float32(self, x: Any) -> Any:
        """Return a view."""
        return x.view(np.float32)

    def to_numpy(self, x: Any) -> Any:
        """Return the array itself."""
        return x

    def from_numpy(self, x: Any, like: Any) -> Any:
        """Return the array itself."""
        return x


adapter = NumpyAdapter()
