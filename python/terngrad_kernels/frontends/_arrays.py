"""What frontends need of arrays beyond an adapter: the few functions whose names differ between frameworks.

What all have in common (comparisons, +, -, *, slices) is written with operators. So work stays in the framework, on the
device, and under its compiler where there is one.
"""

from __future__ import annotations

import importlib
import math
import numbers
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from ..adapters import Adapter, adapter_of, numpy_adapter

__all__ = ["Arrays", "array_of", "arrays_of", "is_traced", "scalars"]


class Arrays:
    """NumPy's names, which are also CuPy's and JAX's."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def cast(self, x: Any, dtype: Any) -> Any:
        """Return `x` as that type: a name, or the framework's own."""
        return x.astype(dtype)

    def reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        """Return `x` in that shape."""
        return x.reshape(shape)

    def concatenate(self, parts: Sequence[Any]) -> Any:
        """Return 1-d arrays one after the other."""
        return self.module.concatenate(parts)

    def zeros(self, n: int, like: Any) -> Any:
        """Return n zeros of uint8 where `like` is."""
        return self.module.zeros(n, "uint8")

    def digit(self, x: Any, k: int) -> Any:
        """Return bits 2k and 2k + 1 of uint8."""
        return x >> 2 * k & 3

    def times(self, codes: Any, scalar: Any) -> Any:
        """Return the float32 product of small integers (or floats) and one float32, of shape (1,)."""
        return self.cast(codes, "float32") * scalar

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        """Choose elements."""
        return self.module.where(condition, x, y)

    def put(self, number: float, where: Any, x: Any) -> Any:
        """Return float32 `x` with a number in its place where the condition holds."""
        # As float32 already: converted on a device that flushes subnormals, the smallest would become 0.
        return self.module.where(where, np.float32(number), x)

    def maximum(self, x: Any, y: Any) -> Any:
        """Return the larger of each pair."""
        return self.module.maximum(x, y)


class NumpyArrays(Arrays):
    """NumPy, and the adapter's own subclass of its arrays, which some functions drop."""

    def concatenate(self, parts: Sequence[Any]) -> Any:
        """Return arrays one after the other, in the type of the first."""
        return self.module.concatenate(parts).view(type(parts[0]))

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        """Choose elements, in the type of `y`."""
        return self.module.where(condition, x, y).view(type(y))

    def put(self, number: float, where: Any, x: Any) -> Any:
        """Put a number, in the type of `x`."""
        return self.where(where, np.float32(number), x)

    def times(self, codes: Any, scalar: Any) -> Any:
        """Converted on the way, in cache. 0 times infinity is the NaN of a poisoned layer, no mistake."""
        with np.errstate(invalid="ignore"):
            return self.module.multiply(codes, scalar, dtype=np.float32)


class CupyArrays(Arrays):
    """CuPy."""

    def zeros(self, n: int, like: Any) -> Any:
        """Return n zeros on the device of `like`, which need not be the current one."""
        with like.device:
            return self.module.zeros(n, "uint8")


class TorchArrays(Arrays):
    """PyTorch."""

    def cast(self, x: Any, dtype: Any) -> Any:
        """Return `x` as that type, by torch.dtype."""
        return x.to(getattr(self.module, dtype) if isinstance(dtype, str) else dtype)

    def concatenate(self, parts: Sequence[Any]) -> Any:
        """Return 1-d arrays one after the other."""
        return self.module.cat(parts)

    def zeros(self, n: int, like: Any) -> Any:
        """Return n zeros on the device of `like`."""
        return self.module.zeros(n, dtype=self.module.uint8, device=like.device)

    def put(self, number: float, where: Any, x: Any) -> Any:
        """Python's numbers take the type of the tensor."""
        return self.module.where(where, number, x)

    def times(self, codes: Any, scalar: Any) -> Any:
        """Converted on the way; tensors of floats stay floats."""
        return codes * scalar if not codes.is_floating_point() else self.cast(codes, "float32") * scalar


