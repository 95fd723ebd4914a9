"""JAX arrays outside `jax.jit`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _core
from ..packed import PYTREES


class JaxAdapter:
    """See `terngrad_kernels.adapters.Adapter`."""

    name = "jax"

    def accepts(self, x: Any) -> bool:
        """Arrays, and tracers, which `dense` refuses with the reason."""
        return isinstance(x, jax.Array)

    def dtype(self, x: Any) -> str:
        """NumPy's name."""
        return str(x.dtype.name)

    def device(self, x: Any) -> Any:
        """The set of devices."""
        return frozenset(x.devices())

    def dense(self, x: Any, argument: str) -> Any:
        """JAX arrays are dense; those that are not concrete, not there or on several devices have no memory to read."""
        if isinstance(x, jax.core.Tracer):
            raise TypeError(
                f"{argument}: a traced value; terngrad_kernels works on concrete JAX arrays, outside jax.jit"
            )
        if x.is_deleted():
            raise ValueError(f"{argument}: has been deleted or donated")
        if len(x.devices()) > 1:
            raise ValueError(f"{argument}: lies on {len(x.devices())} devices, expected one")
        return x

    def stream(self, x: Any) -> int | None:
        """None: JAX shows no streams."""
        return None

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any) -> Any:
        """Return memory that JAX can take over without a copy."""
        return _core.Buffer(list(shape), dtype)

    def result(self, written: Any) -> Any:
        """Hand the memory to JAX."""
        return jax.dlpack.from_dlpack(written)

    def writable(self, x: Any, argument: str) -> Any:
        """No JAX array is."""
        raise TypeError(f"{argument}: JAX arrays are immutable; leave {argument} out")

    def as_float32(self, x: Any) -> Any:
        """Return a copy: JAX has no views."""
        return jax.lax.bitcast_convert_type(x.reshape(*x.shape[:-1], -1, 4), jnp.float32)

    def to_numpy(self, x: Any) -> Any:
        """Return a view of a host array."""
        return np.asarray(x)

    def from_numpy(self, x: Any, like: Any) -> Any:
        """Return a copy on the device of `like`."""
        return jax.device_put(x.copy(), next(iter(like.devices())))


adapter = JaxAdapter()

for _kind, _static in PYTREES.items():
    jax.tree_util.register_dataclass(_kind, data_fields=["data"], meta_fields=_static)
