"""Packed, Counts, Scales and CorruptMessage: what operations take and give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from . import adapters
from ._core import CorruptMessage
from .layout import COUNTS, Layout, _whole

__all__ = ["CorruptMessage", "Counts", "Packed", "Scales", "counts_for"]

CorruptMessage.__module__ = "terngrad_kernels"


class Scales(NamedTuple):
    """Scale and limit of each layer (or block), as `scales` measures and ``encode(scales=...)`` takes them.

    Scaler sharing, as in the paper: all-reduce `scale` with max over the workers, then
    ``encode(x, scales=own._replace(scale=shared))``. See contract section 2.

    Parameters
    ----------
    scale : array of float32, shape (groups,)
        Largest magnitude after clipping. 0: nothing will fire. +infinity: the layer is poisoned.
    limit : array of float32, shape (groups,)
        Magnitude that elements are clipped to; +infinity for none.
    """

    scale: Any
    limit: Any


class _Message:
    """The parts of a message."""

    layout: Layout
    data: Any

    @property
    def scales(self) -> Any:
        """The message's scale fields: float32, one per piece. A view where the framework has views.

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
        """The message from its first payload on: uint8. A view where the framework has views.

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

    Whoever owns a transport sends `data` and rebuilds ``Packed(layout, data)`` on the other side.

    Parameters
    ----------
    layout : Layout
        What the bytes mean.
    data : array of uint8, shape (layout.nbytes,)
        The message, laid out as contract section 5 says. Shape (W, layout.nbytes), as an all-gather leaves it,
        stands for W messages.

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
    """Exact sums of the trits of several workers that share their scales: what `sum_trits` makes.

    `decode` gives the sum of the workers' gradients, ``decode(counts, weight=1 / counts.workers)`` their mean.

    Parameters
    ----------
    layout : Layout
        What the bytes mean. Its ternary layers have the narrowest counts packing that holds the workers: ``counts4``
        up to 7, ``counts8`` up to 127, ``counts16`` beyond.
    workers : int
        Trits in a sum, 1 to 32767.
    data : array of uint8, shape (layout.nbytes,)
        The message, laid out as contract section 5 says. Shape (W, layout.nbytes) stands for W messages of `workers`
        workers each.

    Raises
    ------
    TypeError, ValueError
        If the layout's packing is not that of `workers`, or these are no layout and no int.
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