class TensorflowArrays(Arrays):
    """TensorFlow, whose tensors have no methods."""

    def cast(self, x: Any, dtype: Any) -> Any:
        """Return `x` as that type."""
        return self.module.cast(x, dtype)

    def reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        """Return `x` in that shape."""
        return self.module.reshape(x, shape)

    def concatenate(self, parts: Sequence[Any]) -> Any:
        """Return 1-d arrays one after the other."""
        return self.module.concat(parts, 0)

    def zeros(self, n: int, like: Any) -> Any:
        """Return n zeros, which TensorFlow places where they are used."""
        return self.module.zeros(n, self.module.uint8)

    def digit(self, x: Any, k: int) -> Any:
        """Return bits 2k and 2k + 1, by functions: there is no operator for shifts."""
        return self.module.bitwise.right_shift(x, self.module.constant(2 * k, self.module.uint8)) & 3


class PaddleArrays(Arrays):
    """Paddle."""

    def concatenate(self, parts: Sequence[Any]) -> Any:
        """Return 1-d arrays one after the other."""
        return self.module.concat(parts)

    def zeros(self, n: int, like: Any) -> Any:
        """Return n zeros on the current device, where Paddle computes everything."""
        return self.module.zeros([n], "uint8")

    def digit(self, x: Any, k: int) -> Any:
        """Return bits 2k and 2k + 1, by functions of tensors."""
        bits, mask = self.module.to_tensor([2 * k], "uint8"), self.module.to_tensor([3], "uint8")
        return self.module.bitwise_and(self.module.bitwise_right_shift(x, bits), mask)


_CLASSES = {
    "numpy": (NumpyArrays, "numpy"),
    "dlpack": (NumpyArrays, "numpy"),  # whose arrays are of a subclass
    "cupy": (CupyArrays, "cupy"),
    "jax": (Arrays, "jax.numpy"),
    "torch": (TorchArrays, "torch"),
    "tensorflow": (TensorflowArrays, "tensorflow"),
    "paddle": (PaddleArrays, "paddle"),
}


@cache
def arrays_of(name: str) -> Arrays:
    """Return the functions of the framework of an adapter, by name; it is loaded, as an array of it was seen."""
    kind, module = _CLASSES[name]
    return kind(importlib.import_module(module))


def array_of(x: Any, argument: str) -> tuple[Adapter, Any]:
    """Return the adapter of an array, and the array, dense; NumPy's scalars are its arrays without dimensions."""
    if isinstance(x, np.generic):
        return numpy_adapter(), np.asarray(x)
    adapter = adapter_of(x, argument)
    return adapter, adapter.dense(x, argument)


def scalars(values: Sequence[Any], names: Sequence[str], adapter: Adapter, like: Any) -> Any:
    """Return single numbers, of any kind, as float32 in one array of shape (n,) where `like` is.

    The framework's own arrays stay on their device; Python's and NumPy's numbers are brought there. `names` are for
    errors.
    """
    arrays = arrays_of(adapter.name)
    parts = []
    for value, name in zip(values, names, strict=True):
        if isinstance(value, (numbers.Real, np.ndarray, np.generic)):
            number = np.asarray(value)
            _require_one(number, name)
            with np.errstate(over="ignore"):
                parts.append(adapter.from_numpy(number.astype(np.float32).reshape(1), like))
            continue
        other, array = array_of(value, name)
        if other is not adapter:
            raise TypeError(f"{name}: expected a number or a {adapter.name} array, got a {other.name} array")
        _require_one(array, name)
        parts.append(arrays.reshape(arrays.cast(array, "float32"), (1,)))
    return parts[0] if len(parts) == 1 else arrays.concatenate(parts)


def _require_one(value: Any, argument: str) -> None:
    if math.prod(value.shape) != 1:
        raise ValueError(f"{argument}: expected one number, got shape {tuple(value.shape)}")


def is_traced(x: Any) -> bool:
    """Return whether `x` is a traced value of JAX."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(x, jax.core.Tracer)
