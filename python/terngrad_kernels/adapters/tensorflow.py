"""TensorFlow's tensors and variables, eager."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import tensorflow as tf

from .. import _core
from ..adapters import no_queue, no_stream


class TensorFlowAdapter:
    """See `terngrad_kernels.adapters.Adapter`."""

    name = "tensorflow"
    core = _core
    queue = no_queue

    def accepts(self, x: Any) -> bool:
        """Return whether `x` is a tensor or a variable; `dense` refuses symbolic tensors."""
        return isinstance(x, (tf.Tensor, tf.Variable))

    def dense(self, x: Any, argument: str) -> Any:
        """Return the tensor, or the value of a variable; refuse symbolic tensors, which have no memory."""
        if isinstance(x, tf.Variable):
            x = x.read_value()
        if not hasattr(x, "numpy"):
            raise TypeError(
                f"{argument}: expected an eager tensor, got a symbolic one of a tf.function "
                "(call terngrad_kernels outside it, or through tf.py_function)"
            )
        if "GPU" in x.device:
            raise TypeError(
                f"{argument}: expected a tensor on the CPU, got one on {x.device}, whose streams TensorFlow does not "
                "show; pass cupy.from_dlpack(tf.experimental.dlpack.to_dlpack(x)), or a copy on the host"
            )
        return x

    def dtype(self, x: Any) -> str:
        """Return the name without "tf."."""
        return str(x.dtype.name)

    def device(self, x: Any) -> Any:
        """Return the name of the device."""
        return x.device

    def stream(self, x: Any) -> int | None:
        """Return None: TensorFlow shows no streams."""
        return None

    def on_stream(self, x: Any, stream: Any, arrays: Sequence[Any]) -> AbstractContextManager[Any]:
        """Refuse: TensorFlow shows no streams."""
        raise no_stream()

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        """Return memory that TensorFlow can take over without a copy."""
        return _core.Buffer(list(shape), dtype)

    def result(self, written: Any) -> Any:
        """Hand the memory to TensorFlow."""
        return tf.experimental.dlpack.from_dlpack(written.__dlpack__())

    def writable(self, x: Any, argument: str) -> Any:
        """Refuse: tensors are immutable, and a variable may share its memory with tensors that were read from it."""
        raise TypeError(f"{argument}: expected None, got a TensorFlow tensor, which is immutable")

    def as_float32(self, x: Any) -> Any:
        """Return a copy: TensorFlow has no views."""
        return tf.bitcast(tf.reshape(x, (*x.shape[:-1], x.shape[-1] // 4, 4)), tf.float32)

    def to_numpy(self, x: Any) -> Any:
        """Return a view of a host tensor where possible."""
        return x.numpy()

    def from_numpy(self, x: Any, like: Any) -> Any:
        """Return a copy on the device of `like`."""
        with tf.device(like.device):
            return tf.constant(x)


adapter = TensorFlowAdapter()
