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

__all__ = ["COUNTS", "DTYPES", "ENCODED", "PACKINGS", "TERNARY", "Layout", "Piece", "dtype_name", "packing_code"]

#: Names of the floating-point types, in the order of their codes, and the bytes of an element.
DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
#: Names of the packings and their codes.
PACKINGS = {"two_bit": 0, "base3": 1, "float32": 2, "counts4": 3, "counts8": 4, "counts16": 5}
#: Packings of trits, and those of what `encode` makes.
TERNARY = ("two_bit", "base3")
ENCODED = (*TERNARY, "float32")
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


def packing_code(packing: Any, argument: str = "packing", offered: Iterable[str] = PACKINGS) -> int:
    """Return the code of a packing given by name, one of those that are offered."""
    if not isinstance(packing, str):
        raise TypeError(f"{argument}: expected one of {', '.join(offered)}, got {type(packing).__name__}")
    if packing not in offered:
        raise ValueError(f"{argument}: expected one of {', '.join(offered)}, got {packing!r}")
    return PACKINGS[packing]


def _whole(value: Any, argument: str, least: int, below: int | None = None) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{argument}: expected an int, got {type(value).__name__}")
    number = operator.index(value)
    if below is None and number < least:
        raise ValueError(f"{argument}: expected an int >= {least}, got {number}")
    if below is not None and not least <= number < below:
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
        raise ValueError(f"{argument}: expected at most 2**36 elements, got {tuple(sizes)}")
    return tuple(sizes)


def _packings(packing: Any, layers: int, offered: Iterable[str] = PACKINGS) -> str | tuple[str, ...]:
    if isinstance(packing, str):
        packing_code(packing, offered=offered)
        return packing if layers else "two_bit"  # nothing is packed: one spelling of it
    if not isinstance(packing, Iterable):
        raise TypeError(f"packing: expected one name, or one per layer, got {type(packing).__name__}")
    names = tuple(packing)
    for i, name in enumerate(names):
        packing_code(name, f"packing[{i}]", offered)
    if len(names) != layers:
        raise ValueError(f"packing: expected one name, or {layers} (one per layer), got {len(names)}")
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

    Layouts are cheap to make, since their geometry is cached. See contract section 5.

    Parameters
    ----------
    shapes : sequence of shapes
        One shape per layer, each a sequence of ints >= 0 with at most 2**36 elements.
    dtype : str or a framework's dtype, default "float32"
        Floating-point type of the bucket: float32, float16, bfloat16 or float64.
    packing : str or sequence of str, default "two_bit"
        ``two_bit`` (16x smaller), ``base3`` (20x) or ``float32`` (carried unchanged); one name, or one per layer. The
        layout of a `Counts` has ``counts4``, ``counts8`` or ``counts16``.
    block : int, optional
        Number of elements that share a scale, a multiple of 2560. None: one scale per layer.
    shards : int, default 1
        Number of messages of equal length that the bucket is cut into.
    form : {"flat", "array", "list"}
        What `decode` returns: one flat array, one array of the only shape, or a list of arrays.
    index : int, optional
        Number of the shard that this is the layout of, as `shard` sets it. None: the whole bucket.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, what was expected and what was got.

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
        geometry: ClassVar[_core.Layout]  #: The compiled geometry, which the operations take.
        counts: ClassVar[frozenset[str]]  #: The counts packings among those of the layers.

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
            raise ValueError(f"form: expected 'list' or 'flat' for {len(checked)} layers, got 'array'")
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
            "geometry": geometry(sizes, packing, block, shards, index),
            "counts": _COUNTS_NAMES & ({packing} if isinstance(packing, str) else set(packing)),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

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
        """Number of elements of each layer; in the layout of a shard, of those in the shard."""
        return tuple(self.geometry.sizes)

    @property
    def size(self) -> int:
        """Number of elements of all layers."""
        return self.geometry.size

    @property
    def nbytes(self) -> int:
        """Length of the message, in bytes."""
        return self.geometry.nbytes

    @property
    def groups(self) -> int:
        """Number of scales of the bucket: one per layer, block, or piece of a shard."""
        return self.geometry.groups

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """All pieces, in message order, with their places in the message: see contract section 5."""
        return tuple(
            Piece(layer, first, size, _PACKING_NAMES[code], group, scale_at, payload_at, nbytes)
            for layer, first, size, code, group, scale_at, payload_at, nbytes in self.geometry.pieces
        )

    @property
    def offsets(self) -> tuple[int, ...]:
        """Place of each piece's payload in the data, in bytes."""
        return tuple(piece.payload_at for piece in self.pieces)

    @property
    def ratio(self) -> float:
        """Bytes of the input divided by bytes of the message (infinite if only the message is empty)."""
        nbytes = self.size * DTYPES[self.dtype]
        if self.nbytes == 0:
            return math.inf if nbytes else 1.0
        return nbytes / self.nbytes

    def shard(self, index: int) -> Layout:
        """Return the layout of one shard. Its form is flat; each piece still knows its layer and first element.

        Parameters
        ----------
        index : int
            Number of the shard, 0 <= index < shards.

        Returns
        -------
        Layout
            The layout of that shard.

        Raises
        ------
        TypeError, ValueError
            If `index` is not such a number, or this is the layout of a shard already.
        """
        if self.index is not None:
            raise ValueError(f"shard: expected the layout of a whole message, got that of shard {self.index}")
        return replace(self, index=index)

    def with_ternary(self, packing: str) -> Layout:
        """Return the layout of the same layers with another packing, except for layers carried as float32.

        Blocks and shards are cut in the same places.

        Parameters
        ----------
        packing : str
            Name of any packing except ``float32``.

        Returns
        -------
        Layout
            The new layout.

        Raises
        ------
        TypeError, ValueError
            If `packing` is not such a name.
        """
        if packing_code(packing) == PACKINGS["float32"]:
            raise ValueError(
                "packing: expected one that packs trits or counts, got 'float32', which moves the cuts of shards"
            )
        return _with_ternary(self, packing)

    def same_cuts(self, other: Layout) -> bool:
        """Return whether both cut the same layers into the same pieces: all but dtype, form and ternary packing agree.

        Parameters
        ----------
        other : Layout
            The layout to compare with.

        Returns
        -------
        bool
            True if they do.
        """
        return self.with_ternary("two_bit").same_message(other.with_ternary("two_bit"))

    def same_message(self, other: Layout) -> bool:
        """Return whether both describe the same bytes: all but dtype and form agree.

        Parameters
        ----------
        other : Layout
            The layout to compare with.

        Returns
        -------
        bool
            True if they do.
        """
        return (
            _same_shapes(self.shapes, other.shapes)
            and self.packing == other.packing
            and self.block == other.block
            and self.shards == other.shards
            and self.index == other.index
        )


