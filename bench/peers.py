"""TernGrad as it is written today, to be measured beside ours: every rule of the paper, nothing packed."""

from __future__ import annotations

from typing import Any

import numpy as np


def numpy_ternarize(x: Any, rng: np.random.Generator, clip: float = 2.5) -> tuple[Any, Any]:
    """Plain NumPy: clip at `clip` sigma, scale by the maximum, draw, take signs."""
    limit = clip * x.std()
    clipped = np.clip(x, -limit, limit)
    magnitude = np.abs(clipped)
    scale = magnitude.max()
    fires = rng.random(x.shape, dtype=np.float32) < magnitude / scale
    return (np.sign(clipped) * fires).astype(np.int8), scale


def torch_ternarize(x: Any, generator: Any, clip: float = 2.5) -> tuple[Any, Any]:
    """PyTorch, eager: the same."""
    import torch

    limit = clip * x.std(unbiased=False)
    clipped = torch.clamp(x, -limit, limit)
    magnitude = clipped.abs()
    scale = magnitude.max()
    fires = torch.rand(x.shape, generator=generator) < magnitude / scale
    return (clipped.sign() * fires).to(torch.int8), scale
