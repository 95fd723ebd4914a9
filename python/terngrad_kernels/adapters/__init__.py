"""What the package needs of an array framework, and which framework an array is of.

One module a framework, imported when one of its arrays is first passed in: the framework is loaded by then. Arrays of
anything else that speaks DLPack are `dlpack`'s. Nothing else in the package knows frameworks.
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
    """One framework's arrays. All but `accepts`, `dense` and `writable` are given what `dense` gave."""

    name: str

    @property
    def core(self) -> Any:
        """The operations, as functions: `_core`, or what takes its place where arrays may only be traced yet."""

    def accepts(self, x: Any) -> bool:
        """Whether `x` is an array of this framework."""

    def dense(self, x: Any, argument: str) -> Any:
        """Return `x`, or a dense row-major copy, as `_core` can read it: with `shape`, `ndim` and slices."""

    def dtype(self, x: Any) -> str:
        """Name of the element type of `x`, e.g. "float32", "uint8"; the framework's own name for other types."""

    def device(self, x: Any) -> Any:
        """Where `x` lies: something that compares equal on one device."""

    def stream(self, x: Any) -> int | None:
        """Return the cudaStream_t of the current stream of the device of `x`, None for the host."""

    def queue(self, like: Any, geometry: Any, measured: bool, *arrays: Any) -> tuple[int, Any] | None:
        """Return where a call on a device's arrays runs, and memory for its length: `queue`, or `no_queue`."""

    def on_stream(self, x: Any, stream: Any, arrays: Sequence[Any]) -> AbstractContextManager[Any]:
        """Make `stream` the current one of the device of `x`, for a call on `arrays`, or say why it cannot be."""

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        """Return something that `core` can write, on the device of `like` (None: the host)."""

    def result(self, written: Any) -> Any:
        """Turn what `empty` gave into the framework's array."""

    def writable(self, x: Any, argument: str) -> Any:
        """Return `x` as `_core` can write it, or raise the error that says why it cannot be written."""

    def as_float32(self, x: Any) -> Any:
        """Return uint8 data with its last axis seen as float32."""

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
        raise TypeError(f"{argument}: expected an array that speaks DLPack, got {kind}")
    _by_type[type(x)] = adapter
    return adapter


def numpy_adapter() -> Adapter:
    """Return NumPy's: for what is given without any array."""
    return _load("numpy")


def path_of(operation: str, x: Any, stream: Any = None) -> Callable[..., Any] | None:
    """Return what takes an operation on `x` over, called with the same arguments; None where it is simply to be run.

    A compiler that reads along gets it recorded. Only PyTorch's need that: TorchDynamo reads source, and has to be led
    away before it comes to caches and compiled objects. A stream that the caller names is made the current one, and the
    operation is called again: so everything, allocations and copies too, happens on it.
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
    """Return the current stream of the device of `like`, and memory for the length of a call; None for the host.

    The method of adapters whose framework shows streams. `measured`: whether layers' statistics are taken. `arrays`:
    what `_core` is given, each an array or a tuple of them. `geometry`: None for what needs no memory.
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
    """What is wrong with a stream where there is none."""
    return ValueError("stream: CPU arrays have none, expected None")


def handle_of(stream: Any, name: str) -> int:
    """Return the cudaStream_t of a stream of any framework; `name`: that of the array's."""
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for attribute in ("cuda_stream", "ptr"):  # PyTorch's and CuPy's name for it, from before that protocol
        if hasattr(stream, attribute):
            return int(getattr(stream, attribute))
    raise TypeError(f"stream: expected an int or a stream of {name}, got {type(stream).__name__}")
