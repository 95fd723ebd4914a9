"""Paddle's tensors, in dynamic mode."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import paddle

from .. import _core
from ..adapters import handle_of, no_stream, queue

if not hasattr(paddle.Tensor, "__dlpack_c_exchange_api__"):  # older ones have no way to say that they may be written
    raise ImportError(f"terngrad_kernels takes tensors of Paddle 3.3 and later, this is Paddle {paddle.__version__}")

_DTYPES = {
    "float32": paddle.float32,
    "float16": paddle.float16,
    "bfloat16": paddle.bfloat16,
    "float64": paddle.float64,
    "int8": paddle.int8,
    "uint8": paddle.uint8,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def _require_memory(x: Any, argument: str) -> None:
    """Refuse values without memory of one array."""
    if not isinstance(x, paddle.Tensor):
        raise TypeError(f"{argument}: expected an eager tensor, got a symbolic value of a static graph")
    if not x.is_dense() or x.is_dist():
        kind = "distributed" if x.is_dist() else "sparse"
        raise TypeError(f"{argument}: expected a dense tensor, got one that is {kind}")


class PaddleAdapter:
    """See `terngrad_kernels.adapters.Adapter`."""

    name = "paddle"
    core = _core
    queue = queue

    def accepts(self, x: Any) -> bool:
        """Return whether `x` is a tensor or a value of a static graph, which `dense` refuses."""
        return isinstance(x, (paddle.Tensor, paddle.static.Variable, paddle.pir.Value))

    def dense(self, x: Any, argument: str) -> Any:
        """Return the data, outside autograd."""
        _require_memory(x, argument)
        return x if x.is_contiguous() else x.detach().contiguous()

    def dtype(self, x: Any) -> str:
        """Return the name without "paddle."."""
        return _NAMES.get(x.dtype) or str(x.dtype).removeprefix("paddle.")

    def device(self, x: Any) -> Any:
        """Return the place."""
        return x.place

    def stream(self, x: Any) -> int | None:
        """Return the current stream of paddle.device."""
        place = x.place
        if not place.is_gpu_place():
            return None
        return int(paddle.base.core._get_current_stream(place.gpu_device_id()).cuda_stream)

    def on_stream(self, x: Any, stream: Any, arrays: Sequence[Any]) -> AbstractContextManager[Any]:
        """Paddle records no use of memory on other streams: `arrays` must live until this stream is done."""
        if not x.place.is_gpu_place():
            raise no_stream()
        if not isinstance(stream, paddle.device.Stream):
            handle = handle_of(stream, self.name)
            device = x.place.gpu_device_id()
            if handle in (0, 1):  # CUDA's default stream, under both its names
                stream = paddle.device.Stream(stream_base=paddle.base.core._get_legacy_default_stream(device))
            else:
                stream = paddle.device.get_stream_from_external(handle, paddle.CUDAPlace(device))
        context: AbstractContextManager[Any] = paddle.device.stream_guard(stream)
        return context

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        """Return an uninitialised tensor."""
        return paddle.empty(shape, dtype=_DTYPES[dtype], device=like.place)

    def result(self, written: Any) -> Any:
        """Return the tensor itself."""
        return written

    def writable(self, x: Any, argument: str) -> Any:
        """Return the tensor itself: `_core` sees what it is."""
        _require_memory(x, argument)
        return x

    def as_float32(self, x: Any) -> Any:
        """Return a view."""
        return x.view("float32")

    def to_numpy(self, x: Any) -> Any:
        """Return a copy."""
        return x.numpy()

    def from_numpy(self, x: Any, like: Any) -> Any:
        """Return a copy on the device of `like`."""
        return paddle.to_tensor(x, place=like.place)


adapter = PaddleAdapter()
