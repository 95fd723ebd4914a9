"""What the package needs of an array framework, and which framework an array belongs to.

Each framework has one module, imported when one of its arrays is first passed in: the framework is loaded by then.
`dlpack` handles all other arrays that support DLPack. Nothing else in the package knows frameworks.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

__all__ = ["Adapter", "adapter_of", "handle_of", "no_queue", "no_stream", "numpy_adapter", "path_of", "queue"]


class Adapter(Protocol):
    """The arrays of one framework. All methods but `accepts`, `dense` and `writable` take what `dense` returned."""

    name: str

    @property
    def core(self) -> Any:
        """The operations, as functions: `_core`, or what replaces it where arrays may be traced."""

    def accepts(self, x: Any) -> bool:
        """Return whether `x` is an array of this framework."""

    def dense(self, x: Any, argument: str) -> Any:
        """Return `x`, or a dense row-major copy, as `_core` can read it: with `shape`, `ndim` and slices."""

    def dtype(self, x: Any) -> str:
        """Return the name of the element type, e.g. "float32", "uint8"; for other types the framework's own name."""

    def device(self, x: Any) -> Any:
        """Return the device of `x`, as something that compares equal for one device."""

    def stream(self, x: Any) -> int | None:
        """Return the cudaStream_t of the current stream of the device of `x`, None for the host."""

    def queue(self, like: Any, geometry: Any, measured: bool, *arrays: Any) -> tuple[int, Any] | None:
        """Return the stream of a call and scratch memory for it, or None for the host: `queue`, or `no_queue`."""

    def on_stream(self, x: Any, stream: Any, arrays: Sequence[Any]) -> AbstractContextManager[Any]:
        """Make `stream` the current one of the device of `x` for a call on `arrays`, or raise."""

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        """Return memory that `core` can write, on the device of `like` (None: the host)."""

    def result(self, written: Any) -> Any:
        """Return what `empty` returned as an array of the framework."""

    def writable(self, x: Any, argument: str) -> Any:
        """Return `x` as `_core` can write it, or raise."""

    def as_float32(self, x: Any) -> Any:
        """Return uint8 data with its last axis read as float32."""

    def to_numpy(self, x: Any) -> Any:
        """Return `x` as a NumPy array, a view where possible."""

    def from_numpy(self, x: Any, like: Any) -> Any:
        """Return a NumPy array as one of this framework, on the device of `like`."""


# Top-level module of an array type -> adapter module.
_MODULES = {
    "numpy": "numpy",
    "torch": "torch",
    "jax": "jax",
    "jaxlib": "jax",
    "cupy": "cupy",
    "tensorflow": "tensorflow",
    "paddle": "paddle",
    "terngrad_kernels": "dlpack",
}
_by_type: dict[type, Adapter] = {}


def _load(module: str) -> Adapter:
    adapter: Adapter = importlib.import_module(f"{__name__}.{module}").adapter
    return adapter


def _find(x: Any) -> Adapter | None:
    modules = (_MODULES.get(base.__module__.partition(".")[0]) for base in type(x).__mro__)
    module = next((module for module in modules if module), "dlpack")
    adapter = _load(module)
    return adapter if adapter.accepts(x) else None


def adapter_of(x: Any, argument: str) -> Adapter:
    """Return the adapter of an array, or raise a TypeError that names `argument`."""
    adapter = _by_type.get(type(x))
    if adapter is not None:
        return adapter
    adapter = _find(x)
    if adapter is None:
        kind = f"{type(x).__module__}.{type(x).__qualname__}"
        raise TypeError(f"{argument}: expected an array that supports DLPack, got {kind}")
    _by_type[type(x)] = adapter
    return adapter


def numpy_adapter() -> Adapter:
    """Return NumPy's: for what is given without any array."""
    return _load("numpy")


def path_of(operation: str, x: Any, stream: Any = None) -> Callable[..., Any] | None:
    """Return the function to call instead of an operation on `x`, with the same arguments, or None to go on.

    Under a compiler it records the operation. Only PyTorch's need that: TorchDynamo reads source, and must leave it
    before it reaches caches and compiled objects. With a stream it makes that the current one and calls the operation
    again, so that everything, allocations and copies too, happens on the stream.
    """
    # None also while PyTorch is being imported.
    is_compiling = getattr(sys.modules.get("torch.compiler"), "is_compiling", None)
    if is_compiling is not None and is_compiling():
        from . import torch_recorder

        if torch_recorder.is_recorded(x):
            recorded: Callable[..., Any] = getattr(torch_recorder, operation)
            return recorded
    if stream is None:
        return None
    from .streams import on_stream

    return partial(on_stream, operation)


def queue(self: Adapter, like: Any, geometry: Any, measured: bool, *arrays: Any) -> tuple[int, Any] | None:
    """Return the current stream of the device of `like`, and scratch memory for one call; None for the host.

    The method of adapters whose framework shows streams. `measured`: whether layers are measured. `arrays`: the arrays
    passed to `_core`, each an array or a tuple of them. `geometry`: None for calls that need no scratch.
    """
    stream = self.stream(like)
    if stream is None:
        return None
    if geometry is None:
        return stream, None
    count = sum(len(array) if isinstance(array, tuple) else 1 for array in arrays)
    nbytes = geometry.scratch_nbytes(measured, count)
    return stream, self.empty((nbytes,), "uint8", like) if nbytes else None


def no_queue(self: Adapter, *given: Any) -> None:
    """Return None: the method of all other adapters."""


def no_stream() -> ValueError:
    """Return the error for a stream of an array that has none."""
    return ValueError("stream: CPU arrays have none, expected None")


def handle_of(stream: Any, name: str) -> int:
    """Return the cudaStream_t of a stream of any framework. `name`: the framework of the array."""
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for attribute in ("cuda_stream", "ptr"):  # PyTorch's and CuPy's name for it, from before that protocol
        if hasattr(stream, attribute):
            return int(getattr(stream, attribute))
    raise TypeError(f"stream: expected an int or a stream of {name}, got {type(stream).__name__}")
