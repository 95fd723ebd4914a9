"""Seeds and offsets for callers that pass none: the frontends' originals draw from a generator of their framework."""

from __future__ import annotations

import operator
import os
import threading
import zlib
from collections import Counter
from typing import Any

__all__ = ["Draws", "manual_seed", "process_draws"]

# One for all: it is held for the length of an increment. A forked child gets a new one, as a thread that it does not
# have may have held this one.
_lock = threading.Lock()


class Draws:
    """A seed, and for each name a count of its draws, from which (seed, offset, layer) are made.

    The layer word is a 31-bit hash of the name, and the offset counts the draws of that name alone. So what a layer
    draws depends on the seed, its name and its step, and not on the order of the layers. Names of equal hash draw equal
    bits.

    Parameters
    ----------
    seed : int, optional
        In [-2**63, 2**64). None: 64 bits from the operating system.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._start(seed)

    def _start(self, seed: int | None) -> None:
        self._seed = int.from_bytes(os.urandom(8), "little") if seed is None else checked_seed(seed)
        self._counts: Counter[str] = Counter()

    def next(self, name: str = "") -> tuple[int, int, int]:
        """Return the (seed, offset, layer) of the next draw of that name; safe to call from several threads."""
        with _lock:
            count = self._counts[name]
            self._counts[name] = count + 1
            return self._seed, count, zlib.crc32(name.encode()) & 0x7FFFFFFF

    def restart(self, seed: int | None) -> None:
        """Start over, as a new object would."""
        with _lock:
            self._start(seed)


def checked_seed(seed: Any, argument: str = "seed") -> int:
    """Return an int in [-2**63, 2**64), or raise the error that names `argument`."""
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"{argument}: expected an int, got {type(seed).__name__}")
    number = operator.index(seed)
    if not -(2**63) <= number < 2**64:
        raise ValueError(f"{argument}: expected -2**63 <= {argument} < 2**64, got {number}")
    return number


_process = Draws()


def process_draws() -> Draws:
    """Return what all calls without a seed of their own draw from in this process."""
    return _process


def manual_seed(seed: int | None) -> None:
    """Set the seed of all draws that are given none, and start counting from 0: what follows is then reproducible.

    Without it each process, and each child that it forks, has a seed from the operating system. Workers that set it
    must set different seeds, base + rank for example: equal seeds draw equal bits, and averaging then gains nothing.

    Parameters
    ----------
    seed : int or None
        In [-2**63, 2**64). None: a new one from the operating system.

    Raises
    ------
    TypeError, ValueError
        If `seed` is no int, or out of range.
    """
    _process.restart(seed)


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _process.restart(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
