"""Layout: the immutable description of a message."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from . import _core

__all__ = ["COUNTS", "DTYPES", "PACKINGS", "Layout", "Piece", "dtype_name", "packing_code"]

#: Names of the floating-point types, in the order of their codes, and the bytes of an element.
DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
#: Names of the packings and their codes.
PACKINGS = {"two_bit": 0, "base3": 1, "float32": 2, "counts4": 3, "counts8": 4, "counts16": 5}
#: Packings of sums of trits, narrowest first, and the workers that each holds.
COUNTS = {"counts4": 7, "counts8": 127, "counts16": 32767}
_COUNTS_NAMES = frozenset(COUNTS)
_PACKING_NAMES = tuple(PACKINGS)
FORMS = ("array", "list", "flat")

# Layers of more elements would need Philox block numbers above 2^32 (docs/contract.md, section 3).
_MOST_ELEMENTS = 2**36


class Piece(NamedTuple):
    """A run of elements of one layer (or block) in one shard, with a scale field of its own."""

    layer: int
    first: int
    size: int
    packing: str
    group: int
    scale_at: int
    payload_at: int
    nbytes: int


def dtype_name(dtype: Any, argument: str = "dtype") -> str:
    """Return the name of a floating-point type given by name or as a framework's own."""
    name: Any = dtype
    if not isinstance(dtype, str):
        text = str(dtype)
        if text.startswith(("torch.", "paddle.")):
            name = text.partition(".")[2]
        elif type(dtype).__module__.startswith("tensorflow."):
            name = dtype.name
        elif dtype is not None:  # which NumPy takes for float64
            try:
                name = np.dtype(dtype).name
            except (TypeError, ValueError):
                name = text
    if name not in DTYPES:
        raise TypeError(f"{argument}: expected one of {', '.join(DTYPES)}, got {name!r}")
    return str(name)


def packing_code(packing: Any, argument: str = "packing") -> int:
    """Return the code of a packing given by name."""
    if not isinstance(packing, str):
        raise TypeError(f"{argument}: expected one of {', '.join(PACKINGS)}, got {type(packing).__name__}")
    if packing not in PACKINGS:
        raise ValueError(f"{argument}: expected one of {', '.join(PACKINGS)}, got {packing!r}")
    return PACKINGS[packing]


