"""decode, accumulate and decode_sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import terngrad_kernels as tk


@pytest.mark.parametrize("packing", ["two_bit", "base3"])
def test_decode(measure: Callable[..., Any], x: Any, packing: str) -> None:
    packed = tk.encode(x, packing=packing)
    out = np.empty_like(x)
    measure(lambda: tk.decode(packed, out=out), x.size)


def test_decode_two_threads(measure: Callable[..., Any], x: Any) -> None:
    packed = tk.encode(x)
    out = np.empty_like(x)
    tk.set_num_threads(2)
    measure(lambda: tk.decode(packed, out=out), x.size, threads=2)


@pytest.mark.parametrize("packing", ["two_bit", "base3"])
def test_accumulate(measure: Callable[..., Any], x: Any, packing: str) -> None:
    packed = tk.encode(x, packing=packing)
    out = np.zeros_like(x)
    measure(lambda: tk.decode(packed, out=out, accumulate=True), x.size)


@pytest.mark.parametrize("packing", ["two_bit", "base3"])
@pytest.mark.parametrize("workers", [4, 8])
def test_decode_sum(measure: Callable[..., Any], x: Any, workers: int, packing: str) -> None:
    messages = [tk.encode(x, seed=seed, packing=packing) for seed in range(workers)]
    out = np.empty_like(x)
    measure(lambda: tk.decode_sum(messages, weights=[1 / workers] * workers, out=out), x.size)
