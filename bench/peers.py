"""TernGrad as it is written today, to be measured beside ours: every rule of the paper."""

from __future__ import annotations

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


def torch_ternarize(x: Any, generator: Any, clip: float = 2.5) -> tuple[Any, Any]:
    """PyTorch, eager: the same, nothing packed."""
    import torch

    limit = clip * x.std(unbiased=False)
    clipped = torch.clamp(x, -limit, limit)
    magnitude = clipped.abs()
    scale = magnitude.max()
    fires = torch.rand(x.shape, generator=generator) < magnitude / scale
    return (clipped.sign() * fires).to(torch.int8), scale