def _whole(value: Any, argument: str, least: int, below: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{argument}: expected an int, got {type(value).__name__}")
    number = operator.index(value)
    if not least <= number < below:
        raise ValueError(f"{argument}: expected {least} <= {argument} < {below}, got {number}")
    return number


def _shape(shape: Any, argument: str) -> tuple[int, ...]:
    if isinstance(shape, str) or not isinstance(shape, Iterable):
        raise TypeError(f"{argument}: expected a sequence of ints, got {type(shape).__name__}")
    sizes = []
    for size in shape:
        if isinstance(size, bool) or not hasattr(size, "__index__"):
            raise TypeError(f"{argument}: expected ints, got {type(size).__name__}")
        sizes.append(operator.index(size))
        if sizes[-1] < 0:
            raise ValueError(f"{argument}: expected sizes >= 0, got {sizes[-1]}")
    # Also where a zero makes the product small: no framework could hold such a shape.
    if math.prod(size for size in sizes if size) > _MOST_ELEMENTS:
        raise ValueError(f"{argument}: more than 2**36 elements")
    return tuple(sizes)


def _packings(packing: Any, layers: int) -> str | tuple[str, ...]:
    if isinstance(packing, str):
        packing_code(packing)
        return packing if layers else "two_bit"  # nothing is packed: one spelling of it
    if not isinstance(packing, Iterable):
        raise TypeError(f"packing: expected a name or one a layer, got {type(packing).__name__}")
    names = tuple(packing)
    for i, name in enumerate(names):
        packing_code(name, f"packing[{i}]")
    if len(names) != layers:
        raise ValueError(f"packing: expected one name or {layers} (one a layer), got {len(names)}")
    if not names:
        return "two_bit"
    return names[0] if len(set(names)) == 1 else names


def _geometry(
    sizes: tuple[int, ...], packing: str | tuple[str, ...], block: int | None, shards: int, index: int | None
) -> _core.Layout:
    names = (packing,) if isinstance(packing, str) else packing
    codes = [PACKINGS[name] for name in names]
    return _core.Layout(list(sizes), codes, block or 0, shards, -1 if index is None else index)


# By the groups of the largest that each keeps: what a stranger's messages leave behind stays below some 100 MB. What is
# not kept is uploaded for every call on a GPU, with a stream made and waited for.
_caches = {1024: lru_cache(maxsize=256)(_geometry), 65536: lru_cache(maxsize=4)(_geometry)}


@dataclass(frozen=True)
class Layout:
    """Immutable, hashable description of a message, compared by value.

    Cheap to build: the geometry behind it is cached. See contract section 5.

    Parameters
    ----------
    shapes : sequence of shapes
        One shape a layer, each a sequence of ints >= 0 with at most 2**36 elements.
    dtype : str or a framework's dtype, default "float32"
        Floating-point type of the bucket: float32, float16, bfloat16 or float64.
    packing : str or sequence of str, default "two_bit"
        ``two_bit`` (16x), ``base3`` (20x) or ``float32`` (carried as it is); one name, or one a layer. ``counts4``,
        ``counts8`` and ``counts16`` are those of a `Counts`.
    block : int, optional
        Elements that share a scale, a multiple of 2560. None: one scale a layer.
    shards : int, default 1
        Messages of equal length that the bucket is cut into.
    form : {"flat", "array", "list"}
        What `decode` gives back: one flat array, one array of the only shape, or a list of arrays.
    index : int, optional
        Set by `shard`: this is the layout of that shard alone.

    Examples
    --------
    >>> layout = Layout([(300, 100), (100,)], packing=["two_bit", "float32"])
    >>> layout.size, layout.nbytes, layout.groups
    (30100, 7920, 2)
    """

    shapes: tuple[tuple[int, ...], ...]
    dtype: str = "float32"
    packing: str | tuple[str, ...] = "two_bit"
    block: int | None = None
    shards: int = 1
    form: str = "flat"
    index: int | None = None
    if TYPE_CHECKING:
        _geometry: ClassVar[_core.Layout]
        _counts: ClassVar[frozenset[str]]

    def __init__(
        self,
        shapes: Iterable[Iterable[int]],
        dtype: Any = "float32",
        packing: str | Sequence[str] = "two_bit",
        block: int | None = None,
        shards: int = 1,
        form: str = "flat",
        index: int | None = None,
    ) -> None:
        if isinstance(shapes, str) or not isinstance(shapes, Iterable):
            raise TypeError(f"shapes: expected a sequence of shapes, got {type(shapes).__name__}")
        checked = tuple(_shape(shape, f"shapes[{i}]") for i, shape in enumerate(shapes))
        if form not in FORMS:
            raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {form!r}")
        if form == "array" and len(checked) != 1:
            raise ValueError(f"form: 'array' is for one layer, got {len(checked)}")
        if block is not None:
            block = _whole(block, "block", 1, 2**63)
        shards = _whole(shards, "shards", 1, 2**31)
        if index is not None:
            index = _whole(index, "index", 0, shards)
            form = "flat"
        packing = _packings(packing, len(checked))
        sizes = tuple(math.prod(shape) for shape in checked)
        groups = len(sizes) + (sum(sizes) // block if block else 0)
        geometry = next((cached for most, cached in _caches.items() if groups <= most), _geometry)
        fields = {
            "shapes": checked,
            "dtype": dtype_name(dtype),
            "packing": packing,
            "block": block,
            "shards": shards,
            "form": form,
            "index": index,
            # Not dataclass fields: they follow from the others.
            "_geometry": geometry(sizes, packing, block, shards, index),
            "_counts": _COUNTS_NAMES & ({packing} if isinstance(packing, str) else set(packing)),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def geometry(self) -> _core.Layout:
        """The compiled geometry, which the operations take."""
        return self._geometry

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the fields."""
        return Layout, (
            self.shapes,
            self.dtype,
            self.packing,
            self.block,
            self.shards,
            self.form,
            self.index,
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each layer; in the layout of a shard, those that lie in it."""
        return tuple(self._geometry.sizes)

    @property
    def size(self) -> int:
        """Elements of all layers."""
        return self._geometry.size

    @property
    def nbytes(self) -> int:
        """Length of the message."""
        return self._geometry.nbytes

    @property
    def groups(self) -> int:
        """Scales of the bucket: layers, or blocks, or the pieces of a shard."""
        return self._geometry.groups

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Where everything lies, in message order: see contract section 5."""
        return tuple(
            Piece(layer, first, size, _PACKING_NAMES[code], group, scale_at, payload_at, nbytes)
            for layer, first, size, code, group, scale_at, payload_at, nbytes in self._geometry.pieces
        )

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each piece's payload starts in the data, in bytes."""
        return tuple(piece.payload_at for piece in self.pieces)

    @property
    def ratio(self) -> float:
        """Bytes of the input over bytes of the message (infinite if the message is empty and the input is not)."""
        nbytes = self.size * DTYPES[self.dtype]
        if self.nbytes == 0:
            return math.inf if nbytes else 1.0
        return nbytes / self.nbytes

    def shard(self, index: int) -> Layout:
        """Return the layout of one shard: form flat, each piece still knows its layer and first element.

        Parameters
        ----------
        index : int
            0 <= index < shards.
        """
        if self.index is not None:
            raise ValueError(f"shard: this is the layout of shard {self.index} already")
        return replace(self, index=index)

    @property
    def counts(self) -> frozenset[str]:
        """The counts packings among those of the layers."""
        return self._counts

    def with_ternary(self, packing: str) -> Layout:
        """Return the layout of the same layers with another packing for all but those carried as float32.

        It cuts blocks and shards in the same places.

        Parameters
        ----------
        packing : str
            Any but ``float32``.
        """
        if packing_code(packing) == PACKINGS["float32"]:
            raise ValueError("packing: expected another one than 'float32', which moves the cuts of shards")
        return _with_ternary(self, packing)

    def same_cuts(self, other: Layout) -> bool:
        """Whether both cut the same layers into the same pieces: all but dtype, form and ternary packing agree."""
        return self.with_ternary("two_bit").same_message(other.with_ternary("two_bit"))

    def same_message(self, other: Layout) -> bool:
        """Whether both describe the same bytes: all but dtype and form agree."""
        return (
            self.shapes == other.shapes
            and self.packing == other.packing
            and self.block == other.block
            and self.shards == other.shards
            and self.index == other.index
        )


@lru_cache(maxsize=256)
def _with_ternary(layout: Layout, packing: str) -> Layout:
    if isinstance(layout.packing, str):
        return layout if layout.packing in ("float32", packing) else replace(layout, packing=packing)
    return replace(layout, packing=tuple("float32" if name == "float32" else packing for name in layout.packing))
