"""sum_trits and repack: what the second hop of a reduction costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import terngrad_kernels as tk

N = 25_600_000


@pytest.fixture(params=[4, 8], ids=lambda n: f"{n} messages")
def messages(request: pytest.FixtureRequest) -> Any:
    x = np.random.default_rng(0).standard_normal(N, dtype=np.float32)
    scales = tk.scales(x)
    return [tk.encode(x, seed=worker, scales=scales) for worker in range(request.param)]


def test_sum_trits(measure: Callable[..., Any], messages: Any) -> None:
    out = tk.sum_trits(messages).data
    measure(lambda: tk.sum_trits(messages, out=out), N)


def test_repack(measure: Callable[..., Any], messages: Any) -> None:
    out = tk.repack(messages, seed=1, offset=0).data
    measure(lambda: tk.repack(messages, seed=1, offset=0, out=out), N)


def test_repack_with_scales(measure: Callable[..., Any], messages: Any) -> None:
    out = tk.repack(messages, seed=1, offset=0).data
    scale = np.array([len(messages)], np.float32) * messages[0].scales
    scales = tk.Scales(scale, np.array([np.inf], np.float32))
    measure(lambda: tk.repack(messages, seed=1, offset=0, scales=scales, out=out), N)


def test_decode_sum(measure: Callable[..., Any], messages: Any) -> None:
    out = tk.decode_sum(messages)
    measure(lambda: tk.decode_sum(messages, out=out), N)
