"""Our kernels under the names of other TernGrad implementations, and what any frontend needs of a backend.

`terngrad_kernels.frontends.terngrad` has the functions of the paper's own code (wenwei202/terngrad),
`terngrad_kernels.frontends.grace` the compressor of GRACE (sands-lab/grace). docs/backends.md says how to write
another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..layout import Layout
from ..packed import Packed, Scales
from ._draws import manual_seed

__all__ = ["Backend", "manual_seed"]


@runtime_checkable
class Backend(Protocol):
    """The functions that a TernGrad frontend needs, as the module `terngrad_kernels` has them (docs/backends.md).

    `x` is one array, a list of arrays of one framework, dtype and device, or a flat array with ``layout=``; results
    are in the framework and on the device of `x`. A backend may take more arguments than these.
    """

    def scales(self, x: Any, *, clip: float | None = 2.5, center: bool = False, layout: Layout | None = None) -> Scales:
        """Measure (scale, limit) of each layer: the largest magnitude after clipping, and what is clipped to."""

    def clip(self, x: Any, *, clip: float | None = 2.5, center: bool = False, scales: Scales | None = None) -> Any:
        """Return `x` with each layer clipped to +-limit: its own, or that of `scales`."""

    def ternarize(
        self,
        x: Any,
        *,
        clip: float | None = 2.5,
        seed: Any = 0,
        offset: Any = 0,
        layer: int = 0,
        scales: Scales | None = None,
    ) -> tuple[Any, Any]:
        """Return int8 arrays of -1, 0, +1 like `x`, with ``E[trit * scale]`` the clipped value, and the scales."""

    def encode(
        self,
        x: Any,
        *,
        clip: float | None = 2.5,
        seed: Any = 0,
        offset: Any = 0,
        layer: int = 0,
        scales: Scales | None = None,
        layout: Layout | None = None,
    ) -> Packed:
        """Return the message of what `ternarize` returns: one uint8 array, and its layout."""

    def decode(self, packed: Packed, *, out: Any = None, dtype: Any = None, weight: float = 1.0) -> Any:
        """Return weight * scale * trit in the form of the layout; any bytes of the right length decode."""

    def decode_sum(
        self, messages: Packed | Sequence[Packed], *, weights: Iterable[float] | None = None, dtype: Any = None
    ) -> Any:
        """Return the weighted sum of what several messages decode to, in the order of the messages."""


if TYPE_CHECKING:
    import terngrad_kernels

    _this_package: Backend = terngrad_kernels