def _same_shapes(shapes: tuple[tuple[int, ...], ...], others: tuple[tuple[int, ...], ...]) -> bool:
    """Return ``shapes == others``, in a way that TorchDynamo can follow: 2.11 cannot compare tuples of tuples."""
    return len(shapes) == len(others) and all(map(operator.eq, shapes, others))


@lru_cache(maxsize=256)
def _with_ternary(layout: Layout, packing: str) -> Layout:
    if isinstance(layout.packing, str):
        return layout if layout.packing in ("float32", packing) else replace(layout, packing=packing)
    return replace(layout, packing=tuple("float32" if name == "float32" else packing for name in layout.packing))


def _names(layout: Layout) -> tuple[str, ...]:
    """Return the packing of each layer."""
    return (layout.packing,) * len(layout.shapes) if isinstance(layout.packing, str) else layout.packing


def _require_alike(layout: Layout, other: Layout, argument: str, owner: str, *, cuts: bool = False) -> None:
    """Raise a ValueError that names the field in which a layout differs from `other`, that of `owner`.

    Dtype and form may differ; with `cuts`, the packing of trits too.
    """
    if Layout.same_message(layout, other):  # not a method of `layout`, which TorchDynamo cannot follow
        return
    for field in ("shapes", "block", "shards", "index"):
        got, expected = getattr(layout, field), getattr(other, field)
        if _same_shapes(got, expected) if field == "shapes" else got == expected:
            continue
        if field == "shapes":  # name one layer: there may be thousands
            if len(got) != len(expected):
                raise ValueError(f"{argument}.shapes: expected {len(expected)} layers as {owner} has, got {len(got)}")
            i = [a == b for a, b in zip(got, expected, strict=True)].index(False)
            field, got, expected = f"shapes[{i}]", got[i], expected[i]
        raise ValueError(f"{argument}.{field}: expected {expected!r} as {owner} has, got {got!r}")
    every = isinstance(layout.packing, str) and isinstance(other.packing, str)
    for i, (name, expected) in enumerate(zip(_names(layout), _names(other), strict=True)):
        if name != expected and (not cuts or "float32" in (name, expected)):
            field = "packing" if every else f"packing[{i}]"
            raise ValueError(f"{argument}.{field}: expected {expected!r} as {owner} has, got {name!r}")
