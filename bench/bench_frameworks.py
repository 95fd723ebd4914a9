"""What a call costs in each framework: 1,024 elements, where the work itself is a fraction of a microsecond."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import terngrad_kernels as tk

N = 1024
VALUES = np.random.default_rng(0).standard_normal(N, dtype=np.float32)

#: From NumPy's array to each framework's. Paddle comes before TensorFlow: in the other order the process ends.
MAKE = {
    "numpy": lambda _: VALUES,
    "torch": lambda torch: torch.from_numpy(VALUES),
    "jax": lambda jax: jax.numpy.asarray(VALUES),
    "paddle": lambda paddle: paddle.to_tensor(VALUES),
    "tensorflow": lambda tensorflow: tensorflow.constant(VALUES),
    "array_api_strict": lambda xp: xp.asarray(VALUES),
}
WRITABLE = ("numpy", "torch", "paddle", "array_api_strict")


@pytest.fixture(params=MAKE)
def array(request: pytest.FixtureRequest) -> Any:
    pytest.importorskip(request.param)
    return MAKE[request.param](importlib.import_module(request.param))


def test_framework_encode(measure: Callable[..., Any], array: Any) -> None:
    measure(lambda: tk.encode(array, seed=1), N)


@pytest.mark.parametrize("array", WRITABLE, indirect=True)
def test_framework_encode_out(measure: Callable[..., Any], array: Any) -> None:
    out = tk.encode(array).data
    measure(lambda: tk.encode(array, seed=1, out=out), N)


def test_framework_decode(measure: Callable[..., Any], array: Any) -> None:
    packed = tk.encode(array)
    measure(lambda: tk.decode(packed), N)


def test_framework_add_one(measure: Callable[..., Any], array: Any) -> None:
    """What the framework's own x + 1 takes."""
    measure(lambda: array + 1, N, peer=True)


def test_framework_encode_jitted(measure: Callable[..., Any]) -> None:
    jax = pytest.importorskip("jax")
    x = jax.numpy.asarray(VALUES)
    encode = jax.jit(lambda x, offset: tk.encode(x, seed=1, offset=offset).data)
    measure(lambda: encode(x, 7).block_until_ready(), N)
