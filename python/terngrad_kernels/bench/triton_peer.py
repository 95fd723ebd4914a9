"""What one would write in Triton: a kernel that measures, two reductions by torch, a kernel that draws and packs."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["encoder"]

triton = importlib.import_module("triton")
tl = importlib.import_module("triton.language")


@triton.jit  # type: ignore[untyped-decorator]
def _measure(x, tops, squares, n, BLOCK: tl.constexpr):  # type: ignore[name-defined,no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n, other=0.0)
    tl.store(tops + tl.program_id(0), tl.max(tl.abs(value)))
    tl.store(squares + tl.program_id(0), tl.sum(value * value))


@triton.jit  # type: ignore[untyped-decorator]
def _ternarize(x, scale, limit, out, n, seed, BLOCK: tl.constexpr):  # type: ignore[name-defined,no-untyped-def]
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    top = tl.load(scale)
    most = tl.load(limit)
    draw0, draw1, draw2, draw3 = tl.rand4x(seed, byte.to(tl.int32))
    codes = tl.zeros((BLOCK,), tl.int32)
    for k in tl.static_range(4):
        at = byte * 4 + k
        value = tl.load(x + at, mask=at < n, other=0.0)
        draw = draw0 if k == 0 else draw1 if k == 1 else draw2 if k == 2 else draw3
        fires = draw * top < tl.minimum(tl.abs(value), most)
        codes |= tl.where(fires, tl.where(value < 0, 3, 1), 0) << (2 * k)
    tl.store(out + byte, codes.to(tl.uint8), mask=byte * 4 < n)


def encoder(torch: Any, clip: float) -> Any:
    """Return a function of a float32 tensor and a seed that gives the payload, four neighbours a byte, and the scale.

    Parameters
    ----------
    torch : module
        PyTorch, whose tensors it takes.
    clip : float
        In root mean squares.

    Returns
    -------
    callable
        It allocates what it writes.
    """

    def encode(x: Any, seed: int) -> tuple[Any, Any]:
        n, block = x.numel(), 8192
        blocks, nbytes = triton.cdiv(n, block), triton.cdiv(n, 4)
        tops = x.new_empty(blocks)
        squares = x.new_empty(blocks)
        payload = x.new_empty(nbytes, dtype=torch.uint8)
        _measure[(blocks,)](x, tops, squares, n, BLOCK=block, num_warps=8)
        limit = clip * (squares.sum() / n).sqrt()
        scale = torch.minimum(tops.max(), limit)
        _ternarize[(triton.cdiv(nbytes, 1024),)](x, scale, limit, payload, n, seed, BLOCK=1024)
        return payload, scale

    return encode
