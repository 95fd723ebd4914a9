"""The self-describing message: what `to_bytes` writes and `from_bytes` reads.

``docs/format.md`` describes every field. The reader takes the bytes for hostile: it reads each field once,
compares each length with the bytes at hand before it acts on it, and accepts one spelling of a message only,
so that ``to_bytes(from_bytes(b)) == b`` for everything it accepts.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np

from . import _core, adapters, operations
from .info import WIRE_FORMAT_VERSION
from .layout import COUNTS, PACKINGS, Layout
from .packed import CorruptMessage, Counts, Packed, counts_for

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["from_bytes", "to_bytes"]

# A byte above 127, then both kinds of line end with a DOS end-of-file between them: a copy that clears bit 7
# or translates line ends cannot leave these eight bytes as they are (the trick is PNG's).
_MAGIC: Final = b"\x89TGK\r\n\x1a\n"

# What the first bytes look like after the usual accidents, to name the accident and not only the damage.
_ACCIDENTS: Final = {
    b"\tTGK": "bit 7 of each byte was cleared on the way",
    b"\x89TGK\n": "a text-mode copy turned CR LF into LF",
    b"\x89TGK\r\r\n": "a text-mode copy turned LF into CR LF",
    b"\xc2\x89TGK": "the bytes were taken for Latin-1 text and stored as UTF-8",
    b"\xef\xbf\xbdTGK": "the bytes were taken for UTF-8 text",
}

# magic, crc, version, kind, dtype, length, block, layers, shards, workers, form, reserved
_HEADER: Final = struct.Struct("<8sIHBBQQIIIB3s")
_CRC_FROM: Final = 12  # the checksum covers everything behind its own field
_ENTRY: Final = struct.Struct("<BB6s")  # packing, number of dimensions, reserved

_KIND_PACKED: Final = 1
_KIND_COUNTS: Final = 2

# Codes start at 1, so that a field of zero bytes is never a valid one.
_DTYPES: Final = {"float32": 1, "float16": 2, "bfloat16": 3, "float64": 4}
_FORMS: Final = {"array": 1, "list": 2, "flat": 3}
_PACKINGS: Final = {"two_bit": 1, "base3": 2, "float32": 3, "counts4": 4, "counts8": 5, "counts16": 6}
_DTYPE_NAMES: Final = {code: name for name, code in _DTYPES.items()}
_FORM_NAMES: Final = {code: name for name, code in _FORMS.items()}
_PACKING_NAMES: Final = {code: name for name, code in _PACKINGS.items()}

_MAX_DIMENSIONS: Final = 64  # of an array in NumPy 2 and in PyTorch
_MAX_ELEMENTS: Final = 1 << 36  # of a layer: its Philox blocks are numbered with 32 bits, 16 elements each
_MAX_SHARDS: Final = (1 << 31) - 1
_UNIT: Final = 2560  # blocks are whole multiples of it
_MAX_BLOCK: Final = (1 << 63) - 1


def to_bytes(packed: Packed | Counts) -> bytes:
    """Write a message with all that is needed to read it, for storage or for programs that do not know its layout.

    Parameters
    ----------
    packed : Packed or Counts
        One message in any framework, on any device. It is validated first, so that `from_bytes` reads whatever
        `to_bytes` writes.

    Returns
    -------
    bytes
        Header, table of layers and message: a multiple of 16 bytes, with a CRC-32 in the header.

    Raises
    ------
    TypeError
        If `packed` is neither a Packed nor a Counts.
    ValueError
        If the layout is that of a single shard, the data is not exactly one message, or a layer has more than 64
        dimensions.
    CorruptMessage
        If codes, counts, unused bits, gaps or scales are not canonical.

    See Also
    --------
    from_bytes : the inverse.

    Examples
    --------
    >>> import numpy as np
    >>> import terngrad_kernels as tk
    >>> blob = tk.to_bytes(tk.encode(np.ones(1000, np.float32), seed=1))
    >>> len(blob), float(tk.decode(tk.from_bytes(blob))[0])
    (336, 1.0)
    """
    if not isinstance(packed, (Packed, Counts)):
        raise TypeError(f"packed: expected a Packed or a Counts, got {type(packed).__name__}")
    layout = packed.layout
    if layout.index is not None:
        raise ValueError(
            f"packed.layout: expected that of a whole message, got shard {layout.index} of {layout.shards}, "
            "which does not say which elements it holds"
        )
    adapter = adapters.adapter_of(packed.data, "packed.data")
    data = adapter.dense(packed.data, "packed.data")
    shape = tuple(data.shape)
    if shape != (layout.nbytes,):
        raise ValueError(
            f"packed.data: expected one message, shape ({layout.nbytes},), got shape {shape}; "
            "write the messages of a gathered array one by one"
        )
    table = _table(layout)
    operations.validate(packed)
    raw = np.ascontiguousarray(adapter.to_numpy(data)).data

    length = _HEADER.size + len(table) + layout.nbytes
    fields = (
        WIRE_FORMAT_VERSION,
        _KIND_COUNTS if isinstance(packed, Counts) else _KIND_PACKED,
        _DTYPES[layout.dtype],
        length,
        layout.block or 0,
        len(layout.shapes),
        layout.shards,
        packed.workers if isinstance(packed, Counts) else 1,
        _FORMS[layout.form],
        bytes(3),
    )
    crc = zlib.crc32(_HEADER.pack(_MAGIC, 0, *fields)[_CRC_FROM:])
    crc = zlib.crc32(raw, zlib.crc32(table, crc))
    return b"".join((_HEADER.pack(_MAGIC, crc, *fields), table, raw))


def from_bytes(buffer: Buffer, *, like: Any = None) -> Packed | Counts:
    """Read one message that `to_bytes` wrote, without trusting any of its bytes.

    Time and memory are linear in the size of `buffer`, whatever its fields claim. The message is copied and then
    validated, so that later writes to `buffer` do not change the result.

    Parameters
    ----------
    buffer : buffer
        Exactly one message in C-contiguous memory: bytes, bytearray, memoryview, mmap or a NumPy array.
    like : array, optional
        Array whose framework and device the result will have; by default NumPy.

    Returns
    -------
    Packed or Counts
        The message, with its layout.

    Raises
    ------
    CorruptMessage
        For any damage: wrong magic, version, code, length or checksum, truncation, trailing bytes, non-zero
        reserved bits, or codes, counts or scales that are not canonical. The message names the byte offset.
    TypeError
        If `buffer` does not support the buffer protocol, or `like` is not an array of a known framework.
    BufferError
        If `buffer` is not C-contiguous.

    See Also
    --------
    to_bytes : the inverse.
    """
    adapter = None if like is None else adapters.adapter_of(like, "like")
    try:
        outer = memoryview(buffer)
    except (TypeError, ValueError) as error:
        raise TypeError(f"buffer: expected bytes or another buffer, got {type(buffer).__name__}") from error
    # Released before returning or raising, so that a traceback kept by the caller does not lock a bytearray.
    with outer:
        if not outer.c_contiguous:
            raise BufferError(f"buffer: expected C-contiguous bytes, got strides {outer.strides}")
        with outer.cast("B") if outer.nbytes else memoryview(b"") as view:
            layout, workers, start = _read_layout(view)
            data = np.empty(layout.nbytes, np.uint8)
            data.data[:] = view[start:]
    packed = Packed(layout, data) if workers is None else Counts(layout, workers, data)
    try:
        operations.validate(packed)
    except CorruptMessage as error:
        raise CorruptMessage(f"{error}; the message starts at byte {start}") from None
    return packed if adapter is None else replace(packed, data=adapter.from_numpy(data, like))


def _table(layout: Layout) -> bytes:
    """Return one entry per layer, and zeros up to a multiple of 16 bytes."""
    packings = (layout.packing,) * len(layout.shapes) if isinstance(layout.packing, str) else layout.packing
    parts = []
    for number, (shape, packing) in enumerate(zip(layout.shapes, packings, strict=True)):
        if len(shape) > _MAX_DIMENSIONS:
            raise ValueError(
                f"packed.layout.shapes[{number}]: expected at most {_MAX_DIMENSIONS} dimensions, got {len(shape)}"
            )
        parts.append(_ENTRY.pack(_PACKINGS[packing], len(shape), bytes(6)))
        parts.append(struct.pack(f"<{len(shape)}Q", *shape))
    table = b"".join(parts)
    return table + bytes(-len(table) % 16)


def _fail(offset: int, text: str) -> NoReturn:
    raise CorruptMessage(f"byte {offset}: {text}")


def _read_layout(view: memoryview) -> tuple[Layout, int | None, int]:
    """Return the layout in header and table, the workers of counts, and the place of the message. Makes no
    `Layout` until its cost is known to be linear in `view.nbytes`."""
    size = view.nbytes
    magic = bytes(view[: len(_MAGIC)])
    if magic != _MAGIC[: len(magic)]:
        accident = next((text for start, text in _ACCIDENTS.items() if magic.startswith(start)), None)
        _fail(0, f"{magic!r} is not the start of a message" + (f": {accident}" if accident else ""))
    if size < _HEADER.size:
        _fail(size, f"the buffer ends here, inside the header of {_HEADER.size} bytes")
    _, crc, version, kind, dtype, length, block, layers, shards, workers, form, reserved = _HEADER.unpack(
        view[: _HEADER.size]
    )
    if version != WIRE_FORMAT_VERSION:
        _fail(12, f"format version {version}, this reader knows version {WIRE_FORMAT_VERSION}")
    if size < length:
        _fail(size, f"the buffer ends here, {length - size} bytes short of the {length} that byte 16 states")
    if size > length:
        _fail(length, f"{size - length} bytes beyond the {length} that byte 16 states")
    actual = zlib.crc32(view[_CRC_FROM:])
    if crc != actual:
        _fail(8, f"checksum {crc:#010x} stated, {actual:#010x} found: the message is damaged")

    # From here on only a writer's fault or a forgery is left: a checksum is no signature.
    if kind not in (_KIND_PACKED, _KIND_COUNTS):
        _fail(14, f"unknown kind {kind}")
    if dtype not in _DTYPE_NAMES:
        _fail(15, f"unknown dtype code {dtype}")
    if block % _UNIT or block > _MAX_BLOCK:
        _fail(24, f"a block of {block} elements is not a multiple of {_UNIT} below 2^63")
    if not 1 <= shards <= _MAX_SHARDS:
        _fail(36, f"{shards} shards, expected 1 to {_MAX_SHARDS}")
    most = COUNTS["counts16"] if kind == _KIND_COUNTS else 1
    if not 1 <= workers <= most:
        _fail(40, f"{workers} workers, expected 1{f' to {most}' if most > 1 else ''} in a message of kind {kind}")
    allowed = ("float32", counts_for(workers)) if kind == _KIND_COUNTS else ("two_bit", "base3", "float32")
    if form not in _FORM_NAMES:
        _fail(44, f"unknown form code {form}")
    if form == _FORMS["array"] and layers != 1:
        _fail(32, f"{layers} layers, expected 1 where the form is array")
    if any(reserved):
        _fail(45, "reserved bytes are not zero")
    if layers > (size - _HEADER.size) // _ENTRY.size:
        _fail(32, f"{layers} layers do not fit into the {size - _HEADER.size} bytes behind the header")

    shapes, packings = [], []
    at = _HEADER.size
    least = 0  # bytes that scales and payloads take at the very least, whatever the shards
    for _ in range(layers):
        if size - at < _ENTRY.size:
            _fail(at, "the table of layers runs out of bytes")
        code, dimensions, reserved = _ENTRY.unpack(view[at : at + _ENTRY.size])
        if code not in _PACKING_NAMES:
            _fail(at, f"unknown packing code {code}")
        if _PACKING_NAMES[code] not in allowed:
            _fail(at, f"packing {_PACKING_NAMES[code]}, expected {' or '.join(allowed)} in a message of kind {kind}")
        if dimensions > _MAX_DIMENSIONS:
            _fail(at + 1, f"{dimensions} dimensions, expected at most {_MAX_DIMENSIONS}")
        if any(reserved):
            _fail(at + 2, "reserved bytes are not zero")
        at += _ENTRY.size
        if size - at < 8 * dimensions:
            _fail(at, f"{dimensions} dimensions do not fit into the {size - at} bytes that are left")
        shape = struct.unpack(f"<{dimensions}Q", view[at : at + 8 * dimensions])
        if math.prod(d for d in shape if d) > _MAX_ELEMENTS:
            _fail(at, f"shape {shape} is beyond {_MAX_ELEMENTS} elements")
        at += 8 * dimensions
        shapes.append(shape)
        packings.append(_PACKING_NAMES[code])
        least += _least_bytes(math.prod(shape), packings[-1], block)
    start = -(-at // 16) * 16
    if start > size or any(view[at:start]):
        _fail(at, f"expected zeros up to byte {start}, where the message starts")

    # A layout lists its pieces: each has a scale of 4 bytes, each shard has 16, so none is listed unpaid for.
    least = max(least, 16 * shards if shards > 1 else 0)
    if least > size - start:
        _fail(start, f"these layers take at least {least} bytes, {size - start} are left")
    try:
        layout = Layout(
            tuple(shapes),
            dtype=_DTYPE_NAMES[dtype],
            packing=tuple(packings),
            block=block or None,
            shards=shards,
            form=_FORM_NAMES[form],
        )
    except (TypeError, ValueError) as error:
        raise CorruptMessage(f"byte 15: header and table describe no layout: {error}") from error
    if layout.nbytes != size - start:
        _fail(start, f"these layers take {layout.nbytes} bytes, {size - start} are left")
    return layout, workers if kind == _KIND_COUNTS else None, start


def _least_bytes(size: int, packing: str, block: int) -> int:
    """Return the bytes of a layer's scale fields and payload without padding; more shards only add to them."""
    pieces = max(1, -(-size // block)) if block else 1
    # A block is whole tiles, so cutting it rounds nothing up.
    return 4 * pieces + _core.payload_bytes(PACKINGS[packing], size)
