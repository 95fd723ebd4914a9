"""encode, ternarize and scales, and the peers that do the work of ternarize."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import models
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


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("packing", ["two_bit", "base3"])
def test_encode_resnet50(measure: Callable[..., Any], packing: str, threads: int) -> None:
    """161 layers in one call."""
    shapes = models.resnet50()
    layers = [np.random.default_rng(i).standard_normal(shape, np.float32) for i, shape in enumerate(shapes)]
    out = np.empty(tk.encode(layers, packing=packing).layout.nbytes, np.uint8)
    tk.set_num_threads(threads)
    size = sum(math.prod(shape) for shape in shapes)
    measure(lambda: tk.encode(layers, seed=1, packing=packing, out=out), size, threads=threads)


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


def test_peer_numba(measure: Callable[..., Any], x: Any) -> None:
    pytest.importorskip("numba")
    encode = peers.numba_encode()
    measure(lambda: encode(x), x.size, peer=True)


@pytest.fixture
def torch() -> Iterator[Any]:
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


def test_peer_torch_eager(measure: Callable[..., Any], x: Any, torch: Any) -> None:
    tensor = torch.from_numpy(x)
    generator = torch.Generator().manual_seed(0)
    measure(lambda: peers.torch_ternarize(tensor, generator), x.size, peer=True)


def test_peer_torch_compile(measure: Callable[..., Any], x: Any, torch: Any) -> None:
    tensor = torch.from_numpy(x)
    torch.compiler.reset()  # another size would be compiled as a variable one
    compiled = torch.compile(peers.torch_ternarize, dynamic=False)
    measure(lambda: compiled(tensor), x.size, peer=True)


def test_peer_grace(measure: Callable[..., Any], x: Any, torch: Any) -> None:
    tensor = torch.from_numpy(x)
    measure(lambda: peers.grace_compress(tensor), x.size, peer=True)


def test_floor_numpy_add(measure: Callable[..., Any], x: Any) -> None:
    """What NumPy's own x + 1 takes: the floor of a call, and of one read and one write."""
    measure(lambda: x + 1, x.size, peer=True)
