"""What the benchmarks share: sizes, one gradient a size, one thread unless told otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

import terngrad_kernels as tk

#: A call's overhead, a layer in the L2 cache, a network the size of ResNet-50 in memory.
SIZES = (1024, 65_536, 25_600_000)


@cache
def gradient(n: int) -> Any:
    return np.random.default_rng(n).standard_normal(n, dtype=np.float32)


@pytest.fixture(params=SIZES, ids=lambda n: f"{n}")
def x(request: pytest.FixtureRequest) -> Any:
    return gradient(request.param)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = tk.get_num_threads()
    tk.set_num_threads(1)
    yield
    tk.set_num_threads(before)


@pytest.fixture
def measure(benchmark: Any) -> Callable[..., Any]:
    """Time a call and note how many elements it takes, so that the table can say ns an element."""

    def run(call: Callable[[], Any], elements: int, **notes: Any) -> Any:
        benchmark.extra_info.update(elements=elements, **notes)
        return benchmark(call)

    return run
