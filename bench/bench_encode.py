"""encode, ternarize and scales, and the peers that do the work of ternarize."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import peers
import pytest

import terngrad_kernels as tk


@pytest.mark.parametrize("packing", ["two_bit", "base3"])
def test_encode(measure: Callable[..., Any], x: Any, packing: str) -> None:
    measure(lambda: tk.encode(x, seed=1, packing=packing), x.size)


def test_encode_out(measure: Callable[..., Any], x: Any) -> None:
    out = np.empty(tk.encode(x).layout.nbytes, np.uint8)
    measure(lambda: tk.encode(x, seed=1, out=out), x.size)


def test_encode_with_scales(measure: Callable[..., Any], x: Any) -> None:
    scales = tk.scales(x)
    measure(lambda: tk.encode(x, seed=1, scales=scales), x.size)


def test_encode_torch(measure: Callable[..., Any], x: Any) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(x)
    measure(lambda: tk.encode(tensor, seed=1), x.size)


def test_encode_two_threads(measure: Callable[..., Any], x: Any) -> None:
    tk.set_num_threads(2)
    measure(lambda: tk.encode(x, seed=1), x.size, threads=2)


def test_ternarize(measure: Callable[..., Any], x: Any) -> None:
    measure(lambda: tk.ternarize(x, seed=1), x.size)


def test_scales(measure: Callable[..., Any], x: Any) -> None:
    measure(lambda: tk.scales(x), x.size)


def test_peer_numpy_packed(measure: Callable[..., Any], x: Any) -> None:
    rng = np.random.default_rng(0)
    measure(lambda: peers.numpy_encode(x, rng), x.size, peer=True)


def test_peer_numpy(measure: Callable[..., Any], x: Any) -> None:
    rng = np.random.default_rng(0)
    measure(lambda: peers.numpy_ternarize(x, rng), x.size, peer=True)


def test_peer_torch_eager(measure: Callable[..., Any], x: Any) -> None:
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tensor = torch.from_numpy(x)
    generator = torch.Generator().manual_seed(0)
    measure(lambda: peers.torch_ternarize(tensor, generator), x.size, peer=True)
    torch.set_num_threads(threads)


def test_floor_numpy_add(measure: Callable[..., Any], x: Any) -> None:
    """What NumPy's own x + 1 takes: the floor of a call, and of one read and one write."""
    measure(lambda: x + 1, x.size, peer=True)
