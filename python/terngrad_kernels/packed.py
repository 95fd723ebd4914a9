"""Packed, Scales and CorruptMessage: what operations take and give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from . import adapters
from ._core import CorruptMessage
from .layout import Layout

__all__ = ["CorruptMessage", "Packed", "Scales"]

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


@dataclass(frozen=True, eq=False)
class Packed:
    """One message, or several of one layout, as bytes in the caller's framework.

    Whoever owns a transport sends `data` and rebuilds ``Packed(layout, data)`` on the other side.

    Parameters
    ----------
    layout : Layout
        What the bytes mean.
    data : array of uint8, shape (layout.nbytes,)
        The message, laid out as contract section 5 says. Shape (W, layout.nbytes), as an all-gather leaves it,
        stands for W messages.
    """

    layout: Layout
    data: Any

    @property
    def scales(self) -> Any:
        """The message's scale fields: float32, one a piece. A view where the framework has views.

        Raises
        ------
        ValueError
            If the message has several shards, each with scale fields of its own.
        """
        self._require_one_part("scales")
        adapter = adapters.adapter_of(self.data, "packed.data")
        return adapter.as_float32(self.data[..., : 4 * len(self.layout.pieces)])

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
        return self.data[..., offsets[0] if offsets else 0 :]

    def _require_one_part(self, name: str) -> None:
        if self.layout.shards > 1 and self.layout.index is None:
            raise ValueError(
                f"{name}: the message has {self.layout.shards} shards, each with its own; see Layout.shard"
            )
