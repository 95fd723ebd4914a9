"""TernGrad as it is written today, to be measured beside ours: every rule of the paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def numpy_ternarize(x: Any, rng: np.random.Generator, clip: float = 2.5) -> tuple[Any, Any]:
    """NumPy, as fast as it gets: float32 throughout, nothing packed."""
    limit = clip * x.std()
    clipped = np.clip(x, -limit, limit)
    magnitude = np.abs(clipped)
    scale = magnitude.max()
    fires = rng.random(x.shape, dtype=np.float32) < magnitude / scale
    return (np.sign(clipped) * fires).astype(np.int8), scale


def numpy_encode(x: Any, rng: np.random.Generator, clip: float = 2.5) -> tuple[Any, Any]:
    """Plain NumPy, the whole job of `encode`: clip at `clip` sigma, scale, draw, take signs, pack four in a byte."""
    limit = clip * np.std(x)
    clipped = np.clip(x, -limit, limit)
    scale = np.max(np.abs(clipped))
    fires = rng.random(x.shape) < np.abs(clipped) / scale
    codes = (np.sign(clipped) * fires).astype(np.int8).view(np.uint8) & 3
    quarters = codes.reshape(4, -1)
    return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6, scale


def numba_encode(clip: float = 2.5) -> Callable[[Any], tuple[Any, Any]]:
    """Numba, one thread, what one would write: three loops and a draw of NumPy's generator, four codes in a byte."""
    import numba

    @numba.njit(parallel=False, fastmath=False)  # type: ignore[untyped-decorator]
    def encode(x: Any) -> tuple[Any, Any]:
        total = 0.0
        squares = 0.0
        for value in x:
            total += value
            squares += value * value
        mean = total / x.size
        limit = np.float32(clip * np.sqrt(squares / x.size - mean * mean))
        scale = np.float32(0)
        for value in x:
            scale = max(scale, min(abs(value), limit))
        payload = np.zeros((x.size + 3) // 4, np.uint8)
        for i in range(x.size):
            if np.random.random() * scale < min(abs(x[i]), limit):
                payload[i // 4] |= (3 if x[i] < 0 else 1) << 2 * (i % 4)
        return payload, scale

    return encode  # type: ignore[no-any-return]


def torch_ternarize(x: Any, generator: Any = None, clip: float = 2.5) -> tuple[Any, Any]:
    """PyTorch, eager: the same, nothing packed."""
    import torch

    limit = clip * x.std(unbiased=False)
    clipped = torch.clamp(x, -limit, limit)
    magnitude = clipped.abs()
    scale = magnitude.max()
    fires = torch.rand(x.shape, generator=generator) < magnitude / scale
    return (clipped.sign() * fires).to(torch.int8), scale


def grace_compress(x: Any, clip: float = 2.5) -> tuple[Any, Any]:
    """GRACE's algorithm on PyTorch: signs as int8, those below a uniform draw in [0, scale) set to zero by a mask."""
    import torch

    flat = x.flatten()
    deviation = (flat - flat.mean()).square().mean().sqrt()
    limit = (clip * deviation).item()
    clipped = flat.clamp(-limit, limit)
    magnitude = clipped.abs()
    scale = magnitude.max()
    signs = clipped.sign()
    draws = torch.empty_like(flat).uniform_(0, scale.item())
    signs[draws >= magnitude] = 0
    return signs.to(torch.int8), scale.reshape(1)
