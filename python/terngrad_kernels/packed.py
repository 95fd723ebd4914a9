"""Packed, Counts, Scales and CorruptMessage: what operations take and return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from . import adapters
from ._core import CorruptMessage
from .layout import COUNTS, Layout, _whole

__all__ = ["CorruptMessage", "Counts", "Packed", "Scales", "counts_for"]

CorruptMessage.__module__ = "terngrad_kernels"


class Scales(NamedTuple):
    """Scale and limit of each layer (or block), as `scales` measures them and ``encode(scales=...)`` takes them.

    Scaler sharing, as in the paper: all-reduce `scale` with max over the workers, then
    ``encode(x, scales=own._replace(scale=shared))``. See contract section 2.

    Parameters
    ----------
    scale : array of float32, shape (groups,)
        Largest magnitude after clipping. 0: all codes will be 0. +infinity: the layer is poisoned.
    limit : array of float32, shape (groups,)
        Magnitude that elements are clipped to; +infinity: they are not clipped.
    """

    scale: Any
    limit: Any


class _Message:
    """Properties of all messages."""

    layout: Layout
    data: Any

    @property
    def scales(self) -> Any:
        """The scale fields of the message: float32, one per piece. A view where the framework has views.

        Raises
        ------
        ValueError
            If the message has several shards, each with scale fields of its own.
        """
        self._require_one_part("scales")
        adapter = adapters.adapter_of(self.data, "packed.data")
        data = adapter.dense(self.data, "packed.data")
        return adapter.as_float32(data[..., : 4 * len(self.layout.pieces)])

    @property
    def payload(self) -> Any:
        """The message from its first payload on, as uint8. A view where the framework has views.

        Raises
        ------
        ValueError
            If the message has several shards, each with payloads of its own.
        """
        self._require_one_part("payload")
        offsets = self.layout.offsets
        data = adapters.adapter_of(self.data, "packed.data").dense(self.data, "packed.data")
        return data[..., offsets[0] if offsets else 0 :]

    def _require_one_part(self, name: str) -> None:
        if self.layout.shards > 1 and self.layout.index is None:
            raise ValueError(
                f"{name}: expected a message of one shard, got {self.layout.shards} shards; see Layout.shard"
            )


@dataclass(frozen=True, eq=False)
class Packed(_Message):
    """One message, or several of one layout, as bytes in the caller's framework.

    The sender transfers `data`, and the receiver makes ``Packed(layout, data)`` of it.

    Parameters
    ----------
    layout : Layout
        Layout of the bytes.
    data : array of uint8, shape (layout.nbytes,)
        The message, as contract section 5 defines it. An array of shape (W, layout.nbytes), as an all-gather returns
        it, holds W messages.

    Raises
    ------
    TypeError
        If `layout` is not a Layout.
    """

    layout: Layout
    data: Any

    def __init__(self, layout: Layout, data: Any) -> None:
        _require_layout(layout)
        # Half the time of the __init__ that a frozen dataclass has.
        fields = self.__dict__
        fields["layout"] = layout
        fields["data"] = data


def _require_layout(layout: Any) -> None:
    if not isinstance(layout, Layout):
        raise TypeError(f"layout: expected a Layout, got {type(layout).__name__}")


def counts_for(workers: int) -> str:
    """Return the narrowest counts packing that holds the trits of so many workers."""
    return next(name for name, most in COUNTS.items() if workers <= most)


@dataclass(frozen=True, eq=False)
class Counts(_Message):
    """Exact sums of the trits of several workers that share their scales, as `sum_trits` makes them.

    `decode` gives the sum of the workers' gradients, ``decode(counts, weight=1 / counts.workers)`` their mean.

    Parameters
    ----------
    layout : Layout
        Layout of the bytes. Its ternary layers have the narrowest counts packing that holds the workers: ``counts4``
        up to 7, ``counts8`` up to 127, ``counts16`` beyond.
    workers : int
        Number of trits in each sum, 1 to 32767.
    data : array of uint8, shape (layout.nbytes,)
        The message, as contract section 5 defines it. An array of shape (W, layout.nbytes) holds W messages, each of
        `workers` workers.

    Raises
    ------
    TypeError, ValueError
        If `layout` is not a Layout, `workers` not an int in that range, or the packing not the one for `workers`.
    """

    layout: Layout
    workers: int
    data: Any

    def __post_init__(self) -> None:
        """Check that workers and packing agree."""
        _require_layout(self.layout)
        workers = _whole(self.workers, "workers", 1, COUNTS["counts16"] + 1)
        object.__setattr__(self, "workers", workers)
        expected = counts_for(workers)
        names = (self.layout.packing,) if isinstance(self.layout.packing, str) else self.layout.packing
        for name in names if self.layout.shapes else ():
            if name not in ("float32", expected):
                raise ValueError(f"layout.packing: expected {expected} for {workers} workers, got {name}")


#: What JAX and PyTorch see as pytrees: `data` is the leaf, the fields named here are static.
PYTREES: dict[type, tuple[str, ...]] = {Packed: ("layout",), Counts: ("layout", "workers")}
